"""Pooling without each member, in closed form, against pooling again without it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from protolearn.core.leave_one_out import (
    attention_without_each,
    average_without_each,
    exclusive_sum,
    maximum_without_each,
    mean_without_each,
)
from protolearn.core.pooling import max_pool, mean_pool, sum_pool


def others(count: int, i: int) -> Tensor:
    return torch.arange(count)[torch.arange(count) != i]


@given(st.integers(0, 10**6), st.integers(2, 30), st.floats(0.1, 200))
def test_attention_equals_pooling_again(seed: int, count: int, spread: float) -> None:
    g = torch.Generator().manual_seed(seed)
    h = torch.randn(count, 4, generator=g, dtype=torch.float64)
    a = torch.randn(count, generator=g, dtype=torch.float64) * spread
    found = attention_without_each(h, a)
    for i in range(count):
        rest = others(count, i)
        torch.testing.assert_close(found[i], a[rest].softmax(0) @ h[rest], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gap", [0.0, 20.0, 40.0, 100.0, 1e4])
def test_attention_with_one_weight_near_one(dtype: torch.dtype, gap: float) -> None:
    """The textbook form (Z z - e^a h) / (Z - e^a) divides nothing by nothing here."""
    g = torch.Generator().manual_seed(1)
    h = torch.randn(50, 3, generator=g).to(dtype)
    h[17] *= 1e3
    a = torch.randn(50, generator=g).to(dtype)
    a[17] += gap
    found = attention_without_each(h, a)
    rest = others(50, 17)
    expected = a[rest].double().softmax(0) @ h[rest].double()
    torch.testing.assert_close(found[17].double(), expected, rtol=1e-5, atol=1e-6)
    if gap >= 40:
        weights = a.softmax(0)
        naive = (weights @ h - weights[17] * h[17]) / (1 - weights[17])
        assert not torch.allclose(naive, found[17], rtol=1e-3), "the case is one where it matters"


def test_attention_with_two_equal_maxima() -> None:
    h, a = torch.tensor([[1.0], [3.0], [7.0]]), torch.tensor([500.0, 500.0, 0.0])
    assert attention_without_each(h, a).flatten().tolist() == [3.0, 1.0, 2.0]


def test_a_huge_member_does_not_eat_the_digits_of_the_others() -> None:
    assert exclusive_sum(torch.tensor([1.0, 1e20, 2.0, 4.0]))[1].item() == 7.0
    assert exclusive_sum(torch.tensor([5.0])).tolist() == [0.0]
    assert mean_without_each(torch.tensor([[1.0], [1e30], [3.0]]))[1].item() == 2.0


def test_a_small_change_of_a_large_sum_is_not_lost() -> None:
    values = torch.rand(100_000, 1, generator=torch.Generator().manual_seed(0))
    found = mean_without_each(values)
    expected = (values.double().sum() - values.double()) / (len(values) - 1)
    torch.testing.assert_close(found.double(), expected, rtol=1e-7, atol=0)


@pytest.mark.parametrize("wrong", [torch.zeros(1, 3), torch.zeros(3)])
def test_one_member_cannot_go(wrong: Tensor) -> None:
    with pytest.raises(ValueError, match="at least two members"):
        mean_without_each(wrong)
    with pytest.raises(ValueError, match="at least two members"):
        attention_without_each(wrong, torch.zeros(len(wrong)))


def test_one_score_a_member() -> None:
    with pytest.raises(ValueError, match="one score a member"):
        attention_without_each(torch.zeros(3, 2), torch.zeros(3, 2))


@given(st.integers(0, 10**6), st.booleans(), st.booleans())
def test_pooling_over_positions_equals_pooling_again(seed: int, masked: bool, tied: bool) -> None:
    g = torch.Generator().manual_seed(seed)
    table = torch.randn(3, 5, 4, generator=g)
    if tied:
        table = table.round()
    mask = (torch.rand(3, 5, generator=g) < 0.6) if masked else None
    pooled = max_pool(table, mask)
    hidden = table if mask is None else table.masked_fill(~mask.unsqueeze(-1), float("-inf"))
    found = {
        max_pool: maximum_without_each(pooled, hidden.argmax(1), table, mask),
        mean_pool: average_without_each(table, mask),
        sum_pool: average_without_each(table, mask, total=True),
    }
    for pool, result in found.items():
        for s in range(5):
            left = torch.ones(3, 5, dtype=torch.bool) if mask is None else mask.clone()
            left[:, s] = False
            torch.testing.assert_close(result[:, s], pool(table, left), rtol=1e-5, atol=1e-5)
