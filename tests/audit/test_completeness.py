"""Decisions from what is shown alone, and a student of the scores: planted models and a loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from protolearn.audit.completeness import scores_of_largest, scores_of_shown, student
from protolearn.errors import UsageError


def test_scores_by_a_loop() -> None:
    g = torch.Generator().manual_seed(0)
    table, offset = torch.randn(6, 4, 9, generator=g), torch.randn(4, generator=g)
    predicted = (table.sum(2) + offset).argmax(1)
    shown = [1, 3, 5, 9, 20]
    found = scores_of_shown(table, offset, predicted, shown)
    for b in range(6):
        order = table[b, predicted[b]].abs().argsort(descending=True)
        for k, number in enumerate(shown):
            expected = offset + table[b][:, order[:number]].sum(1)
            assert torch.allclose(found[k, b], expected.double(), atol=1e-5)
    assert torch.allclose(found[3], table.double().sum(2) + offset), "all of them are the whole model"
    order = torch.randperm(9, generator=g)
    assert torch.allclose(found, scores_of_shown(table[:, :, order], offset, predicted, shown))


def test_largest_of_every_class_by_a_loop() -> None:
    g = torch.Generator().manual_seed(0)
    table, offset = torch.randn(6, 4, 9, generator=g), torch.randn(4, generator=g)
    found = scores_of_largest(table, offset, [1, 4, 30])
    for b in range(6):
        for c in range(4):
            row = table[b, c][table[b, c].abs().argsort(descending=True)]
            expected = [float(row[:k].sum() + offset[c]) for k in (1, 4, 9)]
            assert found[:, b, c].tolist() == pytest.approx(expected, abs=1e-5)
    with pytest.raises(UsageError, match="at least 1"):
        scores_of_largest(table, offset, [0])


def test_what_adds_nothing_to_the_prediction_is_not_shown() -> None:
    """Prototypes of other classes must not be drawn in only because there are no more of the own class."""
    table = torch.tensor([[[2.0, 0.0, 0.0], [0.0, 1.0, 5.0]]])
    assert scores_of_shown(table, torch.zeros(2), torch.tensor([0]), [3]).tolist() == [[[2.0, 0.0]]]
    nothing = scores_of_shown(torch.zeros(1, 2, 3), torch.tensor([0.0, 1.0]), torch.tensor([1]), [1])
    assert nothing.tolist() == [[[0.0, 1.0]]]


def test_shapes_and_numbers() -> None:
    table = torch.ones(2, 3, 4)
    assert scores_of_shown(table[:0], torch.zeros(3), torch.zeros(0, dtype=torch.int64), [1]).shape == (1, 0, 3)
    assert scores_of_shown(table[..., :0], torch.ones(3), torch.zeros(2, dtype=torch.int64), [2]).eq(1).all()
    for wrong in ([], [0], [3, -1]):
        with pytest.raises(UsageError, match="at least 1"):
            scores_of_shown(table, torch.zeros(3), torch.zeros(2, dtype=torch.int64), wrong)
    with pytest.raises(UsageError, match=r"\(B, C, P\)"):
        scores_of_shown(table, torch.zeros(4), torch.zeros(2, dtype=torch.int64), [1])
    with pytest.raises(UsageError, match="as many predictions"):
        scores_of_shown(table, torch.zeros(3), torch.zeros(1, dtype=torch.int64), [1])


def test_a_student_learns_short_rules_and_not_long_ones() -> None:
    scores = np.random.default_rng(0).random((400, 8))
    short = (scores[:, 1] > 0.5).astype(int) + 2 * (scores[:, 4] > 0.3)
    parity = ((scores > 0.5).sum(1) % 2).astype(int)
    for others in (None, np.random.default_rng(1).random((200, 8))):
        judged = scores if others is None else others
        truth = (judged[:, 1] > 0.5).astype(int) + 2 * (judged[:, 4] > 0.3)
        easy = student(scores, short, others, depth=2)
        assert (easy.said == truth).mean() > 0.95
        assert (easy.leaves, easy.read) == (4, 2)
        hard = student(scores, parity, others, depth=3)
        assert (hard.said == (judged > 0.5).sum(1) % 2).mean() < 0.65, "held out, or it would look learned"


def test_the_student_repeats_by_seed_and_refuses_what_it_cannot_learn() -> None:
    scores = np.random.default_rng(0).random((50, 3))
    labels = (scores[:, 0] > scores[:, 1]).astype(int)
    assert (student(scores, labels, seed=3).said == student(scores, labels, seed=3).said).all()
    assert student(scores, np.zeros(50, dtype=int)).leaves == 1
    assert student(scores[:2], labels[:2]).said.shape == (2,)
    with pytest.raises(UsageError, match="N predictions"):
        student(scores[:1], labels[:1])
    with pytest.raises(UsageError, match="finite"):
        student(np.full((4, 2), np.nan), labels[:4])
    with pytest.raises(UsageError, match="depth"):
        student(scores, labels, depth=0)
