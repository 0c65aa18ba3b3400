"""What a prototype is nearest to in the training cases: whether another stands there too, and whose cases they are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from protolearn.audit.bootstrap import mean_interval, mean_of
from protolearn.audit.metric import About, Metric, Score, Seen, Setting, metric
from protolearn.audit.nearest import nearest_places
from protolearn.audit.redundancy import same_source
from protolearn.audit.subject import ModelSubject
from protolearn.core.top_cases import TopCases


@metric(
    About(
        name="shared_sources",
        title="Prototypes with one source",
        variant="share of usable prototypes whose most similar place in the training cases (or the audited ones where "
        "no training cases are given) is the most similar place of another too; the lower case wins a tie",
        source="ours, after ProtoPNet's projection",
        better="lower",
        unit="0-1",
        instead=("prototype_cosine",),
        passes=("train?",),
    )
)
@dataclass
class SharedSourcesMetric(Metric):
    """Whether two prototypes stand on one and the same patch."""

    def start(self, setting: Setting) -> None:
        """Get ready."""
        super().start(setting)
        self._top = TopCases(len(setting.subject.ids), 1)
        self._part = ""

    def update(self, seen: Seen) -> None:
        """Take in a batch."""
        self._part = seen.part
        values, places = nearest_places(seen.look)
        self._top.update(values, seen.indices, place=places)

    def result(self) -> Score:
        """Return the share of prototypes that are not alone at their place."""
        subject, top = self.setting.subject, self._top
        live = subject.usable.cpu() & top.found[:, 0]
        judged = live & ~top.constant
        rows = judged.nonzero().squeeze(1)
        at = torch.stack([top.cases[rows, 0], top.columns["place"][rows, 0]], 1)
        _, which, size = torch.unique(at, dim=0, return_inverse=True, return_counts=True)
        shared = torch.full((len(judged),), float("nan"), dtype=torch.float64)
        shared[rows] = (size[which] > 1).double() if len(rows) else shared[rows]
        groups: dict[int, list[int]] = {}
        for row, group in zip(rows.tolist(), which.tolist(), strict=True):
            groups.setdefault(group, []).append(subject.ids[row])
        together = [group for group in groups.values() if len(group) > 1]
        notes = () if len(rows) else ("No prototype is nearer to one case than to another.",)
        if self._part == "cases" and len(rows):
            notes = ("No training cases were given: the places are in the audited cases, which have fewer.",)
        return Score(
            mean_of(shared),
            per_prototype=shared,
            over_prototypes=mean_interval(shared, self.setting.generator),
            counts={
                "prototypes judged": len(rows),
                "prototypes as near to every case": int((live & top.constant).sum()),
                "places that several share": len(together),
                "prototypes too many": sum(map(len, together)) - len(together),
            },
            extras={"prototypes at one place": together, **self._recorded()},
            notes=notes,
        )

    def _recorded(self) -> dict[str, float | None]:
        """Return the share by the record of the projection, where a model was projected."""
        subject = self.setting.subject
        if not isinstance(subject, ModelSubject):
            return {}
        bank = subject.model.bank
        moved = sum(
            source is not None and source.moved and usable
            for source, usable in zip(bank.sources, bank.usable.tolist(), strict=True)
        )
        share = sum(map(len, same_source(bank))) / moved if moved else None
        return {"share by the record of the projection": share}


@metric(
    About(
        name="neighbour_purity",
        title="Purity of neighbours",
        variant="share of a prototype's own class among its 6 nearest training cases, one place a case; unlabelled "
        "cases left out",
        source="ProtoPNet (Chen et al., 2019), its pruning rule: fewer than 3 of the 6 = prune",
        better="higher",
        unit="0-1",
        needs=("train", "labels"),
        instead=("prototype_cosine", "evidence_correlation"),
        passes=("train",),
    )
)
@dataclass
class NeighbourPurityMetric(Metric):
    """Whether what is most like a prototype is of the prototype's class."""

    k: int = 6
    minimum: int = 3

    def start(self, setting: Setting) -> None:
        """Get ready."""
        super().start(setting)
        self._top = TopCases(len(setting.subject.ids), self.k)
        self._cases = 0

    def update(self, seen: Seen) -> None:
        """Take in a batch of training cases."""
        values, _ = nearest_places(seen.look)
        known = (seen.labels >= 0).unsqueeze(1)
        self._cases += int(known.sum())
        labels = seen.labels.unsqueeze(1).expand(values.shape)
        self._top.update(values.masked_fill(~known, float("-inf")), seen.indices, label=labels)

    def result(self) -> Score:
        """Return the mean share of own cases among the nearest."""
        subject, top = self.setting.subject, self._top
        ownership = subject.ownership.cpu()
        found = top.found
        labels = top.columns["label"].where(found, 0) if top.columns else torch.zeros_like(top.cases)
        own = ((ownership.gather(1, labels) > 0) & found).sum(1).double()
        some = found.any(1) & subject.usable.cpu() & ~top.constant
        owned = (ownership > 0).any(1)
        judged = some & owned
        share = torch.where(judged, own / found.sum(1).clamp_min(1), float("nan"))
        pruned = judged & (own < self.minimum)
        ids = subject.ids
        notes = []
        if not judged.any():
            notes.append(
                "No training case is labelled."
                if not self._cases
                else "No prototype that tells cases apart belongs to a class: see the share of the most frequent class "
                "among the neighbours."
            )
        elif self._cases < self.k:
            notes.append(f"Only {self._cases} training cases are labelled, fewer than the {self.k} nearest asked for.")
        return Score(
            mean_of(share),
            per_prototype=share,
            over_prototypes=mean_interval(share, self.setting.generator),
            counts={
                "prototypes judged": int(judged.sum()),
                "prototypes as near to every case": int((found.any(1) & subject.usable.cpu() & top.constant).sum()),
                "prototypes of no class": int((some & ~owned).sum()),
                f"prototypes with fewer than {self.minimum} neighbours of their class": int(pruned.sum()),
                "labelled training cases": self._cases,
            },
            extras={
                "share that would be pruned": mean_of(pruned[judged].double()),
                "prototypes that would be pruned": [ids[p] for p in pruned.nonzero().squeeze(1).tolist()],
                "share of the most frequent class among the neighbours": mean_of(self._mode(labels, found)[some]),
            },
            notes=tuple(notes),
        )

    def _mode(self, labels: Tensor, found: Tensor) -> Tensor:
        """Return ``(P,)`` share of the most frequent class among the neighbours, whoever owns the prototype."""
        counts = torch.zeros(len(labels), len(self.setting.subject.classes), dtype=torch.float64)
        counts.scatter_add_(1, labels, found.double())
        return counts.amax(1) / found.sum(1).clamp_min(1)


__all__ = ["NeighbourPurityMetric", "SharedSourcesMetric"]
