"""Prototypes and answers under a shift of the data, as metrics."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from protolearn.audit.bootstrap import interval_of, mean_interval, mean_of
from protolearn.audit.cases import CaseValues
from protolearn.audit.correlation import row_correlation
from protolearn.audit.metric import About, Metric, Score, Seen, Setting, metric
from protolearn.audit.shift import (
    activation_consistency,
    activation_distance_share,
    contribution_change,
    shift_agreement,
)
from protolearn.core.matching import chunk_rows
from protolearn.errors import DataError

SOURCE = "ProtoTTA (DeepRCL, 2026), numbers from its authors' code"


class ByPart(Metric):
    """Keeps what it needs of each case, for each part of the data; what the metrics here have in common."""

    def start(self, setting: Setting) -> None:
        """Get ready."""
        super().start(setting)
        self.values = CaseValues()

    def columns(self, seen: Seen) -> dict[str, Tensor]:
        """Return what is kept of a batch."""
        return {"scores": seen.look.scores[:, self.setting.subject.usable], "labels": seen.labels}

    def update(self, seen: Seen) -> None:
        """Take in a batch."""
        self.values.add(seen.part, seen.indices, **self.columns(seen))

    def both(self, name: str) -> tuple[Tensor, Tensor]:
        """Return a column of the cases as they were and under shift.

        Raises
        ------
        DataError
            If they are not as many.
        """
        clean, other = (self.values.count(part) for part in ("cases", "shifted"))
        if clean != other:
            raise DataError(
                f"{clean} cases and {other} under shift: shifted= must hold the same cases in the same order"
            )
        return self.values.of("cases", name), self.values.of("shifted", name)

    @property
    def owned(self) -> Tensor:
        """``(P', C)`` bool: which classes own each usable prototype."""
        subject = self.setting.subject
        return (subject.ownership[subject.usable] > 0).cpu()

    def own(self, labels: Tensor) -> Tensor:
        """Return ``(N, P')`` bool: usable prototypes of each case's class; nothing of an unlabelled one."""
        return self.owned.T[labels.clamp_min(0)] & (labels >= 0).unsqueeze(1)

    def sizes(self, labels: Tensor) -> Tensor:
        """Return ``(N, P')``: weight of each usable prototype for each case's class; an unlabelled case gets any."""
        subject = self.setting.subject
        assert subject.weights is not None
        return subject.weights.cpu()[:, subject.usable.cpu()][labels.clamp_min(0)]


@metric(
    About(
        name="pac",
        title="Prototype activation consistency (PAC)",
        variant="cosine of the scores of all usable prototypes with and without the shift, mean over cases",
        source=SOURCE,
        better="higher",
        unit="-1 to 1",
        needs=("shifted",),
        instead=("continuity",),
        passes=("cases", "shifted"),
    )
)
@dataclass
class ActivationConsistencyMetric(ByPart):
    """Whether prototypes are as active as before when the data shift."""

    def result(self) -> Score:
        """Return the mean cosine."""
        one, two = (scores.double() for scores in self.both("scores"))
        each = activation_consistency(one, two)
        draw = self.setting.generator
        judged = ~each.isnan()
        a, b = one[judged], two[judged]

        def over(weights: Tensor) -> Tensor:
            total, count = weights.new_zeros(len(weights)), weights.new_zeros(len(weights))
            for part in torch.arange(len(a)).split(chunk_rows(32 * len(weights))):
                lengths = (weights @ a[part].square().T).sqrt() * (weights @ b[part].square().T).sqrt()
                real = lengths > 0
                total += (weights @ (a[part] * b[part]).T / lengths.where(real, 1.0)).where(real, 0.0).sum(1)
                count += real.sum(1)
            return total / count.where(count > 0, float("nan"))

        subject = self.setting.subject
        usable = subject.usable.cpu()
        column = torch.full((len(usable),), float("nan"), dtype=torch.float64)
        column[usable] = activation_consistency(one.T, two.T)
        return Score(
            mean_of(each),
            per_prototype=column,
            per_case=each,
            over_prototypes=interval_of(over, one.shape[1], draw) if judged.any() else None,
            over_cases=mean_interval(each, draw),
            counts={"cases judged": int(judged.sum()), "cases without an active prototype": int((~judged).sum())},
            extras={
                "of each case and the next one under shift, the level of no relation": mean_of(
                    activation_consistency(one, two.roll(-1, 0))
                )
                if len(one) > 1
                else None,
                "1 - distance over length": mean_of(activation_distance_share(one, two)),
                "correlation over prototypes": mean_of(row_correlation(one, two)),
            },
            notes=(
                "Scores that are never negative have a high cosine in any two cases: compare with no relation.",
                "The figure of a prototype is the cosine over cases of its own scores.",
            ),
        )


@metric(
    About(
        name="shift_agreement",
        title="Agreement under shift",
        variant="share of cases in which the same class is predicted with and without the shift",
        source="ProtoTTA (DeepRCL, 2026)",
        better="higher",
        unit="0-1",
        needs=("shifted",),
        instead=("continuity",),
        passes=("cases", "shifted"),
    )
)
@dataclass
class ShiftAgreementMetric(ByPart):
    """Whether answers stay what they were when the data shift."""

    def columns(self, seen: Seen) -> dict[str, Tensor]:
        """Return what is kept of a batch."""
        return {
            **super().columns(seen),
            "logits": seen.look.logits,
            "probabilities": seen.look.probabilities,
        }

    def result(self) -> Score:
        """Return the share of predictions that stay."""
        found = shift_agreement(*self.both("logits"), *self.both("probabilities"))
        same = found.same.double()
        extras = {
            "cosine of the logits, mean": mean_of(found.logit_cosine),
            "correlation of the confidences": found.confidence_correlation,
            "absolute change of the confidence, mean": mean_of(found.confidence_gap),
            "confidence before, mean": mean_of(found.before),
            "confidence under shift, mean": mean_of(found.after),
        }
        labels = self.values.of("cases", "labels")
        if self.setting.subject.weights is not None and self.owned.any() and bool((labels >= 0).any()):
            change = contribution_change(*self.both("scores"), self.sizes(labels).abs(), self.own(labels))
            extras["relative change of the true class's evidence, mean"] = mean_of(change)
        return Score(
            mean_of(same),
            per_case=same,
            over_cases=mean_interval(same, self.setting.generator),
            counts={"cases judged": len(same), "cases that change their class": int((~found.same).sum())},
            extras=extras,
        )


__all__ = [
    "ActivationConsistencyMetric",
    "ByPart",
    "ShiftAgreementMetric",
]
