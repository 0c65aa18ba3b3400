"""The head in which each class weighs its own prototypes by a softmax, and the cosine with a part of a token."""

from __future__ import annotations

import pytest
import torch

from protolearn.core.heads import ClassSoftmaxEvidence
from protolearn.core.matching import best_match
from protolearn.core.measures import cosine, cosine_in_parts

OWNERSHIP = torch.tensor([[1.0, 0, 0], [0, 1, 0], [1, 0, 0], [0, 1, 0], [1, 0, 0], [0.0, 0, 0]])  # class 2 has none


def head() -> ClassSoftmaxEvidence:
    made = ClassSoftmaxEvidence(OWNERSHIP)
    with torch.no_grad():
        made.weight.copy_(torch.tensor([3.0, -1.0, 0.0, 2.0, -50.0, 9.0]))
    return made


def test_weights_of_a_class_are_positive_and_sum_to_its_number() -> None:
    mixing = head().mixing()
    assert bool((mixing[OWNERSHIP.T > 0] > 0).all())
    assert mixing[OWNERSHIP.T == 0].eq(0).all()
    assert mixing.sum(1).tolist() == pytest.approx([3, 2, 0])
    assert ClassSoftmaxEvidence(OWNERSHIP).mixing()[OWNERSHIP.T > 0].tolist() == pytest.approx([1] * 5)


def test_other_classes_prototypes_change_nothing() -> None:
    made, evidence = head(), torch.rand(4, 6)
    changed = evidence.clone()
    changed[:, [1, 3, 5]] = 100.0
    torch.testing.assert_close(made(evidence)[:, 0], made(changed)[:, 0], rtol=0, atol=0)
    assert made(evidence)[:, 2].eq(0).all()


def test_the_ledger_adds_up_and_gradients_are_finite() -> None:
    made, evidence = head(), torch.randn(4, 6, requires_grad=True)
    logits = made(evidence)
    torch.testing.assert_close(made.contributions(evidence).sum(2) + made.offset(), logits)
    logits.sum().backward()
    assert made.weight.grad is not None
    assert made.weight.grad.isfinite().all()
    assert made.weight.grad[5] == 0


def test_pruning_and_loading_keep_the_sum() -> None:
    made = head()
    made.keep(torch.tensor([0, 2, 3]))
    assert made.mixing().sum(1).tolist() == pytest.approx([2, 1, 0])
    again = ClassSoftmaxEvidence(OWNERSHIP)
    again.load_state_dict(made.state_dict())
    evidence = torch.rand(2, 3)
    assert torch.equal(again(evidence), made(evidence))


def test_cosine_in_parts_is_the_cosine_with_the_part() -> None:
    tokens, vectors = torch.randn(3, 7, 8), torch.randn(6, 4)
    rows = torch.zeros(6, 8)
    rows[:3, :4], rows[3:, 4:] = vectors[:3], vectors[3:]
    first, at = best_match(tokens[..., :4], vectors[:3], cosine)
    second, there = best_match(tokens[..., 4:], vectors[3:], cosine)
    for exact in (False, True):
        both, where = best_match(tokens, rows, cosine_in_parts(2), exact=exact)
        torch.testing.assert_close(both, torch.cat([first, second], 1))
        assert torch.equal(where, torch.cat([at, there], 1))
    torch.testing.assert_close(cosine_in_parts(1).pairwise(tokens, rows), cosine.pairwise(tokens, rows))
    with pytest.raises(ValueError, match="at least one part"):
        cosine_in_parts(0)
