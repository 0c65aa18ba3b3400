"""What turns an input into tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from protolearn.structures import Tokens


class Encoder(nn.Module, ABC):
    """The contract of an encoder.

    Attributes
    ----------
    dim : int
        Width of its tokens.
    preprocess : object or None
        How a picture becomes its input: callable on a picture, with ``to_dict()`` and
        ``to_picture(box, picture_size)`` that maps input pixels back; None for inputs that need nothing.
    """

    dim: int
    preprocess: Any = None

    @abstractmethod
    def forward(self, inputs: Tensor) -> Tokens:
        """Return tokens, before any neck."""

    @abstractmethod
    def spec(self) -> dict[str, Any]:
        """Return plain JSON settings that rebuild the encoder without its weights (``encoders.make_encoder``)."""

    def tunable(self) -> list[nn.Parameter]:
        """Return the parameters a phase that trains the encoder may change: all, unless a part is kept frozen."""
        return list(self.parameters())
