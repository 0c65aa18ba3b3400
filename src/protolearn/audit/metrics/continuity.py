"""Does a prototype stay where it was when the picture hardly changes? Continuity, as metrics without annotation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from protolearn.audit.bootstrap import mean_interval, mean_of
from protolearn.audit.cases import CaseValues
from protolearn.audit.continuity import (
    Move,
    cropped,
    peak_pixels,
    region_overlap,
    shifted,
)
from protolearn.audit.correlation import rank_correlation
from protolearn.audit.look import Look
from protolearn.audit.metric import About, Metric, Score, Seen, Setting, metric
from protolearn.audit.pairs import JudgedPairs
from protolearn.errors import UsageError

RANDOM = 4096
"""Pairs of random regions behind the level of chance."""


@dataclass
class PeakMetric(Metric):
    """Compares where prototypes of the predicted class peak in a picture and in an altered one."""

    half_side: int = 36
    size: int = 224

    def start(self, setting: Setting) -> None:
        """Get ready."""
        super().start(setting)
        cases, prototypes = setting.counts["cases"], len(setting.subject.ids)
        self._overlap = JudgedPairs(cases, prototypes)
        self._distance = JudgedPairs(cases, prototypes)
        self._by: dict[str, list[float]] = {}
        self._ranks = CaseValues()
        self._counts = {"peaks compared": 0, "maps that are the same everywhere": 0, "peaks that left the picture": 0}
        self._counts["maps that became the same everywhere"] = 0
        self._grid = (0, 0)

    def compare(self, seen: Seen, altered: Iterator[tuple[str, Look, Move]]) -> None:
        """Take in a batch and what the model says of its altered versions."""
        maps, usable = seen.look.maps, self.setting.subject.usable
        assert maps is not None
        self._grid = (int(maps.shape[2]), int(maps.shape[3]))
        counted = self.setting.subject.of_class(seen.look.predicted).to(maps.device)
        peaks = peak_pixels(maps, counted, self.size)
        case, prototype = (counted & ~peaks.isnan().any(2)).nonzero(as_tuple=True)
        self._counts["maps that are the same everywhere"] += int(counted.sum()) - len(case)
        ranks = []
        for name, look, move in altered:
            assert look.maps is not None
            ranks.append(rank_correlation(seen.look.scores[:, usable], look.scores[:, usable]))
            stays = move.shows(self._inside(peaks[case, prototype]), self.size)
            self._counts["peaks that left the picture"] += int((~stays).sum())
            b, p = case[stays], prototype[stays]
            moved = move.back(peak_pixels(look.maps, counted, self.size)[b, p], self.size)
            overlap = region_overlap(peaks[b, p], moved, half_side=self.half_side, size=self.size)
            # a peak that is gone is not where it was
            self._counts["maps that became the same everywhere"] += int(overlap.isnan().sum())
            overlap = overlap.nan_to_num(0.0)
            gap = (moved - peaks[b, p]).square().sum(1).sqrt() / self.size
            indices = seen.indices.to(b.device)[b]
            self._overlap.add(indices, p, overlap)
            self._distance.add(indices, p, gap)
            found = self._by.setdefault(name, [0.0, 0.0])
            found[0] += float(overlap.sum())
            found[1] += len(overlap)
        if ranks:
            self._ranks.add(seen.part, seen.indices, ranks=torch.stack(ranks, 1).nanmean(1))

    def _inside(self, peaks: Tensor) -> Tensor:
        """Return peaks half a cell from the border at least: enlarged maps peak at the very edge of a border cell."""
        cell = peaks.new_tensor([self.size / self._grid[1], self.size / self._grid[0]])
        return torch.minimum(torch.maximum(peaks, cell / 2 - 0.5), self.size - cell / 2 - 0.5)

    def scored(self, notes: tuple[str, ...] = ()) -> Score:
        """Return the mean overlap over prototypes of their means over cases."""
        each = self._overlap.per_prototype
        value, draw = mean_of(each), self.setting.generator
        self._counts["peaks compared"] = len(self._overlap)
        return Score(
            value,
            per_prototype=each,
            per_case=self._overlap.per_case,
            over_prototypes=mean_interval(each, draw),
            over_cases=self._overlap.over_cases(draw),
            counts={"prototypes judged": int((~each.isnan()).sum()), **self._counts},
            extras={
                "distance of the peaks, share of the side": mean_of(self._distance.per_prototype),
                "rank correlation of the scores over prototypes": mean_of(self._ranks.of("cases", "ranks")),
                "overlap of two regions laid at random": self._chance(),
                "overlap by alteration": {name: total / n if n else None for name, (total, n) in self._by.items()},
            },
            notes=(*notes, *self._about(value)),
        )

    def _chance(self) -> float:
        centres = torch.rand(2, RANDOM, 2, generator=self.setting.generator) * self.size
        return float(region_overlap(centres[0], centres[1], half_side=self.half_side, size=self.size).mean())

    def _about(self, value: float | None) -> tuple[str, ...]:
        if value is None:
            return ("No prototype of a predicted class has a map with a peak.",)
        side, (rows, columns) = 2 * self.half_side, self._grid
        note = (
            f"The region is {side} x {side} pixels of {self.size}; a cell of the {rows} x {columns} map is "
            f"{self.size / columns:.0f} x {self.size / rows:.0f}, so that a peak moves in steps of about that size."
        )
        return (note,)


@metric(
    About(
        name="continuity",
        title="Continuity under noise",
        variant="overlap (intersection over union) of the squares of half side 36, at 224 pixels, around a prototype's "
        "peak with and without clipped Gaussian noise, prototypes of the class predicted without it; mean over cases, "
        "then prototypes",
        source="ours; the noise is that of EvalProtoPNet's stability",
        better="higher",
        unit="0-1",
        needs=("maps",),
        instead=("evidence_correlation",),
        noise=True,
    )
)
@dataclass
class ContinuityMetric(PeakMetric):
    """Whether a prototype points at the same place when the picture hardly changes; needs no annotation."""

    def update(self, seen: Seen) -> None:
        """Take in a batch and its noisy versions."""
        self.compare(seen, (("noise", look, Move()) for look in seen.noisy))

    def result(self) -> Score:
        """Return the mean overlap."""
        return self.scored()


@metric(
    About(
        name="continuity_moves",
        title="Continuity under shifts and crops",
        variant="the same for pictures shifted by 8 of 224 pixels to both sides of the diagonal (border repeated) and "
        "cropped to the middle 90 % and enlarged; peaks are mapped back first, and those that have left the picture "
        "(at its border: the centre of their cell) are not judged",
        source="ours",
        better="higher",
        unit="0-1",
        needs=("maps",),
        instead=("evidence_correlation",),
        costly=True,
    )
)
@dataclass
class MovesMetric(PeakMetric):
    """Whether a prototype stays with its place in the object when the picture moves; needs no annotation."""

    pixels: int = 8
    crop: float = 0.9

    def start(self, setting: Setting) -> None:
        """Get ready."""
        super().start(setting)
        if not 0 <= self.pixels < self.size or not 0 < self.crop <= 1:
            raise UsageError(
                f"pixels lie in 0 to {self.size - 1} and crop above 0 up to 1, got {self.pixels} and {self.crop}"
            )
        self._pictures = True

    def update(self, seen: Seen) -> None:
        """Take in a batch; the model is asked about each altered version."""
        self._pictures = seen.inputs.ndim == 4
        if self._pictures:
            self.compare(seen, self._altered(seen.inputs))

    def _altered(self, inputs: Tensor) -> Iterator[tuple[str, Look, Move]]:
        down, right = (round(self.pixels * side / self.size) for side in inputs.shape[-2:])
        if self.pixels:  # at least one pixel of a small picture
            down, right = max(1, down), max(1, right)
        made = (
            ("shift", *shifted(inputs, right, down)),
            ("shift", *shifted(inputs, -right, -down)),
            ("crop", *cropped(inputs, self.crop)),
        )
        for name, picture, move in made:
            yield name, self.setting.subject.look(picture), move

    def result(self) -> Score:
        """Return the mean overlap."""
        if not self._pictures:
            return Score(None, notes=("The inputs are not pictures: they cannot be shifted or cropped.",))
        return self.scored()


__all__ = ["ContinuityMetric", "MovesMetric", "PeakMetric"]
