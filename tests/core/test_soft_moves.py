"""One step of soft assignment and moving average: where prototypes may go, who stays, and odd batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from protolearn.core.assignment import sinkhorn, top_k_weights
from protolearn.core.soft_moves import soft_move


def unit(seed: int, rows: int, dim: int = 16) -> Tensor:
    return F.normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


def case(rows: int = 64, classes: int = 10, each: int = 6, present: int = 7) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return prototypes, cases of some of the classes, who may be assigned to what, and the prototypes' classes."""
    owner = torch.arange(classes).repeat_interleave(each)
    labels = torch.arange(rows) % present
    return unit(0, classes * each), unit(1, rows), labels.unsqueeze(1) == owner, owner


@pytest.mark.parametrize("k", [0, 1, 5, 50])
@pytest.mark.parametrize("momentum", [0.0, 0.9, 1.0])
def test_prototypes_stay_on_the_sphere_and_those_of_absent_classes_where_they_are(k: int, momentum: float) -> None:
    before, values, own, owner = case()
    move = soft_move(before, values, own, k=k, momentum=momentum)
    lengths = torch.linalg.vector_norm(move.vectors, dim=1)
    torch.testing.assert_close(lengths, torch.ones_like(lengths), rtol=0, atol=1e-6)
    assert torch.equal(move.vectors[owner >= 7], before[owner >= 7])
    if momentum < 1:
        seen = move.kept.any(0)
        assert (move.vectors[seen] != before[seen]).any(1).all()
    most = 6 if k in (0, 50) else k
    assert move.kept.sum(1).tolist() == [most] * 64
    assert not (move.kept & ~own).any()
    torch.testing.assert_close(move.shares().sum(1), torch.ones(64))


def test_three_rounds_are_nearly_as_balanced_as_fifty() -> None:
    scores = unit(0, 256, 128) @ unit(1, 60, 128).T
    few, many = (sinkhorn(scores, iterations=n, log_domain=False) for n in (3, 50))
    torch.testing.assert_close(few.sum(1), torch.ones(256), rtol=0, atol=1e-5)
    assert float(((few - many).abs() / many).max()) < 0.05
    assert float((few.sum(0) * 60 / 256 - 1).abs().max()) < 0.05


def test_the_step_by_loops() -> None:
    before, values, own, _ = case(rows=20, classes=3, each=4, present=2)
    before, values = before.double(), values.double()
    shares = sinkhorn(values @ before.T)
    table = torch.zeros(20, 12, dtype=torch.float64)
    for i in range(20):
        mine = [(float(shares[i, p]), p) for p in range(12) if own[i, p]]
        best = sorted(mine, reverse=True)[:2]
        for share, p in best:
            table[i, p] = share / sum(s for s, _ in best)
    move = soft_move(before, values, own, k=2, momentum=0.8)
    for p in range(12):
        total = table[:, p].sum()
        if total == 0:
            assert torch.equal(move.vectors[p], before[p])
            continue
        mean = sum((table[i, p] / total * values[i] for i in range(20)), torch.zeros(16, dtype=torch.float64))
        torch.testing.assert_close(move.vectors[p], F.normalize(0.8 * before[p] + 0.2 * mean, dim=0))


def test_the_gradient_goes_through_the_step_alone_and_shrinks_with_momentum() -> None:
    before, values, own, _ = case()
    lengths = {}
    for momentum in (1.0, 0.999, 0.99):
        leaf = values.clone().requires_grad_()
        move = soft_move(before, leaf, own, k=5, momentum=momentum)
        assert not move.balanced.requires_grad
        (move.vectors * torch.linspace(-1, 1, 16)).sum().backward()
        assert leaf.grad is not None
        lengths[momentum] = float(leaf.grad.norm())
    assert lengths[1.0] == 0
    assert lengths[0.99] / lengths[0.999] == pytest.approx(10, rel=0.05)


@pytest.mark.parametrize("epsilon", [0.05, 0.01, 0.001])
def test_small_epsilon_does_not_overflow(epsilon: float) -> None:
    before, values, own, _ = case()
    move = soft_move(before, values, own, k=5, momentum=0.9, epsilon=epsilon)
    assert torch.isfinite(move.vectors).all() and torch.isfinite(move.shares()).all()


@pytest.mark.parametrize("rows", [0, 1, 4])
@pytest.mark.parametrize("allowed", ["none", "some", "all"])
def test_odd_batches(rows: int, allowed: str) -> None:
    before, values = unit(0, 6), unit(1, rows)
    own = torch.zeros(rows, 6, dtype=torch.bool) if allowed == "none" else torch.ones(rows, 6, dtype=torch.bool)
    if allowed == "some" and rows:
        own[0] = False
    move = soft_move(before, values, own, k=2, momentum=0.9)
    assert torch.isfinite(move.vectors).all() and torch.isfinite(move.balanced).all()
    assert torch.equal(move.shares().sum(1) > 0, own.any(1))
    if not own.any():
        assert torch.equal(move.vectors, before)


def test_cases_that_take_no_part_change_nothing() -> None:
    before, values, own, _ = case()
    own[::3] = False
    all_of_them = soft_move(before, values, own, k=5, momentum=0.9)
    without = soft_move(before, values[own.any(1)], own[own.any(1)], k=5, momentum=0.9)
    torch.testing.assert_close(all_of_them.vectors, without.vectors)
    torch.testing.assert_close(all_of_them.shares()[own.any(1)], without.shares())


def test_wrong_shapes() -> None:
    wrong: tuple[Any, ...] = (torch.eye(3), torch.eye(3)[:2], torch.ones(3, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"expected vectors \(P, D\)"):
        soft_move(*wrong, k=1, momentum=0.9)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_the_first_of_equal_weights_are_kept(k: int) -> None:
    drawn = torch.randint(0, 3, (40, 7), generator=torch.Generator().manual_seed(0)).float()
    order = drawn.argsort(dim=1, descending=True, stable=True)[:, :k]
    assert torch.equal(top_k_weights(drawn, k), drawn * torch.zeros_like(drawn).scatter_(1, order, 1.0))
