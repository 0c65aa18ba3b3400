"""Laws of the relative distance and its cost; the slopes written out are the slopes of the graph."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from protolearn.objectives.quantisation import (
    quantisation,
    quantisation_slopes,
    relative_distance,
    transferred,
)

sizes = st.floats(0, 1e6, allow_subnormal=False)
TRANSFERS = [("identity", 1.0), ("sigmoid", 10.0), ("sigmoid", 1.0)]


@given(sizes, sizes, st.floats(1e-3, 1e3))
def test_relative_distance_is_bounded_antisymmetric_and_without_unit(a: float, b: float, unit: float) -> None:
    own, other = torch.tensor([a]).double(), torch.tensor([b]).double()
    mu = relative_distance(own, other)
    assert bool((mu.abs() <= 1).all())
    assert torch.equal(mu, -relative_distance(other, own))
    torch.testing.assert_close(relative_distance(unit * own, unit * other), mu)
    assert bool((mu < 0).all()) == (a < b) or abs(a - b) < 1e-6 * max(a, b)


@pytest.mark.parametrize(("transfer", "sharpness"), TRANSFERS)
@given(st.lists(st.tuples(sizes, sizes), min_size=1, max_size=5))
def test_slopes_are_those_of_the_graph(transfer: str, sharpness: float, pairs: list[tuple[float, float]]) -> None:
    own, other = torch.tensor(pairs).double().unbind(1)
    own, other = own.clone().requires_grad_(), other.clone().requires_grad_()
    cost = transferred(relative_distance(own, other), transfer, sharpness)
    slopes = quantisation_slopes(own.detach(), other.detach(), transfer, sharpness)
    torch.testing.assert_close(slopes.cost, cost.detach())
    by_own, by_other = torch.autograd.grad(cost.sum(), [own, other])
    both = (own + other).detach() > 0  # where both are 0 the cost has no slope
    torch.testing.assert_close(slopes.own[both], by_own[both])
    torch.testing.assert_close(slopes.other[both], by_other[both])
    assert bool((slopes.own >= 0).all() and (slopes.other <= 0).all()), "own nearer and rival farther never cost"


def by_loop(distances: Tensor, own: Tensor, other: Tensor, transfer: str, sharpness: float) -> float:
    costs = []
    for d, mine, theirs in zip(distances.tolist(), own.tolist(), other.tolist(), strict=True):
        plus = min((v for v, m in zip(d, mine, strict=True) if m), default=None)
        minus = min((v for v, m in zip(d, theirs, strict=True) if m), default=None)
        if plus is not None and minus is not None:
            mu = (plus - minus) / (plus + minus)
            costs.append(mu if transfer == "identity" else 1 / (1 + 2.718281828459045 ** (-sharpness * mu)))
    return sum(costs) / max(1, len(costs))


@pytest.mark.parametrize(("transfer", "sharpness"), TRANSFERS)
def test_cost_equals_a_loop(transfer: str, sharpness: float) -> None:
    distances = torch.rand(9, 7).double()
    own = torch.rand(9, 7) < 0.4
    own[0], own[1] = False, True  # no own prototype; no other
    other = ~own
    got = quantisation(distances, own, other, transfer, sharpness)
    assert float(got) == pytest.approx(by_loop(distances, own, other, transfer, sharpness), rel=1e-12)


def test_a_case_that_cannot_be_judged_has_neither_cost_nor_gradient() -> None:
    distances = torch.rand(2, 3).double().requires_grad_()
    own = torch.tensor([[True, True, True], [False, False, False]])
    cost = quantisation(distances, own, ~own & torch.tensor([[True], [False]]))
    cost.backward()
    assert float(cost) == 0
    assert torch.equal(distances.grad, torch.zeros(2, 3).double())


def test_infinite_distances_of_banned_prototypes_do_no_harm_and_nan_shows() -> None:
    distances = torch.tensor([[1.0, float("inf"), 3.0]], requires_grad=True)
    own = torch.tensor([[True, True, False]])
    cost = quantisation(distances, own, ~own)
    cost.backward()
    assert float(cost) == -0.5
    assert bool(torch.isfinite(distances.grad).all())
    assert bool(quantisation(torch.tensor([[float("nan"), 1.0]]), own[:, :2], ~own[:, 1:]).isnan())
