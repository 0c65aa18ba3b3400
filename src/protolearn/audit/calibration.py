"""Does a probability mean what it says: reliability by bins, expected calibration error, intervals for shares."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ReliabilityBin:
    """Cases whose confidence lies in ``(low, high]``: how sure, how often right, how many."""

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


def reliability(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> list[ReliabilityBin]:
    """Sort cases by the probability of the predicted class into bins of equal width; empty bins are left out.

    Parameters
    ----------
    probabilities : ndarray
        ``(N, C)``.
    labels : ndarray
        ``(N,)`` class indices.
    bins : int
        How many, over 0 to 1.

    Examples
    --------
    >>> reliability(np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([0, 0]), bins=2)
    [ReliabilityBin(low=0.5, high=1.0, count=2, confidence=0.85..., accuracy=0.5)]
    """
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    if len(labels) == 0:
        return []
    confidence = probabilities.max(1).astype(np.float64)
    right = probabilities.argmax(1) == labels
    # the left edge belongs to the bin below, as the usual definition has it
    place = (np.ceil(confidence * bins) - 1).clip(0, bins - 1).astype(int)
    made = []
    for k in np.unique(place).tolist():
        inside = place == k
        count, sure, share = int(inside.sum()), float(confidence[inside].mean()), float(right[inside].mean())
        made.append(ReliabilityBin(k / bins, (k + 1) / bins, count, sure, share))
    return made


def calibration_error(bins: list[ReliabilityBin]) -> float | None:
    """Return the expected calibration error, the mean gap between confidence and accuracy; None without cases."""
    total = sum(b.count for b in bins)
    return sum(b.count * abs(b.confidence - b.accuracy) for b in bins) / total if total else None


def wilson(right: int, count: int, z: float = 1.959963984540054) -> tuple[float, float] | None:
    """Return Wilson's interval for a share, 95 % by default; None without cases.

    Examples
    --------
    >>> low, high = wilson(9, 10)
    >>> round(low, 3), round(high, 3)
    (0.596, 0.982)
    """
    if count == 0:
        return None
    share = right / count
    scale = 1 + z * z / count
    centre = (share + z * z / (2 * count)) / scale
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / scale
    # rounding must not put the share itself outside
    return min(max(0.0, centre - half), share), max(min(1.0, centre + half), share)
