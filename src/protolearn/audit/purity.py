"""Is a prototype about one part of the object? The purity of the patches it matches best.

Source: PIP-Net (Nauta et al., 2023) and its released evaluation. A prototype's patch in a picture is a square of 32
pixels of 224 at its best cell; the purity of a part is the share of patches, in pictures where the part can be seen,
that hold its key point. n pictures, P prototypes, N key points, G parts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from protolearn.errors import UsageError

EDGE = 1e-4
"""Pixels within which a key point counts as on the border of a patch: what scaling a coordinate may lose."""


def peak_cells(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Return each map's best cell, ``(n, P)`` int64 row * w + column, and whether the map points anywhere at all.

    Of equal cells the leftmost counts, then the topmost. A map with one value everywhere points nowhere: it is False
    in the second tensor.

    Examples
    --------
    >>> cells, points = peak_cells(torch.tensor([[[[0.0, 1.0], [1.0, 1.0]], [[2.0, 2.0], [2.0, 2.0]]]]))
    >>> cells.tolist(), points.tolist()
    ([[2, 0]], [[True, False]])
    """
    rows, columns = int(maps.shape[2]), int(maps.shape[3])
    down = maps.transpose(2, 3).flatten(2)  # column after column
    best = down.argmax(2)
    return best % rows * columns + best // rows, down.amax(2) > down.amin(2)


def cell_patches(cells: Tensor, grid: tuple[int, int], *, size: int = 224, side: int = 32) -> Tensor:
    """Return the patches ``(..., 4)`` int64 y0, y1, x0, x1 of cells, in pixels of a square picture.

    Cells stand ``round((size - side) / (cells - 1))`` pixels apart; a patch in the last cell, or one that reaches the
    border, is moved to end there. On a 26 x 26 grid, whose outer cells see less, a patch starts 4 pixels after the
    cell before. Along an axis of one cell the patch is centred: the source defines none.

    Parameters
    ----------
    cells : Tensor
        ``(...)`` int64, row * columns + column.
    grid : (int, int)
        Rows and columns.
    size, side : int
        Of the picture and of the patch, in pixels.

    Examples
    --------
    >>> cell_patches(torch.tensor([0, 8, 48]), (7, 7)).tolist()
    [[0, 32, 0, 32], [32, 64, 32, 64], [192, 224, 192, 224]]
    >>> cell_patches(torch.tensor([27]), (26, 26)).tolist()
    [[4, 36, 4, 36]]
    """
    if not 0 < side <= size:
        raise UsageError(f"a patch must be 1 to {size} pixels wide, got {side}")
    rows, columns = grid
    low_y, low_x = (
        _starts(index, count, size, side, early=grid == (26, 26))
        for index, count in ((cells // columns, rows), (cells % columns, columns))
    )
    return torch.stack([low_y, low_y + side, low_x, low_x + side], -1)


def _starts(index: Tensor, count: int, size: int, side: int, *, early: bool) -> Tensor:
    if count < 2:
        return torch.full_like(index, (size - side) // 2)
    skip = round((size - side) / (count - 1))
    start = ((index - 1) * skip + 4).clamp_min(0) if early else index * skip
    return torch.where(index == count - 1, size - side, start.clamp_max(size - side))


def in_patches(points: Tensor, visible: Tensor, patches: Tensor) -> Tensor:
    """Return ``(..., N)`` bool: which visible key points lie in a patch, borders included.

    Parameters
    ----------
    points : Tensor
        ``(..., N, 2)`` x and y, in the pixels of the patches.
    visible : Tensor
        ``(..., N)`` bool.
    patches : Tensor
        ``(..., 4)`` y0, y1, x0, x1.

    Examples
    --------
    >>> points = torch.tensor([[32.0, 5.0], [33.0, 5.0]])
    >>> in_patches(points, torch.ones(2) > 0, torch.tensor([0, 32, 0, 32]))
    tensor([ True, False])
    """
    low, high = (patches[..., k : k + 3 : 2].flip(-1).unsqueeze(-2) for k in (0, 1))  # x, y as the key points
    return ((points >= low - EDGE) & (points <= high + EDGE)).all(-1) & visible.bool()


def merged_sides(parts: Sequence[str]) -> tuple[tuple[str, ...], Tensor]:
    """Return part names in which left and right are one, and ``(N,)`` int64: which of them each key point is.

    A name with "left" is merged where the same name with "right" exists; others stay as they are.

    Examples
    --------
    >>> names, group = merged_sides(["beak", "left eye", "left leg", "right eye"])
    >>> names, group.tolist()
    (('beak', 'left leg', 'eye'), [0, 2, 1, 2])
    """
    place = {name.lower(): k for k, name in enumerate(parts)}
    other = {k: name.lower().replace("left", "right") for k, name in enumerate(parts) if "left" in name.lower()}
    partner = {k: place.get(other[k], k) if k in other else k for k in range(len(parts))}
    kept = [k for k in range(len(parts)) if partner[k] == k]
    paired = {right for left, right in partner.items() if left != right}
    names = tuple(_sideless(parts[k]) if k in paired else parts[k] for k in kept)
    return names, torch.tensor([kept.index(partner[k]) for k in range(len(parts))], dtype=torch.int64)


def _sideless(name: str) -> str:
    return re.sub(r"[\s_-]*right[\s_-]*", " ", name, flags=re.IGNORECASE).strip() or name


def merged(values: Tensor, group: Tensor, count: int) -> Tensor:
    """Return ``(..., G)`` bool: whether any key point of each part is True in ``(..., N)``.

    Examples
    --------
    >>> merged(torch.tensor([[True, False, False]]), torch.tensor([0, 1, 0]), 2)
    tensor([[ True, False]])
    """
    sums = torch.zeros(*values.shape[:-1], count, dtype=torch.int64, device=values.device)
    return sums.index_add_(-1, group.to(values.device), values.long()) > 0


@dataclass(frozen=True, eq=False)
class Purity:
    """How pure each prototype is.

    Attributes
    ----------
    rates : Tensor
        ``(P, G)`` float64 share of the patches, in pictures where the part can be seen, that hold it.
    purest : Tensor
        ``(P,)`` float64: the highest rate, which is the purity; NaN where not judged.
    most_hit : Tensor
        ``(P,)`` float64: the rate of the part held by the most patches, the first of equals; NaN where not judged.
    judged : Tensor
        ``(P,)`` bool: some part could be seen in some picture.
    """

    rates: Tensor
    purest: Tensor
    most_hit: Tensor
    judged: Tensor

    @property
    def pure(self) -> int:
        """How many prototypes have a purity above 0.5."""
        return int((self.purest > 0.5).sum())


def purity_of(hit: Tensor, seen: Tensor) -> Purity:
    """Return purity from counts.

    Parameters
    ----------
    hit, seen : Tensor
        ``(P, G)``: patches that hold a part, and patches in pictures where it can be seen.

    Examples
    --------
    >>> found = purity_of(torch.tensor([[2.0, 1.0]]), torch.tensor([[4.0, 1.0]]))
    >>> found.purest.item(), found.most_hit.item()
    (1.0, 0.5)
    """
    judged = (seen > 0).any(-1)
    rates = hit.double() / seen.double().clamp_min(1)
    most = rates.gather(-1, hit.argmax(-1, keepdim=True)).squeeze(-1)
    purest, most = (torch.where(judged, found, float("nan")) for found in (rates.amax(-1), most))
    return Purity(rates, purest, most, judged)
