"""Temperatures by density and the contrast with prototypes: laws and odd batches."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from protolearn.objectives.prototype_contrast import density_temperatures, prototype_contrast


@given(seed=st.integers(0, 99), tau=st.floats(0.05, 3.0), count=st.integers(1, 7))
def test_temperatures_have_the_mean_that_was_asked_for(seed: int, tau: float, count: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    values, centres = torch.randn(30, 3, generator=draw), torch.randn(count, 3, generator=draw)
    rows = torch.randint(-1, count, (30,), generator=draw)
    found = density_temperatures(values, centres, rows, tau)
    torch.testing.assert_close(found.mean().item(), tau, rtol=1e-5, atol=1e-6)
    assert bool((found > 0).all())
    shuffled = torch.randperm(30, generator=draw)
    again = density_temperatures(values[shuffled], centres, rows[shuffled], tau)
    torch.testing.assert_close(found, again)


def test_clusters_without_spread_take_the_largest_or_the_mean() -> None:
    values = torch.tensor([[0.0], [4.0], [7.0], [8.0]])
    found = density_temperatures(values, torch.tensor([[2.0], [7.5], [9.0]]), torch.tensor([0, 0, 1, -1]))
    assert found[0] == found[1] == found[2]  # one case, and none: as the largest
    none = density_temperatures(values, values, torch.arange(4), 0.5)
    assert none.tolist() == [0.5] * 4


def test_rows_without_a_prototype_take_no_part_and_prototypes_get_no_gradient() -> None:
    draw = torch.Generator().manual_seed(0)
    x, c = torch.randn(6, 4, generator=draw, requires_grad=True), torch.randn(3, 4, generator=draw, requires_grad=True)
    rows = torch.tensor([0, 1, -1, 2, -1, 0])
    loss = prototype_contrast(x, c, rows, torch.tensor([0.5, 1.0, 2.0]))
    loss.backward()
    assert x.grad is not None and c.grad is None
    assert x.grad[[2, 4]].abs().sum() == 0 and x.grad[[0, 1, 3, 5]].abs().sum(1).min() > 0
    torch.testing.assert_close(
        loss, prototype_contrast(x[rows >= 0], c, rows[rows >= 0], torch.tensor([0.5, 1.0, 2.0]))
    )
    assert prototype_contrast(x, c, torch.full((6,), -1), 1.0).item() == 0
    assert prototype_contrast(x[:0], c, rows[:0], 1.0).item() == 0
