"""CBC over arrays: its radius is proven, robustness can be bought, and absence is a reason."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from protolearn.errors import UsageError
from protolearn.interop.shallow import CBCClassifier

Split = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def split(load: Any, seed: int = 0) -> Split:
    X, y = load(return_X_y=True)
    x, test, y, labels = train_test_split(X, y, test_size=0.3, random_state=seed, stratify=y)
    scaler = StandardScaler().fit(x)
    return scaler.transform(x), scaler.transform(test), y, labels


@pytest.fixture(scope="module")
def cancer() -> Split:
    return split(load_breast_cancer)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_no_move_within_the_radius_changes_a_decision(seed: int, cancer: Split) -> None:
    """Attacked along the straight lines to all components of all classes, at random, and by finite differences."""
    x, test, y, _ = cancer
    found = CBCClassifier(2, random_state=seed, max_iter=20).fit(x, y)
    cases = test[:40]
    radius, before = found.certified_radius(cases), found.predict(cases)
    assert (radius >= 0).all() and (radius > 0).mean() > 0.9
    draw = np.random.default_rng(seed)
    for _ in range(30):
        way = draw.normal(size=cases.shape)
        way /= np.linalg.norm(way, axis=1, keepdims=True)
        assert (found.predict(cases + 0.999 * radius[:, None] * way) == before).all()
    for prototype in found.prototypes_:
        for sign in (1, -1):
            way = sign * (prototype - cases)
            way /= np.linalg.norm(way, axis=1, keepdims=True)
            assert (found.predict(cases + 0.999 * radius[:, None] * way) == before).all()
    moved, step = cases.copy(), 0.1
    for _ in range(10):  # down the lead of the predicted class
        slope = np.zeros_like(cases)
        for j in range(cases.shape[1]):
            up = moved.copy()
            up[:, j] += 1e-4
            slope[:, j] = (lead(found, up, before) - lead(found, moved, before)) / 1e-4
        way = -slope / np.linalg.norm(slope, axis=1, keepdims=True).clip(1e-12)
        moved = moved + step * radius[:, None] * way
        gone = moved - cases
        length = np.linalg.norm(gone, axis=1, keepdims=True).clip(1e-12)
        moved = cases + gone * np.minimum(1.0, 0.999 * radius[:, None] / length)
    assert (found.predict(moved) == before).all()


def lead(found: CBCClassifier, X: np.ndarray, label: np.ndarray) -> np.ndarray:
    p = found.predict_proba(X)
    own = p[np.arange(len(X)), label]
    return own - np.where(np.eye(p.shape[1], dtype=bool)[label], -np.inf, p).max(1)


def test_the_robustness_term_raises_the_radius_at_small_cost(cancer: Split) -> None:
    x, test, y, labels = cancer
    plain = CBCClassifier(2, random_state=0, max_iter=30).fit(x, y)
    robust = CBCClassifier(2, random_state=0, max_iter=30, robust_weight=1.0, robust_target=0.3).fit(x, y)
    assert robust.certified_radius(test).mean() > 1.2 * plain.certified_radius(test).mean()
    assert robust.score(test, labels) > plain.score(test, labels) - 0.04
    assert plain.score(test, labels) > 0.9


def test_a_class_that_is_known_by_absence() -> None:
    """Class 0 has cases anywhere but near the origin, class 1 near it: absence says it in one component."""
    draw = np.random.default_rng(0)
    y = draw.integers(0, 2, 600)
    angle, radius = draw.uniform(0, 2 * np.pi, 600), np.where(y == 1, 0.5, 4.0)
    X = np.column_stack([np.cos(angle), np.sin(angle)]) * radius[:, None] + 0.3 * draw.normal(size=(600, 2))
    with_it, without = (CBCClassifier(1, absence=a, random_state=0).fit(X[:400], y[:400]) for a in (True, False))
    assert with_it.score(X[400:], y[400:]) > 0.95
    assert with_it.reasoning_[1].sum() > 0.1
    assert (without.reasoning_[1] == 0).all()
    far = np.full((1, 2), 1e3)
    scores = with_it._scores(with_it._evidence(with_it._inside(far))).numpy()[0]
    np.testing.assert_allclose(scores, with_it.reasoning_[1].sum(1), atol=1e-9)
    assert with_it.predict(far)[0] == 0, "far from everything all components are absent"


def test_scores_are_shares_of_expectations_and_explained_as_such() -> None:
    x, test, y, labels = split(load_digits)
    found = CBCClassifier(1, random_state=0, max_iter=20).fit(x, y)
    assert found.score(test, labels) > 0.85
    np.testing.assert_allclose(found.reasoning_.sum((0, 2)), 1.0)
    scores = found.decision_function(test[:5])
    assert (scores >= 0).all() and (scores <= 1).all()
    d = found.transform(test[:5])
    present, absent = found.reasoning_
    np.testing.assert_allclose(scores, d @ present.T + (1 - d) @ absent.T)
    for row, explanation in enumerate(found.explain(test[:5])):
        assert explanation.total == pytest.approx(explanation.logit, abs=1e-5)
        assert explanation.logit == pytest.approx(scores[row].max(), rel=1e-3)


def test_radii_scale_with_the_data(cancer: Split) -> None:
    x, test, y, _ = cancer
    one, ten = (CBCClassifier(1, random_state=0, max_iter=5).fit(k * x, y) for k in (1.0, 10.0))
    np.testing.assert_allclose(10 * one.certified_radius(test), ten.certified_radius(10 * test), rtol=1e-5)


@pytest.mark.parametrize("change", [{"margin": 2.0}, {"max_iter": 0}, {"prototypes_per_class": 0}])
def test_bad_settings_are_said(change: dict[str, Any], cancer: Split) -> None:
    with pytest.raises(UsageError, match="cbc"):
        CBCClassifier(**change).fit(cancer[0], cancer[2])
