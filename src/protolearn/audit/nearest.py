"""Where in a case each prototype is most at home."""

from __future__ import annotations

import torch
from torch import Tensor

from protolearn.audit.look import Look


def nearest_places(look: Look) -> tuple[Tensor, Tensor]:
    """Return how near each prototype comes anywhere in each case ``(B, P)`` and the place, -inf where none is.

    That is its highest similarity, or the negative of its smallest distance where the model measures one: it ranks
    cases alike, and far cases without rounding. The place is the position of a token, or the cell of the map in
    row-major order; 0 where a subject shows no places, so that a case is one place.
    """
    out = look.output
    if out is not None and out.table is None:
        near = out.similarities if out.distances is None else -out.distances
        return near.detach().masked_fill(~out.bank.usable, float("-inf")), out.positions
    if out is not None and out.table is not None:
        table = out.table.detach()
        if out.tokens is not None and out.tokens.mask is not None:
            table = table.masked_fill(~out.tokens.mask.unsqueeze(-1), float("-inf"))
        found = table.max(1)
        return found.values.masked_fill(~out.bank.usable, float("-inf")), found.indices
    if look.maps is not None:
        found = look.maps.flatten(2).max(2)
        return found.values, found.indices
    return look.scores, torch.zeros_like(look.scores, dtype=torch.long)
