"""Likelihoods under mixtures of prototypes, by loops, and on cases that take no part."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from protolearn.objectives.mixture import mixture_likelihood, soft_prototype_likelihood, weights_by_class


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_both_forms_by_loops() -> None:
    similar, weights = 2 * drawn(0, 5, 6) - 1, drawn(1, 5, 6)
    own = torch.arange(6) % 2 == (torch.arange(5) % 2).unsqueeze(1)
    shares = weights * own
    shares = shares / shares.sum(1, keepdim=True)
    soft, mixed = [], []
    for i in range(5):
        each = [math.exp(float(similar[i, p]) / 0.2) for p in range(6)]
        soft.append(-sum(float(shares[i, p]) * math.log(each[p] / sum(each)) for p in range(6)))
        parts = [float(weights[i, p]) * each[p] for p in range(6)]
        mixed.append(-math.log(sum(x for p, x in enumerate(parts) if own[i, p]) / sum(parts)))
    assert float(soft_prototype_likelihood(similar, shares, 0.2)) == pytest.approx(sum(soft) / 5)
    assert float(mixture_likelihood(similar, weights, own, 0.2)) == pytest.approx(sum(mixed) / 5)
    assert float(mixture_likelihood(similar, weights, own, 0.2, "sum")) == pytest.approx(sum(mixed))


def test_one_prototype_a_class_makes_both_the_cross_entropy() -> None:
    similar = (2 * drawn(0, 4, 3) - 1).float()
    labels = torch.tensor([0, 2, 1, 2])
    own = torch.nn.functional.one_hot(labels, 3)
    wanted = torch.nn.functional.cross_entropy(similar / 0.1, labels)
    torch.testing.assert_close(soft_prototype_likelihood(similar, own.float(), 0.1), wanted)
    torch.testing.assert_close(mixture_likelihood(similar, torch.ones(4, 3), own.bool(), 0.1), wanted)


def test_cases_without_a_share_take_no_part_and_leave_no_nan() -> None:
    similar = (2 * drawn(0, 3, 4) - 1).requires_grad_()
    shares = torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 0], [0, 0.5, 0.5, 0]], dtype=torch.float64)
    some = torch.tensor([True, False, True])
    for loss, alone in (
        (
            soft_prototype_likelihood(similar, shares, 0.1),
            soft_prototype_likelihood(similar[some], shares[some], 0.1),
        ),
        (
            mixture_likelihood(similar, shares, shares > 0, 0.1),
            mixture_likelihood(similar[some], shares[some], shares[some] > 0, 0.1),
        ),
    ):
        torch.testing.assert_close(loss, alone)
        (gradient,) = torch.autograd.grad(loss, similar)
        assert torch.isfinite(gradient).all() and (gradient[1] == 0).all()
    nothing = torch.zeros(3, 4, dtype=torch.float64)
    assert float(soft_prototype_likelihood(similar.detach(), nothing, 0.1)) == 0
    assert float(mixture_likelihood(similar.detach(), nothing, nothing > 0, 0.1)) == 0
    assert float(soft_prototype_likelihood(similar.detach()[:0], nothing[:0], 0.1)) == 0


@given(st.integers(0, 999), st.lists(st.integers(-1, 3), min_size=1, max_size=9), st.integers(1, 4))
def test_weights_of_each_class_by_loops(seed: int, named: list[int], k: int) -> None:
    shares, owner = drawn(seed, 4, len(named)), torch.tensor(named)
    found = weights_by_class(shares, owner, k)
    for i in range(4):
        for label in {-1, 0, 1, 2, 3}:
            mine = [p for p, c in enumerate(named) if c == label]
            best = sorted(mine, key=lambda p: -float(shares[i, p]))[:k] if label >= 0 else []
            total = sum(float(shares[i, p]) for p in best)
            for p in mine:
                assert float(found[i, p]) == pytest.approx(float(shares[i, p]) / total if p in best else 0.0)


def test_wrong_requests() -> None:
    table = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="two tables"):
        soft_prototype_likelihood(table, table[:, :2], 0.1)
    with pytest.raises(ValueError, match="temperature must be positive"):
        mixture_likelihood(table, table, table > 0, 0.0)
    with pytest.raises(ValueError, match="k must be at least 1"):
        weights_by_class(table, torch.zeros(3, dtype=torch.long), 0)
    assert weights_by_class(table, torch.full((3,), -1), 1).tolist() == table.tolist()
