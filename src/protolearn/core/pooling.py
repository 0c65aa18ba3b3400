"""From a table of similarities over positions ``(B, S, P)`` to one number per prototype ``(B, P)``.

Every function takes the table and an optional ``(B, S)`` mask, True where a position is real; a masked position has no
influence. An input with no real position gives -inf for the extremes and 0 for the averages.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Pooling = Callable[[Tensor, Tensor | None], Tensor]


def _hide(table: Tensor, mask: Tensor | None, value: float) -> Tensor:
    if table.ndim != 3:
        raise ValueError(f"pooling takes a table (B, S, P), got {tuple(table.shape)}")
    return table if mask is None else table.masked_fill(~mask.unsqueeze(-1), value)


def _count(table: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return table.new_full((table.shape[0], 1), float(table.shape[1]))
    return mask.sum(1, keepdim=True).to(table.dtype)


def max_pool(table: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the largest similarity over positions: the prototype is somewhere.

    Examples
    --------
    >>> max_pool(torch.tensor([[[0.1], [0.9]]]))
    tensor([[0.9000]])
    """
    return _hide(table, mask, float("-inf")).amax(1)


def mean_pool(table: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the mean similarity over real positions: how much of the input the prototype covers."""
    return _hide(table, mask, 0.0).sum(1) / _count(table, mask).clamp_min(1.0)


def sum_pool(table: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the sum of similarities over real positions."""
    return _hide(table, mask, 0.0).sum(1)


def top_k_pool(table: Tensor, mask: Tensor | None = None, *, k: int = 5) -> Tensor:
    """Return the mean of the ``k`` largest similarities, of all real positions where there are fewer."""
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    best = _hide(table, mask, float("-inf")).topk(min(k, table.shape[1]), dim=1).values
    taken = _count(table, mask).clamp(max=best.shape[1])
    real = torch.arange(best.shape[1], device=table.device).view(1, -1, 1) < taken.unsqueeze(-1)
    return best.masked_fill(~real, 0.0).sum(1) / taken.clamp_min(1.0)


def log_sum_exp_pool(table: Tensor, mask: Tensor | None = None, *, sharpness: float = 1.0) -> Tensor:
    """Return ``log(mean(exp(r s))) / r``: between the mean (small r) and the maximum (large r)."""
    if not sharpness > 0:
        raise ValueError(f"sharpness must be positive, got {sharpness}")
    total = torch.logsumexp(_hide(table * sharpness, mask, float("-inf")), dim=1)
    return (total - _count(table, mask).log()) / sharpness if mask is None else _safe_lse(total, table, mask, sharpness)


def _safe_lse(total: Tensor, table: Tensor, mask: Tensor, sharpness: float) -> Tensor:
    empty = ~mask.any(1, keepdim=True)
    value = (total.masked_fill(empty, 0.0) - _count(table, mask).clamp_min(1.0).log()) / sharpness
    return value.masked_fill(empty, float("-inf"))


def noisy_or_pool(table: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return ``1 - prod(1 - s)`` for similarities that are probabilities: present in at least one position."""
    kept = torch.log1p(-_hide(table, mask, 0.0).clamp(0.0, 1.0 - torch.finfo(table.dtype).eps))
    return -torch.expm1(kept.sum(1))
