"""Tokens that speak for their neighbourhood."""

from __future__ import annotations

import torch.nn.functional as F

from protolearn.structures import Tokens


def smooth(tokens: Tokens, window: int) -> Tokens:
    """Return tokens averaged over a window of cells around each; at the border over the cells there are.

    Parameters
    ----------
    tokens : Tokens
        On a grid, without mask.
    window : int
        Odd number of cells along each axis; 1 changes nothing.

    Raises
    ------
    ValueError
        If the tokens have no grid, or a mask, or the window is even.

    Examples
    --------
    >>> import torch
    >>> smooth(Tokens(torch.tensor([[[0.0], [3.0], [6.0]]]), grid=(3,)), 3).values.flatten()
    tensor([1.5000, 3.0000, 4.5000])
    """
    if window == 1:
        return tokens
    if tokens.grid is None or tokens.mask is not None:
        raise ValueError("neighbours are known on a whole grid only: these tokens have a mask, or no grid")
    if window < 1 or window % 2 == 0:
        raise ValueError(f"window must be an odd number of cells, got {window}")
    batch, _, width = tokens.values.shape
    maps = tokens.values.transpose(1, 2).reshape(batch, width, *tokens.grid)
    pool = F.avg_pool1d if len(tokens.grid) == 1 else F.avg_pool2d
    averaged = pool(maps, window, stride=1, padding=window // 2, count_include_pad=False)
    return tokens.replace(values=averaged.flatten(2).transpose(1, 2), window=tokens.window + window - 1)
