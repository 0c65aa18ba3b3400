"""Explanations by group (concept, scale, branch): one row a group, however many prototypes it has."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from protolearn.core.model import PrototypeModel
from protolearn.errors import UsageError
from protolearn.structures import Explanation, LedgerRow


@dataclass(frozen=True)
class GroupRow:
    """One group's part in one logit.

    Attributes
    ----------
    group : int
        Its number.
    name : str
        What it is called.
    contribution : float
        Sum over its prototypes.
    best : LedgerRow
        Its most similar prototype: the map and the case to show.
    prototypes : int
        How many spoke.
    """

    group: int
    name: str
    contribution: float
    best: LedgerRow
    prototypes: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        plain = asdict(self)
        similarity = self.best.similarity
        plain["best"]["similarity"] = similarity if math.isfinite(similarity) else None  # it could not match
        plain["best"]["region"] = None if self.best.region is None else list(self.best.region)
        plain["best"]["source"] = None if self.best.source is None else self.best.source.to_dict()
        return plain


def group_names(model: PrototypeModel) -> tuple[str, ...]:
    """Return what the groups of a model's prototypes are called, in order.

    Raises
    ------
    UsageError
        If its prototypes have no groups.
    """
    if model.bank.groups is None:
        raise UsageError("the prototypes of this model have no groups: explain it prototype by prototype")
    named = () if model.method is None else model.method.group_names(model.classes)
    count = max(len(named), int(model.bank.groups.max()) + 1 if len(model.bank) else 0)
    return tuple(named[g] if g < len(named) else f"group {g}" for g in range(count))


def by_group(explanation: Explanation, model: PrototypeModel) -> tuple[GroupRow, ...]:
    """Return an explanation's rows summed up by group, largest absolute contribution first.

    The bias and the rows sum to the logit, as those of the explanation do; prototypes of no group (-1) are one more
    row, called "of no group".

    Parameters
    ----------
    explanation : Explanation
        With all its rows (``explain`` gives them).
    model : PrototypeModel
        Whose explanation it is.
    """
    names = group_names(model)
    assert model.bank.groups is not None
    group_of = dict(zip(model.bank.ids.tolist(), model.bank.groups.tolist(), strict=True))
    members: dict[int, list[LedgerRow]] = {}
    for row in explanation.rows:
        members.setdefault(group_of[row.prototype], []).append(row)
    rows = [
        GroupRow(
            group=g,
            name=names[g] if g >= 0 else "of no group",
            contribution=sum(row.contribution for row in found),
            best=max(found, key=lambda row: row.similarity),
            prototypes=len(found),
        )
        for g, found in sorted(members.items())
    ]
    return tuple(sorted(rows, key=lambda row: -abs(row.contribution)))
