"""Consistency and stability by the area a prototype lights up, rather than by a square around its peak.

Source: ScaleProtoSeg (Porta et al., 2025): a prototype's region in a picture is where its map lies above its own 0.8
quantile: a fifth of the picture at most, whatever the map's shape. A part is present where the region meets it, which
is its mask where there is one, else the pixel of its key point. n pictures, P prototypes, N parts.

The released code looks at the centre of each piece of a part instead of the whole piece, which is what a key point
amounts to, enlarges maps by the nearest cell (``mode="nearest"`` here), and first sets the map to 0 outside the
object's class. The last is left out: where an object covers less than a fifth of the picture, the quantile is then 0
and every prototype covers the whole object.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from protolearn.audit.object_parts import check_points
from protolearn.core.maps import upsample_maps
from protolearn.core.matching import chunk_rows
from protolearn.errors import UsageError, look_up

MODES: dict[str, Callable[[Tensor, tuple[int, int]], Tensor]] = {
    "bicubic": upsample_maps,
    "nearest": lambda maps, size: F.interpolate(maps.unsqueeze(1), size=size, mode="nearest-exact").squeeze(1),
}


def quantile_masks(
    maps: Tensor, *, size: tuple[int, int] = (224, 224), quantile: float = 0.8, mode: str = "bicubic"
) -> Tensor:
    """Return ``(m, H, W)`` bool: where each enlarged map lies above its own quantile.

    A map that is the same everywhere marks nothing.

    Parameters
    ----------
    maps : Tensor
        ``(m, h, w)`` similarities.
    size : (int, int)
        Height and width.
    quantile : float
        Of the enlarged map's pixels, by linear interpolation; pixels strictly above it are marked.
    mode : {"bicubic", "nearest"}
        How maps are enlarged.

    Examples
    --------
    >>> quantile_masks(torch.tensor([[[0.0, 1.0], [2.0, 3.0]]]), size=(2, 2), quantile=0.5).long().tolist()
    [[[0, 0], [1, 1]]]
    """
    if not 0 <= quantile < 1:
        raise UsageError(f"quantile must be from 0 to below 1, got {quantile}")
    if not len(maps):
        return torch.zeros(0, *size, dtype=torch.bool, device=maps.device)
    enlarge = look_up("way of enlarging maps", mode, MODES)
    # from 0 upwards: enlarging any other floor leaves rounding in it, of which a part would lie above the quantile
    raised = (maps - maps.amin((1, 2), keepdim=True)).float()
    fine = enlarge(raised, size).flatten(1)
    return (fine > torch.quantile(fine, quantile, dim=1, keepdim=True)).unflatten(1, size)


def segment_hits(
    maps: Tensor,
    counted: Tensor,
    points: Tensor,
    visible: Tensor,
    *,
    size: int = 224,
    quantile: float = 0.8,
    mode: str = "bicubic",
) -> Tensor:
    """Return ``(n, P, N)`` bool: which visible key points lie in a pixel that the prototype's region holds.

    Parameters
    ----------
    maps : Tensor
        ``(n, P, h, w)`` similarities.
    counted : Tensor
        ``(n, P)`` bool: the pairs looked at; nothing is hit elsewhere.
    points : Tensor
        ``(n, N, 2)`` x and y, in pixels of the picture resized to ``size x size``.
    visible : Tensor
        ``(n, N)`` bool.
    size, quantile, mode
        As in :func:`quantile_masks`; the picture is a square of side ``size``.

    Examples
    --------
    >>> maps = torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]])
    >>> points = torch.tensor([[[1.5, 1.5], [0.5, 0.5]]])
    >>> segment_hits(maps, torch.ones(1, 1) > 0, points, torch.ones(1, 2) > 0, size=2, quantile=0.5)
    tensor([[[ True, False]]])
    """
    check_points(maps, counted, points, visible)
    pixels = points.floor().long().clamp(0, size - 1)
    place = pixels[..., 1] * size + pixels[..., 0]
    hits = torch.zeros(*counted.shape, points.shape[1], dtype=torch.bool, device=maps.device)
    for case, prototype in _pairs(counted, 4 * size * size):
        masks = quantile_masks(maps[case, prototype], size=(size, size), quantile=quantile, mode=mode).flatten(1)
        hits[case, prototype] = masks.gather(1, place[case]) & visible[case].bool()
    return hits


def segment_overlaps(
    maps: Tensor, counted: Tensor, parts: Tensor, *, quantile: float = 0.8, mode: str = "bicubic"
) -> Tensor:
    """Return ``(n, P, N)`` bool: which parts the prototype's region overlaps by at least a pixel.

    Parameters
    ----------
    maps : Tensor
        ``(n, P, h, w)`` similarities.
    counted : Tensor
        ``(n, P)`` bool: the pairs looked at.
    parts : Tensor
        ``(n, N, H, W)`` bool masks; an empty one is a part that cannot be seen and is never overlapped.
    quantile, mode
        As in :func:`quantile_masks`, on maps enlarged to ``H x W``.

    Examples
    --------
    >>> maps = torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]])
    >>> parts = torch.tensor([[[[0, 0], [0, 1]], [[1, 1], [0, 0]], [[0, 0], [0, 0]]]]) > 0
    >>> segment_overlaps(maps, torch.ones(1, 1) > 0, parts, quantile=0.5)
    tensor([[[ True, False, False]]])
    """
    if maps.ndim != 4 or counted.shape != maps.shape[:2] or parts.ndim != 4 or len(parts) != len(maps):
        raise ValueError(
            f"maps {tuple(maps.shape)} must be (n, P, h, w), counted {tuple(counted.shape)} (n, P) and parts "
            f"{tuple(parts.shape)} (n, N, H, W)"
        )
    size = (int(parts.shape[2]), int(parts.shape[3]))
    flat = parts.bool().flatten(2)
    hits = torch.zeros(*counted.shape, parts.shape[1], dtype=torch.bool, device=maps.device)
    for case, prototype in _pairs(counted, size[0] * size[1] * (4 + parts.shape[1])):
        masks = quantile_masks(maps[case, prototype], size=size, quantile=quantile, mode=mode).flatten(1)
        hits[case, prototype] = (masks.unsqueeze(1) & flat[case]).any(2)
    return hits


def _pairs(counted: Tensor, bytes_each: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the pairs that count, case and prototype, as many at a time as memory is meant for."""
    case, prototype = counted.nonzero(as_tuple=True)
    rows = chunk_rows(bytes_each)
    yield from zip(case.split(rows), prototype.split(rows), strict=True)
