"""Update rules: the same result however the tokens come, nothing unseen moved, EM that never gets worse."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from protolearn.core.updates import (
    Mixture,
    Moments,
    Prior,
    em_step,
    fit_mixture,
    group_moments,
    group_sums,
    k_means,
    merge_components,
    merge_moments,
    mixture_log_likelihood,
    moving_average,
    moving_average_in_order,
    running_mean,
    share_sums,
    split_components,
)

seeds = st.integers(0, 10**6)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(seed: int, n: int = 23, count: int = 4, dim: int = 3) -> tuple[Tensor, Tensor]:
    g = generator(seed)
    return torch.randn(n, dim, generator=g) + 100.0, torch.randint(-1, count, (n,), generator=g)


@settings(max_examples=25)
@given(seeds, st.integers(0, 23))
def test_group_sums(seed: int, n: int) -> None:
    x, rows = draw(seed, n)
    weights = torch.rand(n, generator=generator(seed))
    for w in (None, weights):
        sums, totals = group_sums(x, rows, 6, w)
        each = torch.ones(n) if w is None else w
        for p in range(6):
            assert torch.allclose(sums[p], (x * each.unsqueeze(1))[rows == p].sum(0), rtol=1e-4)
            assert totals[p].item() == pytest.approx(each[rows == p].sum().item(), abs=1e-5)
    with pytest.raises(ValueError, match="between -1 and 1"):
        group_sums(torch.zeros(1, 1), torch.tensor([2]), 2)


def test_share_sums_are_group_sums_of_a_hard_assignment() -> None:
    x, rows = draw(0)
    shares = (rows.unsqueeze(1) == torch.arange(4)).float()
    for soft, hard in zip(share_sums(x, shares), group_sums(x, rows, 4), strict=True):
        assert torch.allclose(soft, hard)


@settings(max_examples=25)
@given(seeds, st.integers(1, 9))
def test_running_moments_do_not_depend_on_batches(seed: int, batch: int) -> None:
    x, rows = draw(seed)
    start = torch.full((5, 3), 7.0)  # the fifth is never seen
    whole = group_moments(x.double(), rows, 5)
    means, counts = start, torch.zeros(5)
    moments = Moments(torch.zeros(5, 3), torch.zeros(5, 3), torch.zeros(5))
    for part in torch.arange(23).split(batch):
        means, counts = running_mean(means, counts, *group_sums(x[part], rows[part], 5))
        moments = merge_moments(moments, group_moments(x[part], rows[part], 5))
    seen = counts > 0
    assert counts.tolist() == whole.counts.tolist() == moments.counts.tolist()
    assert torch.allclose(means[seen].double(), whole.means[seen], atol=1e-4)
    assert torch.equal(means[~seen], start[~seen])
    assert torch.allclose(moments.means[seen].double(), whole.means[seen], atol=1e-4)
    assert torch.allclose(moments.variances[seen].double(), whole.variances[seen], atol=1e-3)
    for p in range(4):
        if seen[p]:
            assert torch.allclose(whole.variances[p], x[rows == p].double().var(0, correction=0), atol=1e-6)


def test_a_running_mean_keeps_its_digits_after_many_tokens() -> None:
    means, counts = torch.full((1, 1), 1000.0), torch.tensor([1e7])
    for _ in range(100):
        means, counts = running_mean(means, counts, torch.tensor([[1000.0 * 5]]), torch.tensor([5.0]))
    assert means.item() == 1000.0


def test_moving_average() -> None:
    x = torch.randn(3, 4)
    target = torch.randn(3, 4, requires_grad=True)
    moved = moving_average(x, target, 0.9, torch.tensor([True, True, False]), normalise=True)
    assert torch.allclose(moved[:2].norm(dim=1), torch.ones(2))
    assert torch.equal(moved[2], x[2])
    moved.sum().backward()
    assert target.grad is not None
    assert target.grad[:2].ne(0).any()
    assert target.grad[2].eq(0).all()
    with pytest.raises(ValueError, match="momentum"):
        moving_average(x, x, 1.1)


@settings(max_examples=25)
@given(seeds, st.sampled_from([0.0, 0.3, 0.99, 1.0]), st.booleans())
def test_a_moving_average_in_order_is_the_loop(seed: int, momentum: float, normalise: bool) -> None:
    x, rows = draw(seed)
    vectors = torch.randn(5, 3, generator=generator(seed))
    want = vectors.clone()
    for value, row in zip(x, rows.tolist(), strict=True):
        if row >= 0:
            want[row] = momentum * want[row] + (1 - momentum) * value
    if normalise:
        seen = torch.bincount(rows + 1, minlength=6)[1:] > 0
        want[seen] = torch.nn.functional.normalize(want[seen], dim=1)
    got = moving_average_in_order(vectors, x, rows, momentum, normalise=normalise)
    assert torch.allclose(got, want, rtol=1e-4, atol=1e-4)


def blobs(count: int, each: int, dim: int = 8) -> tuple[Tensor, Tensor]:
    centres = torch.randn(count, dim, generator=generator(1)) * 20
    labels = torch.arange(count).repeat_interleave(each)
    return centres[labels] + torch.randn(count * each, dim, generator=generator(2)), labels


def test_k_means_finds_separate_groups_whatever_the_sample() -> None:
    x, labels = blobs(12, 40)
    for sample in (None, 100):
        found = k_means(x, 12, generator=generator(), sample=sample)
        pairs = torch.unique(torch.stack([labels, found.rows]), dim=1)
        assert pairs.shape[1] == 12
        assert found.counts.tolist() == [40] * 12
        sums, _ = group_sums(x, found.rows, 12)
        assert torch.allclose(found.centres, sums / 40, atol=1e-4)
        assert found.inertia == pytest.approx((x - found.centres[found.rows]).square().sum().item(), rel=1e-4)


def test_k_means_repeats_itself() -> None:
    x, _ = blobs(5, 30)
    one, two = (k_means(x, 7, generator=generator(3), sample=50) for _ in range(2))
    assert torch.equal(one.centres, two.centres)
    assert torch.equal(one.rows, two.rows)


@settings(max_examples=30)
@given(seeds, st.integers(1, 12), st.integers(1, 12))
def test_k_means_leaves_no_centre_empty_while_tokens_differ(seed: int, n: int, count: int) -> None:
    x = torch.randn(n, 2, generator=generator(seed))
    if count > n:
        with pytest.raises(ValueError, match=f"cannot have {count} centres"):
            k_means(x, count, generator=generator())
        return
    start = torch.full((count, 2), 50.0)  # all far away and equal: all but one are empty at first
    for begin in (None, start):
        found = k_means(x, count, generator=generator(seed), start=begin, iterations=100)
        assert (found.counts > 0).all()
        assert found.centres.isfinite().all()


def test_k_means_of_equal_tokens_and_of_bad_ones() -> None:
    found = k_means(torch.ones(6, 2), 3, generator=generator())
    assert found.inertia == 0
    assert found.centres.eq(1).all()
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="finite"):
            k_means(torch.full((3, 2), bad), 2, generator=generator())
    with pytest.raises(ValueError, match="start must be"):
        k_means(torch.rand(4, 2), 2, generator=generator(), start=torch.zeros(3, 2))


def mixture(count: int = 3, dim: int = 2, seed: int = 0) -> Mixture:
    g = generator(seed)
    logs = torch.randn(count, generator=g, dtype=torch.double).log_softmax(0)
    return Mixture(
        torch.randn(count, dim, generator=g, dtype=torch.double),
        torch.rand(count, dim, generator=g, dtype=torch.double) + 0.3,
        logs,
    )


@settings(max_examples=30)
@given(seeds, st.sampled_from([0.0, 0.3, 5.0]), st.integers(1, 4))
def test_em_never_gets_worse(seed: int, strength: float, count: int) -> None:
    g = generator(seed)
    x = torch.randn(2, 15, 2, generator=g, dtype=torch.double)
    mask = torch.rand(2, 15, generator=g) > 0.2
    mask[:, :3] = True
    start = mixture(count, seed=seed)
    prior = Prior(start.means, start.variances, strength) if strength else None

    def objective(m: Mixture) -> Tensor:
        value = mixture_log_likelihood(x, m, mask)
        if prior is not None:
            v, gap = m.variances, (prior.means - m.means).square()
            expected = -0.5 * (v.log() + (prior.variances + gap) / v + math.log(2 * math.pi)).sum(-1)
            value = value + prior.strength * (m.log_weights + expected).sum(-1)
        return value

    current, before = start, objective(start)
    for _ in range(6):
        current, q = em_step(x, current, mask, prior=prior, floor=1e-9)
        after = objective(current)
        assert (after >= before - 1e-8).all()
        before = after
        assert torch.allclose(current.log_weights.exp().sum(-1), torch.ones(2, dtype=torch.double))
        assert (current.variances > 0).all()
        assert torch.allclose(q.sum(-1), mask.double())


def test_map_em_at_its_limits() -> None:
    x = torch.randn(30, 2, dtype=torch.double)
    start = mixture()
    heavy, _ = fit_mixture(x, start, 3, prior=Prior(start.means, start.variances, 1e12))
    assert torch.allclose(heavy.means, start.means)
    assert torch.allclose(heavy.variances, start.variances)
    assert torch.allclose(heavy.log_weights.exp(), torch.full((3,), 1 / 3, dtype=torch.double))
    light, _ = fit_mixture(x, start, 3, prior=Prior(start.means, start.variances, 1e-9))
    plain, _ = fit_mixture(x, start, 3)
    assert torch.allclose(light.means, plain.means, atol=1e-5)
    order = torch.randperm(30)
    shuffled, _ = fit_mixture(x[order], start, 3)
    assert torch.allclose(shuffled.means, plain.means)


def test_em_far_from_the_origin_in_single_precision() -> None:
    g = generator()
    x = torch.randn(400, 4, generator=g) + 1000.0
    start = Mixture(x[:2].clone(), torch.ones(2, 4), torch.zeros(2).log_softmax(0))
    fitted, _ = fit_mixture(x, start, 5)
    exact, _ = fit_mixture(x.double(), Mixture(*(part.double() for part in start)), 5)
    assert torch.allclose(fitted.means.double(), exact.means, atol=1e-2)
    assert torch.allclose(fitted.variances.double(), exact.variances, atol=1e-2)


def test_em_without_tokens_changes_nothing_and_never_nan() -> None:
    start = mixture()
    empty = torch.zeros(2, 4, dtype=torch.bool)
    kept, q = em_step(torch.randn(2, 4, 2), start, empty)
    assert torch.allclose(kept.means, start.means.expand(2, -1, -1))
    assert torch.allclose(kept.log_weights, start.log_weights.expand(2, -1))
    assert q.eq(0).all()
    away = Mixture(torch.tensor([[0.0], [1e6]]), torch.ones(2, 1), torch.zeros(2))
    fitted, _ = em_step(torch.randn(9, 1), away)
    assert fitted.means[1].item() == 1e6
    assert fitted.log_weights[1].item() == float("-inf")
    again, _ = em_step(torch.randn(9, 1), fitted)
    assert again.means.isfinite().all()


def test_em_is_differentiable() -> None:
    x = torch.randn(2, 5, 2, dtype=torch.double, requires_grad=True)
    start = mixture()
    prior = Prior(start.means, start.variances, 1.0)
    mask = torch.tensor([[True] * 5, [True, True, True, False, False]])
    assert torch.autograd.gradcheck(lambda x: tuple(fit_mixture(x, start, 2, mask, prior=prior)[0]), (x,))


@settings(max_examples=25)
@given(seeds, st.floats(0.1, 0.9))
def test_merging_undoes_splitting(seed: int, apart: float) -> None:
    whole = mixture(4, seed=seed)
    parts = split_components(whole, torch.tensor([2, 0]), apart=apart)
    assert len(parts.means) == 6
    assert (parts.variances > 0).all()
    back = merge_components(parts, torch.tensor([0, 1, 2, 3, 2, 0]))
    for one, two in zip(back, whole, strict=True):
        assert torch.allclose(one, two)


def test_merging_components_without_weight() -> None:
    pair = Mixture(torch.tensor([[0.0], [2.0], [5.0]]), torch.ones(3, 1), torch.tensor([-math.inf, -math.inf, 0.0]))
    merged = merge_components(pair, torch.tensor([0, 0, 1]))
    assert merged.means.tolist() == [[1.0], [5.0]]
    assert merged.log_weights.tolist() == [-math.inf, 0.0]
    with pytest.raises(ValueError, match="at least once"):
        merge_components(pair, torch.tensor([0, 0, 2]))


def test_k_means_ends_where_nothing_moves_though_a_centre_has_no_token() -> None:
    draw = torch.Generator().manual_seed(0)
    found = k_means(torch.ones(6, 2), 3, generator=draw, iterations=50, tolerance=0.0)
    assert found.iterations < 5 and found.counts.sum() == 6
