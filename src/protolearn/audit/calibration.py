"""Does a probability mean what it says: reliability by bins, calibration errors, scores of probabilities, intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from protolearn.errors import UsageError

LEAST_PROBABILITY = float(np.finfo(np.float64).eps)
"""What a probability of 0 counts as in a logarithm: 2.2e-16."""


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
    _check_bins(bins)
    if len(labels) == 0:
        return []
    confidence = probabilities.max(1).astype(np.float64)
    right = probabilities.argmax(1) == labels
    place = bin_of(confidence, bins)
    made = []
    for k in np.unique(place).tolist():
        inside = place == k
        count, sure, share = int(inside.sum()), float(confidence[inside].mean()), float(right[inside].mean())
        made.append(ReliabilityBin(k / bins, (k + 1) / bins, count, sure, share))
    return made


def bin_of(confidence: np.ndarray, bins: int = 15) -> np.ndarray:
    """Return ``(N,)`` int64: the bin of equal width each confidence lies in; an edge belongs to the bin below it.

    Examples
    --------
    >>> bin_of(np.array([0.0, 0.5, 0.51, 1.0]), 2)
    array([0, 0, 1, 1])
    """
    place: np.ndarray = (np.ceil(confidence * bins) - 1).clip(0, bins - 1).astype(np.int64)
    return place


def adaptive_calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> float | None:
    """Return the calibration error over bins of about equally many cases; None without cases.

    Cases of equal confidence share a bin, so that the figure does not depend on their order; the bins of a model whose
    confidences are mostly alike are therefore few.

    Source: adaptive bins as in Nguyen and O'Connor (2015); the gap is that of :func:`calibration_error`.

    Examples
    --------
    >>> round(adaptive_calibration_error(np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([0, 0]), bins=2), 3)
    0.45
    """
    _check_bins(bins)
    if len(labels) == 0:
        return None
    confidence = probabilities.max(1).astype(np.float64)
    rank = rankdata(confidence) / len(confidence)
    return _gap(confidence, probabilities.argmax(1) == labels, bin_of(rank, bins))


def classwise_calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> float | None:
    """Return the mean over classes of the calibration error of "it is this class"; None without cases.

    Looks at every probability, not at the largest alone.

    Source: classwise calibration error as in Kull et al. (NeurIPS 2019).

    Examples
    --------
    >>> round(classwise_calibration_error(np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([0, 1]), bins=2), 3)
    0.15
    """
    _check_bins(bins)
    if len(labels) == 0:
        return None
    each = [
        _gap(share.astype(np.float64), labels == c, bin_of(share.astype(np.float64), bins))
        for c, share in enumerate(probabilities.T)
    ]
    return float(np.mean(each))


def brier(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return ``(N,)``: the squared distance of each case's probabilities ``(N, C)`` from its label; 0 to 2.

    The sum over all classes, Brier's own form (1950); some packages halve it for two classes.

    Examples
    --------
    >>> brier(np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([0, 1]))
    array([0., 2.])
    """
    target = np.eye(probabilities.shape[1])[labels]
    found: np.ndarray = ((probabilities.astype(np.float64) - target) ** 2).sum(1)
    return found


def negative_log_likelihood(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return ``(N,)`` in nats: minus the logarithm of the true class's probability, which counts as 2.2e-16 at least.

    Examples
    --------
    >>> negative_log_likelihood(np.array([[1.0, 0.0]]), np.array([0]))
    array([0.])
    """
    chance = probabilities.astype(np.float64)[np.arange(len(labels)), labels]
    return np.abs(np.log(chance.clip(LEAST_PROBABILITY)))


def _gap(confidence: np.ndarray, right: np.ndarray, place: np.ndarray) -> float:
    """Return the mean gap between confidence and share right, over bins weighed by their cases."""
    return float(np.abs(np.bincount(place, confidence - right)).sum() / len(confidence))


def _check_bins(bins: int) -> None:
    if bins < 1:
        raise UsageError(f"bins must be at least 1, got {bins}")


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
