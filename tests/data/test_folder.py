"""Class folders as people have them."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from protolearn.data import folder
from protolearn.data.folder import FileCases, one_file
from protolearn.errors import DataError


def fill(root: Path, *paths: str) -> Path:
    for i, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        if path.endswith((".png", ".JPG", ".tif")):
            Image.new("RGB", (4, 4), (i, 0, 0)).save(root / path, "PNG")
        else:
            (root / path).write_text("?")
    return root


def test_classes_are_folders(tmp_path: Path) -> None:
    cases = folder(fill(tmp_path, "b/2.png", "a/10.png", "a/deep/er/1.JPG", "b/1.tif"))
    assert cases.classes == ("a", "b")
    assert cases.ids == ("a/10.png", "a/deep/er/1.JPG", "b/1.tif", "b/2.png")
    assert cases.labels.tolist() == [0, 0, 1, 1]
    assert cases.splits is None
    assert cases.split_names == ()
    assert cases.path(3) == tmp_path / "b" / "2.png"


def test_noise_is_ignored(tmp_path: Path) -> None:
    noise = (
        ".DS_Store",
        "a/.hidden.png",
        "a/Thumbs.db",
        "__MACOSX/a/1.png",
        ".git/x/1.png",
        "a/notes.txt",
        "readme.md",
    )
    assert folder(fill(tmp_path, "a/1.png", "b/1.png", *noise)).ids == ("a/1.png", "b/1.png")


def test_parts(tmp_path: Path) -> None:
    fill(tmp_path, "train/a/1.png", "train/b/1.png", "Validation/b/1.png", "test/c/1.png")
    cases = folder(tmp_path)
    assert cases.split_names == ("val", "test", "train")
    assert cases.classes == ("a", "b", "c")
    test = folder(tmp_path, "test")
    assert (test.ids, test.classes, test.labels.tolist()) == (("test/c/1.png",), ("a", "b", "c"), [2])
    with pytest.raises(DataError, match=r"has no part 'tset'; did you mean 'test'"):
        folder(tmp_path, "tset")


def test_a_class_called_test_is_a_class_beside_others(tmp_path: Path) -> None:
    assert folder(fill(tmp_path, "test/1.png", "control/1.png")).classes == ("control", "test")


def test_asking_for_a_part_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no part 'train'; it came in one piece"):
        folder(fill(tmp_path, "a/1.png", "b/1.png"), "train")


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ((), "holds no pictures: expected .*class/picture.png"),
        (("a/notes.txt",), "holds no pictures"),
        (("1.png", "2.png"), r"1\.png lies outside every class folder \(2 of 2 do\).*labelled=False"),
        (("a/1.png", "0.png"), r"0\.png lies outside every class folder \(1 of 2 do\)"),
        (("train/1.png", "test/a/1.png"), r"train/1\.png lies outside every class folder.*part/class/picture"),
        (("a/1.png", "b/notes.txt"), "the class folder 'b' holds no picture"),
        (("train/a/1.png", "train/b/notes.txt", "test/a/1.png"), "the class folder 'b' holds no picture"),
    ],
)
def test_layouts_that_mean_nothing(tmp_path: Path, paths: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        folder(fill(tmp_path, *paths))


def test_a_class_without_test_pictures_is_fine(tmp_path: Path) -> None:
    fill(tmp_path, "train/a/1.png", "train/b/1.png", "test/a/1.png", "test/b/notes.txt")
    assert folder(tmp_path, "test").classes == ("a", "b")


def test_unlabelled(tmp_path: Path) -> None:
    cases = folder(fill(tmp_path, "2.png", "x/1.png"), labelled=False)
    assert (cases.ids, cases.labels.tolist(), cases.classes) == (("2.png", "x/1.png"), [-1, -1], ())


def test_not_a_folder(tmp_path: Path) -> None:
    (tmp_path / "birds").mkdir()
    with pytest.raises(DataError, match=r"brids is not a folder.*did you mean 'birds'"):
        folder(tmp_path / "brids")


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_links_are_followed_and_loops_are_not(tmp_path: Path) -> None:
    fill(tmp_path, "store/1.png", "data/b/1.png")
    (tmp_path / "data" / "a").symlink_to(tmp_path / "store")
    (tmp_path / "data" / "b" / "again").symlink_to(tmp_path / "data")
    assert folder(tmp_path / "data").ids == ("a/1.png", "b/1.png")


def test_accents_give_the_same_id_on_every_system(tmp_path: Path) -> None:
    apart = unicodedata.normalize("NFD", "pâté")
    cases = folder(fill(tmp_path, f"{apart}/1.png", "b/1.png"))
    assert unicodedata.normalize("NFC", "pâté/1.png") in cases.ids
    assert cases.picture(1).size == (4, 4)


def test_a_damaged_file_is_named_when_it_is_read(tmp_path: Path) -> None:
    fill(tmp_path, "a/1.png", "b/1.png")
    (tmp_path / "b" / "1.png").write_bytes(b"")
    cases = folder(tmp_path)
    assert cases.picture(0).size == (4, 4)
    with pytest.raises(DataError, match=r"b/1\.png is empty"):
        cases.picture(1)


def test_one_file(tmp_path: Path) -> None:
    cases = one_file(fill(tmp_path, "x.png") / "x.png")
    assert (cases.ids, cases.labels.tolist(), cases.picture(0).size) == (("x.png",), [-1], (4, 4))


def test_paths_and_ids_must_match(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="2 ids and 1 paths"):
        FileCases(tmp_path, ["a"], name="x", ids=["a", "b"], labels=[0, 0], classes=["c"])
