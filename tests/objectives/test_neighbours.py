"""The share of the nearest own-class neighbour: against a loop, and on batches that a training run can meet."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from protolearn.objectives.neighbours import nearest_class_share


@given(st.integers(1, 7), st.integers(1, 3), st.integers(0, 10**6))
def test_it_equals_a_plain_loop(batch: int, classes: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    vectors, labels = torch.randn(batch, 2, generator=g), torch.randint(-1, classes, (batch,), generator=g)
    vectors[-1] = vectors[0]  # twins
    found = []
    for i in range(batch):
        near = {True: [], False: []}
        for j in range(batch):
            if i != j and labels[i] >= 0 and labels[j] >= 0:
                near[bool(labels[i] == labels[j])].append(float((vectors[i] - vectors[j]).norm()))
        if near[True] and near[False]:
            own, other = min(near[True]), min(near[False])
            found.append(own / (own + other) if own + other > 0 else 0.5)
    leaf = vectors.clone().requires_grad_()
    value = nearest_class_share(leaf, labels)
    assert value.item() == pytest.approx(sum(found) / len(found) if found else 0.0, abs=1e-5)
    value.backward()
    assert leaf.grad is None or bool(leaf.grad.isfinite().all())


def test_it_falls_as_classes_part_and_shows_nan() -> None:
    near = torch.tensor([[0.0], [1.0], [1.5], [2.5]])
    far = torch.tensor([[0.0], [1.0], [9.0], [10.0]])
    labels = torch.tensor([0, 0, 1, 1])
    assert nearest_class_share(far, labels) < nearest_class_share(near, labels)
    assert nearest_class_share(near * float("nan"), labels).isnan()
    with pytest.raises(ValueError, match="expected"):
        nearest_class_share(near, labels[:2])
