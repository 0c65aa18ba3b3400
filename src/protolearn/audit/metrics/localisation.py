"""Where heat maps lie to the object, as metrics: content heat in both forms, outside to inside, overlap, pointing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from protolearn.audit.bootstrap import interval_of, mean_interval, mean_of
from protolearn.audit.heat import mean_map, uneven
from protolearn.audit.localisation import Localised, localise
from protolearn.audit.metric import About, Metric, Score, Seen, Setting, metric
from protolearn.audit.subject import Subject

MAP = (
    "map of a case: mean over the prototypes of its true class, enlarged (bicubic) to the input, scaled to reach from "
    "0 to 1; per prototype: its own map in the cases of its class"
)
ST = "ST-ProtoPNet (Wang et al., ICCV 2023), numbers from its authors' code"


def _about(name: str, title: str, variant: str, better: str = "higher", source: str = ST, unit: str = "0-1") -> About:
    """Return what is said of a metric of heat on objects, with what they all need."""
    return About(
        name,
        title,
        f"{variant}; {MAP}",
        source,
        better=better,
        unit=unit,
        needs=("maps", "labels", "objects"),
        instead=("deletion", "neighbour_purity"),
    )


@dataclass(frozen=True, eq=False)
class _Judged:
    """A batch, judged once for all the metrics here: figures of the class maps ``(B,)`` and of own maps ``(B, P)``."""

    together: Localised
    own: Localised
    counted: Tensor
    flat: Tensor
    known: Tensor
    area: Tensor


_judged: WeakKeyDictionary[Seen, dict[float, _Judged]] = WeakKeyDictionary()


def _judge(seen: Seen, subject: Subject, threshold: float) -> _Judged:
    """Return what there is to say of a batch; kept while the batch is, since five metrics ask for it."""
    kept = _judged.setdefault(seen, {})
    if threshold not in kept:
        maps, objects, known = seen.look.maps, seen.marks.objects, seen.marks.known
        assert maps is not None and objects is not None and known is not None
        known = known & objects.flatten(1).any(1)
        counted = subject.of_class(seen.labels)
        together = localise(
            mean_map(maps, counted).unsqueeze(1),
            (counted.any(1) & known).unsqueeze(1),
            objects,
            threshold=threshold,
        )
        own = localise(maps, counted & known.unsqueeze(1), objects, threshold=threshold)
        area = objects.flatten(1).double().mean(1)
        kept[threshold] = _Judged(together, own, counted, ~uneven(maps) & counted, known, area)
    return kept[threshold]


class ObjectHeat(Metric):
    """What the metrics of heat on objects have in common: gather one figure, average it over cases."""

    figure: ClassVar[str]
    threshold: float = 0.5

    def start(self, setting: Setting) -> None:
        """Get ready."""
        super().start(setting)
        self._rows: list[tuple[Tensor, ...]] = []
        self._grid, self._size, self._kinds = (0, 0), (0, 0), set[str]()

    def update(self, seen: Seen) -> None:
        """Take in a batch."""
        assert seen.look.maps is not None and seen.marks.objects is not None
        found = _judge(seen, self.setting.subject, self.threshold)
        together, own = getattr(found.together, self.figure).squeeze(1), getattr(found.own, self.figure)
        gathered = (together, own.float(), found.counted, found.flat, found.known, found.area, seen.labels)
        self._rows.append((seen.indices, *(each.cpu() for each in gathered)))
        self._grid = (int(seen.look.maps.shape[2]), int(seen.look.maps.shape[3]))
        self._size = (int(seen.marks.objects.shape[1]), int(seen.marks.objects.shape[2]))
        self._kinds.add(seen.marks.kind)

    def result(self) -> Score:
        """Return the mean over cases, and the same figure for each prototype's own map."""
        indices, together, own, counted, flat, known, area, labels = (
            torch.cat(column) for column in zip(*self._rows, strict=True)
        )
        cases = torch.full((self.setting.counts["cases"],), float("nan"), dtype=torch.float64)
        cases[indices] = together
        there = ~own.isnan()
        sums, numbers = own.nan_to_num(0.0).double(), there.double()
        each = torch.where(there.any(0), sums.sum(0) / numbers.sum(0).clamp_min(1), float("nan"))
        draw = self.setting.generator

        def own_maps(weights: Tensor) -> Tensor:
            seen = weights @ numbers
            return ((weights @ sums) / seen.clamp_min(1)).sum(1) / (seen > 0).sum(1)

        over_cases = mean_interval(cases, draw)
        owned = counted & known.unsqueeze(1)
        left_out = owned.any(1) & together.isnan()
        counts = {
            "cases judged": int((~together.isnan()).sum()),
            "cases without a marked object": int((~known).sum()),
            "unlabelled cases": int((labels < 0).sum()),
            "labelled cases without a prototype": int(((labels >= 0) & ~counted.any(1)).sum()),
            "labelled cases whose figure is undefined": int(left_out.sum()),
            "prototypes judged": int(there.any(0).sum()),
            "prototypes whose map is flat in every case": int((owned.any(0) & ~(owned & ~flat).any(0)).sum()),
        }
        return Score(
            mean_of(cases),
            per_prototype=each,
            per_case=cases,
            over_cases=over_cases,
            counts=counts,
            extras={
                "own maps, mean over prototypes": mean_of(each),
                "own maps, interval over prototypes": mean_interval(each, draw),
                "own maps, interval over cases": interval_of(own_maps, len(own), draw) if there.any() else None,
                "object's share of the picture, mean": mean_of(area[known]),
            },
            notes=self.notes(counts),
        )

    def notes(self, counts: dict[str, int]) -> tuple[str, ...]:
        """Return what a reader must know."""
        cell = " x ".join(f"{side / cells:.3g}" for side, cells in zip(self._size, self._grid, strict=True) if cells)
        map_size, size = (" x ".join(map(str, sides)) for sides in (self._grid, self._size))
        made = [f"One cell of the {map_size} map is {cell} pixels of the {size} input: nothing finer is localised."]
        made.append("The value has no interval over prototypes, as it is of mean maps; that of own maps is an extra.")
        if "box" in self._kinds:
            made.append("Objects are boxes: background in their corners counts as object.")
        if not counts["cases judged"]:
            made.append("Nothing was judged: no case has a label, a marked object and a map that is not flat.")
        return tuple(made)


@metric(
    _about(
        name="content_heat",
        title="Content heat, mean inside",
        variant="mean heat over the pixels of the object (not its share of all heat)",
    )
)
@dataclass
class ContentHeat(ObjectHeat):
    """How hot the object is. A diffuse map does well here: read it with ``oirr`` or ``content_heat_share``."""

    figure = "content_heat"


@metric(
    _about(
        name="content_heat_share",
        title="Content heat, share inside",
        variant="heat inside the object divided by all heat",
        source="the form usual elsewhere; numbers from a loop of our own",
    )
)
@dataclass
class ContentHeatShare(ObjectHeat):
    """Which share of the heat is on the object; heat spread evenly gets the object's share of the picture."""

    figure = "content_heat_share"


@metric(
    _about(
        name="oirr",
        title="Outside-inside relevance ratio",
        variant="mean heat outside the object divided by mean heat inside; undefined, and left out, without heat "
        "inside or without a pixel outside",
        better="lower",
        unit="ratio",
    )
)
@dataclass
class OutsideInsideRatio(ObjectHeat):
    """How hot the background is beside the object; heat spread evenly gets 1."""

    figure = "oirr"

    def notes(self, counts: dict[str, int]) -> tuple[str, ...]:
        """Return what a reader must know."""
        lost = counts["labelled cases whose figure is undefined"]
        more = (
            f"{lost} cases are left out: a flat map, an object that fills the picture, or no heat on the object, "
            "which is as bad as can be and yet not in the mean."
        )
        return (*super().notes(counts), *((more,) if lost else ()))


@metric(
    _about(
        name="iou",
        title="Overlap with the object",
        variant="pixels with heat of 0.5 or more that are object, divided by pixels that are either (+ 1e-8)",
    )
)
@dataclass
class Overlap(ObjectHeat):
    """How well the hot region covers the object. One part of a large object covers little of it, if rightly so."""

    threshold: float = 0.5
    figure = "iou"


@metric(
    _about(
        name="pointing_game",
        title="Pointing game",
        variant="share of maps whose hottest pixel, the first in row-major order, is object",
        source="CSR: the peak lies in the box; no tolerance around it",
    )
)
@dataclass
class PointingGame(ObjectHeat):
    """Whether the peak is on the object; a peak anywhere gets the object's share of the picture."""

    figure = "pointing"
