"""Do prototypes point at different things? Overlap of the regions where two of them are high in the same picture."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from protolearn.core.matching import chunk_rows
from protolearn.errors import UsageError


def shown(maps: Tensor, threshold: float = 0.5) -> tuple[Tensor, Tensor]:
    """Return where maps are high, ``(B, P, h * w)`` bool, and ``(B, P)`` bool: maps that are the same everywhere.

    High is at least ``threshold`` after the map is scaled to 0 to 1; a flat map is high nowhere.

    Examples
    --------
    >>> shown(torch.tensor([[[[0.0, 3.0], [2.0, 1.0]]]]))[0].tolist()
    [[[False, True, True, False]]]
    """
    flat = maps.detach().flatten(2)
    low, high = flat.amin(2, keepdim=True), flat.amax(2, keepdim=True)
    same = low == high
    return (flat - low >= threshold * (high - low)) & ~same, same.squeeze(2)


@dataclass(frozen=True, eq=False)
class Overlaps:
    """Overlap of what pairs of prototypes point at, in some cases.

    Attributes
    ----------
    cases, prototypes : Tensor
        ``(b,)`` and ``(K,)`` rows of the batch and of the prototypes.
    iou, chance : Tensor
        ``(b, K, K)`` overlap of the two regions (intersection over union), and what two regions of these sizes laid
        at random would overlap by; 0 where not judged.
    judged : Tensor
        ``(b, K, K)`` bool: two different prototypes, both with a region.
    """

    cases: Tensor
    prototypes: Tensor
    iou: Tensor
    chance: Tensor
    judged: Tensor


def map_overlaps(maps: Tensor, counted: Tensor, *, threshold: float = 0.5) -> Iterator[Overlaps]:
    """Yield the overlap of all pairs of counted prototypes, for cases that count the same ones, in bounded chunks.

    Parameters
    ----------
    maps : Tensor
        ``(B, P, h, w)`` similarities.
    counted : Tensor
        ``(B, P)`` bool: prototypes looked at in each case, such as those of one class.
    threshold : float
        Of the map scaled to 0 to 1.

    Examples
    --------
    >>> maps = torch.tensor([[[[1.0, 1.0, 0.0, 0.0]], [[0.0, 1.0, 1.0, 0.0]]]])
    >>> [round(float(found.iou[0, 0, 1]), 3) for found in map_overlaps(maps, torch.ones(1, 2) > 0)]
    [0.333]
    """
    if maps.ndim != 4 or counted.shape != maps.shape[:2]:
        raise ValueError(f"maps {tuple(maps.shape)} must be (B, P, h, w) and counted {tuple(counted.shape)} (B, P)")
    if not 0 < threshold <= 1:
        raise UsageError(f"threshold must be above 0 and at most 1, got {threshold}")
    kinds, which = torch.unique(counted, dim=0, return_inverse=True)
    for k, kind in enumerate(kinds):
        prototypes = kind.nonzero().squeeze(1)
        size = len(prototypes)
        if size < 2:
            continue
        rows = chunk_rows(4 * max(8 * size * size, size * maps.shape[2] * maps.shape[3]))
        for cases in (which == k).nonzero().squeeze(1).split(rows):
            regions, flat = shown(maps[cases.unsqueeze(1), prototypes], threshold)
            areas = regions.sum(2).float()
            both = torch.bmm(regions.float(), regions.float().transpose(1, 2))
            union = areas.unsqueeze(2) + areas.unsqueeze(1) - both
            share = areas / regions.shape[2]
            meet = share.unsqueeze(2) * share.unsqueeze(1)
            judged = ~(flat.unsqueeze(2) | flat.unsqueeze(1))
            judged &= ~torch.eye(size, dtype=torch.bool, device=maps.device)
            iou = torch.where(judged, both / union.clamp_min(1), 0.0)
            chance = meet / (share.unsqueeze(2) + share.unsqueeze(1) - meet).clamp_min(1e-12)
            yield Overlaps(cases, prototypes, iou, torch.where(judged, chance, 0.0), judged)
