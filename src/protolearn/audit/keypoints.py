"""Do prototypes divide an object as people do? Agreement of prototypes with marked key points.

Source: the evaluation of PDiscoFormer (Aniraj et al., 2024). Every visible key point goes to the prototype whose map
is highest there; that division of the key points is compared with the one by part, by normalised mutual information
(NMI) and the adjusted Rand index (ARI). n pictures, P prototypes, N key points.

Where prototypes belong to classes, those of the picture's class compete, and each class is compared apart: which of a
class's prototypes is called the first means nothing to another class, so no naming of them is right across classes, and
each class's own division may be perfect all the same. The figures of the classes are averaged, each counting by its key
points.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from protolearn.errors import UsageError


def values_at(maps: Tensor, points: Tensor, *, size: int = 224) -> Tensor:
    """Return ``(n, P, N)``: the value of each map, enlarged bilinearly to ``size x size``, in each key point's pixel.

    Only the pixels asked for are made.

    Parameters
    ----------
    maps : Tensor
        ``(n, P, h, w)`` similarities.
    points : Tensor
        ``(n, N, 2)`` x and y, as shares of the picture's width and height.
    size : int
        Side of the enlarged map.

    Examples
    --------
    >>> maps = torch.tensor([[[[0.0, 1.0]]]])
    >>> values_at(maps, torch.tensor([[[0.0, 0.5], [0.5, 0.5], [1.0, 0.5]]]), size=4)
    tensor([[[0.0000, 0.7500, 1.0000]]])
    """
    if size < 1:
        raise UsageError(f"size must be at least 1, got {size}")
    pixels = (points * size).floor().clamp(0, size - 1)
    where = ((2 * pixels + 1) / size - 1).to(maps.dtype)  # centres of pixels, from -1 to 1
    found = F.grid_sample(maps, where.unsqueeze(1), mode="bilinear", padding_mode="border", align_corners=False)
    return found.squeeze(2)


def assigned(values: Tensor, among: Tensor) -> Tensor:
    """Return ``(n, N)`` int64: the prototype that each key point goes to.

    P stands for "none of them": there are at least two and all are equal there. -1 where there is none to go to.

    Parameters
    ----------
    values : Tensor
        ``(n, P, N)``, from :func:`values_at`.
    among : Tensor
        ``(n, P)`` bool: who competes in each picture; the first of equals wins.

    Examples
    --------
    >>> values = torch.tensor([[[1.0, 0.0], [0.0, 0.0], [5.0, 5.0]]])
    >>> assigned(values, torch.tensor([[True, True, False]]))
    tensor([[0, 3]])
    """
    count = values.shape[1]
    if not count:
        return torch.full((len(values), values.shape[2]), -1, dtype=torch.int64, device=values.device)
    shown = among.unsqueeze(2)
    high, label = values.masked_fill(~shown, float("-inf")).max(1)
    level = (high == values.masked_fill(~shown, float("inf")).amin(1)) & (among.sum(1, keepdim=True) > 1)
    return label.masked_fill(level, count).masked_fill(~among.any(1, keepdim=True), -1)


def table_nmi(table: Tensor, group: Tensor) -> Tensor:
    """Return ``(R,)``: normalised mutual information from counts, the mean over groups weighted by their counts.

    Equal to ``sklearn.metrics.normalized_mutual_info_score`` within a group; a group with fewer than two parts is left
    out, and NaN is where none is left.

    Parameters
    ----------
    table : Tensor
        ``(R, L, G)`` key points of each part that went to each label, R tables.
    group : Tensor
        ``(L,)`` int64: which group a label belongs to.

    Examples
    --------
    >>> table = torch.tensor([[[4.0, 0.0], [0.0, 4.0]]])
    >>> table_nmi(table, torch.zeros(2, dtype=torch.int64)).item()
    1.0
    """
    labels, parts, total = _margins(table, group)
    joint = _grouped(_xlogx(table).sum(2), group, total.shape[1])
    label_sum = _grouped(_xlogx(labels), group, total.shape[1])
    part_sum = _xlogx(parts).sum(2)
    some = total.clamp_min(1)
    log_total = some.log()
    label_entropy, part_entropy = log_total - label_sum / some, log_total - part_sum / some
    shared = log_total + (joint - label_sum - part_sum) / some
    # two parts or more, so the entropy of parts is above 0; rounding must not make a little agreement of none
    found = (2 * shared / (label_entropy + part_entropy).clamp_min(1e-12)).clamp(0, 1)
    return _weighted(found, total, parts)


def table_ari(table: Tensor, group: Tensor) -> Tensor:
    """Return ``(R,)``: the adjusted Rand index from counts, the mean over groups weighted by their counts.

    Equal to ``sklearn.metrics.adjusted_rand_score`` within a group; arguments as for :func:`table_nmi`.

    Examples
    --------
    >>> table = torch.tensor([[[4.0, 0.0], [0.0, 4.0]]])
    >>> table_ari(table, torch.zeros(2, dtype=torch.int64)).item()
    1.0
    """
    labels, parts, total = _margins(table, group)
    joint = _grouped(_two(table).sum(2), group, total.shape[1])
    label_pairs = _grouped(_two(labels), group, total.shape[1])
    part_pairs = _two(parts).sum(2)
    expected = label_pairs * part_pairs / _two(total).clamp_min(1)
    most = (label_pairs + part_pairs) / 2
    found = torch.where(most > expected, (joint - expected) / (most - expected), 1.0)
    return _weighted(found, total, parts)


def _margins(table: Tensor, group: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return counts by label ``(R, L)``, by group and part ``(R, C, G)``, and by group ``(R, C)``."""
    count = int(group.max()) + 1 if len(group) else 0
    parts = _grouped(table, group, count)
    return table.sum(2), parts, parts.sum(2)


def _grouped(values: Tensor, group: Tensor, count: int) -> Tensor:
    sums = values.new_zeros(len(values), count, *values.shape[2:])
    return sums.index_add_(1, group, values)


def _weighted(found: Tensor, total: Tensor, parts: Tensor) -> Tensor:
    weight = total * ((parts > 0).sum(2) > 1)
    return (found * weight).sum(1) / weight.sum(1)


def _xlogx(values: Tensor) -> Tensor:
    return torch.special.xlogy(values, values)


def _two(values: Tensor) -> Tensor:
    return values * (values - 1) / 2
