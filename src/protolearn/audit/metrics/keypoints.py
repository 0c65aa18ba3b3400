"""Agreement of prototypes with marked key points, as metrics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from torch import Tensor

from protolearn.audit.bootstrap import interval_of
from protolearn.audit.keypoints import assigned, table_ari, table_nmi, values_at
from protolearn.audit.metric import About, Metric, Score, Seen, Setting, metric
from protolearn.audit.pairs import Pairs
from protolearn.core.matching import chunk_rows
from protolearn.errors import UsageError, look_up

SOURCE = "PDiscoFormer (Aniraj et al., ECCV 2024); computed by scikit-learn"
FORM = (
    "every visible key point goes to the prototype whose bilinear map is highest in its pixel, at 224 pixels; {} of "
    "that division with the one by part; prototypes of classes: within each class, among its own, averaged by key "
    "points"
)
AMONG = {"auto": None, "all": False, "own": True}
FIGURES: dict[str, tuple[Callable[..., float], Callable[[Tensor, Tensor], Tensor], float]] = {
    "nmi": (normalized_mutual_info_score, table_nmi, 0.0),
    "ari": (adjusted_rand_score, table_ari, -1.0),
}
"""Each figure from labels, the same from counts for many draws at once, and its lowest value."""
SHUFFLES = 20
"""Random divisions behind the figure of chance."""


@dataclass(frozen=True, eq=False)
class _Division:
    """How key points were divided: for each its case, group (class, or 0 for all), label (prototype) and part."""

    case: Tensor
    group: Tensor
    label: Tensor
    part: Tensor

    def judged(self) -> _Division:
        """Return the key points of groups in which two parts or more can be seen."""
        both = torch.stack([self.group, self.part], 1).unique(dim=0)
        groups, parts = both[:, 0].unique(return_counts=True)
        kept = torch.isin(self.group, groups[parts > 1])
        return _Division(self.case[kept], self.group[kept], self.label[kept], self.part[kept])

    def mean(self, agreement: Callable[..., float]) -> float:
        """Return the agreement within groups, each counting by its key points."""
        total = 0.0
        for group in self.group.unique():
            inside = self.group == group
            total += float(agreement(self.part[inside].numpy(), self.label[inside].numpy())) * int(inside.sum())
        return total / len(self.group)

    def dealt(self, generator: torch.Generator) -> Tensor:
        """Return ``(M,)`` int64: for each key point another of its group, all of them once, at random."""
        order = self.group.argsort(stable=True)
        drawn = torch.rand(len(order), generator=generator).argsort()
        other = torch.empty_like(order)
        other[order] = drawn[self.group[drawn].argsort(stable=True)]
        return other


@dataclass
class KeypointAgreement(Metric):
    """What both figures have in common: the division of key points among prototypes."""

    among: str = "auto"
    size: int = 224
    figure: ClassVar[str]

    def start(self, setting: Setting) -> None:
        """Get ready."""
        super().start(setting)
        own = look_up("choice of prototypes", self.among, AMONG)
        subject = setting.subject
        owned = bool(((subject.ownership > 0).any(1) & subject.usable).any())
        if own and not owned:
            raise UsageError('among="own" needs prototypes that belong to classes; these are shared: take "all"')
        self._own = owned if own is None else own
        self._rows: list[Tensor] = []
        self._cases = self._unassigned = 0
        self._grid: tuple[int, int] = (0, 0)
        self._visible = torch.zeros(len(setting.parts), dtype=torch.bool)

    def update(self, seen: Seen) -> None:
        """Take in a batch."""
        assert seen.look.maps is not None
        self._grid = (int(seen.look.maps.shape[2]), int(seen.look.maps.shape[3]))
        subject, visible = self.setting.subject, seen.marks.visible
        if self._own:
            among, group = subject.of_class(seen.labels), seen.labels
        else:
            among, group = subject.usable.expand(len(seen.labels), -1), torch.zeros_like(seen.labels)
        label = assigned(values_at(seen.look.maps, seen.marks.points, size=self.size), among)
        case, part = (visible & (label >= 0)).nonzero(as_tuple=True)
        self._rows.append(torch.stack([case + self._cases, group[case], label[case, part], part], 1).cpu())
        self._cases += len(visible)
        self._unassigned += int((visible & (label < 0)).sum())
        self._visible |= visible.any(0).cpu()

    def result(self) -> Score:
        """Return the agreement."""
        every = _Division(*torch.cat(self._rows).T)
        found, draw = every.judged(), self.setting.generator
        nobody = len(self.setting.subject.ids)
        counts = {
            "key points": len(found.case),
            "prototypes that take a key point": len(found.label[found.label < nobody].unique()),
            "key points where no prototype stands out": int((found.label == nobody).sum()),
            "key points in groups of one visible part": len(every.case) - len(found.case),
            "key points without a prototype to go to": self._unassigned,
            "parts never visible": int((~self._visible).sum()),
        } | ({"classes judged": len(found.group.unique())} if self._own else {})
        if not len(found.case):
            nothing = "No two parts can be seen where prototypes could tell them apart."
            return Score(None, counts=counts, notes=(nothing,))
        agreement, of_table, lowest = FIGURES[self.figure]
        rows, place = torch.stack([found.group, found.label], 1).unique(dim=0, return_inverse=True)
        group = rows[:, 0].unique(return_inverse=True)[1]
        pairs = Pairs(found.case, place, self._cases, len(rows))
        parts = torch.nn.functional.one_hot(found.part, len(self.setting.parts)).bool()
        table = pairs.total(parts)

        def over(weights: Tensor) -> Tensor:
            """Count the key points of each prototype as often as it is drawn; those of none of them once."""
            copies = torch.cat([weights, torch.ones(len(weights), 1, dtype=torch.float64)], 1)[:, rows[:, 1]]
            drawn = copies.unsqueeze(2).split(chunk_rows(8 * table.numel()))
            return torch.cat([of_table(table * part, group) for part in drawn])

        dealt = [replace(pairs, prototype=place[found.dealt(draw)]).total(parts) for _ in range(SHUFFLES)]
        chance = of_table(torch.stack(dealt), group)
        usable = int(self.setting.subject.usable.sum())
        value = found.mean(agreement)
        return Score(
            value,
            over_prototypes=interval_of(over, nobody, draw, around=value, within=(lowest, 1.0)) if usable > 1 else None,
            over_cases=pairs.interval(
                lambda drawn: of_table(drawn, group), draw, parts, around=value, within=(lowest, 1.0)
            ),
            counts=counts,
            extras={
                "key points dealt at random": float(chance.mean()),
                "commonest part": self._commonest(table, rows, nobody),
            },
            notes=self._notes(),
        )

    def _commonest(self, table: Tensor, rows: Tensor, nobody: int) -> dict[str, str]:
        """Return the part that most of a prototype's key points are of, by prototype id."""
        ids, names = self.setting.subject.ids, self.setting.parts
        sums = torch.zeros(nobody + 1, table.shape[1], dtype=torch.float64).index_add_(0, rows[:, 1], table)
        taken = (sums[:nobody] > 0).any(1).nonzero().squeeze(1).tolist()
        return {str(ids[p]): names[int(sums[p].argmax())] for p in taken}

    def _notes(self) -> tuple[str, ...]:
        form = (
            "Each class is compared apart, among its own prototypes: prototypes of two classes have no common name."
            if self._own
            else "All prototypes compete for every key point, whatever its case's class."
        )
        rows, columns = self._grid
        across = f"{self.size / columns:.1f} x {self.size / rows:.1f}" if rows else "unknown"
        return (
            form,
            f"A cell of the {rows} x {columns} map is {across} pixels of {self.size}.",
            "Many prototypes or few key points raise the figure by chance: compare with key points dealt at random.",
            "The intervals are centred on the figure, since what is drawn twice agrees with itself.",
            "The one over prototypes counts each one's key points as often as it is drawn.",
        )


@metric(
    About(
        name="keypoint_nmi",
        title="Key points: mutual information",
        variant=FORM.format("normalised mutual information (arithmetic mean of the entropies)"),
        source=SOURCE,
        better="higher",
        unit="0-1",
        needs=("maps", "points"),
        instead=("neighbour_purity",),
    )
)
@dataclass
class KeypointNMI(KeypointAgreement):
    """Whether knowing a key point's prototype tells its part, and the other way round."""

    figure = "nmi"


@metric(
    About(
        name="keypoint_ari",
        title="Key points: adjusted Rand index",
        variant=FORM.format("Rand index, adjusted for chance (0 = chance),"),
        source=SOURCE,
        better="higher",
        unit="at most 1",
        needs=("maps", "points"),
        instead=("neighbour_purity",),
    )
)
@dataclass
class KeypointARI(KeypointAgreement):
    """Whether two key points share a prototype when, and only when, they are of one part."""

    figure = "ari"
