"""Clusters whose number is found: from too few and too many, with and without known classes, odd data."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from protolearn.core.split_merge import count_by_evidence, split_and_merge, two_halves
from protolearn.core.updates import k_means
from protolearn.errors import UsageError


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blobs(seed: int, dim: int = 2, spread: float = 0.3, each: int = 40) -> tuple[Tensor, Tensor]:
    draw = generator(seed)
    centres, truth = 4 * torch.randn(10, dim, generator=draw), torch.arange(10).repeat_interleave(each)
    return centres[truth] + spread * torch.randn(len(truth), dim, generator=draw), truth


def half_known(truth: Tensor, old: int = 3) -> Tensor:
    return torch.where((truth < old) & (torch.arange(len(truth)) % 2 == 0), truth, -1)


@pytest.mark.parametrize("start", [5, 10, 20])
@pytest.mark.parametrize("chance", [None, 0.0, 0.1])
@pytest.mark.parametrize("known", [False, True])
def test_from_half_and_from_double_it_finds_ten_blobs(start: int, chance: float | None, known: bool) -> None:
    for seed in (0, 1):
        values, truth = blobs(seed)
        labels = half_known(truth) if known else torch.full_like(truth, -1)
        found = split_and_merge(values, labels, start, generator=generator(seed), chance=chance)
        assert abs(len(found.centres) - 10) <= 1
        assert found.course[0][0] == start
        assert torch.equal(found.classes[found.rows[labels >= 0]], labels[labels >= 0])


@pytest.mark.parametrize("dim", [2, 8, 32])
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_by_evidence_it_finds_them_in_any_width_and_unit(dim: int, scale: float) -> None:
    for start in (5, 20):
        values, truth = blobs(0, dim, 0.5)
        found = count_by_evidence(scale * values, half_known(truth), start, generator=generator())
        assert abs(len(found.centres) - 10) <= 1


def test_a_merge_makes_one_cluster_of_two_and_a_split_two_of_one() -> None:
    values, truth = blobs(0)
    more = split_and_merge(values, torch.full_like(truth, -1), 20, generator=generator(), chance=0.0)
    counts = [count for count, _, _ in more.course]
    assert sum(merges for _, _, merges in more.course) > 0
    for (before, splits, merges), after in zip(more.course, counts[1:], strict=False):
        assert after == before + splits - merges
    assert more.course[-1][1:] == (0, 0)


def test_the_clustering_of_most_evidence_is_kept_and_a_seed_repeats_itself() -> None:
    values, truth = blobs(3, spread=1.5)
    labels = half_known(truth)
    wild = split_and_merge(values, labels, 12, generator=generator(), chance=0.3)
    none = split_and_merge(values, labels, 12, generator=generator(), chance=0.3, rounds=0)
    assert wild.evidence >= none.evidence
    again = split_and_merge(values, labels, 12, generator=generator(), chance=0.3)
    assert torch.equal(wild.rows, again.rows) and wild.course == again.course


def test_halves_are_those_of_two_means_in_each_cluster() -> None:
    values, truth = blobs(1, spread=1.0)
    half = two_halves(values, truth, 10)
    for cluster in range(10):
        own = values[truth == cluster]
        best = k_means(own, 2, generator=generator(), restarts=10, tolerance=0.0).inertia
        mine = half[truth == cluster]
        inertia = sum(float((own[mine == h] - own[mine == h].mean(0)).square().sum()) for h in (0, 1))
        assert inertia <= 1.1 * best
    assert two_halves(torch.ones(4, 2), torch.tensor([0, 0, 1, -1]), 3).tolist() == [0, 0, 0, 0]
    order = torch.randperm(len(values), generator=generator())
    moved = two_halves(values[order], truth[order], 10)
    same = torch.unique(torch.stack([truth[order], half[order], moved], 1)[:, :3], dim=0)
    assert len(same) == 20  # the same halves, whichever is called 0


def test_new_classes_are_released_from_the_clusters_of_known_ones() -> None:
    """Started with the known classes alone; the paper's way, where those are fixed, cannot start so."""
    values, truth = blobs(0)
    labels = half_known(truth)
    found = split_and_merge(values, labels, 3, generator=generator())
    assert abs(len(found.centres) - 10) <= 1
    assert torch.equal(found.classes[found.rows[labels >= 0]], labels[labels >= 0])
    fixed = split_and_merge(values, labels, 4, generator=generator(), release=False)
    assert len(fixed.centres) < len(found.centres)


def test_odd_data() -> None:
    values, truth = blobs(0)
    whole = split_and_merge(values, truth, 10, generator=generator())
    assert torch.equal(whole.rows, truth) and whole.course == ((10, 0, 0),)
    same = split_and_merge(torch.ones(30, 3), torch.full((30,), -1), 4, generator=generator(), chance=0.0)
    assert bool(same.centres.isfinite().all()) and len(same.centres) < 4
    assert len(split_and_merge(values[:1], torch.tensor([-1]), 1, generator=generator()).centres) == 1
    with pytest.raises(UsageError, match="start from at least 4"):
        split_and_merge(values, half_known(truth), 3, generator=generator(), release=False)
    with pytest.raises(UsageError, match="NaN"):
        split_and_merge(torch.full((9, 2), float("nan")), torch.full((9,), -1), 2, generator=generator())
    with pytest.raises(UsageError, match="chance"):
        split_and_merge(values, truth, 10, generator=generator(), chance=2.0)
    with pytest.raises(UsageError, match="all rows are equal"):
        count_by_evidence(torch.ones(9, 2), torch.full((9,), -1), 2, generator=generator())
