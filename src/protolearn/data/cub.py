"""CUB-200-2011 in its authors' own files: pictures, official split, boxes and fifteen parts a bird."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

from protolearn.data.annotations import Annotation
from protolearn.data.cases import Transform
from protolearn.data.folder import FileCases
from protolearn.data.labels import encode
from protolearn.errors import DataError

T = TypeVar("T")


def cub(root: str | Path, split: str | None = None, *, transform: Transform | None = None, seed: int = 0) -> FileCases:
    """Read CUB-200-2011, or any data set in its format.

    Parameters
    ----------
    root : path
        The folder with ``images.txt``, ``image_class_labels.txt``, ``classes.txt``, ``train_test_split.txt``,
        ``images/`` and perhaps ``bounding_boxes.txt`` and ``parts/``.
    split : {"train", "test"}, optional
        The official parts; both by default.
    transform, seed
        See :class:`~protolearn.data.cases.Cases`.

    Returns
    -------
    FileCases
        A case's id is its path in ``images.txt``. Coordinates are kept as the files give them.
    """
    root = Path(root)
    images = _read(root / "images.txt", 2, lambda cells: cells[0])
    classes = _read(root / "classes.txt", 2, lambda cells: cells[0])
    labels = _read(root / "image_class_labels.txt", 2, lambda cells: cells[0])
    training = _read(root / "train_test_split.txt", 2, lambda cells: int(cells[0]))
    for file, found in (("image_class_labels.txt", labels), ("train_test_split.txt", training)):
        lost = [number for number in images if number not in found]
        if lost:
            raise DataError(
                f"{root / file} says nothing about image {lost[0]} ({len(lost)} of {len(images)} are missing)"
            )
    missing = [path for path in images.values() if not (root / "images" / path).is_file()]
    if missing:
        raise DataError(
            f"{root / 'images' / missing[0]} does not exist ({len(missing)} of {len(images)} pictures are missing)"
        )
    unnamed = [number for number in dict.fromkeys(labels.values()) if number not in classes]
    if unnamed:
        raise DataError(f"{root / 'classes.txt'} does not name class {unnamed[0]}")
    codes, names = encode([classes[labels[number]] for number in images], list(classes.values()), str(root))
    cases = FileCases(
        root / "images", list(images.values()), name=root.resolve().name, ids=list(images.values()), labels=codes,
        classes=names, splits=["train" if training[number] else "test" for number in images],
        annotations=_marks(root, images), transform=transform, seed=seed,
    )  # fmt: skip
    return cases if split is None else cases.split(split)


def _marks(root: Path, images: dict[str, str]) -> dict[str, Annotation]:
    boxes: dict[str, list[float]] = {}
    if (root / "bounding_boxes.txt").is_file():
        for number, (x, y, w, h) in _read(
            root / "bounding_boxes.txt", 5, lambda cells: list(map(float, cells))
        ).items():
            boxes[number] = [x, y, x + w, y + h]
    points: dict[str, dict[str, list[float]]] = {}
    parts: dict[str, str] = {}
    if (root / "parts" / "part_locs.txt").is_file():
        parts = _read(root / "parts" / "parts.txt", 2, lambda cells: cells[0])
        located = _read(root / "parts" / "part_locs.txt", 5, lambda cells: list(map(float, cells)), key=2)
        for both, (x, y, visible) in located.items():
            number, part = both.split(" ")
            points.setdefault(number, {})[part] = [x, y, float(visible > 0)]
    found = {}
    for number, path in images.items():
        if number in boxes or number in points:
            marked = [points.get(number, {}).get(part, [0.0, 0.0, 0.0]) for part in parts]
            found[path] = Annotation(
                boxes=np.array([boxes[number]] if number in boxes else []),
                points=np.array(marked),
                point_names=tuple(parts.values()),
            )
    return found


def _read(path: Path, cells: int, convert: Callable[[list[str]], T], *, key: int = 1) -> dict[str, T]:
    """Read lines of blank-separated cells, the first ``key`` of which name the line; the last may hold blanks."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} cannot be read ({error}): expected the files of CUB-200-2011 in {path.parent}"
        ) from error
    found: dict[str, T] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        parts = line.strip().split(" ", cells - 1)
        try:
            if len(parts) != cells:
                raise ValueError(f"{len(parts)} cells")
            found[" ".join(parts[:key])] = convert(parts[key:])
        except ValueError as error:
            raise DataError(
                f"{path} line {number} should have {cells} cells, got {line.strip()!r} ({error})"
            ) from error
    if not found:
        raise DataError(f"{path} is empty")
    return found
