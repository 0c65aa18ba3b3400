"""Purity: whether a channel fires alone where it fires most; and which cases make each channel fire most.

Of an input with token values z(s) at positions s, the peak of channel k is the position s* where z_k is largest, and
its purity is ``z_k(s*) / |z(s*)|``: 1 where no other channel says anything there. Channels may be negative.

Source: EPIC (Borycki et al., AAAI 2026).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from protolearn.core.top_cases import TopCases
from protolearn.structures import Tokens

Ranking = Literal["sum", "peak"]
"""What makes a case a prototype of a channel: the channel's sum over positions, or its value at the peak."""

SMALLEST = 1e-8
"""Least length that a token is divided by."""


class Peaks(NamedTuple):
    """Of each input and channel, ``(B, D)`` each: purity and value at the peak, and the position of the peak.

    An input without a real position has purity 0, value -inf and position 0.
    """

    purity: Tensor
    values: Tensor
    positions: Tensor


def peaks(values: Tensor, mask: Tensor | None = None) -> Peaks:
    """Return the peak of every channel in every input, the first of equal ones.

    Parameters
    ----------
    values : Tensor
        ``(B, S, D)`` token values.
    mask : Tensor, optional
        ``(B, S)`` bool; a False position is no peak.

    Examples
    --------
    >>> found = peaks(torch.tensor([[[3.0, 4.0], [0.0, 2.0]]]))
    >>> found.purity, found.positions
    (tensor([[0.6000, 0.8000]]), tensor([[0, 0]]))
    """
    lengths = torch.linalg.vector_norm(values, dim=-1).clamp_min(SMALLEST)
    shown = values if mask is None else values.masked_fill(~mask.unsqueeze(-1), float("-inf"))
    top, positions = shown.max(1)
    purity = top / lengths.gather(1, positions)
    if mask is not None:
        purity = purity.masked_fill(~mask.any(1, keepdim=True), 0.0)
    return Peaks(purity, top, positions)


def purity_of(values: Tensor, pairs: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return ``(N,)``: the purity of some pairs of an input and a channel.

    The same as entries of :func:`peaks`, at the cost of the pairs alone. The position of the peak has no gradient.

    Parameters
    ----------
    values : Tensor
        ``(B, S, D)`` token values.
    pairs : Tensor
        ``(N, 2)`` int64: row of the batch, channel.
    mask : Tensor, optional
        ``(B, S)`` bool.

    Examples
    --------
    >>> purity_of(torch.tensor([[[3.0, 4.0], [0.0, 2.0]]]), torch.tensor([[0, 1]]))
    tensor([0.8000])
    """
    rows, channels = pairs.unbind(1)
    along = values.detach()[rows, :, channels]
    if mask is not None:
        along = along.masked_fill(~mask[rows], float("-inf"))
    tokens = values[rows, along.argmax(1)]
    top = tokens.gather(1, channels.unsqueeze(1)).squeeze(1)
    purity: Tensor = top / torch.linalg.vector_norm(tokens, dim=-1).clamp_min(SMALLEST)
    return purity if mask is None else purity.where(mask.any(1)[rows], 0.0)


class Exemplars(TopCases):
    """The cases that excite each channel most, and where: :class:`~protolearn.core.top_cases.TopCases` of tokens.

    Scores are computed in double precision and rounded to single, so that the size of a batch, which changes the last
    digits of a product, does not change which of two equal cases is first.

    Parameters
    ----------
    channels, k : int
        D, and how many cases of each.
    by : {"sum", "peak"}
        What ranks them.
    matrix : Tensor, optional
        ``(D, D')`` that tokens are multiplied by first: U of a rotation.
    located : bool
        Whether to find peaks too, in the columns ``positions``, ``values`` and ``purity``.

    Examples
    --------
    >>> found = Exemplars(2, 1)
    >>> found.update_from(Tokens(torch.tensor([[[3.0, 4.0]], [[5.0, 0.0]]])), torch.tensor([0, 1]))
    >>> found.cases.tolist(), found.columns["purity"].tolist()
    ([[1], [0]], [[1.0], [0.8]])
    """

    def __init__(
        self,
        channels: int,
        k: int,
        *,
        by: Ranking = "sum",
        matrix: Tensor | None = None,
        located: bool = True,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(channels, k, dtype=torch.float32, device=device)
        self.by, self.matrix, self.located = by, matrix, located

    @torch.no_grad()
    def update_from(self, tokens: Tokens, cases: Tensor) -> None:
        """Take in the tokens ``(B, S, D')`` of some cases ``(B,)``."""
        values = _fine(tokens.values)
        mask = tokens.mask
        real = None if mask is None else mask.unsqueeze(-1)
        if real is not None:
            values = values.masked_fill(~real, 0.0)
        columns: dict[str, Tensor] = {}
        if self.by == "peak" or self.located:
            turned = values if self.matrix is None else values @ _fine(self.matrix).T
            found = peaks(turned, mask)
            columns = {"positions": found.positions, "values": found.values, "purity": found.purity}
        if self.by == "peak":
            scores = columns["values"]
        else:
            total = values.sum(1)
            scores = total if self.matrix is None else total @ _fine(self.matrix).T
            if mask is not None:
                scores = scores.masked_fill(~mask.any(1, keepdim=True), float("-inf"))
        self.update(scores.float(), cases, **(columns if self.located else {}))


def _fine(values: Tensor) -> Tensor:
    return values if values.device.type == "mps" else values.double()
