"""Do prototypes say different things? Angles between vectors and correlations of evidence, as metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from protolearn.audit.bootstrap import interval_of, mean_interval, mean_of
from protolearn.audit.cases import CaseValues
from protolearn.audit.correlation import standard_rows, unit_rows
from protolearn.audit.distinctness import (
    Likeness,
    likeness,
    mean_over_pairs,
    mean_squared_distance,
    orthogonality,
)
from protolearn.audit.metric import About, Metric, Score, Seen, Setting, metric

CASE_DRAWS = 500
"""Resamplings of cases behind the interval of a correlation: each asks for every pair again."""


class PairMetric(Metric):
    """Looks at pairs of prototypes; what the metrics here have in common."""

    near: float

    def scored(self, units: Tensor, real: Tensor, *, without: str, like: str) -> tuple[Likeness, dict[str, Any]]:
        """Return cosines between the prototypes that have a direction, and the parts of a score made of them."""
        subject = self.setting.subject
        rows = (real & subject.usable.cpu()).nonzero().squeeze(1)
        found = likeness(units[rows], subject.ownership[rows.to(subject.ownership.device)])
        each = torch.full((len(real),), float("nan"), dtype=torch.float64)
        each[rows] = found.mean
        kept = units[rows]
        twins = (found.largest >= self.near).nonzero().squeeze(1).tolist()
        ids = subject.ids
        named = {ids[int(rows[p])]: ids[int(rows[int(found.twin[p])])] for p in twins}
        parts: dict[str, Any] = {
            "value": mean_of(found.mean) if len(rows) > 1 else None,
            "per_prototype": each,
            "over_prototypes": interval_of(
                lambda weights: mean_over_pairs(kept, weights), len(rows), self.setting.generator
            )
            if len(rows) > 1
            else None,
            "counts": {
                "prototypes judged": len(rows) if len(rows) > 1 else 0,
                without: int((~real & subject.usable.cpu()).sum()),
                "pairs of one class": found.pairs_within,
                "pairs of two classes": found.pairs_across,
                f"prototypes with a twin ({like} of {self.near:g} or more)": len(twins),
            },
            "extras": {
                "largest": float(found.largest.max()) if len(rows) > 1 else None,
                "each prototype's largest, mean": mean_of(found.largest),
                **_named("of one class", found.within),
                **_named("of two classes", found.across),
                "twins": {str(key): other for key, other in named.items()},
            },
        }
        return found, parts


def _named(pairs: str, found: tuple[float, float] | None) -> Mapping[str, float | None]:
    mean, largest = (None, None) if found is None else found
    return {f"mean over pairs {pairs}": mean, f"largest over pairs {pairs}": largest}


@metric(
    About(
        name="prototype_cosine",
        title="Cosine between prototypes",
        variant="mean cosine over all pairs of two usable prototypes' vectors, as stored (before any metric the model "
        "has learned); pairs of one class and of two apart in the details",
        source="ProtoPNet's and ST-ProtoPNet's training logs",
        better="lower",
        unit="-1 to 1",
        needs=("vectors",),
        instead=("evidence_correlation", "map_overlap"),
        passes=(),
    )
)
@dataclass
class PrototypeCosineMetric(PairMetric):
    """Whether prototypes lie in different directions."""

    near: float = 0.95

    def result(self) -> Score:
        """Return the mean cosine of two prototypes."""
        vectors = self.setting.subject.vectors
        assert vectors is not None
        units, real = unit_rows(vectors)
        _, parts = self.scored(units, real, without="prototypes without a direction", like="cosine")
        usable = self.setting.subject.usable
        parts["extras"] |= {
            "mean squared distance of two prototypes, itself included (as ProtoPNet logs it)": mean_squared_distance(
                vectors[usable & real.to(usable.device)]
            )
        }
        notes = []
        if bool((vectors[usable] >= 0).all()):
            notes.append("No entry of a prototype is negative: any two such vectors have a cosine of at least 0.")
        return Score(**parts, notes=(*notes, *_alone(parts["value"])))


@metric(
    About(
        name="orthogonality",
        title="Orthogonality within classes",
        variant="entrywise sum of |P P^T - I| over a class's prototypes, each set to length 1; mean over classes that "
        "have one",
        source="EvalProtoPNet and ST-ProtoPNet (their orthogonality term, a sum over classes)",
        better="lower",
        unit="sum of absolute cosines",
        needs=("vectors",),
        instead=("evidence_correlation", "map_overlap"),
        passes=(),
    )
)
@dataclass
class OrthogonalityMetric(Metric):
    """Whether the prototypes of a class lie at right angles."""

    def result(self) -> Score:
        """Return the mean over classes; 0 is orthogonal."""
        subject = self.setting.subject
        assert subject.vectors is not None
        units, real = unit_rows(subject.vectors)
        usable = subject.usable.cpu()
        member = (subject.ownership.cpu() > 0) & (usable & real).unsqueeze(1)
        per_class, each = orthogonality(units, member)
        sizes = member.sum(0)
        judged = member.any(1)
        classes = int((sizes > 0).sum())
        each = torch.where(judged, each, float("nan"))
        value = float(per_class.sum()) / classes if classes else None
        spread = mean_interval(each, self.setting.generator)
        scale = int(judged.sum()) / max(1, classes)  # from a row's part to a class's sum
        pairs = int((sizes * (sizes - 1)).sum())
        names = subject.classes
        notes = () if classes else ("No prototype belongs to a class of its own: look at prototype_cosine.",)
        if classes:
            notes = ("The sum grows with the square of the prototypes of a class: compare models with as many.",)
        return Score(
            value,
            per_prototype=each,
            over_prototypes=None if spread is None else (spread[0] * scale, spread[1] * scale),
            counts={
                "prototypes judged": int(judged.sum()),
                "prototypes without a direction": int((~real & usable).sum()),
                "classes with a prototype": classes,
                "classes with one prototype, which are orthogonal by themselves": int((sizes == 1).sum()),
            },
            extras={
                "sum over classes": float(per_class.sum()) if classes else None,
                "mean absolute cosine of two prototypes of a class": float(per_class.sum()) / pairs if pairs else None,
                "by class": {names[c]: float(per_class[c]) for c in (sizes > 0).nonzero().squeeze(1).tolist()},
            },
            notes=notes,
        )


@metric(
    About(
        name="evidence_correlation",
        title="Correlation of evidence",
        variant="mean Pearson correlation, over the cases, of the similarity scores of two usable prototypes, over all "
        "pairs; pairs of one class and of two apart in the details",
        source="ours",
        better="lower",
        unit="-1 to 1",
    )
)
@dataclass
class EvidenceCorrelationMetric(PairMetric):
    """Whether prototypes rise and fall together over the cases."""

    near: float = 0.95

    def start(self, setting: Setting) -> None:
        """Get ready."""
        super().start(setting)
        self._cases = CaseValues()

    def update(self, seen: Seen) -> None:
        """Take in a batch."""
        self._cases.add(seen.part, seen.indices, scores=seen.look.scores)

    def result(self) -> Score:
        """Return the mean correlation of two prototypes."""
        scores = self._cases.of("cases", "scores").double()
        units, real = standard_rows(scores.T)
        _, parts = self.scored(units, real, without="prototypes whose score never changes", like="correlation")
        kept = scores[:, real & self.setting.subject.usable.cpu()]
        if parts["value"] is not None:
            parts["over_cases"] = self._over_cases(kept)
        parts["counts"] |= {"cases": len(scores)}
        notes = ["Prototypes of one class rise together wherever that class is seen; compare models on the same cases."]
        if len(scores) <= 2:
            notes.append(f"{len(scores)} cases say nothing about a correlation.")
            parts |= {"value": None, "over_prototypes": None, "over_cases": None}
        return Score(**parts, notes=(*notes, *_alone(parts["value"])))

    def _over_cases(self, scores: Tensor) -> tuple[float, float] | None:
        """Return the interval over cases. The pairs need not be listed: a sum over them is the square of a sum."""
        count = scores.shape[1]
        centred = scores - scores.mean(0)
        squares = centred.square()

        def mean(weights: Tensor) -> Tensor:
            total = weights.sum(1, keepdim=True)
            middle = weights @ centred / total
            variance = weights @ squares / total - middle.square()
            # a prototype that is constant in a draw says nothing in it
            scale = variance.clamp_min(0).sqrt()
            real = scale > 1e-9 * scale.amax(0, keepdim=True).clamp_min(1e-300)
            share = torch.where(real, 1.0 / scale.where(real, 1.0), 0.0)
            sums = share @ centred.T - (share * middle).sum(1, keepdim=True)
            kept = real.sum(1)
            pairs = (kept * (kept - 1)).where(kept > 1, 0)
            whole = (weights * sums.square()).sum(1) / total.squeeze(1) - kept
            return whole / pairs.where(pairs > 0, float("nan"))

        return interval_of(mean, len(scores), self.setting.generator, draws=CASE_DRAWS) if count > 1 else None


def _alone(value: float | None) -> tuple[str, ...]:
    return () if value is not None else ("There are not two prototypes to compare.",)


__all__ = ["EvidenceCorrelationMetric", "OrthogonalityMetric", "PairMetric", "PrototypeCosineMetric"]
