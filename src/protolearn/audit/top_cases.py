"""The cases, and places in them, in which each prototype is most at home: over batches, exactly, in any order.

A tie goes to the lower case index, so that shuffling and the size of batches cannot change what is found.
"""

from __future__ import annotations

import torch
from torch import Tensor

from protolearn.audit.subject import Look
from protolearn.errors import DataError, UsageError


class TopCases:
    """Collects the ``n`` cases with the highest value for each prototype, highest first.

    Attributes
    ----------
    values : Tensor
        ``(P, n)`` float64; -inf where there are fewer cases.
    cases : Tensor
        ``(P, n)`` int64; -1 where there is none.
    kept : dict of str to Tensor
        ``(P, n)`` each: what else was given for these cases.

    Examples
    --------
    >>> top = TopCases(2, 1)
    >>> top.update(torch.tensor([[1.0, 5.0], [2.0, 5.0]]), torch.tensor([8, 3]), place=torch.tensor([[0, 1], [2, 3]]))
    >>> top.cases.tolist(), top.kept["place"].tolist()
    ([[3], [3]], [[2], [3]])
    """

    def __init__(self, prototypes: int, n: int) -> None:
        if n < 1:
            raise UsageError(f"n must be at least 1, got {n}")
        self.n = n
        self.values = torch.full((prototypes, n), float("-inf"), dtype=torch.float64)
        self.cases = torch.full((prototypes, n), -1, dtype=torch.long)
        self.kept: dict[str, Tensor] = {}
        self.seen = 0
        self._lowest = torch.full((prototypes,), float("inf"), dtype=torch.float64)

    @property
    def constant(self) -> Tensor:
        """``(P,)`` bool: the value was the same in all of several cases, so that the highest are any of them."""
        return (self.values[:, 0] == self._lowest) & (self.seen > 1)

    @property
    def found(self) -> Tensor:
        """``(P, n)`` bool: there is a case."""
        return self.values > float("-inf")

    def update(self, values: Tensor, cases: Tensor, **kept: Tensor) -> None:
        """Take in a batch: values ``(B, P)``, -inf = never to be found, case indices ``(B,)``, and more of ``(B, P)``.

        Raises
        ------
        DataError
            If a value is NaN: nothing is highest.
        """
        values, cases = values.detach().cpu().double(), cases.cpu()
        if bool(values.isnan().any()):
            row, prototype = (int(v) for v in values.isnan().nonzero()[0])
            raise DataError(
                f"prototype row {prototype} scores NaN in case {int(cases[row])}: the weights or the input are damaged"
            )
        self.seen += len(values)
        self._lowest = torch.minimum(self._lowest, values.amin(0)) if len(values) else self._lowest
        everything = torch.cat([self.values, values.T], 1)
        which = torch.cat([self.cases, cases.expand(len(self.cases), -1)], 1)
        by_case = which.argsort(dim=1, stable=True)
        order = everything.gather(1, by_case).argsort(dim=1, descending=True, stable=True)
        keep = by_case.gather(1, order)[:, : self.n]
        self.values = everything.gather(1, keep)
        self.cases = which.gather(1, keep).where(self.found, -1)
        for name, column in kept.items():
            fresh = column.detach().cpu().T
            old = self.kept.get(name, fresh.new_zeros(len(fresh), self.n))
            self.kept[name] = torch.cat([old, fresh], 1).gather(1, keep)


def best_places(look: Look) -> tuple[Tensor, Tensor]:
    """Return how near each prototype comes anywhere in each case ``(B, P)`` and the place, -inf where none is.

    That is its highest similarity, or the negative of its smallest distance where the model measures one: it ranks
    cases alike, and far cases without rounding. The place is the position of a token, or the cell of the map in
    row-major order; 0 where a subject shows no places, so that a case is one place.
    """
    out = look.output
    if out is not None and out.table is None:
        near = out.similarities if out.distances is None else -out.distances
        return near.detach().masked_fill(~out.bank.usable, float("-inf")), out.positions
    if out is not None and out.table is not None:
        table = out.table.detach()
        if out.tokens is not None and out.tokens.mask is not None:
            table = table.masked_fill(~out.tokens.mask.unsqueeze(-1), float("-inf"))
        found = table.max(1)
        return found.values.masked_fill(~out.bank.usable, float("-inf")), found.indices
    if look.maps is not None:
        found = look.maps.flatten(2).max(2)
        return found.values, found.indices
    return look.scores, torch.zeros_like(look.scores, dtype=torch.long)
