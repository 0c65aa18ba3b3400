"""Purity of prototypes on key points, as metrics."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from protolearn.audit.bootstrap import mean_interval, mean_of
from protolearn.audit.metric import About, Metric, Score, Seen, Setting, metric
from protolearn.audit.pairs import Pairs
from protolearn.audit.purity import Purity, cell_patches, in_patches, merged, merged_sides, peak_cells, purity_of
from protolearn.core.top_cases import TopCases
from protolearn.errors import UsageError

SOURCE = "PIP-Net (Nauta et al., CVPR 2023), numbers from its authors' code"
NOTHING = "No prototype has a case with a visible part to be judged by: see counts."
PATCH = "a patch is a square of 32 pixels of 224 at the best cell; left and right are one part"


@dataclass
class PatchPurity(Metric):
    """What both forms of purity have in common: everything but which cases a prototype is judged by."""

    weight: float = 1e-5
    side: int = 32
    size: int = 224

    def start(self, setting: Setting) -> None:
        """Get ready."""
        super().start(setting)
        self._cases = 0
        self._points: list[Tensor] = []
        self._visible: list[Tensor] = []
        self._grid: tuple[int, int] = (0, 0)
        self._fires = torch.zeros(len(setting.subject.ids), dtype=torch.bool)
        self._range = (float("inf"), float("-inf"))
        self._part = ""

    @abstractmethod
    def keep(self, scores: Tensor, eligible: Tensor, case: Tensor, cell: Tensor) -> None:
        """Keep what may be judged by of a batch: scores, eligible and cell ``(B, P)``, case ``(B,)``."""

    @abstractmethod
    def kept(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return what prototypes are judged by: case, prototype and cell, ``(M,)`` each."""

    @abstractmethod
    def more_notes(self, kept: Tensor) -> tuple[str, ...]:
        """Return what else a reader must know, from how many cases each prototype is judged by, ``(P,)``."""

    def counted(self) -> Tensor:
        """Return ``(P,)`` bool: prototypes in use that give some class a weight; all in use where none are known."""
        subject = self.setting.subject
        if subject.weights is None or not subject.weights.numel():
            return subject.usable
        return subject.usable & (subject.weights.amax(0) > self.weight)

    def update(self, seen: Seen) -> None:
        """Take in a batch."""
        maps, scores = seen.look.maps, seen.look.scores
        assert maps is not None
        grid = (int(maps.shape[2]), int(maps.shape[3]))
        if self._grid not in ((0, 0), grid):
            raise UsageError(f"purity needs maps of one size, got {self._grid} and {grid}: give inputs of one size")
        self._grid, self._part = grid, seen.part
        cell, points_somewhere = peak_cells(maps)
        eligible = points_somewhere & self.counted()
        self._fires |= eligible.any(0).cpu()
        if len(real := scores[eligible & scores.isfinite()]):
            self._range = min(self._range[0], float(real.min())), max(self._range[1], float(real.max()))
        self.keep(scores, eligible, self._cases + torch.arange(len(scores), device=scores.device), cell)
        self._cases += len(scores)
        self._points.append(seen.marks.points_at(self.size).cpu())
        self._visible.append(seen.marks.visible.cpu())

    def result(self) -> Score:
        """Return the mean purity of prototypes."""
        case, prototype, cell = (found.cpu() for found in self.kept())
        names, group = merged_sides(self.setting.parts)
        points, visible = torch.cat(self._points)[case], torch.cat(self._visible)[case]
        seen = merged(visible, group, len(names))

        def hits(cell: Tensor) -> Tensor:
            patches = cell_patches(cell, self._grid, size=self.size, side=self.side)
            return merged(in_patches(points, visible, patches), group, len(names))

        used, place = case.unique(return_inverse=True)
        pairs = Pairs(place, prototype, len(used), len(self.setting.subject.ids))
        held, draw = hits(cell), self.setting.generator
        found = purity_of(pairs.total(held), pairs.total(seen))
        elsewhere = hits(torch.randint(max(1, self._grid[0] * self._grid[1]), cell.shape, generator=draw))
        chance = purity_of(pairs.total(elsewhere), pairs.total(seen))
        value = mean_of(found.purest)

        part = found.rates.argmax(1)[prototype].unsqueeze(1)

        def score(hit: Tensor, seen: Tensor) -> Tensor:
            drawn = purity_of(hit, seen)  # of one part each
            return drawn.purest.nan_to_num(0.0).sum(1) / drawn.judged.sum(1)

        shown = pairs.total(pairs.each()).squeeze(1)
        return Score(
            value,
            per_prototype=found.purest,
            over_prototypes=mean_interval(found.purest, draw),
            over_cases=pairs.interval(score, draw, held.gather(1, part), seen.gather(1, part))
            if value is not None
            else None,
            counts=self._counts(found, shown, seen),
            extras={
                "std over prototypes": _std(found.purest),
                "purity of the most hit part": mean_of(found.most_hit),
                "std of the purity of the most hit part": _std(found.most_hit),
                "purity of patches at random places": mean_of(chance.purest),
                "purest part": self._parts(found, names),
            },
            notes=(*(() if value is not None else (NOTHING,)), *self._notes(len(names)), *self.more_notes(shown)),
        )

    def _counts(self, found: Purity, shown: Tensor, seen: Tensor) -> dict[str, int]:
        usable, counted = self.setting.subject.usable.cpu(), self.counted().cpu()
        return {
            "prototypes judged": int(found.judged.sum()),
            "prototypes with a purity above 0.5": found.pure,
            "prototypes without a weight": int((usable & ~counted).sum()),
            "prototypes that never fire": int((counted & ~self._fires).sum()),
            "prototypes without a case to judge by": int((counted & self._fires & (shown == 0)).sum()),
            "prototypes whose cases show no part": int(((shown > 0) & ~found.judged).sum()),
            "parts never visible": int((~seen.any(0)).sum()),
        }

    def _parts(self, found: Purity, names: tuple[str, ...]) -> dict[str, str]:
        """Return the purest part of each judged prototype that hits one, by prototype id."""
        ids = self.setting.subject.ids
        hit = found.judged & (found.purest > 0)
        return {str(ids[p]): names[int(found.rates[p].argmax())] for p in hit.nonzero().squeeze(1).tolist()}

    def _notes(self, groups: int) -> tuple[str, ...]:
        rows, columns = self._grid
        across = " x ".join(f"{self.side * count / self.size:.2f}" for count in self._grid)
        notes = [
            f"A patch is {self.side} x {self.side} pixels of {self.size}: {across} cells of a {rows} x {columns} map.",
            "A larger patch looks purer: compare with patches at random places.",
            "The interval over cases holds fixed which cases each prototype is judged by and which part is its purest.",
        ]
        if self._part == "cases":
            notes.append("Judged by the audited cases: no training cases with key points were given.")
        if groups < len(self.setting.parts):
            notes.append(f"{len(self.setting.parts)} key points count as {groups} parts: left and right are one.")
        if self.setting.subject.weights is None:
            notes.append("The head has no weights: every prototype in use is judged.")
        return tuple(notes)


@metric(
    About(
        name="purity",
        title="Purity",
        variant="mean over prototypes of the share of its 10 best-scored training cases whose patch holds one same key "
        f"point, of those where it is visible; {PATCH}; prototypes with a class weight above 1e-5",
        source=SOURCE,
        better="higher",
        unit="0-1",
        needs=("maps", "points"),
        instead=("neighbour_purity",),
        passes=("train?",),
    )
)
@dataclass
class PurityMetric(PatchPurity):
    """Whether the pictures that show a prototype best all show the same part there."""

    k: int = 10

    def start(self, setting: Setting) -> None:
        """Get ready."""
        super().start(setting)
        self._top = TopCases(len(setting.subject.ids), self.k)

    def keep(self, scores: Tensor, eligible: Tensor, case: Tensor, cell: Tensor) -> None:
        """Keep the best cases of each prototype."""
        self._top.update(scores.masked_fill(~eligible, float("-inf")), case, cell=cell)

    def kept(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the best cases of each prototype."""
        filled = self._top.found.T  # the best of every prototype first
        return self._top.cases.T[filled], filled.nonzero(as_tuple=True)[1], self._top.columns["cell"].T[filled]

    def more_notes(self, kept: Tensor) -> tuple[str, ...]:
        """Say how many prototypes are judged by fewer cases."""
        few = int(((kept > 0) & (kept < self.k)).sum())
        return (f"{few} prototypes are judged by fewer than {self.k} cases.",) if few else ()


@metric(
    About(
        name="purity_all",
        title="Purity, all cases that show it",
        variant="mean over prototypes of the share of the training cases with a score above 0.5 whose patch holds one "
        f"same key point, of those where it is visible; {PATCH}; prototypes with a class weight above 1e-5",
        source=SOURCE,
        better="higher",
        unit="0-1",
        needs=("maps", "points"),
        instead=("neighbour_purity",),
        passes=("train?",),
    )
)
@dataclass
class PurityAllMetric(PatchPurity):
    """Whether every picture in which a prototype is present shows the same part there."""

    threshold: float = 0.5

    def start(self, setting: Setting) -> None:
        """Get ready."""
        super().start(setting)
        self._found: list[tuple[Tensor, Tensor, Tensor]] = []

    def keep(self, scores: Tensor, eligible: Tensor, case: Tensor, cell: Tensor) -> None:
        """Keep the cases with a score above the threshold."""
        row, prototype = (eligible & (scores > self.threshold)).nonzero(as_tuple=True)
        self._found.append((case[row].cpu(), prototype.cpu(), cell[row, prototype].cpu()))

    def kept(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return those cases."""
        case, prototype, cell = map(torch.cat, zip(*self._found, strict=True))
        return case, prototype, cell

    def more_notes(self, kept: Tensor) -> tuple[str, ...]:
        """Say what the threshold means for these scores."""
        low, high = self._range
        if low > high or (low >= 0 and high <= 1):  # nothing was seen, or all is as it should be
            return ()
        return (f"A threshold of {self.threshold:g} presumes scores from 0 to 1; here: {low:.3g} to {high:.3g}.",)


def _std(values: Tensor) -> float | None:
    """Return the population standard deviation of what was judged."""
    kept = values[~values.isnan()]
    return float(kept.std(correction=0)) if len(kept) else None
