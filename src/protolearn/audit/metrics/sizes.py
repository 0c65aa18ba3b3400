"""How many prototypes a person has to read, for the whole model and for one decision, as metrics."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from protolearn.audit.bootstrap import mean_interval, mean_of
from protolearn.audit.cases import CaseValues, numbers
from protolearn.audit.metric import About, Metric, Score, Seen, Setting, metric
from protolearn.audit.sparsity import LEAST, beyond, sparsity_ratio, with_weight
from protolearn.errors import DataError

SOURCE = "PIP-Net (Nauta et al., CVPR 2023)"
SCALED = "the threshold 0.001 presumes scores in 0 to 1; relative=0.01 counts from a hundredth of a case's largest on"


@dataclass
class CaseSize(Metric):
    """Counts prototypes in each case; what the sizes of one decision have in common."""

    least: float = LEAST
    relative: float | None = None

    @abstractmethod
    def counted(self, seen: Seen) -> Tensor:
        """Return ``(B, P)``: how often each prototype counts in each case."""

    def start(self, setting: Setting) -> None:
        """Get ready."""
        super().start(setting)
        beyond(torch.zeros(0, 1), self.least, relative=self.relative)  # refuses thresholds that cannot be
        self._cases = CaseValues()
        self._often = torch.zeros(len(setting.subject.ids), dtype=torch.float64)
        self._range = float("inf"), -float("inf")

    def update(self, seen: Seen) -> None:
        """Take in a batch."""
        scores = numbers(seen.look.scores, "scores", seen.indices, seen.part)
        usable = self.setting.subject.usable.to(scores.device)
        kept = scores[:, usable]
        if kept.numel():
            low, high = self._range
            self._range = min(low, float(kept.min())), max(high, float(kept.max()))
        counts = self.counted(seen) * usable
        self._cases.add(seen.part, seen.indices, size=counts.sum(1).double())
        self._often += counts.double().sum(0).cpu()

    def result(self) -> Score:
        """Return the mean size over the cases."""
        each, draw = self._cases.of("cases", "size").double(), self.setting.generator
        usable, count = self.setting.subject.usable.cpu(), len(each)
        often = torch.where(usable, self._often / max(1, count), float("nan"))
        over = mean_interval(often, draw)
        total = int(usable.sum())
        return Score(
            mean_of(each),
            per_prototype=often,
            per_case=each,
            # a size is the sum of how often each prototype counts
            over_prototypes=None if over is None or not count else (over[0] * total, over[1] * total),
            over_cases=mean_interval(each, draw),
            counts={
                "prototypes in use": total,
                "prototypes that never count": int((usable & (self._often == 0)).sum()),
                "cases in which none counts": int((each == 0).sum()),
            },
            extras={
                "standard deviation over cases": float(each.std()) if count > 1 else None,
                "median over cases": float(each.median()) if count else None,
                "most in a case": int(each.max()) if count else None,
                "threshold": self.least if self.relative is None else None,
                "threshold as a share of the largest": self.relative,
            },
            notes=self._notes(count),
        )

    def _notes(self, count: int) -> tuple[str, ...]:
        if not count:
            return ("No case was shown.",)
        low, high = self._range
        if self.relative is not None or low > high or (low >= 0 and high <= 1):
            return ()
        span = f"The scores of this model span {low:.3g} to {high:.3g}"
        return (f"{span}: {self.least:g} presumes 0 to 1 and says little; set relative, a share of the largest.",)


@metric(
    About(
        name="local_size",
        title="Size of an explanation, all classes",
        variant="pairs of a class and a prototype that adds more than 0.001 to its score, counted in each case by "
        f"itself, mean over cases; {SCALED}",
        source=f"{SOURCE}, whose released code adds the cases of a batch up before it counts",
        better="lower",
        unit="pairs of class and prototype",
    )
)
@dataclass
class LocalSize(CaseSize):
    """What is to be read to follow all class scores of one case."""

    def counted(self, seen: Seen) -> Tensor:
        """Return for how many classes each prototype speaks."""
        made = []
        for part, table in seen.look.ledgers():
            table = numbers(table, "contributions", seen.indices[part], seen.part)
            made.append(beyond(table, self.least, relative=self.relative).sum(1))
        return torch.cat(made)


@metric(
    About(
        name="local_size_predicted",
        title="Size of an explanation, predicted class",
        variant="prototypes that change the score of the predicted class by more than 0.001, for or against, mean over "
        f"cases; {SCALED}",
        source=SOURCE,
        better="lower",
        unit="prototypes",
    )
)
@dataclass
class LocalSizePredicted(CaseSize):
    """What is to be read to follow one prediction."""

    def counted(self, seen: Seen) -> Tensor:
        """Return whether each prototype moves the predicted class's score."""
        toward = seen.look.toward(seen.look.predicted)
        toward = numbers(toward, "contributions", seen.indices, seen.part)
        return beyond(toward.abs(), self.least, relative=self.relative)


@metric(
    About(
        name="active_prototypes",
        title="Prototypes found in a case",
        variant="prototypes with a score above 0.001 (0 where the head leaves a score out as too small), mean over "
        f"cases; {SCALED}",
        source=SOURCE,
        better="lower",
        unit="prototypes",
    )
)
@dataclass
class ActivePrototypes(CaseSize):
    """How many prototypes a case matches, whatever they weigh."""

    def counted(self, seen: Seen) -> Tensor:
        """Return whether each prototype's score is above the threshold; one that the head leaves out counts as 0."""
        scores, out = seen.look.scores.detach(), seen.look.output
        if out is not None:
            scores = scores.masked_fill(out.head.weighed(out.evidence) == 0, 0.0)
        return beyond(scores, self.least, relative=self.relative)

    def result(self) -> Score:
        """Return the mean number, or none where scores are distances turned round, of which none is above 0."""
        low, high = self._range
        if low < 0 and high <= 0:
            told = f"Scores span {low:.3g} to {high:.3g}: none can be above 0, so that counting them says nothing."
            return Score(None, notes=(told, "See local_size_predicted."))
        return super().result()


@metric(
    About(
        name="global_size",
        title="Prototypes with a weight",
        variant="usable prototypes with a weight beyond 0.001, for or against, for some class",
        source=f"{SOURCE}, for weights of both signs",
        better="lower",
        unit="prototypes",
        needs=("weights",),
        instead=("active_prototypes",),
        passes=(),
    )
)
@dataclass
class GlobalSize(Metric):
    """How many prototypes there are to be known in order to know the model."""

    least: float = LEAST

    def result(self) -> Score:
        """Return the number; it is a fact of the model, without an interval."""
        weights, usable = _weights(self), self.setting.subject.usable.cpu()
        known = with_weight(weights, usable, self.least)
        return Score(
            float(known.sum()),
            per_prototype=torch.where(usable, known.double(), float("nan")),
            counts={
                "prototypes in use": int(usable.sum()),
                "prototypes without a weight": int((usable & ~known).sum()),
                "prototypes out of use": int((~usable).sum()),
            },
            extras={"prototypes that speak for some class": int(((weights > self.least).any(0) & usable).sum())},
        )


@metric(
    About(
        name="sparsity_ratio",
        title="Sparsity of the weights",
        variant="share of the weights of usable prototypes that are not above 0.001; a negative weight counts as "
        "absent",
        source=SOURCE,
        better="higher",
        unit="0-1",
        needs=("weights",),
        instead=("local_size",),
        passes=(),
    )
)
@dataclass
class SparsityRatio(Metric):
    """How empty the table of classes and prototypes is."""

    least: float = LEAST

    def result(self) -> Score:
        """Return the share; it is a fact of the model, without an interval."""
        usable = self.setting.subject.usable.cpu()
        weights = _weights(self)[:, usable]
        each = torch.full((len(usable),), float("nan"), dtype=torch.float64)
        each[usable] = (weights <= self.least).double().mean(0)
        against = int((weights < -self.least).sum())
        value = sparsity_ratio(weights, self.least)
        return Score(
            value,
            per_prototype=each,
            counts={"weights": weights.numel(), "weights against a class": against},
            extras={"share of weights near 0": mean_of((weights.abs() <= self.least).flatten())},
            notes=self._notes(weights.numel(), against),
        )

    def _notes(self, count: int, against: int) -> tuple[str, ...]:
        if not count:
            return ("No prototype is in use.",)
        told = f"{against} of {count} weights speak against a class and count as absent: see the share near 0."
        return (told,) if against else ()


def _weights(metric: Metric) -> Tensor:
    weights = metric.setting.subject.weights
    assert weights is not None
    if bool(weights.isnan().any()):
        raise DataError("the weights of the model's head hold NaN: the model is damaged")
    return weights.detach().cpu()
