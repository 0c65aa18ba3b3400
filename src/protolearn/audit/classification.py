"""Scores of a classifier from its logits: accuracy with an interval, per class, confusion, calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from protolearn.audit.calibration import ReliabilityBin, calibration_error, reliability, wilson


@dataclass(frozen=True)
class ClassScore:
    """One class: how many cases, which share of them was found, which share of its predictions was right.

    ``recall`` is None where the class has no case, ``precision`` where it was never predicted.
    """

    name: str
    count: int
    predicted: int
    recall: float | None
    precision: float | None
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class DrawnScore:
    """What predictions averaged over draws of the prototypes did, and how much doubt there was.

    Attributes
    ----------
    accuracy : float or None
        Of the averaged prediction.
    total, aleatoric, epistemic : float or None
        Mean uncertainty, in nats.
    refused : int or None
        Cases that the model refuses; None where no refusal was calibrated.
    accuracy_kept : float or None
        Of the averaged prediction, over the cases that are not refused.
    """

    accuracy: float | None
    total: float | None
    aleatoric: float | None
    epistemic: float | None
    refused: int | None = None
    accuracy_kept: float | None = None


def score_draws(right: np.ndarray, doubts: np.ndarray, refused: np.ndarray | None = None) -> DrawnScore:
    """Score averaged predictions.

    Parameters
    ----------
    right : ndarray
        ``(N,)`` bool, labelled cases only.
    doubts : ndarray
        ``(N, 3)`` total, aleatoric and epistemic uncertainty.
    refused : ndarray, optional
        ``(N,)`` bool.

    Examples
    --------
    >>> score_draws(np.array([True, False]), np.zeros((2, 3)), np.array([False, True])).accuracy_kept
    1.0
    """

    def mean(values: np.ndarray) -> float | None:
        return float(values.mean()) if len(values) else None

    total, aleatoric, epistemic = (mean(doubts[:, k]) for k in range(3))
    if refused is None:
        return DrawnScore(mean(right), total, aleatoric, epistemic)
    return DrawnScore(mean(right), total, aleatoric, epistemic, int(refused.sum()), mean(right[~refused]))


@dataclass(frozen=True, eq=False)
class ClassificationResult:
    """What a model did on labelled cases. Numbers that need a case are None where there is none.

    Attributes
    ----------
    n, unlabelled : int
        Cases scored; cases left out because nothing is known about them.
    accuracy, balanced_accuracy : float or None
        Share of right predictions; mean recall over the classes that have cases.
    interval : (float, float) or None
        Wilson's 95 % interval of the accuracy.
    ece : float or None
        Expected calibration error over 15 bins.
    confusion : ndarray
        ``(C, C)`` int64: row = true class, column = predicted.
    per_class : tuple of ClassScore
        In the order of ``classes``.
    bins : tuple of ReliabilityBin
        For the reliability diagram.
    logits, probabilities, labels, ids, classes
        What it was computed from, labelled cases only.
    drawn : DrawnScore or None
        Where prototypes are distributions: the averaged prediction and its doubts.
    """

    n: int
    unlabelled: int
    accuracy: float | None
    balanced_accuracy: float | None
    interval: tuple[float, float] | None
    ece: float | None
    confusion: np.ndarray
    per_class: tuple[ClassScore, ...]
    bins: tuple[ReliabilityBin, ...]
    logits: np.ndarray
    probabilities: np.ndarray
    labels: np.ndarray
    ids: tuple[str, ...]
    classes: tuple[str, ...]
    drawn: DrawnScore | None = None

    @property
    def predicted(self) -> np.ndarray:
        """``(N,)`` predicted class of each case; the first of equals."""
        return self.logits.argmax(1)

    def to_dict(self) -> dict[str, Any]:
        """Return the scores, without the arrays over cases, as plain JSON types."""
        return {
            "n": self.n,
            "unlabelled": self.unlabelled,
            "accuracy": self.accuracy,
            "accuracy_interval_95": None if self.interval is None else list(self.interval),
            "balanced_accuracy": self.balanced_accuracy,
            "ece": self.ece,
            "per_class": {
                s.name: {"n": s.count, "predicted": s.predicted, "recall": s.recall, "precision": s.precision}
                for s in self.per_class
            },
            "confusion": self.confusion.tolist(),
            "classes": list(self.classes),
            **({} if self.drawn is None else {"drawn": asdict(self.drawn)}),
        }


def score_logits(
    logits: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    ids: Sequence[str] | None = None,
    probabilities: np.ndarray | None = None,
) -> ClassificationResult:
    """Score logits against labels.

    Parameters
    ----------
    logits : ndarray
        ``(N, C)``.
    labels : ndarray
        ``(N,)`` indices into ``classes``; -1 = unlabelled, left out and counted.
    classes : sequence of str
        Names.
    ids : sequence of str, optional
        Case ids; the positions by default.
    probabilities : ndarray, optional
        ``(N, C)``, where the model makes them of its logits in another way than by a softmax.

    Examples
    --------
    >>> result = score_logits(np.array([[2.0, 0.0], [0.5, 1.0], [3.0, 0.0]]), np.array([0, 1, 1]), ["cat", "dog"])
    >>> round(result.accuracy, 3), result.confusion.tolist()
    (0.667, [[1, 0], [1, 1]])
    """
    logits = np.asarray(logits, dtype=np.float64).reshape(len(labels), len(classes))
    labels = np.asarray(labels, dtype=np.int64)
    if labels.size and (labels.min() < -1 or labels.max() >= len(classes)):
        raise ValueError(f"labels lie in -1 to {len(classes) - 1}, got {labels.min()} to {labels.max()}")
    if not np.isfinite(logits).all():
        raise ValueError("logits must be finite")
    known = labels >= 0
    names = tuple(str(i) for i in (range(len(labels)) if ids is None else ids))
    kept, y = logits[known], labels[known]
    if probabilities is None:
        shifted = np.exp(logits - logits.max(1, keepdims=True)) if len(logits) else logits
        probabilities = shifted / shifted.sum(1, keepdims=True) if len(logits) else shifted
    probabilities = np.asarray(probabilities, dtype=np.float64).reshape(logits.shape)[known]
    size = len(classes)
    predicted = kept.argmax(1) if len(kept) else np.zeros(0, dtype=np.int64)
    confusion = np.bincount(y * size + predicted, minlength=size * size).reshape(size, size).astype(np.int64)
    hits, counts, guesses = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    per_class = tuple(
        ClassScore(
            name=str(name),
            count=int(counts[c]),
            predicted=int(guesses[c]),
            recall=float(hits[c] / counts[c]) if counts[c] else None,
            precision=float(hits[c] / guesses[c]) if guesses[c] else None,
            interval=wilson(int(hits[c]), int(counts[c])),
        )
        for c, name in enumerate(classes)
    )
    recalls = [score.recall for score in per_class if score.recall is not None]
    bins = tuple(reliability(probabilities, y))
    count = len(y)
    return ClassificationResult(
        n=count,
        unlabelled=int((~known).sum()),
        accuracy=float(hits.sum() / count) if count else None,
        balanced_accuracy=sum(recalls) / len(recalls) if recalls else None,
        interval=wilson(int(hits.sum()), count),
        ece=calibration_error(list(bins)),
        confusion=confusion,
        per_class=per_class,
        bins=bins,
        logits=kept,
        probabilities=probabilities,
        labels=y,
        ids=tuple(name for name, keep in zip(names, known.tolist(), strict=True) if keep),
        classes=tuple(map(str, classes)),
    )
