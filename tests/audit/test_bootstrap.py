"""Intervals by resampling: they cover what they should, repeat with a seed, and are absent where they say nothing."""

from __future__ import annotations

import math

import torch

from protolearn.audit.bootstrap import interval_of, mean_interval, mean_of, resampled


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_every_sample_has_the_size_of_the_data() -> None:
    weights = resampled(7, 50, draw())
    assert (weights.sum(1) == 7).all() and (weights >= 0).all()


def test_a_mean_is_covered_about_as_often_as_is_said() -> None:
    covered = 0
    for seed in range(200):
        low, high = mean_interval(torch.randn(60, generator=draw(seed)), draw(seed), draws=300) or (0, 0)
        covered += low <= 0 <= high
    assert 0.88 <= covered / 200 <= 0.99


def test_the_same_seed_gives_the_same_interval_and_chunks_do_not_matter() -> None:
    values = torch.rand(40, generator=draw())
    assert mean_interval(values, draw(1)) == mean_interval(values, draw(1))
    assert mean_interval(values, draw(1)) != mean_interval(values, draw(2))


def test_what_cannot_be_resampled_has_no_interval() -> None:
    assert mean_interval(torch.tensor([1.0]), draw()) is None
    assert mean_interval(torch.tensor([math.nan, math.nan, 1.0]), draw()) is None
    assert interval_of(lambda weights: torch.full((len(weights),), math.nan), 5, draw()) is None
    assert mean_of(torch.tensor([math.nan])) is None


def test_draws_may_be_put_round_a_value_within_bounds() -> None:
    """A statistic that rises when items are drawn twice: the largest share of one item."""

    def peak(weights: torch.Tensor) -> torch.Tensor:
        return weights.amax(1) / weights.sum(1)

    free = interval_of(peak, 10, draw())
    assert free is not None and free[0] > 0.1, "no draw is as low as the figure of all items once"
    centred = interval_of(peak, 10, draw(), around=0.1)
    assert centred is not None and centred[0] < 0.1 < centred[1]
    assert math.isclose(centred[1] - centred[0], free[1] - free[0])
    bounded = interval_of(peak, 10, draw(), around=0.1, within=(0.08, 0.12))
    assert bounded == (0.08, 0.12)
