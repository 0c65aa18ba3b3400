"""Terms that shape parts found without part labels: soft maps ``(B, K, H, W)`` that say which part a place belongs to.

At every place the maps sum to 1 over parts and background. Source of all: PDiscoNet and PDiscoFormer (Aniraj et al.,
2024, arXiv 2407.04538), which drops concentration and adds total variation, so that a part may have any size and
several pieces. A map smaller than a smoothing window is smoothed over all of it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def part_presence(maps: Tensor, window: int = 3) -> Tensor:
    """Return 1 minus the mean over parts of the largest smoothed value of the part anywhere in the batch.

    Give the maps of the parts, without the background. It is a statistic of the batch: in a small one a rare part looks
    absent.

    Examples
    --------
    >>> here = torch.zeros(2, 1, 3, 3)
    >>> here[1] = 1.0  # one case that has the part is enough
    >>> part_presence(here)
    tensor(0.)
    """
    return 1.0 - _smoothed(maps, window).flatten(2).amax(2).amax(0).mean()


def background_presence(background: Tensor, window: int = 3) -> Tensor:
    """Return the mean ``-log`` of the largest smoothed background ``(B, H, W)``, weighted by :func:`radius`.

    That is the binary cross-entropy to 1. The weight is 0 in the centre and 1 in the corners, so the background is
    asked to be somewhere at the border.

    Examples
    --------
    >>> background_presence(torch.full((1, 5, 5), 0.5))  # everywhere, and as surely a part
    tensor(0.6931)
    """
    smoothed = _smoothed(background.unsqueeze(1), window).squeeze(1)
    found = (smoothed * radius(*smoothed.shape[-2:]).to(smoothed)).flatten(1).amax(1)
    return -found.clamp_min(torch.finfo(found.dtype).tiny).log().mean()


def radius(height: int, width: int) -> Tensor:
    """Return ``(H, W)`` squared distances from the centre, each axis scaled to [-1, 1], the largest to 1.

    Examples
    --------
    >>> radius(3, 3)[0]
    tensor([1.0000, 0.5000, 1.0000])
    """
    sides = [torch.linspace(-1.0, 1.0, n).square() if n > 1 else torch.zeros(1) for n in (height, width)]
    squared = sides[0].unsqueeze(1) + sides[1]
    return squared / squared.max() if height * width > 1 else torch.ones(1, 1)


def equivariance(maps: Tensor, back: Tensor) -> Tensor:
    """Return 1 minus the mean cosine between the maps of a picture and those of its transform, brought back.

    Parameters
    ----------
    maps, back : Tensor
        ``(B, K, H, W)`` maps of the parts: of pictures; and of the transformed pictures, with the transform undone on
        the maps (:func:`protolearn.core.affine.warp`), so that a place is the same place in both.

    Examples
    --------
    >>> maps = torch.rand(2, 3, 4, 4)
    >>> bool(equivariance(maps, maps).abs() < 1e-6)
    True
    """
    return 1.0 - F.cosine_similarity(maps.flatten(2), back.flatten(2), dim=2).mean()


def part_orthogonality(features: Tensor) -> Tensor:
    """Return the mean squared entry of ``V V^T - I``, V the unit features ``(B, K, D)`` of the parts of each case.

    Examples
    --------
    >>> part_orthogonality(torch.eye(3).unsqueeze(0)).item()
    0.0
    """
    unit = F.normalize(features, dim=2)
    gram = unit @ unit.transpose(1, 2)
    return (gram - torch.eye(gram.shape[-1], device=gram.device, dtype=gram.dtype)).square().mean()


def total_variation(maps: Tensor) -> Tensor:
    """Return the summed absolute differences between neighbours along both axes, over all maps, a place and case.

    Examples
    --------
    >>> total_variation(torch.ones(2, 3, 4, 4)).item()
    0.0
    """
    rows = (maps[..., 1:, :] - maps[..., :-1, :]).abs().sum()
    columns = (maps[..., :, 1:] - maps[..., :, :-1]).abs().sum()
    return (rows + columns) / (maps.shape[0] * maps.shape[2] * maps.shape[3])


def assignment_entropy(shares: Tensor, dim: int = 1) -> Tensor:
    """Return the mean entropy of what a place is assigned to; ``dim`` is the axis that sums to 1.

    Examples
    --------
    >>> assignment_entropy(torch.tensor([[0.5, 0.5]]))
    tensor(0.6931)
    """
    # bounded below, so that a share that has underflowed to 0 has a finite gradient
    return -(shares * shares.clamp_min(torch.finfo(shares.dtype).eps).log()).sum(dim).mean()


def concentration(maps: Tensor) -> Tensor:
    """Return the mean of a map times its squared distance from its own centre of mass, in units of the map's sides.

    PDiscoNet's prior that a part is one small piece; PDiscoFormer gives it the weight 0.

    Examples
    --------
    >>> point = torch.zeros(1, 1, 3, 3)
    >>> point[0, 0, 1, 2] = 1.0
    >>> concentration(point).item()
    0.0
    """
    height, width = maps.shape[-2:]
    y = torch.arange(height, device=maps.device, dtype=maps.dtype).unsqueeze(1)
    x = torch.arange(width, device=maps.device, dtype=maps.dtype)
    mass = maps.sum((2, 3)).clamp_min(torch.finfo(maps.dtype).tiny)
    centre_y, centre_x = (maps * y).sum((2, 3)) / mass, (maps * x).sum((2, 3)) / mass
    away = ((centre_y[..., None, None] - y) / height).square() + ((centre_x[..., None, None] - x) / width).square()
    return (away * maps).mean()


def _smoothed(maps: Tensor, window: int) -> Tensor:
    """Return means over windows that lie wholly inside the map."""
    return F.avg_pool2d(maps, (min(window, maps.shape[-2]), min(window, maps.shape[-1])), stride=1)
