"""Would another training find the same prototypes? Two models beside each other, as a metric."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from protolearn.audit.agreement import Matching, cosines, matched, set_overlaps, top_sets, varying
from protolearn.audit.bootstrap import mean_interval
from protolearn.audit.cases import CaseValues
from protolearn.audit.metric import About, Metric, Score, Seen, Setting, metric
from protolearn.audit.subject import ModelSubject, Subject


@metric(
    About(
        name="cross_run_stability",
        title="Agreement of two trainings",
        variant="one-to-one matching (Hungarian) of the prototypes of two models: mean cosine of the vectors where "
        "both have the same embedding (encoder and neck, to the last bit), else mean Jaccard index of the 10 cases in "
        "which each scores highest; the figure over cases stands in the details either way",
        source="ours",
        better="higher",
        unit="0-1 (cosine: -1 to 1)",
        needs=("twin",),
    )
)
@dataclass
class CrossRunStabilityMetric(Metric):
    """Whether a second training has a prototype like each of this one's."""

    n: int = 10

    def start(self, setting: Setting) -> None:
        """Get ready."""
        super().start(setting)
        self._cases = CaseValues()

    def update(self, seen: Seen) -> None:
        """Take in a batch; the second model is shown the same inputs."""
        twin = self.setting.twin
        assert twin is not None
        with twin.looking():
            other = twin.look(seen.inputs.to(twin.device), maps=False)
        self._cases.add(seen.part, seen.indices, one=seen.look.scores, other=other.scores)

    def result(self) -> Score:
        """Return the mean likeness of matched prototypes."""
        subject, twin = self.setting.subject, self.setting.twin
        assert twin is not None
        one, other = (self._cases.of("cases", name) for name in ("one", "other"))
        live, twins = (_rows(scores, each) for scores, each in ((one, subject), (other, twin)))
        by_cases, chance = self._by_cases(one[:, live], other[:, twins])
        extras: dict[str, Any] = {
            "compared by": "cases",
            "Jaccard index of the highest cases": by_cases.mean,
            "Jaccard index if the second model's cases were shuffled": chance,
        }
        found, rows, columns = by_cases, live, twins
        if same_embedding(subject, twin):
            rows, columns = (each.usable.cpu().nonzero().squeeze(1) for each in (subject, twin))
            assert subject.vectors is not None
            assert twin.vectors is not None
            ours, theirs = subject.vectors.cpu()[rows], twin.vectors.cpu()[columns]
            found = matched(cosines(ours, theirs))
            mixed = theirs[:, torch.randperm(theirs.shape[1], generator=self.setting.generator)]
            extras |= {
                "compared by": "vectors",
                "cosine of the vectors": found.mean,
                "cosine if the second model's coordinates were shuffled": matched(cosines(ours, mixed)).mean,
            }
        each = torch.full((len(subject.ids),), float("nan"), dtype=torch.float64)
        each[rows[found.one]] = found.values
        pairs = list(zip(rows[found.one].tolist(), columns[found.other].tolist(), strict=True))
        extras["matches"] = {str(subject.ids[a]): twin.ids[b] for a, b in pairs}
        extras["share of matches of one class"] = _same_class(subject, twin, pairs)
        return Score(
            found.mean,
            per_prototype=each,
            over_prototypes=mean_interval(each, self.setting.generator),
            counts={
                "prototypes matched": len(pairs),
                "prototypes without a partner": len(rows) - len(pairs),
                "prototypes of the second model without a partner": len(columns) - len(pairs),
                "prototypes whose score never changes": int(subject.usable.sum()) - len(live),
                "the same of the second model": int(twin.usable.sum()) - len(twins),
                "cases": len(one),
            },
            extras=extras,
            notes=self._notes(found, len(one), extras["compared by"]),
        )

    def _by_cases(self, one: Tensor, other: Tensor) -> tuple[Matching, float | None]:
        """Return the matching by highest cases, and its mean when the second model's cases are shuffled."""
        count = len(one)
        ours, theirs = top_sets(one, self.n), top_sets(other, self.n)
        mixed = torch.randperm(count, generator=self.setting.generator)[theirs]
        found = matched(set_overlaps(ours, theirs, count))
        return found, matched(set_overlaps(ours, mixed, count)).mean

    def _notes(self, found: Matching, cases: int, way: str) -> tuple[str, ...]:
        notes = ["Matching looks for the best partner, so it is above 0 by chance: compare with the shuffled figure."]
        if way == "cases":
            notes.append("The two models do not share an embedding: their vectors cannot be compared.")
        if cases <= 2 * self.n:
            notes.append(f"Of {cases} cases, sets of {self.n} overlap whatever the prototypes are.")
        if found.mean is None:
            notes = ["One of the models has no prototype that could be matched."]
        return tuple(notes)


def same_embedding(one: Subject, other: Subject) -> bool:
    """Return whether the vectors of two models lie in one space: the same encoder and neck, to the last bit."""
    if not isinstance(one, ModelSubject) or not isinstance(other, ModelSubject):
        return False
    if one.vectors is None or other.vectors is None or one.vectors.shape[1] != other.vectors.shape[1]:
        return False
    return one.model.fingerprint() == other.model.fingerprint()


def _rows(scores: Tensor, subject: Subject) -> Tensor:
    return (varying(scores) & subject.usable.cpu()).nonzero().squeeze(1)


def _same_class(one: Subject, other: Subject, pairs: list[tuple[int, int]]) -> float | None:
    """Return the share of matches whose prototypes share a class, of those that have one; by the classes' names."""
    names = {name: c for c, name in enumerate(other.classes)}
    common = [(c, names[name]) for c, name in enumerate(one.classes) if name in names]
    if not common or not pairs:
        return None
    at, to = (torch.tensor(side) for side in zip(*common, strict=True))
    a, b = (torch.tensor(side) for side in zip(*pairs, strict=True))
    ours, theirs = (one.ownership.cpu() > 0)[a][:, at], (other.ownership.cpu() > 0)[b][:, to]
    owned = ours.any(1) & theirs.any(1)
    return float((ours & theirs).any(1)[owned].double().mean()) if owned.any() else None


__all__ = ["CrossRunStabilityMetric", "same_embedding"]
