"""The nearest of many rows, exactly and in bounded memory, and what a vote of them says."""

from __future__ import annotations

import torch
from torch import Tensor

from protolearn.core.matching import chunk_rows
from protolearn.core.measures import Distance, Measure
from protolearn.core.precision import full_precision


def largest(scores: Tensor, k: int) -> Tensor:
    """Return where the k largest entries of each row are, as ``(B, P)`` bool; the lower column wins a tie.

    Examples
    --------
    >>> largest(torch.tensor([[1.0, 3.0, 1.0, 2.0]]), 3)
    tensor([[ True,  True, False,  True]])
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if k >= scores.shape[1]:
        return torch.ones_like(scores, dtype=torch.bool)
    last = scores.detach().topk(k, dim=1).values[:, -1:]
    above, level = scores > last, scores == last
    return above | (level & (level.cumsum(1) <= k - above.sum(1, keepdim=True)))


def nearest_rows(
    values: Tensor,
    rows: Tensor,
    measure: Measure,
    k: int,
    *,
    left_out: Tensor | None = None,
    budget: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the k nearest rows of each value, nearest first: exact, and without the table of all pairs.

    Parameters
    ----------
    values, rows : Tensor
        ``(B, D)`` and ``(N, D)``.
    measure : Measure
        What is near.
    k : int
        At most the number of rows that may be found.
    left_out : Tensor, optional
        ``(B,)`` int64: the row that a value must not find (itself), -1 = none.
    budget : int, optional
        Bytes of the largest temporary table.

    Returns
    -------
    values, rows : Tensor
        ``(B, k)``; a tie goes to the lower row.

    Examples
    --------
    >>> from protolearn.core.measures import squared_l2
    >>> line = torch.tensor([[0.0], [1.0], [3.0]])
    >>> nearest_rows(line, line, squared_l2, 1, left_out=torch.arange(3))[1].flatten().tolist()
    [1, 0, 1]
    """
    most = len(rows) - (0 if left_out is None else 1)
    if not 1 <= k <= most:
        raise ValueError(f"k must lie between 1 and the {most} rows there are to find, got {k}")
    dtype = torch.promote_types(values.dtype, torch.float32)
    values, rows = values.to(dtype), rows.to(dtype)
    columns = min(len(rows), max(k, 4096))
    step = chunk_rows(8 * values.element_size() * columns, budget)
    found, where = [], []
    with full_precision(values.device):
        for i in range(0, max(1, len(values)), step):
            part = values[i : i + step]
            skip = None if left_out is None else left_out[i : i + step]
            best, at = _nearest_in_blocks(part, rows, measure, k, skip, columns)
            found.append(best)
            where.append(at)
    return torch.cat(found), torch.cat(where)


def _nearest_in_blocks(
    values: Tensor, rows: Tensor, measure: Measure, k: int, skip: Tensor | None, columns: int
) -> tuple[Tensor, Tensor]:
    falls = isinstance(measure, Distance)
    best = values.new_empty(len(values), 0)  # as scores, which rise with nearness
    at = torch.empty(len(values), 0, dtype=torch.long, device=values.device)
    for j in range(0, len(rows), columns):
        table = measure.pairwise(values, rows[j : j + columns])
        numbers = torch.arange(j, j + table.shape[1], device=at.device)
        scores = -table if falls else table
        if skip is not None:
            scores = scores.masked_fill(numbers == skip.unsqueeze(1), float("-inf"))
        best, at = torch.cat([best, scores], 1), torch.cat([at, numbers.expand(len(values), -1)], 1)
        if best.shape[1] > k:
            kept = largest(best, k)
            best, at = best[kept].view(-1, k), at[kept].view(-1, k)
    order = best.argsort(dim=1, descending=True, stable=True)
    best, at = best.gather(1, order), at.gather(1, order)
    return (-best if falls else best), at


def neighbour_probabilities(scores: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Return ``(B, C)`` from the scores of neighbours ``(B, k)`` and their classes ``(B, k)``: a softmax, added up.

    Examples
    --------
    >>> neighbour_probabilities(torch.zeros(1, 4), torch.tensor([[0, 1, 1, 1]]), 3)
    tensor([[0.2500, 0.7500, 0.0000]])
    """
    weights = scores.softmax(1)
    return weights.new_zeros(len(scores), classes).scatter_add(1, labels, weights)
