"""Rectangles in pixels: around what is marked, around most of a quantity, and how two of them overlap."""

from __future__ import annotations

import numpy as np

from protolearn.structures import Box


def holding_box(values: np.ndarray, share: float) -> Box:
    """Return a small box that holds at least a share of the sum of values ``(H, W)``.

    The border line that holds least a pixel is taken off, again and again, while enough is left.

    Examples
    --------
    >>> spot = np.zeros((6, 8))
    >>> spot[1:3, 4:7] = 1.0
    >>> holding_box(spot, 1.0)
    Box(x0=4.0, y0=1.0, x1=7.0, y1=3.0)
    """
    total = np.zeros((values.shape[0] + 1, values.shape[1] + 1))
    total[1:, 1:] = values.cumsum(0).cumsum(1)

    def held(x0: int, y0: int, x1: int, y1: int) -> float:
        return float(total[y1, x1] - total[y0, x1] - total[y1, x0] + total[y0, x0])

    # rounding of the running sums must not keep a box from holding everything
    wanted = share * float(total[-1, -1]) * (1 - 1e-12)
    box = (0, 0, values.shape[1], values.shape[0])
    while True:
        x0, y0, x1, y1 = box
        now, wide, high = held(*box), x1 - x0, y1 - y0
        smaller = [(x0 + 1, y0, x1, y1), (x0, y0, x1 - 1, y1)] if wide > 1 else []
        smaller += [(x0, y0 + 1, x1, y1), (x0, y0, x1, y1 - 1)] if high > 1 else []
        left = [(max(now - held(*b), 0.0) / (wide * high - (b[2] - b[0]) * (b[3] - b[1])), b) for b in smaller]
        left = [entry for entry in left if held(*entry[1]) >= wanted]
        if not left:
            return Box(*map(float, box))
        box = min(left, key=lambda entry: entry[0])[1]


def bounding_box(mask: np.ndarray) -> Box:
    """Return the box around all true pixels of ``(H, W)``; an empty one where none is.

    Examples
    --------
    >>> bounding_box(np.eye(4, dtype=bool)[:3])
    Box(x0=0.0, y0=0.0, x1=3.0, y1=3.0)
    """
    if not mask.any():
        return Box(0.0, 0.0, 0.0, 0.0)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return Box(float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))


def share_inside(values: np.ndarray, box: Box) -> float:
    """Return the share of the sum of values ``(H, W)`` inside a box; a pixel cut by its border counts in part.

    Examples
    --------
    >>> share_inside(np.ones((2, 2)), Box(0.0, 0.0, 1.5, 2.0))
    0.75
    """
    columns = _cover(values.shape[1], box.x0, box.x1)
    rows = _cover(values.shape[0], box.y0, box.y1)
    return float(rows @ values @ columns / values.sum())


def _cover(count: int, low: float, high: float) -> np.ndarray:
    starts = np.arange(count)
    return (np.minimum(starts + 1, high) - np.maximum(starts, low)).clip(0.0, 1.0)


def area(box: Box) -> float:
    """Return the area of a box."""
    return max(box.x1 - box.x0, 0.0) * max(box.y1 - box.y0, 0.0)


def box_overlap(a: Box, b: Box) -> float:
    """Return intersection over union.

    Examples
    --------
    >>> box_overlap(Box(0, 0, 2, 2), Box(1, 0, 3, 2))
    0.3333333333333333
    """
    both = area(Box(max(a.x0, b.x0), max(a.y0, b.y0), min(a.x1, b.x1), min(a.y1, b.y1)))
    either = area(a) + area(b) - both
    return both / either if either > 0 else 0.0
