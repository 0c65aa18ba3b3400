"""Prototypes that are channels: a place shows one as much as the channel says there, or its share of a softmax."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from protolearn.core.bank import PrototypeBank
from protolearn.structures import Tokens


def channel_neck(dim_in: int, count: int = 0, *, generator: torch.Generator | None = None) -> nn.Sequential:
    """Return a softmax over channels, so that a channel is a prototype and a token says which one it shows.

    Source: PIP-Net (Nauta et al., CVPR 2023). With ``count`` a linear layer (Xavier uniform, zero bias) makes so many
    channels first; without it the encoder's own channels are the prototypes.

    Examples
    --------
    >>> channel_neck(32, 8)(torch.zeros(2, 49, 32)).sum(-1).unique().tolist()
    [1.0]
    """
    layers: list[nn.Module] = []
    if count:
        layer = nn.Linear(dim_in, count)
        nn.init.xavier_uniform_(layer.weight, generator=generator)
        nn.init.zeros_(layer.bias)
        layers.append(layer)
    return nn.Sequential(*layers, nn.Softmax(-1))


def channel_prototypes(
    dim_in: int, count: int, classes: int, *, generator: torch.Generator | None = None
) -> tuple[nn.Sequential, PrototypeBank]:
    """Return such a neck and its channels as a bank: fixed unit vectors, which no class owns.

    Parameters
    ----------
    dim_in, count
        As for :func:`channel_neck`; with ``count`` 0 there are ``dim_in`` prototypes.
    classes : int
        How many could own one.
    generator : torch.Generator, optional
        Source of the initial weights.

    Examples
    --------
    >>> neck, bank = channel_prototypes(32, 8, classes=3)
    >>> bank.vectors.shape, bank.learned
    (torch.Size([8, 8]), False)
    """
    return channel_neck(dim_in, count, generator=generator), channel_bank(count or dim_in, classes)


def channel_bank(channels: int, classes: int) -> PrototypeBank:
    """Return channels as a bank: fixed unit vectors, which no class owns.

    Examples
    --------
    >>> channel_bank(4, classes=2).owner().tolist()
    [-1, -1, -1, -1]
    """
    return PrototypeBank(torch.eye(channels), torch.zeros(channels, classes), learned=False)


class OwnChannel:
    """How much a place shows a prototype that is a channel: the channel's value there.

    The dot product with the unit vectors of such a bank, without the product; hand it to a model as ``compare``.

    Examples
    --------
    >>> bank = channel_bank(3, classes=2)
    >>> bank.prune([1])
    >>> OwnChannel(bank)(Tokens(torch.tensor([[[1.0, 2.0, 3.0]]])))
    tensor([[[1., 3.]]])
    """

    def __init__(self, bank: PrototypeBank) -> None:
        self.bank = bank

    def channels(self) -> Tensor:
        """Return ``(P,)`` int64: the channel of each prototype."""
        return self.bank.vectors.argmax(1)

    def __call__(self, tokens: Tokens) -> Tensor:
        """Return ``(B, S, P)``."""
        rows = self.channels()
        width = tokens.values.shape[-1]
        whole = len(rows) == width and bool((rows == torch.arange(width, device=rows.device)).all())
        return tokens.values if whole else tokens.values[..., rows]
