"""Whether the ledger adds up, and whether regions carry what the ledger says of them, as metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from protolearn.audit.blanking import SUBSTRATES, substrate
from protolearn.audit.bootstrap import interval_of, mean_of
from protolearn.audit.correlation import rank_correlation, weighted_correlation
from protolearn.audit.faithfulness import (
    additivity_gap,
    cell_boxes,
    leading,
    region_drops,
)
from protolearn.audit.heat import uneven
from protolearn.audit.metric import About, Metric, Score, Seen, Setting, metric
from protolearn.core.maps import peaks
from protolearn.errors import UsageError

CELL, AROUND, CHANCE = "cell of the peak", "cells around it too", "a cell at random"


@metric(
    About(
        name="prototype_faithfulness",
        title="Faithfulness of prototypes",
        variant="Pearson correlation, over each case's 3 largest contributions above 0, between a prototype's entry in "
        "the score of the predicted class and the fall of that score when the cell at the peak of its map is set to 0",
        source="ours: the predicted and the observed drop of one score",
        better="higher",
        unit="-1 to 1",
        needs=("maps",),
        costly=True,
    )
)
@dataclass
class PrototypeFaithfulness(Metric):
    """Whether the score falls by what the ledger promises when the region that a prototype points at is covered.

    The promise is the prototype's entry itself: without it the score would be lower by exactly that. It need not be
    kept: the prototype may match elsewhere nearly as well, other prototypes may look at the same place, and the cell is
    not all that the encoder saw.

    Attributes
    ----------
    top : int
        Prototypes a case, each covered alone.
    reach : int
        Cells further in every direction, for the larger region.
    kind : str
        What a covered place becomes: "zero" or "blur".
    at_once : int or None
        Covered pictures in one pass; 64 by default, and few large ones on a processor, where that is faster.
    """

    top: int = 3
    reach: int = 1
    kind: str = "zero"
    at_once: int | None = None

    def start(self, setting: Setting) -> None:
        """Get ready."""
        super().start(setting)
        few = self.at_once is not None and self.at_once < 1
        if self.top < 1 or self.reach < 0 or few or self.kind not in SUBSTRATES:
            raise UsageError(
                f"top and at_once must be at least 1, reach at least 0 and kind one of {', '.join(SUBSTRATES)}, got "
                f"{self.top}, {self.at_once}, {self.reach} and {self.kind!r}"
            )
        count = setting.counts["cases"]
        self._chance = torch.rand(count, self.top, 2, generator=setting.generator, dtype=torch.float64)
        self._pairs: list[Tensor] = []
        self._drops: dict[str, list[Tensor]] = {name: [] for name in (CELL, AROUND, CHANCE)}
        self._promised: list[Tensor] = []
        self._grid, self._size, self._pictures = (0, 0), (0, 0), True

    def update(self, seen: Seen) -> None:
        """Take in a batch: cover the regions of its leading prototypes, one at a time."""
        look, maps = seen.look, seen.look.maps
        assert maps is not None
        if seen.inputs.ndim != 4:
            self._pictures = False
            return
        targets, subject = look.predicted, self.setting.subject
        entries = look.toward(targets)
        case, prototype = leading(entries, uneven(maps) & subject.usable.to(maps.device), self.top)
        self._grid = (int(maps.shape[2]), int(maps.shape[3]))
        self._size = (int(seen.inputs.shape[2]), int(seen.inputs.shape[3]))
        places = peaks(maps[case, prototype])
        # the how-manieth pair of its case each one is: its own random cell, whatever the batch
        which = torch.arange(len(case), device=case.device) - torch.searchsorted(case, case)
        drawn = self._chance[seen.indices[case.cpu()], which.cpu()].to(places.device)
        anywhere = (drawn * torch.tensor(self._grid, device=places.device)).long()
        blank = substrate(seen.inputs, self.kind)
        for name, cells, reach in ((CELL, places, 0), (AROUND, places, self.reach), (CHANCE, anywhere, 0)):
            boxes = cell_boxes(cells, self._grid, self._size, reach)
            found = region_drops(
                subject, seen.inputs, blank, look, targets, (case, prototype), boxes, at_once=self.at_once
            )
            self._drops[name].append(torch.stack([found.score, found.own]).double().cpu())
        self._pairs.append(torch.stack([seen.indices[case.cpu()], prototype.cpu()]))
        self._promised.append(entries[case, prototype].double().cpu())

    def result(self) -> Score:
        """Return the correlation of what was promised and what was seen, and what it must be read beside."""
        cases, prototypes = torch.cat(self._pairs, 1) if self._pairs else torch.zeros(2, 0, dtype=torch.int64)
        promised = torch.cat(self._promised) if self._promised else torch.zeros(0, dtype=torch.float64)
        drops = {
            name: torch.cat(each, 1) if each else torch.zeros(2, 0, dtype=torch.float64)
            for name, each in self._drops.items()
        }
        seen, draw = drops[CELL][0], self.setting.generator
        value = float(weighted_correlation(promised, seen, torch.ones(1, len(seen)))) if len(seen) > 2 else float("nan")
        defined = value == value

        def over(groups: Tensor) -> tuple[float, float] | None:
            names, rows = groups.unique(return_inverse=True)
            if not defined:
                return None
            return interval_of(lambda weights: weighted_correlation(promised, seen, weights[:, rows]), len(names), draw)

        return Score(
            value if defined else None,
            over_prototypes=over(prototypes),
            over_cases=over(cases),
            counts={
                "pairs of a case and a prototype": len(seen),
                "cases judged": len(cases.unique()),
                "cases without a contribution above 0 that points somewhere": self.setting.counts["cases"]
                - len(cases.unique()),
                "prototypes judged": len(prototypes.unique()),
            },
            extras={
                "mean promised drop": mean_of(promised),
                **{name: self._beside(cases, promised, *drops[name]) for name in (CELL, AROUND, CHANCE)},
            },
            notes=self._notes(defined),
        )

    def _beside(self, cases: Tensor, promised: Tensor, seen: Tensor, own: Tensor) -> Mapping[str, Any]:
        """Return what covering one kind of region did."""
        found = float(weighted_correlation(promised, seen, torch.ones(1, len(seen)))) if len(seen) > 2 else float("nan")
        gap = (promised - seen).abs()
        names, rows = cases.unique(return_inverse=True)

        def mean_gap(weights: Tensor) -> Tensor:  # the pairs of a case come and go together
            return weights[:, rows] @ gap / weights[:, rows].sum(1)

        return {
            "Pearson correlation": found if found == found else None,
            "Spearman correlation": mean_of(rank_correlation(promised.unsqueeze(0), seen.unsqueeze(0))),
            "mean absolute gap": mean_of(gap),
            "mean absolute gap, interval over cases": interval_of(mean_gap, len(names), self.setting.generator),
            "mean observed drop": mean_of(seen),
            "share of the prototype's own entry that goes": float(own.sum() / promised.sum()) if len(own) else None,
        }

    def _notes(self, defined: bool) -> tuple[str, ...]:
        made = []
        if not self._pictures:
            made.append("The inputs are no pictures: no region of them can be covered.")
        elif not defined:
            made.append("There is no correlation to state: fewer than three pairs, or no difference between them.")
        if self._grid[0]:
            rows, columns = self._grid
            cell = f"{self._size[0] / rows:.3g} x {self._size[1] / columns:.3g}"
            made.append(
                f"One cell of the {rows} x {columns} map is {cell} pixels; the encoder may see further than that."
            )
        made.append("A correlation says nothing of size: read the gap, and the drop of a cell at random, beside it.")
        return tuple(made)


@metric(
    About(
        name="additivity",
        title="Additivity of the ledger",
        variant="largest difference, over cases and classes, between the score and offset plus the sum of the ledger",
        source="ours; 0 but for rounding where the ledger is exact",
        better="lower",
        unit="score",
    )
)
@dataclass
class Additivity(Metric):
    """Whether what the prototypes are said to add is all that the score is made of."""

    def start(self, setting: Setting) -> None:
        """Get ready."""
        super().start(setting)
        self._gaps = torch.full((setting.counts["cases"],), float("nan"), dtype=torch.float64)
        self._highest = 0.0

    def update(self, seen: Seen) -> None:
        """Take in a batch."""
        self._gaps[seen.indices] = additivity_gap(seen.look, self.setting.subject.offset).cpu()
        self._highest = max(self._highest, float(seen.look.logits.abs().max()))

    def result(self) -> Score:
        """Return the largest gap; a gap that is NaN is not passed over."""
        known = self._gaps[~self._gaps.isnan()]
        damaged = len(self._gaps) - len(known)
        largest = float(known.max()) if len(known) else None
        notes = ["It is a maximum: no interval is stated."]
        if damaged:
            notes.append(f"In {damaged} cases score or ledger is not a number.")
        return Score(
            None if damaged else largest,
            per_case=self._gaps.clone(),
            counts={"cases judged": len(known), "cases that are not a number": damaged},
            extras={
                "mean gap": mean_of(known),
                "largest gap beside the largest score": largest / self._highest
                if largest is not None and self._highest > 0
                else None,
            },
            notes=tuple(notes),
        )
