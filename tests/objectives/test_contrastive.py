"""The contrast within a batch: its formula by loops, other people's numbers, blocks, splits and odd batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from protolearn.objectives.contrastive import group_contrast

Reference = Callable[[str], dict[str, np.ndarray]]


def by_loops(
    vectors: Tensor, groups: Tensor, temperature: float, against: str = "all", alone: str = "left_out"
) -> Tensor:
    rows = [i for i in range(len(groups)) if groups[i] >= 0]
    terms = []
    for i in rows:
        score = {a: vectors[i] @ vectors[a] / temperature for a in rows if a != i}
        positives = [a for a in score if groups[a] == groups[i]]
        pushed = [a for a in score if against == "all" or groups[a] != groups[i]]
        if not pushed or (not positives and alone == "left_out"):
            continue
        drawn = [score[a] for a in positives] or [(vectors[i] @ vectors[i]).detach() / temperature]
        terms.append(torch.stack([score[a] for a in pushed]).logsumexp(0) - torch.stack(drawn).mean())
    return torch.stack(terms).mean() if terms else vectors.sum() * 0.0


def leaf(seed: int, rows: int, dim: int = 5) -> Tensor:
    drawn = torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(drawn, dim=1).requires_grad_()


@given(
    st.integers(0, 10_000), st.lists(st.integers(-1, 3), min_size=1, max_size=12),
    st.sampled_from(["all", "others"]), st.sampled_from(["left_out", "itself"]), st.integers(1, 3),
)  # fmt: skip
def test_value_and_gradient_are_those_of_the_loops_whatever_the_blocks(
    seed: int, named: list[int], against: Any, alone: Any, rows: int
) -> None:
    groups, one, other = torch.tensor(named), leaf(seed, len(named)), leaf(seed, len(named))
    ours = group_contrast(one, groups, 0.3, against=against, alone=alone, budget=rows * 8 * len(named))
    plain = by_loops(other, groups, 0.3, against, alone)
    torch.testing.assert_close(ours, plain)
    (3 * ours).backward()
    (3 * plain).backward()
    torch.testing.assert_close(one.grad, other.grad)


def test_parts_add_up_to_the_whole() -> None:
    """Which is how processes share the work: each takes its own rows as anchors, against those of all."""
    groups = torch.tensor([0, 1, 0, -1, 1, 2, 0])
    whole, split = leaf(1, 7), leaf(1, 7)
    first = torch.tensor([True, False, True, True, False, False, False])
    group_contrast(whole, groups, 0.2).backward()
    parts = [group_contrast(split, groups, 0.2, anchors=mine) for mine in (first, ~first)]
    sum(parts[1:], parts[0]).backward()
    torch.testing.assert_close(whole.grad, split.grad)
    torch.testing.assert_close(parts[0].detach() + parts[1].detach(), group_contrast(whole.detach(), groups, 0.2))


def test_numbers_of_other_implementations(reference: Reference) -> None:
    want = {name: torch.from_numpy(np.array(value)) for name, value in reference("contrastive").items()}
    x = want["x"].clone().requires_grad_()
    loss = group_contrast(F.normalize(x, dim=1), want["y"], float(want["tau"]))
    torch.testing.assert_close(loss.detach(), want["loss_textbook"], rtol=1e-6, atol=0)
    loss.backward()
    torch.testing.assert_close(x.grad, want["grad_x"], rtol=1e-6, atol=1e-9)
    views = F.normalize(want["views"], dim=1)
    instances = torch.arange(len(views) // 2).repeat(2)
    torch.testing.assert_close(group_contrast(views, instances, 1.0), want["info_nce"], rtol=1e-6, atol=0)
    labelled = torch.where(want["views_labelled"] > 0, want["views_y"], -1).repeat(2)
    torch.testing.assert_close(group_contrast(views, labelled, 0.07), want["sup_con"], rtol=1e-6, atol=0)


@pytest.mark.parametrize("groups", [[], [-1, -1], [0], [0, 1, 2], [0, 0]])
@pytest.mark.parametrize("against", ["all", "others"])
def test_batches_with_nothing_to_compare_give_a_finite_term(groups: list[int], against: Any) -> None:
    rows = torch.zeros(len(groups), 4, requires_grad=True)  # rows without a direction, too
    loss = group_contrast(rows, torch.tensor(groups, dtype=torch.long), 0.1, against=against)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(rows.grad).all()
    if len(set(groups) - {-1}) != 1 or len(groups) < 2:
        assert float(loss.detach()) == 0.0


def test_half_precision_is_widened_and_nan_surfaces() -> None:
    rows = leaf(0, 6).detach()
    groups = torch.tensor([0, 1, 2]).repeat(2)
    half = group_contrast(rows.half(), groups, 0.1)
    assert half.dtype == torch.float32
    assert float(half) == pytest.approx(float(group_contrast(rows, groups, 0.1)), rel=1e-2)
    rows[2] = float("nan")
    assert torch.isnan(group_contrast(rows, groups, 0.1))


def test_wrong_requests() -> None:
    rows = torch.eye(2)
    for groups, how in (
        (torch.zeros(3, dtype=torch.long), {}), (torch.zeros(2, dtype=torch.long), {"anchors": torch.ones(2)}),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"expected|anchors must be bool"):
            group_contrast(rows, groups, 0.1, **how)
    with pytest.raises(ValueError, match="temperature must be positive"):
        group_contrast(rows, torch.zeros(2, dtype=torch.long), 0.0)
