"""Deletion and insertion of the places that carry the evidence for the predicted class, as metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from protolearn.audit.blanking import SUBSTRATES
from protolearn.audit.bootstrap import mean_interval, mean_of
from protolearn.audit.deletion import ORDERS, deletion
from protolearn.audit.heat import evidence_map, pull, uneven
from protolearn.audit.metric import About, Metric, Score, Seen, Setting, metric
from protolearn.core.maps import upsample_maps
from protolearn.errors import UsageError

SALIENCY = (
    "saliency: sum over prototypes of the map, scaled to reach from 0 to 1, times what the prototype adds to the "
    "predicted class beyond what it adds to the mean class, enlarged (bicubic)"
)
SOURCE = (
    "RISE (Petsiuk et al., 2018) as ST-ProtoPNet's evaluation has it, numbers from its authors' code; saliency ours"
)


class PixelOrders(Metric):
    """What deletion and insertion have in common: four orders of pixels, on each substrate."""

    insert: ClassVar[bool]
    steps: int
    substrates: tuple[str, ...]
    most: int | None
    at_once: int | None

    def start(self, setting: Setting) -> None:
        """Draw the cases that are looked at, and a seed for each."""
        super().start(setting)
        if (
            self.steps < 1
            or (self.at_once is not None and self.at_once < 1)
            or (self.most is not None and self.most < 1)
        ):
            raise UsageError(
                f"steps, at_once and most must be at least 1, got {self.steps}, {self.at_once}, {self.most}"
            )
        unknown = [kind for kind in self.substrates if kind not in SUBSTRATES]
        if unknown or not self.substrates:
            raise UsageError(f"substrates must be some of {', '.join(SUBSTRATES)}, got {self.substrates}")
        count = setting.counts["cases"]
        self._wanted = torch.ones(count, dtype=torch.bool)
        if self.most is not None and self.most < count:
            self._wanted[torch.randperm(count, generator=setting.generator)[self.most :]] = False
        self._seeds = torch.randint(2**31, (count,), generator=setting.generator)
        shape = (len(self.substrates), count, len(ORDERS))
        self._areas = torch.full(shape, float("nan"), dtype=torch.float64)
        self._curves = [torch.zeros(0)] * len(self.substrates)
        self._flat, self._size, self._pictures = 0, (0, 0), True

    def update(self, seen: Seen) -> None:
        """Take in a batch: ask the model about its altered pictures."""
        maps, look = seen.look.maps, seen.look
        assert maps is not None
        if seen.inputs.ndim != 4:
            self._pictures = False
            return
        rows = torch.nonzero(self._wanted[seen.indices]).squeeze(1)
        targets = look.predicted
        coarse = evidence_map(maps, pull(look, targets))
        there = uneven(coarse).cpu()[rows]
        self._flat += int((~there).sum())
        rows = rows[there]
        if not len(rows):
            return
        self._size = (int(seen.inputs.shape[2]), int(seen.inputs.shape[3]))
        here, indices = rows.to(seen.inputs.device), seen.indices[rows]
        for k, kind in enumerate(self.substrates):
            found = deletion(
                self.setting.subject.scored,
                seen.inputs[here],
                upsample_maps(coarse[here], self._size),
                targets[here],
                steps=self.steps,
                kind=kind,
                insert=self.insert,
                seeds=self._seeds[indices].tolist(),
                grid=coarse.shape[1:],
                at_once=self.at_once,
            )
            self._areas[k, indices] = found.areas.cpu()
            total = found.curves.double().sum(0).cpu()
            self._curves[k] = total + self._curves[k] if len(self._curves[k]) else total

    def result(self) -> Score:
        """Return the mean area under the curve of the salient order, and those it must be read beside."""
        areas = self._areas[0, :, 0]
        judged = int((~areas.isnan()).sum())
        looked = int(self._wanted.sum())
        return Score(
            mean_of(areas),
            per_case=areas.clone(),
            over_cases=mean_interval(areas, self.setting.generator),
            counts={
                "cases judged": judged,
                "cases not drawn": len(areas) - looked,
                "cases with a flat map": self._flat,
            },
            extras={kind: self._beside(k, judged) for k, kind in enumerate(self.substrates)},
            notes=self._notes(judged, looked),
        )

    def _beside(self, k: int, judged: int) -> Mapping[str, Any]:
        """Return what one substrate gave."""
        areas, made = self._areas[k], dict[str, Any]()
        made |= {order: mean_of(areas[:, r]) for r, order in enumerate(ORDERS)}
        for r, order in list(enumerate(ORDERS))[:0:-1]:
            gain = areas[:, 0] - areas[:, r] if self.insert else areas[:, r] - areas[:, 0]
            name = f"{ORDERS[0]} less {order}" if self.insert else f"{order} less {ORDERS[0]}"
            made[name] = mean_of(gain)
            made[f"{name}, interval over cases"] = mean_interval(gain, self.setting.generator)
        curves = self._curves[k] / max(1, judged)
        made["mean curves"] = {order: curves[r].tolist() if judged else [] for r, order in enumerate(ORDERS)}
        return made

    def _notes(self, judged: int, looked: int) -> tuple[str, ...]:
        made = []
        if not self._pictures:
            made.append("The inputs are no pictures: nothing can be taken out of them pixel by pixel.")
        elif not judged:
            made.append("Nothing was judged: the evidence map is flat in every case.")
        else:
            pixels = self._size[0] * self._size[1]
            made.append(f"A step is {pixels / self.steps:.5g} of {pixels} pixels.")
        if looked < len(self._wanted):
            made.append(f"{looked} of {len(self._wanted)} cases were drawn at random.")
        if "zero" in self.substrates:
            made.append(
                "Zero is the mean colour only where the input is normalised, and makes edges that the model sees too: "
                "read it beside the blurred substrate."
            )
        made.append(
            "The areas depend on how sure the model is of whole pictures: compare models by the differences from the "
            "other orders. Random pixels leave noise in which any class is lost early; random cells make holes as "
            "large as the saliency does, and are the fairer comparison."
        )
        return tuple(made)


@metric(
    About(
        name="deletion",
        title="Deletion",
        variant="area under the probability of the predicted class while the most salient pixels are set to 0 (first "
        f"substrate), a 28th at a time; trapezoid, width 1; {SALIENCY}",
        source=SOURCE,
        better="lower",
        unit="0-1",
        needs=("maps",),
        costly=True,
    )
)
@dataclass
class DeletionMetric(PixelOrders):
    """How soon the prediction goes when the places that carry its evidence are taken out.

    Attributes
    ----------
    steps : int
        Points of the curve less one.
    substrates : tuple of str
        What pixels become; the value is of the first, the others are in the extras. Each costs as much again.
    most : int or None
        Cases that are looked at, drawn at random; all by default. Each costs four orders times ``steps`` passes.
    at_once : int or None
        Altered pictures in one pass; 64 by default, and few large ones on a processor, where that is faster.
    """

    steps: int = 28
    substrates: tuple[str, ...] = ("zero", "blur")
    most: int | None = None
    at_once: int | None = None
    insert = False


@metric(
    About(
        name="insertion",
        title="Insertion",
        variant="area under the probability of the predicted class while the most salient pixels are put into the "
        f"blurred picture (first substrate), a 28th at a time; trapezoid, width 1; {SALIENCY}",
        source=SOURCE,
        better="higher",
        unit="0-1",
        needs=("maps",),
        costly=True,
    )
)
@dataclass
class InsertionMetric(PixelOrders):
    """How soon the prediction comes when the places that carry its evidence go in first; settings as deletion's."""

    steps: int = 28
    substrates: tuple[str, ...] = ("blur", "zero")
    most: int | None = None
    at_once: int | None = None
    insert = True
