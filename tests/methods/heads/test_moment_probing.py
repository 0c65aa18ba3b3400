"""What a faithful moment probe must show: order does not matter, half is the linear probe, covariance is seen."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from protolearn.core.moments import TokenMoments, compressed
from protolearn.data.features import FeatureCases, features
from protolearn.encoders import FeatureEncoder
from protolearn.errors import UsageError
from protolearn.methods import get_method
from protolearn.structures import Tokens
from protolearn.training.fit import Fit, fit

MomentProbing = get_method("moment-probing")


def planted(count: int, seed: int) -> FeatureCases:
    """Two classes of 24 tokens with mean 0; coordinates 0 and 1 go together in one class and apart in the other."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    tokens = torch.randn(count, 24, 6, generator=draw)
    tokens[..., 1] = tokens[..., 0] * (1.0 - 2.0 * labels).unsqueeze(1) + 0.3 * tokens[..., 1]
    tokens = tokens - tokens.mean(1, keepdim=True)
    return features(tokens, labels, name=f"planted/{seed}")


def train(cases: FeatureCases, **more: object) -> Fit:
    method = MomentProbing(hidden=32, **{"rate": 1e-2, "epochs": 15, **more})
    return fit(method, cases, encoder=FeatureEncoder(6), quiet=True, device="cpu", batch_size=40)


def test_order_of_the_tokens_does_not_matter() -> None:
    moments, tokens = TokenMoments(6, hidden=32), torch.randn(3, 10, 6)
    turned = tokens[:, torch.randperm(10)]
    torch.testing.assert_close(moments(turned), moments(tokens), rtol=1e-4, atol=1e-5)


def test_padding_does_not_matter() -> None:
    moments, tokens = TokenMoments(6, hidden=32), torch.randn(3, 10, 6)
    padded = torch.cat([tokens, torch.full((3, 4, 6), 9.0)], 1)
    mask = torch.arange(14).expand(3, -1) < 10
    got = moments.on_tokens(Tokens(padded, mask=mask)).values
    torch.testing.assert_close(got, moments(tokens), rtol=1e-4, atol=1e-5)


def test_without_the_second_moment_it_is_half_a_linear_probe() -> None:
    model = MomentProbing(hidden=32).build(FeatureEncoder(6), classes=3)
    tokens = torch.randn(5, 10, 6)
    with torch.no_grad():
        model.bank.vectors[3:] = 0.0
        model.head.bias.fill_(0.5)
    out = model(tokens)
    probe = F.linear(tokens.mean(1), model.bank.vectors[:3, :6], torch.ones(3))
    torch.testing.assert_close(out.logits, probe / 2)


def test_the_mean_is_blind_where_covariance_tells() -> None:
    cases, test = planted(400, 0), planted(200, 1)
    done = train(cases)
    model = done.model
    shown = torch.stack([test[i].inputs for i in range(200)])
    with torch.no_grad():
        both = float((model(shown).logits.argmax(1).numpy() == test.labels).mean())
        model.bank.vectors[2:] = 0.0  # what the linear probe alone says
        alone = float((model(shown).logits.argmax(1).numpy() == test.labels).mean())
    assert both > 0.9
    assert alone < 0.65


def test_the_ledger_tells_the_moments_apart() -> None:
    model = train(planted(200, 0), epochs=10).model
    test = planted(40, 1)
    shown = torch.stack([test[i].inputs for i in range(40)])
    with torch.no_grad():
        out = model(shown)
    ledger = model.head.ledger(out)
    torch.testing.assert_close(ledger.sum(2) + model.head.offset(), out.logits)
    second = ledger[:, :, model.bank.groups == 1].abs().sum(2)
    first = ledger[:, :, model.bank.groups == 0].abs().sum(2)
    assert float((second > first).float().mean()) > 0.9
    assert model.bank.sources == [None] * 4


def test_each_row_stays_on_its_own_moment() -> None:
    model = train(planted(100, 0), epochs=2).model
    vectors = model.bank.vectors.detach()
    assert vectors[:2, 6:].eq(0).all()
    assert vectors[2:, :6].eq(0).all()
    assert vectors[2:, 6:].ne(0).all()


def test_shapes_follow_from_the_settings() -> None:
    assert compressed(128) == 31
    paper = MomentProbing().build(FeatureEncoder(16), classes=7)
    assert paper.bank.vectors.shape == (14, 16 + 2883)
    other = MomentProbing(hidden=96, heads=6).build(FeatureEncoder(16), classes=7)
    side = compressed(16)
    assert other.bank.vectors.shape == (14, 16 + 5 * side * side)
    assert other(torch.randn(2, 5, 16)).logits.shape == (2, 7)


def test_a_single_token_and_equal_tokens_are_finite() -> None:
    model = MomentProbing(hidden=32).build(FeatureEncoder(6), classes=3)
    for tokens in (torch.randn(2, 6), torch.ones(2, 5, 6)):
        out = model(tokens)
        out.logits.sum().backward()
        assert bool(torch.isfinite(out.logits).all())
        grads: list[Tensor] = [p.grad for p in model.parameters() if p.grad is not None]
        assert all(bool(torch.isfinite(grad).all()) for grad in grads)


def test_wrong_settings() -> None:
    for wrong in ({"hidden": 30}, {"hidden": 20}, {"heads": 1}):
        with pytest.raises(UsageError, match="hidden"):
            MomentProbing(**wrong)
    with pytest.raises(UsageError, match="centre"):
        MomentProbing(centre="token")
