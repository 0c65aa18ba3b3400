"""A few rows that stand for many: greedy k-centre selection, where no row is far from a chosen one."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Coreset(NamedTuple):
    """Chosen rows."""

    rows: Tensor
    """``(k,)`` int64, in the order in which they were chosen, all different."""
    radius: float
    """Largest distance of any row to its nearest chosen one, in the space in which they were chosen."""


def random_projection(values: Tensor, width: int, generator: torch.Generator) -> Tensor:
    """Return ``(N, width)``: rows projected by a Gaussian matrix, which keeps distances on average.

    Source: Johnson and Lindenstrauss (1984). Rows that are no wider than ``width`` stay as they are, and then nothing
    is drawn.

    Examples
    --------
    >>> random_projection(torch.eye(3), 2, torch.Generator().manual_seed(0)).shape
    torch.Size([3, 2])
    """
    if width < 1:
        raise ValueError(f"width must be at least 1, got {width}")
    if values.shape[1] <= width:
        return values
    matrix = torch.randn(values.shape[1], width, generator=generator, dtype=torch.float64) / width**0.5
    projected: Tensor = values @ matrix.to(values)
    return projected


@torch.no_grad()
def greedy_coreset(values: Tensor, count: int, *, generator: torch.Generator, width: int | None = 128) -> Coreset:
    """Choose rows one by one, each the farthest from those chosen before.

    The largest distance to a chosen row is at most twice the smallest that any choice of as many rows could reach.
    Source: Gonzalez (1985); for memories of patches, PatchCore (Roth et al., 2022), Algorithm 1.

    Parameters
    ----------
    values : Tensor
        ``(N, D)``, finite.
    count : int
        k, from 1 to N.
    generator : torch.Generator
        On the CPU; draws the first row and the projection.
    width : int, optional
        Rows are compared after a random projection to so many numbers; None = as they are.

    Raises
    ------
    ValueError
        If there are fewer rows than are to be chosen, or a value is not finite.

    Examples
    --------
    >>> line = torch.tensor([[0.0], [0.1], [9.0], [9.1], [4.0]])
    >>> found = greedy_coreset(line, 3, generator=torch.Generator().manual_seed(0))
    >>> sorted(round(float(x)) for x in line[found.rows, 0]), round(found.radius, 4)
    ([0, 4, 9], 0.1)
    """
    if values.ndim != 2 or not 1 <= count <= len(values):
        raise ValueError(f"{count} rows cannot be chosen from {tuple(values.shape)}: choose 1 to {len(values)}")
    if not bool(values.isfinite().all()):
        raise ValueError("rows to choose from must be finite")
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    values = values - values.mean(0)  # distances stay, and squares of far-away rows do not cancel
    first = int(torch.randint(len(values), (1,), generator=generator))
    small = values if width is None else random_projection(values, width, generator)
    norms = small.square().sum(1)
    gaps = norms.new_full((len(values),), float("inf"))
    chosen = torch.empty(count, dtype=torch.long, device=values.device)
    taken = torch.zeros(len(values), dtype=torch.bool, device=values.device)
    row = torch.tensor(first, device=values.device)
    for k in range(count):  # each choice depends on all before it
        chosen[k], taken[row] = row, True
        gaps = torch.minimum(gaps, (norms + norms[row] - 2 * (small @ small[row])).clamp_min_(0.0))
        row = gaps.masked_fill(taken, -1.0).argmax()
    return Coreset(chosen, float(gaps.masked_fill(taken, 0.0).max().sqrt()))
