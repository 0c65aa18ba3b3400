"""Accuracy of clusters: the authors' numbers, laws, odd groups."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from protolearn.audit.discovery import VARIANTS, discovery_score, jaccard_stability, match_clusters
from protolearn.errors import UsageError

Reference = Callable[[str], dict[str, np.ndarray]]
PREFIX = {"v1": "v1", "v2": "v2", "balanced": "v2b"}


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_the_released_code_gives_the_same(reference: Reference, variant: str) -> None:
    want = reference("gcd_accuracy")
    old = np.unique(want["true"][want["old_mask"]]).tolist()
    found = discovery_score(torch.from_numpy(want["pred"]), torch.from_numpy(want["true"]), old, variant=variant)  # type: ignore[arg-type]
    for part in ("all", "old", "new"):
        assert getattr(found, part) == pytest.approx(float(want[f"{PREFIX[variant]}_{part}"]), rel=1e-6)
    assert found.old_cases == int(want["old_mask"].sum()) and found.cases == len(want["true"])
    if variant != "v1":
        named = match_clusters(want["pred"], want["true"])
        right = np.array([named.get(int(p), -1) for p in want["pred"]]) == want["true"]
        assert right.mean() == pytest.approx(float(want["acc"]), rel=1e-6)


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 7))
def test_laws(seed: int, clusters: int, classes: int) -> None:
    draw = np.random.default_rng(seed)
    predicted, labels = draw.integers(0, clusters, 40), draw.integers(0, classes, 40)
    old = list(range(classes // 2))
    v2, v1 = (discovery_score(predicted, labels, old, variant=v) for v in ("v2", "v1"))  # type: ignore[arg-type]
    assert v2.all is not None and v1.all is not None
    assert v1.all >= v2.all - 1e-12
    renamed = discovery_score(draw.permutation(100)[predicted], labels, old)
    assert (renamed.all, renamed.nmi, renamed.ari) == pytest.approx((v2.all, v2.nmi, v2.ari))
    assert len(set(v2.names.values())) == len(v2.names), "one to one"
    assert v2.nmi == pytest.approx(normalized_mutual_info_score(labels, predicted))
    assert v2.ari == pytest.approx(adjusted_rand_score(labels, predicted))
    shares = [(v2.old, v2.old_cases), (v2.new, v2.cases - v2.old_cases)]
    assert v2.all == pytest.approx(sum(share * n for share, n in shares if share is not None) / v2.cases)


def test_more_clusters_than_classes_and_fewer() -> None:
    labels = np.array([0, 0, 0, 0, 1, 1])
    many = discovery_score(np.array([0, 0, 1, 1, 2, 3]), labels, old=[0])
    assert (many.all, many.old, many.new) == (0.5, 0.5, 0.5)
    one = discovery_score(np.zeros(6, dtype=int), labels, old=[0])
    assert (one.all, one.old, one.new) == (pytest.approx(4 / 6), 1.0, 0.0)


def test_what_is_not_there_has_no_accuracy() -> None:
    predicted = np.array([0, 0, 1])
    assert discovery_score(predicted, np.array([0, 0, 0]), old=[0]).new is None
    assert discovery_score(predicted, np.array([1, 1, 1]), old=[0]).old is None
    nothing = discovery_score(predicted, np.array([-1, -1, -1]), old=[0])
    assert (nothing.all, nothing.nmi, nothing.cases) == (None, None, 0)
    partly = discovery_score(predicted, np.array([4, -1, 7]), old=[4], variant="balanced")
    assert (partly.all, partly.cases) == (1.0, 2)
    assert discovery_score(predicted[:0], predicted[:0], old=[]).all is None


def test_balanced_counts_classes_and_not_cases() -> None:
    labels = np.array([0] * 98 + [1, 2])
    predicted = np.array([0] * 98 + [0, 0])
    found = discovery_score(predicted, labels, old=[0, 1], variant="balanced")
    assert (found.all, found.old, found.new) == (pytest.approx(1 / 3), 0.5, 0.0)


def test_wrong_input_is_named() -> None:
    with pytest.raises(UsageError, match="a cluster and a class for each case"):
        discovery_score(np.zeros(3, dtype=int), np.zeros(2, dtype=int), old=[])
    with pytest.raises(UsageError, match="whole numbers"):
        discovery_score(np.zeros(3), np.zeros(3, dtype=int), old=[])
    with pytest.raises(UsageError, match="variant must be"):
        discovery_score(np.zeros(3, dtype=int), np.zeros(3, dtype=int), old=[], variant="v3")  # type: ignore[arg-type]


def test_a_cluster_that_every_draw_finds_is_stable_and_a_random_one_is_not() -> None:
    draw = torch.Generator().manual_seed(0)
    rows = torch.cat([torch.zeros(50), torch.ones(50), torch.full((50,), 2)]).long()
    others = []
    for _ in range(5):
        cases = torch.randperm(150, generator=draw)[:120]
        again = rows[cases].clone()
        mixed = again > 0
        again[mixed] = 1 + torch.randint(0, 2, (int(mixed.sum()),), generator=draw)
        others.append((cases, 2 - again))  # under other numbers
    found = jaccard_stability(rows, others, 4)
    assert float(found[0]) == pytest.approx(1.0)
    assert float(found[1:3].max()) < 0.6
    assert bool(found[3].isnan())
