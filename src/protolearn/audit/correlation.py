"""Cosines and correlations: of rows of two tables, of ranks, and of weighted items. All in double precision."""

from __future__ import annotations

import torch
from scipy.stats import rankdata
from torch import Tensor

from protolearn.errors import UsageError


def unit_rows(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows of length 1 in double precision, and ``(P,)`` bool where a row has a direction at all.

    Examples
    --------
    >>> unit_rows(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))[1].tolist()
    [True, False]
    """
    rows = vectors.detach().cpu().double()
    length = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    real = torch.isfinite(length) & (length > 0)
    return torch.where(real, rows / length.where(real, 1.0), 0.0), real.squeeze(1)


def standard_rows(table: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows less their mean at length 1, whose cosine is the correlation, and where a row varies at all.

    Examples
    --------
    >>> rows, real = standard_rows(torch.tensor([[1.0, 2.0, 3.0], [9.0, 8.0, 7.0], [4.0, 4.0, 4.0]]))
    >>> round(float(rows[0] @ rows[1]), 6), real.tolist()
    (-1.0, [True, True, False])
    """
    rows = table.detach().cpu().double()
    constant = rows.amax(1) == rows.amin(1) if rows.shape[1] else torch.ones(len(rows), dtype=torch.bool)
    centred = rows - rows.mean(1, keepdim=True) if rows.shape[1] else rows
    units, real = unit_rows(centred.masked_fill(constant.unsqueeze(1), 0.0))
    return units, real


def row_cosine(one: Tensor, other: Tensor) -> Tensor:
    """Return ``(N,)`` cosines between the rows of two tables ``(N, P)``; NaN where a row has no direction.

    Examples
    --------
    >>> row_cosine(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([[2.0, 0.0], [1.0, 0.0]])).tolist()
    [1.0, nan]
    """
    return _along(unit_rows(one), unit_rows(other))


def row_correlation(one: Tensor, other: Tensor) -> Tensor:
    """Return ``(N,)`` Pearson correlations between the rows of two tables ``(N, P)``; NaN where a row is all equal.

    Examples
    --------
    >>> round(row_correlation(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[2.0, 4.0, 6.0]])).item(), 6)
    1.0
    """
    return _along(standard_rows(one), standard_rows(other))


def _along(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> Tensor:
    (left, real), (right, too) = one, other
    if left.shape != right.shape or left.ndim != 2:
        raise UsageError(
            f"rows of one table are compared with rows of another: {tuple(left.shape)}, {tuple(right.shape)}"
        )
    return (left * right).sum(1).clamp(-1.0, 1.0).where(real & too, float("nan"))


def rank_correlation(one: Tensor, other: Tensor) -> Tensor:
    """Return ``(B,)`` Spearman's correlation between rows, ties at their mean rank; NaN where a row is all equal.

    Parameters
    ----------
    one, other : Tensor
        ``(B, P)`` scores of the same prototypes.

    Examples
    --------
    >>> round(rank_correlation(torch.tensor([[1.0, 2.0, 9.0]]), torch.tensor([[0.1, 0.2, 0.3]])).item(), 6)
    1.0
    """
    if not one.numel():
        return torch.full((len(one),), float("nan"), dtype=torch.float64)
    ranks = [torch.from_numpy(rankdata(table.detach().cpu().double().numpy(), axis=1)) for table in (one, other)]
    return row_correlation(*ranks)


def weighted_correlation(left: Tensor, right: Tensor, weights: Tensor) -> Tensor:
    """Return ``(R,)`` Pearson correlations of values ``(n,)``, one a row of weights ``(R, n)``; NaN where undefined.

    Examples
    --------
    >>> one, other = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 4.0, 7.0])
    >>> weighted_correlation(one, other, torch.ones(1, 3)).item() > 0.98
    True
    """
    left, right, weights = left.double(), right.double(), weights.double()
    total = weights.sum(1)
    # about the middle first: the moments of large numbers lose their digits
    left, right = left - left.mean(), right - right.mean()
    a, b = weights @ left / total, weights @ right / total
    cross = weights @ (left * right) / total - a * b
    spread = (weights @ left.square() / total - a * a) * (weights @ right.square() / total - b * b)
    least = torch.finfo(torch.float64).eps * left.square().mean() * right.square().mean()
    return torch.where(spread > least, cross / spread.clamp_min(0).sqrt(), float("nan")).clamp(-1, 1)
