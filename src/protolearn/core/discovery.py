"""Clusters of cases of which some are labelled: known classes keep their cases, new classes are found beside them.

N cases of width D; labels ``(N,)`` int64, -1 = unlabelled; P clusters, the known classes first. Maths only: what is
asked of data is in ``tasks.discover``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from protolearn.core.assignment import nearest
from protolearn.core.measures import cosine, squared_l2
from protolearn.core.neighbours import nearest_rows
from protolearn.core.updates import Assign, Clusters, group_moments, k_means, plus_plus
from protolearn.errors import UsageError

Move = Literal["all", "new", "apart"]


@dataclass(frozen=True)
class SeededClusters(Clusters):
    """Clusters of which the first stand for known classes.

    Attributes
    ----------
    classes : Tensor
        ``(P,)`` int64: the label of the class that a cluster stands for, -1 for a new one.
    """

    classes: Tensor


def class_means(values: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the means ``(C', D)`` of the classes that occur and their labels ``(C',)``, rising.

    Examples
    --------
    >>> class_means(torch.tensor([[1.0], [3.0], [9.0], [5.0]]), torch.tensor([2, 2, -1, 0]))
    (tensor([[5.],
            [2.]]), tensor([0, 2]))
    """
    present, ranks = torch.unique(labels[labels >= 0], return_inverse=True)
    return group_moments(values[labels >= 0], ranks, len(present)).means, present


@torch.no_grad()
def seeded_k_means(
    values: Tensor,
    labels: Tensor,
    count: int,
    *,
    generator: torch.Generator,
    move: Move = "all",
    restarts: int = 10,
    iterations: int = 100,
    tolerance: float = 1e-5,
    assign: Assign = nearest,
) -> SeededClusters:
    """Return semi-supervised k-means: labelled cases keep their class, the others go to the nearest centre.

    Centres start at the class means and, for the rest, at unlabelled cases drawn far from those and from each other
    (k-means++). Of several runs the one with the least inertia is kept; inertia counts all cases, the labelled ones by
    the distance to the centre of their own class.

    Parameters
    ----------
    values : Tensor
        ``(N, D)``, finite.
    labels : Tensor
        ``(N,)``, -1 = unlabelled. Any numbers; known clusters come in their order.
    count : int
        P: known and new classes together.
    generator : torch.Generator
        Of the draws.
    move : {"all", "new", "apart"}
        ``all``: every centre becomes the mean of its cases, labelled and not (Vaze et al., 2022, generalized category
        discovery). ``new``: class means stay where they are, and unlabelled cases may still go there. ``apart``: class
        means only keep the draws away; unlabelled cases go to new centres alone (Troisemaine et al., 2024, where
        unlabelled cases are known to be of new classes).
    restarts, iterations, tolerance, assign
        As for :func:`~protolearn.core.updates.k_means`.

    Raises
    ------
    UsageError
        If there are fewer clusters than known classes (with ``apart``: no new one), or more new ones than unlabelled
        cases.

    Examples
    --------
    >>> line = torch.tensor([[0.0], [0.2], [0.1], [5.0], [5.2]])
    >>> found = seeded_k_means(line, torch.tensor([7, 7, -1, -1, -1]), 2, generator=torch.Generator().manual_seed(0))
    >>> found.rows.tolist(), found.classes.tolist()
    ([0, 0, 0, 1, 1], [7, -1])
    """
    if values.ndim != 2 or labels.shape != values.shape[:1]:
        raise UsageError(f"expected cases (N, D) and labels (N,), got {tuple(values.shape)} and {tuple(labels.shape)}")
    if not bool(values.isfinite().all()):
        raise UsageError("clusters are made of finite values only: look for NaN in the features")
    if move not in ("all", "new", "apart"):
        raise UsageError(f"move must be all, new or apart, got {move!r}")
    means, present = class_means(values, labels)
    fresh, free = count - len(present), int((labels < 0).sum())
    if fresh < (move == "apart"):
        raise UsageError(f"{len(present)} classes are known: {count} clusters leave no room for them and a new one")
    if fresh > free:
        raise UsageError(f"{fresh} new clusters cannot be found among {free} unlabelled cases: ask for fewer")
    classes = torch.cat([present, present.new_full((fresh,), -1)])
    ranks = torch.searchsorted(present, labels.clamp_min(0)) if len(present) else labels.clamp_min(0)
    given = torch.where(labels >= 0, ranks, -1)
    how: dict[str, Any] = {
        "generator": generator, "iterations": iterations, "tolerance": tolerance, "assign": assign
    }  # fmt: skip
    if move == "apart":
        return _apart(values, given, means, fresh, classes, restarts, how)
    found = k_means(
        values, count, given=given, first=means, held=move == "new", restarts=restarts, sample=len(values), **how
    )
    return SeededClusters(**vars(found), classes=classes)


def _apart(
    values: Tensor, given: Tensor, means: Tensor, fresh: int, classes: Tensor, restarts: int, how: dict[str, Any]
) -> SeededClusters:
    free, known = values[given < 0], len(means)
    means = means.to(torch.promote_types(values.dtype, torch.float32))
    free = free.to(means)
    best: Clusters | None = None
    for _ in range(restarts):
        start = plus_plus(free, known + fresh, how["generator"], first=means)[known:]
        found = k_means(free, fresh, start=start, **how)
        best = found if best is None or found.inertia < best.inertia else best
    if best is None:
        raise UsageError(f"restarts must be at least 1, got {restarts}")
    rows = given.masked_scatter(given < 0, best.rows + known)
    centres, own = torch.cat([means, best.centres]), given >= 0
    inertia = best.inertia + float(squared_l2.paired(values[own].to(means), means[given[own]]).sum())
    counts = torch.bincount(rows, minlength=known + fresh)
    whole = replace(best, centres=centres, rows=rows, counts=counts, inertia=inertia)
    return SeededClusters(**vars(whole), classes=classes)


def centre_margin(values: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Return each case's nearest centre and how clear that is: ``1 - d1 / d2`` of the distances to the nearest two.

    0 on the border between two centres and where both coincide, 1 on a centre and where there is only one.

    Examples
    --------
    >>> centre_margin(torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[0.0], [4.0]]))
    (tensor([0, 0, 0]), tensor([1.0000, 0.6667, 0.0000]))
    """
    gaps, rows = nearest_rows(values, centres, squared_l2, min(2, len(centres)))
    roots = gaps.clamp_min(0.0).sqrt()
    if len(centres) == 1:
        return rows[:, 0], torch.ones_like(roots[:, 0])
    apart = roots[:, 1] > 0
    return rows[:, 0], torch.where(apart, 1.0 - roots[:, 0] / roots[:, 1].where(apart, 1.0), 0.0)


def consensus(known: Tensor, labels: Tensor, free: Tensor, rows: Tensor, count: int) -> Tensor:
    """Return ``(C',)``: how far each known class and a cluster of unlabelled cases agree that they are the same.

    A class and a cluster are matched where each one's centre is the other's nearest by cosine. Their consensus is the
    mean of two shares: of the cluster's cases, those whose nearest class centre is that class; of the class's cases,
    those whose nearest cluster centre is that cluster. A class that is not matched has 0, which is ours.

    Source: Domain Consensus Clustering (Li et al., CVPR 2021).

    Parameters
    ----------
    known, labels : Tensor
        ``(N, D)`` labelled cases, and their classes ``(N,)``.
    free, rows : Tensor
        ``(M, D)`` unlabelled cases, and their clusters ``(M,)``.
    count : int
        P; clusters without a case match nothing.

    Examples
    --------
    >>> x = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
    >>> consensus(x, torch.tensor([0, 0, 1, 1]), x, torch.tensor([1, 1, 0, 0]), 2)
    tensor([1., 1.])
    """
    means, present = class_means(known, labels)
    if not len(means):
        return known.new_zeros(0)
    ranks = torch.searchsorted(present, labels)
    moments = group_moments(free, rows, count)
    seen = (moments.counts > 0).nonzero().squeeze(1)
    centres = moments.means[seen]
    table = cosine.pairwise(means, centres)
    there, back = table.argmax(1), table.argmax(0)
    mutual = back[there] == torch.arange(len(means), device=there.device)
    of_free = nearest_rows(free, means, cosine, 1)[1][:, 0]
    of_known = nearest_rows(known, centres, cosine, 1)[1][:, 0]
    own = rows.unsqueeze(1) == seen[there]  # (M, C'): cases of the cluster each class is matched with
    first = (own & (of_free.unsqueeze(1) == torch.arange(len(means), device=rows.device))).sum(0) / own.sum(0)
    second = group_moments((of_known == there[ranks]).float().unsqueeze(1), ranks, len(means)).means[:, 0]
    return torch.where(mutual, (first + second) / 2, torch.zeros_like(first))
