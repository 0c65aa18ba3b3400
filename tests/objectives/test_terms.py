"""Terms against plain loops, on batches a training run can meet: one class, no label, a class without prototypes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from protolearn.core.bank import PrototypeBank
from protolearn.objectives.attraction import cluster, separation
from protolearn.objectives.classification import cross_entropy
from protolearn.objectives.sparsity import other_class_l1


def loop(distances: Tensor, counted: Tensor) -> float:
    nearest = []
    for row, counts in zip(distances.tolist(), counted.tolist(), strict=True):
        allowed = [d for d, yes in zip(row, counts, strict=True) if yes and not math.isinf(d)]
        nearest += [min(allowed)] if allowed else []
    return sum(nearest) / len(nearest) if nearest else 0.0


@given(st.integers(1, 6), st.integers(1, 4), st.integers(1, 3), st.integers(0, 10**6))
def test_cluster_and_separation(batch: int, classes: int, per_class: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    bank = PrototypeBank.per_class(classes, per_class, 2, generator=g)
    bank.ban(bank.ids[torch.rand(len(bank), generator=g) < 0.3])
    distances = torch.rand(batch, len(bank), generator=g)
    distances[torch.rand(batch, generator=g) < 0.2] = float("inf")  # an input without a real position
    labels = torch.randint(-1, classes, (batch,), generator=g)
    own = bank.owned_by(labels)
    other = ~own & bank.usable & (labels >= 0).unsqueeze(1)
    for term, counted in ((cluster, own), (separation, other)):
        leaf = distances.clone().requires_grad_()
        value = term(leaf, counted)
        assert value.item() == pytest.approx(loop(distances, counted), abs=1e-6)
        value.backward()
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()
        assert leaf.grad[~counted].eq(0).all()


def test_one_class_batches_and_classes_without_prototypes() -> None:
    bank = PrototypeBank(torch.zeros(2, 1), torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]))  # classes 1, 2: none
    distances = torch.tensor([[1.0, 2.0], [5.0, 4.0]])
    same = bank.owned_by(torch.tensor([0, 0]))
    assert cluster(distances, same).item() == 2.5
    assert separation(distances, ~same).item() == 0.0
    mixed = bank.owned_by(torch.tensor([1, 0]))
    assert cluster(distances, mixed).item() == 4.0
    assert separation(distances, ~mixed).item() == 1.0
    nobody = bank.owned_by(torch.tensor([-1, -1]))
    assert cluster(distances, nobody).item() == 0.0


def test_nan_is_not_taken_for_absent() -> None:
    distances = torch.tensor([[float("nan"), 1.0], [2.0, 3.0]])
    everything = torch.ones(2, 2, dtype=torch.bool)
    assert cluster(distances, everything).isnan()
    assert cross_entropy(torch.tensor([[float("nan"), 0.0]]), torch.tensor([0])).isnan()


@given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 10**6))
def test_cross_entropy(batch: int, classes: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, classes, generator=g) * 5
    labels = torch.randint(-1, classes, (batch,), generator=g)
    each = [
        math.log(sum(math.exp(x) for x in row)) - row[label]
        for row, label in zip(logits.double().tolist(), labels.tolist(), strict=True)
        if label >= 0
    ]
    leaf = logits.clone().requires_grad_()
    value = cross_entropy(leaf, labels)
    assert value.item() == pytest.approx(sum(each) / len(each) if each else 0.0, abs=1e-5)
    value.backward()
    assert leaf.grad is not None
    assert leaf.grad.isfinite().all()


def test_other_class_l1() -> None:
    weight = torch.tensor([[1.0, -2.0, 3.0], [4.0, -5.0, -6.0]])
    ownership = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 0.0]])  # own, shared, of no class
    assert other_class_l1(weight, ownership).item() == 3 + 4 + 6
    assert other_class_l1(weight[:1], torch.ones(3, 1)).item() == 0.0
