"""Outliers of tables by a probabilistic autoencoder and mean shift: laws, scikit-learn's checks, odd tables."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from sklearn.utils.estimator_checks import parametrize_with_checks

from protolearn.core.mean_shift import mean_shift, shift_among
from protolearn.errors import UsageError
from protolearn.interop.outliers import VERIFIED, AutoencoderOutliers
from protolearn.objectives.reconstruction import two_part_error


@parametrize_with_checks([AutoencoderOutliers(epochs=2, networks=1)])
def test_scikit_learns_own_checks(estimator: Any, check: Any) -> None:
    """No check is expected to fail."""
    check(estimator)


def two_clusters(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two Gaussians, and points that lie alone."""
    draw = np.random.default_rng(seed)
    known = draw.normal(size=(200, 4)) * 0.5 + np.repeat([[-3.0] * 4, [3.0] * 4], 100, axis=0)
    alone = draw.uniform(-9, 9, size=(12, 4))
    alone = alone[np.abs(alone[:, None] - known).max(2).min(1) > 2]
    return np.concatenate([known, alone]), np.repeat([0, 1], [200, len(alone)])


def test_with_variances_of_1_and_no_second_part_it_is_the_squared_error() -> None:
    x, m = torch.randn(2, 30, 5, generator=torch.Generator().manual_seed(0))
    found = two_part_error(m, torch.zeros(30, 5), x, fit=1.0, spread=0.0)
    torch.testing.assert_close(found, (x - m).square().mean(1))
    law = torch.distributions.Normal(m, 0.7).log_prob(x).mean(1)
    whole = two_part_error(m, torch.full((30, 5), 0.7**2).log(), x)
    torch.testing.assert_close(whole + float(np.log(2 * np.pi)), -2 * law)
    assert bool(two_part_error(x, torch.full((30, 5), -1e9), x).isfinite().all())


def test_shifted_rows_are_means_of_their_neighbours_without_themselves() -> None:
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.equal(mean_shift(x, 5, 0)[-1], x)
    once = mean_shift(x, 1, 1)[-1]
    assert bool((once != x).any(1).all())  # the nearest other row, never itself
    gaps = torch.cdist(x, x).fill_diagonal_(float("inf"))
    torch.testing.assert_close(mean_shift(x, 6, 1)[-1], x[gaps.topk(6, largest=False).indices].mean(1))
    stages = mean_shift(x, 6, 3)
    assert len(stages) == 4
    assert torch.equal(shift_among(x, stages[:1], 6), x)
    moved = (shift_among(x + 50, stages, 6) - x - 50).norm(dim=1)
    assert bool((moved > 40).all())  # new rows far away go where the others are


def test_without_shift_the_score_is_the_plain_error() -> None:
    X, _ = two_clusters()
    found = AutoencoderOutliers(probabilistic=False, shifts=0, networks=1, epochs=3, random_state=0).fit(X)
    x = torch.from_numpy((X - X.mean(0)) / X.std(0))
    with torch.no_grad():
        by_hand = (found._nets[0](x)[0] - x).square().mean(1)
    np.testing.assert_allclose(found.outlier_scores_, by_hand.numpy(), rtol=1e-12)
    np.testing.assert_allclose(found.outlier_scores(X), found.outlier_scores_, rtol=1e-12)


@pytest.mark.parametrize("probabilistic", [False, True])
def test_shift_finds_what_a_network_without_a_bottleneck_repeats(probabilistic: bool) -> None:
    X, y = two_clusters()
    how: dict[str, Any] = {"probabilistic": probabilistic, "bottleneck": 8, "networks": 1, "random_state": 0}
    plain = AutoencoderOutliers(shifts=0, **how).fit(X)
    moved = AutoencoderOutliers(shifts=3, **how).fit(X)
    plain_auroc, auroc = (roc_auc_score(y, found.outlier_scores_) for found in (plain, moved))
    assert auroc >= plain_auroc and auroc > 0.95


def test_the_noise_of_columns_is_learned() -> None:
    """Columns of one signal, the first two with little noise and the last two with much: the law of the second head."""
    draw = np.random.default_rng(0)
    signal = draw.normal(size=(600, 1))
    X = signal + draw.normal(size=(600, 4)) * [0.05, 0.05, 1.0, 1.0]
    found = AutoencoderOutliers(bottleneck=1, networks=1, epochs=60, random_state=0).fit(X)
    spread = found.column_spread(X).mean(0)
    assert spread[:2].max() < 0.5 * spread[2:].min()


def test_signs_and_the_offset() -> None:
    X, y = two_clusters()
    found = AutoencoderOutliers(epochs=5, contamination=0.05, random_state=0).fit(X)
    scores = found.outlier_scores(X)
    np.testing.assert_array_equal(found.score_samples(X), -scores)
    np.testing.assert_allclose(found.decision_function(X), -scores - found.offset_)
    assert ((found.predict(X) == -1) == (found.decision_function(X) < 0)).all()
    again = AutoencoderOutliers(epochs=5, contamination=0.05, random_state=0)
    marks = again.fit_predict(X)
    assert (marks == -1).sum() == pytest.approx(0.05 * len(X), abs=1)
    assert marks[y == 1].mean() < marks[y == 0].mean()
    np.testing.assert_array_equal(again.outlier_scores_, found.outlier_scores_)


def test_the_likelihood_is_the_two_part_error_of_both_heads() -> None:
    X, _ = two_clusters()
    how: dict[str, Any] = {"rank_by": "likelihood", "shifts": 0, "networks": 1, "epochs": 3, "random_state": 0}
    found = AutoencoderOutliers(fit_weight=0.5, spread_weight=2.0, **how).fit(X)
    x = torch.from_numpy((X - X.mean(0)) / X.std(0))
    with torch.no_grad():
        mean, logs = found._nets[0](x)
        by_hand = two_part_error(mean, logs, x, fit=0.5, spread=2.0)
    np.testing.assert_allclose(found.outlier_scores_, by_hand.numpy(), rtol=1e-12)
    with pytest.raises(UsageError, match="likelihood"):
        AutoencoderOutliers(probabilistic=False, rank_by="likelihood").fit(X)


def test_odd_tables() -> None:
    draw = np.random.default_rng(0)
    X = np.column_stack([draw.normal(size=30), np.full(30, 0.1), draw.integers(0, 2, 30)])
    found = AutoencoderOutliers(epochs=200, networks=1, random_state=0).fit(X)
    assert np.isfinite(found.outlier_scores_).all()
    assert np.isfinite(found.outlier_scores(X + np.array([0.0, 5.0, 0.0]))).all()
    assert (found.column_spread(X)[:, 1] == 0).all()
    same = AutoencoderOutliers(random_state=0).fit(np.ones((5, 2)))
    assert same.outlier_scores_.tolist() == [0.0] * 5 and (same.predict(np.ones((1, 2))) == 1).all()
    two = AutoencoderOutliers(epochs=1, random_state=0).fit(np.array([[0.0], [1.0]]))
    assert np.isfinite(two.outlier_scores_).all()
    for wrong in ({"shifts": -1}, {"neighbours": 0}, {"contamination": 0.7}, {"networks": 0}, {"rank_by": "both"}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            AutoencoderOutliers(**wrong).fit(X)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="column_spread"):
        AutoencoderOutliers(probabilistic=False, epochs=1).fit(X).column_spread(X)
    with pytest.raises(ValueError, match="NaN"):
        AutoencoderOutliers().fit(np.full((9, 2), np.nan))
    assert VERIFIED.startswith("unverified")
