"""Verification: every way in which a prototype can fail to be what it says it is must be named."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from protolearn.core.model import PrototypeModel
from protolearn.data import Cases, arrays, digits, folder
from protolearn.data.features import features as feature_cases
from protolearn.encoders import FeatureEncoder, SmallEncoder
from protolearn.errors import UsageError
from protolearn.methods.parts.protopnet import ProtoPNet
from protolearn.tasks.verify import verify
from protolearn.training.folder import load, save
from protolearn.training.project import project


def make_model(cases: Cases, encoder: Any = None, **settings: Any) -> PrototypeModel:
    method = ProtoPNet(**{"prototypes_per_class": 2, "dim": 8, **settings})
    model = method.build(encoder or SmallEncoder(dim=8), len(cases.classes), 0).eval()
    model.method, model.classes = method, cases.classes
    project(model, cases.with_transform(model.encoder.preprocess))
    return model


@pytest.fixture(scope="module")
def cases() -> Cases:
    return digits("train").subset(range(0, 600, 10))


@pytest.fixture
def model(cases: Cases) -> PrototypeModel:
    return make_model(cases)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Class folders of a few digits."""
    source = digits("train")
    for i in range(0, 200, 4):
        place = tmp_path / "data" / str(source.labels[i])
        place.mkdir(parents=True, exist_ok=True)
        source.picture(i).save(place / f"{i:04d}.png")
    return tmp_path / "data"


def status_of(model: PrototypeModel, cases: Cases, row: int = 0, **how: Any) -> tuple[str, str]:
    check = verify(model, cases, **how).checks[row]
    return check.status, check.detail


def test_a_projected_model_matches(model: PrototypeModel, cases: Cases) -> None:
    result = verify(model, cases)
    assert result.ok
    assert not result.failures
    assert result.summary() == "20 of 20 prototypes match the case they come from"
    assert max(check.difference or 0.0 for check in result.checks) < 1e-5
    assert json.loads(json.dumps(result.to_dict()))["ok"] is True


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_order_batches_transforms_and_mode_do_not_matter(model: PrototypeModel, cases: Cases, batch_size: int) -> None:
    order = np.random.default_rng(0).permutation(len(cases))
    shuffled = cases.subset(order).with_transform(lambda picture, generator=None: torch.rand(3, 5, 5))
    model.train()
    assert verify(model, shuffled, batch_size=batch_size).ok
    assert model.training
    assert model.encoder.net[1].training


def test_more_data_does_not_matter_and_is_not_read(model: PrototypeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    everything = digits("train")
    read: set[str] = set()
    picture = type(everything).picture

    def watched(self: Cases, i: int) -> Image.Image:
        read.add(self.ids[i])
        return picture(self, i)

    monkeypatch.setattr(type(everything), "picture", watched)
    assert verify(model, everything).ok
    assert read == {source.case for source in model.bank.sources if source is not None}


def test_a_model_from_disk_matches(model: PrototypeModel, cases: Cases, tmp_path: Path) -> None:
    assert verify(load(save(model, tmp_path / "m", cases)), cases).ok


def test_features_are_verified_too() -> None:
    values = np.random.default_rng(0).normal(size=(30, 4, 6)).astype(np.float32)
    cases = feature_cases(values, [i % 3 for i in range(30)])
    model = make_model(cases, FeatureEncoder(6))
    assert verify(model, cases).ok
    values[:] += 1
    assert not verify(model, feature_cases(values, cases.labels)).ok


def test_a_model_that_was_never_projected_does_not_pass(cases: Cases) -> None:
    model = ProtoPNet(prototypes_per_class=1, dim=8).build(SmallEncoder(dim=8), 10, 0)
    model.classes = cases.classes
    result = verify(model, cases)
    assert not result.ok
    assert {check.status for check in result.checks} == {"no source"}
    assert "10 no source" in result.summary()


def test_a_merged_prototype_is_named(model: PrototypeModel, cases: Cases) -> None:
    model.bank.sources[3] = None
    result = verify(model, cases)
    assert [check.prototype for check in result.failures] == [3]


def test_a_moved_vector_is_named_with_its_difference(model: PrototypeModel, cases: Cases) -> None:
    with torch.no_grad():
        model.bank.vectors[5] *= 1.01
    (failure,) = verify(model, cases).failures
    assert (failure.prototype, failure.status) == (5, "token differs")
    assert failure.difference == pytest.approx(0.01 / 1.01, rel=1e-3)
    assert verify(model, cases, tolerance=0.05).ok


def test_a_vector_of_nan_is_named(model: PrototypeModel, cases: Cases) -> None:
    with torch.no_grad():
        model.bank.vectors[5] = float("nan")
    assert [check.status for check in verify(model, cases).failures] == ["token differs"]


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"case": "digits/999999"}, "case renamed"),
        ({"case": "nowhere", "content": "0" * 64}, "case missing"),
        ({"content": "0" * 64}, "content changed"),
        ({"encoder": "0" * 64}, "encoder changed"),
        ({"position": 10_000}, "token differs"),
        ({"region": None}, "region differs"),
    ],
)
def test_a_source_that_lies_is_named(model: PrototypeModel, cases: Cases, changes: dict[str, Any], status: str) -> None:
    source = model.bank.sources[0]
    assert source is not None
    model.bank.sources[0] = dataclasses.replace(source, **changes)
    result = verify(model, cases)
    assert [(check.prototype, check.status) for check in result.failures] == [(0, status)]
    assert status in result.table()


def test_sources_by_loop_position_are_all_found_out(model: PrototypeModel, cases: Cases) -> None:
    """The fault of others: an index of the loop as id, so every prototype names another picture."""
    ids = list(cases.ids)
    for row, source in enumerate(model.bank.sources):
        assert source is not None
        wrong = ids[(ids.index(source.case) + 1) % len(ids)]
        model.bank.sources[row] = dataclasses.replace(source, case=wrong)
    result = verify(model, cases)
    assert len(result.failures) == 20
    assert {check.status for check in result.failures} == {"case renamed"}


def test_a_retrained_encoder_is_named(model: PrototypeModel, cases: Cases) -> None:
    with torch.no_grad():
        next(model.encoder.parameters()).mul_(1.1)
    result = verify(model, cases)
    assert {check.status for check in result.checks} == {"encoder changed"}
    assert "token differs" in result.checks[0].detail


def test_drifting_batch_norm_is_found(model: PrototypeModel, cases: Cases) -> None:
    model.encoder.net[1].running_mean += 0.5
    assert not verify(model, cases).ok


def test_renamed_dropped_edited_and_damaged_files(pictures: Path) -> None:
    cases = folder(pictures)
    model = make_model(cases, prototypes_per_class=1)
    named = [source.case for source in model.bank.sources if source is not None]
    assert verify(model, cases).ok
    (pictures / named[0]).rename(pictures / named[0].replace(".png", "_new.png"))
    (pictures / named[1]).unlink()
    Image.new("RGB", (8, 8), "red").save(pictures / named[2])
    again = folder(pictures)
    (pictures / named[3]).write_bytes(b"no picture")
    result = verify(model, again)
    assert [check.status for check in result.checks[:4]] == [
        "case renamed", "case missing", "content changed", "case unreadable",
    ]  # fmt: skip
    assert named[0].replace(".png", "_new.png") in result.checks[0].detail
    assert all(check.status == "ok" for check in result.checks[4:])


def test_swapped_names_are_told_apart(pictures: Path) -> None:
    cases = folder(pictures)
    model = make_model(cases, prototypes_per_class=1)
    first, second = (model.bank.sources[row] for row in (0, 1))
    assert first is not None
    assert second is not None
    a, b = pictures / first.case, pictures / second.case
    (one, other) = (a.read_bytes(), b.read_bytes())
    a.write_bytes(other)
    b.write_bytes(one)
    status, detail = status_of(model, folder(pictures))
    assert status == "case renamed"
    assert second.case in detail
    assert "another picture has its id now" in detail


def test_a_recompressed_copy_with_the_same_pixels_is_the_same_case(pictures: Path) -> None:
    cases = folder(pictures)
    model = make_model(cases, prototypes_per_class=1)
    for path in pictures.rglob("*.png"):
        with Image.open(path) as picture:
            picture.convert("RGB").save(path, compress_level=1)
    assert verify(model, folder(pictures)).ok


def test_other_data_altogether(model: PrototypeModel) -> None:
    other = arrays(np.random.default_rng(0).integers(0, 255, (5, 8, 8), np.uint8), [0, 1, 0, 1, 0])
    assert {check.status for check in verify(model, other).checks} == {"case missing"}


def test_tolerance_must_be_positive(model: PrototypeModel, cases: Cases) -> None:
    with pytest.raises(UsageError, match="tolerance"):
        verify(model, cases, tolerance=0)
