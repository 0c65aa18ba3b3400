"""Marginal likelihoods under a normal inverse-Wishart law: closed forms, laws, odd groups."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import multigammaln
from scipy.stats import multivariate_t
from torch import Tensor

from protolearn.core.gaussian_evidence import Expected, gaussian_evidence, log_split_ratio
from protolearn.errors import UsageError


def drawn(seed: int, rows: int, dim: int) -> Tensor:
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_hand(x: np.ndarray, expected: Expected) -> float:
    n, d = x.shape
    kappa, nu, psi = expected.strength, expected.freedom, expected.scatter * np.eye(d)
    m, mu = expected.mean.numpy(), x.mean(0)
    after = psi + (x - mu).T @ (x - mu) + kappa * n / (kappa + n) * np.outer(mu - m, mu - m)
    return float(
        -n * d / 2 * math.log(math.pi) + multigammaln((nu + n) / 2, d) - multigammaln(nu / 2, d)
        + nu / 2 * np.linalg.slogdet(psi)[1] - (nu + n) / 2 * np.linalg.slogdet(after)[1]
        + d / 2 * math.log(kappa / (kappa + n))
    )  # fmt: skip


@pytest.mark.parametrize(("rows", "dim"), [(1, 2), (3, 2), (50, 2), (4, 9), (12, 9), (40, 9)])
def test_it_is_the_closed_form_however_many_rows(rows: int, dim: int) -> None:
    """Groups of fewer rows than columns go another way, by the determinant of their own size."""
    x = drawn(rows, rows, dim)
    expected = Expected(torch.full((dim,), 0.3, dtype=torch.float64), 0.7, dim + 1.0, 0.2)
    found = gaussian_evidence(x, torch.zeros(rows, dtype=torch.long), 1, expected)
    assert float(found[0]) == pytest.approx(by_hand(x.numpy(), expected), rel=1e-10)


def test_rows_one_after_the_other_have_student_laws() -> None:
    """Evidence is the product of predictive t densities, which scipy knows: nothing of the formula is assumed."""
    x = drawn(0, 6, 2).numpy()
    m, kappa, nu, psi = np.zeros(2), 0.5, 3.0, 0.4 * np.eye(2)
    total = 0.0
    for row in x:
        freedom = nu - 1
        total += multivariate_t(m, psi * (kappa + 1) / (kappa * freedom), freedom).logpdf(row)
        gap = row - m
        psi = psi + kappa / (kappa + 1) * np.outer(gap, gap)
        m, kappa, nu = (kappa * m + row) / (kappa + 1), kappa + 1, nu + 1
    found = gaussian_evidence(
        torch.from_numpy(x), torch.zeros(6, dtype=torch.long), 1, Expected(torch.zeros(2), 0.5, 3.0, 0.4)
    )
    assert float(found[0]) == pytest.approx(total, rel=1e-9)


@given(seed=st.integers(0, 50), dim=st.sampled_from([1, 2, 7]), budget=st.sampled_from([1, 2000, None]))
def test_order_and_chunks_do_not_matter(seed: int, dim: int, budget: int | None) -> None:
    x = drawn(seed, 40, dim)
    draw = torch.Generator().manual_seed(seed)
    groups = torch.randint(-1, 6, (40,), generator=draw)
    expected = Expected.of(x)
    found = gaussian_evidence(x, groups, 7, expected, budget=budget)
    order = torch.randperm(40, generator=draw)
    torch.testing.assert_close(found, gaussian_evidence(x[order], groups[order], 7, expected), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(
        found, gaussian_evidence(x, groups[order], 7, expected, rows=order), rtol=1e-9, atol=1e-9
    )
    assert found[6] == 0 and bool(found.isfinite().all())


def test_far_from_the_origin_and_in_many_columns_it_stays_exact() -> None:
    x = drawn(0, 20, 3)
    far = Expected.of(x + 1e6)
    near = gaussian_evidence(x, torch.zeros(20, dtype=torch.long), 1, Expected.of(x))
    torch.testing.assert_close(
        gaussian_evidence(x + 1e6, torch.zeros(20, dtype=torch.long), 1, far), near, rtol=1e-6, atol=0
    )
    wide = torch.nn.functional.normalize(drawn(1, 30, 768), dim=1).float()
    found = gaussian_evidence(wide, torch.zeros(30, dtype=torch.long), 1, Expected.of(wide))
    assert float(found[0]) == pytest.approx(by_hand(wide.double().numpy(), Expected.of(wide)), rel=1e-8)


def test_two_gaussians_are_split_and_one_is_not() -> None:
    one = drawn(3, 100, 2)
    two = torch.cat([one[:50] - 4, one[50:] + 4])
    halves = torch.cat([torch.zeros(50, dtype=torch.long), torch.ones(50, dtype=torch.long)])
    for rows, cut, sign in ((two, halves, 1), (one, (one[:, 0] > one[:, 0].median()).long(), -1)):
        expected = Expected.of(rows, scatter=1.0)
        each, whole = (gaussian_evidence(rows, g, c, expected) for g, c in ((cut, 2), (cut * 0, 1)))
        assert sign * float(log_split_ratio(whole, torch.bincount(cut).unsqueeze(0), each.unsqueeze(0))[0]) > 0
    assert log_split_ratio(torch.zeros(1), torch.tensor([[0, 4]]), torch.zeros(1, 2))[0] == float("-inf")


def test_wrong_settings() -> None:
    x, groups = drawn(0, 4, 3), torch.zeros(4, dtype=torch.long)
    with pytest.raises(UsageError, match="freedom above 2"):
        gaussian_evidence(x, groups, 1, Expected(torch.zeros(3), 1.0, 2.0, 1.0))
    with pytest.raises(UsageError, match="mean"):
        gaussian_evidence(x, groups, 1, Expected(torch.zeros(2), 1.0, 4.0, 1.0))
    assert gaussian_evidence(x[:0], groups[:0], 2, Expected(torch.zeros(3), 1.0, 4.0, 1.0)).tolist() == [0.0, 0.0]
