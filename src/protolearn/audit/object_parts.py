"""Does a prototype mean one part of the object, and stay with it? Consistency and stability against marked key points.

Source: EvalProtoPNet (Huang et al., 2023). A prototype's region in a picture is a square around the peak of its map; it
hits a key point that lies in it. n pictures, P prototypes, N key points.

Always read the two together, and with ``share_never_hitting``: a prototype that never meets any part is perfectly
stable.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from protolearn.core.maps import fine_peaks
from protolearn.errors import UsageError


def part_hits(
    maps: Tensor, counted: Tensor, points: Tensor, visible: Tensor, *, size: int = 224, half_side: int = 36
) -> Tensor:
    """Return ``(n, P, N)`` bool: which visible key points lie in a prototype's region.

    The map is enlarged to ``size`` (bicubic), its first largest pixel taken in row-major order, and the region reaches
    ``half_side`` pixels from it in every direction, cut at the border, borders included.

    Parameters
    ----------
    maps : Tensor
        ``(n, P, h, w)`` similarities.
    counted : Tensor
        ``(n, P)`` bool: the pairs looked at, such as prototypes of the picture's own class; nothing is hit elsewhere.
    points : Tensor
        ``(n, N, 2)`` x and y, in pixels of the picture resized to ``size x size``.
    visible : Tensor
        ``(n, N)`` bool: key points that can be seen; others are never hit.
    size, half_side : int
        In pixels. A larger region hits more: state it with every figure.

    Examples
    --------
    >>> peak = torch.tensor([[[[0.0, 1.0], [0.0, 0.0]]]])
    >>> points = torch.tensor([[[6.0, 1.0], [1.0, 6.0]]])
    >>> part_hits(peak, torch.ones(1, 1) > 0, points, torch.ones(1, 2) > 0, size=8, half_side=2)
    tensor([[[ True, False]]])
    """
    check_points(maps, counted, points, visible)
    if size < 1 or half_side < 0:
        raise UsageError(f"size must be at least 1 and half_side at least 0, got {size} and {half_side}")
    case, prototype = torch.nonzero(counted, as_tuple=True)
    hits = torch.zeros(*counted.shape, points.shape[1], dtype=torch.bool, device=maps.device)
    centre = fine_peaks(maps[case, prototype].float(), (size, size)).flip(1).unsqueeze(1)  # x, y as the key points
    low, high = (centre - half_side).clamp_min(0), (centre + half_side).clamp_max(size)
    inside = ((points[case] >= low) & (points[case] <= high)).all(2)
    hits[case, prototype] = inside & visible[case].bool()
    return hits


def check_points(maps: Tensor, counted: Tensor, points: Tensor, visible: Tensor) -> None:
    """Refuse maps, pairs and key points whose shapes do not fit each other: see :func:`part_hits`."""
    if maps.ndim != 4 or counted.shape != maps.shape[:2] or points.shape != (*visible.shape, 2):
        raise ValueError(
            f"maps {tuple(maps.shape)} must be (n, P, h, w), counted {tuple(counted.shape)} (n, P), points "
            f"{tuple(points.shape)} (n, N, 2) and visible {tuple(visible.shape)} (n, N)"
        )


@dataclass(frozen=True)
class Consistency:
    """How often each prototype hits each key point, and which prototypes keep to one.

    Attributes
    ----------
    rates : Tensor
        ``(P, N)`` share of the counted pictures with a visible key point in which it is hit; 0 where it never is
        visible.
    consistent : Tensor
        ``(P,)`` bool: some rate reaches the threshold.
    judged : Tensor
        ``(P,)`` bool: there was a picture to judge by; others are left out of the score.
    score : float
        100 times the share of judged prototypes that are consistent; nan where none is judged.
    share_never_hitting : float
        Share of judged prototypes that hit no key point in any picture.
    """

    rates: Tensor
    consistent: Tensor
    judged: Tensor
    score: float
    share_never_hitting: float


def consistency(
    hits: Tensor, counted: Tensor, visible: Tensor, *, threshold: float = 0.8, strict: bool = False
) -> Consistency:
    """Judge whether each prototype hits the same key point across pictures.

    Parameters
    ----------
    hits, counted, visible : Tensor
        As in, and from, :func:`part_hits`.
    threshold : float
        Rate of one key point from which a prototype is consistent.
    strict : bool
        Whether the rate must lie above the threshold rather than reach it.

    Examples
    --------
    >>> hits = torch.tensor([[[True, False]], [[True, True]]])
    >>> consistency(hits, torch.ones(2, 1) > 0, torch.ones(2, 2) > 0).rates
    tensor([[1.0000, 0.5000]])
    """
    seen = torch.einsum("np,nk->pk", counted.double(), visible.double())
    hit = (hits & counted.unsqueeze(2)).sum(0).double()
    return consistency_of(hit, seen, counted.any(0), threshold=threshold, strict=strict)


def consistency_of(
    hit: Tensor, seen: Tensor, judged: Tensor, *, threshold: float = 0.8, strict: bool = False
) -> Consistency:
    """Judge prototypes by counts: pictures in which a key point was hit and seen, ``(P, N)``, and ``(P,)`` judged.

    Examples
    --------
    >>> consistency_of(torch.tensor([[4.0, 1.0]]), torch.tensor([[5.0, 1.0]]), torch.ones(1) > 0, threshold=0.9).score
    100.0
    """
    if not 0 <= threshold <= 1:
        raise UsageError(f"threshold must be from 0 to 1, got {threshold}")
    rates = hit.double() / seen.double().clamp_min(1)
    consistent = keeps_to_a_part(rates, threshold=threshold, strict=strict) & judged
    never = judged & (hit <= 0).all(1)
    return Consistency(rates.float(), consistent, judged, 100 * _share(consistent, judged), _share(never, judged))


def keeps_to_a_part(rates: Tensor, *, threshold: float, strict: bool = False) -> Tensor:
    """Return ``(...)`` bool: whether some rate of ``(..., N)`` key points reaches the threshold, or passes it.

    A threshold of 0 asks for one hit at least: a prototype that hits nothing keeps to no part.

    Examples
    --------
    >>> keeps_to_a_part(torch.tensor([[0.8, 0.1], [0.0, 0.0]]), threshold=0.0)
    tensor([ True, False])
    """
    peak = rates.amax(-1)
    return ((peak > threshold) if strict else (peak >= threshold)) & (peak > 0)


@dataclass(frozen=True)
class Stability:
    """How often each prototype hits the very same key points after a disturbance.

    Attributes
    ----------
    rates : Tensor
        ``(P,)`` share of the counted pictures with the same hits.
    judged : Tensor
        ``(P,)`` bool: there was a picture to judge by.
    score : float
        100 times the mean rate of judged prototypes; nan where none is judged.
    """

    rates: Tensor
    judged: Tensor
    score: float


def stability(hits: Tensor, disturbed: Tensor, counted: Tensor) -> Stability:
    """Judge whether each prototype hits the same key points in a picture and in its disturbed version.

    Parameters
    ----------
    hits, disturbed : Tensor
        ``(n, P, N)`` bool, from :func:`part_hits` on both; the mean over several draws of noise is steadier.
    counted : Tensor
        ``(n, P)`` bool.

    Examples
    --------
    >>> hits = torch.tensor([[[True, False]], [[True, True]]])
    >>> stability(hits, hits[:1].expand(2, 1, 2), torch.ones(2, 1) > 0).score
    50.0
    """
    same = (hits == disturbed).all(2) & counted
    judged = counted.any(0)
    rates = same.sum(0) / counted.sum(0).clamp_min(1)
    score = float(rates[judged].double().mean()) if judged.any() else float("nan")
    return Stability(rates, judged, 100 * score)


def _share(some: Tensor, of: Tensor) -> float:
    return float((some & of).sum() / of.sum()) if of.any() else float("nan")
