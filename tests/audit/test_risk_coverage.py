"""Risk over coverage: against loops over every order of equal confidences, and its two extremes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from protolearn.audit.risk_coverage import aurc_of, resampled_aurc, risk_coverage
from protolearn.errors import UsageError


def plain(right: np.ndarray) -> np.ndarray:
    return np.cumsum(~right) / np.arange(1, len(right) + 1)


def test_without_ties_it_is_the_running_share_of_errors() -> None:
    draw = np.random.default_rng(0)
    sure, right = draw.random(200), draw.random(200) < 0.7
    found = risk_coverage(sure, right)
    curve = plain(right[np.argsort(-sure)])
    assert found.risk == pytest.approx(curve)
    assert found.aurc == pytest.approx(curve.mean())
    assert found.coverage[[0, -1]].tolist() == [1 / 200, 1.0]
    assert found.accuracy_at(1.0) == right.mean()
    assert found.accuracy_at(0.8) == 1 - curve[159]
    mixed = draw.permutation(200)
    assert risk_coverage(sure[mixed], right[mixed]).aurc == pytest.approx(found.aurc)


def test_ties_are_the_mean_over_all_their_orders() -> None:
    sure = np.array([0.9, 0.5, 0.5, 0.5, 0.5, 0.1])
    right = np.array([False, True, False, True, True, False])
    curves = [plain(right[[0, *middle, 5]]) for middle in itertools.permutations(range(1, 5))]
    found = risk_coverage(sure, right)
    assert found.risk == pytest.approx(np.mean(curves, 0))
    assert found.aurc == pytest.approx(np.mean(curves))


def test_best_and_worst_order() -> None:
    right = np.array([True] * 30 + [False] * 10)
    best = risk_coverage(-np.arange(40.0), right)
    assert best.excess == pytest.approx(0, abs=1e-12)
    assert best.accuracy_at(0.75) == 1
    worst = risk_coverage(np.arange(40.0), right)
    assert worst.aurc == pytest.approx(plain(right[::-1]).mean())
    assert worst.least == best.least
    same = risk_coverage(np.zeros(40), right)
    assert same.risk == pytest.approx(np.full(40, 0.25))
    assert best.aurc < same.aurc < worst.aurc
    for share, all_right in ((1.0, True), (0.0, False)):
        found = risk_coverage(np.random.default_rng(0).random(7), np.full(7, all_right))
        assert (found.aurc, found.excess, found.accuracy_at(0.1)) == (pytest.approx(1 - share), 0, share)


def test_resampled_areas_are_those_of_the_repeated_cases() -> None:
    draw = np.random.default_rng(0)
    sure, right = draw.integers(0, 6, 30) / 6, draw.random(30) < 0.6
    weights = np.stack([np.bincount(draw.integers(0, 30, 30), minlength=30) for _ in range(20)])
    found = resampled_aurc(sure, right, weights)
    assert found == pytest.approx([risk_coverage(sure.repeat(w), right.repeat(w)).aurc for w in weights])
    once = np.ones((1, 30), dtype=np.int64)
    assert resampled_aurc(sure, right, once)[0] == pytest.approx(risk_coverage(sure, right).aurc)
    assert aurc_of(np.array([[0, 2, 0]]), np.array([[0, 1, 0]])) == pytest.approx([0.5]), "empty groups change nothing"


def test_edges() -> None:
    one = risk_coverage(np.array([0.3]), np.array([True]))
    assert (one.aurc, one.accuracy_at(0.01), one.accuracy_at(1.0)) == (0, 1, 1)
    for wrong in (np.zeros(0), np.array([np.nan]), np.zeros((1, 1))):
        with pytest.raises(UsageError, match="at least one case"):
            risk_coverage(wrong, np.ones(wrong.shape, dtype=bool))
    for coverage in (0.0, 1.5):
        with pytest.raises(UsageError, match="coverage must lie"):
            one.accuracy_at(coverage)
