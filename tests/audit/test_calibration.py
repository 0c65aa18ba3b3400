"""Calibration errors and scores of probabilities, against loops and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, log_loss

from protolearn.audit.calibration import (
    adaptive_calibration_error,
    bin_of,
    brier,
    calibration_error,
    classwise_calibration_error,
    negative_log_likelihood,
    reliability,
)
from protolearn.errors import UsageError


def drawn(cases: int = 300, classes: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities, and labels that follow them: calibrated by construction."""
    draw = np.random.default_rng(seed)
    shares = draw.dirichlet(np.ones(classes), cases)
    return shares, (draw.random((cases, 1)) < shares.cumsum(1)).argmax(1)


def test_probabilities_that_say_what_happens_are_calibrated() -> None:
    shares, labels = drawn(60_000)
    sharper = shares**3 / (shares**3).sum(1, keepdims=True)
    for error in (adaptive_calibration_error, classwise_calibration_error):
        assert error(shares, labels) < 0.01 < 0.05 < error(sharper, labels)  # type: ignore[operator]


def test_classwise_error_by_a_loop() -> None:
    shares, labels = drawn()
    total = 0.0
    for c in range(4):
        for k in range(10):
            inside = (shares[:, c] > k / 10) & (shares[:, c] <= (k + 1) / 10)
            if inside.any():
                total += inside.mean() * abs(shares[inside, c].mean() - (labels[inside] == c).mean()) / 4
    assert classwise_calibration_error(shares, labels, 10) == pytest.approx(total)


def test_adaptive_bins_hold_equally_many_cases() -> None:
    shares, labels = drawn(300)
    order = np.argsort(shares.max(1))
    gap = (shares.max(1) - (shares.argmax(1) == labels))[order]
    expected = sum(abs(part.sum()) for part in np.split(gap, 15)) / 300
    assert adaptive_calibration_error(shares, labels) == pytest.approx(expected)
    mixed = np.random.default_rng(1).permutation(300)
    alike = np.where(shares.max(1, keepdims=True) > 0.5, [[0.7, 0.1, 0.1, 0.1]], [[0.4, 0.2, 0.2, 0.2]])
    assert adaptive_calibration_error(alike[mixed], labels[mixed]) == pytest.approx(
        adaptive_calibration_error(alike, labels), rel=1e-12
    ), "equal confidences: the order of the cases must not count"


def test_scores_of_probabilities_as_scikit_learn_has_them() -> None:
    shares, labels = drawn(50, 2)
    assert brier(shares, labels).mean() == pytest.approx(2 * brier_score_loss(labels, shares[:, 1]))
    shares, labels = drawn(50, 4)
    assert negative_log_likelihood(shares, labels).mean() == pytest.approx(log_loss(labels, shares, labels=range(4)))
    assert negative_log_likelihood(np.array([[1.0, 0.0]]), np.array([1])) == pytest.approx(36.04, abs=0.01)


def test_edges() -> None:
    assert bin_of(np.array([0.0, 1 / 3, 2 / 3, 1.0]), 3).tolist() == [0, 0, 1, 2]
    none, no_labels = np.zeros((0, 3)), np.zeros(0, dtype=int)
    assert adaptive_calibration_error(none, no_labels) is None
    assert classwise_calibration_error(none, no_labels) is None
    assert brier(none, no_labels).shape == negative_log_likelihood(none, no_labels).shape == (0,)
    one = np.ones((5, 1))
    assert adaptive_calibration_error(one, np.zeros(5, dtype=int)) == 0 == classwise_calibration_error(one, np.zeros(5))
    for make in (reliability, adaptive_calibration_error, classwise_calibration_error):
        with pytest.raises(UsageError, match="at least 1"):
            make(one, np.zeros(5, dtype=int), 0)
    shares, labels = drawn(40)
    assert calibration_error(reliability(shares, labels, 1)) == pytest.approx(
        abs(shares.max(1).mean() - (shares.argmax(1) == labels).mean())
    )
