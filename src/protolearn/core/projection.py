"""Projection: which real token is nearest to each prototype, over a stream of batches, exactly and in any order.

Knows cases only as integers (their index in the data set); whoever runs it turns them into ids and sources. A tie goes
to the lower case index, then to the lower position, so that shuffling, workers and processes cannot change the result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from protolearn.core.bank import PrototypeBank
from protolearn.core.matching import best_match
from protolearn.core.measures import Measure
from protolearn.errors import DataError
from protolearn.structures import Tokens


@dataclass(frozen=True)
class Nearest:
    """The ``k`` nearest cases of each prototype, nearest first, one token a case (or a unit, see below).

    Attributes
    ----------
    values : Tensor
        ``(P, k)`` in the measure; its ``farthest`` where there are fewer than ``k`` allowed cases.
    cases, positions, labels, units : Tensor
        ``(P, k)`` int64; -1 where there is none.
    vectors : Tensor
        ``(P, k, D)`` the tokens themselves.
    """

    values: Tensor
    cases: Tensor
    positions: Tensor
    labels: Tensor
    units: Tensor
    vectors: Tensor

    @property
    def found(self) -> Tensor:
        """``(P, k)`` bool: there is a case."""
        return self.cases >= 0


class NearestTokens:
    """Collect the nearest tokens over batches.

    Parameters
    ----------
    bank : PrototypeBank
        Read, never changed.
    measure : Measure
        What is near.
    k : int
        How many per prototype.
    own_class : bool
        Only cases whose label owns the prototype.
    compare : callable, optional
        ``tokens -> (B, S, P)`` in the measure, in place of comparing each token with each prototype.

    Examples
    --------
    >>> from protolearn.core.measures import squared_l2
    >>> bank = PrototypeBank(torch.tensor([[0.0], [5.0]]), torch.eye(2))
    >>> search = NearestTokens(bank, squared_l2, own_class=True)
    >>> tokens = Tokens(torch.tensor([[[1.0], [4.0]], [[4.5], [0.0]]]))
    >>> search.update(tokens, labels=torch.tensor([0, 1]), cases=torch.tensor([7, 9]))
    >>> search.result.cases.tolist(), search.result.positions.tolist()
    ([[7], [9]], [[0], [0]])
    """

    def __init__(
        self,
        bank: PrototypeBank,
        measure: Measure,
        k: int = 1,
        *,
        own_class: bool,
        compare: Callable[[Tokens], Tensor] | None = None,
    ) -> None:
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        self.bank, self.measure, self.k, self.own_class, self.compare = bank, measure, k, own_class, compare
        count, dim = len(bank), bank.vectors.shape[-1]
        like = bank.vectors
        none = torch.full((count, k), -1, dtype=torch.long, device=like.device)
        far = torch.full((count, k), measure.farthest, device=like.device)
        self.result = Nearest(far, none, none, none, none, torch.zeros(count, k, dim, device=like.device))

    @torch.no_grad()
    def update(self, tokens: Tokens, labels: Tensor, cases: Tensor, units: Tensor | None = None) -> None:
        """Take in a batch.

        Parameters
        ----------
        tokens : Tokens
            ``(B, S, D)`` after the neck.
        labels, cases : Tensor
            ``(B,)`` int64.
        units : Tensor, optional
            ``(B,)`` int64; at most one token a unit is kept for each prototype. The case itself by default; a group
            (patient) where prototypes must come from different ones.
        """
        units = cases if units is None else units
        if self.own_class:
            allowed = self.bank.owned_by(labels)
        else:
            allowed = self.bank.usable.expand(len(labels), -1)
        if self.compare is None:
            values, positions = best_match(
                tokens.values, self.bank.vectors, self.measure, tokens.mask, exact=True, among=allowed
            )
        else:
            table = self.compare(tokens)
            if tokens.mask is not None:
                table = table.masked_fill(~tokens.mask.unsqueeze(-1), self.measure.farthest)
            values, positions = self.measure.nearest(table, dim=1)
        values = values.masked_fill(~allowed, self.measure.farthest).T
        if values.isnan().any():
            which = cases[values.isnan().any(0)].tolist()
            raise DataError(f"case {which[0]} has tokens or meets prototypes that are not a number: nothing is nearest")
        real = torch.isfinite(values)

        def column(per_case: Tensor) -> Tensor:
            return per_case.expand(len(self.bank), -1).where(real, -1)

        old = self.result
        if old.vectors.shape[-1] != tokens.values.shape[-1]:  # prototypes that are wider than what they look at
            old = replace(old, vectors=old.vectors.new_zeros(*old.vectors.shape[:2], tokens.values.shape[-1]))
        columns = {
            "values": torch.cat([old.values, values], 1),
            "cases": torch.cat([old.cases, column(cases)], 1),
            "positions": torch.cat([old.positions, positions.T.where(real, -1)], 1),
            "labels": torch.cat([old.labels, column(labels)], 1),
            "units": torch.cat([old.units, column(units)], 1),
        }
        keep = self._select(columns)
        # the tokens themselves are taken for the few that are kept only
        fresh = keep >= self.k
        row = torch.arange(len(self.bank), device=values.device).unsqueeze(1)
        local = torch.where(fresh, keep - self.k, 0)
        taken = tokens.values[local, positions.T[row, local]].to(old.vectors)
        kept = old.vectors[row, keep.clamp(max=self.k - 1)]
        vectors = torch.where(fresh.unsqueeze(-1), taken, kept)
        self.result = Nearest(**{name: entries.gather(1, keep) for name, entries in columns.items()}, vectors=vectors)

    def merge(self, others: Sequence[Nearest]) -> None:
        """Take in what other processes found over other cases."""
        parts = [self.result, *others]
        table = {name: torch.cat([getattr(part, name) for part in parts], 1) for name in Nearest.__annotations__}
        vectors = table.pop("vectors")
        keep = self._select(table)
        row = torch.arange(len(self.bank), device=keep.device).unsqueeze(1)
        chosen = {name: entries.gather(1, keep) for name, entries in table.items()}
        self.result = Nearest(**chosen, vectors=vectors[row, keep])

    def _select(self, table: dict[str, Tensor]) -> Tensor:
        """Return ``(P, k)`` columns of the nearest, one a unit, ties by case; blank the others of a unit in place."""
        order = self._order(table["values"], table["cases"])
        sorted_units = table["units"].gather(1, order)
        by_unit = sorted_units.argsort(dim=1, stable=True)
        grouped = sorted_units.gather(1, by_unit)
        repeat = torch.zeros_like(grouped, dtype=torch.bool)
        repeat[:, 1:] = (grouped[:, 1:] == grouped[:, :-1]) & (grouped[:, 1:] >= 0)
        if repeat.any():
            worse = torch.zeros_like(repeat).scatter_(1, order.gather(1, by_unit), repeat)
            for name, entries in table.items():
                entries.masked_fill_(worse, self.measure.farthest if name == "values" else -1)
            order = self._order(table["values"], table["cases"])
        return order[:, : self.k]

    def _order(self, values: Tensor, cases: Tensor) -> Tensor:
        absent = torch.iinfo(torch.long).max
        by_case = cases.where(cases >= 0, absent).argsort(dim=1, stable=True)
        ranked = values.gather(1, by_case)
        descending = bool(self.measure.nearer(torch.tensor(1.0), torch.tensor(0.0)))
        return by_case.gather(1, ranked.argsort(dim=1, stable=True, descending=descending))


def assign_distinct(nearest: Nearest, measure: Measure, keys: Tensor) -> Tensor:
    """Return for each prototype the column of its nearest candidate such that no two share a key.

    Prototypes propose in rounds; where several want the same, the nearest gets it (ties: the lower row) and the others
    propose their next.

    Parameters
    ----------
    nearest : Nearest
        Candidates.
    measure : Measure
        What is near.
    keys : Tensor
        ``(P, k)`` int64: what must not be shared, such as the token, or class and patient.

    Returns
    -------
    Tensor
        ``(P,)`` int64 column, -1 where all candidates are taken or there is none.
    """
    count, k = keys.shape
    column = torch.zeros(count, dtype=torch.long, device=keys.device)
    row = torch.arange(count, device=keys.device)
    for _ in range(count * k):
        live = column < k
        live = live & nearest.found[row, column.clamp(max=k - 1)]
        wanted = keys[row, column.clamp(max=k - 1)]
        value = nearest.values[row, column.clamp(max=k - 1)]
        cost = value if measure.farthest > 0 else -value
        order = torch.arange(count, device=keys.device)[live]
        order = order[cost[order].argsort(stable=True)]
        order = order[wanted[order].argsort(stable=True)]
        loses = torch.zeros(count, dtype=torch.bool, device=keys.device)
        loses[order[1:]] = wanted[order[1:]] == wanted[order[:-1]]
        if not loses.any():
            return torch.where(live, column, -1)
        column = column + loses.long()
    raise AssertionError("each round moves a proposal forward, so this is never reached")


def own_neighbours(nearest: Nearest, ownership: Tensor) -> Tensor:
    """Return ``(P,)`` int64: how many of the nearest cases carry a class that owns the prototype."""
    own = ownership.gather(1, nearest.labels.clamp_min(0)) > 0
    return (own & nearest.found & (nearest.labels >= 0)).sum(1)


def impure(nearest: Nearest, ownership: Tensor, minimum: int) -> Tensor:
    """Return ``(P,)`` bool: fewer than ``minimum`` of the nearest cases carry a class that owns the prototype."""
    return own_neighbours(nearest, ownership) < minimum
