"""What people marked in a picture (boxes, parts, regions), carried beside it for audits and for augmentation.

Coordinates are pixels of the upright original picture and continuous: pixel 0 covers 0 to 1, so a box's ``x1, y1`` are
exclusive and the centre of the first pixel is (0.5, 0.5).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from protolearn.data.pictures import open_picture
from protolearn.data.tables import Table, read_table
from protolearn.errors import DataError, nearest_names


def _none(columns: int) -> np.ndarray:
    return np.zeros((0, columns), dtype=np.float64)


@dataclass(frozen=True)
class Annotation:
    """Everything marked in one picture; what was not marked is empty, never zeros that look like a mark.

    Attributes
    ----------
    boxes : ndarray
        ``(n, 4)`` float: x0, y0, x1, y1, the last two exclusive.
    box_labels : tuple of str
        One name a box, or empty.
    points : ndarray
        ``(k, 3)`` float: x, y, visible (1 or 0; where 0, x and y mean nothing).
    point_names : tuple of str
        One name a point, or empty.
    mask : ndarray or None
        ``(H, W)`` uint8, 0 = background.

    Examples
    --------
    >>> Annotation(boxes=[[0, 0, 8, 4]], box_labels=["leaf"]).boxes.shape
    (1, 4)
    """

    boxes: np.ndarray = field(default_factory=lambda: _none(4))
    box_labels: tuple[str, ...] = ()
    points: np.ndarray = field(default_factory=lambda: _none(3))
    point_names: tuple[str, ...] = ()
    mask: np.ndarray | None = None

    def __post_init__(self) -> None:
        boxes = np.asarray(self.boxes, dtype=np.float64)
        points = np.asarray(self.points, dtype=np.float64)
        boxes = boxes.reshape(0, 4) if boxes.size == 0 else boxes
        points = points.reshape(0, 3) if points.size == 0 else points
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise DataError(f"boxes must be (n, 4) = x0, y0, x1, y1, got {boxes.shape}")
        if points.ndim != 2 or points.shape[1] != 3:
            raise DataError(f"points must be (k, 3) = x, y, visible, got {points.shape}")
        if not np.isfinite(boxes).all() or not np.isfinite(points).all():
            raise DataError("boxes and points must be finite numbers; leave out what is unknown")
        if (boxes[:, 2:] < boxes[:, :2]).any():
            wrong = boxes[(boxes[:, 2:] < boxes[:, :2]).any(1)][0].tolist()
            raise DataError(f"box {wrong} ends before it starts: expected x0 <= x1 and y0 <= y1")
        if len(self.box_labels) not in (0, len(boxes)):
            raise DataError(f"{len(self.box_labels)} box labels for {len(boxes)} boxes")
        if len(self.point_names) not in (0, len(points)):
            raise DataError(f"{len(self.point_names)} point names for {len(points)} points")
        if self.mask is not None:
            mask = np.asarray(self.mask)
            if mask.ndim != 2 or mask.dtype != np.uint8:
                raise DataError(f"a mask must be (H, W) uint8, got {mask.shape} {mask.dtype}")
            object.__setattr__(self, "mask", mask)
        object.__setattr__(self, "boxes", boxes)
        object.__setattr__(self, "points", points)
        object.__setattr__(self, "box_labels", tuple(map(str, self.box_labels)))
        object.__setattr__(self, "point_names", tuple(map(str, self.point_names)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Annotation):
            return NotImplemented
        same_mask = (self.mask is None) == (other.mask is None) and (
            self.mask is None or other.mask is None or np.array_equal(self.mask, other.mask)
        )
        return (
            same_mask
            and np.array_equal(self.boxes, other.boxes)
            and np.array_equal(self.points, other.points)
            and (self.box_labels, self.point_names) == (other.box_labels, other.point_names)
        )

    __hash__ = None  # type: ignore[assignment]


class _Gathered:
    """Boxes and points of many cases, collected row by row."""

    def __init__(self) -> None:
        self.boxes: dict[str, list[tuple[list[float], str]]] = {}
        self.points: dict[str, list[tuple[list[float], str]]] = {}

    def annotations(self) -> dict[str, Annotation]:
        return {
            case: Annotation(
                boxes=np.array([box for box, _ in self.boxes.get(case, [])]),
                box_labels=_names(self.boxes.get(case, [])),
                points=np.array([point for point, _ in self.points.get(case, [])]),
                point_names=_names(self.points.get(case, [])),
            )
            for case in dict.fromkeys([*self.boxes, *self.points])
        }


def _names(items: list[tuple[list[float], str]]) -> tuple[str, ...]:
    names = tuple(name for _, name in items)
    return names if any(names) else ()


def read_marks(*tables: str | Path) -> dict[str, Annotation]:
    """Read boxes and parts from plain tables (CSV, or Parquet when pyarrow is there), one mark a row.

    Parameters
    ----------
    *tables : path
        Each has the columns ``id,x0,y0,x1,y1`` and perhaps ``name`` (boxes), or ``id,part,x,y`` and perhaps ``visible``
        (parts; visible when not said). The id is the case id; a column ``path`` or ``file`` serves as well.

    Returns
    -------
    dict of str to Annotation
        To hand to ``cases.with_annotations``.
    """
    found = _Gathered()
    for path in tables:
        table = read_table(path)
        case = table.column("id", "path", "file", "filename", "image", required=True)
        corners = [table.column(name) for name in ("x0", "y0", "x1", "y1")]
        part, x, y = (table.column(name) for name in ("part", "x", "y"))
        if None not in corners:
            name = table.column("name", "label", "class")
            for number, row in table.rows:
                box = [table.number(number, row, str(column)) for column in corners]
                if box[2] < box[0] or box[3] < box[1]:
                    raise DataError(f"{table.where} row {number}: box {box} ends before it starts (x0, y0, x1, y1)")
                found.boxes.setdefault(row[str(case)], []).append((box, row[name] if name else ""))
        elif part and x and y:
            seen = table.column("visible")
            for number, row in table.rows:
                visible = table.number(number, row, seen) if seen else 1.0
                place = [table.number(number, row, x), table.number(number, row, y)] if visible else [0.0, 0.0]
                found.points.setdefault(row[str(case)], []).append(([*place, float(visible > 0)], row[part]))
        else:
            raise DataError(
                f"{table.where} has the columns {', '.join(table.columns)}: expected id,x0,y0,x1,y1[,name] for "
                "boxes or "
                "id,part,x,y[,visible] for parts"
            )
    return found.annotations()


def marks_of_rows(table: Table, ids: Sequence[str]) -> dict[str, Annotation]:
    """Read the marks a manifest carries in its own rows, one case a row.

    Understood are ``x0,y0,x1,y1`` or ``box_x,box_y,box_w,box_h`` for one box, and ``<part>_x,<part>_y`` with
    ``<part>_visible`` for parts. Rows whose box cells are empty have no box.
    """
    corners = [table.column(name) for name in ("x0", "y0", "x1", "y1")]
    extent = [table.column(name) for name in ("box_x", "box_y", "box_w", "box_h")]
    parts = [c[: -len("_visible")] for c in table.columns if c.endswith("_visible")]
    parts = [part for part in parts if {f"{part}_x", f"{part}_y"} <= set(table.columns)]
    columns = corners if None not in corners else extent if None not in extent else []
    if not columns and not parts:
        return {}
    found: dict[str, Annotation] = {}
    for case, (number, row) in zip(ids, table.rows, strict=True):
        boxes: list[list[float]] = []
        if columns and any(row[str(column)] for column in columns):
            box = [table.number(number, row, str(column)) for column in columns]
            if columns is extent:
                box = [box[0], box[1], box[0] + box[2], box[1] + box[3]]
            if box[2] < box[0] or box[3] < box[1]:
                raise DataError(f"{table.where} row {number}: box {box} ends before it starts (x0, y0, x1, y1)")
            boxes.append(box)
        points = []
        for part in parts:
            visible = bool(row[f"{part}_visible"]) and table.number(number, row, f"{part}_visible") > 0
            place = [table.number(number, row, f"{part}_{axis}") for axis in "xy"] if visible else [0.0, 0.0]
            points.append([*place, float(visible)])
        if boxes or points:
            found[case] = Annotation(boxes=np.array(boxes), points=np.array(points), point_names=tuple(parts))
    return found


def read_coco(path: str | Path, *, prefix: str = "") -> dict[str, Annotation]:
    """Read a COCO file of boxes, segmentations and key points.

    Parameters
    ----------
    path : path
        The JSON file.
    prefix : str
        What stands before the file's ``file_name`` in the case ids, e.g. ``"val2017/"``.

    Returns
    -------
    dict of str to Annotation
        By case id. Box labels are category names; the mask holds the category's place (from 1) in the file's list,
        later objects over earlier ones. COCO counts a key point's visibility 0, 1, 2; here 1 (marked but hidden) and 0
        are both "not visible".
    """
    path = Path(path)
    try:
        coco = json.loads(path.read_text(encoding="utf-8"))
        images = {image["id"]: image for image in coco["images"]}
        categories = {category["id"]: category for category in coco["categories"]}
        rank = {category: place for place, category in enumerate(categories, start=1)}
        marks = coco["annotations"]
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): give the COCO JSON file") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is not a COCO file ({error!r}): expected images, categories and annotations"
        ) from error
    found = _Gathered()
    masks: dict[str, np.ndarray] = {}
    for number, mark in enumerate(marks, start=1):
        try:
            image, category = images[mark["image_id"]], categories[mark["category_id"]]
            case = prefix + image["file_name"]
            if "bbox" in mark:
                x, y, w, h = map(float, mark["bbox"])
                found.boxes.setdefault(case, []).append(([x, y, x + w, y + h], str(category["name"])))
            if mark.get("segmentation"):
                if rank[category["id"]] > 255:
                    raise DataError(f"{path}: a mask holds at most 255 categories, {category['name']} is beyond them")
                canvas = masks.setdefault(case, np.zeros((image["height"], image["width"]), dtype=np.uint8))
                canvas[_segmented(mark["segmentation"], canvas.shape)] = rank[category["id"]]
            triples = np.reshape(np.asarray(mark.get("keypoints", []), dtype=float), (-1, 3))
            names = (category.get("keypoints") if len(triples) else None) or [f"point {i}" for i in range(len(triples))]
            for (px, py, seen), name in zip(triples.tolist(), names, strict=True):
                found.points.setdefault(case, []).append(([px, py, float(seen > 1)], str(name)))
        except DataError:
            raise
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise DataError(f"{path}: annotation {number} is not in COCO's form ({error!r})") from error
    annotations = found.annotations()
    for case, mask in masks.items():
        known = annotations.get(case, Annotation())
        annotations[case] = Annotation(known.boxes, known.box_labels, known.points, known.point_names, mask)
    return annotations


def _segmented(segmentation: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Return the pixels of a COCO segmentation: polygons, or uncompressed run lengths (column by column)."""
    if isinstance(segmentation, dict):
        counts = segmentation["counts"]
        if isinstance(counts, str):
            raise DataError("compressed run lengths need pycocotools: save the masks as pictures and use MaskFolder")
        values = np.arange(len(counts)) % 2 == 1
        return np.repeat(values, counts).reshape(shape, order="F")
    canvas = Image.new("1", (shape[1], shape[0]))
    for polygon in segmentation:
        ImageDraw.Draw(canvas).polygon(list(map(float, polygon)), fill=1)
    return np.asarray(canvas)


class MaskFolder(Mapping[str, Annotation]):
    """Masks stored as pictures in a folder that mirrors the cases, read one at a time.

    The mask of case ``train/cat/7.jpg`` is ``train/cat/7.png`` below ``root``; grey or palette values are kept as they
    are.

    Parameters
    ----------
    root : path
        Where the masks lie.
    ids : sequence of str
        The cases to look for; those without a file have no annotation.
    suffix : str
        The masks' own file name ending.
    """

    def __init__(self, root: str | Path, ids: Sequence[str], *, suffix: str = ".png") -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise DataError(f"{self.root} is not a folder: give the folder that holds the masks")
        self._files = {}
        for case in ids:
            file = self.root / Path(case).with_suffix(suffix)
            if file.is_file():
                self._files[case] = file
        if not self._files:
            raise DataError(
                f"{self.root} holds no mask for any of {len(ids)} cases: expected e.g. "
                f"{Path(ids[0]).with_suffix(suffix) if len(ids) else 'case' + suffix}"
            )

    def __getitem__(self, case: str) -> Annotation:
        file = self._files[case]
        with open_picture(file, str(file)) as picture:
            if picture.mode not in ("L", "P", "1"):
                raise DataError(f"{file} has mode {picture.mode}: a mask must be a grey or palette picture of 8 bits")
            values = np.asarray(picture)
            return Annotation(mask=values.astype(np.uint8))

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def checked_annotations(annotations: Mapping[str, Annotation], ids: Sequence[str]) -> Mapping[str, Annotation]:
    """Return the annotations, or fail when they name cases that do not exist and none that does."""
    known = set(ids)
    if len(annotations) and not any(case in known for case in annotations):
        first = next(iter(annotations))
        raise DataError(
            f"none of {len(annotations)} annotations belongs to a case: the first is for {first!r}, "
            f"{nearest_names(first, list(ids)[:2000])}"
        )
    return annotations
