"""What a search for similar cases finds; :mod:`~protolearn.tasks.retrieve` makes it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from protolearn.explain.passes import plain_json
from protolearn.structures import Box, Source

By = Literal["evidence", "embedding", "prototype"]


@dataclass(frozen=True)
class SimilarCase:
    """A training case that was found.

    Attributes
    ----------
    case : str
        Its id.
    label : str or None
        Its class; None = unlabelled.
    value : float
        How near, in the measure of the search.
    region : Box or None
        Where in the case, in pixels of its picture, when a prototype was compared with it.
    """

    case: str
    label: str | None
    value: float
    region: Box | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {**vars(self), "region": None if self.region is None else list(self.region)}


@dataclass(frozen=True)
class Query:
    """A case that was asked about, and what was found.

    Attributes
    ----------
    case : str
        Its id.
    predicted : str or None
        Its predicted class; None where the model says that it does not know.
    probability : float
        Of the class with the highest score.
    label : str or None
        Its own class, where it is known.
    prototype : int or None
        The one that added most to the predicted class, when the search goes by it.
    found : tuple of SimilarCase
        Nearest first.
    """

    case: str
    predicted: str | None
    probability: float
    label: str | None
    prototype: int | None
    found: tuple[SimilarCase, ...]

    @property
    def agreement(self) -> float | None:
        """Share of the labelled cases found that carry the predicted class; None where none is, or no class is."""
        return _share(self.found, self.predicted)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {**vars(self), "agreement": self.agreement, "found": [one.to_dict() for one in self.found]}


@dataclass(frozen=True)
class SimilarCases:
    """What was found for several cases.

    Attributes
    ----------
    by, measure : str
        What was compared, and how.
    search : str
        ``exact`` or ``faiss``; the answer is the same.
    stored : int
        Training cases searched.
    queries : tuple of Query
        In the order of the cases.
    """

    by: By
    measure: str
    search: str
    stored: int
    queries: tuple[Query, ...]

    @property
    def agreement_when_right(self) -> float | None:
        """Mean agreement of the labelled cases whose prediction is right; None where there is none."""
        return self._agreement(True)

    @property
    def agreement_when_wrong(self) -> float | None:
        """Mean agreement of the labelled cases whose prediction is wrong; None where there is none."""
        return self._agreement(False)

    def _agreement(self, right: bool) -> float | None:
        values = [
            query.agreement
            for query in self.queries
            if query.label is not None and query.agreement is not None and (query.predicted == query.label) == right
        ]
        return sum(values) / len(values) if values else None

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield one flat row for each case found."""
        for query in self.queries:
            for rank, one in enumerate(query.found, start=1):
                yield {
                    "case": query.case, "predicted": query.predicted, "probability": query.probability,
                    "agreement": query.agreement, "prototype": query.prototype, "rank": rank, "similar": one.case,
                    "class": one.label, "value": one.value, **_corners(one.region),
                }  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return plain_json(
            {
                "by": self.by,
                "measure": self.measure,
                "search": self.search,
                "stored": self.stored,
                "agreement_when_right": self.agreement_when_right,
                "agreement_when_wrong": self.agreement_when_wrong,
                "queries": [query.to_dict() for query in self.queries],
            }
        )


@dataclass(frozen=True)
class PrototypeCases:
    """The training cases nearest to one prototype.

    Attributes
    ----------
    prototype : int
        Its id.
    owner : str or None
        The class that owns it; None where none or several do.
    source : Source or None
        The case it was taken from.
    found : tuple of SimilarCase
        Nearest first, each with the place that is nearest in it.
    """

    prototype: int
    owner: str | None
    source: Source | None
    found: tuple[SimilarCase, ...]

    @property
    def purity(self) -> float | None:
        """Share of the labelled cases found that carry the class of the owner; None where that is not defined."""
        return _share(self.found, self.owner)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield one flat row for each case found."""
        for rank, one in enumerate(self.found, start=1):
            yield {
                "prototype": self.prototype, "owner": self.owner, "purity": self.purity, "rank": rank,
                "similar": one.case, "class": one.label, "value": one.value, **_corners(one.region),
            }  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return plain_json(
            {
                "prototype": self.prototype,
                "owner": self.owner,
                "source": None if self.source is None else self.source.to_dict(),
                "purity": self.purity,
                "found": [one.to_dict() for one in self.found],
            }
        )


def _share(found: tuple[SimilarCase, ...], name: str | None) -> float | None:
    """Return the share of the labelled cases that carry a class; None where there is none, or no class to look for."""
    known = [one.label for one in found if one.label is not None]
    return None if not known or name is None else sum(label == name for label in known) / len(known)


def _corners(region: Box | None) -> dict[str, float | None]:
    names = ("x0", "y0", "x1", "y1")
    return dict.fromkeys(names) if region is None else dict(zip(names, region, strict=True))
