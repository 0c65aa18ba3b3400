"""A table over positions as maps, where positions are cells of a grid."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from protolearn.structures import Output, Tokens

if TYPE_CHECKING:
    from protolearn.core.model import PrototypeModel


def sides(tokens: Tokens) -> tuple[int, int] | None:
    """Return rows and columns of the tokens, one row where they are a series, None where they are a set.

    Examples
    --------
    >>> sides(Tokens(torch.zeros(1, 6, 2), grid=(6,)))
    (1, 6)
    """
    if tokens.grid is None:
        return None
    return (tokens.grid[0], tokens.grid[1]) if len(tokens.grid) == 2 else (1, tokens.grid[0])


def folded(out: Output) -> Tensor:
    """Return the table of an output as maps ``(B, P, H, W)``, 0 where there is no real position.

    Tokens that are a set give one column, ``(B, P, S, 1)``, in which neighbours mean nothing.

    Raises
    ------
    ValueError
        If the output has no table: the model pooled by its maximum.
    """
    if out.table is None or out.tokens is None:
        raise ValueError("maps need the table of all positions: the model must not pool by its maximum")
    table = out.table if out.tokens.mask is None else out.table * out.tokens.mask.unsqueeze(-1)
    height, width = sides(out.tokens) or (table.shape[1], 1)
    return table.transpose(1, 2).reshape(len(table), table.shape[2], height, width)


@torch.no_grad()
def border_share(model: PrototypeModel, batches: Iterable[tuple[Tokens, Tensor]]) -> Tensor:
    """Return ``(P,)``: of the tokens that are nearest to each prototype, the share in the outermost cells.

    0 for a prototype that is nearest to none, and where tokens have no grid.
    """
    counts = model.bank.ownership.new_zeros(2, len(model.bank))
    for encoded, _ in batches:
        tokens = model.embed(encoded)
        ring = _ring(tokens).to(counts.device)
        nearest = model.measure.nearest(model.measure.pairwise(tokens.values, model.bank.vectors), dim=2)[1]
        real = torch.ones_like(nearest, dtype=torch.bool) if tokens.mask is None else tokens.mask
        for row, chosen in enumerate((real, real & ring)):
            counts[row] += torch.bincount(nearest[chosen], minlength=counts.shape[1])
    return counts[1] / counts[0].clamp_min(1)


def _ring(tokens: Tokens) -> Tensor:
    """Return ``(S,)`` bool: the outermost cells of the grid."""
    laid = sides(tokens)
    if laid is None:
        return torch.zeros(tokens.values.shape[1], dtype=torch.bool)
    row, column = torch.meshgrid(*(torch.arange(n) for n in laid), indexing="ij")
    ends = [(place == 0) | (place == n - 1) for place, n in zip((row, column), laid, strict=True) if n > 1]
    return torch.stack(ends).any(0).flatten() if ends else torch.ones(1, dtype=torch.bool)
