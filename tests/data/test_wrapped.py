"""Data sets of other libraries."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from protolearn.data import load_cases, wrap
from protolearn.data.wrapped import hugging_face
from protolearn.errors import DataError, UsageError


class Shapes(Dataset[Any]):
    """Ten pictures whose red value is their place."""

    def __init__(self, form: str = "pil", **extra: Any) -> None:
        self.form = form
        self.__dict__.update(extra)
        self.read: list[int] = []

    def __len__(self) -> int:
        return 10

    def __getitem__(self, i: int) -> Any:
        self.read.append(i)
        picture = Image.new("RGB", (4, 3), (i, 0, 0))
        array = np.asarray(picture)
        forms = {
            "pil": picture,
            "array": array,
            "tensor": torch.from_numpy(array.copy()).permute(2, 0, 1),
            "real": array / 255.0,
        }
        return forms[self.form], i % 3


@pytest.mark.parametrize("form", ["pil", "array", "tensor", "real"])
def test_any_form_of_picture(form: str) -> None:
    cases = wrap(Shapes(form))
    assert (cases.name, cases.classes) == ("Shapes", ("0", "1", "2"))
    assert cases.labels.tolist() == [i % 3 for i in range(10)]
    assert cases.ids[7] == "Shapes/000007"
    assert np.asarray(cases.picture(7)).tolist() == [[[7, 0, 0]] * 4] * 3


def test_targets_spare_the_reading_and_classes_give_names() -> None:
    dataset = Shapes(targets=torch.arange(10) % 2, classes=["even", "odd"])
    cases = wrap(dataset)
    assert dataset.read == []
    assert (cases.classes, cases.labels.tolist()) == (("even", "odd"), [0, 1] * 5)


def test_own_ids() -> None:
    assert wrap(Shapes(ids=[f"slide-{i}" for i in range(10)])).ids[3] == "slide-3"
    with pytest.raises(DataError, match="offers 3 ids for 10 items"):
        wrap(Shapes(ids=["a", "b", "c"]))


def test_a_subset_keeps_the_ids_of_its_data_set() -> None:
    cases = wrap(Subset(Subset(Shapes(), [9, 4, 2]), torch.tensor([2, 0])))
    assert cases.ids == ("Shapes/000002", "Shapes/000009")
    assert [cases.classes[label] for label in cases.labels] == ["2", "0"]
    told = wrap(Subset(Shapes(targets=[i % 3 for i in range(10)]), [2, 9]))
    assert (told.classes, told.labels.tolist()) == (("0", "1", "2"), [2, 0])
    assert np.asarray(cases.picture(1))[0, 0, 0] == 9


def test_workers() -> None:
    found = {}
    for batch in DataLoader(wrap(Shapes()), batch_size=3, shuffle=True, num_workers=2):
        found.update(zip(batch.ids, (batch.inputs[:, 0, 0, 0] * 255).round().int().tolist(), strict=True))
    assert found == {f"Shapes/{i:06d}": i for i in range(10)}


def test_pictures_alone() -> None:
    class Bare(Shapes):
        def __getitem__(self, i: int) -> Any:
            return super().__getitem__(i)[0]

    with pytest.raises(DataError, match=r"Bare item 0 is a Image: expected \(picture, label\), or say labelled=False"):
        wrap(Bare())
    cases = wrap(Bare(), labelled=False)
    assert cases.labels.tolist() == [-1] * 10
    assert np.asarray(cases.picture(5))[0, 0, 0] == 5


def test_normalised_pictures_and_several_labels_are_refused() -> None:
    class Normalised(Shapes):
        def __getitem__(self, i: int) -> Any:
            return torch.randn(3, 4, 4), 0

    with pytest.raises(DataError, match=r"Normalised/2 holds real values from .* expected 0 to 1"):
        wrap(Normalised()).picture(2)
    with pytest.raises(DataError, match=r"a label has shape \(2,\); expected one class a picture"):
        wrap(Shapes(targets=np.zeros((10, 2), dtype=int)))
    assert wrap(Shapes(targets=np.ones((10, 1), dtype=int))).labels.tolist() == [0] * 10


def test_streams_are_refused() -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter([])

    with pytest.raises(DataError, match="Stream has no length or no items: expected a map-style data set"):
        wrap(Stream())


class ClassLabel:
    def __init__(self, names: list[str]) -> None:
        self.names = names


class ImageFeature:
    pass


ImageFeature.__name__ = "Image"  # what Hugging Face calls it


class FakeHub:
    """The part of ``datasets.Dataset`` that is used: rows by number, columns by name."""

    def __init__(self, count: int = 4, image: str = "image", label: str = "label", **columns: list[Any]) -> None:
        self.columns: dict[str, list[Any]] = {
            image: [Image.new("L", (3, 2), 10 * i) for i in range(count)],
            label: [i % 2 for i in range(count)],
            **columns,
        }
        self.features = {image: ImageFeature(), label: ClassLabel(["no", "yes"])}
        self.info = type("Info", (), {"dataset_name": "beans"})()
        self.split = "train"

    @property
    def column_names(self) -> list[str]:
        return list(self.columns)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, key: int | str) -> Any:
        return (
            self.columns[key] if isinstance(key, str) else {name: values[key] for name, values in self.columns.items()}
        )


def test_hugging_face() -> None:
    cases = load_cases(FakeHub())
    assert (cases.classes, cases.labels.tolist()) == (("no", "yes"), [0, 1, 0, 1])
    assert cases.ids[2] == "beans/train/000002"
    assert cases.picture(2).getpixel((0, 0)) == (20, 20, 20)


def test_hugging_face_columns() -> None:
    unusual = FakeHub(image="photo", label="species", id=["w", "x", "y", "z"])
    with pytest.raises(DataError, match="no column looks like labels among photo, species, id"):
        hugging_face(unusual)
    cases = hugging_face(unusual, label="species")
    assert (cases.ids, cases.classes) == (("w", "x", "y", "z"), ("no", "yes"))
    with pytest.raises(UsageError, match="there is no column 'specie'; did you mean 'species'"):
        hugging_face(unusual, label="specie")
    assert hugging_face(FakeHub(id=["w", "w", "y", "z"])).ids[0] == "beans/train/000000"


def test_hugging_face_undecoded_and_unlabelled() -> None:
    buffer = io.BytesIO()
    Image.new("L", (3, 2), 9).save(buffer, "PNG")
    raw = FakeHub()
    raw.columns["image"] = [{"bytes": buffer.getvalue(), "path": None}] * 4
    assert hugging_face(raw).picture(1).getpixel((0, 0)) == (9, 9, 9)
    del raw.columns["label"]
    assert hugging_face(raw, labelled=False).labels.tolist() == [-1] * 4


def test_hugging_face_parts() -> None:
    parts = {"train": FakeHub(4), "test": FakeHub(2)}
    cases = load_cases(parts)
    assert cases.split_names == ("train", "test")
    assert cases.split("test").ids == ("beans/test/000000", "beans/test/000001")
    assert load_cases(parts, "test").ids == cases.split("test").ids
    with pytest.raises(DataError, match="the data has no part 'tets'; did you mean 'test'"):
        load_cases(parts, "tets")
