"""The fewest prototypes without which a prediction is another one.

The smallest set there is for heads that are linear in their evidence, a greedy one for others; see
:mod:`~protolearn.explain.counterfactual`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from protolearn.core.flips import smallest_removal
from protolearn.core.matching import chunk_rows
from protolearn.core.model import PrototypeModel
from protolearn.explain.alter import answer_of
from protolearn.structures import Output


@dataclass(frozen=True)
class Fewer:
    """Prototypes without which the prediction is another one.

    Attributes
    ----------
    prototypes : tuple of int
        Ids, those that speak most for the predicted class first.
    becomes : int
        The class predicted without them, by the model itself.
    smallest : bool
        No smaller set does it.
    """

    prototypes: tuple[int, ...]
    becomes: int
    smallest: bool


def fewer_prototypes(
    copy: PrototypeModel, out: Output, predicted: Tensor, rivals: Tensor | None, most: int
) -> list[Fewer | None]:
    """Return for each case the prototypes without which the prediction is another one, None where there are none.

    Parameters
    ----------
    copy : PrototypeModel
        A copy of the model, in eval mode: prototypes are banned in it, one case after the other, and freed again.
    out : Output
        What the model said.
    predicted : Tensor
        ``(B,)``.
    rivals : Tensor, optional
        ``(B, C)`` bool: one of these must get ahead of the predicted class; by default the prediction must change.
    most : int
        Largest set, where the head is not linear.
    """
    found: list[Fewer | None] = []
    rows = chunk_rows(48 * out.logits.shape[1] * max(1, len(copy.bank)))
    for i in range(0, len(predicted), rows):
        part, first = out.part(slice(i, i + rows)), predicted[i : i + rows]
        may = None if rivals is None else rivals[i : i + rows]
        best = smallest_removal(copy.head.ledger(part), part.logits, first, may) if copy.head.linear else None
        for b in range(len(first)):
            asked = _Asked(copy, part.part(slice(b, b + 1)), int(first[b]), None if may is None else may[b])
            if best is None:
                found.append(asked.greedily(most))
            else:
                found.append(asked.confirmed(best.order[b].tolist(), int(best.size[b])))
    return found


@dataclass(frozen=True)
class _Asked:
    """One case, and the copy that is asked about it without some prototypes."""

    copy: PrototypeModel
    out: Output
    predicted: int
    rivals: Tensor | None

    def confirmed(self, order: list[int], enough: int) -> Fewer | None:
        """Ask without a set; where the model's own rounding decides otherwise, take more away."""
        if enough < 0:
            return None
        for size in range(enough, len(order) + 1):
            now = self._without(order[:size])
            if self._flipped(now):
                return self._told(order[:size], now, size == enough)
        return None

    def greedily(self, most: int) -> Fewer | None:
        """Take away whoever speaks most for the predicted class against the best rival, and ask again each time."""
        gone: list[int] = []
        now = self.out
        while len(gone) < most:
            row = self._strongest(now, gone)
            if row is None:
                return None
            gone.append(row)
            now = self._without(gone)
            if self._flipped(now):
                return self._told(gone, now, len(gone) == 1)
        return None

    def _strongest(self, now: Output, gone: list[int]) -> int | None:
        logits, ledger = now.logits[0].double(), now.head.ledger(now)[0].double()
        allowed = torch.ones_like(logits, dtype=torch.bool) if self.rivals is None else self.rivals.clone()
        allowed[self.predicted] = False
        rival = int(logits.masked_fill(~allowed, float("-inf")).argmax())
        gain = (ledger[self.predicted] - ledger[rival]).masked_fill(~self.copy.bank.usable, float("-inf"))
        gain[gone] = float("-inf")
        row = int(gain.argmax()) if len(gain) else -1
        return row if row >= 0 and float(gain[row]) > 0 else None

    def _without(self, rows: list[int]) -> Output:
        before = self.copy.bank.banned.clone()
        self.copy.bank.banned[rows] = True
        try:
            return answer_of(self.copy, self.out)
        finally:
            self.copy.bank.banned.copy_(before)

    def _flipped(self, now: Output) -> bool:
        if bool(now.head.abstains(now.logits)[0]):
            return False
        logits = now.logits[0]
        if self.rivals is None:
            return int(logits.argmax()) != self.predicted
        return bool((logits[self.rivals] > logits[self.predicted]).any())

    def _told(self, rows: list[int], now: Output, smallest: bool) -> Fewer:
        keys = self.copy.bank.ids.tolist()
        return Fewer(tuple(keys[row] for row in rows), int(now.logits[0].argmax()), smallest)
