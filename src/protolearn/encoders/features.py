"""Features that were computed elsewhere, taken as tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
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
    grid : tuple of int, optional
        How the features of an input lie, row by row, where they are the cells of a map: ``(H, W)``, or ``(T,)``.

    Examples
    --------
    >>> import torch
    >>> FeatureEncoder(3)(torch.zeros(2, 3)).values.shape
    torch.Size([2, 1, 3])
    >>> FeatureEncoder(3, grid=(2, 2))(torch.zeros(1, 4, 3)).grid
    (2, 2)
    """

    def __init__(self, dim: int, *, grid: Sequence[int] | None = None) -> None:
        super().__init__()
        if dim < 1:
            raise UsageError(f"features must be at least 1 wide, got dim = {dim}")
        if grid is not None and (len(grid) not in (1, 2) or min(grid) < 1):
            raise UsageError(f"grid must be (H, W) or (T,), got {tuple(grid)}")
        self.dim, self.grid = dim, None if grid is None else tuple(grid)

    def forward(self, inputs: Tensor) -> Tokens:
        """Return ``(B, D)`` as one token each, ``(B, S, D)`` as it is."""
        if inputs.ndim not in (2, 3) or inputs.shape[-1] != self.dim:
            raise UsageError(f"features must be (B, {self.dim}) or (B, S, {self.dim}), got {tuple(inputs.shape)}")
        values = inputs.unsqueeze(1) if inputs.ndim == 2 else inputs
        if self.grid is not None and math.prod(self.grid) != values.shape[1]:
            raise UsageError(f"an input of {values.shape[1]} features does not fill the grid {self.grid}")
        return Tokens(values, grid=self.grid)

    def spec(self) -> dict[str, Any]:
        """Return the settings."""
        laid = {} if self.grid is None else {"grid": list(self.grid)}
        return {"encoder": "features", "dim": self.dim, **laid}
