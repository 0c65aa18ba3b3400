"""Is the nearest of many prototypes found for many vectors in the time of one matrix product, in bounded memory?"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.matching import Call, bound, inputs
from benchmarks.measure import Plan, Row, in_turn
from benchmarks.memory import extra_megabytes
from protolearn.core.assignment import nearest

TITLE = "Nearest prototype"


def run(plan: Plan) -> Iterator[Row]:
    """Time and weigh."""
    vectors, dim, count = (64, 16, 32) if plan.quick else (10_000, 512, 10_000)
    (x, p) = (t.squeeze(0) for t in inputs((1, vectors, dim, count)))
    ways = {
        "ours": lambda: nearest(x, p),
        "product": lambda: x @ p.T,
        "plain": lambda: (x @ p.T).min(1),
        "cdist": lambda: torch.cdist(x, p).min(1),
    }
    with torch.no_grad():
        times = in_turn(ways, plan.rounds(9))
    note = f"{vectors} vectors x {count} prototypes x width {dim}, float32"
    yield times.ratio(
        "ours", "plain", what="nearest", against="matrix product and minimum with its place", at_most=1.1, note=note
    )
    yield times.ratio("ours", "product", what="nearest", against="the matrix product alone", note="the same")
    yield times.ratio(
        "ours", "cdist", what="nearest", against="torch.cdist and minimum with its place", at_most=1.0, note="the same"
    )
    extra = extra_megabytes("benchmarks.nearest:case", vectors=vectors, dim=dim, count=count)
    yield Row(
        "nearest",
        "extra memory at the peak",
        extra,
        at_most=50.0,
        unit="MB",
        note=f"the whole table would hold {4e-6 * vectors * count:.0f} MB",
    )


def case(vectors: int, dim: int, count: int) -> tuple[Call, Call]:
    """Return what :mod:`benchmarks.memory` runs."""
    x, p = inputs((1, vectors, dim, count))
    return bound(nearest, x[0, :8], p[:8]), bound(nearest, x[0], p)
