"""A prototype model without each token: the closed form against hiding tokens one by one."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from protolearn.core.bank import PrototypeBank
from protolearn.core.gathering import WholeInput
from protolearn.core.heads import LinearEvidence
from protolearn.core.measures import cosine, squared_l2
from protolearn.core.model import PrototypeModel
from protolearn.core.pooling import max_pool, mean_pool, sum_pool, top_k_pool
from protolearn.core.reasoning import Reasoning
from protolearn.core.similarities import LogRatio, Negative
from protolearn.core.votes import Votes
from protolearn.encoders import FeatureEncoder
from protolearn.errors import UsageError
from protolearn.explain.bag_tokens import has_closed_form, without_each_token
from protolearn.structures import Output, Tokens

MEASURES = [(cosine, None), (squared_l2, LogRatio()), (squared_l2, Negative())]
POOLINGS = [max_pool, mean_pool, sum_pool]


def make(seed: int = 0, measure: int = 1, **parts: object) -> PrototypeModel:
    g = torch.Generator().manual_seed(seed)
    how, similarity = MEASURES[measure]
    bank = PrototypeBank(torch.randn(5, 3, generator=g), torch.eye(2)[torch.tensor([0, 0, 1, 1, 1])])
    head = LinearEvidence(torch.randn(2, 5, generator=g), torch.randn(2, generator=g))
    parts = {"neck": nn.Identity(), "head": head, **parts}
    neck, head = parts.pop("neck"), parts.pop("head")
    return PrototypeModel(FeatureEncoder(3), neck, bank, how, head, similarity=similarity, **parts).eval()


def masked(model: PrototypeModel, seed: int, batch: int = 3, steps: int = 6) -> Output:
    g = torch.Generator().manual_seed(seed)
    mask = torch.rand(batch, steps, generator=g) < 0.7
    tokens = Tokens(torch.randn(batch, steps, 3, generator=g), mask)
    return model.run(tokens)


@given(st.integers(0, 10**6), st.sampled_from(range(3)), st.sampled_from(POOLINGS))
def test_the_closed_form_equals_hiding_tokens(seed: int, measure: int, pooling: object) -> None:
    model = make(seed, measure, pooling=pooling)
    model.bank.ban([int(model.bank.ids[seed % 5])])
    out = masked(model, seed)
    quick, slow = (without_each_token(model, out, closed=how) for how in (True, False))
    assert quick.closed and not slow.closed
    torch.testing.assert_close(quick.logits, slow.logits, rtol=1e-4, atol=1e-4)
    assert without_each_token(model, out).closed, "by default the quick one"


def test_a_token_that_nothing_matched_is_worth_exactly_nothing() -> None:
    model = make(4)
    out = model(torch.randn(2, 40, 3, generator=torch.Generator().manual_seed(0)))
    found = without_each_token(model, out).necessity(out.logits.argmax(1))
    matched = torch.zeros(2, 40, dtype=torch.bool).scatter(1, out.positions, True)
    assert found[~matched].eq(0).all()
    assert found[matched].ne(0).any()


def test_padding_and_the_last_token() -> None:
    model = make(2)
    mask = torch.tensor([[True, False, False], [False, False, False]])
    values = torch.randn(2, 3, 3)
    values[~mask] = float("nan")  # padding may hold anything
    out = model.run(Tokens(values, mask))
    for how in (True, False):
        found = without_each_token(model, out, closed=how)
        assert torch.allclose(found.logits[0, 0], model.head.offset()), "nothing is left: the bias alone"
        assert torch.equal(found.logits[0, 1:], out.logits[:1].expand(2, -1))
        assert torch.equal(found.logits[1], out.logits[1:].expand(3, -1))
        assert found.mask.tolist() == mask.tolist()


def test_a_neck_that_mixes_tokens_is_run_again() -> None:
    model = make(neck=WholeInput(nn.Linear(3, 3)))
    inputs = torch.randn(2, 4, 3)
    assert not has_closed_form(model)
    found = without_each_token(model, model(inputs))
    assert not found.closed
    for s in range(4):
        rest = inputs[:, [i for i in range(4) if i != s]]
        torch.testing.assert_close(found.logits[:, s], model(rest).logits, rtol=1e-4, atol=1e-4)
    with pytest.raises(UsageError, match="no closed form"):
        without_each_token(model, model(inputs), closed=True)
    with pytest.raises(UsageError, match="lacks the encoder's tokens"):
        without_each_token(model, model(inputs).replace(encoded=None))


@pytest.mark.parametrize("head", ["reasoning", "votes", "top k"])
def test_other_heads_and_poolings(head: str) -> None:
    model = make(3)
    if head == "reasoning":
        model.head = Reasoning.start(2, 5, generator=torch.Generator().manual_seed(0))
    elif head == "votes":
        model.head = Votes(model.bank)
    else:
        model.pooling = partial(top_k_pool, k=2)
    inputs = torch.randn(2, 5, 3)
    found = without_each_token(model, model(inputs))
    assert found.closed == (head == "reasoning")
    for s in range(5):
        rest = inputs[:, [i for i in range(5) if i != s]]
        torch.testing.assert_close(found.logits[:, s], model(rest).logits, rtol=1e-4, atol=1e-5)


def test_the_model_stays_and_wrong_questions_are_refused() -> None:
    model = make()
    model.train()
    model.bank.eval()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    out = masked(model, 1)
    found = without_each_token(model, out)
    assert model.training and not model.bank.training
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in state.items())
    with pytest.raises(UsageError, match="one class a case"):
        found.necessity(torch.tensor([0, 1, 2]))
    with pytest.raises(UsageError, match="cached scores"):
        without_each_token(model, out.replace(tokens=None))
    empty = without_each_token(model, out.part(slice(0, 0)))
    assert empty.logits.shape == (0, 6, 2)
