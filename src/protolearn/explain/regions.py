"""Where a prototype matched: maps of similarity, upsampled, and the rectangles drawn from them.

A map is computed for all positions, all prototypes and all pictures of a batch at once; bicubic upsampling is two small
matrix products, so a hundred maps of a picture cost less than the forward pass that made its tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from protolearn.core.maps import upsample_maps
from protolearn.structures import Box, Tokens


def upsample(maps: Tensor, grid: Sequence[int], size: Sequence[int]) -> Tensor:
    """Enlarge maps over positions to maps over pixels, by bicubic interpolation.

    The values equal ``torch.nn.functional.interpolate(..., mode="bicubic")``; positions that cannot match (infinite
    similarity) count as the lowest value of their map.

    Parameters
    ----------
    maps : Tensor
        ``(B, P, S)`` similarities, as ``PrototypeModel.maps`` returns them.
    grid : sequence of int
        How the positions are laid out: ``(h, w)``.
    size : sequence of int
        ``(H, W)`` in pixels.

    Returns
    -------
    Tensor
        ``(B, P, H, W)``.

    Examples
    --------
    >>> upsample(torch.rand(2, 5, 4), grid=(2, 2), size=(8, 12)).shape
    torch.Size([2, 5, 8, 12])
    """
    if maps.ndim != 3 or len(grid) != 2 or maps.shape[2] != grid[0] * grid[1]:
        raise ValueError(f"maps must be (B, P, S) with S = {tuple(grid)} positions, got {tuple(maps.shape)}")
    folded = _finite(maps).unflatten(2, (int(grid[0]), int(grid[1])))
    return upsample_maps(folded, (int(size[0]), int(size[1])))


def _finite(maps: Tensor) -> Tensor:
    real = torch.isfinite(maps)
    if bool(real.all()):
        return maps
    lowest = maps.masked_fill(~real, float("inf")).amin(2, keepdim=True)
    return torch.where(real, maps, torch.where(torch.isfinite(lowest), lowest, 0.0))


def percentile_boxes(maps: Tensor, percentile: float = 95.0) -> Tensor:
    """Return the bounding rectangle of all pixels at or above a percentile of their map.

    The rule by which published prototype pictures are cut out. It may span several separate blobs.

    Parameters
    ----------
    maps : Tensor
        ``(..., H, W)`` upsampled maps.
    percentile : float
        Of the pixels of one map, linearly interpolated as NumPy does.

    Returns
    -------
    Tensor
        ``(..., 4)`` int64: x0, y0, x1, y1 in pixels of the map, x1 and y1 exclusive.

    Examples
    --------
    >>> spot = torch.zeros(10, 10)
    >>> spot[2:4, 5:8] = 1.0
    >>> percentile_boxes(spot).tolist()
    [5, 2, 8, 4]
    """
    if not 0 <= percentile <= 100:
        raise ValueError(f"a percentile lies in 0 to 100, got {percentile}")
    maps = maps.detach().float()
    threshold = _quantile(maps.flatten(-2), percentile / 100.0).unsqueeze(-1)
    columns, rows = maps.amax(-2) >= threshold, maps.amax(-1) >= threshold
    return torch.cat([_extent(columns), _extent(rows)], -1)[..., [0, 2, 1, 3]]


def _quantile(flat: Tensor, share: float) -> Tensor:
    """Return the interpolated quantile over the last axis by selection; sorting would cost more than the maps did."""
    count = flat.shape[-1]
    place = share * (count - 1)
    low = int(place)
    high = min(low + 1, count - 1)
    if flat.device.type == "cpu":
        chosen = np.partition(flat.numpy(), low, axis=-1)
        below = torch.from_numpy(np.array(chosen[..., low]))
        above = torch.from_numpy(np.array(chosen[..., high:].min(-1))) if high > low else below
    else:
        below, above = flat.kthvalue(low + 1, -1).values, flat.kthvalue(high + 1, -1).values
    # never above the higher of the two by rounding, or the hottest pixel would be left out
    return torch.minimum(below + (above - below) * (place - low), above)


def _extent(line: Tensor) -> Tensor:
    """Return ``(..., 2)``: first true index and the last plus one."""
    values = line.to(torch.uint8)
    first = values.argmax(-1)
    last = line.shape[-1] - values.flip(-1).argmax(-1)
    return torch.stack([first, last], -1)


def to_original(box: Box | Sequence[float], preprocess: Any, picture_size: tuple[int, int]) -> Box:
    """Map a box from pixels of the encoder's input to pixels of the original picture.

    Parameters
    ----------
    box : Box
        In input pixels.
    preprocess : object or None
        The encoder's ``preprocess``; None when pictures enter as they are.
    picture_size : tuple of int
        ``(width, height)`` of the original picture, as Pillow gives it.
    """
    inside = box if isinstance(box, Box) else Box(*map(float, box))
    if preprocess is None or not hasattr(preprocess, "to_picture"):
        return inside
    return Box(*map(float, preprocess.to_picture(inside, picture_size)))


class Cells:
    """The cells of a grid in pixels of original pictures, each worked out once.

    Examples
    --------
    >>> cells = Cells(Tokens(torch.zeros(1, 4, 8), grid=(2, 2), input_size=(32, 32)))
    >>> cells.box(3)
    Box(x0=16.0, y0=16.0, x1=32.0, y1=32.0)
    """

    def __init__(self, tokens: Tokens, preprocess: Any = None) -> None:
        self.layout = tokens.replace(values=tokens.values[:1], mask=None if tokens.mask is None else tokens.mask[:1])
        self.preprocess = preprocess
        self._known: dict[tuple[tuple[int, int] | None, int], Box | None] = {}

    def box(self, position: int, picture_size: tuple[int, int] | None = None) -> Box | None:
        """Return the cell of a position, in original pixels where the picture's size is given."""
        key = (picture_size, position)
        if key not in self._known:
            if len(self._known) > 200_000:  # many picture sizes: start again rather than grow for ever
                self._known.clear()
            inside = self.layout.region(position)
            if inside is not None and picture_size is not None:
                inside = to_original(inside, self.preprocess, picture_size)
            self._known[key] = inside
        return self._known[key]
