"""The cases in which each prototype scores highest: over batches of any size, exactly, in any order.

A tie goes to the lower case number, so that shuffling and the size of batches cannot change what is found.
"""

from __future__ import annotations

import torch
from torch import Tensor

from protolearn.errors import DataError, UsageError


class UnrankedCase(DataError):
    """A case has a score that is not a number, so that nothing is highest.

    Attributes
    ----------
    case : int
        Its number.
    """

    def __init__(self, case: int, prototype: int) -> None:
        super().__init__(
            f"prototype row {prototype} scores NaN in case {case}: the model's weights or the input are damaged"
        )
        self.case = case


class TopCases:
    """Collects the ``k`` cases with the highest score of each prototype, highest first.

    Parameters
    ----------
    count : int
        Prototypes.
    k : int
        Cases kept of each.
    dtype, device
        Of the table of scores.

    Attributes
    ----------
    scores : Tensor
        ``(P, k)``; -inf where there are fewer than ``k`` cases.
    cases : Tensor
        ``(P, k)`` int64; -1 where there is none.
    columns : dict of str to Tensor
        ``(P, k)`` each: what else was handed in about those cases; 0 where there is none.

    Examples
    --------
    >>> top = TopCases(count=1, k=2)
    >>> top.update(torch.tensor([[1.0], [5.0]]), torch.tensor([0, 1]))
    >>> top.update(torch.tensor([[5.0]]), torch.tensor([2]), place=torch.tensor([[7]]))
    >>> top.cases.tolist(), top.scores.tolist(), top.columns["place"].tolist()
    ([[1, 2]], [[5.0, 5.0]], [[0, 7]])
    """

    def __init__(
        self,
        count: int,
        k: int,
        *,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str | None = None,
    ) -> None:
        if k < 1:
            raise UsageError(f"at least 1 case of each prototype must be kept, got {k}")
        self.k = k
        self.scores = torch.full((count, k), float("-inf"), dtype=dtype, device=device)
        self.cases = torch.full((count, k), -1, dtype=torch.long, device=device)
        self.columns: dict[str, Tensor] = {}
        self._seen = 0
        self._lowest = torch.full((count,), float("inf"), dtype=dtype, device=device)

    @property
    def found(self) -> Tensor:
        """``(P, k)`` bool: there is a case."""
        return self.cases >= 0

    @property
    def constant(self) -> Tensor:
        """``(P,)`` bool: the score was the same in all of several cases, so that the highest are any of them."""
        return (self.scores[:, 0] == self._lowest) & (self._seen > 1)

    @torch.no_grad()
    def update(self, scores: Tensor, cases: Tensor, **columns: Tensor) -> None:
        """Take in a batch: scores ``(B, P)`` (-inf = never to be found), case numbers ``(B,)``, columns ``(B, P)``.

        Raises
        ------
        UnrankedCase
            If a score is NaN.
        ValueError
            If a case comes twice in one batch.
        """
        if len(lost := scores.isnan().nonzero()):
            row, prototype = lost[0].tolist()
            raise UnrankedCase(int(cases[row]), prototype)
        if len(torch.unique(cases)) != len(cases):
            raise ValueError("a case came twice in one batch")
        fresh = scores.T.to(self.scores)
        number = cases.to(self.cases).expand_as(fresh).where(fresh > float("-inf"), -1)
        table, numbers = torch.cat([self.scores, fresh], 1), torch.cat([self.cases, number], 1)
        # cases in rising order, then a stable sort by score; an absent one has the lowest score, so it comes last
        by_case = numbers.argsort(dim=1, stable=True)
        by_score = table.gather(1, by_case).argsort(dim=1, descending=True, stable=True)
        chosen = by_case.gather(1, by_score)[:, : self.k]
        for name, column in columns.items():
            new = column.T.to(self.cases.device)
            old = self.columns.get(name)
            old = new.new_zeros(self.cases.shape) if old is None else old
            self.columns[name] = torch.cat([old, new], 1).gather(1, chosen)
        self.scores, self.cases = table.gather(1, chosen), numbers.gather(1, chosen)
        self._seen += len(scores)
        self._lowest = torch.minimum(self._lowest, fresh.amin(1)) if len(scores) else self._lowest
