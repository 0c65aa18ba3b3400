"""What is kept of each case until all are seen, and figures of pairs of a case and a prototype."""

from __future__ import annotations

import torch
from torch import Tensor

from protolearn.audit.bootstrap import interval_of


class CaseRows:
    """Keeps rows for each case, a batch at a time, and gives them back in the order of the cases.

    Examples
    --------
    >>> rows = CaseRows()
    >>> rows.add(torch.tensor([2, 0]), score=torch.tensor([5.0, 7.0]))
    >>> rows.add(torch.tensor([1]), score=torch.tensor([6.0]))
    >>> rows["score"].tolist(), len(rows)
    ([7.0, 6.0, 5.0], 3)
    """

    def __init__(self) -> None:
        self._indices: list[Tensor] = []
        self._columns: dict[str, list[Tensor]] = {}

    def add(self, indices: Tensor, **columns: Tensor) -> None:
        """Take in a batch: case indices ``(B,)`` and columns ``(B, ...)``."""
        self._indices.append(indices.cpu())
        for name, column in columns.items():
            self._columns.setdefault(name, []).append(column.detach().cpu())

    def __len__(self) -> int:
        return sum(map(len, self._indices))

    def __getitem__(self, name: str) -> Tensor:
        """Return a column ``(N, ...)``."""
        return torch.cat(self._columns[name])[torch.cat(self._indices).argsort(stable=True)]


class JudgedPairs:
    """Values of pairs of a case and a prototype, few of all pairs there are; a pair may come up more than once.

    Examples
    --------
    >>> pairs = JudgedPairs(cases=2, prototypes=3)
    >>> pairs.add(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 2]), torch.tensor([1.0, 0.0, 0.5]))
    >>> pairs.per_prototype.tolist(), pairs.per_case.tolist()
    ([0.5, nan, 0.5], [1.0, 0.25])
    """

    def __init__(self, cases: int, prototypes: int) -> None:
        self.cases, self.prototypes = cases, prototypes
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, cases: Tensor, prototypes: Tensor, values: Tensor) -> None:
        """Take in pairs: case and prototype indices and values, ``(n,)`` each; NaN = not judged, left out."""
        kept = ~values.isnan()
        self._parts.append((cases[kept].cpu(), prototypes[kept].cpu(), values[kept].detach().cpu().double()))

    def _gathered(self) -> tuple[Tensor, Tensor, Tensor]:
        if not self._parts:
            none = torch.zeros(0, dtype=torch.long)
            return none, none, torch.zeros(0, dtype=torch.float64)
        cases, prototypes, values = zip(*self._parts, strict=True)
        return torch.cat(cases), torch.cat(prototypes), torch.cat(values)

    def __len__(self) -> int:
        return sum(len(part[2]) for part in self._parts)

    @property
    def per_prototype(self) -> Tensor:
        """``(P,)`` mean over cases; NaN where none was judged."""
        _, prototypes, values = self._gathered()
        return _means(prototypes, values, self.prototypes)

    @property
    def per_case(self) -> Tensor:
        """``(N,)`` mean over prototypes; NaN where none was judged."""
        cases, _, values = self._gathered()
        return _means(cases, values, self.cases)

    def over_cases(self, generator: torch.Generator) -> tuple[float, float] | None:
        """Return the interval of the mean over prototypes of their means, with other cases."""
        cases, prototypes, values = self._gathered()
        if not len(values):
            return None
        at, size = torch.stack([prototypes, cases]), (self.prototypes, self.cases)
        total = torch.sparse_coo_tensor(at, values, size, check_invariants=False).coalesce()
        count = torch.sparse_coo_tensor(at, torch.ones_like(values), size, check_invariants=False).coalesce()

        def mean(weights: Tensor) -> Tensor:
            seen = count @ weights.T
            some = seen > 0
            return ((total @ weights.T) / seen.clamp_min(1)).where(some, 0.0).sum(0) / some.sum(0)

        return interval_of(mean, self.cases, generator)


def _means(index: Tensor, values: Tensor, count: int) -> Tensor:
    total = torch.zeros(count, dtype=torch.float64).index_add_(0, index, values)
    seen = torch.bincount(index, minlength=count)
    return torch.where(seen > 0, total / seen.clamp_min(1), float("nan"))
