"""The alignment of shallow and deep self-similarity: when it is 0, what counts, where gradients go."""

from __future__ import annotations

import pytest
import torch

from protolearn.objectives.alignment import gram_alignment


def test_zero_when_the_cosines_are_the_same_whatever_scale_and_axes() -> None:
    shallow = torch.randn(3, 6, 4)
    turn = torch.linalg.qr(torch.randn(7, 7)).Q[:, :4]
    deep = (shallow * (1 + torch.rand(3, 6, 1))) @ turn.T
    rows = torch.randint(0, 6, (3, 2))
    assert gram_alignment(deep, shallow, rows, margin=0.0).item() == pytest.approx(0.0, abs=1e-6)
    assert gram_alignment(deep, shallow, rows).item() == 0.0
    assert gram_alignment(deep, torch.randn(3, 6, 4), rows, margin=0.0).item() > 0.01


def test_gradient_flows_to_the_deep_features_only() -> None:
    deep, shallow = torch.randn(2, 5, 3, requires_grad=True), torch.randn(2, 5, 4, requires_grad=True)
    gram_alignment(deep, shallow, torch.tensor([[0], [4]]), margin=0.0).backward()
    assert deep.grad is not None
    assert deep.grad.abs().sum() > 0
    assert shallow.grad is None


def test_rows_that_are_not_counted_have_no_part() -> None:
    deep, shallow = torch.randn(2, 5, 3), torch.randn(2, 5, 4)
    rows, counted = torch.tensor([[0, 1], [2, 3]]), torch.tensor([[True, False], [False, False]])
    one = gram_alignment(deep, shallow, rows, counted, margin=0.0)
    assert one.item() == pytest.approx(gram_alignment(deep[:1], shallow[:1], rows[:1, :1], margin=0.0).item())
    nobody = gram_alignment(deep, shallow, rows, torch.zeros_like(counted))
    assert nobody.item() == 0.0
    with pytest.raises(ValueError, match="same positions"):
        gram_alignment(deep, shallow[:, :4], rows)


def test_features_of_zeros_are_finite() -> None:
    deep = torch.zeros(1, 4, 3, requires_grad=True)
    gram_alignment(deep, torch.zeros(1, 4, 2), torch.tensor([[0]])).backward()
    assert deep.grad is not None
    assert deep.grad.isfinite().all()
