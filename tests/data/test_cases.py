"""Stable ids, equal samples under any loader, honest errors."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, default_collate

from protolearn.data import Annotation, Augment, Augmented, Preprocess, arrays, folder, join
from protolearn.data.cases import Cases, view_seed
from protolearn.errors import DataError, UsageError
from protolearn.structures import Batch


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    draw = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for i in range(6):
            Image.fromarray(draw.integers(0, 256, (12, 16, 3), dtype=np.uint8)).save(
                tmp_path / "pets" / name / f"{i}.png"
            )
    return tmp_path / "pets"


@pytest.fixture
def views(pets: Path) -> Cases:
    augment = Augment(crop=(0.5, 1.0), brightness=0.3, contrast=0.2, saturation=0.2, hue=0.1)
    return folder(pets, transform=Augmented(Preprocess(size=(8, 8)), augment), seed=3)


def samples(cases: Cases, **options: object) -> dict[str, tuple[torch.Tensor, int]]:
    found = {}
    for batch in DataLoader(cases, batch_size=5, **options):
        assert isinstance(batch, Batch)
        for values, label, case in zip(batch.inputs, batch.labels.tolist(), batch.ids, strict=True):
            found[case] = (values, label)
    return found


def equal(one: dict[str, tuple[torch.Tensor, int]], other: dict[str, tuple[torch.Tensor, int]]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(one[case][0], other[case][0]) and one[case][1] == other[case][1] for case in one
    )


def test_samples_collate_into_a_batch(views: Cases) -> None:
    batch = default_collate([views[0], views[7]])
    assert isinstance(batch, Batch)
    assert batch.inputs.shape == (2, 3, 8, 8)
    assert batch.labels.tolist() == [0, 1]
    assert batch.labels.dtype == torch.int64
    assert list(batch.ids) == ["cat/0.png", "dog/1.png"]


def test_workers_and_order_change_nothing(views: Cases) -> None:
    alone = samples(views)
    assert len(alone) == 12
    torch.manual_seed(5)
    assert equal(alone, samples(views, shuffle=True))
    assert equal(alone, samples(views, num_workers=2, shuffle=True))


def test_the_global_state_is_neither_read_nor_moved(views: Cases) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = views[0].inputs
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(views[0].inputs, one)


def test_epoch_seed_and_case_choose_the_draw(views: Cases) -> None:
    first = views[0].inputs
    views.set_epoch(1)
    assert not torch.equal(views[0].inputs, first)
    views.set_epoch(0)
    assert torch.equal(views[0].inputs, first)
    assert not torch.equal(views.with_seed(4)[0].inputs, first)


def test_subsets_draw_the_same_views(views: Cases) -> None:
    part = views.subset([9, 2])
    assert part.ids == ("dog/3.png", "cat/2.png")
    assert torch.equal(part[1].inputs, views[2].inputs)


def test_set_epoch_reaches_living_workers(views: Cases) -> None:
    loader = DataLoader(views, batch_size=4, num_workers=1, persistent_workers=True)
    first = torch.cat([batch.inputs for batch in loader])
    views.set_epoch(1)
    second = torch.cat([batch.inputs for batch in loader])
    assert not torch.equal(first, second)
    assert torch.equal(second, torch.stack([views[i].inputs for i in range(len(views))]))


def test_epochs_of_derived_cases_are_their_own(views: Cases) -> None:
    other = views.with_transform(None)
    views.set_epoch(7)
    assert (views.epoch, other.epoch) == (7, 0)
    assert views.subset([0]).epoch == 7


def test_without_a_transform_a_sample_is_the_picture(pets: Path) -> None:
    cases = folder(pets)
    values = cases[3].inputs
    assert values.shape == (3, 12, 16)
    assert torch.equal(
        (values * 255).round().byte().permute(1, 2, 0), torch.from_numpy(np.asarray(cases.picture(3)).copy())
    )


def test_content_is_read_once_and_shared(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = folder(pets)
    first = cases.content(2)
    monkeypatch.setattr(type(cases), "_read", lambda self, row: pytest.fail("read again"))
    assert cases.subset([2]).with_transform(None).content(0) == cases.content(2) == first
    assert len(first) == 64


def test_fingerprint_knows_ids_labels_and_pixels(pets: Path) -> None:
    whole = folder(pets).fingerprint()
    assert folder(pets).fingerprint() == whole
    assert folder(pets).subset(range(11)).fingerprint() != whole
    (pets / "cat" / "0.png").rename(pets / "cat" / "00.png")
    renamed = folder(pets).fingerprint()
    assert renamed != whole
    Image.new("RGB", (16, 12)).save(pets / "cat" / "00.png")
    assert folder(pets).fingerprint() not in (whole, renamed)


def test_renaming_moves_the_id_not_the_content(pets: Path) -> None:
    before = folder(pets)
    contents = {before.content(i) for i in range(len(before))}
    (pets / "dog" / "2.png").rename(pets / "dog" / "9.png")
    after = folder(pets)
    assert {after.content(i) for i in range(len(after))} == contents
    assert after.content(after.index("dog/9.png")) == before.content(before.index("dog/2.png"))
    with pytest.raises(DataError, match=r"pets has no case 'dog/2\.png'; did you mean 'cat/2\.png'"):
        after.index("dog/2.png")


def test_a_dropped_file_shifts_no_other_id(pets: Path) -> None:
    before = folder(pets)
    (pets / "cat" / "1.png").unlink()
    after = folder(pets)
    assert set(before.ids) - set(after.ids) == {"cat/1.png"}
    for case in after.ids:
        assert after.content(after.index(case)) == before.content(before.index(case))
    with pytest.raises(DataError, match=r"cat/1\.png does not exist: was it moved or renamed"):
        before.picture(before.index("cat/1.png"))


def test_index_and_counts(pets: Path) -> None:
    cases = folder(pets)
    assert [cases.index(case) for case in cases.ids] == list(range(12))
    assert cases.counts() == {"cat": 6, "dog": 6}
    assert cases.subset([7, 3]).index("cat/3.png") == 1
    assert "12 cases, 2 classes" in repr(cases)


def test_iteration_ends_and_negative_positions_work(pets: Path) -> None:
    cases = folder(pets)
    assert cases[-1].ids == cases.ids[-1]
    with pytest.raises(IndexError):
        cases[12]
    assert [sample.ids for sample in cases] == list(cases.ids)


def test_survives_pickling(views: Cases) -> None:
    copy = pickle.loads(pickle.dumps(views))  # noqa: S301  what a spawned worker does
    assert copy.ids == views.ids
    assert torch.equal(copy[4].inputs, views[4].inputs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ids": ["a", "a", "b"]}, "the case id 'a' occurs more than once"),
        ({"classes": ["x", "x"]}, "the class 'x' occurs more than once"),
        ({"labels": [0, 1, 2]}, r"label 2 has no name: 2 classes"),
        ({"labels": [0, 1, -2]}, r"labels must not be below -1"),
        ({"labels": [0, 1]}, "3 pictures and 2 labels"),
        ({"labels": [0.5, 1.0, 1.0]}, "labels must be whole numbers or text, got float64"),
        ({"labels": [[0], [1], [1]]}, "got labels of shape"),
        ({"groups": ["a"]}, "3 cases and 1 groups"),
    ],
)
def test_wrong_fields(changes: dict[str, object], message: str) -> None:
    fields = {"labels": [0, 1, 1], "classes": ["x", "y"], **changes}
    with pytest.raises(DataError, match=message):
        arrays(np.zeros((3, 4, 4), dtype=np.uint8), fields.pop("labels"), **fields)


class Handmade(Cases):
    def _read(self, row: int) -> Image.Image:
        return Image.new("RGB", (4, 4), (row, 0, 0))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 3], r"labels lie in 0 to 1 \(-1 = unlabelled\); got 0 to 3"),
        ([0], "expected one label a case"),
        ([0.0, 1.0], "float64"),
    ],
)
def test_a_subclass_is_checked_too(labels: list[float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Handmade(name="hand", ids=["a", "b"], labels=labels, classes=["x", "y"])


def test_labels_cannot_be_changed_from_outside() -> None:
    labels = np.array([0, 1])
    cases = Handmade(name="hand", ids=["a", "b"], labels=labels, classes=["x", "y"])
    labels[0] = 1
    assert cases.labels.tolist() == [0, 1]
    with pytest.raises(ValueError, match="read-only"):
        cases.labels[0] = 1
    with pytest.raises(ValueError, match="read-only"):
        cases.subset([0]).labels[0] = 1


def test_subset_takes_masks_and_refuses_nonsense() -> None:
    cases = Handmade(name="hand", ids=["a", "b", "c"], labels=[0, 1, -1], classes=["x", "y"], groups=["g", "h", "i"])
    part = cases.subset(np.array([True, False, True]))
    assert (part.ids, part.labels.tolist(), part.groups) == (("a", "c"), [0, -1], ("g", "i"))
    assert np.asarray(part.picture(1))[0, 0, 0] == 2
    nested = part.subset([1])
    assert nested.ids == ("c",)
    assert np.asarray(nested.picture(0))[0, 0, 0] == 2
    assert len(cases.subset([])) == 0
    for wrong, message in (([3], "asked for 3"), ([-1], "asked for -1"), (np.array([True]), "must have 3 entries")):
        with pytest.raises(UsageError, match=message):
            cases.subset(wrong)
    with pytest.raises(DataError, match="'a' occurs more than once"):
        cases.subset([0, 0])


def test_classes_are_matched_by_name() -> None:
    cases = Handmade(name="hand", ids=["a", "b", "c"], labels=[0, 1, -1], classes=["x", "y"])
    moved = cases.with_classes(["z", "y", "x"])
    assert moved.labels.tolist() == [2, 1, -1]
    assert moved.classes == ("z", "y", "x")
    assert cases.with_classes(["x", "y", "q"]).labels.tolist() == [0, 1, -1]
    with pytest.raises(DataError, match="holds the class 'y', which is not among the 2 known ones"):
        cases.with_classes(["x", "z"])
    assert cases.subset([0]).with_classes(["x", "z"]).labels.tolist() == [0]  # y is not used there
    assert cases.with_classes(["x", "z"], strict=False).labels.tolist() == [0, -1, -1]


@pytest.mark.parametrize("result", [None, torch.zeros(8, 8), torch.zeros(3, 8, 8, dtype=torch.uint8)])
def test_a_wrong_transform_is_named(result: object) -> None:
    cases = Handmade(
        name="hand", ids=["a"], labels=[0], classes=["x"], transform=lambda picture, generator=None: result
    )
    with pytest.raises(UsageError, match=r"a transform must return a float tensor \(3, H, W\), got"):
        cases[0]


def test_annotations_travel_with_subsets_and_transforms() -> None:
    cases = Handmade(name="hand", ids=["a", "b"], labels=[0, 0], classes=["x"], transform=Preprocess(size=(8, 8)))
    marked = cases.with_annotations({"b": Annotation(boxes=np.array([[0, 0, 2, 4]]))})
    assert marked.annotation(0) is None
    values, annotation = marked.subset([1]).annotated(0)
    assert torch.equal(values, marked[1].inputs)
    assert annotation is not None
    assert annotation.boxes.tolist() == [[0, 0, 4, 8]]
    assert marked.annotated(0)[1] is None
    with pytest.raises(DataError, match="none of 1 annotations belongs to a case: the first is for 'B'"):
        cases.with_annotations({"B": Annotation()})
    plain = marked.with_transform(lambda picture, generator=None: torch.zeros(3, 1, 1))
    with pytest.raises(UsageError, match="does not carry annotations"):
        plain.annotated(1)


def test_join_matches_classes_and_keeps_everything() -> None:
    one = Handmade(name="one", ids=["a", "b"], labels=[0, 1], classes=["x", "y"], groups=["g", "h"])
    two = Handmade(name="two", ids=["c", "d"], labels=[0, 1], classes=["y", "z"], groups=["g", "i"])
    two = two.with_annotations({"d": Annotation(boxes=np.array([[0, 0, 1, 1]]))})
    both = join([one, two.subset([1, 0])], splits=["train", "test"])
    assert both.ids == ("a", "b", "d", "c")
    assert both.classes == ("x", "y", "z")
    assert both.labels.tolist() == [0, 1, 2, 1]
    assert both.groups == ("g", "h", "i", "g")
    assert [np.asarray(both.picture(i))[0, 0, 0] for i in range(4)] == [0, 1, 1, 0]
    assert both.split("test").ids == ("d", "c")
    assert both.annotation(2) == two.annotation(1)
    with pytest.raises(DataError, match="'a' occurs more than once"):
        join([one, one])
    with pytest.raises(DataError, match="nothing to join"):
        join([])


def test_view_seeds_are_many_and_fixed() -> None:
    drawn: Iterator[int] = (view_seed(s, e, c) for s in range(5) for e in range(5) for c in ("1/1", "1", "11"))
    assert len(set(drawn)) == 75
    assert view_seed(0, 0, "a") == 5050641589276093629
