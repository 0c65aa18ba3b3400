"""Tables that list pictures: what they may say, and errors that name the row."""

from __future__ import annotations

import builtins
from pathlib import Path

import pytest
from PIL import Image

from protolearn.data import manifest
from protolearn.data.tables import parse_csv, read_table
from protolearn.errors import DataError, MissingExtra, UsageError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for i, path in enumerate(("a/1.png", "a/2.png", "b/1.png", "b/2.png")):
        (tmp_path / "set" / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 4), (i, 0, 0)).save(tmp_path / "set" / path)
    return tmp_path / "set"


def table(root: Path, text: str, name: str = "index.csv") -> Path:
    (root / name).write_text(text, encoding="utf-8")
    return root / name


FULL = "path,label,split,group\na/1.png,cat,train,p1\na/2.png,dog,train,p2\nb/1.png,cat,test,p3\nb/2.png,,test,p3\n"


def test_all_columns(root: Path) -> None:
    cases = manifest(table(root, FULL))
    assert cases.ids == ("a/1.png", "a/2.png", "b/1.png", "b/2.png")
    assert (cases.classes, cases.labels.tolist()) == (("cat", "dog"), [0, 1, 0, -1])
    assert cases.groups == ("p1", "p2", "p3", "p3")
    assert cases.split_names == ("train", "test")
    assert cases.split("test").ids == manifest(root / "index.csv", "test").ids == ("b/1.png", "b/2.png")
    assert cases.picture(2).getpixel((0, 0)) == (2, 0, 0)


def test_own_ids_root_and_column_names(root: Path) -> None:
    text = "pic,diagnosis,patient_id,id\n1.png,x,p,one\n2.png,y,q,two\n"
    path = table(root.parent, text, "t.csv")
    cases = manifest(path, root=root / "a", columns={"path": "pic", "label": "diagnosis", "group": "patient_id"})
    assert (cases.ids, cases.groups, cases.classes) == (("one", "two"), ("p", "q"), ("x", "y"))
    assert cases.picture(1).size == (8, 4)


@pytest.mark.parametrize("separator", [";", "\t", ","])
def test_separators_byte_order_mark_blank_lines_and_case(root: Path, separator: str) -> None:
    text = "﻿File,LABEL\r\na/1.png,x\r\n\r\n b/1.png , y \r\n".replace(",", separator)
    cases = manifest(table(root, text))
    assert (cases.ids, cases.classes) == (("a/1.png", "b/1.png"), ("x", "y"))


def test_numbered_labels_take_names_that_match_one_to_one(root: Path) -> None:
    text = "file,label,class\na/1.png,2,two\na/2.png,10,ten\nb/1.png,2,two\n"
    assert manifest(table(root, text)).classes == ("two", "ten")
    assert manifest(table(root, text.replace("10,ten", "10,two"))).classes == ("2", "10")


def test_windows_paths(root: Path) -> None:
    assert manifest(table(root, "path,label\na\\1.png,x\n./b//1.png,y\n")).ids == ("a/1.png", "b/1.png")


def test_unlabelled(root: Path) -> None:
    cases = manifest(table(root, "path\na/1.png\n"))
    assert (cases.labels.tolist(), cases.classes) == ([-1], ())


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("../secret.png,x", r"row 3: \.\./secret\.png leads out of the root"),
        ("a/../../secret.png,x", "row 3: .* leads out of the root"),
        ("a\\..\\..\\secret.png,x", "row 3: .* leads out of the root"),
        ("/etc/hosts,x", "row 3: /etc/hosts is absolute.*allow_absolute"),
        ("C:\\pictures\\1.png,x", "row 3: .* is absolute"),
        ("\\\\server\\share\\1.png,x", "row 3: .* is absolute"),
        (",x", "row 3: the path is empty"),
        ("a/3.png,x", r"row 3: a/3\.png is not a file below .* \(1 missing, rows 3\); did you mean"),
        ("a,x", "row 3: a is not a file"),
        ("a/1.png,x", r"rows 2 and 3 are both 'a/1\.png': add a column id"),
        ("a/2.png", "row 3 has 1 cells, the header has 2"),
        ("a/2.png,x,y", "row 3 has 3 cells, the header has 2: quote cells"),
        ('a/2.png,"x', "row 3 is not CSV"),
    ],
)
def test_wrong_rows_are_named(root: Path, row: str, message: str) -> None:
    (root.parent / "secret.png").write_bytes((root / "a" / "1.png").read_bytes())
    with pytest.raises(DataError, match=message):
        manifest(table(root, f"path,label\na/1.png,x\n{row}\n"))


def test_absolute_paths_when_allowed(root: Path, tmp_path: Path) -> None:
    path = table(tmp_path, f"path,label,id\n{root / 'a/1.png'},x,one\n")
    assert manifest(path, allow_absolute=True).picture(0).size == (8, 4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty: expected a header"),
        ("path,label\n", "has a header and no rows"),
        ("pth,label\na/1.png,x\n", "has no column path or file or filename or image.*did you mean 'pth'"),
        ("path,label,label\na/1.png,x,y\n", "has the column label more than once"),
        ("path,label,id\na/1.png,x,\n", "row 2: the id is empty"),
        ("path,label,id\na/1.png,x,1\na/2.png,x,1\n", "rows 2 and 3 are both '1': each id must be unique"),
        ("path,group\na/1.png,p\na/2.png,\n", "row 3: group is empty"),
    ],
)
def test_wrong_tables(root: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        manifest(table(root, text))


def test_wrong_roles_and_columns(root: Path) -> None:
    path = table(root, FULL)
    with pytest.raises(UsageError, match="columns cannot say what 'lable' is; did you mean 'label'"):
        manifest(path, columns={"lable": "label"})
    with pytest.raises(DataError, match="has no column diagnosis; its columns are path, label, split, group"):
        manifest(path, columns={"label": "diagnosis"})


def test_not_text_and_not_there(root: Path) -> None:
    (root / "x.csv").write_bytes(b"path,label\na/\xff.png,x\n")
    with pytest.raises(DataError, match=r"x\.csv is not UTF-8 text.*save it as CSV UTF-8"):
        manifest(root / "x.csv")
    table(root, FULL)
    with pytest.raises(DataError, match=r"idnex\.csv is not a file: expected a table.*did you mean 'index\.csv'"):
        manifest(root / "idnex.csv")


def test_quoted_cells_and_line_numbers() -> None:
    found = parse_csv(b'path,label\n"a,1.png","two\nlines"\nb.png,x\n', "t")
    assert [(number, row["path"]) for number, row in found.rows] == [(3, "a,1.png"), (4, "b.png")]


def test_parquet(root: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
    from pyarrow import parquet

    content = {"path": ["a/1.png", "b/1.png"], "label": [1, 0], "class": ["x", "y"], "group": ["p", None]}
    parquet.write_table(pyarrow.table(content), root / "t.parquet")
    with pytest.raises(DataError, match="row 2: group is empty"):
        manifest(root / "t.parquet")
    del content["group"]
    parquet.write_table(pyarrow.table(content), root / "t.parquet")
    cases = manifest(root / "t.parquet")
    assert (cases.labels.tolist(), cases.classes) == ([1, 0], ("y", "x"))
    (root / "broken.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match=r"broken\.parquet is not a readable Parquet file"):
        manifest(root / "broken.parquet")


def test_parquet_without_pyarrow(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def no_pyarrow(name: str, *rest: object) -> object:
        if name.split(".")[0] == "pyarrow":
            raise ImportError(name)
        return real(name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", no_pyarrow)
    (root / "t.parquet").write_bytes(b"PAR1")
    with pytest.raises(
        MissingExtra, match=r"needs pyarrow, which is not installed: pip install 'protolearn\[images\]'"
    ):
        read_table(root / "t.parquet")
