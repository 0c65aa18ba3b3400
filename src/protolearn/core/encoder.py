"""What turns an input into tokens."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from protolearn.core.decoders import Decoder
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
    about_training: ClassVar[tuple[str, ...]] = ()
    """Entries of :meth:`spec` that serve training and change no token."""
    classifier: tuple[Tensor, Tensor] | None = None
    """Weight ``(C, D)`` and bias ``(C,)`` with which the network that the encoder was cut from made its logits of the
    mean of its tokens; None where it is no part of a trained classifier. Not a part of the encoder, and not saved."""
    rebuilds: ClassVar[bool] = True
    """Whether :meth:`spec` is enough to make it again: a model whose encoder it is not cannot be saved as a folder."""
    reads_bank: ClassVar[bool] = False
    """Whether its tokens depend on the prototypes too: it is then called with inputs and bank, and even where it is
    frozen its tokens cannot be kept, so every phase goes through the network."""

    @abstractmethod
    def forward(self, inputs: Tensor) -> Tokens:
        """Return tokens, before any neck."""

    @abstractmethod
    def spec(self) -> dict[str, Any]:
        """Return plain JSON settings that rebuild the encoder without its weights (``encoders.make_encoder``)."""

    def tunable(self) -> list[nn.Parameter]:
        """Return the parameters a phase that trains the encoder may change: all, unless a part is kept frozen."""
        return list(self.parameters())

    def make_decoder(self, seed: int = 0) -> Decoder | None:
        """Return an untrained decoder from its tokens back to its inputs, for encoders that have one."""
        return None

    def fingerprint(self) -> str:
        """Return the SHA-256 of settings and weights: encoders with the same one make the same tokens."""
        return fingerprint(self.spec(), self.about_training, self)


def fingerprint(settings: dict[str, Any], left_out: tuple[str, ...], *modules: nn.Module, **tensors: Tensor) -> str:
    """Return the SHA-256 of settings, of the weights of modules, and of tensors.

    The steps a batch norm has seen do not count.
    """
    kept = {name: value for name, value in settings.items() if name not in left_out}
    digest = hashlib.sha256(json.dumps(kept, sort_keys=True).encode())
    for weights in (*(module.state_dict() for module in modules), *([tensors] if tensors else [])):
        digest.update(b"\n--\n")
        for name, tensor in sorted(weights.items()):
            if name.endswith("num_batches_tracked"):
                continue
            values = tensor.detach().cpu().contiguous()
            digest.update(f"\n{name} {values.dtype} {tuple(values.shape)}\n".encode())
            digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
