"""Margin terms against plain loops, on batches a training run can meet."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from protolearn.objectives.margin import margin_loss, robust_margin


@given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 10**6))
def test_margin_loss(batch: int, classes: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    scores = torch.rand(batch, classes, generator=g, requires_grad=True)
    labels = torch.randint(-1, classes, (batch,), generator=g)
    costs = []
    for row, label in zip(scores.tolist(), labels.tolist(), strict=True):
        if label >= 0:
            others = [s for c, s in enumerate(row) if c != label]
            costs.append(max(0.0, max(others) - row[label] + 0.1) if others else 0.0)
    value = margin_loss(scores, labels, 0.1)
    assert value.item() == pytest.approx(sum(costs) / len(costs) if costs else 0.0, abs=1e-6)
    value.backward()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()


def test_a_batch_without_labels_costs_nothing_and_nan_surfaces() -> None:
    assert margin_loss(torch.rand(3, 2), torch.full((3,), -1)).item() == 0
    assert robust_margin(torch.rand(3), torch.full((3,), -1), 1.0).item() == 0
    assert margin_loss(torch.tensor([[torch.nan, 0.5]]), torch.tensor([0])).isnan()
    assert robust_margin(torch.tensor([torch.nan]), torch.tensor([0]), 1.0).isnan()
