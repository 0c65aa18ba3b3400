"""Terms among prototypes against plain loops over classes, on banks a training can meet."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from protolearn.objectives.attraction import similarity_cluster, similarity_separation
from protolearn.objectives.geometry import (
    class_gram_orthogonality,
    largest_between_classes,
    smallest_between_classes,
)


def loops(vectors: Tensor, owner: Tensor) -> tuple[float, float, float]:
    groups = [vectors[owner == c] for c in range(int(owner.max()) + 1) if (owner == c).any()] if len(owner) else []
    gram = sum(float((p @ p.T - torch.eye(len(p), dtype=p.dtype)).abs().sum()) for p in groups)
    pairs = [(a, b) for i, a in enumerate(groups) for j, b in enumerate(groups) if i != j]
    largest = [float((a @ b.T).max()) for a, b in pairs]
    smallest = [float((a @ b.T).min()) for a, b in pairs]
    count = max(1, len(pairs))
    return gram, sum(largest) / count, sum(smallest) / count


@given(st.integers(0, 12), st.integers(1, 5), st.integers(1, 4), st.integers(0, 10**6))
def test_they_equal_loops_whatever_the_owners(count: int, dim: int, classes: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    vectors = torch.randn(count, dim, generator=g, dtype=torch.double).requires_grad_()
    owner = torch.randint(-1, classes, (count,), generator=g)  # in any order, some of no class, some classes empty
    terms = class_gram_orthogonality, largest_between_classes, smallest_between_classes
    for term, expected in zip(terms, loops(vectors.detach(), owner), strict=True):
        value = term(vectors, owner)
        assert value.item() == pytest.approx(expected, abs=1e-9)
        (grad,) = torch.autograd.grad(value, vectors)
        assert grad.isfinite().all()
        assert grad[owner < 0].eq(0).all()


def test_orthonormal_classes_cost_nothing_and_the_sum_grows_with_their_number() -> None:
    owner = torch.arange(3).repeat_interleave(2)
    assert class_gram_orthogonality(torch.eye(4)[[0, 1, 0, 1, 2, 3]], owner).item() == 0.0
    alike = torch.tensor([[1.0, 0.0]]).expand(6, 2)
    assert class_gram_orthogonality(alike, owner).item() == 3 * class_gram_orthogonality(alike[:2], owner[:2]).item()


def test_not_a_number_surfaces() -> None:
    vectors, owner = torch.tensor([[1.0], [float("nan")], [2.0]]), torch.tensor([0, 0, 1])
    for term in (class_gram_orthogonality, largest_between_classes, smallest_between_classes):
        assert term(vectors, owner).isnan()


def test_shapes_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        class_gram_orthogonality(torch.zeros(3, 2), torch.zeros(2, dtype=torch.long))


def test_similarity_forms_take_the_true_maximum_of_negative_values() -> None:
    """The authors' max(similarity * mask) would give 0, and no gradient."""
    similarities = torch.tensor([[-0.5, -0.2, 0.9], [float("-inf"), 0.1, 0.3]], requires_grad=True)
    own = torch.tensor([[True, True, False], [True, False, False]])
    assert similarity_cluster(similarities, own).item() == pytest.approx(-0.2)
    assert similarity_separation(similarities, ~own).item() == pytest.approx((0.9 + 0.3) / 2)
    (grad,) = torch.autograd.grad(similarity_cluster(similarities, own), similarities)
    assert grad.tolist() == [[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
    assert similarity_cluster(similarities, torch.zeros_like(own)).item() == 0.0
    assert similarity_cluster(torch.tensor([[float("nan"), 1.0]]), torch.tensor([[True, True]])).isnan()
