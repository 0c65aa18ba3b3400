"""Public data sets by name, without network: torchvision's own reader on tiny files, MedMNIST by a stand-in."""

from __future__ import annotations

import builtins
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from protolearn.data import load_cases
from protolearn.errors import DataError, MissingExtra, UsageError


def idx(values: np.ndarray) -> bytes:
    """Return an array in MNIST's own format."""
    header = bytes([0, 0, 8, values.ndim]) + b"".join(int(side).to_bytes(4, "big") for side in values.shape)
    return header + values.astype(np.uint8).tobytes()


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 30), ("t10k", 20)):
        pictures = np.zeros((count, 28, 28)) + np.arange(count)[:, None, None]
        (raw / f"{part}-images-idx3-ubyte").write_bytes(idx(pictures))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx(np.arange(count) % 10))
    return tmp_path


def test_torchvision_with_train_and_test(mnist: Path) -> None:
    cases = load_cases("torchvision:MNIST", root=mnist, download=False)
    assert cases.split_names == ("train", "test")
    assert (len(cases.split("train")), len(cases.split("test"))) == (30, 20)
    assert cases.classes[3] == "3 - three"
    test = load_cases("torchvision:MNIST", "test", root=mnist, download=False)
    assert test.ids[7] == "MNIST/test/000007"
    assert test.picture(7).getpixel((0, 0)) == (7, 7, 7)
    assert test.labels[7] == 7
    assert test.content(7) == cases.content(cases.index("MNIST/test/000007"))


def test_torchvision_with_split_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    class Streets:
        classes = ["a", "b"]

        def __init__(self, root: str, split: str = "train", download: bool = False) -> None:
            if split not in ("train", "test"):
                raise ValueError(f"Unknown value '{split}' for argument split. Valid values are train, test.")
            asked.append((split, download))
            if not download:
                raise RuntimeError("Dataset not found. You can use download=True to download it")
            self.targets = [0, 1]

        def __len__(self) -> int:
            return 2

        def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
            return np.zeros((2, 2), dtype=np.uint8), i

    asked: list[tuple[str, bool]] = []
    monkeypatch.setattr(datasets, "SVHN", Streets)
    cases = load_cases("torchvision:SVHN", root=tmp_path / "new")
    assert cases.split_names == ("train", "test")
    assert asked == [("train", False), ("train", True), ("test", False), ("test", True)]
    with pytest.raises(DataError, match="SVHN has no part val: Unknown value 'val'"):
        load_cases("torchvision:SVHN", "val", root=tmp_path)
    with pytest.raises(DataError, match=r"SVHN/test could not be loaded \(Dataset not found.*give that folder as root"):
        load_cases("torchvision:SVHN", "test", root=tmp_path, download=False)


def test_torchvision_in_one_piece(tmp_path: Path) -> None:
    cases = load_cases(
        "torchvision:FakeData", labelled=True, root=tmp_path, size=6, image_size=(3, 8, 8), num_classes=2
    )
    assert len(cases) == 6
    assert cases.ids[0] == "FakeData/000000"
    assert cases.split_names == ()
    with pytest.raises(DataError, match="FakeData has no part 'train'; it comes in one piece"):
        load_cases("torchvision:FakeData", "train")


def test_wrong_names(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="torchvision has no data set 'CIFR10'; did you mean 'CIFAR10'"):
        load_cases("torchvision:CIFR10")
    with pytest.raises(DataError, match="CIFAR10 has no part 'tset'; did you mean 'test'"):
        load_cases("torchvision:CIFAR10", "tset", root=tmp_path)


@pytest.fixture
def medmnist(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A stand-in with the package's interface: INFO, and classes with ``imgs`` and ``labels`` of shape (n, 1)."""
    module = types.ModuleType("medmnist")
    names = {"0": "basophil", "1": "eosinophil", "10": "late", "2": "early"}
    module.INFO = {  # type: ignore[attr-defined]
        "bloodmnist": {"python_class": "BloodMNIST", "task": "multi-class", "label": names},
        "chestmnist": {"python_class": "ChestMNIST", "task": "multi-label, binary-class", "label": {}},
        "organmnist3d": {"python_class": "OrganMNIST3D", "task": "multi-class", "label": {}},
    }

    class BloodMNIST:
        def __init__(self, split: str, download: bool = False, root: str = "", size: int | None = None) -> None:
            asked.append((split, download, size))
            assert Path(root).is_dir()
            if not download and split == "val":
                raise RuntimeError("Dataset not found.  You can set `download=True` to download it")
            self.imgs = np.full((4, 28, 28, 3), {"train": 1, "val": 2, "test": 3}[split], dtype=np.uint8)
            self.labels = np.array([[0], [1], [2], [3]], dtype=np.uint8)

    asked: list[Any] = []
    module.BloodMNIST, module.asked = BloodMNIST, asked  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "medmnist", module)
    return module


def test_medmnist(medmnist: types.ModuleType, tmp_path: Path) -> None:
    cases = load_cases("medmnist:BloodMNIST", root=tmp_path / "new")
    assert cases.classes == ("basophil", "eosinophil", "early", "late")
    assert cases.split_names == ("train", "val", "test")
    assert cases.ids[-1] == "BloodMNIST/test/000003"
    assert cases.picture(11).getpixel((0, 0)) == (3, 3, 3)
    assert medmnist.asked == [("train", False, 28), ("val", False, 28), ("val", True, 28), ("test", False, 28)]
    assert load_cases("medmnist:BloodMNIST", "test", root=tmp_path).labels.tolist() == [0, 1, 2, 3]


@pytest.mark.usefixtures("medmnist")
def test_medmnist_names_and_sizes(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no flat single-label data set 'BlodMNIST'; did you mean 'BloodMNIST'"):
        load_cases("medmnist:BlodMNIST")
    for name in ("ChestMNIST", "OrganMNIST3D"):
        with pytest.raises(UsageError, match="no flat single-label data set"):
            load_cases(f"medmnist:{name}")
    with pytest.raises(UsageError, match="sizes 28, 64, 128 and 224, got 32"):
        load_cases("medmnist:BloodMNIST", size=32)


def test_medmnist_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def no_medmnist(name: str, *rest: Any) -> Any:
        if name == "medmnist":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.delitem(sys.modules, "medmnist", raising=False)
    monkeypatch.setattr(builtins, "__import__", no_medmnist)
    with pytest.raises(MissingExtra, match=r"a MedMNIST data set needs medmnist.*protolearn\[images\]"):
        load_cases("medmnist:BloodMNIST")
