"""Labels from outside the model's training, in a table beside the cases: 0/1 columns, covariates, patients."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from protolearn.data.tables import Table, read_table
from protolearn.errors import DataError, nearest_names

UNKNOWN = frozenset({"", "na", "nan", "none", "null"})
"""Cells, in lower case, that say that nothing is known."""
_VALUES = {"0": 0.0, "1": 1.0, "0.0": 0.0, "1.0": 1.0, "false": 0.0, "true": 1.0}


@dataclass(frozen=True, eq=False)
class OutsideLabels:
    """What a table says of the cases that can be used.

    Attributes
    ----------
    index : ndarray
        ``(n,)`` int64 positions of the used cases in the data, rising.
    names : tuple of str
        Of the labels.
    labels : ndarray
        ``(n, Q)`` 1, 0, or NaN where nothing is known.
    covariates : ndarray or None
        ``(n, k)``: numbers as they are, a category as one column for each of its values but the first.
    covariate_names : tuple of str
        Of those columns.
    groups : tuple of str or None
        The patient of each used case.
    counts : mapping of str to int
        Cases left out, by reason.
    """

    index: np.ndarray
    names: tuple[str, ...]
    labels: np.ndarray
    covariates: np.ndarray | None
    covariate_names: tuple[str, ...]
    groups: tuple[str, ...] | None
    counts: Mapping[str, int]


def read_outside_labels(
    table: str | Path | Mapping[str, Sequence[Any]],
    ids: Sequence[str],
    *,
    covariates: Sequence[str] = (),
    categorical: Sequence[str] = (),
    group: str | None = None,
    only: Sequence[str] = (),
) -> OutsideLabels:
    """Read labels and covariates of cases.

    Parameters
    ----------
    table : path or mapping
        A file (``.csv``, ``.tsv``, ``.parquet``), or columns by name (``dict(frame)`` of a data frame). A column ``id``
        (or path, file, filename, image) names the case; every column that is not used otherwise is a label and holds 0,
        1, or nothing where it is not known.
    ids : sequence of str
        Of the cases.
    covariates : sequence of str
        Columns to correct for. One whose cells are all numbers is a number, any other a category. A case in which one
        is not known is left out.
    categorical : sequence of str
        Further covariates that are categories although they are written as numbers.
    group : str, optional
        Column with the patient.
    only : sequence of str
        Columns that are labels; all the rest by default.

    Raises
    ------
    DataError
        If a column is missing or holds what it must not, a case has two rows, or nothing is left.

    Examples
    --------
    >>> rows = {"id": ["a", "b", "c"], "sick": [1, 0, None], "age": [50, 61, 47]}
    >>> found = read_outside_labels(rows, ["c", "a", "z"], covariates=["age"])
    >>> found.names, found.labels.tolist(), found.covariates.tolist(), found.counts["cases without a row"]
    (('sick',), [[nan], [1.0]], [[47.0], [50.0]], 1)
    """
    read = _as_table(table) if isinstance(table, Mapping) else read_table(table)
    key = str(read.column("id", "path", "file", "filename", "image", required=True))
    asked = [*covariates, *categorical, *only, *([] if group is None else [group])]
    known = {name: str(read.column(name, required=True)) for name in asked}
    twice = next((name for name in known if asked.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{read.where}: the column {twice!r} is asked for twice")
    roles = {key, *(known[name] for name in asked)}
    names = tuple(known[name] for name in only) or tuple(name for name in read.columns if name not in roles)
    if not names:
        raise DataError(f"{read.where} has no column of labels beside {', '.join(sorted(roles))}")
    place = _places(read, key, ids)
    kept: list[tuple[int, int, dict[str, str]]] = []
    counts = {"cases without a row": len(ids) - len(place), "rows of no case": len(read.rows) - len(place)}
    needed = {name: known[name] for name in (*covariates, *categorical, *([] if group is None else [group]))}
    lost = {f"cases without {name}": 0 for name in needed}
    for i, (number, row) in sorted(place.items()):
        empty = next((name for name, column in needed.items() if row[column].lower() in UNKNOWN), None)
        if empty is None:
            kept.append((i, number, row))
        else:
            lost[f"cases without {empty}"] += 1
    counts |= {reason: count for reason, count in lost.items() if count}
    if not kept:
        raise DataError(f"{read.where}: every case lacks a covariate or the group: {counts}")
    columns: list[np.ndarray] = []
    titles: list[str] = []
    for name in (*covariates, *categorical):
        made = _covariate(name, [row[known[name]] for _, _, row in kept], name in categorical)
        columns += made.values()
        titles += made
    return OutsideLabels(
        index=np.array([i for i, _, _ in kept], dtype=np.int64),
        names=names,
        labels=np.array([[_label(read, number, row, name) for name in names] for _, number, row in kept]),
        covariates=np.stack(columns, axis=1) if columns else None,
        covariate_names=tuple(titles),
        groups=None if group is None else tuple(row[known[group]] for _, _, row in kept),
        counts=counts,
    )


def _as_table(columns: Mapping[str, Sequence[Any]]) -> Table:
    cells = {str(name): [_cell(value) for value in values] for name, values in columns.items()}
    sizes = {name: len(values) for name, values in cells.items()}
    if len(set(sizes.values())) > 1:
        raise DataError(f"the columns of labels differ in length: {sizes}")
    count = next(iter(sizes.values()), 0)
    rows = [(row + 1, {name: values[row] for name, values in cells.items()}) for row in range(count)]
    return Table("the table of labels", tuple(cells), rows)


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float | np.floating) and math.isnan(value)):
        return ""
    return str(value).strip()


def _places(table: Table, key: str, ids: Sequence[str]) -> dict[int, tuple[int, dict[str, str]]]:
    """Return position of a case -> number and cells of its row."""
    wanted = {str(case): i for i, case in enumerate(ids)}
    found: dict[int, tuple[int, dict[str, str]]] = {}
    for number, row in table.rows:
        i = wanted.get(row[key])
        if i is None:
            continue
        if i in found:
            raise DataError(f"{table.where} rows {found[i][0]} and {number} are both of case {row[key]!r}: keep one")
        found[i] = number, row
    if not found:
        first = next((row[key] for _, row in table.rows), "")
        hint = nearest_names(first, list(wanted)[:2000]) if wanted else "there are no cases"
        raise DataError(f"{table.where}: no row is of a case; the first is of {first!r} ({hint})")
    return found


def _label(table: Table, number: int, row: dict[str, str], name: str) -> float:
    cell = row[name].lower()
    if cell in UNKNOWN:
        return math.nan
    if cell not in _VALUES:
        raise DataError(
            f"{table.where} row {number}: the label {name!r} must be 0, 1 or empty, got {row[name]!r}; if it is no "
            "label, make it a covariate, or say which columns are labels (only=, --only)"
        )
    return _VALUES[cell]


def _covariate(name: str, cells: Sequence[str], categorical: bool) -> dict[str, np.ndarray]:
    """Return a covariate's columns by title: itself, or one for each of its values but the first."""
    if not categorical:
        try:
            numbers = np.array([float(cell) for cell in cells])
        except ValueError:
            categorical = True
        else:
            if not np.isfinite(numbers).all():
                raise DataError(f"the covariate {name!r} holds infinity")
            return {name: numbers}
    levels = sorted(set(cells))
    if len(levels) > max(20, len(cells) // 10):
        raise DataError(
            f"the covariate {name!r} has {len(levels)} values in {len(cells)} cases: neither numbers nor categories"
        )
    return {f"{name} = {level}": np.array([float(cell == level) for cell in cells]) for level in levels[1:]}
