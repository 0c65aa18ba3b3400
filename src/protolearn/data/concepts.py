"""Named concepts that are present in a case or not, as people marked them: read from a table, laid beside cases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from protolearn.data.cases import Cases
from protolearn.data.tables import Table, read_table
from protolearn.errors import DataError, UsageError, nearest_names

UNKNOWN = -1.0
TARGET = "concepts"
"""Where objectives find concepts among the targets of cases: ``(N, K)``, 1 present, 0 absent, -1 unknown."""

_WORDS = {"": UNKNOWN, "?": UNKNOWN, "yes": 1.0, "true": 1.0, "present": 1.0, "no": 0.0, "false": 0.0, "absent": 0.0}
_IDS = ("id", "path", "file", "filename", "image", "case")
_KINDS = ("class", "class_name", "label")

C = TypeVar("C", bound=Cases)


@dataclass(frozen=True, eq=False)
class Concepts:
    """What a table of concepts says.

    Attributes
    ----------
    names : tuple of str
        The K concepts.
    values : mapping of str to ndarray
        ``(K,)`` by case id, or by class name: 1 present, 0 absent (or a share between), -1 unknown.
    by : {"case", "class"}
        Whether the table speaks of cases or of whole classes; then every case of a class has the same concepts.
    where : str
        The file, for messages.
    """

    names: tuple[str, ...]
    values: Mapping[str, np.ndarray]
    by: str = "case"
    where: str = "the concepts"

    def __post_init__(self) -> None:
        if self.by not in ("case", "class"):
            raise UsageError(f"concepts are by case or by class, got {self.by!r}")
        if not self.names or len(set(self.names)) != len(self.names):
            raise DataError(f"{self.where}: expected different names of concepts, got {self.names}")
        for key, row in self.values.items():
            if np.shape(row) != (len(self.names),):
                raise DataError(f"{self.where}: {key!r} has {np.shape(row)} values for {len(self.names)} concepts")


def read_concepts(path: str | Path) -> Concepts:
    r"""Read a table of concepts (CSV, or Parquet when pyarrow is there).

    Parameters
    ----------
    path : path
        Either one row a case: the column ``id`` (``path`` or ``file`` serve as well) and one column a concept; or one
        row a class: the column ``class``, when there is no id. A cell is 1, 0, a share between, yes or no, and empty or
        ``?`` where nobody knows.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "concepts.csv")
    ...     _ = path.write_text("id,loop,stroke\na.png,1,no\nb.png,?,1\n")
    ...     found = read_concepts(path)
    >>> found.names, found.values["b.png"].tolist()
    (('loop', 'stroke'), [-1.0, 1.0])
    """
    table = read_table(path)
    case, kind = table.column(*_IDS), table.column(*_KINDS)
    key = case or kind
    if key is None:
        raise DataError(
            f"{table.where} has the columns {', '.join(table.columns[:8])}: expected id (one row a case) or class (one "
            "row a class), and one column a concept"
        )
    beside = {key, kind, table.column("split"), table.column("group", "patient")}
    names = tuple(column for column in table.columns if column not in beside)
    if not names:
        raise DataError(f"{table.where} has no column beside {key!r}: expected one column a concept")
    values: dict[str, np.ndarray] = {}
    for number, row in table.rows:
        if not row[key]:
            raise DataError(f"{table.where} row {number}: {key} is empty")
        if row[key] in values:
            raise DataError(f"{table.where} row {number}: {row[key]!r} comes twice")
        values[row[key]] = np.array([_value(table, number, row, name) for name in names], dtype=np.float32)
    return Concepts(names, values, "case" if case else "class", table.where)


def with_concepts(cases: C, concepts: Concepts) -> C:
    """Return the same cases with concepts among their targets; a case the table does not know has unknown ones.

    Raises
    ------
    DataError
        If the table knows none of the cases.

    Examples
    --------
    >>> from protolearn.data import digits
    >>> loops = Concepts(("loop",), {"0": np.array([1.0]), "1": np.array([0.0])}, by="class")
    >>> cases = with_concepts(digits("test"), loops)
    >>> sorted(set(cases.targets["concepts"].flatten().tolist()))
    [-1.0, 0.0, 1.0]
    """
    if concepts.by == "class":
        keys = ["" if label < 0 else cases.classes[label] for label in cases.labels.tolist()]
    else:
        keys = list(cases.ids)
    nothing = np.full(len(concepts.names), UNKNOWN, dtype=np.float32)
    if len(cases) and not any(key in concepts.values for key in keys):
        first = next(iter(concepts.values), "")
        raise DataError(
            f"{concepts.where} knows no {concepts.by} of {cases.name}: its first is {first!r}, "
            f"{nearest_names(first, list(dict.fromkeys(keys))[:2000])}"
        )
    rows = np.stack([concepts.values.get(key, nothing) for key in keys]) if keys else nothing[None][:0]
    return cases.with_targets({**cases.targets, TARGET: rows})


def _value(table: Table, number: int, row: dict[str, str], column: str) -> float:
    text = row[column].lower()
    if text in _WORDS:
        return _WORDS[text]
    value = table.number(number, row, column)
    if not 0 <= value <= 1:
        raise DataError(
            f"{table.where} row {number}: {column} must lie between 0 (absent) and 1 (present), or be empty where "
            f"unknown, got {row[column]!r}"
        )
    return value
