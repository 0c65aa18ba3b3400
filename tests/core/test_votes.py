"""Votes: weights that sum to 1 and explain the probability, top-k, balance, neighbours, and heads that read them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from protolearn.core.bank import PrototypeBank
from protolearn.core.measures import cosine, squared_l2
from protolearn.core.neighbours import largest, nearest_rows
from protolearn.core.votes import Votes, balance, vote, vote_weights


def scores(rows: int = 4, count: int = 9, seed: int = 0) -> Tensor:
    return torch.randn(rows, count, generator=torch.Generator().manual_seed(seed))


@given(st.integers(0, 20), st.integers(1, 12), st.integers(1, 3))
def test_weights_sum_to_one_and_reproduce_the_probability(seed: int, k: int, groups: int) -> None:
    given_, ownership = scores(seed=seed), torch.eye(3)[torch.arange(9) % 3]
    weights = vote_weights(given_, k=k, groups=torch.arange(9) % groups)
    torch.testing.assert_close(weights.sum(1), torch.ones(4))
    by_hand = torch.stack([weights[:, ownership[:, c] == 1].sum(1) for c in range(3)], 1)
    torch.testing.assert_close(vote(weights, ownership), by_hand)


def test_a_support_twice_has_twice_the_weight() -> None:
    given_ = scores(count=5)
    before, twice = vote_weights(given_), vote_weights(torch.cat([given_, given_[:, :1]], 1))
    ratio = (twice[:, 0] + twice[:, 5]) / twice[:, 1]
    torch.testing.assert_close(ratio, 2 * before[:, 0] / before[:, 1])


def test_only_what_is_allowed_votes() -> None:
    given_ = scores()
    given_[0, 3] = float("-inf")
    allowed = torch.ones(4, 9, dtype=torch.bool)
    allowed[1, 2] = False
    allowed[2] = False
    weights = vote_weights(given_, allowed)
    assert weights[0, 3] == 0
    assert weights[1, 2] == 0
    assert weights[2].eq(0).all(), "nobody may vote: zeros, not NaN"
    torch.testing.assert_close(weights.sum(1), torch.tensor([1.0, 1.0, 0.0, 1.0]))


def test_no_gradient_is_nan_where_nobody_votes() -> None:
    given_ = scores().requires_grad_()
    allowed = torch.zeros(4, 9, dtype=torch.bool)
    allowed[0] = True
    vote_weights(given_, allowed, k=2).square().sum().backward()
    assert given_.grad is not None
    assert bool(torch.isfinite(given_.grad).all())


@given(st.integers(1, 6), st.integers(0, 30))
def test_the_largest_are_the_first_of_a_stable_sort(k: int, seed: int) -> None:
    table = torch.randint(0, 3, (5, 7), generator=torch.Generator().manual_seed(seed)).float()
    order = table.argsort(dim=1, descending=True, stable=True)[:, :k]
    want = torch.zeros(5, 7, dtype=torch.bool).scatter_(1, order, True)
    assert torch.equal(largest(table, min(k, 7)), want if k < 7 else torch.ones_like(want))


def test_balance_gives_classes_the_same_say() -> None:
    ownership = torch.eye(2)[torch.tensor([0, 0, 0, 1])]
    even = vote(vote_weights(torch.zeros(1, 4) + balance(ownership)), ownership)
    torch.testing.assert_close(even, torch.tensor([[0.5, 0.5]]))
    allowed = torch.tensor([[True, False, False, True]])
    assert balance(ownership, allowed).exp().tolist() == [[1.0, 1.0, 1.0, 1.0]]


@pytest.mark.parametrize("budget", [None, 2000])
@pytest.mark.parametrize("measure", [squared_l2, cosine])
def test_neighbours_in_chunks_are_those_of_the_whole_table(measure: object, budget: int | None) -> None:
    draw = torch.Generator().manual_seed(0)
    values, rows = torch.randn(30, 4, generator=draw), torch.randn(5000, 4, generator=draw)
    rows[4999] = rows[7]  # a tie across blocks
    rows[:30] = values
    found, at = nearest_rows(values, rows, measure, 5, left_out=torch.arange(30), budget=budget)  # type: ignore[arg-type]
    table = measure.pairwise(values, rows)  # type: ignore[attr-defined]
    falls = measure is squared_l2
    table[torch.arange(30), torch.arange(30)] = float("inf") if falls else float("-inf")
    order = table.argsort(dim=1, descending=not falls, stable=True)[:, :5]
    torch.testing.assert_close(found, table.gather(1, order), rtol=1e-5, atol=1e-5)
    assert (at == order).float().mean() > 0.99, "ties by rounding apart"
    assert bool((at != torch.arange(30).unsqueeze(1)).all())


def head(**settings: object) -> Votes:
    bank = PrototypeBank(torch.zeros(4, 2), torch.eye(2)[torch.tensor([0, 0, 0, 1])], learned=False)
    return Votes(bank, **settings)  # type: ignore[arg-type]


def test_the_head_follows_its_bank() -> None:
    votes = head()
    votes.bank.ban([0])
    found = votes(torch.zeros(1, 4))
    torch.testing.assert_close(found, torch.tensor([[2 / 3, 1 / 3]]))
    votes.bank.prune([1])
    torch.testing.assert_close(votes(torch.zeros(1, 3)), torch.tensor([[0.5, 0.5]]))
    assert votes.state_dict() == {}, "the bank is saved once, as the model's"
    assert votes.probabilities(torch.zeros(1, 2)).tolist() == [[0.5, 0.5]], "nobody voted"


def test_a_learned_scale_gets_a_gradient() -> None:
    votes = head(learn_scale=True, scale=2.0)
    given_ = scores(count=4)
    torch.testing.assert_close(votes.scaled(given_), 2 * given_)
    votes(given_)[:, 0].sum().backward()
    assert votes.log_scale is not None
    assert votes.log_scale.grad is not None
    assert float(votes.log_scale.grad.abs()) > 0


def test_groups_vote_apart_and_the_mean_counts() -> None:
    votes = head(by_group=True)
    votes.bank.groups = torch.tensor([0, 1, 1, 1])
    given_ = scores(count=4)
    one = vote(vote_weights(given_[:, :1]), votes.bank.ownership[:1])
    other = vote(vote_weights(given_[:, 1:]), votes.bank.ownership[1:])
    torch.testing.assert_close(votes(given_), (one + other) / 2)


def test_half_precision_keeps_the_floor() -> None:
    from protolearn.objectives.votes import vote_likelihood

    nobody = torch.tensor([[0.0, 1.0]], dtype=torch.float16)
    found = vote_likelihood(nobody, torch.tensor([0]), torch.tensor([True, True]))
    torch.testing.assert_close(found, -torch.tensor(1e-12).log())
