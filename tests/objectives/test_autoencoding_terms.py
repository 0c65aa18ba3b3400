"""Coverage, reconstruction and density terms against plain loops, and on batches a training run can meet."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from protolearn.core.measures import squared_l2
from protolearn.objectives.coverage import data_near_prototypes, prototypes_near_data
from protolearn.objectives.density import divergence_from_standard_normal, own_density, sampled_cross_entropy
from protolearn.objectives.reconstruction import squared_error_mean, squared_error_sum


def test_the_four_terms_of_a_toy_worked_by_hand() -> None:
    """Three cases, two prototypes, two pixels."""
    codes = torch.tensor([[0.0, 0.0], [1.0, 0.0], [3.0, 4.0]])
    distances = squared_l2.pairwise(codes, torch.tensor([[0.0, 1.0], [3.0, 0.0]]))
    torch.testing.assert_close(distances, torch.tensor([[1.0, 9.0], [2.0, 4.0], [18.0, 16.0]]))
    assert prototypes_near_data(distances).item() == pytest.approx((1 + 4) / 2, abs=1e-6)
    assert data_near_prototypes(distances).item() == pytest.approx((1 + 2 + 16) / 3, abs=1e-6)
    made, wanted = (
        torch.tensor([[0.5, 0.0], [1.0, 1.0], [0.0, 0.0]]),
        torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]]),
    )
    assert squared_error_sum(made, wanted).item() == pytest.approx((0.25 + 1 + 4) / 3, abs=1e-6)
    assert squared_error_mean(made, wanted).item() == pytest.approx((0.25 + 1 + 4) / 6, abs=1e-6)


@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 10**6))
def test_coverage_against_loops(batch: int, count: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    distances = torch.rand(batch, count, generator=g)
    distances[:, torch.rand(count, generator=g) < 0.3] = float("inf")  # inactive prototypes
    distances[torch.rand(batch, generator=g) < 0.2] = float("inf")  # inputs without a real position
    for term, rows in ((prototypes_near_data, distances.T), (data_near_prototypes, distances)):
        nearest = [min(row) for row in rows.tolist() if not math.isinf(min(row))]
        leaf = distances.clone().requires_grad_()
        value = term(leaf)
        assert value.item() == pytest.approx(sum(nearest) / len(nearest) if nearest else 0.0, abs=1e-6)
        value.backward()
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()


def test_nan_surfaces_in_every_term() -> None:
    broken = torch.tensor([[float("nan"), 1.0]])
    assert prototypes_near_data(broken).isnan()
    assert data_near_prototypes(broken).isnan()
    assert squared_error_sum(broken, broken).isnan()
    assert own_density(broken, torch.tensor([[True, False]])).isnan()


def test_a_reconstruction_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="reconstruction"):
        squared_error_sum(torch.zeros(2, 3), torch.zeros(2, 1))


def test_own_density_clips_at_both_ends_and_mixes_in_equal_parts() -> None:
    own = torch.tensor([[True, False]])
    for density, cost in ((50.0, -1.0), (-1e9, 10_000.0), (-3.0, 3.0)):
        leaf = torch.tensor([[density, 7.0]], requires_grad=True)
        value = own_density(leaf, own)
        assert value.item() == pytest.approx(cost)
        value.backward()
        assert leaf.grad is not None
        assert leaf.grad.tolist() == [[-1.0 if density == -3.0 else 0.0, 0.0]], "no reward beyond a clip"
    two = own_density(torch.tensor([[-2.0, -4.0]]), torch.tensor([[True, True]]))
    assert two.item() == pytest.approx(-math.log(0.5 * math.exp(-2) + 0.5 * math.exp(-4)), abs=1e-6)


def test_unlabelled_cases_do_not_count() -> None:
    logits = torch.randn(3, 4, 2)
    some = sampled_cross_entropy(logits, torch.tensor([1, -1, 0]))
    torch.testing.assert_close(some, sampled_cross_entropy(logits[[0, 2]], torch.tensor([1, 0])))
    assert sampled_cross_entropy(logits, torch.full((3,), -1)).item() == 0
    density, own = torch.randn(3, 2), torch.tensor([[True, False], [False, False], [False, True]])
    torch.testing.assert_close(own_density(density, own), own_density(density[[0, 2]], own[[0, 2]]))
    leaf = density.clone().requires_grad_()
    own_density(leaf, torch.zeros(3, 2, dtype=torch.bool)).backward()
    assert leaf.grad is not None
    assert leaf.grad.eq(0).all()


@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 10**6))
def test_the_average_of_logarithms_is_no_less_than_the_logarithm_of_the_average(
    batch: int, samples: int, seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    logits, labels = torch.randn(batch, samples, 3, generator=g), torch.randint(3, (batch,), generator=g)
    averaged = logits.softmax(-1).mean(1).gather(1, labels.unsqueeze(1)).log().mean()
    assert sampled_cross_entropy(logits, labels) >= -averaged - 1e-6


def test_divergence_against_torch_distributions() -> None:
    mean, log_variance = torch.randn(4, 1, 3), torch.randn(4, 1, 3)
    law = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    wanted: Tensor = torch.distributions.kl_divergence(law, torch.distributions.Normal(0.0, 1.0)).sum(-1).mean()
    torch.testing.assert_close(divergence_from_standard_normal(mean, log_variance), wanted)
