"""New classes of tables: the loss's two ends, frozen class means, settings without novel labels, numbers of classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits, make_blobs

from protolearn.audit.discovery import discovery_score
from protolearn.errors import UsageError
from protolearn.interop.novel_classes import NovelClasses, _Space, hidden_class_search


def accuracy(found: np.ndarray, truth: np.ndarray, free: np.ndarray) -> float:
    value = discovery_score(found[free], truth[free], old=[]).all
    assert value is not None
    return value


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_the_weight_goes_from_an_autoencoder_to_a_classifier(weight: float) -> None:
    draw = torch.Generator().manual_seed(0)
    net = _Space(6, 3, 4, 0.0, draw)
    x, labels = torch.randn(20, 6, generator=draw), torch.arange(20) % 5 - 1
    NovelClasses(weight=weight).loss(net, x, labels).backward()
    parts = {"classifier": net.classifier, "decoder": net.decoder}
    reached = {
        name: any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in part.parameters())  # type: ignore[union-attr]
        for name, part in parts.items()
    }
    assert reached == {"classifier": weight == 1.0, "decoder": weight == 0.0}


@pytest.mark.parametrize("clusterer", ["k_means", "ncd_k_means", "ncd_spectral"])
@pytest.mark.parametrize("embedding", ["pbn", "none"])
def test_it_finds_separate_classes(clusterer: Any, embedding: Any) -> None:
    X, truth = make_blobs(400, 20, centers=8, random_state=0)
    free = truth >= 4
    how: dict[str, Any] = {"clusterer": clusterer, "embedding": embedding, "epochs": 30, "batch_size": 64}
    found = NovelClasses(4, weight=0.1, random_state=0, **how)
    labels = found.fit_predict(X, np.where(free, -1, truth))
    assert accuracy(labels, truth, free) > 0.95
    assert (labels[~free] == -1).all() and (labels[free] >= 0).all()
    if clusterer != "ncd_spectral":
        np.testing.assert_array_equal(found.predict(X[free]), labels[free])
    again = NovelClasses(4, weight=0.1, random_state=0, **how)
    np.testing.assert_array_equal(again.fit_predict(X, np.where(free, -1, truth)), labels)


@pytest.mark.slow
def test_on_digits_the_learned_space_is_no_worse_than_the_pixels() -> None:
    X, truth = load_digits(return_X_y=True)
    free = truth >= 5
    y = np.where(free, -1, truth)
    raw, learned = [], []
    for seed in range(3):
        settings: dict[str, Any] = {"clusterer": "k_means", "random_state": seed}
        raw.append(accuracy(NovelClasses(5, embedding="none", **settings).fit_predict(X, y), truth, free))
        settings |= {"latent": 32, "weight": 0.06, "dropout": 0.086, "epochs": 100, "batch_size": 64}
        learned.append(accuracy(NovelClasses(5, **settings).fit_predict(X, y), truth, free))
    assert np.mean(learned) >= np.mean(raw)


def test_the_choice_of_settings_reads_nothing_of_new_classes() -> None:
    X, truth = make_blobs(300, 6, centers=8, cluster_std=3.0, random_state=1)
    free = truth >= 5
    y = np.where(free, -1, truth)
    space: dict[str, Any] = {"latent": [2, 5], "weight": [0.2, 0.8]}
    how = NovelClasses(epochs=5)
    one = hidden_class_search(how, X, y, space, folds=2)
    other = X.copy()
    other[free] = np.random.default_rng(0).normal(size=(int(free.sum()), 6))  # not even their rows
    two = hidden_class_search(how, other, y, space, folds=2)
    assert one == two and len(one.table) == 4
    assert all(len(fold) == 2 and not set(fold) & {5, 6, 7, -1} for fold in one.hidden)
    assert not hasattr(how, "labels_")
    means = {tuple(s.values()): np.mean(scores) for s, scores in one.table}
    assert means[tuple(one.best.values())] == max(means.values())
    assert len(hidden_class_search(how, X, y, space, folds=1, draws=2).table) == 2


def test_the_silhouette_finds_how_many_there_are() -> None:
    X, truth = make_blobs(600, 6, centers=14, center_box=(-20, 20), random_state=0)
    y = np.where(truth < 4, truth, -1)
    found = NovelClasses(embedding="none", most_clusters=20, random_state=0).fit(X, y)
    assert abs(found.n_clusters_ - 10) <= 2
    assert set(found.silhouettes_) == set(range(2, 21))


def test_odd_tables() -> None:
    X, truth = make_blobs(60, 3, centers=4, random_state=0)
    nothing_known = NovelClasses(4, epochs=2, random_state=0).fit(X, np.full(60, -1))
    assert len(nothing_known.classes_) == 0 and nothing_known.labels_.min() == 0
    names = np.where(truth == 3, -1, truth + 10)
    assert NovelClasses(2, epochs=1, random_state=0).fit(X, names).classes_.tolist() == [10, 11, 12]
    with_constant = np.column_stack([X, np.ones(60)])
    assert np.isfinite(
        NovelClasses(2, epochs=2, random_state=0).fit(with_constant, names).transform(with_constant)
    ).all()
    with pytest.raises(UsageError, match="nothing to discover"):
        NovelClasses(2).fit(X, truth)
    with pytest.raises(UsageError, match="as many labels"):
        NovelClasses(2).fit(X, truth[:5])
    with pytest.raises(UsageError, match="clusterer"):
        NovelClasses(2, clusterer="dbscan").fit(X, names)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="ask for fewer"):
        NovelClasses(40, epochs=1).fit(X, names)
    with pytest.raises(UsageError, match="at least 3 known"):
        hidden_class_search(NovelClasses(), X, np.where(truth > 1, -1, truth), {"latent": [2]})
    with pytest.raises(ValueError, match="NaN"):
        NovelClasses(2).fit(np.full((60, 3), np.nan), names)
