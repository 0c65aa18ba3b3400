"""What a model put out for a batch, as every metric reads it. B batch, P prototypes, C classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from protolearn.core.matching import chunk_rows
from protolearn.errors import DataError
from protolearn.structures import Output


@dataclass(frozen=True, eq=False)
class Look:
    """What a subject put out for a batch.

    Attributes
    ----------
    logits : Tensor
        ``(B, C)`` scores of the classes, as the ledger sums to.
    probabilities : Tensor
        ``(B, C)``.
    scores : Tensor
        ``(B, P)`` similarity of each prototype to the input, larger = more similar; 0 for prototypes out of use and
        where nothing could match.
    maps : Tensor or None
        ``(B, P, h, w)`` similarity at each place, finite; None where places are not laid out in a picture.
    ledger : callable
        From a slice of the batch to ``(b, C, P)``: what each prototype adds to each score.
    output : Output or None
        All intermediates, where the subject is a model of the library.
    """

    logits: Tensor
    probabilities: Tensor
    scores: Tensor
    maps: Tensor | None
    ledger: Callable[[slice], Tensor]
    output: Output | None = None

    def __len__(self) -> int:
        return len(self.logits)

    @property
    def predicted(self) -> Tensor:
        """``(B,)`` int64: the class with the highest score, the first of equals."""
        return self.logits.argmax(1)

    def toward(self, classes: Tensor) -> Tensor:
        """Return ``(B, P)``: what each prototype adds to the score of one class a case, ``(B,)`` int64; in chunks."""
        made = []
        for part, table in self.ledgers():
            at = classes[part].view(-1, 1, 1).expand(-1, 1, table.shape[2])
            made.append(table.gather(1, at).squeeze(1))
        return torch.cat(made) if made else self.scores.new_zeros(self.scores.shape)

    def ledgers(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield the ledger ``(b, C, P)`` in parts of bounded memory, each with the slice of the batch it is of."""
        rows = chunk_rows(4 * self.logits.shape[1] * max(1, self.scores.shape[1]))
        for start in range(0, len(self), rows):
            part = slice(start, min(start + rows, len(self)))
            yield part, self.ledger(part).detach()


def finite_maps(maps: Tensor) -> Tensor:
    """Return maps ``(B, P, h, w)`` in which places that could not match hold the lowest value of their map.

    Raises
    ------
    DataError
        If a map holds NaN or plus infinity: no place can be pointed at by it.
    """
    real = torch.isfinite(maps)
    if bool(real.all()):
        return maps
    lost = maps.isnan() | maps.isposinf()
    if bool(lost.any()):
        case, prototype = (int(v) for v in lost.flatten(2).any(2).nonzero()[0])
        what = "NaN" if bool(maps[case, prototype].isnan().any()) else "infinity"
        raise DataError(
            f"the similarity map of prototype row {prototype} holds {what} in case {case} of the batch: the model's "
            "weights or the input are damaged"
        )
    lowest = maps.masked_fill(~real, float("inf")).flatten(2).amin(2)
    lowest = torch.where(torch.isfinite(lowest), lowest, 0.0)[..., None, None]
    return torch.where(real, maps, lowest)


def settled(scores: Tensor) -> Tensor:
    """Return scores in which "could not match" (an infinity) is 0; NaN stays, to be seen."""
    return scores.detach().masked_fill(torch.isinf(scores), 0.0)
