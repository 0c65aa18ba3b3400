"""How far a figure would move with other cases or other prototypes: percentile intervals by resampling."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from protolearn.errors import UsageError

DRAWS = 1000
"""Resamplings behind each interval."""


def resampled(count: int, draws: int, generator: torch.Generator) -> Tensor:
    """Return ``(draws, count)`` float64: how often each item is in each sample of ``count`` with replacement.

    Examples
    --------
    >>> resampled(5, 3, torch.Generator().manual_seed(0)).sum(1).tolist()
    [5.0, 5.0, 5.0]
    """
    if count < 1 or draws < 1:
        raise UsageError(f"resampling needs items and draws, got {count} and {draws}")
    chosen = torch.randint(count, (draws, count), generator=generator)
    return torch.zeros(draws, count, dtype=torch.float64).scatter_add_(
        1, chosen, torch.ones(draws, count, dtype=torch.float64)
    )


def interval_of(
    statistic: Callable[[Tensor], Tensor],
    count: int,
    generator: torch.Generator,
    *,
    draws: int = DRAWS,
    level: float = 0.95,
    around: float | None = None,
    within: tuple[float, float] = (-math.inf, math.inf),
) -> tuple[float, float] | None:
    """Return the percentile interval of a statistic of weighted items; None for fewer than two items.

    Parameters
    ----------
    statistic : callable
        From weights ``(R, count)``, how often each item counts, to values ``(R,)``; NaN draws are left out.
    count : int
        Items.
    generator : Generator
        Of the draws.
    draws : int
        Resamplings.
    level : float
        Share of draws inside.
    around : float, optional
        Shift the draws so that this is their mean. For a statistic that rises because some items are drawn twice,
        such as mutual information: the draws then tell how far it spreads, not where it lies.
    within : (float, float)
        Lowest and highest value the statistic can have, which a shift must not pass.
    """
    if count < 2:
        return None
    rows = max(1, min(draws, 8_000_000 // count))
    found = torch.cat([
        statistic(resampled(count, min(rows, draws - start), generator)).double() for start in range(0, draws, rows)
    ])  # fmt: skip
    found = found[~found.isnan()]
    if not len(found):
        return None
    if around is not None:
        found = (found - found.mean() + around).clamp(*within)
    tail = (1 - level) / 2
    low, high = torch.quantile(found, torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low, high


def mean_interval(values: Tensor, generator: torch.Generator, *, draws: int = DRAWS) -> tuple[float, float] | None:
    """Return the interval of the mean of values ``(n,)``; NaN = not judged, left out.

    Examples
    --------
    >>> low, high = mean_interval(torch.tensor([0.0, 1.0] * 50), torch.Generator().manual_seed(0))
    >>> low < 0.5 < high
    True
    """
    kept = values.detach().double().cpu()
    kept = kept[~kept.isnan()]
    return interval_of(lambda weights: weights @ kept / weights.sum(1), len(kept), generator, draws=draws)


def mean_of(values: Tensor) -> float | None:
    """Return the mean of values ``(n,)``, NaN left out; None where nothing is left.

    Examples
    --------
    >>> mean_of(torch.tensor([1.0, float("nan")])), mean_of(torch.zeros(0))
    (1.0, None)
    """
    kept = values.double()
    kept = kept[~kept.isnan()]
    return float(kept.mean()) if len(kept) else None
