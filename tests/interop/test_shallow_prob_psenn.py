"""Prob-PSENN over arrays: doubts that mean something, prototypes that can be read."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_iris
from sklearn.exceptions import NotFittedError
from sklearn.preprocessing import StandardScaler

from protolearn.errors import UsageError
from protolearn.interop.shallow import ProbPSENNClassifier


@pytest.fixture(scope="module")
def iris() -> tuple[np.ndarray, np.ndarray]:
    X, y = load_iris(return_X_y=True)
    return StandardScaler().fit_transform(X), y


@pytest.fixture(scope="module")
def fitted(iris: tuple[np.ndarray, np.ndarray]) -> ProbPSENNClassifier:
    return ProbPSENNClassifier(dim=3, max_iter=20, random_state=0).fit(*iris)


def test_it_learns_and_its_explanations_add_up(
    fitted: ProbPSENNClassifier, iris: tuple[np.ndarray, np.ndarray]
) -> None:
    X, y = iris
    assert fitted.score(X, y) > 0.85
    scores = fitted.decision_function(X[::30])
    for row, explanation in enumerate(fitted.explain(X[::30])):
        assert explanation.total == pytest.approx(explanation.logit, abs=1e-4)
        assert explanation.logit == pytest.approx(scores[row].max(), abs=1e-3)


def test_the_kinds_of_doubt_sum_up_and_are_larger_between_classes(
    fitted: ProbPSENNClassifier, iris: tuple[np.ndarray, np.ndarray]
) -> None:
    X, y = iris
    doubt = fitted.uncertainty(X, samples=50)
    np.testing.assert_allclose(doubt["aleatoric"] + doubt["epistemic"], doubt["total"], atol=1e-9)
    assert (doubt["epistemic"] >= 0).all()
    averaged = fitted.sampled_proba(X, samples=50)
    np.testing.assert_allclose(averaged.sum(1), 1.0)
    assert np.array_equal(averaged, fitted.sampled_proba(X, samples=50)), "the same draws in every call"
    border = (X[y == 1].mean(0) + X[y == 2].mean(0)) / 2
    middle = fitted.uncertainty(border[None])["total"][0]
    assert middle > np.median(fitted.uncertainty(X[y == 0])["total"])


def test_decoded_modes_look_like_their_class(fitted: ProbPSENNClassifier, iris: tuple[np.ndarray, np.ndarray]) -> None:
    X, y = iris
    means = np.stack([X[y == c].mean(0) for c in range(3)])
    away = np.linalg.norm(fitted.prototypes_[:, None] - means, axis=2)
    assert (away.argmin(1) == fitted.prototype_labels_).all()


def test_bad_settings_are_said(iris: tuple[np.ndarray, np.ndarray]) -> None:
    for change in ({"law": "cauchy"}, {"dim": 0}, {"max_iter": 0}, {"batch_size": 0}):
        with pytest.raises(UsageError, match="prob-psenn"):
            ProbPSENNClassifier(**change).fit(*iris)


def test_refusal_is_calibrated_by_validation_cases(iris: tuple[np.ndarray, np.ndarray]) -> None:
    X, y = iris
    fitted = ProbPSENNClassifier(dim=3, max_iter=20, random_state=0).fit(X[::2], y[::2])
    with pytest.raises(UsageError, match="calibrate_refusal"):
        fitted.refuse(X)
    held = X[1::2]
    refused = fitted.calibrate_refusal(held, 0.8).refuse(held)
    assert refused.dtype == bool and refused.mean() == pytest.approx(0.2, abs=0.02)
    doubt = fitted.uncertainty(held)["epistemic"]
    assert doubt[refused].min() >= doubt[~refused].max()
    with pytest.raises(NotFittedError):
        ProbPSENNClassifier().refuse(X)
