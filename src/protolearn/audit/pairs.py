"""Pairs of a case and a prototype that were looked at, what was found in each, and sums over other draws of cases.

A list of pairs rather than a table: where only the prototypes of a case's own class are looked at, nearly all of a
table would be empty. N cases, P prototypes, M pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from protolearn.audit.bootstrap import interval_of
from protolearn.core.matching import chunk_rows


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of a case and a prototype.

    Attributes
    ----------
    case, prototype : Tensor
        ``(M,)`` int64, which; a pair may stand more than once.
    cases, prototypes : int
        How many there are in all: N and P.

    Examples
    --------
    Two cases, two prototypes; the second prototype was looked at in the first case only:

    >>> pairs = Pairs(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 0]), 2, 2)
    >>> pairs.total(torch.tensor([[True, False], [True, True], [True, False]]))
    tensor([[2., 0.],
            [1., 1.]], dtype=torch.float64)
    """

    case: Tensor
    prototype: Tensor
    cases: int
    prototypes: int

    def __len__(self) -> int:
        return len(self.case)

    def total(self, values: Tensor) -> Tensor:
        """Return ``(P, K)`` float64: the sum over each prototype's pairs of values ``(M, K)``."""
        sums = torch.zeros(self.prototypes, values.shape[1], dtype=torch.float64)
        return sums.index_add_(0, self.prototype, values.double())

    def each(self) -> Tensor:
        """Return ``(M, 1)`` bool of ones: a value that counts the pairs."""
        return torch.ones(len(self), 1, dtype=torch.bool)

    def interval(
        self,
        statistic: Callable[..., Tensor],
        generator: torch.Generator,
        *values: Tensor,
        around: float | None = None,
        within: tuple[float, float] = (-math.inf, math.inf),
    ) -> tuple[float, float] | None:
        """Return the 95 % interval of a statistic of such sums when whole cases are drawn again.

        Parameters
        ----------
        statistic : callable
            From one tensor ``(R, P, K)`` of sums a value, in the order given, to ``(R,)``; NaN draws are left out.
        generator : Generator
            Of the draws.
        *values : Tensor
            ``(M, K)`` each, with K of its own.
        around, within
            As in :func:`~protolearn.audit.bootstrap.interval_of`.
        """
        tables = [(self._sparse(table), table.shape[1]) for table in values]
        rows = chunk_rows(8 * self.prototypes * max(1, sum(width for _, width in tables)))

        def over(weights: Tensor) -> Tensor:
            found = []
            for part in weights.split(rows):
                drawn = part.T.numpy()
                sums = [torch.from_numpy(table @ drawn).T.unflatten(1, (-1, width)) for table, width in tables]
                found.append(statistic(*sums))
            return torch.cat(found)

        return interval_of(over, self.cases, generator, around=around, within=within)

    def _sparse(self, values: Tensor) -> csr_matrix:
        """Return ``(P * K, N)``: what each case adds to each sum."""
        pair, column = values.nonzero(as_tuple=True)
        rows = self.prototype[pair] * values.shape[1] + column
        entries = values[pair, column].double().numpy(), (rows.numpy(), self.case[pair].numpy())
        return csr_matrix(entries, shape=(self.prototypes * values.shape[1], self.cases))


class PairList:
    """Pairs gathered batch after batch, with the values found in each."""

    def __init__(self) -> None:
        self._case: list[Tensor] = []
        self._prototype: list[Tensor] = []
        self._values: list[tuple[Tensor, ...]] = []
        self.cases = 0

    def add(self, counted: Tensor, *tables: Tensor) -> tuple[Tensor, ...]:
        """Take the pairs of a batch that count, ``(B, P)`` bool, out of tables ``(B, P, K)``; return their values."""
        case, prototype = counted.nonzero(as_tuple=True)
        values = tuple(table[case, prototype].cpu() for table in tables)
        self._case.append(case.cpu() + self.cases)
        self._prototype.append(prototype.cpu())
        self._values.append(values)
        self.cases += len(counted)
        return values

    def gathered(self, prototypes: int) -> tuple[Pairs, tuple[Tensor, ...]]:
        """Return all pairs and their values."""
        case, prototype = (torch.cat(found) for found in (self._case, self._prototype))
        return Pairs(case, prototype, self.cases, prototypes), tuple(map(torch.cat, zip(*self._values, strict=True)))


def mean_rate(total: Tensor, looked: Tensor) -> Tensor:
    """Return ``(R,)``: the mean over prototypes of what each found in a pair; one without a pair is left out.

    Parameters
    ----------
    total, looked : Tensor
        ``(R, P, 1)`` sums over each prototype's pairs: of what was found, and of the pairs.

    Examples
    --------
    >>> mean_rate(torch.tensor([[[1.0], [0.0]]]), torch.tensor([[[2.0], [0.0]]]))
    tensor([0.5000])
    """
    rates = (total / looked.clamp_min(1)).squeeze(2)
    return rates.sum(1) / (looked.squeeze(2) > 0).sum(1)


class JudgedPairs:
    """One value of each of some pairs of a case and a prototype; a pair may come up more than once.

    Examples
    --------
    >>> pairs = JudgedPairs(cases=2, prototypes=3)
    >>> pairs.add(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 2]), torch.tensor([1.0, 0.0, 0.5]))
    >>> pairs.per_prototype.tolist(), pairs.per_case.tolist()
    ([0.5, nan, 0.5], [1.0, 0.25])
    """

    def __init__(self, cases: int, prototypes: int) -> None:
        self.cases, self.prototypes = cases, prototypes
        none = torch.zeros(0, dtype=torch.long)
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = [(none, none, torch.zeros(0, dtype=torch.float64))]

    def add(self, cases: Tensor, prototypes: Tensor, values: Tensor) -> None:
        """Take in pairs: case and prototype indices and values, ``(n,)`` each; NaN = not judged, left out."""
        kept = ~values.isnan()
        self._parts.append((cases[kept].cpu(), prototypes[kept].cpu(), values[kept].detach().cpu().double()))

    def __len__(self) -> int:
        return sum(len(part[2]) for part in self._parts)

    @property
    def per_prototype(self) -> Tensor:
        """``(P,)`` mean over cases; NaN where none was judged."""
        pairs, values = self._gathered()
        return _means(pairs.prototype, values, self.prototypes)

    @property
    def per_case(self) -> Tensor:
        """``(N,)`` mean over prototypes; NaN where none was judged."""
        pairs, values = self._gathered()
        return _means(pairs.case, values, self.cases)

    def over_cases(self, generator: torch.Generator) -> tuple[float, float] | None:
        """Return the interval of the mean over prototypes of their means, with other cases."""
        pairs, values = self._gathered()
        return pairs.interval(mean_rate, generator, values.unsqueeze(1), pairs.each()) if len(pairs) else None

    def _gathered(self) -> tuple[Pairs, Tensor]:
        case, prototype, values = map(torch.cat, zip(*self._parts, strict=True))
        return Pairs(case, prototype, self.cases, self.prototypes), values


def _means(index: Tensor, values: Tensor, count: int) -> Tensor:
    total = torch.zeros(count, dtype=torch.float64).index_add_(0, index, values)
    seen = torch.bincount(index, minlength=count)
    return torch.where(seen > 0, total / seen.clamp_min(1), float("nan"))
