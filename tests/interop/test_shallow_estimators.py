"""The estimators over arrays: scikit-learn's own checks, pipelines, grids, frames, weights, streams, explanations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_digits, load_iris
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score, train_test_split
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from protolearn.errors import UsageError
from protolearn.interop.shallow import (
    CBCClassifier,
    GLVQClassifier,
    GMLVQClassifier,
    GRLVQClassifier,
    NearestMeanClassifier,
    ProbPSENNClassifier,
    RBFNetworkClassifier,
)

Arrays = tuple[np.ndarray, np.ndarray]
QUANTISERS = [GLVQClassifier, GRLVQClassifier, GMLVQClassifier]
WINNERS = [NearestMeanClassifier, *QUANTISERS]
ALL = [*WINNERS, RBFNetworkClassifier, CBCClassifier]


@parametrize_with_checks([*(cls() for cls in ALL[:-1]), CBCClassifier(max_iter=10), ProbPSENNClassifier(max_iter=1)])
def test_scikit_learns_own_checks(estimator: Any, check: Any) -> None:
    """No check is expected to fail. Skipped: what needs pandas or SCIPY_ARRAY_API, where they are not there."""
    check(estimator)


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    X, y = load_digits(return_X_y=True)
    return tuple(train_test_split(X, y, test_size=0.2, random_state=0, stratify=y))  # type: ignore[return-value]


@pytest.fixture(scope="module")
def iris() -> Arrays:
    X, y = load_iris(return_X_y=True)
    return StandardScaler().fit_transform(X), y


@pytest.mark.parametrize(
    ("cls", "least"),
    [(NearestMeanClassifier, 0.85), (GLVQClassifier, 0.93), (GRLVQClassifier, 0.93), (GMLVQClassifier, 0.94)],
)
def test_learns_digits(cls: Any, least: float, digits: Any) -> None:
    X, Z, y, z = digits
    found = cls(random_state=0).fit(X, y)
    assert found.score(Z, z) > least
    more = cls(5, random_state=0).fit(X, y)
    assert more.score(Z, z) > found.score(Z, z)
    assert more.prototypes_.shape == (50, 64)


def test_the_defaults_are_better_than_what_they_replace(digits: Any) -> None:
    """On a part of the training cases that was held out, as they were chosen."""
    X, _, y, _ = digits
    x, held, y, labels = train_test_split(X, y, test_size=0.25, random_state=0, stratify=y)
    border, plain = (
        GLVQClassifier(transfer=t, random_state=0).fit(x, y).score(held, labels) for t in ("sigmoid", "identity")
    )
    assert border > plain + 0.02
    wide, narrow = (RBFNetworkClassifier(width=w, random_state=0).fit(x, y).score(held, labels) for w in (3.0, 1.0))
    assert wide > narrow


def test_one_mean_is_nearest_centroid(digits: Any) -> None:
    X, Z, y, _ = digits
    ours, theirs = NearestMeanClassifier().fit(X, y), NearestCentroid().fit(X, y)
    np.testing.assert_allclose(ours.prototypes_, theirs.centroids_, rtol=1e-10, atol=1e-12)
    assert (ours.predict(Z) == theirs.predict(Z)).all()


@pytest.mark.parametrize("cls", ALL)
def test_pipeline_grid_and_cross_validation(cls: Any, iris: Arrays) -> None:
    X, y = load_iris(return_X_y=True)
    pipeline = make_pipeline(StandardScaler(), cls(random_state=0))
    assert cross_val_score(pipeline, X, y, cv=3).mean() > 0.8
    grid = GridSearchCV(cls(random_state=0), {"prototypes_per_class": [1, 2]}, cv=2, error_score="raise")
    assert grid.fit(*iris).best_params_["prototypes_per_class"] in (1, 2)
    both = make_pipeline(cls(random_state=0), LogisticRegression(max_iter=500))
    assert both.fit(*iris).score(*iris) > 0.85


@pytest.mark.parametrize("cls", ALL)
def test_set_output_gives_frames_with_names(cls: Any, iris: Arrays) -> None:
    pandas = pytest.importorskip("pandas", reason="set_output('pandas') needs pandas")
    X, y = iris
    frame = cls(2, random_state=0).set_output(transform="pandas").fit(X, y).transform(X)
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame.columns) == ["0_0", "0_1", "1_2", "1_3", "2_4", "2_5"]


@pytest.mark.parametrize("cls", ALL)
def test_labels_keep_their_kind_and_the_rest_has_its_shape(cls: Any, iris: Arrays) -> None:
    X, y = iris
    names = np.array(["setosa", "versicolor", "virginica"])[y]
    found = cls(2, random_state=0).fit(X, names)
    assert found.predict(X).dtype == names.dtype
    assert found.prototype_labels_.tolist() == ["setosa"] * 2 + ["versicolor"] * 2 + ["virginica"] * 2
    assert found.transform(X).shape == (150, 6)
    assert found.decision_function(X).shape == (150, 3)
    p = found.predict_proba(X)
    assert np.allclose(p.sum(1), 1.0)
    assert (found.classes_[p.argmax(1)] == found.predict(X)).all()
    assert (found.get_feature_names_out() == [f"{c}_{k}" for k, c in enumerate(found.prototype_labels_)]).all()
    two = cls(random_state=0).fit(X[y < 2], names[y < 2])
    assert two.decision_function(X).shape == (150,)


@pytest.mark.parametrize("cls", WINNERS)
def test_explanations_add_up_to_the_score_and_name_one_winner_a_class(cls: Any, digits: Any) -> None:
    X, Z, y, _ = digits
    found = cls(3, random_state=0).fit(X[:400], y[:400])
    scores = found.decision_function(Z[:5])
    for row, explanation in enumerate(found.explain(Z[:5])):
        assert explanation.total == pytest.approx(explanation.logit, abs=1e-6)
        assert explanation.logit == pytest.approx(scores[row].max(), rel=1e-4)
        assert explanation.probability == pytest.approx(found.predict_proba(Z[row : row + 1]).max(), rel=1e-3)
        assert sum(entry.contribution != 0 for entry in explanation.rows) == 1
        assert explanation.rows[0].owner == explanation.target


@pytest.mark.parametrize("cls", WINNERS)
def test_as_a_model_it_saves_and_comes_back(cls: Any, iris: Arrays, tmp_path: Any) -> None:
    import torch

    from protolearn.training.folder import load

    X, y = iris
    found = cls(2, random_state=0).fit(X, y)
    model = load(found.save(tmp_path / "model"))
    with torch.no_grad():
        logits = model(torch.from_numpy(X).float()).logits.numpy()
    np.testing.assert_allclose(logits, found.decision_function(X), rtol=1e-4, atol=1e-6)


def test_the_readout_is_least_squares_on_the_bumps(digits: Any) -> None:
    """Against loops for the widths and numpy's solver for the readout; the factor of the scores is divided out."""
    X, _, y, _ = digits
    found = RBFNetworkClassifier(2, ridge=0.0, width=1.0, random_state=0).fit(X, y)
    W = found.prototypes_
    for p in range(len(W)):
        others = sorted(float(((W[p] - W[q]) ** 2).sum()) for q in range(len(W)) if q != p)
        assert found.widths_[p] == pytest.approx((others[0] + others[1]) / 2, rel=1e-6)
    H = np.exp(-((X[:, None] - W) ** 2).sum(2) / found.widths_)
    np.testing.assert_allclose(found.transform(X), H, rtol=1e-6, atol=1e-12)
    design = np.hstack([H, np.ones((len(H), 1))])
    solution = np.linalg.lstsq(design, np.eye(10)[y], rcond=None)[0]
    scores = found.decision_function(X)
    factor = (scores.sum(1)).mean()  # least squares on one-hot targets: the scores of a case sum to 1
    np.testing.assert_allclose(scores / factor, design @ solution, rtol=1e-5, atol=1e-6)


def test_sureness_is_the_best_factor() -> None:
    import torch

    from protolearn.core.regression import sureness

    draw = torch.Generator().manual_seed(0)
    scores = torch.randn(200, 3, generator=draw, dtype=torch.float64)
    labels = (2.0 * scores + torch.randn(200, 3, generator=draw)).argmax(1)

    def loss(factor: float) -> float:
        share = 2.0 / (len(labels) + 6.0)
        target = torch.nn.functional.one_hot(labels, 3) * (1 - 3 * share) + share
        return -float((target * (factor * scores).log_softmax(1)).sum())

    best = sureness(scores, labels)
    assert loss(best) < min(loss(0.99 * best), loss(1.01 * best))
    assert sureness(torch.zeros(4, 2), torch.tensor([0, 1, 0, 1])) == 1.0
    assert np.isfinite(sureness(100 * torch.eye(3), torch.arange(3)))
    assert sureness(-torch.eye(2), torch.tensor([0, 1])) == pytest.approx(1e-3), "scores that speak against"


@pytest.mark.parametrize("cls", QUANTISERS)
def test_moving_and_scaling_all_features_together_changes_nothing(cls: Any, iris: Arrays) -> None:
    X, y = iris
    plain, moved = (cls(random_state=0).fit(Z, y) for Z in (X, 1e-4 * X + 7.0))
    np.testing.assert_allclose(plain.predict_proba(X), moved.predict_proba(1e-4 * X + 7.0), rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(moved.prototypes_, 1e-4 * plain.prototypes_ + 7.0, rtol=1e-8)


@pytest.mark.parametrize("cls", ALL)
def test_the_same_seed_gives_the_same_and_another_does_not(cls: Any, iris: Arrays) -> None:
    X, y = iris
    one, two, other = (cls(3, random_state=s).fit(X, y).transform(X) for s in (1, 1, 2))
    assert np.array_equal(one, two)
    assert not np.array_equal(one, other)


# -- weights ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("cls", ALL)
def test_whole_weights_are_repetitions(cls: Any, count: int, iris: Arrays) -> None:
    """Exactly, where a batch holds all cases."""
    X, y = iris
    weight = np.random.default_rng(0).integers(0, 4, len(X))
    settings = {"prototypes_per_class": count, **({"batch_size": 1000} if hasattr(cls(), "batch_size") else {})}
    weighted = cls(random_state=0, **settings).fit(X, y, sample_weight=weight)
    repeated = cls(random_state=0, **settings).fit(np.repeat(X, weight, 0), np.repeat(y, weight))
    np.testing.assert_allclose(weighted.prototypes_, repeated.prototypes_, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(weighted.predict_proba(X), repeated.predict_proba(X), rtol=1e-6, atol=1e-9)
    plain = cls(random_state=0, **settings).fit(X, y)
    assert not np.allclose(weighted.prototypes_, plain.prototypes_, rtol=1e-3)


def test_weights_move_the_border_in_batches(digits: Any) -> None:
    """A class that counts for nearly nothing is given up; in small batches too."""
    X, _, y, _ = digits
    X, y = X[np.isin(y, (3, 8))], y[np.isin(y, (3, 8))]
    noisy = np.where(np.random.default_rng(0).random(len(y)) < 0.3, 11 - y, y)
    light = GLVQClassifier(random_state=0).fit(X, noisy, sample_weight=np.where(noisy == 3, 0.02, 1.0))
    plain = GLVQClassifier(random_state=0).fit(X, noisy)
    assert (light.predict_proba(X)[:, 0]).mean() < (plain.predict_proba(X)[:, 0]).mean() - 0.1


@pytest.mark.parametrize("cls", ALL)
def test_bad_weights_are_refused(cls: Any, iris: Arrays) -> None:
    X, y = iris
    with pytest.raises(ValueError, match="negative"):
        cls().fit(X, y, sample_weight=-np.ones(len(X)))
    with pytest.raises(ValueError, match="at least two classes"):
        cls().fit(X, y, sample_weight=(y == 1).astype(float))


# -- streams ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [0, 1])
def test_streamed_means_are_the_means(order: int, digits: Any) -> None:
    X, Z, y, _ = digits
    whole = NearestMeanClassifier().fit(X, y)
    stream = NearestMeanClassifier()
    shuffled = np.random.default_rng(order).permutation(len(X))
    for part in np.array_split(shuffled, 17):
        stream.partial_fit(X[part], y[part], classes=np.arange(10))
    np.testing.assert_allclose(stream.prototypes_, whole.prototypes_, rtol=1e-6, atol=1e-9)
    assert (stream.predict(Z) == whole.predict(Z)).all()


def test_forgetting_only_comes_from_new_competitors(digits: Any) -> None:
    """Class after class: what is known of the first five does not change when others come."""
    X, Z, y, z = digits
    stream = NearestMeanClassifier()
    for label in range(5):
        stream.partial_fit(X[y == label], y[y == label], classes=np.arange(10))
    before = stream.predict(Z[z < 5])
    assert set(stream.predict(Z)) <= set(range(5)), "a class that was never seen is never predicted"
    assert (stream.predict_proba(Z)[:, 5:] == 0).all()
    for label in range(5, 10):
        stream.partial_fit(X[y == label], y[y == label])
    among = stream.classes_[stream.decision_function(Z[z < 5])[:, :5].argmax(1)]
    assert (among == before).all()
    assert (stream.predict(Z) == NearestMeanClassifier().fit(X, y).predict(Z)).all()


@pytest.mark.parametrize("cls", [*QUANTISERS, NearestMeanClassifier])
def test_a_stream_learns(cls: Any, digits: Any) -> None:
    X, Z, y, z = digits
    stream = cls(2, random_state=0).partial_fit(X[:100], y[:100], classes=np.arange(10))
    early = stream.score(Z, z)
    for part in np.array_split(np.arange(100, len(X)), 8):
        stream.partial_fit(X[part], y[part])
    assert stream.score(Z, z) > early + 0.02
    assert stream.score(Z, z) > 0.85


@pytest.mark.parametrize("cls", QUANTISERS)
def test_classes_that_come_late_are_learned_and_one_alone_moves_nothing(cls: Any, digits: Any) -> None:
    X, Z, y, z = digits
    stream = cls(random_state=0).partial_fit(X[y == 0], y[y == 0], classes=[0, 1, 2])
    np.testing.assert_allclose(stream.prototypes_, X[y == 0].mean(0, keepdims=True), atol=1e-9)
    assert (stream.predict(Z) == 0).all()
    for _ in range(5):
        stream.partial_fit(X[y < 3], y[y < 3])
    assert stream.score(Z[z < 3], z[z < 3]) > 0.95
    with pytest.raises(ValueError, match="not among the classes"):
        stream.partial_fit(X[y == 7], y[y == 7])


@pytest.mark.parametrize("cls", QUANTISERS)
def test_a_trained_one_goes_on(cls: Any, iris: Arrays) -> None:
    X, y = iris
    found = cls(random_state=0).fit(X, y)
    before = found.prototypes_.copy()
    found.partial_fit(X, y)
    assert found.score(X, y) > 0.9
    assert not np.array_equal(found.prototypes_, before)
    assert found.n_iter_ == 51


# -- edges --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", ALL)
def test_imbalance_duplicates_and_constant_features(cls: Any, iris: Arrays) -> None:
    X, y = iris
    few = np.concatenate([np.flatnonzero(y == 0), np.flatnonzero(y == 1)[:3], np.flatnonzero(y == 2)[:1]])
    X = np.hstack([X, np.ones((len(X), 1))])
    found = cls(3, random_state=0).fit(np.vstack([X[few], X[few]]), np.concatenate([y[few], y[few]]))
    assert np.isfinite(found.predict_proba(X)).all()
    counts = np.bincount(found.prototype_labels_, minlength=3)
    assert counts[0] == 3 and counts[2] == 1, "a class has no more prototypes than different cases"
    assert found.score(X[few], y[few]) > 0.9


@pytest.mark.parametrize("cls", ALL)
def test_cases_that_are_all_the_same(cls: Any) -> None:
    found = cls(random_state=0).fit(np.ones((6, 2)), [0, 1, 0, 1, 0, 1])
    assert np.allclose(found.predict_proba(np.ones((1, 2))), 0.5, atol=1e-3)


@pytest.mark.parametrize("cls", QUANTISERS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prototypes_per_class": 0}, "prototypes_per_class"),
        ({"transfer": "tanh"}, "transfer must be sigmoid or identity"),
        ({"sharpness": 0.0}, "sharpness"),
        ({"batch_size": 0}, "batch_size"),
        ({"learning_rate": -1.0}, "rate"),
        ({"max_iter": 0}, "epochs"),
    ],
)
def test_bad_settings_are_said(cls: Any, change: dict[str, Any], message: str, iris: Arrays) -> None:
    with pytest.raises(UsageError, match=message):
        cls(**change).fit(*iris)


def test_before_fitting_it_says_so(iris: Arrays) -> None:
    for cls in ALL:
        assert clone(cls(2)).prototypes_per_class == 2
        for name in ("predict", "transform", "explain", "predict_proba", "decision_function"):
            with pytest.raises(NotFittedError):
                getattr(cls(), name)(iris[0])
        with pytest.raises(NotFittedError):
            cls().save("x")


# -- what the metrics find ------------------------------------------------------------------------------------------


def planted(seed: int, n: int = 300) -> Arrays:
    """Two classes that differ in the first two features alone; eight others are noise three times as wide."""
    draw = np.random.default_rng(seed)
    y = draw.integers(0, 2, n)
    X = 3.0 * draw.normal(size=(n, 10))
    X[:, :2] = draw.normal(size=(n, 2)) + 2.5 * y[:, None]
    return X, y


@pytest.mark.parametrize("cls", [GRLVQClassifier, GMLVQClassifier])
def test_relevances_find_the_features_that_count_and_that_helps(cls: Any) -> None:
    gained = []
    for seed in range(3):
        X, y = planted(seed)
        found = cls(8, random_state=seed, metric_rate=0.1).fit(X, y)
        assert found.relevances_.sum() == pytest.approx(1.0, abs=1e-4)
        assert found.relevances_[:2].min() > 2 * found.relevances_[2:].max()
        test = planted(seed + 100)
        gained.append(found.score(*test) - GLVQClassifier(8, random_state=seed).fit(X, y).score(*test))
    assert min(gained) > 0 and np.mean(gained) > 0.02


def test_a_matrix_finds_that_two_features_count_together() -> None:
    """The classes differ in x1 - x2 only, which is small beside what the two have in common."""
    draw = np.random.default_rng(0)
    y = draw.integers(0, 2, 600)
    common = 3.0 * draw.normal(size=600)
    gap = 0.5 * draw.normal(size=600) + (2.0 * y - 1.0)
    X = np.column_stack([common + gap / 2, common - gap / 2])
    found = GMLVQClassifier(random_state=0, metric_rate=0.1).fit(X[:300], y[:300])
    assert found.score(X[300:], y[300:]) > 0.95 > NearestMeanClassifier().fit(X[:300], y[:300]).score(X[300:], y[300:])
    assert (found.omega_.T @ found.omega_)[0, 1] < -0.1, "with opposite signs"


def test_rank_limits_the_matrix(iris: Arrays) -> None:
    found = GMLVQClassifier(rank=2, random_state=0).fit(*iris)
    assert found.omega_.shape == (2, 4)
    assert np.square(found.omega_).sum() == pytest.approx(1.0)
    assert found.score(*iris) > 0.9


def test_probabilities_are_better_than_guesses_on_other_cases() -> None:
    from sklearn.metrics import log_loss

    X, y = load_breast_cancer(return_X_y=True)
    X = StandardScaler().fit_transform(X)
    X, Z, y, z = train_test_split(X, y, random_state=0, stratify=y)
    for cls in ALL:
        loss = log_loss(z, cls(random_state=0).fit(X, y).predict_proba(Z))
        # shares of CBC's scores are no fitted probabilities: they only rank
        assert loss < (0.65 if cls is CBCClassifier else 0.3), cls.__name__


@pytest.mark.parametrize("cls", [*WINNERS, RBFNetworkClassifier])
def test_weights_that_sum_to_one_do_not_flatten_probabilities(cls: Any, iris: Arrays) -> None:
    X, y = iris
    plain, shares = cls(random_state=0).fit(X, y), cls(random_state=0).fit(X, y, sample_weight=np.full(150, 1 / 150))
    np.testing.assert_allclose(shares.predict_proba(X), plain.predict_proba(X), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("cls", WINNERS)
def test_a_stream_that_begins_with_one_case_finds_its_unit(cls: Any, iris: Arrays) -> None:
    """In thousandths or thousands: the scale of the data must not matter, whatever came first."""
    X, y = iris
    order = np.random.default_rng(0).permutation(len(X))
    found = []
    for factor in (1.0, 1e4):
        stream = cls(random_state=0).partial_fit(factor * X[order[:1]], y[order[:1]], classes=[0, 1, 2])
        for _ in range(10):
            for part in np.array_split(order[1:], 15):
                stream.partial_fit(factor * X[part], y[part])
        assert stream.score(factor * X, y) > 0.8
        found.append(stream.prototypes_ / factor)
    np.testing.assert_allclose(found[0], found[1], rtol=1e-6)


@pytest.mark.parametrize("cls", WINNERS)
def test_a_stream_keeps_its_number_of_prototypes(cls: Any, iris: Arrays) -> None:
    stream = cls(1, random_state=0).partial_fit(*iris)
    with pytest.raises(UsageError, match=r"prototypes_per_class must stay 1 .*, got 3: call fit"):
        stream.set_params(prototypes_per_class=3).partial_fit(*iris)
    assert len(stream.fit(*iris).prototypes_) == 9


def test_what_is_not_fitted_says_so(iris: Arrays) -> None:
    X, _ = iris
    for ask in (
        lambda: ProbPSENNClassifier().uncertainty(X), lambda: ProbPSENNClassifier().sampled_proba(X),
        lambda: GMLVQClassifier().omega_, lambda: GMLVQClassifier().relevances_, lambda: GRLVQClassifier().relevances_,
    ):  # fmt: skip
        with pytest.raises(NotFittedError):
            ask()
