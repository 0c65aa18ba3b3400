"""Classes and parts read off file paths: ``class/picture`` or ``part/class/picture``."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from protolearn.data.pictures import PICTURE_SUFFIXES
from protolearn.errors import DataError

SPLIT_NAMES = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """Pictures below a root: posix ``paths``, their ``labels`` (-1 = none), ``classes`` and, if any, ``splits``."""

    paths: tuple[str, ...]
    labels: np.ndarray
    classes: tuple[str, ...]
    splits: tuple[str, ...] | None


def is_picture(path: str) -> bool:
    """Say whether a relative path looks like a picture that is meant: a known ending, nothing hidden."""
    parts = PurePosixPath(path).parts
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    return not hidden and PurePosixPath(path).suffix.lower() in PICTURE_SUFFIXES


def stable_id(path: str) -> str:
    """Return a path as an id that is the same on every system (posix separators, composed accents)."""
    return unicodedata.normalize("NFC", path.replace(os.sep, "/"))


def find_files(root: Path) -> tuple[list[str], list[str]]:
    """Return the posix paths of the pictures and of the folders below a root, sorted; links are followed, loops not."""
    pictures: list[str] = []
    folders: list[str] = []
    seen: set[str] = set()
    for folder, names, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            names.clear()
            continue
        seen.add(real)
        names[:] = sorted(name for name in names if not name.startswith(".") and name != "__MACOSX")
        below = Path(folder).relative_to(root)
        folders += [(below / name).as_posix() for name in names]
        pictures += [(below / file).as_posix() for file in files]
    return sorted(filter(is_picture, pictures)), sorted(folders)


def read_layout(paths: Iterable[str], where: str, *, folders: Iterable[str] = (), labelled: bool = True) -> Layout:
    """Read classes and parts off relative paths.

    The top folders are parts when all of them are called train, val or test (or a usual variant); otherwise they are
    classes. Deeper folders below a class are part of the path and nothing else.
    """
    paths = tuple(paths)
    if not paths:
        raise DataError(
            f"{where} holds no pictures: expected {where}/class/picture.png (endings like .png, .jpg, .tif)"
        )
    tops = {path.split("/", 1)[0] for path in paths if "/" in path}
    parted = bool(tops) and all(top.lower() in SPLIT_NAMES for top in tops)
    splits = (
        tuple(SPLIT_NAMES.get(p.split("/", 1)[0].lower(), "") if "/" in p else "" for p in paths) if parted else None
    )
    if not labelled:
        return Layout(paths, np.full(len(paths), -1, dtype=np.int64), (), splits)
    depth = 1 if parted else 0
    shape = "part/class/picture" if parted else "class/picture"
    stray = [path for path in paths if path.count("/") <= depth]
    if stray:
        raise DataError(
            f"{where}: {stray[0]} lies outside every class folder ({len(stray)} of {len(paths)} do): expected "
            f"{shape}, or "
            "say labelled=False to read pictures without labels"
        )
    names = [path.split("/")[depth] for path in paths]
    empty = sorted(
        {folder.split("/")[depth] for folder in folders if folder.count("/") == depth and _inside(folder, tops, parted)}
        - set(names)
    )
    if empty:
        raise DataError(f"{where}: the class folder {empty[0]!r} holds no picture: add some or remove the folder")
    classes = tuple(sorted(set(names)))
    place = {name: index for index, name in enumerate(classes)}
    return Layout(paths, np.array([place[name] for name in names], dtype=np.int64), classes, splits)


def _inside(folder: str, tops: set[str], parted: bool) -> bool:
    return not parted or folder.split("/", 1)[0] in tops
