"""Is learning vector quantisation on a table quicker and better than prototorch and than a plain loop?"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from benchmarks.measure import Plan, Row, Seconds, in_turn
from benchmarks.peers.process import Peer, find_peer
from protolearn.interop.shallow import GLVQClassifier, GMLVQClassifier

TITLE = "Learning vector quantisation on a table"
BATCH, SEEDS = 64, (0, 1, 2)
RUNNER = Path(__file__).with_name("peers") / "prototorch_runner.py"
KINDS = {"GLVQ": GLVQClassifier, "GMLVQ": GMLVQClassifier}


def run(plan: Plan) -> Iterator[Row]:
    """Time whole fits, starts included, and compare accuracies on the same test cases."""
    data = table(plan.quick)
    epochs = 2 if plan.quick else 50
    python, why = find_peer(None, "prototorch", ".venv-prototorch")
    peer = None if python is None else Peer(python, plan.threads, RUNNER)
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "table.npz"
            np.savez(path, **data)
            for kind, per_class in (("GLVQ", 1), ("GLVQ", 5), ("GMLVQ", 1)):
                yield from compare(plan, data, path, kind, per_class, epochs, peer, why)
    finally:
        if peer is not None:
            peer.close()


def table(quick: bool) -> dict[str, np.ndarray]:
    """Return the digits, a fifth held out, every feature scaled by the training part."""
    X, y = load_digits(return_X_y=True)
    if quick:
        X, y = X[:200], y[:200]
    x, test, y, labels = train_test_split(X, y, test_size=0.2, random_state=0, stratify=y)
    scaler = StandardScaler().fit(x)
    x, test = (scaler.transform(part).astype(np.float32) for part in (x, test))
    return {"x": x, "y": y.astype(np.int64), "test": test, "labels": labels.astype(np.int64)}


def compare(
    plan: Plan, data: dict[str, np.ndarray], path: Path, kind: str, per_class: int, epochs: int,
    peer: Peer | None, why: str,
) -> Iterator[Row]:  # fmt: skip
    """Return the rows of one method with so many prototypes a class."""
    note = f"digits, {len(data['x'])} x 64, {kind}, {per_class} a class, {epochs} epochs, batches of {BATCH}"
    order: dict[str, Any] = {
        "data": str(path), "kind": kind, "per_class": per_class, "epochs": epochs, "batch": BATCH,
    }  # fmt: skip
    ways: dict[str, Any] = {
        "ours": lambda: ours(data, kind, per_class, epochs, 0),
        "plain": lambda: plain(data, kind, per_class, epochs, 0),
    }
    if peer is not None:
        ways["peer"] = lambda: Seconds(peer.ask("fit", **order, seed=0)["seconds"])
    times = in_turn(ways, plan.rounds(5))
    yield times.ratio("ours", "plain", what=f"{kind}, fit", against="a plain loop, fit", at_most=1.0, note=note)
    if peer is None:
        yield Row(f"prototorch {kind}, fit", "ours, fit", None, note=f"not measured: {why}")
    else:
        pace = f"ours {1000 * times.best('ours') / epochs:.1f} ms an epoch here"
        yield times.ratio(
            "ours", "peer", what=f"prototorch {kind}, fit", against="ours, fit", invert=True, at_least=10.0,
            note=f"the same; version {peer.versions['prototorch']}; {pace}",
        )  # fmt: skip
    seeds = SEEDS[:1] if plan.quick else SEEDS
    right = float(np.mean([ours(data, kind, per_class, epochs, seed) for seed in seeds]))
    for name, other in (
        ("a plain loop", [plain(data, kind, per_class, epochs, seed) for seed in seeds]),
        ("prototorch", None if peer is None else [peer.ask("fit", **order, seed=s)["accuracy"] for s in seeds]),
    ):
        if other is None:
            yield Row(f"{kind}, accuracy", name, None, note=f"not measured: {why}")
            continue
        gain = 100 * (right - float(np.mean(other)))
        note = f"ours {right:.3f}, theirs {np.mean(other):.3f}, mean of {len(seeds)} seeds"
        yield Row(f"{kind}, accuracy beyond", name, gain, at_least=0.0, unit="points", note=note)


def ours(data: dict[str, np.ndarray], kind: str, per_class: int, epochs: int, seed: int) -> float:
    """Fit our estimator; return its accuracy on the test part."""
    made = KINDS[kind](per_class, max_iter=epochs, batch_size=BATCH, random_state=seed).fit(data["x"], data["y"])
    return float(made.score(data["test"], data["labels"]))


def plain(data: dict[str, np.ndarray], kind: str, per_class: int, epochs: int, seed: int) -> float:
    """Fit by the loop that one writes first: autograd, Adam, class-wise k-means; return the accuracy."""
    from sklearn.cluster import KMeans

    torch.manual_seed(seed)
    x, y = torch.from_numpy(data["x"]), torch.from_numpy(data["y"])
    starts = [KMeans(per_class, n_init=1, random_state=seed).fit(data["x"][data["y"] == c]) for c in range(10)]
    vectors = torch.from_numpy(np.concatenate([s.cluster_centers_ for s in starts])).float().requires_grad_()
    owner = torch.arange(10).repeat_interleave(per_class)
    omega = torch.eye(x.shape[1], requires_grad=kind == "GMLVQ")
    moved = [vectors, omega] if kind == "GMLVQ" else [vectors]
    optimizer = torch.optim.Adam(moved, lr=0.01)

    def distances(cases: Tensor) -> Tensor:
        a, b = (cases @ omega, vectors @ omega) if kind == "GMLVQ" else (cases, vectors)
        return torch.cdist(a, b).square()

    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(BATCH):
            d, own = distances(x[rows]), owner == y[rows].unsqueeze(1)
            plus = d.masked_fill(~own, torch.inf).amin(1)
            minus = d.masked_fill(own, torch.inf).amin(1)
            loss = ((plus - minus) / (plus + minus)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        found = owner[distances(torch.from_numpy(data["test"])).argmin(1)]
    return float((found.numpy() == data["labels"]).mean())
