"""Reasoning, margin loss, detection and certificate against numbers made outside (README.md says how)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from protolearn.core.certificate import radius_by_bisection, radius_closed_form
from protolearn.core.reasoning import Reasoning, agreement, agreement_columns, reasoning
from protolearn.objectives.margin import margin_loss

Reference = Callable[[str], dict[str, np.ndarray]]


@pytest.fixture
def want(reference: Reference) -> dict[str, Tensor]:
    found = {key: torch.from_numpy(value) for key, value in reference("cbc").items()}
    theta = found["theta"]  # (2 K, C): presence above absence
    found["theta"] = theta.view(2, len(theta) // 2, -1).transpose(1, 2)
    return found


def test_the_joint_softmax_and_the_scores(want: dict[str, Tensor]) -> None:
    shares = reasoning(want["theta"])
    assert torch.allclose(shares, want["reasoning"].transpose(1, 2), atol=1e-12)
    assert torch.allclose(agreement(want["detection"], shares), want["scores"], atol=1e-12)
    head = Reasoning(want["theta"])
    assert torch.allclose(head(want["detection"]), want["scores"], atol=1e-12)


def test_both_columns_of_the_ledger(want: dict[str, Tensor]) -> None:
    found, missed = agreement_columns(want["detection"], reasoning(want["theta"]))
    assert torch.allclose(found, want["evidence_positive"], atol=1e-12)
    assert torch.allclose(missed, want["evidence_negative"], atol=1e-12)


def test_the_margin_loss(want: dict[str, Tensor]) -> None:
    scores, labels, margin = want["scores"], want["labels"], float(want["margin"])
    assert torch.allclose(margin_loss(scores, labels, margin), want["margin_loss"], atol=1e-12)
    each = torch.stack([margin_loss(scores[i : i + 1], labels[i : i + 1], margin) for i in range(len(scores))])
    assert torch.allclose(each, want["margin_loss_per_sample"], atol=1e-12)


def test_both_radii(want: dict[str, Tensor]) -> None:
    """The closed form is kept negative where the class does not lead; the reference writes 0 there."""
    distances = torch.cdist(want["x"], want["components"])
    sigma, shares, predicted = want["sigma"], reasoning(want["theta"]), want["scores"].argmax(1)
    searched = radius_by_bisection(distances, sigma, shares, predicted).amin(1)
    closed = radius_closed_form(distances, sigma, shares, predicted).amin(1).clamp_min(0.0)
    assert torch.allclose(searched, want["radius_bisection"], rtol=1e-6, atol=1e-9)
    assert torch.allclose(closed, want["radius_closed"], rtol=1e-6, atol=1e-9)
    assert bool(want["radius_bisection"].isfinite().all())
    assert bool((want["radius_bisection"] > 0).any())
