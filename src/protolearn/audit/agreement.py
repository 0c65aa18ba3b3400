"""Would another training find the same prototypes? One-to-one matching of the prototypes of two models."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array
from torch import Tensor

from protolearn.audit.correlation import unit_rows
from protolearn.errors import UsageError


@dataclass(frozen=True, eq=False)
class Matching:
    """The one-to-one matching of two sets of prototypes with the largest sum.

    Attributes
    ----------
    one, other : Tensor
        ``(m,)`` int64 rows, m the size of the smaller set.
    values : Tensor
        ``(m,)`` float64 likeness of each matched pair.
    """

    one: Tensor
    other: Tensor
    values: Tensor

    @property
    def mean(self) -> float | None:
        """Over matched pairs; None without any."""
        return float(self.values.mean()) if len(self.values) else None


def matched(table: Tensor) -> Matching:
    """Return the best matching (Hungarian method) under a table of likeness ``(P, Q)``.

    Examples
    --------
    >>> matched(torch.tensor([[0.9, 0.8], [0.7, 0.1]])).other.tolist()
    [1, 0]
    """
    values = table.detach().cpu().double()
    if bool(values.isnan().any()):
        raise UsageError("a table of likeness with NaN cannot be matched")
    rows, columns = linear_sum_assignment(values.numpy(), maximize=True)
    one, other = torch.from_numpy(rows).long(), torch.from_numpy(columns).long()
    return Matching(one, other, values[one, other])


def cosines(one: Tensor, other: Tensor) -> Tensor:
    """Return ``(P, Q)`` cosines of vectors ``(P, D)`` and ``(Q, D)`` of one space; 0 for a vector of length 0.

    Examples
    --------
    >>> cosines(torch.eye(2), torch.tensor([[2.0, 0.0]])).tolist()
    [[1.0], [0.0]]
    """
    if one.shape[1] != other.shape[1]:
        raise UsageError(f"vectors of one space have one width, got {one.shape[1]} and {other.shape[1]}")
    return unit_rows(one)[0] @ unit_rows(other)[0].T


def top_sets(scores: Tensor, n: int) -> Tensor:
    """Return ``(P, n)`` int64: the n cases in which each prototype scores highest, the lower case first in a tie.

    Parameters
    ----------
    scores : Tensor
        ``(N, P)``.
    n : int
        At most N are found.

    Examples
    --------
    >>> top_sets(torch.tensor([[1.0], [3.0], [2.0]]), 2).tolist()
    [[1, 2]]
    """
    if n < 1:
        raise UsageError(f"n must be at least 1, got {n}")
    return scores.detach().cpu().argsort(dim=0, descending=True, stable=True)[:n].T


def set_overlaps(one: Tensor, other: Tensor, cases: int) -> Tensor:
    """Return ``(P, Q)`` Jaccard index of sets of cases: cases in both over cases in either.

    Parameters
    ----------
    one, other : Tensor
        ``(P, n)`` and ``(Q, m)`` case indices, none twice in a row.
    cases : int
        How many there are.

    Examples
    --------
    >>> set_overlaps(torch.tensor([[0, 1]]), torch.tensor([[1, 2], [3, 4]]), 5).tolist()
    [[0.333..., 0.0]]
    """
    members = [
        csr_array(
            (np.ones(sets.numel()), sets.numpy().ravel(), np.arange(len(sets) + 1) * sets.shape[1]),
            shape=(len(sets), cases),
        )
        for sets in (one.cpu(), other.cpu())
    ]
    both = torch.from_numpy((members[0] @ members[1].T).toarray())
    return both / (one.shape[1] + other.shape[1] - both).clamp_min(1)


def varying(scores: Tensor) -> Tensor:
    """Return ``(P,)`` bool: prototypes whose score ``(N, P)`` is not the same in every case.

    The highest cases of one that never varies are any cases, and two such prototypes would seem to agree.

    Examples
    --------
    >>> varying(torch.tensor([[1.0, 0.0], [2.0, 0.0]])).tolist()
    [True, False]
    """
    return scores.amax(0) > scores.amin(0) if len(scores) else torch.zeros(scores.shape[1], dtype=torch.bool)
