"""Does a heat map lie on the object? Heat inside and outside a mask or box, overlap, and the peak.

Source: the evaluation code of ST-ProtoPNet (Wang et al., ICCV 2023) for content heat, the ratio outside to inside and
the overlap; CSR for the pointing game. B cases, P prototypes, h x w cells, H x W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from protolearn.audit.heat import heat
from protolearn.core.maps import peaks
from protolearn.core.matching import CACHE_BYTES, chunk_rows
from protolearn.errors import UsageError


@dataclass(frozen=True, eq=False)
class Localised:
    """How each map lies to its object, ``(B, P)`` float64 each; NaN where that is undefined.

    Attributes
    ----------
    content_heat : Tensor
        Mean heat inside the object, 0 to 1.
    content_heat_share : Tensor
        Heat inside divided by all heat, 0 to 1.
    oirr : Tensor
        Mean heat outside divided by mean heat inside, from 0; undefined where there is no heat inside, or where the
        object fills the picture.
    iou : Tensor
        Pixels that are object and hot, divided by pixels that are either.
    pointing : Tensor
        1 where the hottest pixel is object, 0 where it is not.
    """

    content_heat: Tensor
    content_heat_share: Tensor
    oirr: Tensor
    iou: Tensor
    pointing: Tensor


def localise(maps: Tensor, counted: Tensor, objects: Tensor, *, threshold: float = 0.5) -> Localised:
    """Compare maps with the object in their picture, all at once.

    A map is enlarged to the object's size (bicubic) and scaled to reach from 0 to 1. Nothing is judged where a map is
    the same everywhere or holds NaN, or where the object is empty.

    Parameters
    ----------
    maps : Tensor
        ``(B, P, h, w)`` similarities.
    counted : Tensor
        ``(B, P)`` bool: pairs that are judged.
    objects : Tensor
        ``(B, H, W)`` bool.
    threshold : float
        Heat from which a pixel is hot.

    Examples
    --------
    >>> object_ = torch.tensor([[[True, False], [False, False]]])
    >>> found = localise(object_.double().unsqueeze(1), torch.ones(1, 1) > 0, object_)
    >>> [round(getattr(found, name).item(), 6) for name in ("content_heat", "content_heat_share", "oirr", "iou")]
    [1.0, 1.0, 0.0, 1.0]
    """
    if maps.ndim != 4 or counted.shape != maps.shape[:2] or objects.ndim != 3 or len(objects) != len(maps):
        raise ValueError(
            f"maps {tuple(maps.shape)} must be (B, P, h, w), counted {tuple(counted.shape)} (B, P) and objects "
            f"{tuple(objects.shape)} (B, H, W)"
        )
    if not 0 < threshold <= 1:
        raise UsageError(f"a pixel is hot from a threshold above 0 and up to 1, got {threshold}")
    case, prototype = torch.nonzero(counted & objects.flatten(1).any(1, keepdim=True), as_tuple=True)
    table = torch.full((5, *counted.shape), float("nan"), dtype=torch.float64, device=maps.device)
    height, width = objects.shape[1:]
    rows = chunk_rows(4 * height * width, 2 * CACHE_BYTES)
    for i in torch.arange(len(case), device=maps.device).split(rows):
        b, p = case[i], prototype[i]
        table[:, b, p] = _figures(maps[b, p], objects[b], threshold)
    return Localised(*table)


def _figures(maps: Tensor, objects: Tensor, threshold: float) -> Tensor:
    """Return ``(5, m)`` float64 for maps ``(m, h, w)`` and objects ``(m, H, W)``, in the order of ``Localised``."""
    shown, judged = heat(maps, objects.shape[1:])
    row, column = peaks(shown).unbind(1)
    pointing = objects[torch.arange(len(maps), device=maps.device), row, column].double()
    flat, inside = shown.flatten(1), objects.flatten(1).to(shown)
    hot, background = (flat >= threshold).to(flat), 1 - inside
    sums = [torch.linalg.vecdot(*pair) for pair in ((flat, inside), (flat, background), (hot, inside))]
    warm, spilt, both = (each.double() for each in sums)
    area, hot_area = inside.sum(1).double(), hot.sum(1).double()
    content = warm / area
    outside = spilt / (flat.shape[1] - area)  # 0 / 0 where the object fills the picture
    ratio = torch.where(content > 0, outside / content, float("nan"))
    overlap = both / (area + hot_area - both + 1e-8)
    found = torch.stack([content, warm / (warm + spilt), ratio, overlap, pointing])
    return found.masked_fill(~judged, float("nan"))


FIGURES = tuple(field.name for field in fields(Localised))
"""Names of the figures, in order."""
