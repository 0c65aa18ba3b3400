"""Turned channels: what a linear classifier says does not change, whatever the turning."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from protolearn.core.channels import OwnChannel, channel_bank
from protolearn.core.measures import dot
from protolearn.core.model import PrototypeModel
from protolearn.core.pooling import mean_pool
from protolearn.core.rotation import ChannelRotation, FoldedLinear, RotationKind, exponential
from protolearn.encoders import FeatureEncoder

KINDS: tuple[RotationKind, ...] = ("orthogonal", "invertible")


def random_turn(dim: int, kind: RotationKind, scale: float = 0.3, seed: int = 0) -> ChannelRotation:
    turn = ChannelRotation(dim, kind)
    with torch.no_grad():
        turn.raw.copy_(scale * torch.randn(dim, dim, generator=torch.Generator().manual_seed(seed)))
    return turn


@given(st.integers(1, 12), st.floats(0.0, 3.0), st.integers(0, 99))
def test_the_exponential_of_what_is_skew_is_orthogonal(dim: int, scale: float, seed: int) -> None:
    matrix = scale * torch.randn(dim, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    turn = exponential(matrix - matrix.T)
    torch.testing.assert_close(turn.T @ turn, torch.eye(dim, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(exponential(matrix) @ exponential(-matrix), torch.eye(dim).double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("scale", [0.01, 0.5, 2.0])
def test_the_gradient_of_the_exponential_is_torch_s(scale: float) -> None:
    draw = torch.Generator().manual_seed(1)
    matrix = (scale * torch.randn(7, 7, generator=draw, dtype=torch.float64)).requires_grad_()
    weight = torch.randn(7, 7, generator=draw, dtype=torch.float64)
    ours = torch.autograd.grad((exponential(matrix) * weight).sum(), matrix)[0]
    theirs = torch.autograd.grad((torch.matrix_exp(matrix) * weight).sum(), matrix)[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_what_is_not_finite_gives_nan_and_no_endless_halving() -> None:
    assert bool(exponential(torch.tensor([[float("inf")]])).isnan().all())
    assert bool(exponential(torch.full((2, 2), float("nan"))).isnan().all())
    assert exponential(torch.zeros(0, 0)).shape == (0, 0)


def test_both_kinds_start_as_the_identity() -> None:
    tokens = torch.randn(2, 5, 4)
    for kind in KINDS:
        turn = ChannelRotation(4, kind)
        assert torch.equal(turn.matrix(), torch.eye(4))
        assert torch.equal(turn(tokens), tokens)
        assert turn.defect() == 0.0


@pytest.mark.parametrize("dim", [64, 300])
def test_orthogonal_to_five_digits_at_every_step_of_a_training(dim: int) -> None:
    """In single precision, and far from the start: rates are a hundred times the paper's."""
    turn, eye = ChannelRotation(dim), torch.eye(dim)
    adam = torch.optim.Adam(turn.parameters(), lr=0.1)
    goal = torch.linalg.qr(torch.randn(dim, dim, generator=torch.Generator().manual_seed(0)))[0]
    for _ in range(8):
        matrix = turn.matrix()
        assert float((matrix.T @ matrix - eye).detach().abs().max()) < 1e-5
        adam.zero_grad()
        (matrix - goal).square().sum().backward()
        adam.step()
    assert float((turn.matrix() - eye).detach().abs().max()) > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_logits_stay_while_the_rotation_moves(kind: RotationKind) -> None:
    """The head follows every change of U at once: nothing has to be told to it."""
    draw = torch.Generator().manual_seed(2)
    tokens, weight, bias = (torch.randn(*s, generator=draw) for s in ((6, 9, 32), (7, 32), (7,)))
    turn = ChannelRotation(32, kind)
    head = FoldedLinear(turn, weight, bias)
    wanted = tokens.mean(1) @ weight.T + bias
    for step in range(4):
        with torch.no_grad():
            turn.raw.add_(0.1 * torch.randn(32, 32, generator=draw))
            evidence = turn(tokens).mean(1)
            torch.testing.assert_close(head(evidence), wanted, rtol=1e-4, atol=1e-4)
            ledger = head.contributions(evidence).sum(2) + head.offset()
            torch.testing.assert_close(ledger, wanted, rtol=1e-4, atol=1e-4)
        assert turn.defect() < 1e-4
        assert step == 0 or not torch.equal(head.weight.detach(), weight)


def test_what_is_written_past_the_version_counter_is_noticed() -> None:
    turn = random_turn(5, "orthogonal").requires_grad_(False)
    before = turn.matrix().clone()
    turn.raw.data.mul_(2.0)
    assert not torch.allclose(turn.matrix(), before)
    torch.testing.assert_close(turn.inverse() @ turn.matrix(), torch.eye(5), rtol=0, atol=1e-6)
    assert turn.inverse() is turn.inverse()


def test_gradients_reach_the_rotation_and_the_trained_weights() -> None:
    turn = random_turn(4, "invertible")
    head = FoldedLinear(turn, torch.randn(3, 4))
    head(turn(torch.randn(2, 5, 4)).mean(1)).square().sum().backward()
    assert turn.raw.grad is not None
    assert head.trained.grad is not None
    assert bool(head.trained.grad.any())
    assert set(dict(head.named_parameters())) == {"trained", "bias"}, "the rotation is no part of the head"


def whole(kind: RotationKind = "orthogonal") -> PrototypeModel:
    turn = random_turn(6, kind)
    bank = channel_bank(6, classes=3)
    head = FoldedLinear(turn, torch.randn(3, 6, generator=torch.Generator().manual_seed(3)))
    encoder = FeatureEncoder(6)
    return PrototypeModel(encoder, turn, bank, dot, head, pooling=mean_pool, compare=OwnChannel(bank)).eval()


def test_a_copy_turns_by_its_own_rotation() -> None:
    model, tokens = whole(), torch.randn(4, 5, 6)
    other = copy.deepcopy(model)
    wanted = model(tokens).logits.detach()
    with torch.no_grad():
        other.neck.raw.zero_()
    torch.testing.assert_close(other(tokens).logits.detach(), wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model(tokens).logits.detach(), wanted, rtol=0, atol=0)


def test_a_removed_channel_takes_its_contribution_along() -> None:
    model, tokens = whole("invertible"), torch.randn(4, 5, 6)
    before = model(tokens)
    table = model.head.ledger(before)
    model.prune([1, 4])
    after = model(tokens)
    left = [0, 2, 3, 5]
    torch.testing.assert_close(model.head.ledger(after), table[..., left], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(after.logits, table[..., left].sum(2) + model.head.offset(), rtol=1e-4, atol=1e-5)
    assert after.table is not None
    assert before.table is not None
    assert torch.equal(after.table, before.table[..., left])
    again = whole("invertible")
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(tokens).logits, after.logits)


def test_a_banned_channel_is_silent() -> None:
    model, tokens = whole(), torch.randn(2, 5, 6)
    table = model.head.ledger(model(tokens))
    model.bank.ban([0])
    out = model(tokens)
    torch.testing.assert_close(out.logits, table[..., 1:].sum(2) + model.head.offset(), rtol=1e-4, atol=1e-5)


def test_the_table_is_that_of_the_dot_product() -> None:
    model, tokens = whole(), torch.randn(3, 5, 6)
    out = model(tokens)
    model.compare = None
    plain = model(tokens)
    torch.testing.assert_close(out.table, plain.table, rtol=1e-6, atol=1e-6)
    assert torch.equal(out.positions, plain.positions)


def test_weights_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="D = 4"):
        FoldedLinear(ChannelRotation(4), torch.zeros(2, 5))
