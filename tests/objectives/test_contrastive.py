"""Contrastive terms: laws, plain loops, odd batches. The authors' numbers are with the methods that use them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from protolearn.objectives.contrastive import info_nce, supervised_contrastive


def draw(count: int, dim: int = 5, seed: int = 0) -> Tensor:
    return torch.randn(count, dim, dtype=torch.double, generator=torch.Generator().manual_seed(seed))


def plainly(vectors: Tensor, labels: list[int], temperature: float) -> float:
    """The formula, sum by sum."""
    unit, losses = F.normalize(vectors, dim=1), []
    for i, own in enumerate(labels):
        mates = [j for j, other in enumerate(labels) if other == own and j != i]
        if own < 0 or not mates:
            continue
        counted = [j for j, other in enumerate(labels) if j != i and other >= 0]
        total = math.log(sum(math.exp(float(unit[i] @ unit[j]) / temperature) for j in counted))
        losses.append(sum(total - float(unit[i] @ unit[j]) / temperature for j in mates) / len(mates))
    return sum(losses) / len(losses)


def test_supervised_contrast_is_its_formula() -> None:
    labels = [0, 1, 0, -1, 2, 1, 0]  # the only case of class 2 has nothing to be drawn to, -1 takes no part
    found = supervised_contrastive(draw(7), torch.tensor(labels), 0.3)
    assert float(found) == pytest.approx(plainly(draw(7), labels, 0.3), rel=1e-9)


def test_two_views_alone_are_supervised_contrast_with_a_class_for_each_case() -> None:
    first, second = draw(6), draw(6, seed=1)
    every = torch.cat([first, second])
    assert float(info_nce(first, second, 0.5)) == pytest.approx(
        float(supervised_contrastive(every, torch.arange(6).repeat(2), 0.5)), rel=1e-9
    )
    assert float(info_nce(7 * first, second, 0.5)) == pytest.approx(float(info_nce(first, second, 0.5)))
    assert float(info_nce(second, first)) == pytest.approx(float(info_nce(first, second)))


def test_equal_views_far_from_all_others_cost_nothing() -> None:
    assert float(info_nce(torch.eye(4), torch.eye(4), 0.02)) < 1e-6
    assert float(info_nce(torch.ones(4, 3), torch.ones(4, 3))) == pytest.approx(math.log(7))


def test_odd_batches_have_finite_terms_and_gradients() -> None:
    for count in (0, 1, 2):
        first, second = draw(count).requires_grad_(), draw(count, seed=1).requires_grad_()
        for labels in (torch.full((count,), -1), torch.zeros(count, dtype=torch.long), torch.arange(count)):
            loss = info_nce(first, second) + supervised_contrastive(first, labels)
            loss.backward()
            assert bool(loss.isfinite())
            assert first.grad is not None and bool(first.grad.isfinite().all())


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="two views"):
        info_nce(draw(2), draw(3))
    with pytest.raises(ValueError, match="labels"):
        supervised_contrastive(draw(2), torch.zeros(3))
    with pytest.raises(ValueError, match="temperature"):
        info_nce(draw(2), draw(2), 0.0)
