"""The distribution of an input's tokens, by its moments: their mean, and how their coordinates vary together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from protolearn.core.bank import PrototypeBank
from protolearn.core.gathering import Gathering, summarise
from protolearn.errors import UsageError
from protolearn.structures import Tokens

Centre = Literal["channel", "scalar"]


def cross_covariance(left: Tensor, right: Tensor, mask: Tensor | None = None, *, centre: Centre = "channel") -> Tensor:
    """Return ``(..., d, d)``: the mean over positions of ``(left - mean) (right - mean)'``; order does not matter.

    Parameters
    ----------
    left, right : Tensor
        ``(..., S, d)``.
    mask : Tensor, optional
        ``(..., S)`` bool, True = real.
    centre : {"channel", "scalar"}
        ``channel``: every coordinate loses its own mean over positions. ``scalar``: one mean over coordinates and
        positions is taken off, as the code of moment probing does; after layer normalisation it is nearly 0.

    Examples
    --------
    >>> x = torch.tensor([[1.0], [3.0]])
    >>> cross_covariance(x, -x)
    tensor([[-1.]])
    """
    left, right = (_centred(x, mask, centre) for x in (left, right))
    count = left.shape[-2] if mask is None else mask.sum(-1).clamp_min(1)[..., None, None]
    return left.transpose(-1, -2) @ right / count


def _centred(x: Tensor, mask: Tensor | None, centre: Centre) -> Tensor:
    real = x.new_ones(x.shape[:-1]).unsqueeze(-1) if mask is None else mask.unsqueeze(-1).to(x)
    x = x if mask is None else x.masked_fill(~mask.unsqueeze(-1), 0.0)
    mean = x.sum(-2, keepdim=True) / real.sum(-2, keepdim=True).clamp_min(1.0)
    if centre == "scalar":
        mean = mean.mean(-1, keepdim=True)
    return (x - mean) * real


class TokenMoments(Gathering):
    """The first and second moment of an input's tokens, side by side as one vector.

    First: the summary, or the mean of the tokens. Second: a projection in ``heads`` parts, layer-normalised; covariance
    of each part with the next (columns scaled to unit length), compressed by two convolutions.

    Parameters
    ----------
    dim : int
        Width of the tokens.
    hidden : int
        Width of the projection, a multiple of ``heads``.
    heads : int
        Parts; ``heads - 1`` maps come out of them.
    centre : {"channel", "scalar"}
        See :func:`cross_covariance`.
    generator : torch.Generator, optional
        Of the initial weights.

    Attributes
    ----------
    first, second : int
        Widths of the two moments.

    Examples
    --------
    >>> moments = TokenMoments(8, hidden=36, heads=4)
    >>> moments.first, moments.second, moments(torch.rand(2, 5, 8)).shape
    (8, 3, torch.Size([2, 1, 11]))
    """

    def __init__(
        self,
        dim: int,
        *,
        hidden: int = 512,
        heads: int = 4,
        centre: Centre = "channel",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if heads < 2 or hidden % heads:
            raise UsageError(f"hidden must be a multiple of heads >= 2, got {hidden} and {heads}")
        width = hidden // heads
        side = compressed(width)
        if side < 1:
            raise UsageError(f"hidden / heads must be at least 7 to be compressed twice, got {width}")
        self.heads, self.centre = heads, centre
        maps = heads - 1
        self.first, self.second = dim, maps * side * side
        self.project = nn.Linear(dim, hidden)
        self.norm = nn.LayerNorm(width)
        self.compress = nn.Sequential(
            nn.Conv2d(maps, maps, 3, stride=2, bias=False), nn.GELU(), nn.Conv2d(maps, maps, 3, stride=2, bias=False)
        )
        for layer in (self.project, *self.compress):
            if isinstance(layer, nn.Linear | nn.Conv2d):  # as PyTorch does it, from a generator
                nn.init.kaiming_uniform_(layer.weight, a=5**0.5, generator=generator)
        nn.init.zeros_(self.project.bias)

    def covariances(self, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return ``(B, heads - 1, d, d)``: parts with their neighbours, every column of unit length."""
        parts = self.norm(self.project(values).unflatten(-1, (self.heads, -1))).transpose(1, 2)
        mask = None if mask is None else mask.unsqueeze(1)
        maps = cross_covariance(parts[:, :-1], parts[:, 1:], mask, centre=self.centre)
        return F.normalize(maps, dim=-2)

    def on_tokens(self, tokens: Tokens) -> Tokens:
        """Return one vector an input, ``(B, 1, first + second)``."""
        second = self.compress(self.covariances(tokens.values, tokens.mask)).flatten(1)
        first = summarise(tokens)
        return Tokens(torch.cat([first, second], 1).unsqueeze(1), summary=first)


class Blocks:
    """The constraint of prototypes that read one block of coordinates each: 0 outside the block of their group.

    Parameters
    ----------
    widths : sequence of int
        Of the blocks, one a group.

    Examples
    --------
    >>> blocks = Blocks([1, 2])
    >>> bank = PrototypeBank(torch.ones(2, 3), torch.eye(2), groups=torch.tensor([0, 1]))
    >>> blocks.hold(bank).vectors.tolist()
    [[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]]
    """

    def __init__(self, widths: Sequence[int]) -> None:
        self.block = torch.arange(len(widths)).repeat_interleave(torch.tensor(list(widths)))
        self.bank: PrototypeBank | None = None

    def hold(self, bank: PrototypeBank) -> PrototypeBank:
        """Constrain a bank from now on; its groups are read each time, so it may be pruned and grown."""
        self.bank, bank.constraint = bank, self
        bank.constrain()
        return bank

    def __call__(self, vectors: Tensor) -> Tensor:
        """Return vectors with zeros outside their block."""
        if self.bank is None or self.bank.groups is None:
            return vectors
        own = self.bank.groups.unsqueeze(1) == self.block.to(vectors.device)
        return vectors * own.to(vectors)


def compressed(width: int) -> int:
    """Return the side of a ``width`` x ``width`` map after two 3 x 3 convolutions of stride 2 without padding.

    Examples
    --------
    >>> compressed(128)
    31
    """
    for _ in range(2):
        width = (width - 3) // 2 + 1 if width >= 3 else 0
    return width
