"""Reasoning by presence and absence: its laws for any parameters, any detections, any set of usable components."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from protolearn.core.bank import PrototypeBank
from protolearn.core.reasoning import Reasoning, agreement, agreement_columns, reasoning
from protolearn.core.similarities import RadialBasis

draws = (st.integers(1, 4), st.integers(1, 6), st.integers(0, 10**6), st.sampled_from([0.1, 1.0, 30.0]))


def drawn(classes: int, count: int, seed: int, scale: float) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    theta = scale * torch.randn(2, classes, count, generator=g, dtype=torch.float64)
    return theta, torch.rand(7, count, generator=g, dtype=torch.float64)


@given(*draws)
def test_shares_sum_to_one_for_each_class_and_scores_stay_in_the_unit_interval(
    classes: int, count: int, seed: int, scale: float
) -> None:
    theta, d = drawn(classes, count, seed, scale)
    shares = reasoning(theta)
    assert bool((shares >= 0).all())
    assert torch.allclose(shares.sum((0, 2)), torch.ones(classes).double())
    for detection in (d, d.round(), torch.zeros_like(d), torch.ones_like(d)):
        scores = agreement(detection, shares)
        assert bool((scores >= -1e-12).all())
        assert bool((scores <= 1 + 1e-12).all())


@given(*draws)
def test_scores_are_affine_in_detections_and_the_columns_add_to_them(
    classes: int, count: int, seed: int, scale: float
) -> None:
    theta, d = drawn(classes, count, seed, scale)
    shares = reasoning(theta)
    middle = agreement(0.3 * d[:1] + 0.7 * d[1:2], shares)
    assert torch.allclose(middle, 0.3 * agreement(d[:1], shares) + 0.7 * agreement(d[1:2], shares))
    found, missed = agreement_columns(d, shares)
    assert torch.allclose((found + missed).sum(2), agreement(d, shares))
    head = Reasoning(theta)
    assert torch.allclose(head.contributions(d).sum(2) + head.offset(), head(d))


@given(*draws)
def test_explanations_hold_no_contradiction(classes: int, count: int, seed: int, scale: float) -> None:
    """What is found is never also counted as absent: the columns are disjoint, and share one prior when unsure."""
    theta, d = drawn(classes, count, seed, scale)
    shares = reasoning(theta)
    found, missed = agreement_columns(d.round(), shares)
    assert bool(((found > 0) & (missed > 0)).logical_not().all())
    found, missed = agreement_columns(d, shares)
    prior = shares.sum(0)
    assert bool((found + missed <= prior + 1e-12).all())


def test_with_nothing_detected_only_absence_speaks() -> None:
    theta = torch.randn(2, 3, 5)
    d = torch.zeros(2, 5)
    assert torch.allclose(agreement(d, reasoning(theta)), reasoning(theta)[1].sum(1).expand(2, 3))
    assert agreement(d, reasoning(theta[:1])).eq(0).all(), "classes that reason by presence alone score 0: reject"


def test_a_banned_component_counts_neither_as_found_nor_as_absent() -> None:
    head, usable = Reasoning.start(3, 4), torch.tensor([True, False, True, True])
    shares = head.shares(usable)
    assert shares[..., 1].eq(0).all()
    assert torch.allclose(shares.sum((0, 2)), torch.ones(3))
    pruned = Reasoning.start(3, 4)
    pruned.load_state_dict(head.state_dict())
    pruned.keep(usable.nonzero().squeeze(1))
    assert torch.allclose(pruned.shares(), shares[..., usable]), "a ban and a removal have the same effect"
    assert head.shares(torch.zeros(4, dtype=torch.bool)).eq(0).all()


def test_the_start_is_the_authors_and_clipping_is_for_inference_alone() -> None:
    theta = Reasoning.start(40, 50, generator=torch.Generator().manual_seed(1)).theta
    assert theta.mean().item() == pytest.approx(0.6, abs=0.02)
    assert theta.std().item() == pytest.approx(0.2, abs=0.02)
    head = Reasoning.start(2, 3, clip=0.1)
    d = torch.tensor([[0.05, 0.5, 0.1]])
    assert torch.equal(head(d), agreement(d, head.shares()))
    head.eval()
    assert torch.equal(head(d), agreement(torch.tensor([[0.0, 0.5, 0.1]]), head.shares()))
    assert head(torch.tensor([[torch.nan, 0.5, 0.1]])).isnan().any(), "an error is not taken for absence"


def test_heads_grow_to_what_was_saved() -> None:
    saved = Reasoning.start(2, 5)
    other = Reasoning.start(2, 3)
    other.load_state_dict(saved.state_dict())
    assert torch.equal(other.theta, saved.theta)
    with pytest.raises(ValueError, match="theta must be"):
        Reasoning(torch.zeros(3, 2, 2))


def test_widths_of_detection_are_kept_positive_and_follow_the_bank() -> None:
    similar = RadialBasis(torch.tensor([0.1, 1.0, 50.0]))
    assert torch.allclose(similar.width, torch.tensor([0.1, 1.0, 50.0]), rtol=1e-5)
    with torch.no_grad():
        similar.raw.fill_(-200.0)
    assert bool((similar.width > 0).all())
    assert similar(torch.zeros(1, 3)).eq(1).all()
    assert similar(torch.full((1, 3), torch.inf)).eq(0).all()
    similar.reset(torch.tensor([0.1, 1.0, 50.0]))
    rows = torch.tensor([2, 0])
    part = similar.of(rows)(torch.ones(4, 2))
    similar.keep(rows)
    assert torch.equal(part, similar(torch.ones(4, 2)))
    with pytest.raises(ValueError, match="positive"):
        RadialBasis(torch.zeros(2))
    assert len(PrototypeBank.per_class(2, 1, 3)) == 2


def test_what_a_unit_adds_knows_who_is_banned() -> None:
    """The others take a banned component's share, in the score as in what is told about it."""
    head = Reasoning.start(3, 4, generator=torch.Generator().manual_seed(0))
    usable = torch.tensor([True, True, True, False])
    bank = PrototypeBank(torch.eye(4), torch.zeros(4, 3))
    bank.ban([3])
    per_unit = head.per_unit(4, bank.usable)
    assert per_unit is not None
    evidence = torch.zeros(5, 4)
    evidence[1:] = torch.eye(4)
    scores = agreement(evidence, head.shares(usable))
    torch.testing.assert_close((scores[1:] - scores[0]).T, per_unit)
    assert not torch.allclose(per_unit[:, :3], head.per_unit(4)[:, :3])  # type: ignore[index]
