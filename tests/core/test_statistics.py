"""Streaming class statistics: order, chunks and merges must not matter."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from protolearn.core.statistics import ClassStatistics, linear_form


def data(count: int = 60, dim: int = 4, classes: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(-1, classes, (count,), generator=draw)
    return torch.randn(count, dim, generator=draw).double() + labels.unsqueeze(1) * 3, labels


@given(st.lists(st.integers(0, 60), max_size=5), st.integers(0, 5))
def test_any_split_gives_what_all_at_once_gives(cuts: list[int], seed: int) -> None:
    values, labels = data(seed=seed)
    whole = ClassStatistics(3, 4).update(values, labels).moments
    parts = ClassStatistics(3, 4)
    apart = [ClassStatistics(3, 4) for _ in range(len(cuts) + 1)]
    ends = [0, *sorted(cuts), 60]
    for other, start, end in zip(apart, ends[:-1], ends[1:], strict=True):
        parts.update(values[start:end], labels[start:end])
        other.update(values[start:end], labels[start:end])
    merged = ClassStatistics(3, 4)
    for other in reversed(apart):
        merged.merge(other)
    for found in (parts.moments, merged.moments):
        for got, want in zip(found, whole, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def test_the_same_data_twice_changes_no_mean_and_no_variance() -> None:
    values, labels = data()
    one, two = ClassStatistics(3, 4).update(values, labels), ClassStatistics(3, 4).update(values, labels)
    before = one.moments
    after = one.merge(two).moments
    torch.testing.assert_close(after.means, before.means)
    torch.testing.assert_close(after.variances, before.variances)
    assert torch.equal(after.counts, 2 * before.counts)


def test_it_is_what_the_textbook_says() -> None:
    values, labels = data()
    gaussian = ClassStatistics(3, 4).update(values, labels).shared_gaussian(0.0)
    known = values[labels >= 0]
    inside = torch.cat([values[labels == c] - values[labels == c].mean(0) for c in range(3)])
    torch.testing.assert_close(gaussian.variance, inside.square().sum(0) / len(known))


def test_the_linear_form_ranks_alike() -> None:
    values, labels = data()
    gaussian = ClassStatistics(3, 4).update(values, labels).shared_gaussian()
    weight, bias = linear_form(gaussian)
    gaps = (values.unsqueeze(1) - gaussian.means).square() / gaussian.variance
    scores = gaussian.log_prior - 0.5 * gaps.sum(2)
    torch.testing.assert_close((values @ weight.T + bias).softmax(1), scores.softmax(1))


def test_a_class_without_cases_and_one_case_a_class() -> None:
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    gaussian = ClassStatistics(3, 2).update(values, torch.tensor([0, 2])).shared_gaussian()
    assert gaussian.seen.tolist() == [True, False, True]
    assert torch.isneginf(gaussian.log_prior[1])
    assert gaussian.variance.tolist() == [1.0, 1.0], "nothing varies: every coordinate counts alike"


def test_what_cannot_be() -> None:
    with pytest.raises(ValueError, match="no labelled case"):
        ClassStatistics(2, 1).update(torch.zeros(3, 1), torch.full((3,), -1)).shared_gaussian()
    with pytest.raises(ValueError, match="finite"):
        ClassStatistics(2, 1).update(torch.tensor([[float("nan")]]), torch.tensor([0]))
    with pytest.raises(ValueError, match="merge"):
        ClassStatistics(2, 1).merge(ClassStatistics(3, 1))


def test_digits_far_from_zero_lose_nothing() -> None:
    values, labels = data()
    near = ClassStatistics(3, 4).update(values, labels).moments
    far = ClassStatistics(3, 4)
    for start in range(0, 60, 7):
        far.update(values[start : start + 7] + 1e6, labels[start : start + 7])
    torch.testing.assert_close(far.moments.variances, near.variances, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("repeats", [3, 7, 11, 49])
def test_the_same_case_again_and_again_has_no_variance(repeats: int) -> None:
    """What merging rounds must not become a variance of 1e-33, which no smoothing relative to it can heal."""
    values = torch.rand(2, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(repeats)) + 10.0
    statistics = ClassStatistics(2, 32)
    for _ in range(repeats):
        statistics.update(values, torch.arange(2))
    statistics.update(values.repeat_interleave(repeats, 0), torch.arange(2).repeat_interleave(repeats))
    assert torch.equal(statistics.shared_gaussian(1e-9, relative=True).variance, torch.ones(32, dtype=torch.float64))
    small = ClassStatistics(1, 1).update(1.0 + 1e-6 * torch.tensor([[0.0], [1.0]]).double(), torch.zeros(2).long())
    assert float(small.shared_gaussian(0.0).variance) == pytest.approx(0.25e-12, rel=1e-6), "a real one stays"
