"""Terms on concepts: unknown ones have no influence."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from protolearn.objectives.concepts import concept_cross_entropy


@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 10**6))
def test_concept_cross_entropy_equals_a_loop(batch: int, concepts: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, concepts, generator=g) * 5
    wanted = torch.randint(-1, 2, (batch, concepts), generator=g).float()
    wanted[torch.rand(batch, concepts, generator=g) < 0.1] = float("nan")
    each = [
        math.log1p(math.exp(-x if y == 1 else x))
        for x, y in zip(logits.double().flatten().tolist(), wanted.flatten().tolist(), strict=True)
        if y >= 0
    ]
    leaf = logits.clone().requires_grad_()
    value = concept_cross_entropy(leaf, wanted)
    assert value.item() == pytest.approx(sum(each) / len(each) if each else 0.0, abs=1e-5)
    value.backward()
    assert leaf.grad is not None
    assert bool(leaf.grad[~(wanted >= 0)].eq(0).all())


def test_concept_cross_entropy_shows_nan_logits_and_refuses_other_shapes() -> None:
    assert concept_cross_entropy(torch.tensor([[float("nan")]]), torch.tensor([[1.0]])).isnan()
    with pytest.raises(ValueError, match="do not fit"):
        concept_cross_entropy(torch.zeros(1, 2), torch.zeros(1, 3))
