"""Features that were computed elsewhere, taken as tokens."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from protolearn.core.encoder import Encoder
from protolearn.errors import UsageError
from protolearn.structures import Tokens


class FeatureEncoder(Encoder):
    """Pass features on: one vector an input, or a set of them.

    Parameters
    ----------
    dim : int
        Width of the features.

    Examples
    --------
    >>> import torch
    >>> FeatureEncoder(3)(torch.zeros(2, 3)).values.shape
    torch.Size([2, 1, 3])
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        if dim < 1:
            raise UsageError(f"features must be at least 1 wide, got dim = {dim}")
        self.dim = dim

    def forward(self, inputs: Tensor) -> Tokens:
        """Return ``(B, D)`` as one token each, ``(B, S, D)`` as it is."""
        if inputs.ndim not in (2, 3) or inputs.shape[-1] != self.dim:
            raise UsageError(f"features must be (B, {self.dim}) or (B, S, {self.dim}), got {tuple(inputs.shape)}")
        return Tokens(inputs.unsqueeze(1) if inputs.ndim == 2 else inputs)

    def spec(self) -> dict[str, Any]:
        """Return the settings."""
        return {"encoder": "features", "dim": self.dim}
