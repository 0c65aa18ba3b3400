"""Angles between prototypes, their bootstrap, orthogonality, and equal profiles: against loops and planted cases."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import ortho_group
from torch import Tensor
from torch.nn import functional as F

import protolearn.audit.distinctness as module
from protolearn.audit.correlation import unit_rows
from protolearn.audit.distinctness import (
    equal_profiles,
    likeness,
    mean_over_pairs,
    mean_squared_distance,
    orthogonality,
)
from protolearn.errors import UsageError


def planted(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Nine prototypes of three classes, one shared by two, one of none; number 4 stands on number 1."""
    g = torch.Generator().manual_seed(seed)
    vectors = torch.randn(9, 6, generator=g)
    vectors[4] = 3.0 * vectors[1]
    owner = torch.zeros(9, 3)
    owner[torch.arange(8), torch.tensor([0, 0, 0, 1, 1, 1, 2, 2])] = 1.0
    owner[7, 0] = 1.0
    return vectors, owner


def test_against_a_loop_over_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "chunk_rows", lambda row_bytes: 2)  # several chunks
    vectors, owner = planted()
    units, _ = unit_rows(vectors)
    found = likeness(units, owner)
    within, across = [], []
    for i in range(9):
        cosines = {j: float(F.cosine_similarity(vectors[i], vectors[j], dim=0)) for j in range(9) if j != i}
        assert found.mean[i] == pytest.approx(np.mean(list(cosines.values())), abs=1e-6)
        assert found.largest[i] == pytest.approx(max(cosines.values()), abs=1e-6)
        assert cosines[int(found.twin[i])] == pytest.approx(max(cosines.values()), abs=1e-6)
        for j, cosine in cosines.items():
            if j > i and bool((owner[i] * owner[j]).any()):
                within.append(cosine)
            elif j > i and bool(owner[i].any()) and bool(owner[j].any()):
                across.append(cosine)
    assert (found.pairs_within, found.pairs_across) == (len(within), len(across))
    assert found.within == pytest.approx((np.mean(within), max(within)), abs=1e-6)
    assert found.across == pytest.approx((np.mean(across), max(across)), abs=1e-6)
    assert found.twin[[1, 4]].tolist() == [4, 1], "the planted duplicate, whatever its length"


def test_one_prototype_has_no_other() -> None:
    found = likeness(torch.ones(1, 1).double(), torch.ones(1, 1))
    assert found.mean.isnan().all()
    assert (found.within, found.across, found.twin.tolist()) == (None, None, [-1])
    assert likeness(torch.zeros(0, 3).double(), torch.zeros(0, 2)).within is None


def test_weights_count_a_prototype_as_often_as_they_say() -> None:
    units, _ = unit_rows(planted()[0])
    weights = torch.tensor([[1.0] * 9, [2, 0, 1, 0, 3, 0, 0, 1, 0], [4, 0, 0, 0, 0, 0, 0, 0, 0]]).double()
    found = mean_over_pairs(units, weights)
    table = units @ units.T
    for row, w in zip(found[:2], weights, strict=False):
        pairs = [(float(w[i] * w[j]), float(table[i, j])) for i in range(9) for j in range(9) if i != j]
        assert float(row) == pytest.approx(sum(a * b for a, b in pairs) / sum(a for a, _ in pairs))
    assert found[2].isnan(), "a draw of one prototype has no pair"


def test_squared_distance_is_the_mean_of_the_whole_table() -> None:
    vectors = planted()[0]
    assert mean_squared_distance(vectors) == pytest.approx(float(torch.cdist(vectors, vectors).square().mean()))
    assert mean_squared_distance(torch.zeros(0, 3)) is None


def test_orthogonal_prototypes_have_none_to_answer_for() -> None:
    units = torch.from_numpy(ortho_group.rvs(6, random_state=0))
    member = torch.eye(2).repeat_interleave(3, 0) > 0
    per_class, each = orthogonality(units, member)
    assert per_class.abs().max() < 1e-12
    assert each.abs().max() < 1e-12


def test_orthogonality_by_class_and_row() -> None:
    vectors, owner = planted()
    units, _ = unit_rows(vectors)
    per_class, each = orthogonality(units, owner > 0)
    for c in range(3):
        own = units[owner[:, c] > 0]
        assert float(per_class[c]) == pytest.approx(float((own @ own.T - torch.eye(len(own))).abs().sum()))
    assert float(each.sum()) == pytest.approx(float(per_class.sum()))
    assert each[8] == 0, "it is of no class"


def test_directions_need_a_length() -> None:
    rows = torch.tensor([[1e-30, 0.0], [0.0, 0.0], [float("nan"), 1.0], [float("inf"), 1.0]])
    units, real = unit_rows(rows)
    assert real.tolist() == [True, False, False, False]
    assert units[0].tolist() == [1.0, 0.0]
    assert torch.isfinite(units).all()


def test_equal_profiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "chunk_rows", lambda row_bytes: 2)
    table = torch.rand(12, 4)
    table[:, 3] *= 1000  # a stronger alteration must not decide alone
    table[9] = table[2]
    table[5] = table[2] * 1.01
    pairs, gaps = equal_profiles(table, 0.05)
    assert pairs.tolist()[0] == [2, 9]
    assert gaps[0] == 0
    assert {tuple(p) for p in pairs.tolist()} == {(2, 9), (2, 5), (5, 9)}
    swapped, _ = equal_profiles(table.flip(0), 0.05)
    assert {tuple(sorted(11 - i for i in p)) for p in swapped.tolist()} == {(2, 9), (2, 5), (5, 9)}
    assert len(equal_profiles(table[:1])[0]) == 0
    assert len(equal_profiles(torch.zeros(0, 3))[0]) == 0
    with pytest.raises(UsageError, match="tolerance"):
        equal_profiles(table, -1.0)
