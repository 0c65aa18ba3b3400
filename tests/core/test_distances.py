"""Distances beside the products: laws, textbook limits, gradients, and bounded memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from protolearn.core import distances
from protolearn.core.distances import DISTANCES, get_distance, in_chunks, mahalanobis, minkowski
from protolearn.core.matching import all_matches, best_match
from protolearn.errors import UsageError

TRUE = ("squared_l2", "l2", "cosine_distance", "manhattan", "minkowski", "chebyshev", "canberra", "bray_curtis")


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


@pytest.mark.parametrize("name", sorted(DISTANCES))
def test_all_forms_agree(name: str) -> None:
    measure, x, p = get_distance(name), draw(5, 3, 4), draw(6, 4, seed=1)
    table = measure.pairwise(x, p)
    assert table.shape == (5, 3, 6)
    torch.testing.assert_close(table, measure.paired(x.unsqueeze(2), p))
    best, at = best_match(x, p, measure)
    torch.testing.assert_close(best, table.min(1).values)
    assert torch.equal(at, table.argmin(1))
    own = draw(5, 6, 4, seed=2)  # prototypes of each input
    torch.testing.assert_close(measure.pairwise(x, own), measure.paired(x.unsqueeze(2), own.unsqueeze(1)))


@pytest.mark.parametrize("name", sorted(DISTANCES))
def test_never_negative_and_nothing_at_itself(name: str) -> None:
    measure, x = get_distance(name), draw(7, 5)
    assert bool((measure.pairwise(x, x) >= 0).all())
    # the soft forms of the code weigh a gap of zero coordinates by their spread, which is 0 too
    assert float(measure.paired(x, x).max()) <= (0.25 if name == "chebyshev_smooth" else 1e-12)


@pytest.mark.parametrize("name", TRUE)
def test_textbook_distances_are_symmetric(name: str) -> None:
    measure, x, p = get_distance(name), draw(4, 5), draw(6, 5, seed=1)
    torch.testing.assert_close(measure.pairwise(x, p), measure.pairwise(p, x).T)


def test_limits_of_minkowski() -> None:
    x, p = draw(4, 5), draw(6, 5, seed=1)
    torch.testing.assert_close(minkowski(1.0).pairwise(x, p), get_distance("manhattan").pairwise(x, p))
    torch.testing.assert_close(minkowski(2.0).pairwise(x, p), get_distance("l2").pairwise(x, p))
    torch.testing.assert_close(
        minkowski(200.0).pairwise(x, p), get_distance("chebyshev").pairwise(x, p), rtol=1e-2, atol=0
    )
    with pytest.raises(UsageError, match="at least 1"):
        minkowski(0.5)


def test_mahalanobis_with_the_identity_is_euclid_and_a_factor_is_a_map() -> None:
    x, p, factor = draw(4, 5), draw(6, 5, seed=1), torch.tril(draw(5, 5, seed=2))
    torch.testing.assert_close(mahalanobis(x, p, torch.eye(5).double()), get_distance("l2").pairwise(x, p))
    torch.testing.assert_close(
        mahalanobis(x, p, factor @ factor.T), get_distance("l2").pairwise(x @ factor, p @ factor)
    )


@pytest.mark.parametrize("name", sorted(set(DISTANCES) - {"hamming_hard"}))
def test_gradients_of_the_hot_path_are_those_of_the_formula(name: str) -> None:
    measure = get_distance(name)
    x, p = draw(4, 3, 5).requires_grad_(), draw(6, 5, seed=1).requires_grad_()
    grads = torch.autograd.grad(best_match(x, p, measure)[0].sum(), (x, p))
    plain = measure.paired(x.unsqueeze(2), p).amin(1).sum()
    for got, want in zip(grads, torch.autograd.grad(plain, (x, p)), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-8)
    table = torch.autograd.grad(all_matches(x, p, measure).amin(1).sum(), (x, p))
    for got, want in zip(table, grads, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", sorted(DISTANCES))
def test_gradients_stay_finite_where_token_and_prototype_meet(name: str) -> None:
    x = draw(3, 4).requires_grad_()
    table = get_distance(name).pairwise(x, x.detach()[:2])
    (grad,) = torch.autograd.grad(table.sum(), x)
    assert bool(torch.isfinite(grad).all())


def test_no_table_of_differences_is_made_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """60 x 50 pairs of width 100 are 2.4 MB of differences; with 64 kB at a time no chunk may hold more."""
    sizes = []

    def paired(x: Tensor, p: Tensor) -> Tensor:
        gaps = (x - p).abs()
        sizes.append(gaps.numel() * gaps.element_size())
        return gaps.sum(-1)

    x, p = draw(60, 100).requires_grad_(), draw(50, 100, seed=1)
    table = in_chunks(paired, budget=2**16)(x, p)
    torch.testing.assert_close(table, torch.cdist(x, p, p=1))
    table.sum().backward()  # computed again on the way back, chunk by chunk
    assert max(sizes) <= 2**16
    assert len(sizes) > 40


def test_hard_bits_pass_the_gradient_straight_through() -> None:
    x = torch.tensor([[0.2, 0.9]], requires_grad=True)
    distance = get_distance("hamming_hard").paired(x, torch.tensor([[1.0, 0.0]]))
    assert distance.item() == 2.0
    distance.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[-1.0, 1.0]]


def test_bray_curtis_with_signs() -> None:
    """The signed denominator nearly vanishes where x and -x meet; the absolute one does not."""
    x = draw(1, 6)
    assert float(get_distance("bray_curtis_signed").paired(x, -x)) > 100
    assert float(get_distance("bray_curtis_abs").paired(x, -x)) == pytest.approx(1.0, abs=1e-3)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(UsageError, match="did you mean 'chebyshev'"):
        get_distance("chebychev")
    assert distances.l2.farthest == float("inf")


def test_a_token_without_direction_is_at_one_from_everything() -> None:
    measure, zero = get_distance("cosine_distance"), torch.zeros(1, 3)
    for other in (torch.tensor([[1.0, 2.0, 3.0]]), zero):
        assert measure.pairwise(zero, other).item() == pytest.approx(1.0)
        assert measure.paired(zero, other).item() == pytest.approx(1.0)
