"""Greedy k-centre: what it promises about the rows it leaves out."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from protolearn.core.coreset import greedy_coreset, random_projection


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(st.integers(0, 50), st.integers(1, 4))
def test_no_row_is_farther_than_twice_the_best_radius(seed: int, count: int) -> None:
    values = torch.randn(9, 3, generator=seeded(seed), dtype=torch.float64)
    table = torch.cdist(values, values)
    best = min(float(table[list(chosen)].min(0).values.max()) for chosen in combinations(range(9), count))
    found = greedy_coreset(values, count, generator=seeded(seed), width=None)
    radius = float(table[found.rows].min(0).values.max())
    assert radius <= 2 * best + 1e-9
    assert found.radius == pytest.approx(radius, abs=1e-6)


def test_each_choice_is_the_farthest_and_a_seed_repeats() -> None:
    values = torch.randn(200, 5, generator=seeded())
    found = greedy_coreset(values, 20, generator=seeded(3), width=None)
    for k in range(1, 20):
        gaps = torch.cdist(values, values[found.rows[:k]]).min(1).values
        assert float(gaps[found.rows[k]]) == pytest.approx(float(gaps.max()), rel=1e-4)
    assert torch.equal(found.rows, greedy_coreset(values, 20, generator=seeded(3), width=None).rows)
    firsts = {int(greedy_coreset(values, 1, generator=seeded(s)).rows[0]) for s in range(10)}
    assert len(firsts) > 5, "the first row is drawn"


def test_rows_are_distinct_even_where_all_are_equal() -> None:
    found = greedy_coreset(torch.ones(6, 2), 6, generator=seeded())
    assert sorted(found.rows.tolist()) == list(range(6))
    assert found.radius == 0


def test_far_from_the_origin_differences_are_still_seen() -> None:
    values = torch.tensor([[0.0], [0.0], [0.5], [1.0]]) + 10_000
    rows = greedy_coreset(values, 3, generator=seeded()).rows
    assert sorted(values[rows, 0].tolist()) == [10_000.0, 10_000.5, 10_001.0]


def test_a_projection_keeps_distances_and_narrow_rows_stay() -> None:
    values = torch.randn(40, 500, generator=seeded())
    short = random_projection(values, 128, seeded(1))
    ratio = torch.pdist(short) / torch.pdist(values)
    assert 0.95 < float(ratio.mean()) < 1.05
    assert float(ratio.std()) < 0.1
    narrow = torch.randn(4, 8)
    assert random_projection(narrow, 8, seeded()) is narrow
    wide = greedy_coreset(values, 10, generator=seeded(), width=128)
    exact = greedy_coreset(values, 10, generator=seeded(), width=None)
    gaps = [float(torch.cdist(values, values[one.rows]).min(1).values.max()) for one in (wide, exact)]
    assert gaps[0] < 1.2 * gaps[1]


def test_wrong_inputs() -> None:
    with pytest.raises(ValueError, match="choose 1 to 3"):
        greedy_coreset(torch.zeros(3, 2), 4, generator=seeded())
    with pytest.raises(ValueError, match="finite"):
        greedy_coreset(torch.tensor([[0.0], [float("nan")]]), 1, generator=seeded())
    with pytest.raises(ValueError, match="width"):
        random_projection(torch.zeros(3, 2), 0, seeded())
