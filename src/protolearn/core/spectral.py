"""Spectral clusters of rows of which some have a known class, with a bandwidth read off the data. N rows, width D.

Source: Troisemaine et al., "A practical approach to novel class discovery in tabular data", DMKD 2024,
arXiv 2311.05440.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from protolearn.core.discovery import SeededClusters, class_means, seeded_k_means
from protolearn.core.measures import squared_l2
from protolearn.errors import UsageError


@torch.no_grad()
def longest_tree_edge(values: Tensor) -> float:
    """Return the longest squared edge of the minimum spanning tree of rows ``(N, D)``; Prim's way, without a table.

    Examples
    --------
    >>> longest_tree_edge(torch.tensor([[0.0], [1.0], [4.0]]))
    9.0
    """
    if len(values) < 2:
        return 0.0
    values = values.double()
    best = (values - values[0]).square().sum(1)
    best[0] = float("inf")
    joined = torch.zeros(len(values), dtype=torch.bool, device=values.device)
    joined[0] = True
    longest = values.new_zeros(())
    for _ in range(len(values) - 1):
        length, row = best.min(0)
        longest = torch.maximum(longest, length)
        joined[row] = True
        best = torch.minimum(best, (values - values[row]).square().sum(1)).masked_fill(joined, float("inf"))
    return float(longest)


def tree_bandwidth(values: Tensor, lowest: float = 0.5) -> float:
    """Return ``sqrt(- longest squared edge of the minimum spanning tree / log lowest)``.

    With it no link of the tree has an affinity ``exp(-d^2 / (2 sigma^2))`` below ``sqrt(lowest)``, so the graph hangs
    together. A single row far from all others makes it large.

    Parameters
    ----------
    values : Tensor
        ``(N, D)``, not all equal.
    lowest : float
        In (0, 1).

    Examples
    --------
    >>> sigma = tree_bandwidth(torch.tensor([[0.0], [1.0], [4.0]]), 0.25)
    >>> round(math.exp(-9.0 / (2 * sigma**2)), 6)
    0.5
    """
    if not 0 < lowest < 1:
        raise UsageError(f"lowest must lie in (0, 1), got {lowest}")
    longest = longest_tree_edge(values)
    if not longest > 0:
        raise UsageError("all rows are equal: there is no bandwidth")
    return math.sqrt(-longest / math.log(lowest))


@torch.no_grad()
def spectral_embedding(values: Tensor, components: int, bandwidth: float) -> Tensor:
    """Return ``(N, components)`` float64: the smoothest directions over the graph of all rows, but the first.

    Eigenvectors 1, 2, ... of ``I - S^-1/2 A S^-1/2`` with ``A_ij = exp(-|x_i - x_j|^2 / (2 sigma^2))``, 0 on the
    diagonal, and ``S`` its row sums. The table is ``(N, N)`` in float64, and time grows with the cube of N.

    Parameters
    ----------
    values : Tensor
        ``(N, D)``.
    components : int
        At most N - 1.
    bandwidth : float
        sigma.

    Examples
    --------
    >>> two = torch.tensor([[0.0], [0.1], [5.0], [5.1]])
    >>> side = spectral_embedding(two, 1, 2.0).flatten() > 0
    >>> side[0] == side[1] != side[2] == side[3]
    tensor(True)
    """
    if not 1 <= components < len(values):
        raise UsageError(f"{len(values)} rows have 1 to {len(values) - 1} components, not {components}")
    x = values.double()
    table = (squared_l2.pairwise(x, x) / (-2 * bandwidth**2)).exp_()
    table.fill_diagonal_(0.0)
    scale = table.sum(1).clamp_min(torch.finfo(table.dtype).tiny).rsqrt()
    table.mul_(scale).mul_(scale.unsqueeze(1))
    table = (table + table.T).div_(2)
    vectors: Tensor = torch.linalg.eigh(table).eigenvectors  # rising; those of I - table in reverse
    return vectors.flip(1)[:, 1 : components + 1]


@torch.no_grad()
def novel_spectral(
    values: Tensor,
    labels: Tensor,
    count: int,
    *,
    generator: torch.Generator,
    components: int | None = None,
    lowest: float = 0.5,
    restarts: int = 10,
) -> SeededClusters:
    """Return clusters of rows of which all unlabelled ones are of new classes, found over the graph of all rows.

    Labelled and unlabelled rows are embedded together, and semi-supervised k-means runs there: class means keep the
    draws of new centres away (``move="apart"``). Centres are returned in the space of ``values``.

    Parameters
    ----------
    values, labels : Tensor
        ``(N, D)``, and ``(N,)`` with -1 = unlabelled.
    count : int
        Known and new classes together.
    generator : torch.Generator
        Of the draws.
    components : int, optional
        ``count`` by default.
    lowest : float
        Of :func:`tree_bandwidth`.
    restarts : int
        Of k-means.

    Examples
    --------
    >>> line = torch.tensor([[0.0], [0.2], [5.0], [5.2], [9.0], [9.1]])
    >>> labels = torch.tensor([3, 3, -1, -1, -1, -1])
    >>> found = novel_spectral(line, labels, 3, generator=torch.Generator().manual_seed(0))
    >>> len(set(found.rows.tolist())), found.classes.tolist()
    (3, [3, -1, -1])
    """
    width = min(components or count, len(values) - 1)
    embedded = spectral_embedding(values, width, tree_bandwidth(values, lowest))
    found = seeded_k_means(embedded, labels, count, generator=generator, move="apart", restarts=restarts)
    centres = class_means(values, found.rows)[0]
    if len(centres) < count:  # an empty cluster has no place among the rows
        filled = centres.new_full((count, centres.shape[1]), float("nan"))
        filled[torch.unique(found.rows)] = centres
        centres = filled
    return SeededClusters(centres, found.rows, found.counts, found.inertia, found.iterations, found.classes)
