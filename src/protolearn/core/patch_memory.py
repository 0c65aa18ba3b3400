"""Patches of a picture and a memory of normal ones: PatchCore's features, distances and score.

Source: Towards Total Recall in Industrial Anomaly Detection (Roth et al., 2022), sections 3.1 and 3.3. Distances are
anomalies: higher = more foreign. B batch, S positions, D width, M remembered patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from protolearn.core.measures import squared_l2
from protolearn.core.neighbours import nearest_rows
from protolearn.structures import Tokens


def patch_features(maps: Sequence[Tensor], window: int = 3, width: int | None = None) -> Tokens:
    """Return tokens that know their neighbourhood, from maps of one or several layers.

    Each map is averaged over a window of its own cells, resized (bilinear) to the finest grid, and all are joined along
    the width. At the border a window holds the cells that there are; zeros are not counted in.

    Parameters
    ----------
    maps : sequence of Tensor
        ``(B, D_l, h_l, w_l)`` each.
    window : int
        Odd number of cells along each axis; 1 = none.
    width : int, optional
        Bring every layer to this width first, by averaging over runs of channels (the paper does so, with 1,024);
        as they are by default.

    Examples
    --------
    >>> patch_features([torch.ones(2, 3, 4, 4), torch.ones(2, 5, 2, 2)]).values.shape
    torch.Size([2, 16, 8])
    """
    if not maps:
        raise ValueError("there is no map to take patches from")
    if window < 1 or window % 2 == 0:
        raise ValueError(f"window must be an odd number of cells, got {window}")
    finest = max((tuple(one.shape[-2:]) for one in maps), key=lambda shape: shape[0] * shape[1])
    parts = []
    for one in maps:
        near = F.avg_pool2d(one, window, stride=1, padding=window // 2, count_include_pad=False)
        fine = near if tuple(near.shape[-2:]) == finest else F.interpolate(near, size=finest, mode="bilinear")
        flat = fine.flatten(2).transpose(1, 2)
        parts.append(flat if width is None else F.adaptive_avg_pool1d(flat, width))
    return Tokens(torch.cat(parts, 2), grid=finest, window=window)


class Nearest(NamedTuple):
    """Where a memory is nearest to each patch, ``(B, S)`` each."""

    distances: Tensor
    """Euclidean."""
    rows: Tensor
    """Of the memory."""


def nearest_patches(values: Tensor, memory: Tensor, budget: int | None = None) -> Nearest:
    """Return the distance of every patch ``(B, S, D)`` to the nearest of a memory ``(M, D)``, and which it is.

    Exact; without the table of all pairs, whose size is bounded by ``budget`` bytes.

    Examples
    --------
    >>> nearest_patches(torch.tensor([[[3.0]], [[0.5]]]), torch.tensor([[0.0], [1.0]])).distances
    tensor([[2.0000],
            [0.5000]])
    """
    flat = values.flatten(0, 1)
    rows = nearest_rows(flat, memory, squared_l2, 1, budget=budget)[1][:, 0]
    exact = torch.linalg.vector_norm(flat - memory[rows].to(flat), dim=1)
    return Nearest(exact.view(values.shape[:2]), rows.view(values.shape[:2]))


class Worst(NamedTuple):
    """The most foreign patch of each case, ``(B,)`` each."""

    score: Tensor
    """Its distance, weighed."""
    position: Tensor
    """Where in the case."""
    row: Tensor
    """The remembered patch nearest to it."""


def worst_patch(
    values: Tensor, memory: Tensor, nearest: Nearest, neighbours: int = 9, mask: Tensor | None = None
) -> Worst:
    """Return the score of each case: the largest distance of a patch, weighed by how common its nearest one is.

    With ``x`` the worst patch, ``m`` the remembered patch nearest to it and ``N`` the ``neighbours`` remembered patches
    nearest to ``m`` (itself among them), the score is
    ``(1 - exp(|x - m|) / sum_{n in N} exp(|x - n|)) |x - m|``: a patch far from a rare memory is more foreign than one
    as far from a memory with many like it.

    Parameters
    ----------
    values : Tensor
        ``(B, S, D)``.
    memory : Tensor
        ``(M, D)``.
    nearest : Nearest
        Of all patches.
    neighbours : int
        1 = no weighing; at most M are taken.
    mask : Tensor, optional
        ``(B, S)`` bool, True where a position is real.

    Examples
    --------
    >>> memory = torch.tensor([[0.0], [0.0], [9.0]])
    >>> x = torch.tensor([[[2.0]]])
    >>> near = nearest_patches(x, memory)
    >>> worst_patch(x, memory, near, 1).score, worst_patch(x, memory, near, 2).score
    (tensor([2.]), tensor([1.]))
    """
    if neighbours < 1:
        raise ValueError(f"neighbours must be at least 1, got {neighbours}")
    gaps = nearest.distances if mask is None else nearest.distances.masked_fill(~mask, float("-inf"))
    far, position = gaps.max(1)
    far = far.clamp_min(0.0)  # a case without a real patch
    row = nearest.rows.gather(1, position.unsqueeze(1)).squeeze(1)
    count = min(neighbours, len(memory))
    if count == 1:
        return Worst(far, position, row)
    patch = values[torch.arange(len(values), device=values.device), position]
    around = nearest_rows(memory[row], memory, squared_l2, count)[1]
    logs = torch.linalg.vector_norm(patch.unsqueeze(1) - memory[around].to(patch), dim=2)
    weight = -torch.expm1(far - logs.logsumexp(1))  # 1 - exp(far) / sum exp, without overflow
    return Worst(weight.clamp(0.0, 1.0) * far, position, row)
