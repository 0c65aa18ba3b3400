"""Maps on other grids: a fine one folded onto a coarse grid, tokens laid out on a finer one, maps over pixels."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from protolearn.structures import Tokens


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
    >>> import torch
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


def upsample_maps(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Enlarge maps ``(..., h, w)`` to ``(..., H, W)`` by bicubic interpolation, as two small matrix products.

    The values equal ``torch.nn.functional.interpolate(..., mode="bicubic")`` up to rounding, at a fraction of its time.

    Examples
    --------
    >>> import torch
    >>> upsample_maps(torch.rand(2, 5, 7, 7), (8, 12)).shape
    torch.Size([2, 5, 8, 12])
    """
    rows, columns = (bicubic_weights(int(c), int(f)).to(maps) for c, f in zip(maps.shape[-2:], size, strict=True))
    return torch.einsum("yh,...hw->...yw", rows, maps) @ columns.T


@lru_cache(maxsize=64)
def bicubic_weights(coarse: int, fine: int) -> Tensor:
    """Return ``(fine, coarse)``: the interpolation weights, read off torch's own interpolation of unit vectors.

    Examples
    --------
    >>> bicubic_weights(3, 6).sum(1)
    tensor([1., 1., 1., 1., 1., 1.])
    """
    units = torch.eye(coarse).view(coarse, 1, coarse, 1)
    return F.interpolate(units, size=(fine, 1), mode="bicubic", align_corners=False).view(coarse, fine).T.contiguous()


def enlarge(tokens: Tokens, factor: int) -> Tokens:
    """Return tokens on a grid with ``factor`` times the cells along each axis, interpolated (bilinear).

    Tokens that have no grid, or a mask, have no places between them and stay as they are.

    Examples
    --------
    >>> import torch
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
