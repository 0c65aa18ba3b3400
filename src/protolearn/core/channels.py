"""Prototypes that are channels: a place shows one as much as its share of a softmax over channels says."""

from __future__ import annotations

import torch
from torch import nn

from protolearn.core.bank import PrototypeBank


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
    channels = count or dim_in
    bank = PrototypeBank(torch.eye(channels), torch.zeros(channels, classes), learned=False)
    return channel_neck(dim_in, count, generator=generator), bank
