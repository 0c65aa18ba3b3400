"""Terms that make one representation of an input agree with another."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def gram_alignment(
    deep: Tensor, shallow: Tensor, rows: Tensor, counted: Tensor | None = None, *, margin: float = 0.1
) -> Tensor:
    """Return by how much places that look alike in deep features do not look alike in shallow ones, and conversely.

    Each of the two is turned into its table of cosines between positions; where the tables differ by more than
    ``margin`` the excess counts: ``mean of relu(|A_deep - A_shallow| - margin)`` over the chosen rows and all
    positions. Gradients flow to ``deep`` only.

    Source: EvalProtoPNet (Huang et al., 2023), shallow-deep feature alignment.

    Parameters
    ----------
    deep, shallow : Tensor
        ``(B, S, D)`` and ``(B, S, D')`` on the same positions.
    rows : Tensor
        ``(B, K)`` int64: the positions whose cosines to all others are compared.
    counted : Tensor, optional
        ``(B, K)`` bool: which of the rows take part, all by default; 0 where none does.
    margin : float
        Difference that is allowed.

    Raises
    ------
    ValueError
        If the positions do not fit.

    Examples
    --------
    >>> deep = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    >>> gram_alignment(deep, 3 * deep, torch.tensor([[0, 1]])).item()
    0.0
    >>> gram_alignment(deep, torch.ones(1, 2, 5), torch.tensor([[0, 1]]), margin=0.0).item()
    0.5
    """
    if deep.ndim != 3 or deep.shape[:2] != shallow.shape[:2] or rows.shape[0] != deep.shape[0]:
        raise ValueError(
            f"deep {tuple(deep.shape)} and shallow {tuple(shallow.shape)} must be (B, S, D) on the same positions, and "
            f"rows (B, K), got {tuple(rows.shape)}"
        )
    gap = (_cosines(deep) - _cosines(shallow.detach())).abs()
    each = (gap - margin).clamp_min(0.0).mean(2).gather(1, rows)
    if counted is None:
        return each.mean()
    return each.where(counted, each.new_zeros(())).sum() / counted.sum().clamp_min(1)


def _cosines(features: Tensor) -> Tensor:
    """Return ``(B, S, S)`` cosines between positions."""
    unit = F.normalize(features, dim=2)
    return torch.bmm(unit, unit.transpose(1, 2))
