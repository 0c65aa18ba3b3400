"""Maps on other grids: enlarged to pixels, a fine one folded onto a coarse grid, tokens laid out on a finer one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from protolearn.core.matching import CACHE_BYTES, chunk_rows
from protolearn.structures import Tokens


def upsample_maps(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Return maps ``(..., h, w)`` enlarged to ``(..., H, W)``, as torch's bicubic interpolation does.

    Two small matrix products for all maps at once; interpolating them one after the other takes thirty times as long.

    Parameters
    ----------
    maps : Tensor
        ``(..., h, w)``, finite.
    size : sequence of int
        ``(H, W)``.

    Examples
    --------
    >>> maps = torch.rand(2, 5, 7, 7)
    >>> there = F.interpolate(maps, size=(28, 14), mode="bicubic")
    >>> torch.allclose(upsample_maps(maps, (28, 14)), there, atol=1e-5)
    True
    """
    if maps.ndim < 2 or len(size) != 2 or min(size) < 1:
        raise ValueError(f"maps (..., h, w) are enlarged to (H, W) from 1, got {tuple(maps.shape)} and {tuple(size)}")
    rows = bicubic_weights(int(maps.shape[-2]), int(size[0])).to(maps)
    columns = bicubic_weights(int(maps.shape[-1]), int(size[1])).to(maps)
    return rows @ (maps @ columns.T)


@lru_cache(maxsize=64)
def bicubic_weights(coarse: int, fine: int) -> Tensor:
    """Return ``(fine, coarse)`` float64: the interpolation weights, read off torch's own interpolation of unit vectors.

    Examples
    --------
    >>> bicubic_weights(3, 6).sum(1)
    tensor([1., 1., 1., 1., 1., 1.], dtype=torch.float64)
    """
    units = torch.eye(coarse, dtype=torch.float64).view(coarse, 1, coarse, 1)
    return F.interpolate(units, size=(fine, 1), mode="bicubic", align_corners=False).view(coarse, fine).T.contiguous()


def peaks(maps: Tensor) -> Tensor:
    """Return row and column ``(..., 2)`` int64 of the first largest value, in row-major order, of maps ``(..., h, w)``.

    Examples
    --------
    >>> peaks(torch.tensor([[[0.0, 1.0], [1.0, 0.0]]])).tolist()
    [[0, 1]]
    """
    # the largest of each row first: a maximum is found much faster than its place
    row = maps.amax(-1).argmax(-1, keepdim=True)
    line = maps.gather(-2, row.unsqueeze(-1).expand(*row.shape, maps.shape[-1])).squeeze(-2)
    return torch.cat([row, line.argmax(-1, keepdim=True)], -1)


def fine_peaks(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Return row and column ``(n, 2)`` of the peaks of maps ``(n, h, w)`` enlarged to ``(H, W)``, in bounded memory.

    The first peak in row-major order; of a map that is the same everywhere, the first pixel.

    Examples
    --------
    >>> fine_peaks(torch.tensor([[[0.0, 1.0], [0.0, 0.0]], [[0.1, 0.1], [0.1, 0.1]]]), (8, 8)).tolist()
    [[0, 7], [0, 0]]
    """
    maps = maps.detach() if maps.dtype == torch.float64 else maps.detach().float()
    rows = bicubic_weights(int(maps.shape[1]), int(size[0])).to(maps)
    columns = bicubic_weights(int(maps.shape[2]), int(size[1])).to(maps)
    # a number added to a map moves no peak; without it a flat map stays flat to the last digit
    wide = (maps - maps.amin((1, 2), keepdim=True)) @ columns.T
    # one table for all chunks, small enough to stay in a processor's cache: fetching it anew would take longer
    budget = CACHE_BYTES // 2 if maps.device.type == "cpu" else None
    most = chunk_rows(maps.element_size() * int(size[0]) * int(size[1]), budget)
    table = maps.new_empty(min(most, len(maps)), int(size[0]), int(size[1]))
    found = []
    for part in torch.split(wide, most):
        fine = table[: len(part)]
        torch.matmul(rows, part, out=fine)
        found.append(peaks(fine))
    return torch.cat(found)


def fold_blocks(maps: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Return a fine map as tokens ``(B, H*W, D*r*r)`` of a coarse grid: each block of ``r x r`` cells becomes one.

    No value is lost or averaged; entry ``(d*r + i)*r + j`` of a token is channel ``d`` at row ``i``, column ``j`` of
    its block. A map whose sides are no multiple of the grid's is first resized (bilinear) to the nearest multiple.

    Source: EvalProtoPNet (Huang et al., 2023), the shallow features of its alignment.

    Parameters
    ----------
    maps : Tensor
        ``(B, D, H', W')``.
    grid : (int, int)
        ``(H, W)``.

    Examples
    --------
    >>> fold_blocks(torch.arange(8.0).view(1, 1, 2, 4), (1, 2))
    tensor([[[0., 1., 4., 5.],
             [2., 3., 6., 7.]]])
    """
    if maps.ndim != 4 or len(grid) != 2:
        raise ValueError(f"blocks are cut from maps (B, D, H, W) for a grid (H, W), got {tuple(maps.shape)} and {grid}")
    rows, columns = (max(1, round(side / cells)) for side, cells in zip(maps.shape[2:], grid, strict=True))
    size = (grid[0] * rows, grid[1] * columns)
    if maps.shape[2:] != size:
        maps = F.interpolate(maps, size=size, mode="bilinear")
    # unfold lists channels first, then rows and columns of a block, as said above
    return F.unfold(maps, (rows, columns), stride=(rows, columns)).transpose(1, 2)


def enlarge(tokens: Tokens, factor: int) -> Tokens:
    """Return tokens on a grid with ``factor`` times the cells along each axis, interpolated (bilinear).

    Tokens that have no grid, or a mask, have no places between them and stay as they are.

    Examples
    --------
    >>> enlarge(Tokens(torch.tensor([[[0.0], [4.0]]]), grid=(2,)), 2).values.flatten()
    tensor([0., 1., 3., 4.])
    """
    if factor < 1:
        raise ValueError(f"a grid is enlarged by a whole number from 1, got {factor}")
    if factor == 1 or tokens.grid is None or tokens.mask is not None:
        return tokens
    batch, _, width = tokens.values.shape
    maps = tokens.values.transpose(1, 2).reshape(batch, width, *tokens.grid)
    finer = F.interpolate(maps, scale_factor=factor, mode="linear" if len(tokens.grid) == 1 else "bilinear")
    grid = tuple(side * factor for side in tokens.grid)
    # a token still stands for (at least) its old cell: the smallest odd number of new cells that covers it
    window = tokens.window * factor // 2 * 2 + 1
    return tokens.replace(values=finer.flatten(2).transpose(1, 2), grid=grid, window=window)
