"""A novelty score is put into a model's folder, and nothing else in it changes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from protolearn.core.model import PrototypeModel
from protolearn.core.scorer import make_scorer
from protolearn.data import digits
from protolearn.encoders import SmallEncoder
from protolearn.errors import ModelFileError, UsageError
from protolearn.methods.parts.protopnet import ProtoPNet
from protolearn.tasks.ood import fit_novelty
from protolearn.training.folder import load, save
from protolearn.training.project import project
from protolearn.training.scorer_files import save_scorer


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cases = digits("train")
    method = ProtoPNet(prototypes_per_class=1, dim=8)
    model = method.build(SmallEncoder(dim=8), 10, 0).eval()
    model.method, model.classes = method, cases.classes
    project(model, cases.with_transform(model.encoder.preprocess))
    folder = save(model, tmp_path_factory.mktemp("scored") / "model", cases, metrics={"accuracy": 0.5})
    (folder / "notes.txt").write_text("mine")
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(trained, tmp_path / "model"))


def fitted(folder: Path, name: str = "mahalanobis") -> PrototypeModel:
    model = load(folder)
    fit_novelty(model, digits("train").subset(range(120)), name)
    return model


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_only_settings_and_weights_change(folder: Path) -> None:
    before, model = contents(folder), fitted(folder)
    assert save_scorer(model, folder) == folder
    after = contents(folder)
    assert before.keys() == after.keys()
    assert {name for name in after if after[name] != before[name]} == {"config.yaml", "model.safetensors"}
    assert not [p for p in folder.parent.iterdir() if p.name.startswith(".")]
    again, inputs = load(folder), torch.rand(3, 3, 32, 32)
    assert again.scorer is not None and torch.equal(again.scorer.threshold, model.scorer.threshold)  # type: ignore[union-attr]
    assert torch.equal(again.novelty(inputs).confidence, model.novelty(inputs).confidence)
    assert again.metadata["novelty"] == model.metadata["novelty"] and again.metadata["metrics"] == {"accuracy": 0.5}


def test_it_can_be_replaced_and_taken_out(folder: Path) -> None:
    before = contents(folder)
    save_scorer(fitted(folder, "knn"), folder)
    save_scorer(fitted(folder, "ssd"), folder)
    model = load(folder)
    assert model.scorer is not None and model.scorer.name == "ssd"
    model.scorer = None
    del model.metadata["novelty"]
    save_scorer(model, folder)
    assert load(folder).scorer is None and contents(folder) == before


def test_another_models_score_is_refused(folder: Path) -> None:
    before, model = contents(folder), fitted(folder)
    with torch.no_grad():
        model.bank.vectors += 1
    with pytest.raises(UsageError, match="holds another model"):
        save_scorer(model, folder)
    assert contents(folder) == before
    with pytest.raises(ModelFileError, match="no such folder"):
        save_scorer(model, folder.parent / "none")


def test_a_full_disk_leaves_the_old_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, model = contents(folder), load(folder)
    model.scorer = make_scorer("energy")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ModelFileError, match="disk is full"):
        save_scorer(model, folder)
    monkeypatch.undo()
    assert contents(folder) == before
    assert [p.name for p in folder.parent.iterdir()] == ["model"]
