"""From an embedded token back to what it stands for, so that a prototype can be shown as what it looks like."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from protolearn.core.gathering import DrawnCode, WholeInput, whole_input
from protolearn.core.necks import PrincipalAxes
from protolearn.structures import Tokens

if TYPE_CHECKING:
    from protolearn.core.encoder import Encoder


class Decoder(nn.Module, ABC):
    """The contract of a decoder: it acts on each token by itself, and so on prototypes too.

    Attributes
    ----------
    pictures : bool
        What comes out is a picture ``(channels, height, width)`` in the encoder's own pixel values, and can be shown.
    """

    pictures: ClassVar[bool] = False

    @abstractmethod
    def forward(self, values: Tensor) -> Tensor:
        """Return ``(..., *shape)`` for embedded tokens or prototypes ``(..., D)``."""

    @abstractmethod
    def original(self, inputs: Tensor | None, encoded: Tokens) -> Tensor | None:
        """Return ``(B, S, *shape)``: what decoding the tokens ought to give; None where that is not at hand.

        ``inputs`` are the encoder's, None where its tokens were cached; ``encoded`` are its tokens, before the neck.
        """


class FeatureDecoder(Decoder):
    """Two layers from the code of a whole input back to its features, the mean of the encoder's tokens.

    Parameters
    ----------
    dim, dim_out : int
        Widths of codes and of what is decoded.
    axes : PrincipalAxes, optional
        The neck's own: what is decoded are then coordinates on them, which have one scale whatever the encoder, and
        :meth:`features` turns them into features.
    generator : torch.Generator, optional
        Of the initial weights.

    Examples
    --------
    >>> FeatureDecoder(4, 16)(torch.zeros(2, 1, 4)).shape
    torch.Size([2, 1, 16])
    """

    def __init__(
        self,
        dim: int,
        dim_out: int,
        axes: PrincipalAxes | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.axes = axes
        self.net = two_layers(dim, dim_out, generator=generator)

    def forward(self, values: Tensor) -> Tensor:
        """Return ``(..., dim_out)``."""
        decoded: Tensor = self.net(values)
        return decoded

    def features(self, values: Tensor) -> Tensor:
        """Return codes as features of the encoder ``(..., D_in)``."""
        decoded: Tensor = self(values)
        return decoded if self.axes is None else self.axes.undo(decoded)

    def original(self, inputs: Tensor | None, encoded: Tokens) -> Tensor:
        """Return the features, without gradient: an encoder must not make them easier to decode."""
        features = whole_input(encoded).values.detach()
        return features if self.axes is None else self.axes(features)


class Coding(NamedTuple):
    """The parts between an encoder and prototypes that can be decoded."""

    neck: nn.Module
    decoder: Decoder
    dim: int
    """Width of a code."""


def make_coding(encoder: Encoder, dim: int, *, axes: int | None = None, drawn: bool = False, seed: int = 0) -> Coding:
    """Return neck and decoder that fit an encoder.

    Parameters
    ----------
    encoder : Encoder
        One with a decoder of its own makes the code itself, and keeps its width. For every other the mean of its
        tokens is coded by two layers and decoded by two others.
    dim : int
        Width of the code where the encoder does not say it.
    axes : int, optional
        Put features on so many principal axes first (``starts.fit_axes`` fits them), for encoders without decoder.
    drawn : bool
        The code is drawn (a variational autoencoder), by one more linear layer where the encoder makes it.
    seed : int
        Of the initial weights.

    Examples
    --------
    >>> from protolearn.encoders import FeatureEncoder
    >>> make_coding(FeatureEncoder(30), 4).decoder(torch.zeros(2, 1, 4)).shape
    torch.Size([2, 1, 30])
    """
    draw = torch.Generator().manual_seed(seed)
    own, factor = encoder.make_decoder(seed), 2 if drawn else 1
    if own is not None:
        dim = encoder.dim
        if not drawn:
            return Coding(nn.Identity(), own, dim)
        net: nn.Module = linear(dim, 2 * dim, generator=draw)
        return Coding(DrawnCode(WholeInput(net)), own, dim)
    first = None if axes is None else PrincipalAxes(encoder.dim, min(axes, encoder.dim))
    width = encoder.dim if first is None else first.axes.shape[1]
    layers = two_layers(width, factor * dim, generator=draw)
    neck = WholeInput(layers if first is None else nn.Sequential(first, layers))
    decoder = FeatureDecoder(dim, width, first, generator=draw)
    return Coding(DrawnCode(neck) if drawn else neck, decoder, dim)


def two_layers(dim: int, dim_out: int, *, generator: torch.Generator | None = None) -> nn.Sequential:
    """Return linear, ReLU, linear; the width between is the larger of the two, at most 256.

    Weights are normal with deviation ``sqrt(2 / width)`` before the ReLU and ``sqrt(1 / width)`` after it, biases 0.
    """
    width = min(256, max(dim, dim_out))
    first, last = linear(dim, width, gain=2.0, generator=generator), linear(width, dim_out, generator=generator)
    return nn.Sequential(first, nn.ReLU(), last)


def linear(dim: int, dim_out: int, *, gain: float = 1.0, generator: torch.Generator | None = None) -> nn.Linear:
    """Return a linear layer with normal weights of deviation ``sqrt(gain / dim)`` and no bias yet."""
    layer = nn.Linear(dim, dim_out)
    nn.init.normal_(layer.weight, std=(gain / dim) ** 0.5, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer
