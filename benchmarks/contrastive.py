"""Is a contrast within a batch as quick as the dense form that one writes first, in memory that stays small?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.matching import Call, bound
from benchmarks.measure import Plan, Row, Seconds, in_turn
from benchmarks.memory import extra_megabytes
from benchmarks.peers.process import Peer, find_peer
from protolearn.objectives.contrastive import group_contrast

TITLE = "Contrast within a batch"
RUNNER = Path(__file__).with_name("peers") / "metric_learning_runner.py"
DIM, TEMPERATURE = 128, 0.1
HERE = "benchmarks.contrastive:"


def run(plan: Plan) -> Iterator[Row]:
    """Time value and gradient of both forms, and weigh them; then beside pytorch-metric-learning, small."""
    batch = 32 if plan.quick else 1024
    for kind in ("two views", "classes"):
        vectors, groups = rows(batch, kind)
        note = f"batch {batch} in two views, width {DIM}, " + ("100 classes" if kind == "classes" else "NT-Xent")
        times = in_turn({"ours": bound(ours, vectors, groups), "dense": bound(dense, vectors, groups)}, plan.rounds(9))
        yield times.ratio(
            "ours", "dense", what=f"{kind}, value and gradient", against="a plain dense form", at_most=1.0, note=note
        )
        gap = float((ours(vectors, groups) - dense(vectors, groups)).abs())
        yield Row(f"{kind}, value", "a plain dense form", gap, at_most=1e-4, unit="apart", note="the same, float32")
    for name, size, target in (("ours", batch, 200.0), ("dense", batch, None), ("ours", 8 * batch, 200.0)):
        found = extra_megabytes(f"{HERE}case", form=name, batch=size)
        yield Row(
            f"two views, {'ours' if name == 'ours' else 'a plain dense form'}", "extra memory at the peak", found,
            at_most=target, unit="MB", note=f"batch {size} in two views, width {DIM}, value and gradient",
        )  # fmt: skip
    yield from beside_metric_learning(plan)


def beside_metric_learning(plan: Plan) -> Iterator[Row]:
    """Return the rows beside pytorch-metric-learning's NT-Xent, whose memory grows with the cube of the batch."""
    python, why = find_peer(None, "metric_learning", ".venv-metric-learning")
    if python is None:
        yield Row("pytorch-metric-learning NT-Xent", "ours", None, note=f"not measured: {why}")
        return
    peer = Peer(python, plan.threads, RUNNER)
    try:
        version = peer.versions["pytorch-metric-learning"]
        batch = 16 if plan.quick else 64
        vectors, groups = rows(batch, "two views")
        theirs = peer.ask("contrast", batch=batch, dim=DIM, temperature=TEMPERATURE, vectors=vectors.tolist())
        gap = abs(theirs["value"] - float(ours(vectors, groups)))
        times = in_turn(
            {
                "ours": bound(ours, vectors, groups),
                "peer": lambda: Seconds(peer.ask("again")["seconds"]),
            },
            plan.rounds(9),
        )
        note = f"batch {batch} in two views, width {DIM}; version {version}"
        yield times.ratio(
            "ours", "peer", what="pytorch-metric-learning NT-Xent", against="ours", invert=True, at_least=1.0, note=note
        )
        yield Row("NT-Xent, value", "pytorch-metric-learning", gap, at_most=1e-4, unit="apart", note="the same")
        double = 2 * batch
        found = [
            peer.ask("peak", batch=size, dim=DIM, temperature=TEMPERATURE)["megabytes"] for size in (batch, double)
        ]
        at_most = found[1] * (1024 / double) ** 3 / 1000
        yield Row(
            "pytorch-metric-learning NT-Xent", "extra memory at the peak", found[1], unit="MB",
            note=f"batch {double} in two views; {found[0]:.0f} MB at {batch}. It makes a table of all pairs of views "
            f"times all pairs of others: at 1024 that would be about {at_most:.0f} GB",
        )  # fmt: skip
    finally:
        peer.close()


def rows(batch: int, kind: str) -> tuple[Tensor, Tensor]:
    """Return unit rows ``(2 B, D)``, view by view, and their groups."""
    vectors = F.normalize(torch.randn(2 * batch, DIM, generator=torch.Generator().manual_seed(0)), dim=1)
    instances = torch.arange(batch).repeat(2)
    return vectors, instances % 100 if kind == "classes" else instances


def ours(vectors: Tensor, groups: Tensor) -> Tensor:
    """Return the value; the gradient is worked out too."""
    leaf = vectors.clone().requires_grad_()
    loss = group_contrast(leaf, groups, TEMPERATURE)
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach()


def dense(vectors: Tensor, groups: Tensor) -> Tensor:
    """Return the same by the form that one writes first: every table whole, and autograd keeps what it needs."""
    leaf = vectors.clone().requires_grad_()
    scores = leaf @ leaf.T / TEMPERATURE
    itself = torch.eye(len(leaf), dtype=torch.bool)
    same = (groups.unsqueeze(1) == groups) & ~itself
    logs = scores - scores.masked_fill(itself, float("-inf")).logsumexp(1, keepdim=True)
    loss = -((logs * same).sum(1) / same.sum(1)).mean()
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach()


def case(form: str, batch: int) -> tuple[Call, Call]:
    """Return what :mod:`benchmarks.memory` runs."""
    call = ours if form == "ours" else dense
    return bound(call, *rows(8, "two views")), bound(call, *rows(batch, "two views"))
