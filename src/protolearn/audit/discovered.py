"""What a search for new classes found: clusters with their cases, how sure each is, and how many classes there are."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from protolearn.audit.discovery import DiscoveryScore, Variant, discovery_score
from protolearn.audit.result import figure
from protolearn.errors import UsageError, nearest_names


@dataclass(frozen=True)
class ClassNumber:
    """An estimated number of classes.

    Attributes
    ----------
    count : int
        Classes in all, old and new.
    criterion : str
        What was made largest.
    curve : mapping of int to float
        Its value for each number that was tried, rising.
    low, high : int
        Where was searched.
    notes : tuple of str
        What a reader must know.
    """

    count: int
    criterion: str
    curve: Mapping[int, float]
    low: int
    high: int
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {**asdict(self), "curve": {str(k): v for k, v in self.curve.items()}, "notes": list(self.notes)}


@dataclass(frozen=True)
class Cluster:
    """Unlabelled cases that belong together.

    Attributes
    ----------
    index : int
        Its number, as in ``Discovery.rows``.
    name : str
        Of the old class it stands for, or "new 1", "new 2" ...
    label : int or None
        Index of the old class; None for a new one.
    size, labelled : int
        How many unlabelled and labelled cases it has.
    confidence : float or None
        Mean over its unlabelled cases.
    stability : float or None
        How surely other draws find it again, from 0 to 1; None where that was not tried.
    typical, doubtful : tuple of str
        Ids of its unlabelled cases nearest to its centre, nearest first; and of those least clearly its own.
    nearest : str or None
        Of a new cluster: the old class whose centre is most alike.
    likeness : float or None
        The cosine of both centres.
    beside : tuple of str
        Of a new cluster: ids of the labelled cases, of whatever class, nearest to its centre, nearest first.
    """

    index: int
    name: str
    label: int | None
    size: int
    labelled: int
    confidence: float | None
    stability: float | None
    typical: tuple[str, ...]
    doubtful: tuple[str, ...]
    nearest: str | None = None
    likeness: float | None = None
    beside: tuple[str, ...] = ()

    @property
    def new(self) -> bool:
        """Whether it stands for no class that was known."""
        return self.label is None


@dataclass(frozen=True, eq=False)
class Discovery:
    """Clusters of unlabelled cases beside known classes.

    Attributes
    ----------
    facts : mapping
        Data, method, features, counts, seed: plain JSON types.
    classes : tuple of str
        Names of the old classes.
    clusters : tuple of Cluster
        Old classes first.
    cases : tuple of str
        Ids of the unlabelled cases.
    rows, confidence : Tensor
        ``(N,)``: the cluster of each, and how clear that is, from 0 to 1.
    centres : Tensor
        ``(P, D)``, in the features that were clustered.
    number : ClassNumber or None
        How many classes were estimated; None where the number was given.
    notes : tuple of str
        What a reader must know.
    model : PrototypeModel or None
        What was trained on the features, where the method trains something.
    """

    facts: Mapping[str, Any]
    classes: tuple[str, ...]
    clusters: tuple[Cluster, ...]
    cases: tuple[str, ...]
    rows: Tensor
    confidence: Tensor
    centres: Tensor
    number: ClassNumber | None = None
    notes: tuple[str, ...] = ()
    model: Any = field(default=None, repr=False)

    def __getitem__(self, name: str | int) -> Cluster:
        """Return a cluster by name or number.

        Raises
        ------
        UsageError
            If there is none; the nearest names are suggested.
        """
        for each in self.clusters:
            if name in (each.name, each.index):
                return each
        raise UsageError(f"no cluster is called {name!r}: {nearest_names(str(name), [c.name for c in self.clusters])}")

    @property
    def new(self) -> tuple[Cluster, ...]:
        """The clusters that stand for no known class and have cases, largest first."""
        found = [each for each in self.clusters if each.new and each.size]
        return tuple(sorted(found, key=lambda each: -each.size))

    def members(self, cluster: str | int) -> tuple[str, ...]:
        """Return the ids of the unlabelled cases of a cluster, clearest first."""
        index = self[cluster].index
        places = (self.rows == index).nonzero().squeeze(1)
        order = places[self.confidence[places].argsort(descending=True, stable=True)]
        return tuple(self.cases[i] for i in order.tolist())

    def score(
        self, labels: Sequence[int] | np.ndarray, names: Sequence[str], *, variant: Variant = "v2"
    ) -> DiscoveryScore:
        """Return how well the clusters find the true classes of the unlabelled cases, which the search never saw.

        Parameters
        ----------
        labels : sequence of int
            Of the cases, in the order of ``cases``; -1 = not counted.
        names : sequence of str
            What the labels are called; classes named as an old one are old.
        variant : {"v2", "v1", "balanced"}
            Which accuracy, see :func:`~protolearn.audit.discovery.discovery_score`.
        """
        truth = np.asarray(labels, dtype=np.int64)
        old = [k for k, name in enumerate(map(str, names)) if name in self.classes]
        return discovery_score(self.rows, truth, old, variant=variant)

    def table_rows(self) -> list[dict[str, Any]]:
        """Return one flat row a case: its cluster and how clear that is; for a CSV or a data frame."""
        names = {each.index: each for each in self.clusters}
        return [
            {"case": case, "cluster": names[row].name, "new": names[row].new, "confidence": round(sure, 6)}
            for case, row, sure in zip(self.cases, self.rows.tolist(), self.confidence.tolist(), strict=True)
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the features as plain JSON types."""
        return {
            "facts": dict(self.facts),
            "classes": list(self.classes),
            "number": None if self.number is None else self.number.to_dict(),
            "clusters": [{**asdict(each), "new": each.new} for each in self.clusters],
            "notes": list(self.notes),
            "cases": self.table_rows(),
        }

    def to_json(self) -> str:
        """Return one JSON document."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n"

    def table(self) -> str:
        """Return the clusters as a plain text table."""
        head = (
            f"{len(self.cases)} unlabelled cases of {self.facts.get('data')}: {len(self.new)} new clusters beside "
            f"{len(self.classes)} known classes"
        )
        lines = [head]
        if self.number is not None:
            lines.append(f"number of classes estimated ({self.number.criterion}): {self.number.count}")
        width = max([len(each.name) for each in self.clusters] + [7])
        lines += ["", f"{'cluster':<{width}}  {'cases':>6}  {'clear':>6}  {'stable':>6}  nearest known class"]
        for each in [*self.new, *(c for c in self.clusters if not c.new or not c.size)]:
            known = "" if each.nearest is None else f"{each.nearest} ({figure(each.likeness)})"
            sure, stable = figure(each.confidence), figure(each.stability)
            lines.append(f"{each.name:<{width}}  {each.size:>6}  {sure:>6}  {stable:>6}  {known}")
        return "\n".join(line.rstrip() for line in [*lines, *([""] if self.notes else []), *self.notes])


def finite(value: float) -> float | None:
    """Return a number, None where it is none."""
    return float(value) if math.isfinite(value) else None
