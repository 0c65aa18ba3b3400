"""Affine transforms of pictures and maps that are drawn, applied, and undone.

A transform is ``theta (B, 2, 3)``: it sends a place of the result to the place of the original that it shows, both in
coordinates that run from -1 to 1 over the picture, so one ``theta`` fits a picture and its smaller maps.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def random_affine(
    size: tuple[int, int],
    *,
    generator: torch.Generator,
    degrees: float = 90.0,
    translate: float = 0.11,
    scale: tuple[float, float] = (0.8, 1.4),
) -> Tensor:
    """Draw one transform ``(2, 3)``: a rotation about the centre, an enlargement, then a shift.

    Parameters
    ----------
    size : (int, int)
        Height and width of the picture, so that a rotation keeps angles where it is not square.
    generator : torch.Generator
        On the CPU.
    degrees, translate, scale
        Largest angle either way; largest shift either way, as a share of the side; smallest and largest enlargement.

    Examples
    --------
    >>> still = random_affine((4, 6), generator=torch.Generator(), degrees=0.0, translate=0.0, scale=(1.0, 1.0))
    >>> bool((still == torch.eye(2, 3)).all())
    True
    """
    draw = torch.rand(4, generator=generator, dtype=torch.float64)
    angle = math.radians(degrees) * float(2 * draw[0] - 1)
    larger = scale[0] + (scale[1] - scale[0]) * float(draw[1])
    height, width = size
    # rotated where a pixel is square, hence the sides; shares of a side are half as long as coordinates from -1 to 1
    across = height / width
    turn = torch.tensor(
        [
            [math.cos(angle), math.sin(angle) * across],
            [-math.sin(angle) / across, math.cos(angle)],
        ],
        dtype=torch.float64,
    )
    shift = 2.0 * translate * (2 * draw[2:] - 1)
    turn = turn / larger
    return torch.cat([turn, -(turn @ shift).unsqueeze(1)], 1).float()


def inverse(theta: Tensor) -> Tensor:
    """Return the transforms ``(B, 2, 3)`` that undo those given.

    Examples
    --------
    >>> inverse(torch.tensor([[[2.0, 0.0, 1.0], [0.0, 4.0, 2.0]]])).tolist()
    [[[0.5, 0.0, -0.5], [0.0, 0.25, -0.5]]]
    """
    turn = torch.linalg.inv(theta[..., :2])
    return torch.cat([turn, -turn @ theta[..., 2:]], -1)


def warp(maps: Tensor, theta: Tensor) -> Tensor:
    """Return pictures or maps ``(B, C, H, W)`` transformed: bilinear, 0 where nothing is shown.

    Examples
    --------
    >>> mirrored = torch.tensor([[[-1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]])
    >>> warp(torch.tensor([[[[1.0, 2.0]]]]), mirrored)
    tensor([[[[2., 1.]]]])
    """
    grid = F.affine_grid(theta.to(maps), list(maps.shape), align_corners=False)
    return F.grid_sample(maps, grid, padding_mode="zeros", align_corners=False)
