"""A model says whether it knows an input: by a threshold that is set on known cases and travels with the model."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

import protolearn
from protolearn.core.model import PrototypeModel
from protolearn.core.scorer import SCORERS, Scorer, View, joined, make_scorer, view_of
from protolearn.encoders import SmallEncoder
from protolearn.errors import ModelFileError, UsageError
from protolearn.methods import get_method


@pytest.fixture
def model() -> PrototypeModel:
    method = get_method("protopnet")(prototypes_per_class=2)
    model = method.build(SmallEncoder(size=16), 3)
    model.method = method
    return model.eval()


def inputs(count: int = 20) -> Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("rate", [0.5, 0.8, 0.95, 1.0])
@pytest.mark.parametrize("count", [1, 2, 19, 20, 101])
def test_the_threshold_accepts_at_least_the_rate(rate: float, count: int) -> None:
    confidence = torch.randn(count, generator=torch.Generator().manual_seed(count))
    score = make_scorer("msp").calibrate(confidence, rate)
    accepted = score.novelty(confidence).known
    assert accepted is not None
    assert accepted.double().mean() >= rate
    assert int(accepted.sum()) == math.ceil(rate * count - 1e-9)  # and no more than it must


def test_ties_are_accepted_together_and_nan_is_unknown() -> None:
    score = make_scorer("msp").calibrate(torch.ones(10), 0.5)
    known = score.novelty(torch.tensor([1.0, 0.5, math.nan, math.inf])).known
    assert known is not None and known.tolist() == [True, False, False, True]


def test_without_a_threshold_there_is_no_verdict(model: PrototypeModel) -> None:
    with pytest.raises(UsageError, match="fit a novelty score first"):
        model.novelty(inputs())
    model.scorer = make_scorer("energy")
    assert model.novelty(inputs()).known is None


@pytest.mark.parametrize("name", sorted({"msp", "max_logit", "energy", "nearest_prototype"}))
def test_it_travels_with_the_model(model: PrototypeModel, tmp_path: Path, name: str) -> None:
    model.scorer = make_scorer(name)
    before = model.novelty(inputs()).confidence
    protolearn.save(model, tmp_path / "unset")
    assert protolearn.load(tmp_path / "unset").novelty(inputs()).known is None
    model.scorer.calibrate(before, 0.8)
    protolearn.save(model, tmp_path / "set")
    again = protolearn.load(tmp_path / "set")
    assert again.scorer is not None and again.scorer.spec() == model.scorer.spec()
    assert torch.equal(again.novelty(inputs()).confidence, before)
    assert torch.equal(again.novelty(inputs()).known, model.novelty(inputs()).known)  # type: ignore[arg-type]
    again.scorer = None
    protolearn.save(again, tmp_path / "none")
    assert protolearn.load(tmp_path / "none").scorer is None


class Remembering(Scorer):
    """Keeps rows whose number is known only after fitting."""

    name = "remembering"

    def __init__(self, *, features: str = "encoded") -> None:
        super().__init__(features=features)
        self.register_buffer("bank", torch.zeros(0, 0))

    def fit(self, view: View, labels: Tensor) -> Remembering:
        self.bank = view.features.clone()
        return self

    def score(self, view: View) -> Tensor:
        return -torch.cdist(view.features, self.bank).amin(1)


def test_what_is_learned_may_have_any_size(
    model: PrototypeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SCORERS, "remembering", Remembering)
    with torch.no_grad():
        view = view_of(model(inputs()))
    model.scorer = Remembering().fit(view, torch.zeros(20, dtype=torch.long))
    protolearn.save(model, tmp_path / "model")
    again = protolearn.load(tmp_path / "model")
    assert torch.equal(again.scorer.bank, view.features)  # type: ignore[union-attr]
    assert torch.equal(again.novelty(inputs(4)).confidence, model.novelty(inputs(4)).confidence)


def test_hostile_settings_are_refused(model: PrototypeModel, tmp_path: Path) -> None:
    model.scorer = make_scorer("energy")
    folder = protolearn.save(model, tmp_path / "model")
    config = (folder / "config.yaml").read_text()
    for old, new, words in (
        ("name: energy", "name: enrgy", "did you mean 'energy'"),
        ("temperature: 1.0", "temperature: -1.0", "temperature must be above 0"),
        ("temperature: 1.0", "heat: 1.0", "no setting of energy is called 'heat'"),
    ):
        assert old in config
        (folder / "config.yaml").write_text(config.replace(old, new))
        with pytest.raises(ModelFileError, match=words):
            protolearn.load(folder)


def test_wrong_requests() -> None:
    with pytest.raises(UsageError, match="did you mean 'energy'"):
        make_scorer("enregy")
    with pytest.raises(UsageError, match="features are"):
        make_scorer({"name": "msp", "features": "raw"})
    for wrong in (torch.zeros(0), torch.tensor([math.nan]), torch.zeros(2, 2)):
        with pytest.raises(UsageError, match="at least one known case"):
            make_scorer("msp").calibrate(wrong)
    with pytest.raises(UsageError, match="no case was seen"):
        joined([])
    with pytest.raises(UsageError, match="a view holds"):
        View(torch.zeros(2, 3), torch.zeros(1, 2))


def test_views_of_batches_are_the_view_of_all(model: PrototypeModel) -> None:
    with torch.no_grad():
        whole = view_of(model(inputs()), "embedded")
        parts = [view_of(model(inputs()[k : k + 7]), "embedded") for k in range(0, 20, 7)]
    together = joined(parts)
    for name in ("features", "logits", "evidence"):
        assert torch.allclose(getattr(whole, name), getattr(together, name), atol=1e-5)
