"""Whether a few prototypes carry a case or all of them a little."""

from __future__ import annotations

import torch
from torch import Tensor

from protolearn.errors import UsageError


def gini(values: Tensor) -> Tensor:
    """Return ``(B,)`` float64: the Gini coefficient of the magnitudes in each row of ``(B, n)``.

    ``(n + 1 - 2 * sum of cumulative sums / sum) / n`` on the magnitudes in ascending order: 0 = all alike,
    ``(n - 1) / n`` = one carries everything. NaN where all are 0, since nothing is shared out there.

    Source: ProtoTTA (2026), its measure of sparse activation; numbers from its authors' code.

    Parameters
    ----------
    values : Tensor
        ``(B, n)``; the sign is not looked at.

    Raises
    ------
    UsageError
        If the values are no table or hold NaN.

    Examples
    --------
    >>> gini(torch.tensor([[0.0, 0.0, 0.0, 2.0], [1.0, -1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]]))
    tensor([0.7500, 0.0000,    nan], dtype=torch.float64)
    """
    if values.ndim != 2 or bool(values.isnan().any()):
        raise UsageError(f"a Gini coefficient takes a table (B, n) without NaN, got {tuple(values.shape)}")
    count = values.shape[1]
    if not count:
        return values.new_full((len(values),), float("nan"), dtype=torch.float64)
    rising = values.detach().double().abs().sort(1).values
    total = rising.sum(1)
    found = (count + 1 - 2 * rising.cumsum(1).sum(1) / total) / count
    # an even row is 0 but for rounding
    return torch.where(total > 0, found.clamp_min(0.0), float("nan"))


def active_count(values: Tensor, least: float = 0.1) -> Tensor:
    """Return ``(B,)`` int64: how many magnitudes of each row ``(B, n)`` exceed ``least``.

    Examples
    --------
    >>> active_count(torch.tensor([[0.05, -0.2, 0.3]])).tolist()
    [2]
    """
    return (values.abs() > least).sum(1)
