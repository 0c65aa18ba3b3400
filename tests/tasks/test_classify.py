from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, confusion_matrix
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error

from protolearn.audit.calibration import calibration_error, reliability, wilson
from protolearn.core.bank import PrototypeBank
from protolearn.core.heads import LinearEvidence
from protolearn.core.measures import cosine
from protolearn.core.model import PrototypeModel
from protolearn.core.sampling import calibrate_refusal, doubt_of
from protolearn.data.features import features
from protolearn.encoders import FeatureEncoder
from protolearn.errors import DataError, UsageError
from protolearn.interop.estimator import PrototypeClassifier
from protolearn.methods import get_method
from protolearn.structures import Tokens
from protolearn.tasks.classify import evaluate, score_logits
from protolearn.training.fit import fit


@given(st.integers(2, 6), st.integers(1, 80), st.integers(0, 10**6))
def test_scores_are_those_of_torchmetrics_and_scikit_learn(classes: int, n: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    logits, labels = draw.normal(size=(n, classes)) * 2, draw.integers(0, classes, n)
    result = score_logits(logits, labels, [str(c) for c in range(classes)])
    t, y = torch.from_numpy(logits), torch.from_numpy(labels)
    assert result.accuracy == pytest.approx(float(multiclass_accuracy(t, y, classes, average="micro")))
    assert result.ece == pytest.approx(float(multiclass_calibration_error(t.softmax(1), y, classes)), abs=1e-6)
    assert (result.confusion == confusion_matrix(labels, logits.argmax(1), labels=range(classes))).all()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns of classes that are predicted and never true
        assert result.balanced_accuracy == pytest.approx(balanced_accuracy_score(labels, logits.argmax(1)))
    assert result.interval is not None
    assert result.interval[0] <= result.accuracy <= result.interval[1]  # type: ignore[operator]
    assert sum(b.count for b in result.bins) == n


def test_unlabelled_cases_are_left_out_and_missing_classes_have_no_recall() -> None:
    logits = np.array([[3.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 3.0, 0.0]])
    result = score_logits(logits, np.array([0, -1, 0]), ["a", "b", "c"], ["x", "y", "z"])
    assert (result.n, result.unlabelled, result.ids) == (2, 1, ("x", "z"))
    assert result.accuracy == result.balanced_accuracy == 0.5
    assert [s.recall for s in result.per_class] == [0.5, None, None]
    assert [s.precision for s in result.per_class] == [1.0, 0.0, None]
    json.dumps(result.to_dict(), allow_nan=False)


@pytest.mark.parametrize("classes", [["only"], ["a", "b"]])
def test_no_case_gives_no_number(classes: list[str]) -> None:
    result = score_logits(np.zeros((0, len(classes))), np.zeros(0, int), classes)
    assert result.accuracy is result.balanced_accuracy is result.ece is result.interval is None
    json.dumps(result.to_dict(), allow_nan=False)


def test_one_class() -> None:
    result = score_logits(np.array([[1.0], [2.0]]), np.array([0, 0]), ["only"])
    assert (result.accuracy, result.ece) == (1.0, 0.0)


def test_wrong_labels_and_logits_are_refused() -> None:
    with pytest.raises(ValueError, match="-1 to 1"):
        score_logits(np.zeros((1, 2)), np.array([2]), ["a", "b"])
    with pytest.raises(ValueError, match="finite"):
        score_logits(np.array([[np.nan, 0.0]]), np.array([0]), ["a", "b"])


@given(st.integers(0, 50), st.integers(1, 50))
def test_wilson_holds_the_share_and_stays_inside(right: int, count: int) -> None:
    right = min(right, count)
    low, high = wilson(right, count)  # type: ignore[misc]
    assert 0 <= low <= right / count <= high <= 1
    assert wilson(right * 100, count * 100)[1] - wilson(right * 100, count * 100)[0] <= high - low  # type: ignore[index]


def test_a_calibrated_model_has_no_gap() -> None:
    probabilities = np.tile([[0.75, 0.25]], (400, 1))
    labels = (np.arange(400) % 4 == 0).astype(int)
    bins = reliability(probabilities, labels)
    assert calibration_error(bins) == pytest.approx(0.0)
    with pytest.raises(ValueError, match="at least 1"):
        reliability(probabilities, labels, bins=0)


class Rows(nn.Module):
    def forward(self, inputs: Tensor) -> Tokens:
        return Tokens(inputs)


class Table:
    def __init__(self, values: Tensor, labels: list[int], classes: tuple[str, ...]) -> None:
        self.values, self.labels, self.classes = values, np.array(labels), classes
        self.ids = [f"row {i}" for i in range(len(labels))]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> tuple[Tensor, int, str]:
        return self.values[i], int(self.labels[i]), self.ids[i]


@pytest.fixture
def small() -> PrototypeModel:
    bank = PrototypeBank(torch.eye(2), torch.eye(2))
    model = PrototypeModel(Rows(), nn.Identity(), bank, cosine, LinearEvidence.from_ownership(bank.ownership))
    model.classes = ("left", "right")
    return model


def test_a_model_is_evaluated_in_any_order_and_batch(small: PrototypeModel) -> None:
    values = torch.eye(2)[[0, 1, 1, 0, 1]].unsqueeze(1)
    cases = Table(values, [1, 0, 0, 1, -1], ("right", "left"))  # other order of classes than the model's
    cases.labels = np.array([1, 0, 0, 0, -1])
    result = evaluate(small, cases, batch_size=2)  # type: ignore[arg-type]
    assert (result.n, result.unlabelled) == (4, 1)
    assert result.accuracy == 0.75
    assert result.classes == ("left", "right")
    part = evaluate(small, cases, [3, 0], batch_size=7)  # type: ignore[arg-type]
    assert part.ids == ("row 3", "row 0")
    again = score_logits(result.logits, result.labels, result.classes, result.ids)
    assert again.to_dict() == {**result.to_dict(), "unlabelled": 0}


def test_a_class_unseen_in_training_is_named(small: PrototypeModel) -> None:
    with pytest.raises(DataError, match="'middle', which the model was not trained on"):
        evaluate(small, Table(torch.zeros(1, 1, 2), [0], ("middle",)))  # type: ignore[arg-type]


def test_no_cases_is_no_error(small: PrototypeModel) -> None:
    assert evaluate(small, Table(torch.zeros(0, 1, 2), [], ("left",))).accuracy is None  # type: ignore[arg-type]


def test_doubts_and_refusals_are_scored_where_prototypes_are_distributions() -> None:
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(60, 6)).astype(np.float32), np.arange(60) % 3
    x[:, 0] += 2.0 * y
    cases = features(x, y, classes=["a", "b", "c"], name="t")
    settings = {"dim": 2, "encoder_rate": None, "autoencoder_epochs": 1, "epochs": 1, "law": "diagonal"}
    model = fit(
        get_method("prob-psenn")(**settings), cases, encoder=FeatureEncoder(6), quiet=True, device="cpu"
    ).model  # fmt: skip
    plain = evaluate(model, cases).drawn
    assert plain is not None and plain.refused is None and plain.accuracy_kept is None
    assert plain.total == pytest.approx(plain.aleatoric + plain.epistemic)  # type: ignore[operator]
    tokens = model(torch.from_numpy(x).unsqueeze(1)).tokens
    calibrate_refusal(model, tokens, 0.75, samples=20, generator=torch.Generator().manual_seed(0))
    found = evaluate(model, cases, batch_size=7)
    assert found.drawn is not None and found.drawn.refused == 15
    doubt = doubt_of(model, tokens)
    assert doubt is not None and doubt.refused is not None
    right = (doubt.mean.argmax(1) == torch.from_numpy(y)).double()
    assert found.drawn.accuracy == pytest.approx(float(right.mean()))
    assert found.drawn.accuracy_kept == pytest.approx(float(right[~doubt.refused].mean()))
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["drawn"]["refused"] == 15
    points = fit(get_method("nearest-class-mean")(), cases, encoder=FeatureEncoder(6), quiet=True, device="cpu").model
    assert evaluate(points, cases).drawn is None
    classifier = PrototypeClassifier("prob-psenn", settings=settings, random_state=0).fit(x, y)
    with pytest.raises(UsageError, match="no refusal was calibrated"):
        classifier.refuse(x)
    tokens = classifier.model_(torch.from_numpy(x).unsqueeze(1)).tokens
    calibrate_refusal(classifier.model_, tokens, 0.75, generator=torch.Generator().manual_seed(0))
    assert classifier.refuse(x).sum() == 15
    assert classifier.uncertainty(x)["total"].shape == (60,)


def test_probabilities_are_the_heads_own() -> None:
    """A softmax of scores that are probabilities already would make every model look unsure."""
    cases = features(np.random.default_rng(0).random((20, 4), dtype=np.float32), np.arange(20) % 2, name="cases")
    method = get_method("nw-head")(encoder_rate=None, per_class=5)
    model = fit(method, cases, encoder=FeatureEncoder(4), quiet=True, device="cpu").model
    result = evaluate(model, cases)
    assert np.allclose(result.probabilities, result.logits, atol=1e-6), "votes are shares of one"
    assert result.probabilities.sum(1) == pytest.approx(np.ones(20), abs=1e-6)
