"""What a model is worth when it may leave out the cases it is least sure of: risk over coverage."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from protolearn.errors import UsageError


@dataclass(frozen=True, eq=False)
class RiskCoverage:
    """Share of errors among the most confident cases, for every number of them.

    Attributes
    ----------
    coverage, risk : ndarray
        ``(N,)`` share of the cases that are answered, 1/N to 1, and share of errors among them.
    aurc : float
        Area under the curve: the mean risk over all coverages. Lower is better.
    least : float
        The area of the best order there could be with as many errors: all of them last.
    """

    coverage: np.ndarray
    risk: np.ndarray
    aurc: float
    least: float

    @property
    def excess(self) -> float:
        """Area above the best order: what the confidences are to blame for, the accuracy aside."""
        return max(0.0, self.aurc - self.least)

    def accuracy_at(self, coverage: float) -> float:
        """Return the accuracy among this share of the cases, the most confident ones, rounded up to whole cases."""
        if not 0 < coverage <= 1:
            raise UsageError(f"coverage must lie above 0 and at most at 1, got {coverage}")
        return 1.0 - float(self.risk[math.ceil(coverage * len(self.risk) - 1e-9) - 1])


def risk_coverage(confidence: np.ndarray, right: np.ndarray) -> RiskCoverage:
    """Return risk over coverage, cases answered in the order of their confidence.

    Among cases of equal confidence the order is not known: the curve shows the mean over all of their orders.

    Source: selective classification as in El-Yaniv and Wiener (2010), Geifman and El-Yaniv (2017); the best area is
    computed exactly, not by their approximation.

    Parameters
    ----------
    confidence : ndarray
        ``(N,)``, larger = surer.
    right : ndarray
        ``(N,)`` bool.

    Raises
    ------
    UsageError
        If there is no case, the lengths differ or a confidence is NaN.

    Examples
    --------
    >>> found = risk_coverage(np.array([0.9, 0.8, 0.6, 0.5]), np.array([True, True, False, True]))
    >>> found.risk.round(2).tolist(), found.accuracy_at(0.5), round(found.aurc, 3), round(found.excess, 3)
    ([0.0, 0.0, 0.33, 0.25], 1.0, 0.146, 0.083)
    """
    confidence, right = np.asarray(confidence, dtype=np.float64), np.asarray(right, dtype=bool)
    if confidence.ndim != 1 or confidence.shape != right.shape or not len(right) or np.isnan(confidence).any():
        raise UsageError(
            f"risk over coverage takes a confidence, not NaN, for each of at least one case, got {confidence.shape} "
            f"and {right.shape}"
        )
    count, wrong = len(right), int((~right).sum())
    group = _groups(confidence)
    sizes = np.bincount(group)
    errors = np.bincount(group, ~right)
    # within a group each further case brings the group's mean share of errors
    before = np.repeat(sizes.cumsum() - sizes, sizes)
    answered = np.arange(1, count + 1)
    met = np.repeat(errors.cumsum() - errors, sizes) + (answered - before) * np.repeat(errors, sizes) / np.repeat(
        sizes, sizes
    )
    risk = met / answered
    best = aurc_of(np.array([[count - wrong, wrong]]), np.array([[0, wrong]]))
    area = aurc_of(sizes[None], errors[None])
    return RiskCoverage(answered / count, risk, float(area[0]), float(best[0]))


def aurc_of(sizes: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """Return ``(R,)`` areas under the curve, in closed form, of R samples of cases in groups of equal confidence.

    With ``a`` cases and ``b`` errors before a group of ``g`` cases and ``e`` errors, the mean risks within it sum to
    ``e + (b - a e / g) (H(a + g) - H(a))``, H the harmonic numbers.

    Parameters
    ----------
    sizes, errors : ndarray
        ``(R, G)`` cases and errors of each group, the most confident first; a group may be empty.

    Examples
    --------
    >>> aurc_of(np.array([[1, 1]]), np.array([[1, 0]]))
    array([0.75])
    """
    sizes = np.asarray(sizes, dtype=np.int64)
    errors = np.asarray(errors, dtype=np.float64)
    after, errors_after = sizes.cumsum(1), errors.cumsum(1)
    before, errors_before = after - sizes, errors_after - errors
    total = after[:, -1]
    harmonic = np.concatenate([[0.0], (1 / np.arange(1, int(total.max()) + 1)).cumsum()])
    share = errors / sizes.clip(1)
    area = errors + (errors_before - before * share) * (harmonic[after] - harmonic[before])
    found: np.ndarray = area.sum(1) / total
    return found


def resampled_aurc(confidence: np.ndarray, right: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return ``(R,)`` areas, each with the cases counted ``weights (R, N)`` times: for intervals by resampling.

    Examples
    --------
    >>> resampled_aurc(np.array([0.9, 0.1]), np.array([True, False]), np.array([[1, 1], [2, 0]]))
    array([0.25, 0.  ])
    """
    order = np.argsort(-confidence, kind="stable")
    starts = np.flatnonzero(np.diff(-confidence[order], prepend=-np.inf) > 0)
    weights = np.asarray(weights)[:, order]
    return aurc_of(np.add.reduceat(weights, starts, axis=1), np.add.reduceat(weights * ~right[order], starts, axis=1))


def _groups(confidence: np.ndarray) -> np.ndarray:
    """Return ``(N,)``: the rank of each case's confidence, the surest 0, equal ones alike."""
    return np.asarray(np.unique(-confidence, return_inverse=True)[1]).reshape(-1)
