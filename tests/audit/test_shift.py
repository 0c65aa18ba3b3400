"""The metrics of a shift: the authors' numbers, and what must hold by definition."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from protolearn.audit.correlation import row_correlation
from protolearn.audit.shift import (
    activation_consistency,
    activation_distance_share,
    among_top,
    class_alignment,
    contribution_change,
    shared_alignment,
    shift_agreement,
    top_share,
    weighted_alignment,
)
from protolearn.errors import UsageError


def test_numbers_of_the_authors(reference: Callable[[str], dict[str, np.ndarray]]) -> None:
    want = {name: torch.from_numpy(np.asarray(value)) for name, value in reference("prototta_metrics").items()}
    clean, other, k = want["activations_clean"], want["activations_adapted"], int(want["top_k"])
    labels = want["labels"]
    own, sizes = want["owner"].T[labels] > 0, want["last_layer"][labels].abs()

    def equal(found: Tensor, name: str, tolerance: float = 1e-6) -> None:
        assert torch.allclose(found, want[name].double(), rtol=tolerance, atol=0), name

    equal(activation_consistency(clean, other), "pac", 1e-5)  # theirs is in single precision
    equal(activation_distance_share(clean, other), "pac_l2")
    equal(row_correlation(clean, other), "pac_correlation")
    equal(class_alignment(other, own, k), "pca", 1e-5)
    equal(top_share(other, own, k), "pca_unweighted")
    equal(weighted_alignment(other, sizes, own, k), "pca_w")
    equal(contribution_change(clean, other, sizes, own), "contribution_change")


def test_consistency_is_1_on_identical_inputs_and_up_to_a_factor() -> None:
    scores = torch.rand(50, 9)
    assert torch.allclose(activation_consistency(scores, scores), torch.ones(50).double())
    for factor in (1e-30, 0.3, 1e30):
        assert torch.allclose(activation_consistency(scores, factor * scores), torch.ones(50).double())
    assert torch.allclose(activation_consistency(scores, -scores), -torch.ones(50).double())
    assert (activation_consistency(scores, scores.roll(1, 0)) < 0.999).any(), "pairs are the same cases in order"


def test_who_never_fires_is_not_judged() -> None:
    scores = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    assert activation_consistency(scores, torch.ones(2, 2)).isnan().tolist() == [True, False]
    assert activation_consistency(torch.zeros(2, 0), torch.zeros(2, 0)).isnan().all()
    assert row_correlation(scores, torch.ones(2, 2)).isnan().all()
    with pytest.raises(UsageError, match="same cases"):
        activation_consistency(scores, scores[:1])


def test_ties_for_the_last_places_share_them() -> None:
    scores = torch.tensor([[2.0, 1.0, 1.0, 1.0, 0.0]])
    assert among_top(scores, 2).tolist() == [[1.0, 1 / 3, 1 / 3, 1 / 3, 0.0]]
    assert among_top(scores, 9).sum() == 5
    own = torch.tensor([[False, True, False, False, False]])
    for order in (torch.tensor([0, 1, 2, 3, 4]), torch.tensor([4, 3, 2, 1, 0]), torch.tensor([2, 0, 3, 4, 1])):
        found = class_alignment(scores[:, order], own[:, order], 2)
        want = (math.e / 3) / (math.e**2 + math.e)
        assert float(found) == pytest.approx(want)
    with pytest.raises(UsageError, match="top_k"):
        among_top(scores, 0)


def test_alignment_of_planted_owners() -> None:
    own = torch.tensor([[True, True, False, False]])
    scores = torch.tensor([[50.0, 50.0, 0.0, 0.0]])
    assert float(class_alignment(scores, own)) == pytest.approx(1.0)
    assert float(weighted_alignment(scores, torch.ones(1, 4), own)) == 1.0
    assert float(weighted_alignment(torch.zeros(1, 4), torch.ones(1, 4), own)) == 0.0, "not an error"
    assert float(weighted_alignment(-scores, torch.ones(1, 4), own)) == 0.0
    assert float(class_alignment(torch.full((1, 4), 1e4), own)) == pytest.approx(0.5), "no overflow"
    assert float(shared_alignment(scores, torch.tensor([[1.0, -1.0, 0.0, 0.0]]))) == pytest.approx(0.5)
    assert shared_alignment(scores, torch.zeros(1, 4)).isnan().all()


def test_contribution_of_nothing_has_not_changed_by_a_share() -> None:
    own, ones = torch.tensor([[True, False]]), torch.ones(1, 2)
    assert contribution_change(torch.zeros(1, 2), ones, ones, own).isnan().all()
    assert float(contribution_change(ones, 3 * ones, ones, own)) == 2.0


def test_agreement() -> None:
    logits = torch.randn(40, 3)
    chances = logits.softmax(1)
    same = shift_agreement(logits, logits, chances, chances)
    assert same.same.all()
    assert torch.allclose(same.logit_cosine, torch.ones(40).double())
    assert same.confidence_correlation == pytest.approx(1.0)
    assert same.confidence_gap.abs().max() == 0
    other = logits[:, [1, 2, 0]]
    turned = shift_agreement(logits, other, chances, other.softmax(1))
    assert not turned.same.any()
    assert turned.confidence_gap.abs().max() < 1e-6
    flat = shift_agreement(logits, logits, torch.full((40, 3), 1 / 3), chances)
    assert flat.confidence_correlation is None
