"""Several representations of one token: necks side by side, prototypes held in their part, a finer layout."""

from __future__ import annotations

import copy

import torch
from torch import nn

from protolearn.core.bank import PrototypeBank
from protolearn.core.constraints import WithinPart, within_part
from protolearn.core.heads import LinearEvidence
from protolearn.core.measures import cosine_in_parts
from protolearn.core.model import PrototypeModel
from protolearn.core.necks import Finer, SideBySide, make_neck
from protolearn.structures import Tokens


def banked() -> PrototypeBank:
    bank = PrototypeBank(torch.rand(6, 8), torch.eye(3).repeat(2, 1), groups=torch.tensor([0, 0, 0, 1, 1, 1]))
    bank.constraint = WithinPart(bank, 2)
    bank.constrain()
    return bank


def test_the_constraint_is_its_own_image_and_zero_vectors_stay_finite() -> None:
    vectors, groups = torch.randn(5, 6), torch.tensor([0, 1, 2, 1, 0])
    held = within_part(vectors, groups, 3)
    torch.testing.assert_close(within_part(held, groups, 3), held)
    rows = torch.arange(5)
    assert held.unflatten(1, (3, 2))[rows, (groups + 1) % 3].eq(0).all()
    assert within_part(torch.zeros(1, 6), groups[:1], 3).isfinite().all()


def test_it_follows_the_bank_through_pruning_copying_and_moving() -> None:
    bank = banked()
    twin = copy.deepcopy(bank)
    twin.keep(torch.tensor([5, 0]))
    token = torch.arange(1.0, 9.0)
    twin.move(torch.tensor([0, 1]), token.expand(2, 8), [None, None])
    halves = token.unflatten(0, (2, 4))
    torch.testing.assert_close(twin.vectors[0, 4:], halves[1] / halves[1].norm())
    torch.testing.assert_close(twin.vectors[1, :4], halves[0] / halves[0].norm())
    assert twin.vectors[0, :4].eq(0).all()
    assert len(bank) == 6, "the original is untouched"
    settled = bank.settled(torch.tensor([4]), token.unsqueeze(0))
    torch.testing.assert_close(settled[0, 4:], halves[1] / halves[1].norm())


def test_no_gradient_crosses_between_the_parts() -> None:
    bank = banked()
    neck = SideBySide(nn.Linear(5, 4), nn.Linear(5, 4))
    model = PrototypeModel(nn.Identity(), neck, bank, cosine_in_parts(2), LinearEvidence.from_ownership(bank.ownership))
    out = model.run(Tokens(torch.randn(2, 7, 5)))
    out.evidence[:, :3].sum().backward()
    first, second = neck.necks
    assert first.weight.grad is not None
    assert first.weight.grad.abs().sum() > 0
    assert second.weight.grad is not None
    assert second.weight.grad.eq(0).all()


def test_a_finer_neck_lays_tokens_out_anew() -> None:
    neck = Finer(make_neck("linear", 5, 3), 2)
    tokens = Tokens(torch.randn(2, 6, 5), grid=(2, 3), input_size=(8, 12))
    finer = neck.on_tokens(tokens)
    assert finer.grid == (4, 6)
    assert finer.values.shape == (2, 24, 3)
    assert neck.on_tokens(Tokens(tokens.values)).values.shape == (2, 6, 3)
    assert [type(layer) for layer in make_neck("single", 5, 3)] == [nn.Linear, nn.Sigmoid]
