"""A table that lists pictures: ``path,label,split,group`` and perhaps ``id``, as CSV or Parquet."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

import numpy as np

from protolearn.data.annotations import Annotation, marks_of_rows
from protolearn.data.cases import Transform
from protolearn.data.folder import FileCases
from protolearn.data.labels import encode
from protolearn.data.layout import SPLIT_NAMES, stable_id
from protolearn.data.tables import Table, read_table
from protolearn.errors import DataError, UsageError, nearest_names

ROLES = {
    "path": ("path", "file", "filename", "image"),
    "label": ("label", "class"),
    "name": ("class", "class_name", "name"),
    "split": ("split",),
    "group": ("group", "patient"),
    "id": ("id",),
}


@dataclass(frozen=True)
class Listing:
    """What a manifest says, checked: one entry a case in each field."""

    paths: list[str]
    ids: list[str]
    labels: np.ndarray
    classes: tuple[str, ...]
    splits: list[str] | None
    groups: list[str] | None
    annotations: dict[str, Annotation]


def manifest(
    path: str | Path,
    split: str | None = None,
    *,
    root: str | Path | None = None,
    columns: Mapping[str, str] | None = None,
    allow_absolute: bool = False,
    transform: Transform | None = None,
    seed: int = 0,
    bits: int | None = None,
) -> FileCases:
    """Read the pictures a table lists.

    Parameters
    ----------
    path : path
        ``.csv``, ``.tsv`` or, when pyarrow is there, ``.parquet``, with a header. Columns: ``path`` (or file, filename,
        image); ``label`` (or class), empty where unlabelled; ``split`` (usual
        variants of train, val and test are read as these); ``group`` (or patient); ``id``. A column
        ``class``, ``class_name`` or ``name`` beside a numeric label names the classes if it matches the labels one to
        one. Boxes and parts in the same row are read too, see :func:`~protolearn.data.annotations.marks_of_rows`.
    split : str, optional
        One part; everything by default.
    root : path, optional
        What the paths are relative to; the table's own folder by default. No path may lead out of it.
    columns : mapping, optional
        The table's own names, e.g. ``{"label": "diagnosis", "group": "patient_id"}``.
    allow_absolute : bool
        Accept absolute paths, which may point anywhere.
    transform, seed, bits
        See :class:`~protolearn.data.cases.Cases` and :func:`~protolearn.data.pictures.read_picture`.

    Returns
    -------
    FileCases
        A case's id is its ``id``, or else its path below the root.
    """
    path = Path(path)
    table = read_table(path)
    base = path.parent if root is None else Path(root)
    listing = read_listing(table, columns=columns, allow_absolute=allow_absolute)
    missing = [(row[0], p) for row, p in zip(table.rows, listing.paths, strict=True) if not (base / p).is_file()]
    if missing:
        number, first = missing[0]
        rows = ", ".join(str(number) for number, _ in missing[:5]) + (", ..." if len(missing) > 5 else "")
        parent = (base / first).parent
        hint = nearest_names(Path(first).name, [p.name for p in parent.iterdir()]) if parent.is_dir() else ""
        hint = f"; {hint}" if hint.startswith("did") else ""
        raise DataError(
            f"{table.where} row {number}: {first} is not a file below {base} ({len(missing)} missing, rows "
            f"{rows}){hint}"
        )
    cases = FileCases(
        base, listing.paths, name=path.stem, ids=listing.ids, labels=listing.labels, classes=listing.classes,
        groups=listing.groups, splits=listing.splits, annotations=listing.annotations, transform=transform, seed=seed,
        bits=bits,
    )  # fmt: skip
    return cases if split is None else cases.split(split)


def read_listing(table: Table, *, columns: Mapping[str, str] | None = None, allow_absolute: bool = False) -> Listing:
    """Check a manifest's rows and turn them into cases."""
    column = _columns(table, dict(columns or {}))
    paths = [_contained(row[str(column["path"])], f"{table.where} row {n}", allow_absolute) for n, row in table.rows]
    ids = [
        row[column["id"]] if column["id"] else stable_id(path) for path, (_, row) in zip(paths, table.rows, strict=True)
    ]
    seen: dict[str, int] = {}
    for case, (number, _) in zip(ids, table.rows, strict=True):
        if not case:
            raise DataError(f"{table.where} row {number}: the id is empty")
        if case in seen:
            cure = "each id must be unique" if column["id"] else "add a column id that tells them apart"
            raise DataError(f"{table.where} rows {seen[case]} and {number} are both {case!r}: {cure}")
        seen[case] = number
    labels, classes = _labels(table, column)
    return Listing(
        paths, ids, labels, classes,
        splits=[SPLIT_NAMES.get(row[column["split"]].lower(), row[column["split"]]) for _, row in table.rows]
        if column["split"]
        else None,
        groups=_groups(table, column["group"]),
        annotations=marks_of_rows(table, ids),
    )  # fmt: skip


def _columns(table: Table, stated: dict[str, str]) -> dict[str, str | None]:
    for role, name in stated.items():
        if role not in ROLES:
            raise UsageError(f"columns cannot say what {role!r} is; {nearest_names(role, ROLES)}")
        table.column(name, required=True)
    return {
        role: table.column(stated[role]) if role in stated else table.column(*names, required=role == "path")
        for role, names in ROLES.items()
    }


def _contained(path: str, where: str, allow_absolute: bool) -> str:
    if not path or "\0" in path:
        raise DataError(f"{where}: the path is empty or holds a zero byte")
    if PureWindowsPath(path).drive or path.startswith(("/", "\\")):
        if allow_absolute:
            return path
        raise DataError(f"{where}: {path} is absolute: make it relative to the root, or say allow_absolute=True")
    path = posixpath.normpath(path.replace("\\", "/"))
    if path == ".." or path.startswith("../"):
        raise DataError(
            f"{where}: {path} leads out of the root: move the picture in, or set root= to a folder above it"
        )
    return path


def _labels(table: Table, column: dict[str, str | None]) -> tuple[np.ndarray, tuple[str, ...]]:
    if column["label"] is None:
        return np.full(len(table.rows), -1, dtype=np.int64), ()
    values = [row[column["label"]] for _, row in table.rows]
    labels, classes = encode(values, None, table.where)
    if column["name"] and column["name"] != column["label"] and all(name.isdecimal() for name in classes):
        pairs = {(value, row[column["name"]]) for value, (_, row) in zip(values, table.rows, strict=True) if value}
        names = dict(pairs)
        if len(pairs) == len(classes) == len(set(names.values())) and all(names.values()):
            return labels, tuple(names[value] for value in classes)
    return labels, classes


def _groups(table: Table, column: str | None) -> list[str] | None:
    if column is None:
        return None
    empty = [number for number, row in table.rows if not row[column]]
    if empty:
        raise DataError(
            f"{table.where} row {empty[0]}: {column} is empty ({len(empty)} rows): say which group each case is of"
        )
    return [row[column] for _, row in table.rows]
