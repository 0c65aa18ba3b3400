"""The estimator keeps scikit-learn's promises: clone, pipelines, cross-validation, grid search, labels of any kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler

from protolearn.data import digits
from protolearn.encoders import FeatureEncoder, SmallEncoder
from protolearn.errors import DataError, UsageError
from protolearn.interop.estimator import PrototypeClassifier
from protolearn.methods.parts.protopnet import ProtoPNet

QUICK: dict[str, Any] = {
    "prototypes_per_class": 2, "dim": 16, "encoder_rate": None, "warm_epochs": 15, "project_at": (15,),
    "last_layer_epochs": 10, "neck_rate": 0.01, "prototype_rate": 0.03, "head_rate": 0.01,
}  # fmt: skip
LONGER = {**QUICK, "warm_epochs": 60, "project_at": (60,)}
PICTURES = {**QUICK, "warm_epochs": 2, "project_at": (2,)}


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    X, y = load_digits(return_X_y=True)
    return X[:600] / 16, y[:600]


@pytest.fixture(scope="module")
def fitted(data: tuple[np.ndarray, np.ndarray]) -> PrototypeClassifier:
    return PrototypeClassifier(settings=QUICK, random_state=0).fit(*data)


def test_constructor_only_stores() -> None:
    nonsense = PrototypeClassifier(method=7, settings={"a": 1}, random_state="x")
    assert nonsense.get_params()["method"] == 7
    copy = clone(nonsense)
    assert copy.get_params() == nonsense.get_params()
    assert copy.set_params(method="protopnet").method == "protopnet"


def test_learns_and_scores(fitted: PrototypeClassifier, data: tuple[np.ndarray, np.ndarray]) -> None:
    X, y = data
    assert fitted.score(X, y) > 0.9
    assert fitted.classes_.tolist() == list(range(10))
    assert fitted.n_features_in_ == 64
    probabilities = fitted.predict_proba(X[:7])
    assert probabilities.shape == (7, 10)
    assert np.allclose(probabilities.sum(1), 1)
    assert (probabilities.argmax(1) == fitted.predict(X[:7])).all()


def test_evidence_has_names(fitted: PrototypeClassifier, data: tuple[np.ndarray, np.ndarray]) -> None:
    evidence = fitted.transform(data[0][:5])
    names = fitted.get_feature_names_out()
    assert evidence.shape == (5, len(names))
    assert names[0] == "0_0"
    logits = evidence @ fitted.model_.head.weight.detach().numpy().T
    assert np.allclose(logits, fitted.decision_function(data[0][:5]), atol=1e-4)


def test_explanations_add_up(fitted: PrototypeClassifier, data: tuple[np.ndarray, np.ndarray]) -> None:
    explanations = fitted.explain(data[0][:3])
    logits = fitted.decision_function(data[0][:3])
    for row, explanation in enumerate(explanations):
        assert explanation.total == pytest.approx(logits[row].max(), rel=1e-4)
        assert explanation.rows[0].source is not None
        assert explanation.rows[0].source.case.startswith("X/")


def test_the_same_seed_gives_the_same_model(data: tuple[np.ndarray, np.ndarray]) -> None:
    X, y = data[0][:200], data[1][:200]
    first, second = (PrototypeClassifier(settings=QUICK, random_state=3).fit(X, y).decision_function(X) for _ in "ab")
    assert np.array_equal(first, second)
    other = PrototypeClassifier(settings=QUICK, random_state=4).fit(X, y).decision_function(X)
    assert not np.array_equal(first, other)


def test_pipeline_cross_validation_and_grid(data: tuple[np.ndarray, np.ndarray]) -> None:
    X, y = data[0][:300], data[1][:300]
    pipeline = make_pipeline(MinMaxScaler(), PrototypeClassifier(settings=LONGER, random_state=0))
    assert cross_val_score(pipeline, X, y, cv=3).mean() > 0.7
    grid = GridSearchCV(
        PrototypeClassifier(settings=QUICK, random_state=0), {"batch_size": [40, 80]}, cv=2, error_score="raise"
    )
    assert grid.fit(X, y).best_params_["batch_size"] in (40, 80)


def test_as_a_transformer(data: tuple[np.ndarray, np.ndarray]) -> None:
    X, y = data[0][:300], data[1][:300]
    both = make_pipeline(PrototypeClassifier(settings=QUICK, random_state=0), LogisticRegression(max_iter=500))
    assert both.fit(X, y).score(X, y) > 0.8


@pytest.mark.parametrize("kind", ["text", "bool", "gaps", "float"])
def test_labels_keep_their_kind(data: tuple[np.ndarray, np.ndarray], kind: str, tmp_path: Path) -> None:
    X, y = data[0][:150], data[1][:150]
    labels = {"text": np.array(list("abcdefghij"))[y], "bool": y > 4, "gaps": y * 10 - 30, "float": y / 2}[kind]
    classifier = PrototypeClassifier(settings=QUICK, random_state=0).fit(X, labels)
    predicted = classifier.predict(X)
    assert set(predicted.tolist()) <= set(labels.tolist())
    assert predicted.dtype.kind == labels.dtype.kind
    back = PrototypeClassifier.load(classifier.save(tmp_path / "m"))
    assert np.array_equal(back.predict(X), predicted)
    assert back.n_features_in_ == 64


def test_bags_of_tokens(data: tuple[np.ndarray, np.ndarray]) -> None:
    X, y = data[0][:200].reshape(200, 8, 8), data[1][:200]
    classifier = PrototypeClassifier(settings=PICTURES, random_state=0).fit(X, y)
    assert classifier.n_features_in_ == 8
    assert classifier.predict(X).shape == (200,)
    explanation = classifier.explain(X[:1])[0]
    assert explanation.total == pytest.approx(classifier.decision_function(X[:1]).max(), rel=1e-4)
    assert all(row.region is None for row in explanation.rows)
    assert {row.position for row in explanation.rows} <= set(range(8))


def test_pictures_paths_and_cases(data: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    cases = digits("train").subset(range(60))
    pictures = np.stack([np.asarray(cases.picture(i)) for i in range(60)])
    names = np.array(cases.classes)[cases.labels]
    classifier = PrototypeClassifier(settings=PICTURES, random_state=0, encoder="small").fit(pictures, names)
    assert not hasattr(classifier, "n_features_in_")
    expected = classifier.predict_proba(pictures)
    paths = []
    for i in range(60):
        paths.append(tmp_path / f"{i:02d}.png")
        cases.picture(i).save(paths[-1])
    assert np.allclose(classifier.predict_proba(paths), expected, atol=1e-6)
    assert np.allclose(classifier.predict_proba([str(path) for path in paths]), expected, atol=1e-6)
    assert np.allclose(classifier.predict_proba(cases), expected, atol=1e-6)
    assert np.allclose(classifier.predict_proba(pictures[..., 0]), expected, atol=1e-6)
    by_path = PrototypeClassifier(settings=PICTURES, random_state=0).fit(paths, names)
    assert np.allclose(by_path.predict_proba(pictures), expected, atol=1e-6)
    by_cases = PrototypeClassifier(settings=PICTURES, random_state=0).fit(cases)
    assert by_cases.classes_.tolist() == list(cases.classes)
    assert (
        PrototypeClassifier.load(by_cases.save(tmp_path / "m")).predict(cases).tolist()
        == by_cases.predict(cases).tolist()
    )


def test_the_given_encoder_is_not_changed(data: tuple[np.ndarray, np.ndarray]) -> None:
    encoder = SmallEncoder(dim=8)
    before = encoder.net[0].weight.clone()
    cases = digits("train").subset(range(40))
    settings = {**PICTURES, "encoder_rate": 0.01}
    PrototypeClassifier(settings=settings, encoder=encoder, random_state=0).fit(cases)
    assert (encoder.net[0].weight == before).all()


def test_a_method_and_an_encoder_as_objects(data: tuple[np.ndarray, np.ndarray]) -> None:
    classifier = PrototypeClassifier(ProtoPNet(**QUICK), encoder=FeatureEncoder(64), random_state=0)
    assert clone(classifier).fit(data[0][:100], data[1][:100]).predict(data[0][:2]).shape == (2,)


def test_before_fitting_it_says_so(data: tuple[np.ndarray, np.ndarray]) -> None:
    for name in ("predict", "transform", "explain", "predict_proba"):
        with pytest.raises(NotFittedError):
            getattr(PrototypeClassifier(), name)(data[0])
    with pytest.raises(NotFittedError):
        PrototypeClassifier().save("x")


@pytest.mark.parametrize(
    ("change", "X", "y", "error", "message"),
    [
        ({"method": "protopet"}, np.eye(4), [0, 1, 0, 1], UsageError, "did you mean 'protopnet'"),
        ({"settings": {"prototypes": 1}}, np.eye(4), [0, 1, 0, 1], UsageError, "no setting 'prototypes'"),
        ({"settings": {"dim": "8"}}, np.eye(4), [0, 1, 0, 1], UsageError, "dim must be int"),
        ({"encoder": "small"}, np.eye(4), [0, 1, 0, 1], DataError, "flat rows"),
        ({"encoder": "resnt18"}, np.zeros((4, 8, 8), np.uint8), [0, 1, 0, 1], UsageError, "did you mean"),
        ({}, np.eye(4), [0, 1, 0], DataError, "4 cases and y 3"),
        ({}, np.eye(4), [[0], [1], [0], [1]], DataError, "one label a case"),
        ({}, np.full((4, 4), np.nan), [0, 1, 0, 1], DataError, "NaN"),
        ({}, np.eye(4), [1, 1, 1, 1], DataError, "one class"),
        ({}, np.zeros((2, 2, 2, 2, 2)), [0, 1], DataError, "X must be"),
        ({}, np.array([["a"], ["b"]], dtype=object), [0, 1], DataError, "X must be"),
    ],
)
def test_wrong_input_is_said_in_one_line(change: dict[str, Any], X: Any, y: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        PrototypeClassifier(**{"settings": QUICK, **change}).fit(X, y)
    assert "\n" not in str(caught.value)


def test_other_width_at_prediction(fitted: PrototypeClassifier) -> None:
    with pytest.raises(DataError, match="X has 3 features, but PrototypeClassifier was fitted on 64"):
        fitted.predict(np.zeros((2, 3)))


def test_it_says_where_the_label_is_no_answer(fitted: PrototypeClassifier, data: tuple[np.ndarray, np.ndarray]) -> None:
    assert not fitted.abstains(data[0][:5]).any()
    settings = {"prototypes": 30, "encoder_rate": None, "two_views": False, "pretrain_epochs": 0, "joint_epochs": 1}
    unsure = PrototypeClassifier("pipnet", settings=settings, random_state=0).fit(*data)
    empty = np.zeros((1, 64))
    assert unsure.abstains(empty).tolist() == [True], "no prototype is clear where nothing is"
    assert not unsure.decision_function(empty).any()
