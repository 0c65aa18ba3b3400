"""Small tables that describe cases: CSV always, Parquet when pyarrow is there. Errors name the row."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from protolearn.errors import DataError, MissingExtra, nearest_names


@dataclass(frozen=True)
class Table:
    """Rows of text by column name.

    Attributes
    ----------
    where : str
        The file, for messages.
    columns : tuple of str
        Names as the file writes them.
    rows : list of (int, dict)
        Each with the number of its line in the file (the header is line 1; Parquet rows count from 1).
    """

    where: str
    columns: tuple[str, ...]
    rows: list[tuple[int, dict[str, str]]]

    def column(self, *names: str, required: bool = False) -> str | None:
        """Return the file's own spelling of the first of these names it has, ignoring case."""
        spelled = {column.lower(): column for column in self.columns}
        for name in names:
            if name.lower() in spelled:
                return spelled[name.lower()]
        if required:
            raise DataError(
                f"{self.where} has no column {' or '.join(names)}; its columns are {', '.join(self.columns)} "
                f"({nearest_names(names[0], self.columns)})"
            )
        return None

    def number(self, number: int, row: dict[str, str], column: str) -> float:
        """Return a cell as a finite number."""
        try:
            value = float(row[column])
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise DataError(f"{self.where} row {number}: {column} must be a number, got {row[column]!r}")
        return value


def read_table(path: str | Path) -> Table:
    """Read a ``.csv``, ``.tsv`` or ``.parquet`` file; every cell becomes stripped text, nothing becomes ``""``."""
    path = Path(path)
    if not path.is_file():
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        hint = f" ({nearest_names(path.name, siblings)})" if siblings else ""
        raise DataError(f"{path} is not a file: expected a table (.csv, .tsv or .parquet){hint}")
    if path.suffix.lower() in (".parquet", ".pq"):
        return _read_parquet(path)
    try:
        text = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    return parse_csv(text, str(path))


def parse_csv(content: bytes, where: str) -> Table:
    """Read CSV text in UTF-8; the separator is a comma, or a semicolon or tab when the header has no comma."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where} is not UTF-8 text ({error.reason} at byte {error.start}): save it as CSV UTF-8"
        ) from error
    header = text.split("\n", 1)[0]
    separator = next((s for s in (",", ";", "\t") if s in header), ",")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        columns = tuple(name.strip() for name in next(reader, []))
        rows = []
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(columns):
                raise DataError(
                    f"{where} row {reader.line_num} has {len(cells)} cells, the header has {len(columns)}: "
                    "quote cells that hold the separator"
                )
            rows.append((reader.line_num, dict(zip(columns, (cell.strip() for cell in cells), strict=True))))
    except csv.Error as error:
        raise DataError(f"{where} row {reader.line_num} is not CSV: {error}") from error
    return _checked(Table(where, columns, rows))


def _read_parquet(path: Path) -> Table:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise MissingExtra("pyarrow", "images", f"reading {path}") from error
    try:
        table = parquet.read_table(path)
    except (ArrowException, OSError) as error:
        raise DataError(f"{path} is not a readable Parquet file: {str(error).splitlines()[0]}") from error
    records: Iterable[dict[str, object]] = table.to_pylist()
    rows = [
        (number, {key: "" if value is None else str(value).strip() for key, value in record.items()})
        for number, record in enumerate(records, start=1)
    ]
    return _checked(Table(str(path), tuple(table.column_names), rows))


def _checked(table: Table) -> Table:
    if not table.columns:
        raise DataError(f"{table.where} is empty: expected a header line such as path,label,split")
    twice = sorted({column for column in table.columns if table.columns.count(column) > 1})
    if twice:
        raise DataError(f"{table.where} has the column {', '.join(twice)} more than once")
    if not table.rows:
        raise DataError(f"{table.where} has a header and no rows: expected one row a picture")
    return table
