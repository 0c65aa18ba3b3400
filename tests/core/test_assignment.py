"""Assignment: promised sums, masks, empty input, and the hard form against a plain search."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from protolearn.core.assignment import (
    mixture_log_joint,
    mixture_posterior,
    mutual_neighbours,
    nearest,
    one_hot,
    sinkhorn,
    softmax,
    top_k_weights,
)
from protolearn.core.measures import MEASURES, Measure, squared_l2

seeds = st.integers(0, 10**6)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(max_examples=40)
@given(st.integers(0, 30), st.integers(1, 40), seeds, st.sampled_from(list(MEASURES.values())), st.integers(8, 4000))
def test_nearest_is_the_plain_search(n: int, p: int, seed: int, measure: Measure, budget: int) -> None:
    g = generator(seed)
    x, protos = torch.randn(n, 5, generator=g), torch.randn(p, 5, generator=g)
    mask = torch.rand(n, generator=g) > 0.3
    table = measure.paired(x.unsqueeze(1), protos)
    want, rows = measure.nearest(table, 1) if n else (table.sum(1), table.sum(1).long())
    for limit in (None, budget):
        best, found = nearest(x, protos, measure, mask, budget=limit)
        assert torch.equal(found, rows.where(mask, -1))
        assert torch.allclose(best, want.where(mask, measure.farthest), atol=1e-5)
    assert one_hot(found, p).sum(1).tolist() == mask.float().tolist()


def test_nearest_over_leading_axes_equal_vectors_and_nan() -> None:
    x = torch.rand(3, 4, 33)
    best, rows = nearest(x, x.flatten(0, 1))
    assert best.eq(0).all()
    assert rows.tolist() == torch.arange(12).view(3, 4).tolist()
    x[1, 2, 0] = float("nan")
    best, _ = nearest(x, torch.rand(600, 33))
    assert best.isnan().nonzero().tolist() == [[1, 2]]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert nearest(x[:1], x[0])[1].tolist() == [[0, 1, 2, 3]]
    with pytest.raises(ValueError, match="P >= 1"):
        nearest(x, torch.zeros(0, 33))


@given(st.integers(1, 6), st.integers(1, 5), seeds, st.floats(0.01, 10))
def test_softmax_rows_sum_to_1(n: int, p: int, seed: int, temperature: float) -> None:
    g = generator(seed)
    scores, mask = torch.randn(2, n, p, generator=g) * 50, torch.rand(2, n, generator=g) > 0.3
    shares = softmax(scores, temperature, mask)
    assert torch.allclose(shares.sum(-1), mask.float(), atol=1e-5)
    assert (shares >= 0).all()


def test_a_token_that_may_use_no_prototype_has_no_share_and_no_bad_gradient() -> None:
    scores = torch.tensor([[0.0, 1.0], [0.0, 1.0]], requires_grad=True)
    hidden = scores.masked_fill(torch.tensor([[True, True], [False, False]]), float("-inf"))
    shares = softmax(hidden)
    assert shares[0].tolist() == [0.0, 0.0]
    shares[:, 0].sum().backward()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()


@settings(max_examples=40)
@given(st.integers(1, 8), st.integers(1, 6), seeds, st.booleans(), st.booleans(), st.booleans())
def test_sinkhorn_keeps_both_promises(
    n: int, p: int, seed: int, log_domain: bool, rows_last: bool, masked: bool
) -> None:
    g = generator(seed)
    scores = torch.rand(n, p, generator=g, dtype=torch.double)
    due = torch.rand(p, generator=g, dtype=torch.double) + 0.1
    due /= due.sum()
    mask = torch.rand(n, generator=g) > 0.3 if masked else None
    taking_part = n if mask is None else int(mask.sum())
    plan = sinkhorn(
        scores,
        epsilon=0.5,
        iterations=400,
        columns=due,
        mask=mask,
        tolerance=1e-9,
        log_domain=log_domain,
        rows_last=rows_last,
    )
    assert (plan >= 0).all()
    rows = torch.ones(n) if mask is None else mask.float()
    assert torch.allclose(plan.sum(1), rows.double(), atol=1e-6)
    assert torch.allclose(plan.sum(0), due * taking_part, atol=1e-6)


def test_sinkhorn_at_its_edges() -> None:
    for log_domain in (True, False):
        assert sinkhorn(torch.zeros(0, 3), log_domain=log_domain).shape == (0, 3)
        assert sinkhorn(torch.zeros(2, 3), mask=torch.zeros(2, dtype=torch.bool), log_domain=log_domain).eq(0).all()
        assert sinkhorn(torch.rand(3, 1), log_domain=log_domain).allclose(torch.ones(3, 1))
        none = sinkhorn(torch.rand(4, 2), columns=torch.tensor([1.0, 0.0]), log_domain=log_domain)
        assert none[:, 0].allclose(torch.ones(4))
        assert none[:, 1].eq(0).all()
        # a prototype that may not be used, a token that may use none
        scores = torch.rand(4, 3)
        scores[:, 1] = scores[2] = float("-inf")
        plan = sinkhorn(scores, epsilon=0.5, iterations=50, log_domain=log_domain)
        assert plan.isfinite().all()
        assert plan[:, 1].eq(0).all()
        assert plan.sum(1).allclose(torch.tensor([1.0, 1.0, 0.0, 1.0]))
    hard = sinkhorn(torch.rand(50, 7) * 100, epsilon=1e-3, iterations=20)  # the plain form would overflow here
    assert hard.isfinite().all()
    assert torch.allclose(hard.sum(1), torch.ones(50), atol=1e-4)
    plain, logs = (sinkhorn(torch.eye(6), iterations=3, log_domain=form) for form in (False, True))
    assert torch.allclose(plain, logs, atol=1e-6)
    for wrong in (torch.tensor([0.5, 0.4]), torch.tensor([1.5, -0.5]), torch.ones(1)):
        with pytest.raises(ValueError, match="2 shares"):
            sinkhorn(torch.rand(4, 2), columns=wrong)


@settings(max_examples=40)
@given(st.integers(1, 6), st.integers(1, 4), st.integers(1, 4), seeds)
def test_mixture_density_and_posterior(n: int, p: int, d: int, seed: int) -> None:
    g = generator(seed)
    x, means = torch.randn(2, n, d, generator=g) * 3 + 50, torch.randn(p, d, generator=g) * 3 + 50
    variances = torch.rand(p, d, generator=g) + 0.2
    logs = torch.randn(p, generator=g).log_softmax(0)
    want = torch.distributions.Normal(means, variances.sqrt()).log_prob(x.unsqueeze(2)).sum(-1) + logs
    assert torch.allclose(mixture_log_joint(x, means, variances, logs), want, atol=1e-3, rtol=1e-4)
    mask = torch.rand(2, n, generator=g) > 0.3
    far = x.masked_fill(~mask.unsqueeze(-1), float("nan")) * 1e3
    q = mixture_posterior(far, means, variances, logs, mask)
    assert torch.allclose(q.sum(-1), mask.float(), atol=1e-5)
    gone = logs.clone()
    gone[0] = float("-inf")
    assert mixture_posterior(x, means, variances, gone)[..., 0].eq(0).all()


def test_one_component_owns_everything() -> None:
    q = mixture_posterior(torch.randn(5, 2), torch.zeros(1, 2), torch.ones(1, 2), torch.zeros(1))
    assert q.eq(1).all()
    density = mixture_log_joint(torch.zeros(1, 3), torch.zeros(1, 3), torch.full((1, 3), 4.0), torch.zeros(1))
    assert density.item() == pytest.approx(-1.5 * math.log(2 * math.pi * 4))


def test_top_k_weights_breaks_ties_by_position() -> None:
    assert top_k_weights(torch.ones(1, 4), 2).tolist() == [[1, 1, 0, 0]]
    assert top_k_weights(torch.rand(2, 3), 9).count_nonzero() == 6
    with pytest.raises(ValueError, match="k must be"):
        top_k_weights(torch.ones(1, 1), 0)


@settings(max_examples=40)
@given(st.integers(1, 7), st.integers(1, 7), st.integers(1, 4), seeds)
def test_mutual_neighbours(n: int, p: int, k: int, seed: int) -> None:
    g = generator(seed)
    scores = torch.randint(0, 5, (n, p), generator=g).float()
    rows, columns = torch.rand(n, generator=g) > 0.2, torch.rand(p, generator=g) > 0.2
    pairs = mutual_neighbours(scores, k, rows, columns)
    for i in range(n):
        for j in range(p):
            real = bool(rows[i] and columns[j])
            of_row = sorted((-float(scores[i, c]), c) for c in range(p) if columns[c])[:k]
            of_column = sorted((-float(scores[r, j]), r) for r in range(n) if rows[r])[:k]
            want = real and j in [c for _, c in of_row] and i in [r for _, r in of_column]
            assert bool(pairs[i, j]) == want
    assert (pairs.sum(0) <= k).all()
    assert (pairs.sum(1) <= k).all()
    assert torch.equal(mutual_neighbours(scores.T, k, columns, rows).T, pairs)


def test_nearest_needs_the_same_width() -> None:
    with pytest.raises(ValueError, match=r"\(P, 4\)"):
        nearest(torch.zeros(2, 4), torch.zeros(3, 5), squared_l2)
    with pytest.raises(ValueError, match="mask must be bool"):
        nearest(torch.zeros(2, 4), torch.zeros(3, 4), squared_l2, torch.ones(3, dtype=torch.bool))
