"""From what people marked in original pictures to what an audit reads: shares of the input that a model is shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from protolearn.audit.marks import Marks
from protolearn.data.annotations import Annotation, MaskFolder
from protolearn.data.transforms import moved
from protolearn.errors import DataError
from protolearn.structures import Box

SLACK = 1.0
"""Pixels by which a key point may lie outside its picture: annotators click on the edge."""

INSIDE = 1e-3
"""Pixels from the far border at which such a key point is put, since the border itself belongs to no pixel."""


def parts_of(cases: Any) -> tuple[str, ...]:
    """Return the names of the key points marked in a data set, in order of first appearance."""
    annotations = getattr(cases, "annotations", None) or {}
    if isinstance(annotations, MaskFolder):
        return ()
    names: dict[str, None] = {}
    for annotation in annotations.values():
        named = annotation.point_names or tuple(f"part {k + 1}" for k in range(len(annotation.points)))
        names.update(dict.fromkeys(named))
    return tuple(names)


def has_objects(cases: Any) -> bool:
    """Return whether any case has a mask or a box."""
    annotations = getattr(cases, "annotations", None) or {}
    return any(found.mask is not None or len(found.boxes) > 0 for found in annotations.values())


def marks_of(
    cases: Any,
    indices: Sequence[int],
    sizes: Sequence[tuple[int, int] | None],
    size: tuple[int, int],
    preprocess: Any,
    parts: Sequence[str],
    *,
    objects: bool,
) -> Marks:
    """Return the marks of some cases as seen in their inputs.

    Parameters
    ----------
    cases : Cases
        With annotations in pixels of their original pictures.
    indices : sequence of int
        Which.
    sizes : sequence
        ``(width, height)`` of their pictures.
    size : (int, int)
        Height and width of the inputs.
    preprocess : object or None
        What made the inputs; None where pictures enter whole.
    parts : sequence of str
        Key points wanted, in order.
    objects : bool
        Whether to fill in object regions.

    Raises
    ------
    DataError
        If a visible key point lies outside its picture or a mask has another size than it: the marks then belong to
        another version of the picture.
    """
    place = {name: k for k, name in enumerate(parts)}
    points = torch.zeros(len(indices), len(parts), 2)
    visible = torch.zeros(len(indices), len(parts), dtype=torch.bool)
    regions = torch.zeros(len(indices), *size, dtype=torch.bool) if objects else None
    known = torch.zeros(len(indices), dtype=torch.bool) if objects else None
    kind = ""
    for row, (i, extent) in enumerate(zip(indices, sizes, strict=True)):
        annotation = cases.annotation(i) if hasattr(cases, "annotation") else None
        if annotation is None or extent is None:
            continue
        checked(annotation, extent, str(cases.ids[i]))
        annotation = _on_the_edge(annotation, extent)
        window = preprocess.window(extent) if hasattr(preprocess, "window") else Box(0.0, 0.0, *map(float, extent))
        seen = moved(annotation, window, size)
        names = seen.point_names or tuple(f"part {k + 1}" for k in range(len(seen.points)))
        for name, (x, y, shown) in zip(names, seen.points.tolist(), strict=True):
            if name in place:
                points[row, place[name]] = torch.tensor([x / size[1], y / size[0]])
                visible[row, place[name]] = shown > 0
        if regions is not None and known is not None:
            found = _region(seen, size)
            if found is not None and found.any():
                regions[row], known[row] = torch.from_numpy(found), True
                kind = kind or ("box" if seen.mask is None else "mask")
    return Marks(tuple(parts), points, visible, regions, known, kind)


def checked(annotation: Annotation, extent: tuple[int, int], case: str) -> None:
    """Refuse marks that cannot belong to a picture of this ``(width, height)``."""
    width, height = extent
    if annotation.mask is not None and annotation.mask.shape != (height, width):
        raise DataError(
            f"{case}: the mask is {annotation.mask.shape[1]} x {annotation.mask.shape[0]} pixels and the picture "
            f"{width} x {height}: give masks at the size of the pictures"
        )
    x, y, shown = annotation.points.T if len(annotation.points) else np.zeros((3, 0))
    outside = (shown > 0) & ((x < -SLACK) | (y < -SLACK) | (x > width + SLACK) | (y > height + SLACK))
    if outside.any():
        k = int(np.flatnonzero(outside)[0])
        name = annotation.point_names[k] if annotation.point_names else f"part {k + 1}"
        raise DataError(
            f"{case}: the key point {name!r} lies at ({x[k]:.0f}, {y[k]:.0f}), outside the picture of {width} x "
            f"{height} pixels: give key points in pixels of these very pictures, or mark it as not visible"
        )


def _on_the_edge(annotation: Annotation, extent: tuple[int, int]) -> Annotation:
    """Return marks in which key points on the border, or as far outside as is let pass, lie in the border's pixels."""
    if not len(annotation.points):
        return annotation
    points = annotation.points.astype(np.float64)
    points[:, :2] = np.where(
        points[:, 2:] > 0, points[:, :2].clip(0.0, np.array(extent, dtype=np.float64) - INSIDE), points[:, :2]
    )
    return replace(annotation, points=points)


def _region(seen: Annotation, size: tuple[int, int]) -> np.ndarray | None:
    if seen.mask is not None:
        return np.array(seen.mask > 0)
    if not len(seen.boxes):
        return None
    filled = np.zeros(size, dtype=bool)
    for x0, y0, x1, y1 in np.round(seen.boxes).astype(int).tolist():
        filled[max(y0, 0) : y1, max(x0, 0) : x1] = True
    return filled
