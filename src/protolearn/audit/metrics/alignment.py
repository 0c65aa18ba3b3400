"""Does the most active evidence belong to the true class, with and without a shift of the data? As metrics."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from protolearn.audit.bootstrap import mean_interval, mean_of
from protolearn.audit.metric import About, Score, metric
from protolearn.audit.metrics.shift import SOURCE, ByPart
from protolearn.audit.shift import class_alignment, shared_alignment, top_share, weighted_alignment


class Alignment(ByPart):
    """Where evidence lies beside the true class, with and without shift."""

    top_k: int

    def each(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Return ``(N,)``."""
        raise NotImplementedError

    def more(self, scores: Tensor, labels: Tensor) -> dict[str, float | None]:
        """Return further figures of the labelled cases."""
        return {}

    def judged(self, part: str) -> Tensor:
        """Return ``(N,)``, NaN for unlabelled cases."""
        if not self.values.count(part):
            return torch.zeros(0, dtype=torch.float64)
        labels, scores = self.values.of(part, "labels"), self.values.of(part, "scores").double()
        if not scores.shape[1]:
            return torch.full((len(labels),), float("nan"), dtype=torch.float64)
        return self.each(scores, labels).masked_fill(labels < 0, float("nan"))

    def of_cases(self, notes: tuple[str, ...]) -> Score:
        """Return the mean over labelled cases, and the same under shift beside it."""
        each = self.judged("cases")
        value, labels = mean_of(each), self.values.of("cases", "labels")
        extras: dict[str, float | None] = {}
        if value is not None:
            known = labels >= 0
            extras |= self.more(self.values.of("cases", "scores").double()[known], labels[known])
        if self.values.count("shifted"):
            after = self.judged("shifted")
            extras["under shift"] = mean_of(after)
            extras["change under shift"] = mean_of(after - each) if len(after) == len(each) else None
        return Score(
            value,
            per_case=each,
            over_cases=mean_interval(each, self.setting.generator),
            counts={
                "cases judged": int((~each.isnan()).sum()),
                "cases without a label": int((labels < 0).sum()),
                "activations that count": min(self.top_k, int(self.setting.subject.usable.sum())),
            },
            extras=extras,
            notes=notes,
        )

    def of_owners(self, notes: tuple[str, ...]) -> Score:
        """Return the same where classes own prototypes; None where none does."""
        if self.owned.any():
            return self.of_cases(notes)
        return Score(None, notes=("No prototype belongs to a class: look at pca_shared.",))


@metric(
    About(
        name="pca",
        title="Prototype class alignment (PCA)",
        variant="softmax over the 10 highest scores, the part that lies on prototypes of the true class, mean over "
        "labelled cases; ties for the last place share it",
        source=SOURCE,
        better="higher",
        unit="0-1",
        needs=("labels",),
        instead=("shift_agreement", "evidence_correlation"),
        passes=("cases", "shifted"),
    )
)
@dataclass
class ClassAlignmentMetric(Alignment):
    """Whether the most active prototypes belong to the true class."""

    top_k: int = 10

    def each(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Return ``(N,)``."""
        return class_alignment(scores, self.own(labels), self.top_k)

    def more(self, scores: Tensor, labels: Tensor) -> dict[str, float | None]:
        """Return the unweighted share, and what chance would give."""
        own = self.own(labels)
        return {
            "share of the highest scores, unweighted": mean_of(top_share(scores, own, self.top_k)),
            "share of all prototypes that belong to the true class": mean_of(own.double().mean(1)),
        }

    def result(self) -> Score:
        """Return the mean part."""
        return self.of_owners(("A softmax of scores that differ little is flat: the level of chance is beside it.",))


@metric(
    About(
        name="pca_w",
        title="Prototype class alignment, weighted (PCA-W)",
        variant="of the 10 highest scores times the absolute weight for the true class, the part that belongs to the "
        "true class; 0 where the sum is not positive; mean over labelled cases",
        source=SOURCE,
        better="higher",
        unit="0-1 where scores are not negative",
        needs=("labels", "weights"),
        instead=("shift_agreement", "evidence_correlation"),
        passes=("cases", "shifted"),
    )
)
@dataclass
class WeightedAlignmentMetric(Alignment):
    """Whether the evidence that matters to the true class comes from its own prototypes."""

    top_k: int = 10

    def each(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Return ``(N,)``."""
        return weighted_alignment(scores, self.sizes(labels).abs(), self.own(labels), self.top_k)

    def result(self) -> Score:
        """Return the mean part."""
        return self.of_owners(())


@metric(
    About(
        name="pca_shared",
        title="Class alignment of shared prototypes",
        variant="softmax over the 10 highest scores times the weights for the true class: the positive part over the "
        "absolute sum, mean over labelled cases",
        source="ProtoTTA (DeepRCL, 2026), its form for prototypes that no class owns",
        better="higher",
        unit="0-1",
        needs=("labels", "weights"),
        instead=("shift_agreement", "evidence_correlation"),
        passes=("cases", "shifted"),
    )
)
@dataclass
class SharedAlignmentMetric(Alignment):
    """Whether the most active prototypes speak for the true class, whoever owns them."""

    top_k: int = 10

    def each(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Return ``(N,)``."""
        return shared_alignment(scores, self.sizes(labels), self.top_k)

    def result(self) -> Score:
        """Return the mean part."""
        return self.of_cases(("With weights that are never negative it is 1 wherever one of them is not 0.",))


__all__ = ["Alignment", "ClassAlignmentMetric", "SharedAlignmentMetric", "WeightedAlignmentMetric"]
