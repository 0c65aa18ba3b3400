"""Whether probabilities mean what they say and confidence tells errors, as metrics."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from protolearn.audit.bootstrap import interval_of, mean_interval
from protolearn.audit.calibration import (
    LEAST_PROBABILITY,
    adaptive_calibration_error,
    bin_of,
    brier,
    calibration_error,
    classwise_calibration_error,
    negative_log_likelihood,
    reliability,
)
from protolearn.audit.cases import CaseValues, numbers
from protolearn.audit.metric import About, Metric, Score, Seen, Setting, metric
from protolearn.audit.risk_coverage import resampled_aurc, risk_coverage
from protolearn.errors import DataError

STEPS = 100
"""Points of a curve that is kept for a chart."""


@dataclass(frozen=True, eq=False)
class Judged:
    """What a model said of the labelled cases: probabilities ``(N, C)``, labels and predictions ``(N,)``."""

    probabilities: np.ndarray
    labels: np.ndarray
    predicted: np.ndarray
    known: Tensor
    unlabelled: int

    @property
    def confidence(self) -> np.ndarray:
        """``(N,)`` largest probability."""
        most: np.ndarray = self.probabilities.max(1)
        return most

    def spread(self, values: np.ndarray) -> Tensor:
        """Return figures of the labelled cases ``(N,)`` in the order of all cases, NaN where there is no label."""
        whole = torch.full((len(self.known),), float("nan"), dtype=torch.float64)
        whole[self.known] = torch.as_tensor(values, dtype=torch.float64)
        return whole


class OfProbabilities(Metric):
    """Collects the probabilities of the labelled cases; what the metrics here have in common."""

    def start(self, setting: Setting) -> None:
        """Get ready."""
        super().start(setting)
        self._cases = CaseValues()

    def update(self, seen: Seen) -> None:
        """Take in a batch."""
        shares = numbers(seen.look.probabilities, "probabilities", seen.indices, seen.part).double()
        off = ((shares.sum(1) - 1).abs() > 1e-3) | (shares < 0).any(1)
        if bool(off.any()):
            case = int(seen.indices[off.cpu()][0])
            raise DataError(
                f"case {case} of the {seen.part}: probabilities must be at least 0 and sum to 1, got a sum of "
                f"{float(shares[off][0].sum()):.4g}: give the audit the model's probabilities, not its scores"
            )
        self._cases.add(
            seen.part, seen.indices, probabilities=shares, labels=seen.labels, predicted=seen.look.predicted
        )

    def result(self) -> Score:
        """Return the figure, or why there is none."""
        labels = self._cases.of("cases", "labels").long()
        known = labels >= 0
        if not bool(known.any()):
            return Score(None, counts={"unlabelled cases": len(labels)}, notes=("No case is labelled.",))
        table, predicted = self._cases.of("cases", "probabilities"), self._cases.of("cases", "predicted")
        judged = Judged(
            table[known].numpy(), labels[known].numpy(), predicted[known].numpy(), known, int((~known).sum())
        )
        return self.judge(judged)

    @abstractmethod
    def judge(self, judged: Judged) -> Score:
        """Return the figure of at least one labelled case."""


def _counts(judged: Judged) -> dict[str, int]:
    return {"labelled cases": len(judged.labels), "unlabelled cases": judged.unlabelled}


@metric(
    About(
        name="ece",
        title="Calibration error",
        variant="mean gap between the largest probability and the share right, over 15 bins of equal width",
        source="general; the adaptive and classwise forms beside it as in Nguyen and O'Connor 2015, Kull et al. 2019",
        better="lower",
        unit="0-1",
        needs=("labels",),
        instead=("abstention",),
    )
)
@dataclass
class CalibrationError(OfProbabilities):
    """Whether a model is right as often as it says."""

    bins: int = 15

    def judge(self, judged: Judged) -> Score:
        """Return the expected calibration error, with the bins of the reliability diagram."""
        shares, labels = judged.probabilities, judged.labels
        bins = reliability(shares, labels, self.bins)
        confidence = torch.from_numpy(judged.confidence)
        gap = confidence - torch.from_numpy(shares.argmax(1) == labels).double()
        place = torch.from_numpy(bin_of(judged.confidence, self.bins))
        by_bin = torch.zeros(len(gap), self.bins, dtype=torch.float64)
        by_bin[torch.arange(len(gap)), place] = gap
        return Score(
            calibration_error(bins),
            over_cases=interval_of(
                lambda weights: (weights @ by_bin).abs().sum(1) / weights.sum(1), len(gap), self.setting.generator
            ),
            counts={**_counts(judged), "bins with cases": len(bins)},
            extras={
                "mean confidence less accuracy": float(gap.mean()),
                "over bins of equally many cases": adaptive_calibration_error(shares, labels, self.bins),
                "over all classes": classwise_calibration_error(shares, labels, self.bins),
                "reliability": [asdict(each) for each in bins],
            },
            notes=(
                "Chance alone makes the error larger than 0, the more so with few cases in a bin.",
                "Resampling adds to that, so the interval leans upwards: compare models on the same cases.",
            ),
        )


@metric(
    About(
        name="brier",
        title="Brier score",
        variant="squared distance of the probabilities from the label, summed over classes: 0 to 2, mean over cases",
        source="Brier 1950",
        better="lower",
        unit="0-2",
        needs=("labels",),
        instead=("abstention",),
    )
)
@dataclass
class BrierScore(OfProbabilities):
    """How far probabilities are from the truth, sharpness and calibration in one."""

    def judge(self, judged: Judged) -> Score:
        """Return the mean score."""
        each = judged.spread(brier(judged.probabilities, judged.labels))
        return Score(
            float(each.nanmean()),
            per_case=each,
            over_cases=mean_interval(each, self.setting.generator),
            counts=_counts(judged),
        )


@metric(
    About(
        name="nll",
        title="Negative log-likelihood",
        variant="minus the natural logarithm of the true class's probability, mean over cases",
        source="general",
        better="lower",
        unit="nats",
        needs=("labels",),
        instead=("abstention",),
    )
)
@dataclass
class NegativeLogLikelihood(OfProbabilities):
    """How much the labels surprise the model."""

    def judge(self, judged: Judged) -> Score:
        """Return the mean in nats."""
        each = judged.spread(negative_log_likelihood(judged.probabilities, judged.labels))
        true = judged.probabilities[np.arange(len(judged.labels)), judged.labels]
        ruled_out = int((true < LEAST_PROBABILITY).sum())
        return Score(
            float(each.nanmean()),
            per_case=each,
            over_cases=mean_interval(each, self.setting.generator),
            counts={**_counts(judged), "cases whose class was ruled out": ruled_out},
            notes=(f"{ruled_out} true classes had probability 0, which counts as 2.2e-16.",) if ruled_out else (),
        )


@metric(
    About(
        name="risk_coverage",
        title="Errors left when unsure cases are left out",
        variant="area under risk over coverage (AURC): share of errors among the most confident cases, mean over all "
        "coverages; confidence = largest probability; equal confidences in every order alike",
        source="El-Yaniv and Wiener 2010, Geifman and El-Yaniv 2017; excess over the exact best order",
        better="lower",
        unit="0-1",
        needs=("labels",),
        instead=("abstention",),
    )
)
@dataclass
class RiskOverCoverage(OfProbabilities):
    """Whether the model is surer where it is right."""

    coverages: tuple[float, ...] = (0.8, 0.9, 1.0)

    def judge(self, judged: Judged) -> Score:
        """Return the area under the curve."""
        confidence, right = judged.confidence, judged.predicted == judged.labels
        found = risk_coverage(confidence, right)
        shown = np.unique(np.linspace(0, len(right) - 1, min(STEPS, len(right))).round().astype(int))
        return Score(
            found.aurc,
            over_cases=interval_of(
                lambda weights: torch.from_numpy(resampled_aurc(confidence, right, weights.numpy().astype(np.int64))),
                len(right),
                self.setting.generator,
            ),
            counts={**_counts(judged), "errors": int((~right).sum()), "confidences": len(np.unique(confidence))},
            extras={
                "excess over the best order": found.excess,
                "area of the best order": found.least,
                "accuracy at coverage": {f"{each:g}": found.accuracy_at(each) for each in self.coverages},
                "curve": {"coverage": found.coverage[shown].tolist(), "risk": found.risk[shown].tolist()},
            },
            notes=self._notes(len(np.unique(confidence)) == 1 < len(right)),
        )

    def _notes(self, alike: bool) -> tuple[str, ...]:
        notes = ["The area mixes accuracy and order: the excess is what the confidences are to blame for."]
        if alike:
            notes.append("Every case has the same confidence: it tells no error from a right answer.")
        return tuple(notes)
