"""From an embedded token back to what it stands for, so that a prototype can be shown as what it looks like."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from protolearn.structures import Tokens


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
    """Two layers from embedded tokens back to the encoder's tokens: linear, ReLU, linear.

    Examples
    --------
    >>> FeatureDecoder(4, 16)(torch.zeros(2, 1, 4)).shape
    torch.Size([2, 1, 16])
    """

    def __init__(
        self, dim: int, dim_out: int, hidden: int | None = None, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.net = two_layers(dim, dim_out, hidden, generator=generator)

    def forward(self, values: Tensor) -> Tensor:
        """Return ``(..., dim_out)``."""
        decoded: Tensor = self.net(values)
        return decoded

    def original(self, inputs: Tensor | None, encoded: Tokens) -> Tensor:
        """Return the encoder's tokens."""
        return encoded.values


def two_layers(
    dim: int, dim_out: int, hidden: int | None = None, *, generator: torch.Generator | None = None
) -> nn.Sequential:
    """Return linear, ReLU, linear; ``hidden`` is the larger of the two widths, at most 256, where it is not given.

    Weights are normal with deviation ``sqrt(2 / width)`` before the ReLU and ``sqrt(1 / width)`` after it, biases 0.
    """
    width = min(256, max(dim, dim_out)) if hidden is None else hidden
    layers = nn.Sequential(nn.Linear(dim, width), nn.ReLU(), nn.Linear(width, dim_out))
    for layer, gain in ((layers[0], 2.0), (layers[2], 1.0)):
        assert isinstance(layer, nn.Linear)
        nn.init.normal_(layer.weight, std=(gain / layer.in_features) ** 0.5, generator=generator)
        nn.init.zeros_(layer.bias)
    return layers
