"""The estimator says "unknown" where it is asked to, and never otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.exceptions import NotFittedError

from protolearn.core.scorer import make_scorer
from protolearn.errors import UsageError
from protolearn.interop.estimator import PrototypeClassifier

QUICK: dict[str, Any] = {
    "prototypes_per_class": 2, "dim": 16, "encoder_rate": None, "warm_epochs": 15, "project_at": (15,),
    "last_layer_epochs": 10, "neck_rate": 0.01, "prototype_rate": 0.03, "head_rate": 0.01,
}  # fmt: skip


def data() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    X, y = load_digits(return_X_y=True)
    return X / 16, y


@pytest.fixture(scope="module")
def fitted() -> PrototypeClassifier:
    """Knows the digits 0 to 6."""
    X, y = data()
    known = y[:900] < 7
    return PrototypeClassifier(settings=QUICK, random_state=0).fit(X[:900][known], y[:900][known])


def test_it_says_unknown_only_when_asked(fitted: PrototypeClassifier, tmp_path: Path) -> None:
    X, y = data()
    with pytest.raises(UsageError, match="call fit_novelty"):
        fitted.novelty(X[:3])
    with pytest.raises(UsageError, match="call fit_novelty"):
        fitted.predict(X[:3], unknown=-1)
    before = fitted.predict(X[900:])
    held = X[900:1200][y[900:1200] < 7]
    known = y[:900] < 7
    assert fitted.fit_novelty(X[:900][known], y[:900][known], {"name": "knn", "k": 5}, held=held) is fitted
    rest, label = X[1200:], y[1200:]
    accepted = fitted.known(rest)
    assert accepted[label < 7].mean() > 0.85 and accepted[label >= 7].mean() < 0.6
    assert np.array_equal(fitted.predict(X[900:]), before)
    said = fitted.predict(rest, unknown=-1)
    assert said.dtype == before.dtype
    assert ((said == -1) == ~accepted).all() and (said[accepted] == fitted.predict(rest)[accepted]).all()
    words = fitted.predict(rest, unknown="no idea")
    assert set(words[~accepted]) == {"no idea"} and set(words[accepted]) <= set(range(7))
    confidence = fitted.novelty(rest)
    assert confidence[label < 7].mean() > confidence[label >= 7].mean()
    assert fitted.novelty(rest[:0]).shape == (0,)
    back = PrototypeClassifier.load(fitted.save(tmp_path / "m"))
    assert np.array_equal(back.known(rest), accepted) and np.allclose(back.novelty(rest), confidence)


def test_labels_that_are_words(fitted: PrototypeClassifier) -> None:
    X, y = data()
    names = np.array(["zero", "one", "two"])[y[:600] % 3]
    classifier = PrototypeClassifier(settings=QUICK, random_state=0).fit(X[:600], names)
    classifier.fit_novelty(X[:600], names)
    said = classifier.predict(np.zeros((2, 64)), unknown="something else")
    assert said.tolist() == ["something else"] * 2


def test_wrong_requests(fitted: PrototypeClassifier) -> None:
    X, _ = data()
    with pytest.raises(NotFittedError):
        PrototypeClassifier().fit_novelty(X)
    with pytest.raises(UsageError, match="did you mean"):
        fitted.fit_novelty(X[:200], score="mahalanobs")
    fitted.model_.scorer = make_scorer("energy")
    with pytest.raises(UsageError, match="has no threshold"):
        fitted.known(X[:3])
