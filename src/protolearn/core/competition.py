"""Prototypes that compete for a place: what one gains there the others lose."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SoftShares(nn.Module):
    """A softmax over prototypes at every position, so that the shares of a place sum to 1.

    Parameters
    ----------
    temperature : float
        Similarities are divided by it.
    gumbel : bool
        In training, add Gumbel noise before the softmax: the place is then drawn rather than shared (Jang et al.,
        2017). In eval mode nothing is drawn.

    Examples
    --------
    >>> SoftShares()(torch.zeros(1, 1, 3), torch.tensor([True, True, False]))
    tensor([[[0.5000, 0.5000, 0.0000]]])
    """

    def __init__(self, temperature: float = 1.0, *, gumbel: bool = False) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        self.temperature, self.gumbel = temperature, gumbel

    def forward(self, table: Tensor, usable: Tensor) -> Tensor:
        """Return shares ``(B, S, P)``; 0 for a prototype that is not usable."""
        # a position that is no real one has infinitely small similarities: any shares will do, but not nan
        logits = table.clamp_min(torch.finfo(table.dtype).min / 4)
        if self.gumbel and self.training:
            logits = logits - torch.empty_like(logits).exponential_().clamp_min(torch.finfo(logits.dtype).tiny).log()
        logits = (logits / self.temperature).masked_fill(~usable, float("-inf"))
        return logits.softmax(-1).masked_fill(~usable, 0.0)
