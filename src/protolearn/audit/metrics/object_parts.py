"""Consistency and stability of prototypes on key points, as metrics."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from protolearn.audit.bootstrap import mean_interval, mean_of
from protolearn.audit.look import Look
from protolearn.audit.metric import About, Metric, Score, Seen, Setting, metric
from protolearn.audit.object_parts import consistency_of, keeps_to_a_part, part_hits
from protolearn.audit.pairs import PairList, Pairs, mean_rate

NOTHING = "No prototype has a case of its class: there is nothing to judge by."
SOURCE = "EvalProtoPNet (Huang et al., ICCV 2023), numbers from its authors' code"


class PartHits(Metric):
    """Collects which key points each prototype of a case's class hits; what the metrics here have in common."""

    size: int

    def start(self, setting: Setting) -> None:
        """Get ready."""
        super().start(setting)
        self._pairs = PairList()
        self._visible: list[Tensor] = []
        self._grid: tuple[int, int] = (0, 0)

    @abstractmethod
    def hits(self, maps: Tensor, counted: Tensor, seen: Seen) -> Tensor:
        """Return ``(B, P, N)`` bool: which key points the region of each pair holds."""

    @abstractmethod
    def about_region(self) -> str:
        """Return a sentence on how large the region is."""

    def update(self, seen: Seen) -> None:
        """Take in a batch."""
        self.take(seen)

    def take(self, seen: Seen) -> tuple[Tensor, Tensor]:
        """Take in a batch; return the pairs that count, ``(B, P)`` bool, and what each of them hits, ``(M, N)``."""
        assert seen.look.maps is not None
        self._grid = (int(seen.look.maps.shape[2]), int(seen.look.maps.shape[3]))
        counted = self.setting.subject.of_class(seen.labels)
        visible = seen.marks.visible
        hits = self.hits(seen.look.maps, counted, seen)
        kept, _ = self._pairs.add(counted, hits, visible.unsqueeze(1).expand_as(hits))
        self._visible.append(visible.any(0).cpu())
        return counted, kept

    def gathered(self) -> tuple[Pairs, Tensor, Tensor]:
        """Return all pairs, and which key points are hit and visible in each, ``(M, N)``."""
        pairs, (hits, visible) = self._pairs.gathered(len(self.setting.subject.ids))
        return pairs, hits, visible

    def never_visible(self) -> int:
        """Return how many key points cannot be seen in any case."""
        return int((~torch.stack(self._visible).any(0)).sum())


class HitConsistency(PartHits):
    """Whether a prototype hits the same key point in every picture of its class."""

    threshold: float
    strict: ClassVar[bool] = False

    def result(self) -> Score:
        """Return 100 times the share of consistent prototypes."""
        pairs, hits, visible = self.gathered()
        hit, seen = pairs.total(hits), pairs.total(visible)
        judged = pairs.total(pairs.each()).squeeze(1) > 0
        found = consistency_of(hit, seen, judged, threshold=self.threshold, strict=self.strict)
        best = found.rates.double().amax(1)
        each = torch.where(judged, 100.0 * found.consistent.double(), float("nan"))
        value = found.score if judged.any() else None
        draw = self.setting.generator

        part = found.rates.argmax(1)[pairs.prototype].unsqueeze(1)

        def score(hit: Tensor, seen: Tensor, looked: Tensor) -> Tensor:
            some = looked.squeeze(2) > 0
            kept = keeps_to_a_part(hit / seen.clamp_min(1), threshold=self.threshold, strict=self.strict) & some
            return 100.0 * kept.sum(1) / some.sum(1)

        return Score(
            value,
            per_prototype=each,
            over_prototypes=mean_interval(each, draw),
            over_cases=None
            if value is None
            else pairs.interval(
                score, draw, hits.gather(1, part), visible.gather(1, part), pairs.each(), around=value, within=(0, 100)
            ),
            counts={
                "prototypes judged": int(judged.sum()),
                "prototypes without a case of their class": int((~judged & self.setting.subject.usable.cpu()).sum()),
                "prototypes that hit no key point": int((judged & (hit <= 0).all(1)).sum()),
                "parts never visible": self.never_visible(),
            },
            extras={
                "best rate of a part, mean over prototypes": mean_of(best[judged]),
                "most hit part": self._parts(found.rates, judged),
            },
            notes=(
                *(() if judged.any() else (NOTHING,)),
                self.about_region(),
                "The interval over cases holds fixed which part each prototype hits most often.",
                "It is centred on the figure, since drawing cases twice carries rates over the threshold.",
            ),
        )

    def _parts(self, rates: Tensor, judged: Tensor) -> dict[str, str]:
        """Return the part each judged prototype hits most often, by prototype id."""
        names, ids = self.setting.parts, self.setting.subject.ids
        return {
            str(ids[p]): names[int(rates[p].argmax())]
            for p in judged.nonzero().squeeze(1).tolist()
            if float(rates[p].max()) > 0
        }


class HitStability(PartHits):
    """Whether a prototype hits the same key points when the picture hardly changes."""

    def start(self, setting: Setting) -> None:
        """Get ready."""
        super().start(setting)
        self._same: list[Tensor] = []

    def noisy(self, seen: Seen) -> Iterable[Look]:
        """Return looks at the cases under noise."""
        return seen.noisy

    def update(self, seen: Seen) -> None:
        """Take in a batch and its noisy versions."""
        counted, hits = self.take(seen)
        same = []
        for look in self.noisy(seen):
            assert look.maps is not None
            again = self.hits(look.maps, counted, seen)[counted].cpu()
            same.append((hits == again).all(1).double())
        self._same.append(torch.stack(same).mean(0))

    def result(self) -> Score:
        """Return 100 times the mean share of cases with unchanged hits."""
        pairs, hits, _ = self.gathered()
        same = torch.cat(self._same).unsqueeze(1)
        looked = pairs.total(pairs.each()).squeeze(1)
        judged = looked > 0
        each = torch.where(judged, 100.0 * pairs.total(same).squeeze(1) / looked.clamp_min(1), float("nan"))
        value = mean_of(each)
        empty = judged & (pairs.total(hits) <= 0).all(1)
        draw = self.setting.generator

        share = float(empty.sum() / judged.sum()) if judged.any() else 0.0
        return Score(
            value,
            per_prototype=each,
            over_prototypes=mean_interval(each, draw),
            over_cases=pairs.interval(mean_rate, draw, 100.0 * same, pairs.each()) if value is not None else None,
            counts={
                "prototypes judged": int(judged.sum()),
                "prototypes without a case of their class": int((~judged & self.setting.subject.usable.cpu()).sum()),
                "prototypes that hit no key point": int(empty.sum()),
                "draws of noise": self.setting.draws,
            },
            extras={"stability of prototypes that hit a key point": mean_of(each[judged & ~empty])},
            notes=(
                *(() if judged.any() else (NOTHING,)),
                self.about_region(),
                *((f"{share:.0%} of the prototypes hit nothing: they look stable because there is nothing to lose.",)
                  if share else ()),
            ),
        )  # fmt: skip


_clean: WeakKeyDictionary[Seen, dict[tuple[int, int], Tensor]] = WeakKeyDictionary()


class BoxHits(PartHits):
    """The region is a square around the peak of the map."""

    half_side: int

    def hits(self, maps: Tensor, counted: Tensor, seen: Seen) -> Tensor:
        """Return ``(B, P, N)`` bool; those of the maps as they are, without noise, are found once for all metrics."""
        kept = _clean.setdefault(seen, {}) if maps is seen.look.maps else {}
        region = (self.size, self.half_side)
        if region not in kept:
            points = seen.marks.points_at(self.size)
            kept[region] = part_hits(
                maps, counted, points, seen.marks.visible, size=self.size, half_side=self.half_side
            )
        return kept[region]

    def about_region(self) -> str:
        """Return a sentence on how large the region is beside a cell."""
        side = 2 * self.half_side
        rows, columns = self._grid
        cells = f"{side * rows / self.size:.2f} x {side * columns / self.size:.2f}" if rows else "unknown"
        return (
            f"The region is {side} x {side} pixels of {self.size}: {cells} cells of a {rows} x {columns} map. A larger "
            "region hits more."
        )


@metric(
    About(
        name="consistency",
        title="Consistency",
        variant="share of prototypes that hit one same key point in at least 80 % of their class's cases where it is "
        "visible; region: a square of half side 36 at the peak of the bicubic map, at 224 pixels",
        source=SOURCE,
        better="higher",
        unit="0-100",
        needs=("maps", "labels", "points"),
        instead=("continuity", "neighbour_purity"),
    )
)
@dataclass
class ConsistencyMetric(HitConsistency, BoxHits):
    """Whether a prototype means the same part of the object in every picture."""

    threshold: float = 0.8
    half_side: int = 36
    size: int = 224


@metric(
    About(
        name="stability",
        title="Stability",
        variant="share of a prototype's cases in which it hits the very same key points with and without noise; "
        "region as for consistency; Gaussian noise of 0.2 clipped at 0.25, in normalised units",
        source=SOURCE,
        better="higher",
        unit="0-100",
        needs=("maps", "labels", "points"),
        instead=("continuity",),
        noise=True,
    )
)
@dataclass
class StabilityMetric(HitStability, BoxHits):
    """Whether a prototype points at the same part when the picture hardly changes."""

    half_side: int = 36
    size: int = 224


__all__ = ["BoxHits", "ConsistencyMetric", "HitConsistency", "HitStability", "PartHits", "StabilityMetric"]
