"""Does a prototype stay where it was when the picture hardly changes? Continuity, without any annotation.

A prototype's region is a square around the peak of its enlarged map, as for consistency; peaks are in pixels of the
picture resized to ``size x size``, and those found in a shifted or cropped picture are mapped back first.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from protolearn.core.maps import fine_peaks
from protolearn.errors import UsageError


def peak_pixels(maps: Tensor, counted: Tensor, size: int = 224) -> Tensor:
    """Return ``(B, P, 2)`` x and y of the first largest pixel of each counted map, enlarged (bicubic).

    NaN where a map is not counted, or is the same everywhere and has no peak.

    Parameters
    ----------
    maps : Tensor
        ``(B, P, h, w)`` similarities.
    counted : Tensor
        ``(B, P)`` bool.
    size : int
        Side of the picture that pixels are counted in.

    Examples
    --------
    >>> peak_pixels(torch.tensor([[[[0.0, 1.0], [0.0, 0.0]]]]), torch.ones(1, 1) > 0, 8).tolist()
    [[[7.0, 0.0]]]
    """
    if maps.ndim != 4 or counted.shape != maps.shape[:2]:
        raise ValueError(f"maps {tuple(maps.shape)} must be (B, P, h, w) and counted {tuple(counted.shape)} (B, P)")
    if size < 1:
        raise UsageError(f"size must be at least 1, got {size}")
    maps = maps.detach().float()
    peaked = counted & (maps.flatten(2).amax(2) > maps.flatten(2).amin(2))
    found = maps.new_full((*counted.shape, 2), float("nan"))
    case, prototype = peaked.nonzero(as_tuple=True)
    if len(case):
        found[case, prototype] = fine_peaks(maps[case, prototype], (size, size)).flip(1).float()
    return found


def region_overlap(one: Tensor, other: Tensor, *, half_side: int = 36, size: int = 224) -> Tensor:
    """Return the overlap (intersection over union) of the squares around two peaks, cut at the picture's border.

    Parameters
    ----------
    one, other : Tensor
        ``(..., 2)`` x and y; NaN gives NaN.
    half_side, size : int
        In pixels.

    Examples
    --------
    >>> peaks = torch.tensor([[50.0, 50.0], [86.0, 50.0], [150.0, 50.0]])
    >>> [round(v, 3) for v in region_overlap(peaks[:1], peaks).tolist()]
    [1.0, 0.333, 0.0]
    """
    if half_side < 1:
        raise UsageError(f"half_side must be at least 1, got {half_side}")
    corners = [((p - half_side).clamp(0, size), (p + half_side).clamp(0, size)) for p in (one, other)]
    low, high = torch.maximum(corners[0][0], corners[1][0]), torch.minimum(corners[0][1], corners[1][1])
    both = (high - low).clamp_min(0).prod(-1)
    areas = [(end - start).prod(-1) for start, end in corners]
    return both / (areas[0] + areas[1] - both)


@dataclass(frozen=True)
class Move:
    """How a place in an altered picture is a place in the picture it was made of, in shares of the sides.

    ``original = offset + scale * altered``, x and y.
    """

    offset: tuple[float, float] = (0.0, 0.0)
    scale: tuple[float, float] = (1.0, 1.0)

    def back(self, peaks: Tensor, size: int = 224) -> Tensor:
        """Return peaks ``(..., 2)`` found in the altered picture, as pixels of the original one.

        Examples
        --------
        >>> Move((0.25, 0.25), (0.5, 0.5)).back(torch.tensor([0.0, 7.0]), 8).tolist()
        [1.75, 5.25]
        """
        offset, scale = peaks.new_tensor(self.offset), peaks.new_tensor(self.scale)
        return offset * size + (peaks + 0.5) * scale - 0.5

    def shows(self, peaks: Tensor, size: int = 224) -> Tensor:
        """Return where a peak of the original picture is still in the altered one, ``(...)`` bool; NaN is not."""
        offset, scale = peaks.new_tensor(self.offset), peaks.new_tensor(self.scale)
        share = ((peaks + 0.5) / size - offset) / scale
        return ((share >= 0) & (share < 1)).all(-1)


def shifted(inputs: Tensor, right: int, down: int) -> tuple[Tensor, Move]:
    """Return pictures moved by whole pixels, the border repeated into what becomes empty, and the way back.

    Parameters
    ----------
    inputs : Tensor
        ``(..., H, W)``.
    right, down : int
        Pixels; negative = left, up.

    Examples
    --------
    >>> shifted(torch.tensor([[1.0, 2.0, 3.0]]), 1, 0)[0].tolist()
    [[1.0, 1.0, 2.0]]
    """
    height, width = inputs.shape[-2:]
    rows = (torch.arange(height, device=inputs.device) - down).clamp(0, height - 1)
    columns = (torch.arange(width, device=inputs.device) - right).clamp(0, width - 1)
    return inputs[..., rows, :][..., columns], Move((-right / width, -down / height))


def cropped(inputs: Tensor, share: float) -> tuple[Tensor, Move]:
    """Return the middle of pictures, this share of each side, enlarged to their size (bilinear), and the way back.

    Parameters
    ----------
    inputs : Tensor
        ``(B, C, H, W)``.
    share : float
        Above 0, at most 1.

    Examples
    --------
    >>> cropped(torch.rand(1, 3, 8, 8), 0.5)[1]
    Move(offset=(0.25, 0.25), scale=(0.5, 0.5))
    """
    if not 0 < share <= 1:
        raise UsageError(f"the share of a crop is above 0 and at most 1, got {share}")
    height, width = inputs.shape[-2:]
    tall, wide = max(1, round(share * height)), max(1, round(share * width))
    top, left = (height - tall) // 2, (width - wide) // 2
    inner = inputs[..., top : top + tall, left : left + wide]
    if (tall, wide) != (height, width):
        inner = F.interpolate(inner, size=(height, width), mode="bilinear", align_corners=False)
    return inner, Move((left / width, top / height), (wide / width, tall / height))
