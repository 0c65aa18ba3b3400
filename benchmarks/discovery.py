"""Is semi-supervised k-means much quicker than the released algorithm, as accurate, and a search over numbers quick?"""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.measure import Plan, Row, in_turn
from protolearn.audit.discovery import discovery_score
from protolearn.core.discovery import seeded_k_means
from protolearn.encoders.search import nearest_centres
from protolearn.tasks.class_number import estimate_classes

TITLE = "New classes: semi-supervised k-means"
LIMIT, BLOCK = 100, 1000


def run(plan: Plan) -> Iterator[Row]:
    """Time one run of each from draws of their own, and compare what they find."""
    cases, dim, classes = (600, 16, 8) if plan.quick else (10_000, 384, 100)
    values, labels, truth = data(cases, dim, classes)
    found: dict[str, Tensor] = {}

    def ours() -> None:
        draw = torch.Generator().manual_seed(1)
        found["ours"] = seeded_k_means(values, labels, classes, generator=draw, restarts=1, assign=nearest_centres).rows

    def plain() -> None:
        found["plain"] = plainly(values, labels, classes, torch.Generator().manual_seed(1))

    times = in_turn({"ours": ours, "plain": plain}, plan.rounds(2), warm=0)
    note = (
        f"{cases} cases x width {dim}, {classes} clusters, half of the classes known by half of their cases; one start"
    )
    words = "the released algorithm, written plainly"
    yield times.ratio(
        "ours", "plain", what="semi-supervised k-means", against=words, invert=True, at_least=50, note=note
    )
    free = labels < 0
    right = {name: discovery_score(rows[free], truth[free], range(classes // 2)).all for name, rows in found.items()}
    assert right["ours"] is not None and right["plain"] is not None
    yield Row(
        "accuracy, all unlabelled cases", "its accuracy", right["ours"] - right["plain"], at_least=-0.01, unit="apart",
        note=f"ours {right['ours']:.3f}, the released algorithm's {right['plain']:.3f}; each from one start",
    )  # fmt: skip
    start = time.perf_counter()
    number = estimate_classes(
        values, labels, generator=torch.Generator().manual_seed(2), low=classes // 2, high=2 * classes, restarts=1
    )
    yield Row(
        "the number of classes searched", "seconds", time.perf_counter() - start, unit="s",
        note=f"{len(number.curve)} numbers from {number.low} to {number.high} tried by accuracy on the labelled cases; "
        f"found {number.count}",
    )  # fmt: skip


def data(cases: int, dim: int, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return unit vectors about class directions, overlapping, with labels of half of the first half of classes."""
    draw = torch.Generator().manual_seed(0)
    truth = torch.arange(cases) % classes
    directions = F.normalize(torch.randn(classes, dim, generator=draw), dim=1)
    spread = 1.3 * torch.randn(cases, dim, generator=draw) / dim**0.5
    values = F.normalize(directions[truth] + spread, dim=1)
    shown = (truth < classes // 2) & (torch.rand(cases, generator=draw) < 0.5)
    return values, torch.where(shown, truth, -1), truth


def gaps(values: Tensor, centres: Tensor) -> Tensor:
    """Return squared distances by subtracting every centre from every case, in blocks of cases."""
    parts = [(part.unsqueeze(1) - centres.unsqueeze(0)).square().sum(-1) for part in values.split(BLOCK)]
    return torch.cat(parts)


def plainly(values: Tensor, labels: Tensor, count: int, draw: torch.Generator) -> Tensor:
    """Return the clusters of the algorithm of Vaze et al. (2022), step by step as their release takes them.

    Every further centre is drawn after the distances to all centres so far have been computed anew; in each round
    centres are means taken class by class; the best round counts.
    """
    known, free = values[labels >= 0], values[labels < 0]
    own = labels[labels >= 0]
    classes = own.unique()
    centres = torch.stack([known[own == label].mean(0) for label in classes])
    while len(centres) < count:
        odds = gaps(free, centres).min(1).values
        ends = (odds / odds.sum()).cumsum(0)
        drawn = (ends >= torch.rand((), generator=draw)).nonzero()
        centres = torch.cat([centres, free[int(drawn[0]) if len(drawn) else len(free) - 1].unsqueeze(0)])
    every = torch.cat([known, free])
    fixed = torch.searchsorted(classes, own)
    best, least = torch.zeros(0, dtype=torch.long), float("inf")
    for _ in range(LIMIT):
        near = gaps(free, centres).min(1)
        rows = torch.cat([fixed, near.indices])
        inertia = float(near.values.sum() + (known - centres[fixed]).square().sum())
        moved = torch.stack([every[rows == k].mean(0) for k in range(count)])
        moved = torch.where(moved.isnan(), centres, moved)  # theirs stays empty; a mean of nothing would end the run
        if inertia < least:
            best, least = rows, inertia
        shift = float((moved - centres).norm(dim=1).sum())
        centres = moved
        if shift**2 < 1e-4:
            break
    found = torch.empty_like(labels)
    found[labels >= 0], found[labels < 0] = best[: len(known)], best[len(known) :]
    return found
