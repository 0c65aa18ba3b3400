"""One door to every kind of data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

from protolearn.data import Preprocess, load_cases
from protolearn.data.archive import ArchiveCases
from protolearn.data.arrays import ArrayCases
from protolearn.data.folder import FileCases
from protolearn.errors import DataError, UsageError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / "pets" / part / name).mkdir(parents=True)
            Image.new("RGB", (4, 4), (len(name + part), 0, 0)).save(tmp_path / "pets" / part / name / "1.png")
    rows = [f"{part}/{name}/1.png,{name},{part}" for part in ("train", "test") for name in ("cat", "dog")]
    (tmp_path / "pets" / "index.csv").write_text("path,label,split\n" + "\n".join(rows) + "\n")
    return tmp_path


def test_names_and_paths(root: Path) -> None:
    import shutil

    shutil.make_archive(str(root / "pets"), "zip", root / "pets")
    ids = ("train/cat/1.png", "train/dog/1.png")
    for spec, kind in (
        (root / "pets", FileCases),
        (str(root / "pets"), FileCases),
        (root / "pets" / "index.csv", FileCases),
        (root / "pets.zip", ArchiveCases),
    ):
        cases = load_cases(spec, "train", transform=Preprocess(size=(2, 2)), seed=5)
        assert isinstance(cases, kind)
        assert (cases.ids, cases.classes, cases.seed) == (ids, ("cat", "dog"), 5)
        assert cases[1].inputs.shape == (3, 2, 2)
    contents = {load_cases(spec).content(0) for spec in (root / "pets" / "index.csv",)}
    assert contents == {load_cases(root / "pets").content(load_cases(root / "pets").index("train/cat/1.png"))}


def test_one_picture(root: Path) -> None:
    cases = load_cases(root / "pets" / "train" / "cat" / "1.png", transform=Preprocess(size=(2, 2)))
    assert (cases.ids, cases.labels.tolist()) == (("1.png",), [-1])
    assert cases[0].inputs.shape == (3, 2, 2)


def test_objects() -> None:
    pictures = np.zeros((3, 4, 4), dtype=np.uint8)
    cases = load_cases((pictures, ["a", "b", "a"]), seed=2)
    assert isinstance(cases, ArrayCases)
    assert load_cases(cases) is cases
    assert load_cases(cases, transform=Preprocess(size=(2, 2)))[0].inputs.shape == (3, 2, 2)
    wrapped = load_cases(TensorDataset(torch.zeros(3, 1, 4, 4, dtype=torch.uint8), torch.tensor([1, 0, 1])))
    assert wrapped.labels.tolist() == [1, 0, 1]
    assert wrapped.ids[0] == "TensorDataset/000000"


def test_known_classes(root: Path) -> None:
    cases = load_cases(root / "pets", "test", classes=("dog", "emu", "cat"))
    assert (cases.labels.tolist(), cases.classes) == ([2, 0], ("dog", "emu", "cat"))
    with pytest.raises(DataError, match=r"holds the class 'cat', which is not among the 2 known ones"):
        load_cases(root / "pets", classes=("dog", "emu"))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("digit", "there is no data 'digit'; did you mean 'digits'"),
        ("torchvison:CIFAR10", "there is no data 'torchvison:CIFAR10'; did you mean 'torchvision:NAME'"),
        ("zzz", r"there is no data 'zzz'; expected a folder, a \.csv"),
    ],
)
def test_unknown_names(spec: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=message):
        load_cases(spec)


def test_a_mistyped_path_suggests_its_neighbour(root: Path) -> None:
    with pytest.raises(DataError, match=r"did you mean .*pets'"):
        load_cases(root / "pest")
    (root / "notes.txt").write_text("?")
    with pytest.raises(DataError, match=r"notes\.txt is neither a table .* nor a picture"):
        load_cases(root / "notes.txt")


def test_wrong_objects_and_settings(root: Path) -> None:
    for spec in (3, None, {"a": 1}, ["x", "y"]):
        with pytest.raises(UsageError, match="is no data set: expected a name, a path"):
            load_cases(spec)
    with pytest.raises(UsageError, match="digits takes no setting 'bits'"):
        load_cases("digits", bits=12)
    with pytest.raises(UsageError, match="takes no setting 'colour'"):
        load_cases(root / "pets", colour="red")
