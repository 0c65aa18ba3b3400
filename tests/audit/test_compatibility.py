"""Whether a chain of models may share a gallery."""

from __future__ import annotations

import pytest
import torch

from protolearn.audit.compatibility import (
    average_accuracy,
    average_compatibility,
    compatibility_matrix,
    search_accuracy,
)
from protolearn.errors import UsageError


def test_compatibility_is_one_when_every_newer_model_is_better_and_zero_when_all_tie() -> None:
    better = torch.tensor([[50.0, 0, 0], [51, 60, 0], [52, 61, 70]])
    assert average_compatibility(better) == 1.0
    ties = torch.tensor([[50.0, 0, 0], [50, 60, 0], [50, 60, 70]])
    assert average_compatibility(ties) == 0.0
    assert average_compatibility(torch.tensor([[0.4]])) == 1.0, "one model: nothing to compare, nothing to divide by"
    half = torch.tensor([[50.0, 0, 0], [60, 60, 0], [40, 50, 70]])
    assert average_compatibility(half) == pytest.approx(1 / 3)


def test_the_mean_keeps_a_score_of_zero() -> None:
    scores = torch.tensor([[0.5, float("nan")], [0.0, 0.7]])
    assert average_accuracy(scores) == pytest.approx(0.4)
    with pytest.raises(UsageError, match="square"):
        average_accuracy(torch.zeros(2, 3))


def test_a_rotated_model_is_not_compatible() -> None:
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(8).repeat(20)
    centres = torch.randn(8, 6, generator=draw)
    first = centres[labels] + 0.3 * torch.randn(160, 6, generator=draw)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=draw)).Q
    scores = compatibility_matrix([first, first @ turn], labels, [first, first @ turn], labels)
    assert scores[0, 0] > 0.9
    assert scores[1, 1] > 0.9
    assert scores[1, 0] < 0.5
    assert average_compatibility(scores) == 0.0


def test_templates_are_means_of_a_class() -> None:
    gallery = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    assert search_accuracy(torch.tensor([[1.0, 1.1]]), torch.tensor([4]), gallery, torch.tensor([4, 4, 9])) == 1.0
    with pytest.raises(UsageError, match="gallery"):
        search_accuracy(gallery, torch.zeros(3), gallery[:0], torch.zeros(0))
