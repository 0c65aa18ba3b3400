"""Laws of a tree of prototypes: it sums to one, its ledger telescopes, hard and soft agree, and it survives surgery."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from protolearn.core.routing import complete_tree, leaf_rule, levels_of, responsibilities, route
from protolearn.core.trees import TreeHead
from protolearn.errors import UsageError

depths = st.integers(1, 5)
seeds = st.integers(0, 2**31)


def grown(depth: int, seed: int, classes: int = 3, scale: float = 2.0, **options: bool) -> tuple[TreeHead, Tensor]:
    g = torch.Generator().manual_seed(seed)
    head = TreeHead.complete(depth, classes, **options).double()
    head.leaves.copy_(torch.rand(2**depth, classes, generator=g, dtype=torch.double) * scale)
    return head, torch.rand(4, 2**depth - 1, generator=g, dtype=torch.double)


def pruned(head: TreeHead, seed: int) -> Tensor:
    """Remove some nodes at random; return the rows that stayed."""
    g = torch.Generator().manual_seed(seed)
    rows = (torch.rand(len(head.left), generator=g) < 0.6).nonzero().squeeze(1)
    rows = rows if len(rows) else torch.tensor([0])
    head.keep(rows)
    return rows


@given(depths)
def test_numbering(depth: int) -> None:
    left, right = complete_tree(depth)
    codes = torch.cat([left, right]).tolist()
    assert sorted(codes) == sorted([*range(1, 2**depth - 1), *(-1 - leaf for leaf in range(2**depth))])
    levels = levels_of(left, right, torch.tensor(0))
    assert [len(level.nodes) for level in levels] == [2**d for d in range(depth)]


@given(depths, seeds, st.booleans(), st.booleans())
def test_probabilities_sum_to_one(depth: int, seed: int, log_space: bool, normalised: bool) -> None:
    head, s = grown(depth, seed, log_space=log_space, normalised=normalised)
    assert torch.allclose(head.reach(s)[1].exp().sum(1), torch.ones(4, dtype=torch.double))
    assert torch.allclose(head(s).sum(1), torch.ones(4, dtype=torch.double))
    assert torch.allclose(head.log_scores(s).exp(), head(s))
    assert torch.allclose(head.probabilities(head(s)), head(s))


@given(depths, seeds)
def test_a_leaf_is_the_product_of_its_path(depth: int, seed: int) -> None:
    head, s = grown(depth, seed)
    for leaf, probability in enumerate(head.reach(s)[1][0].exp().tolist()):
        product = 1.0
        for step in head.path(s[0], leaf):
            product *= step.probability
        assert product == pytest.approx(probability)


@given(depths, seeds, st.booleans(), st.booleans(), st.booleans())
def test_the_ledger_telescopes(depth: int, seed: int, cut: bool, log_space: bool, normalised: bool) -> None:
    head, s = grown(depth, seed, log_space=log_space, normalised=normalised)
    if cut:
        s = s[:, pruned(head, seed)]
    total = head.offset() + head.contributions(s).sum(2)
    assert torch.allclose(total, head(s), atol=1e-12)


@given(depths, seeds)
def test_hard_and_soft_agree_on_certain_similarities(depth: int, seed: int) -> None:
    head, s = grown(depth, seed)
    s = s.round()
    for routing in ("max_leaf", "greedy"):
        assert torch.allclose(head.routed(s, routing), head(s), atol=1e-12)


@given(depths, seeds)
def test_a_prototype_that_is_taken_away_counts_as_absent(depth: int, seed: int) -> None:
    head, s = grown(depth, seed)
    other = copy.deepcopy(head)
    rows = pruned(other, seed)
    absent = torch.zeros_like(s)
    absent[:, rows] = s[:, rows]
    assert torch.allclose(other(s[:, rows]), head(absent), atol=1e-12)


@given(depths, seeds, st.floats(0.3, 1.0))
def test_trimming_leaves_a_whole_tree(depth: int, seed: int, threshold: float) -> None:
    head, s = grown(depth, seed)
    before, unsure = head(s), head.leaf_distributions().amax(1) <= threshold
    lost = head.reach(s)[1].exp()[:, unsure].sum(1)
    gone = head.trim(threshold)
    kept = torch.tensor([row for row in range(s.shape[1]) if row not in gone.tolist()])
    assert len(kept) >= 1
    head.keep(kept)
    assert len(head.leaves) == len(kept) + 1 or not len(gone)
    assert torch.allclose(head(s[:, kept]).sum(1), torch.ones(4, dtype=torch.double))
    moved = (head(s[:, kept]) - before).abs().sum(1) / 2
    if len(gone):
        assert not (head.leaf_distributions().amax(1) <= threshold).any()
        assert (moved <= lost + 1e-9).all(), "predictions change by no more than the probability of what was cut"
    else:
        assert moved.max() < 1e-12


@given(depths, seeds)
def test_a_tree_of_another_shape_is_loaded(depth: int, seed: int) -> None:
    head, s = grown(depth, seed)
    rows = pruned(head, seed)
    other = TreeHead.complete(2, 3).double()
    assert other.levels
    other.load_state_dict(head.state_dict())
    assert torch.equal(other(s[:, rows]), head(s[:, rows]))


@given(depths, seeds, st.integers(1, 4))
def test_the_leaf_rule(depth: int, seed: int, steps: int) -> None:
    head, s = grown(depth, seed, classes=4)
    labels = torch.tensor([0, 3, -1, 3])
    explained = responsibilities(head.reach(s)[1], head.leaves.log_softmax(1), labels)
    assert torch.allclose(explained.sum(1), torch.tensor([1.0, 1.0, 0.0, 1.0]).double())
    after = leaf_rule(head.leaves, head.leaves, explained, labels, steps)
    assert (after >= 0).all()
    mass = head.leaves.sum() * (1 - 1 / steps) + 3
    assert after.sum().item() == pytest.approx(mass.item())
    before = -head.log_scores(s)[[0, 1, 3], [0, 3, 3]].mean()
    for _ in range(4 * steps):
        head.adapt(s, labels, steps)
    assert torch.allclose(head.leaf_distributions().sum(1), torch.ones(2**depth).double())
    start = TreeHead.complete(depth, 4).double()
    rose = [-start.log_scores(s)[[0, 1, 3], [0, 3, 3]].mean().item()]
    for _ in range(5):
        start.adapt(s, labels, 1)
        rose.append(-start.log_scores(s)[[0, 1, 3], [0, 3, 3]].mean().item())
    assert rose[-1] < rose[0]
    assert before.isfinite()


def test_the_leaf_rule_raises_the_likelihood_of_a_fixed_batch() -> None:
    """From leaves that say nothing; a softmax of counts is not quite what maximises it, so it settles near the top."""
    g = torch.Generator().manual_seed(0)
    head = TreeHead.complete(4, 5).double()
    labels = torch.arange(40) % 5
    s = (torch.rand(5, 15, generator=g, dtype=torch.double)[labels] + 0.1 * torch.rand(40, 15, generator=g)).clamp(0, 1)
    losses = []
    for _ in range(12):
        losses.append(-head.log_scores(s)[torch.arange(40), labels].mean().item())
        head.adapt(s, labels, 1)
    assert losses[0] == pytest.approx(torch.tensor(5.0).log().item())
    assert losses[:6] == sorted(losses[:6], reverse=True)
    assert losses[-1] < 0.6 * losses[0]


def test_gradients_are_finite_at_the_edges() -> None:
    head, _ = grown(3, 0)
    s = torch.tensor([[0.0, 1.0, 0.5, 1.0, 0.0, 1.0, 1e-300]], dtype=torch.double, requires_grad=True)
    head.log_scores(s)[0, 1].backward()
    assert s.grad is not None
    assert s.grad.isfinite().all()


def test_a_tree_of_a_single_leaf_still_answers() -> None:
    head = TreeHead(torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long), torch.zeros(1, 2), root=-1)
    none = torch.zeros(3, 0)
    assert torch.allclose(head(none), torch.full((3, 2), 0.5))
    assert torch.allclose(head.offset() + head.contributions(none).sum(2), head(none))
    assert head.path(none[0], 0) == []


def test_wrong_trees_and_ways_are_refused() -> None:
    with pytest.raises(ValueError, match="circle"):
        levels_of(torch.tensor([0]), torch.tensor([-1]), torch.tensor(0))
    with pytest.raises(ValueError, match="two children"):
        TreeHead(torch.zeros(2, dtype=torch.long), torch.zeros(1, dtype=torch.long), torch.zeros(1, 2))
    with pytest.raises(UsageError, match="routing must be"):
        TreeHead.complete(1, 2).hard_leaf(torch.zeros(1, 1), "best")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no way leads"):
        TreeHead.complete(1, 2).path(torch.zeros(1), 5)


def test_nan_surfaces() -> None:
    left, right = complete_tree(1)
    head = TreeHead(left, right, torch.zeros(2, 2))
    assert head(torch.tensor([[float("nan")]])).isnan().all()
    assert route(torch.tensor([[float("nan")]]), torch.zeros(1, 1), head.levels, 2)[1].isnan().any()


def test_normalised_leaves_say_as_much_with_few_cases_as_with_many() -> None:
    counts = torch.tensor([[1.0, 3.0], [100.0, 300.0], [0.0, 0.0]])
    left, right = torch.tensor([-1, -2]), torch.tensor([1, -3])
    says = TreeHead(left, right, counts, normalised=True).leaf_distributions()
    assert torch.allclose(says[:2], torch.tensor([[0.25, 0.75], [0.25, 0.75]]), atol=5e-3)
    assert torch.allclose(says[2], torch.tensor([0.5, 0.5])), "a leaf that no case reached says nothing"
    soft = TreeHead(left, right, counts).leaf_distributions()
    assert soft[1, 1] > 0.99 > soft[0, 1]
