"""How well confidences tell known cases from foreign ones: the metrics of out-of-distribution detection.

Every confidence is higher for what is more like the known. Two conventions of "FPR at 95 %" are in use and they differ;
:class:`Convention` states which one a figure follows, and results print it. n known, m foreign cases.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from protolearn.audit.abstention import separation
from protolearn.audit.bootstrap import DRAWS, resampled
from protolearn.core.scorer import cases_for, threshold_at
from protolearn.errors import UsageError, look_up

Positive = Literal["known", "foreign"]
Rule = Literal["roc", "percentile"]


@dataclass(frozen=True)
class Convention:
    """What "false positive rate at 95 %" means.

    Attributes
    ----------
    positive : {"known", "foreign"}
        "known" (most papers): the threshold accepts ``rate`` of the known cases, and the figure is the share of foreign
        cases that are accepted with them. "foreign" (OpenOOD 1.5): the threshold finds ``rate`` of the foreign cases,
        and the figure is the share of known cases that are refused with them.
    rule : {"roc", "percentile"}
        "roc": the strictest threshold, among the confidences, that reaches ``rate``; equal confidences fall on the same
        side. It is the threshold that a calibrated model uses. "percentile": the interpolated percentile, with only the
        foreign cases strictly above (or known cases strictly below) counted, as in PALM's evaluation; it counts ties
        as told apart, so a score that says the same of every case gets 0.
    rate : float
        0.95.

    Examples
    --------
    >>> print(Convention().words)
    FPR95, known positive: share of foreign cases at or above the highest confidence that 95 % of the known cases reach
    """

    positive: Positive = "known"
    rule: Rule = "roc"
    rate: float = 0.95

    def __post_init__(self) -> None:
        look_up("positive class", self.positive, {"known": 0, "foreign": 0})
        look_up("rule of a threshold", self.rule, {"roc": 0, "percentile": 0})
        if not 0 < self.rate <= 1:
            raise UsageError(f"rate must lie above 0 and at most at 1, got {self.rate}")

    @property
    def title(self) -> str:
        """Short name, for the head of a column."""
        return f"FPR{100 * self.rate:g}"

    @property
    def words(self) -> str:
        """The definition in a sentence."""
        share = f"{100 * self.rate:g} %"
        if self.positive == "known":
            told = (
                f"share of foreign cases at or above the highest confidence that {share} of the known cases reach"
                if self.rule == "roc"
                else f"share of foreign cases above the {100 - 100 * self.rate:g}th percentile of the known cases"
            )
        else:
            told = (
                f"share of known cases at or below the lowest confidence that {share} of the foreign do not exceed"
                if self.rule == "roc"
                else f"share of known cases below the {100 * self.rate:g}th percentile of the foreign cases"
            )
        return f"{self.title}, {self.positive} positive: {told}"


def false_positive_rate(known: np.ndarray, foreign: np.ndarray, convention: Convention | None = None) -> float:
    """Return the share of the one kind that goes wrong where ``rate`` of the other goes right.

    Parameters
    ----------
    known, foreign : ndarray
        ``(n,)`` and ``(m,)`` confidences.
    convention : Convention, optional
        Known cases positive, by the ROC curve, unless said otherwise.

    Examples
    --------
    >>> known, foreign = np.array([0.9, 0.8, 0.7, 0.2]), np.array([0.75, 0.1])
    >>> false_positive_rate(known, foreign, Convention(rate=0.75))
    0.5
    >>> false_positive_rate(known, foreign, Convention(positive="foreign", rate=0.75))
    0.5
    """
    how = convention or Convention()
    right, wrong = _pair(known, foreign)
    if how.positive == "foreign":  # the same question with the roles and the sign exchanged
        right, wrong = -wrong, -right
    if how.rule == "percentile":
        return float((wrong > np.quantile(right, 1 - how.rate)).mean())
    return float((wrong >= threshold_at(torch.from_numpy(right), how.rate)).mean())


@dataclass(frozen=True)
class OODMetrics:
    """How well one score tells one set of foreign cases from the known ones; shares from 0 to 1.

    Attributes
    ----------
    known, foreign : int
        How many cases of each.
    auroc : float
        Chance that a known case has the higher confidence, equal ones counted half. 0.5 = not at all.
    aupr_known, aupr_foreign : float
        Area under precision and recall (trapezoid) of finding the named kind; by chance its share of all cases.
    fpr : float
        By ``convention``.
    detection_error : float
        Least mean of the two shares that go wrong, over all thresholds: both kinds count alike.
    error_rate : float
        Least share of all cases that go wrong, over all thresholds: each case counts alike, so that it depends on how
        many there are of each kind.
    autc : float
        Area under the curves of both error rates over the threshold, confidences scaled to 0 to 1; unlike the others it
        depends on their distances, not on their order alone. Lower is better.
    convention : Convention
        Of ``fpr``.
    intervals : mapping
        95 % percentile intervals by resampling known and foreign cases, of ``auroc`` and (by the ROC rule) ``fpr``.
    """

    known: int
    foreign: int
    auroc: float
    aupr_known: float
    aupr_foreign: float
    fpr: float
    detection_error: float
    error_rate: float
    autc: float
    convention: Convention = field(default_factory=Convention)
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        plain = asdict(self)
        plain["intervals"] = {name: list(pair) for name, pair in self.intervals.items()}
        return plain


FIGURES = ("auroc", "aupr_known", "aupr_foreign", "fpr", "detection_error", "error_rate", "autc")
"""Names of the figures of a :class:`OODMetrics`."""


def detect(
    known: np.ndarray,
    foreign: np.ndarray,
    *,
    convention: Convention | None = None,
    generator: torch.Generator | None = None,
    draws: int = DRAWS,
) -> OODMetrics:
    """Compare confidences of known cases ``(n,)`` and foreign ones ``(m,)``.

    Intervals are worked out where a generator is given. They say how far a figure would move with other cases of the
    same kinds, not with another training of the model.

    Raises
    ------
    UsageError
        If there is none of either kind, or a confidence is NaN.

    Examples
    --------
    >>> found = detect(np.array([0.9, 0.8, 0.7]), np.array([0.75, 0.1]))
    >>> round(found.auroc, 3), found.fpr, round(found.detection_error, 3)
    (0.833, 0.5, 0.167)
    """
    how = convention or Convention()
    known, foreign = _pair(known, foreign)
    levels, ranks = np.unique(np.concatenate([known, foreign]), return_inverse=True)
    ranks = ranks.reshape(-1)  # the order alone: infinite confidences are welcome
    areas = separation(ranks[: len(known)], ranks[len(known) :])
    above = np.append(levels, np.nan)  # NaN sorts last: a threshold that accepts nothing
    refused = np.searchsorted(np.sort(known), above)
    passed = len(foreign) - np.searchsorted(np.sort(foreign), above)
    balanced = (refused / len(known) + passed / len(foreign)) / 2
    mixed = (refused + passed) / (len(known) + len(foreign))
    return OODMetrics(
        known=len(known),
        foreign=len(foreign),
        auroc=areas.auroc,
        aupr_known=areas.aupr_inside,
        aupr_foreign=areas.aupr_outside,
        fpr=false_positive_rate(known, foreign, how),
        detection_error=float(balanced.min()),
        error_rate=float(mixed.min()),
        autc=threshold_area(known, foreign),
        convention=how,
        intervals={} if generator is None else _intervals(known, foreign, how, generator, draws),
    )


def threshold_area(known: np.ndarray, foreign: np.ndarray) -> float:
    """Return the mean of the areas under both error rates as the threshold goes over confidences scaled to 0 to 1.

    In closed form: half of one plus the mean foreign less the mean known confidence. NaN with an infinite confidence,
    0.5 where all are equal.

    Source: Humblot-Renaux et al., CVPR 2023 (AUTC).

    Examples
    --------
    >>> threshold_area(np.array([1.0, 1.0]), np.array([0.0]))
    0.0
    """
    known, foreign = _pair(known, foreign)
    low, high = min(known.min(), foreign.min()), max(known.max(), foreign.max())
    if not np.isfinite(high - low):
        return float("nan")
    if high == low:
        return 0.5
    return float((1 + (foreign.mean() - known.mean()) / (high - low)) / 2)


def auroc_by_class(
    known: np.ndarray, foreign: np.ndarray, labels: Sequence[int] | np.ndarray, *, of: str = "known"
) -> dict[int, float]:
    """Return the AUROC of each class of the known cases against all foreign ones, or (``of="foreign"``) the reverse.

    Parameters
    ----------
    known, foreign : ndarray
        Confidences.
    labels : sequence of int
        Of the kind named by ``of``; -1 = unlabelled, left out.
    of : {"known", "foreign"}
        Which kind is taken apart.

    Examples
    --------
    >>> auroc_by_class(np.array([0.9, 0.2]), np.array([0.5, 0.1]), [0, 1])
    {0: 1.0, 1: 0.5}
    """
    look_up("kind of case", of, {"known": 0, "foreign": 0})
    known, foreign = _pair(known, foreign)
    mine, others = (known, foreign) if of == "known" else (-foreign, -known)
    named = np.asarray(labels, dtype=np.int64)
    if named.shape != mine.shape:
        raise UsageError(f"labels of the {of} cases must be {mine.shape}, got {named.shape}")
    ordered = np.sort(others)
    below = np.searchsorted(ordered, mine, side="left")
    level = np.searchsorted(ordered, mine, side="right")
    wins = (below + level) / (2 * len(others))
    return {int(c): float(wins[named == c].mean()) for c in np.unique(named[named >= 0])}


def _intervals(
    known: np.ndarray, foreign: np.ndarray, how: Convention, generator: torch.Generator, draws: int
) -> dict[str, tuple[float, float]]:
    """Return percentile intervals of AUROC and FPR over resamples of both kinds; of the ROC rule only."""
    if len(known) < 2 or len(foreign) < 2:
        return {}
    inside, outside = np.sort(known), np.sort(foreign)
    areas, rates = [], []
    rows = max(1, 4_000_000 // (len(known) + len(foreign)))
    for start in range(0, draws, rows):
        count = min(rows, draws - start)
        heavy, light = resampled(len(known), count, generator), resampled(len(foreign), count, generator)
        areas.append(_auroc(inside, outside, heavy, light))
        if how.rule == "roc" and how.positive == "known":
            rates.append(_fpr(inside, outside, heavy, light, how.rate))
        elif how.rule == "roc":
            rates.append(_fpr(-outside[::-1], -inside[::-1], light.flip(1), heavy.flip(1), how.rate))
    found = {"auroc": torch.cat(areas)} | ({"fpr": torch.cat(rates)} if rates else {})
    ends = torch.tensor([0.025, 0.975], dtype=torch.float64)
    return {
        name: (low, high) for name, values in found.items() for low, high in [torch.quantile(values, ends).tolist()]
    }


def _auroc(known: np.ndarray, foreign: np.ndarray, heavy: Tensor, light: Tensor) -> Tensor:
    """Return ``(R,)`` of sorted confidences, known cases weighted ``heavy (R, n)`` and foreign ``light (R, m)``."""
    below = _below(light)
    sides = [torch.from_numpy(np.searchsorted(foreign, known, side)) for side in ("left", "right")]
    wins = (heavy * (below[:, sides[0]] + below[:, sides[1]])).sum(1)
    return wins / (2 * heavy.sum(1) * light.sum(1))


def _fpr(right: np.ndarray, wrong: np.ndarray, heavy: Tensor, light: Tensor, rate: float) -> Tensor:
    """Return ``(R,)``: the share of ``wrong`` at or above the highest of ``right`` that ``rate`` of these reach."""
    needed = cases_for(rate, len(right))
    last = (_below(heavy)[:, :-1] <= len(right) - needed).sum(1) - 1
    missed = torch.from_numpy(np.searchsorted(wrong, right[last.numpy()], "left")).unsqueeze(1)
    return 1 - _below(light).gather(1, missed).squeeze(1) / light.sum(1)


def _below(weights: Tensor) -> Tensor:
    """Return ``(R, n + 1)``: how much weight lies before each place."""
    return torch.cat([weights.new_zeros(len(weights), 1), weights.cumsum(1)], 1)


def _pair(known: np.ndarray, foreign: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    known, foreign = np.asarray(known, dtype=np.float64), np.asarray(foreign, dtype=np.float64)
    if known.ndim != 1 or foreign.ndim != 1 or not len(known) or not len(foreign):
        raise UsageError(
            "telling known from foreign takes a row of confidences of both, at least one each, got "
            f"{known.shape} and {foreign.shape}"
        )
    if np.isnan(known).any() or np.isnan(foreign).any():
        raise UsageError("a confidence is NaN: the score could not judge every case")
    return known, foreign
