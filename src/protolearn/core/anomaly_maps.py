"""Maps of how foreign each place is: cosine gaps, enlarged and smoothed, and one number a picture of the worst.

Everything here is an **anomaly**: higher = more foreign. Models turn the sign once, where they answer.
B batch, D width, h x w a grid of tokens, H x W pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def cosine_gap(one: Tensor, other: Tensor, dim: int = -1) -> Tensor:
    """Return ``1 - cosine`` along an axis, from 0 (same direction) to 2; a zero vector has a gap of 1 to anything.

    Examples
    --------
    >>> cosine_gap(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]]))
    tensor([1.])
    """
    return 1 - F.cosine_similarity(one, other, dim=dim)


def enlarged(maps: Tensor, size: tuple[int, int], *, corners: bool = False) -> Tensor:
    """Return maps ``(B, h, w)`` as ``(B, H, W)``, bilinear; ``corners`` lays the outer cells' centres on the corners.

    Examples
    --------
    >>> enlarged(torch.tensor([[[0.0, 2.0]]]), (1, 3), corners=True)
    tensor([[[0., 1., 2.]]])
    """
    return F.interpolate(maps.unsqueeze(1), size=size, mode="bilinear", align_corners=corners).squeeze(1)


def gaussian_weights(size: int, sigma: float) -> Tensor:
    """Return ``(size,)`` float64 weights of a Gaussian about the middle, adding up to 1.

    Examples
    --------
    >>> gaussian_weights(3, 1.0)
    tensor([0.2741, 0.4519, 0.2741], dtype=torch.float64)
    """
    if size < 1 or size % 2 == 0 or not sigma > 0:
        raise ValueError(f"a blur takes an odd size from 1 and sigma above 0, got {size} and {sigma}")
    away = torch.arange(size, dtype=torch.float64) - size // 2
    weights = (-away.square() / (2 * sigma**2)).exp()
    return weights / weights.sum()


def blurred(maps: Tensor, sigma: float, *, size: int | None = None, zeros_outside: bool = False) -> Tensor:
    """Return maps ``(B, H, W)`` smoothed with a Gaussian.

    Parameters
    ----------
    maps : Tensor
        ``(B, H, W)``.
    sigma : float
        Of the Gaussian, in pixels.
    size : int, optional
        Side of the kernel, odd; by default it reaches four sigma to either side.
    zeros_outside : bool
        Count what lies beyond the border as 0, which darkens the border (INP-Former's choice); by default the border
        is continued.

    Examples
    --------
    >>> spot = torch.zeros(1, 5, 5)
    >>> spot[0, 2, 2] = 1.0
    >>> round(float(blurred(spot, 1.0, size=3)[0, 2, 2]), 4)
    0.2042
    """
    size = 2 * int(4 * sigma + 0.5) + 1 if size is None else size
    weights = gaussian_weights(size, sigma).to(maps)
    reach = size // 2
    framed = F.pad(maps.unsqueeze(1), (reach,) * 4, mode="constant" if zeros_outside else "replicate")
    return F.conv2d(F.conv2d(framed, weights.view(1, 1, -1, 1)), weights.view(1, 1, 1, -1)).squeeze(1)


def top_mean(maps: Tensor, share: float = 0.01) -> Tensor:
    """Return ``(B,)``: the mean over the largest ``share`` of each map's values, of one value at least.

    Examples
    --------
    >>> top_mean(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]), 0.5)
    tensor([3.5000])
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must lie above 0 and at most 1, got {share}")
    values = maps.flatten(1)
    return values.topk(max(1, int(values.shape[1] * share)), dim=1).values.mean(1)
