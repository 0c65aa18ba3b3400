"""Is a distance to very many classes fitted and asked quicker than class by class, with the same ranking?"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.measure import Plan, Row, Seconds, in_turn
from benchmarks.peers.process import Peer, find_peer
from protolearn.core.scorer import Scorer, View, make_scorer

TITLE = "Novelty by Mahalanobis distance"
RUNNER = Path(__file__).with_name("peers") / "pytorch_ood_runner.py"


def run(plan: Plan) -> Iterator[Row]:
    """Time fit and score on features, and compare rankings."""
    cases, width, classes, asked = (400, 16, 10, 50) if plan.quick else (20_000, 512, 1000, 500)
    data = features(cases, width, classes, asked)
    python, why = find_peer(None, "pytorch_ood", ".venv-ood")
    peer = None if python is None else Peer(python, plan.threads, RUNNER)
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "features.npz"
            np.savez(path, **{name: values.numpy() for name, values in data.items()})
            yield from compare(plan, data, str(path), peer, why)
    finally:
        if peer is not None:
            peer.close()


def features(cases: int, width: int, classes: int, asked: int) -> dict[str, Tensor]:
    """Return correlated features around class centres, and others to be asked about, half of them of no class."""
    draw = torch.Generator().manual_seed(0)
    centres = 2 * torch.randn(classes, width, generator=draw)
    mix = torch.randn(width, width, generator=draw) / width**0.5 + torch.eye(width)
    labels = torch.arange(cases) % classes
    rows = centres[labels] + torch.randn(cases, width, generator=draw) @ mix
    near = centres[torch.arange(asked // 2) % classes] + torch.randn(asked // 2, width, generator=draw) @ mix
    far = 2 * torch.randn(asked - asked // 2, width, generator=draw) @ mix
    return {"features": rows, "labels": labels, "asked": torch.cat([near, far])}


def compare(plan: Plan, data: dict[str, Tensor], path: str, peer: Peer | None, why: str) -> Iterator[Row]:
    """Return the rows: ours beside the peer and beside a plain loop over classes."""
    known, labels, asked = data["features"], data["labels"], data["asked"]
    view, question = View(known, known[:, :1]), View(asked, asked[:, :1])
    ours = make_scorer("mahalanobis").fit(view, labels)
    note = f"{len(known)} x {known.shape[1]}, {len(ours.means)} classes"
    means, precision = plain_fit(known, labels)
    fits: dict[str, Any] = {"ours": lambda: make_scorer("mahalanobis").fit(view, labels)}
    scores: dict[str, Any] = {"ours": lambda: ours.score(question)}
    if peer is None:  # a loop of our own in its place, in single precision as the peer's is
        name = "a plain loop over classes"
        simple = means.float(), precision.float()
        fits["other"] = lambda: plain_fit(known, labels, torch.float32)
        scores["other"] = lambda: plain_score(asked, *simple)
    else:
        name = "pytorch-ood"
        fits["other"] = lambda: Seconds(peer.ask("fit", data=path)["seconds"])
        scores["other"] = lambda: Seconds(peer.ask("score", data=path, count=len(asked))["seconds"])
    for what, ways, least in (("fit", fits, 20.0), ("score", scores, 50.0)):
        times = in_turn(ways, plan.rounds(5))
        told = note if what == "fit" else f"{note}; {len(asked)} asked about"
        told += f"; ours {1000 * times.best('ours'):.0f} ms here"
        if peer is None:
            yield Row(f"pytorch-ood, {what}", f"ours, {what}", None, note=f"not measured: {why}")
        else:
            told += f"; version {peer.versions['pytorch-ood']}"
        yield times.ratio("ours", "other", what=f"{name}, {what}", against=f"ours, {what}", invert=True,
                          at_least=None if peer is None else least, note=told)  # fmt: skip
    yield from rankings(ours, question, plain_score(asked, means, precision), peer, path)


def rankings(ours: Scorer, question: View, plain: Tensor, peer: Peer | None, path: str) -> Iterator[Row]:
    """Return how far the order of the cases asked about is the same, as Spearman's correlation."""
    from scipy.stats import spearmanr

    found = ours.score(question).double().numpy()
    others = {"a plain loop in double precision": plain.numpy()}
    if peer is not None:
        others["pytorch-ood"] = -np.array(peer.ask("score", data=path, count=len(found))["scores"])
    for name, other in others.items():
        yield Row("ranking, Spearman's correlation", name, float(spearmanr(found, other).statistic), at_least=0.9999,
                  unit="", note=f"{len(found)} cases")  # fmt: skip


def plain_fit(features: Tensor, labels: Tensor, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Return class means and the inverse of the tied covariance, class by class."""
    rows = features.to(dtype)
    means = torch.zeros(int(labels.max()) + 1, rows.shape[1], dtype=dtype)
    covariance = torch.zeros(rows.shape[1], rows.shape[1], dtype=dtype)
    for c in range(len(means)):
        mine = rows[labels == c]
        means[c] = mine.mean(0)
        covariance += (mine - means[c]).T @ (mine - means[c])
    return means, torch.linalg.pinv(covariance / len(rows), hermitian=True)


def plain_score(asked: Tensor, means: Tensor, precision: Tensor) -> Tensor:
    """Return minus the distance to the nearest class, class by class."""
    best = torch.full((len(asked),), -torch.inf, dtype=means.dtype)
    for mean in means:
        apart = asked.to(means.dtype) - mean
        best = torch.maximum(best, -((apart @ precision) * apart).sum(1))
    return best
