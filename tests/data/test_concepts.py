"""Concept labels: read from tables of cases or of classes, laid beside cases, unknown ones kept apart from absent."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from protolearn.data import Concepts, digits, read_concepts, with_concepts
from protolearn.errors import DataError, UsageError


def table(folder: Path, text: str, name: str = "concepts.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_row_a_case(tmp_path: Path) -> None:
    test = digits("test").subset([0, 1, 2])
    a, b, c = test.ids
    found = read_concepts(table(tmp_path, f"loop,id,dark,split\n1,{a},no,train\n?,{b},0.25,test\n"))
    assert found.names == ("loop", "dark")
    assert found.by == "case"
    rows = with_concepts(test, found).targets["concepts"]
    assert rows.tolist() == [[1.0, 0.0], [-1.0, 0.25], [-1.0, -1.0]], f"{c} is not in the table: unknown, not absent"
    assert with_concepts(test, found).subset([1]).targets["concepts"].tolist() == [[-1.0, 0.25]]


def test_a_row_a_class(tmp_path: Path) -> None:
    found = read_concepts(table(tmp_path, "class,loop\n0,yes\n1,no\n8,true\n"))
    assert found.by == "class"
    cases = with_concepts(digits("test"), found)
    by_label = {label: set(cases.targets["concepts"][cases.labels == label, 0].tolist()) for label in range(10)}
    assert by_label[0] == by_label[8] == {1.0}
    assert by_label[1] == {0.0}
    assert by_label[2] == {-1.0}


def test_other_targets_stay() -> None:
    test = digits("test").subset([0, 1]).with_targets({"size": np.array([[1.0], [2.0]])})
    both = with_concepts(test, Concepts(("loop",), {test.ids[0]: np.array([1.0])}))
    assert sorted(both.targets) == ["concepts", "size"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name,loop\na,1\n", "expected id"),
        ("id\na\n", "no column beside"),
        ("id,loop\na,1\na,0\n", "row 3: 'a' comes twice"),
        ("id,loop\na,maybe\n", "row 2: loop must be a number"),
        ("id,loop\na,70\n", "row 2: loop must lie between 0"),
        ("id,loop\n,1\n", "row 2: id is empty"),
        ("id,loop,loop\na,1,1\n", "more than once"),
    ],
)
def test_bad_tables_name_the_row(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        read_concepts(table(tmp_path, text))


def test_a_table_of_other_cases_is_refused(tmp_path: Path) -> None:
    found = read_concepts(table(tmp_path, "id,loop\nelsewhere/1,1\n"))
    with pytest.raises(DataError, match="knows no case of digits"):
        with_concepts(digits("test"), found)
    with pytest.raises(DataError, match="different names"):
        Concepts(("a", "a"), {})
    with pytest.raises(DataError, match="1 concepts"):
        Concepts(("a",), {"x": np.zeros(2)})
    with pytest.raises(UsageError, match="by case or by class"):
        Concepts(("a",), {}, by="part")


def test_bird_attributes_of_classes(shared_data: Path, tmp_path: Path) -> None:
    """CUB's attributes are shares of people, in percent, for a class as a whole."""
    rows = (shared_data / "cub_birds6" / "class_attributes.csv").read_text().splitlines()
    head, *lines = [row.split(",") for row in rows]
    text = [",".join([head[0], *head[1:5]])]
    text += [",".join([row[0], *(str(float(cell) / 100) for cell in row[1:5])]) for row in lines]
    found = read_concepts(table(tmp_path, "\n".join(text) + "\n"))
    assert found.by == "class"
    assert len(found.names) == 4
    assert len(found.values) == 6
    assert all(0 <= row.min() <= row.max() <= 1 for row in found.values.values())
