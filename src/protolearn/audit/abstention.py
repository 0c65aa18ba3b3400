"""When a case is none of the model's classes: thresholds of acceptance, and how well scores tell such cases apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from sklearn.metrics import auc, precision_recall_curve, roc_auc_score
from torch import Tensor

from protolearn.audit.look import Look
from protolearn.errors import UsageError, look_up

STEP = 0.999
"""What thresholds are multiplied by until enough of the calibration cases are accepted."""


@dataclass(frozen=True)
class AcceptanceRule:
    """From which score on a case is taken for one of the model's classes.

    Attributes
    ----------
    per_class : tuple of float
        Threshold of each predicted class, on the largest class score.
    overall : float
        One threshold for all: the quantile over all calibration cases.
    overall_right : float or None
        The same over the cases that are predicted right; None where labels were not given or none is right.
    share : float
        Of the calibration cases that the class thresholds accept at least.
    cases : int
        How many calibration cases it rests on.
    never_predicted : tuple of int
        Classes that no calibration case was predicted as; their threshold is the mean of the others.
    lowered : str
        How class thresholds were brought below their quantile: "not", "scaled" (times 0.999, again and again) or
        "shifted" (by thousandths of the range of scores, where scaling could not do it: scores that are not positive).
    steps : int
        How often.

    Examples
    --------
    >>> rule = AcceptanceRule.calibrate(np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.4, 0.6]]))
    >>> rule.accepts(np.array([[0.95, 0.0], [0.1, 0.05]])).tolist()
    [True, False]
    >>> AcceptanceRule.from_dict(rule.to_dict()) == rule
    True
    """

    per_class: tuple[float, ...]
    overall: float
    overall_right: float | None = None
    share: float = 0.95
    cases: int = 0
    never_predicted: tuple[int, ...] = ()
    lowered: str = "not"
    steps: int = 0

    @classmethod
    def calibrate(cls, scores: np.ndarray, labels: np.ndarray | None = None, *, share: float = 0.95) -> AcceptanceRule:
        """Return the rule that accepts at least ``share`` of cases like these.

        A class's threshold is the ``1 - share`` quantile (linear interpolation) of the largest scores of the cases
        PREDICTED as it. Unless more than enough cases lie strictly above, all thresholds are then lowered together
        until ``share`` of the cases reach theirs, so that one may end below its class's own quantile.

        Source: PIP-Net (Nauta et al., CVPR 2023), numbers from its authors' code.

        Parameters
        ----------
        scores : ndarray
            ``(N, C)`` class scores of cases of the model's classes.
        labels : ndarray, optional
            ``(N,)``; -1 = unlabelled.
        share : float
            Above 0, at most 1.

        Raises
        ------
        UsageError
            If there is no case, a score is NaN, a largest score infinite, or the share is none.
        """
        scores = np.asarray(scores, dtype=np.float64)
        if not 0 < share <= 1:
            raise UsageError(f"the share to accept must lie above 0 and at most at 1, got {share}")
        if scores.ndim != 2 or not scores.size or np.isnan(scores).any() or not np.isfinite(scores.max(1)).all():
            raise UsageError(
                "acceptance: calibration takes scores (N, C) of at least one case, none NaN and each case's largest "
                f"finite, got {scores.shape}"
            )
        best, predicted = scores.max(1), scores.argmax(1)
        seen = np.unique(predicted)
        start = np.zeros(scores.shape[1])
        for c in seen.tolist():
            start[c] = np.quantile(best[predicted == c], 1 - share)
        never = np.setdiff1d(np.arange(scores.shape[1]), seen)
        start[never] = start[seen].mean()
        lowered, steps = "not", 0
        if (best > start[predicted]).mean() < share:
            lowered, lower = _lowering(start, best, predicted, share)
            steps = _first(lambda k: bool((best >= lower(k)[predicted]).mean() >= share))
            start = lower(steps)
        right = best[predicted == labels] if labels is not None else best[:0]
        return cls(
            per_class=tuple(start.tolist()),
            overall=float(np.quantile(best, 1 - share)),
            overall_right=float(np.quantile(right, 1 - share)) if len(right) else None,
            share=share,
            cases=len(best),
            never_predicted=tuple(never.tolist()),
            lowered=lowered,
            steps=steps,
        )

    def accepts(self, scores: np.ndarray, *, by: str = "class") -> np.ndarray:
        """Return ``(N,)`` bool: the largest score reaches the threshold; NaN never does.

        Parameters
        ----------
        scores : ndarray
            ``(N, C)``.
        by : {"class", "overall", "overall_right"}
            Which threshold: the predicted class's, or one for all.
        """
        table = {"class": None, "overall": self.overall, "overall_right": self.overall_right}
        one = look_up("threshold", by, table)
        scores = np.asarray(scores, dtype=np.float64)
        if scores.ndim != 2 or scores.shape[1] != len(self.per_class):
            raise UsageError(f"acceptance: scores must be (N, {len(self.per_class)}), got {scores.shape}")
        if by != "class" and one is None:
            raise UsageError("acceptance: this rule has no threshold over right cases: calibrate it with labels")
        least = np.asarray(self.per_class)[scores.argmax(1)] if one is None else one
        taken: np.ndarray = scores.max(1) >= least
        return taken

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {name: list(each) if isinstance(each, tuple) else each for name, each in asdict(self).items()}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> AcceptanceRule:
        """Build from :meth:`to_dict`'s output."""
        known = {entry.name: entry for entry in fields(cls)}
        for name in plain:
            look_up("entry of an acceptance rule", name, known)
        made: dict[str, Any] = {name: tuple(each) if isinstance(each, list) else each for name, each in plain.items()}
        return cls(**made)


Lower = Callable[[int], np.ndarray]


def _lowering(start: np.ndarray, best: np.ndarray, predicted: np.ndarray, share: float) -> tuple[str, Lower]:
    """Return how thresholds are lowered, and what they are after some steps.

    Multiplying moves a threshold towards 0: only scores above 0 can be reached by it, from above.
    """
    reached = (best >= start[predicted]) | (best > 0)
    if (start >= 0).all() and reached.mean() >= share:
        return "scaled", lambda k: start * STEP**k
    step = (1 - STEP) * max(float(best.max() - best.min()), float(np.finfo(np.float64).tiny))
    # after enough steps every case is reached, whatever rounding does to the last of them
    return "shifted", lambda k: np.minimum(start - k * step, np.where(k > 1 / (1 - STEP), best.min(), np.inf))


def _first(enough: Callable[[int], bool]) -> int:
    """Return the smallest number of steps, at least 1, that is enough; more steps are enough too."""
    high = 1
    while not enough(high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


@dataclass(frozen=True)
class Separation:
    """How well a score tells cases of the model's classes (inside) from others (outside), over all thresholds.

    Attributes
    ----------
    auroc : float
        Chance that a case inside scores higher than one outside; equal scores count half. 0.5 = not at all.
    aupr_inside, aupr_outside : float
        Area under precision and recall (trapezoid), the named part being the one to be found. By chance it is that
        part's share of the cases.
    """

    auroc: float
    aupr_inside: float
    aupr_outside: float


def separation(inside: np.ndarray, outside: np.ndarray) -> Separation:
    """Compare scores of cases inside ``(N,)`` and outside ``(M,)``, larger = more inside.

    Raises
    ------
    UsageError
        If there is none of either, or a score is NaN.

    Examples
    --------
    >>> separation(np.array([0.9, 0.8]), np.array([0.1, 0.2, 0.3])).auroc
    1.0
    """
    scores = np.concatenate([inside, outside]).astype(np.float64)
    if not len(inside) or not len(outside) or np.isnan(scores).any():
        raise UsageError(
            f"telling inside from outside takes scores of both, none NaN, got {len(inside)} and {len(outside)}"
        )
    known = np.repeat([1, 0], [len(inside), len(outside)])

    def area(target: np.ndarray, score: np.ndarray) -> float:
        precision, recall, _ = precision_recall_curve(target, score)
        return float(auc(recall, precision))

    return Separation(float(roc_auc_score(known, scores)), area(known, scores), area(1 - known, -scores))


def abstained(look: Look) -> Tensor:
    """Return ``(B,)`` bool: the model says nothing.

    The head's own word; for a model without one, cases whose largest score is exactly 0.
    """
    if look.output is not None:
        return look.output.head.abstains(look.logits)
    return look.logits.amax(1) == 0
