"""What a faithful Prompt-CAM must show: laws on random transformers, directions on planted patches."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn

from protolearn.audit.deletion import deletion_curve
from protolearn.core.encoder import Encoder
from protolearn.core.method import Train
from protolearn.core.model import PrototypeModel
from protolearn.data import digits
from protolearn.encoders import FeatureEncoder, ImageEncoder, SmallEncoder
from protolearn.encoders.prompted import PromptedEncoder, _attend
from protolearn.errors import UsageError
from protolearn.explain.attention import attention_maps, rank_heads
from protolearn.methods import get_method
from protolearn.tasks.verify import verify
from protolearn.training import stores
from protolearn.training.fit import fit
from protolearn.training.steps import set_modes

PromptCAM = get_method("prompt-cam")
TINY = {"depth": 2, "embed_dim": 32, "num_heads": 4, "patch_size": 8, "img_size": 32}


def transformer(seed: int = 0, **more: Any) -> ImageEncoder:
    """Return a small transformer whose random weights are large enough that tokens differ."""
    encoder = ImageEncoder("vit_tiny_patch16_224", size=32, seed=seed, model_args={**TINY, **more})
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in encoder.parameters():
            if parameter.ndim == 2:
                parameter.copy_(torch.randn(parameter.shape, generator=draw) / parameter.shape[1] ** 0.5)
    return encoder


def model_of(classes: int = 3, encoder: Encoder | None = None, **settings: Any) -> PrototypeModel:
    built: PrototypeModel = PromptCAM(**settings).build(encoder or transformer(), classes)
    with torch.no_grad():
        built.bank.vectors.mul_(5.0)
    return built.eval()


def pictures(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


# -- laws ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("deep", [True, False])
@pytest.mark.parametrize("more", [{}, {"qk_norm": True, "init_values": 0.5}, {"reg_tokens": 2}, {"class_token": False}])
def test_prompts_go_in_and_come_out_as_the_paper_says(deep: bool, more: dict[str, Any]) -> None:
    """Against timm's own blocks, one after the other."""
    if "class_token" in more:
        more = {**more, "global_pool": "avg"}
    model, x = model_of(deep=deep, encoder=transformer(**more)), pictures(2)
    assert isinstance(model.encoder, PromptedEncoder)
    net = model.encoder.inner.net.eval()
    sets = model.bank.vectors.detach().reshape(3, -1, 32)
    with torch.no_grad():
        tokens = net.norm_pre(net._pos_embed(net.patch_embed(x)))
        for index, block in enumerate(net.blocks):
            if deep or index == 0:
                tokens = torch.cat([sets[:, index].expand(2, 3, 32), tokens], 1)
            tokens = block(tokens)
            if deep and index < len(net.blocks) - 1:
                tokens = tokens[:, 3:]
        tokens = net.norm(tokens)
        out = model(x)
    assert out.tokens is not None
    torch.testing.assert_close(out.tokens.extras["prompts"], tokens[:, :3], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(out.tokens.values, tokens[:, 3 + net.num_prefix_tokens :], atol=1e-5, rtol=1e-4)
    scores = tokens[:, :3] @ model.head.weight + model.head.bias  # type: ignore[operator]
    torch.testing.assert_close(out.logits, scores, atol=1e-5, rtol=1e-4)
    assert out.tokens.grid == (4, 4)


def test_the_backbone_receives_no_gradient_and_stays_in_eval_mode() -> None:
    model = model_of()
    phase = PromptCAM().phases()[0]
    assert isinstance(phase, Train)
    set_modes(model, phase)
    model(pictures(4)).logits.square().sum().backward()
    assert all(parameter.grad is None for parameter in model.encoder.parameters())
    for parameter in (*model.bank.parameters(), *model.head.parameters()):
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0
    assert not any(module.training for module in model.encoder.modules())
    assert model.encoder.tunable() == []


def test_permuting_prompts_permutes_logits() -> None:
    model, x = model_of(4), pictures(3)
    with torch.no_grad():
        before = model(x).logits
        order = torch.tensor([2, 0, 3, 1])
        model.bank.vectors.copy_(model.bank.vectors[order])
        after = model(x).logits
    torch.testing.assert_close(after, before[:, order], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(after, before, atol=1e-3)


def test_rows_of_attention_sum_to_1_and_blurred_ones_are_even() -> None:
    block = transformer().net.blocks[0].eval()
    tokens = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        mixed, shares = _attend(block, tokens, 3, 0.0, None)
        torch.testing.assert_close(shares.sum(-1), torch.ones(2, 4, 3))
        torch.testing.assert_close(mixed, block(tokens), atol=1e-5, rtol=1e-4)
        blurred = torch.zeros(3, 4, dtype=torch.bool)
        blurred[1, 2] = True
        _, changed = _attend(block, tokens, 3, 0.0, blurred)
    torch.testing.assert_close(changed[:, 2, 1], torch.full((2, 9), 1 / 9))
    changed[:, 2, 1] = shares[:, 2, 1]
    torch.testing.assert_close(changed, shares)  # nothing else has changed


def test_similarities_are_the_attention_that_maps_show() -> None:
    model, x = model_of(), pictures(2)
    with torch.no_grad():
        out = model(x)
    assert out.tokens is not None
    heads = attention_maps(model, x)
    assert heads.shape == (2, 3, 4, 16)
    maps = model.maps(out.tokens)
    torch.testing.assert_close(maps, heads.mean(2))
    torch.testing.assert_close(model.maps(out.tokens, torch.tensor([1])), maps[:, 1:2])
    assert torch.equal(out.positions, maps.argmax(2))
    torch.testing.assert_close(out.similarities, maps.amax(2))


def test_a_class_is_its_own_score_and_the_head_knows_no_class() -> None:
    model, x = model_of(), pictures(2)
    assert {name: tuple(p.shape) for name, p in model.head.named_parameters()} == {"weight": (32,), "bias": ()}
    out = model(x)
    ledger = model.head.ledger(out)
    torch.testing.assert_close(ledger.sum(2) + model.head.offset(), out.logits)
    assert torch.equal(ledger, torch.diag_embed(ledger.diagonal(dim1=1, dim2=2)))
    model.bank.ban([1])
    banned = model(x)
    torch.testing.assert_close(banned.logits[:, 1], model.head.offset()[1].expand(2))
    torch.testing.assert_close(banned.logits[:, 0], out.logits[:, 0])
    model.bank.unban([1])
    model.prune([1])
    pruned = model(x)
    assert pruned.logits.shape == (2, 3)
    torch.testing.assert_close(model.head.ledger(pruned).sum(2) + model.head.offset(), pruned.logits)


def test_prompts_are_dropped_in_training_only() -> None:
    model, x = model_of(dropout=0.5, drop_path=0.5), pictures(4)
    with torch.no_grad():
        assert torch.equal(model(x).logits, model(x).logits)
        model.bank.train()
        torch.manual_seed(0)
        one, other = model(x).logits, model(x).logits
        assert not torch.equal(one, other)
        torch.manual_seed(0)
        assert torch.equal(model(x).logits, one)


def test_prompts_start_as_the_paper_says_and_rates_rise_and_fall() -> None:
    vectors = PromptCAM().build(transformer(), 5).bank.vectors
    bound = (6 / (3 * 8 * 8 + 32)) ** 0.5
    assert vectors.shape == (5, 2 * 32)
    assert 0.9 * bound < vectors.abs().max() <= bound
    phase = PromptCAM().phases()[0]
    assert isinstance(phase, Train)
    assert (phase.optimizer, phase.momentum, phase.epochs) == ("sgd", 0.9, 130)
    assert phase.decay == {"prototypes": 1e-3, "head": 1e-3}
    rates = [0.005 * phase.factor(epoch) for epoch in range(131)]
    assert rates[0] == pytest.approx(0.005 / 20)
    assert rates[19] == pytest.approx(0.005)
    assert rates[130] == pytest.approx(1e-6)
    assert rates[20:] == sorted(rates[20:], reverse=True)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.005)
    theirs = CosineLRScheduler(optimizer, t_initial=130, lr_min=1e-6, warmup_t=20)
    assert rates[20:130] == pytest.approx([theirs._get_lr(epoch)[0] for epoch in range(20, 130)], rel=1e-9)


@pytest.mark.parametrize(
    "encoder",
    [
        FeatureEncoder(8),
        SmallEncoder(),
        ImageEncoder("mobilenetv3_small_050", size=32),
        ImageEncoder("vit_tiny_patch16_224", size=32, layer=(0, 1), model_args=TINY),
        ImageEncoder("vit_tiny_patch16_224", size=32, smooth=3, model_args=TINY),
    ],
)
def test_encoders_that_cannot_take_prompts_are_refused(encoder: Encoder) -> None:
    with pytest.raises(UsageError, match="prompt-cam: prompts need a vision transformer of timm"):
        PromptCAM().build(encoder, 2)


@pytest.mark.parametrize("wrong", [{"dropout": 1.0}, {"warmup": 200}, {"rate": 0.0}, {"least_rate": 1.0}])
def test_bad_settings(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="prompt-cam: "):
        PromptCAM(**wrong)


def test_one_class_and_unlabelled_cases_give_finite_numbers_and_nan_surfaces() -> None:
    model, method = model_of(1), PromptCAM()
    for labels in (torch.zeros(2, dtype=torch.long), torch.full((2,), -1)):
        assert method.objective(model(pictures(2)), labels)["cross_entropy"].isfinite()
    broken = pictures(2)
    broken[0, 0, 0, 0] = float("nan")
    assert method.objective(model_of(2)(broken), torch.tensor([0, 1]))["cross_entropy"].isnan()


def test_training_never_caches_tokens_and_leaves_the_backbone_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("these tokens depend on the prompts")

    monkeypatch.setattr(stores, "token_cache", refuse)
    encoder = transformer()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    train = digits("train").subset(range(60))
    method = PromptCAM(epochs=1, warmup=0, rate=0.05)
    done = fit(
        method, train, encoder=encoder, validation=digits("test").subset(range(20)), quiet=True, batch_size=20,
        device="cpu",
    )  # fmt: skip
    assert "validation_accuracy" in done.history[-1]
    after = encoder.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    sources = done.model.bank.sources
    assert all(source is not None and not source.moved and source.label == row for row, source in enumerate(sources))
    assert verify(done.model, train).ok
    with torch.no_grad():
        done.model.bank.vectors.add_(0.1)
    assert {check.status for check in verify(done.model, train).failures} == {"encoder changed"}


def test_a_phase_of_the_head_alone_goes_through_the_network_too(monkeypatch: pytest.MonkeyPatch) -> None:
    head_only = Train("head", 1, {"head": 0.1})
    monkeypatch.setattr(PromptCAM, "phases", lambda self: [head_only])
    train = digits("train").subset(range(20))
    before = PromptCAM().build(transformer(), 10).bank.vectors.detach()
    done = fit(PromptCAM(), train, encoder=transformer(), quiet=True, batch_size=20, device="cpu")
    assert torch.equal(done.model.bank.vectors, before)


# -- directions, on a class that is one patch among noise ---------------------------------------------------------


def planted(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return noise with one patch that tells the class, the classes, and where the patch is."""
    draw = torch.Generator().manual_seed(seed)
    signs = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(99)).sign()
    x, y = 0.5 * torch.randn(count, 3, 32, 32, generator=draw), torch.randint(3, (count,), generator=draw)
    place = torch.randint(16, (count,), generator=draw)
    for i, position in enumerate(place.tolist()):
        row, column = divmod(position, 4)
        x[i, :, row * 8 : row * 8 + 8, column * 8 : column * 8 + 8] = signs[y[i]]
    return x, y, place


@lru_cache
def asked() -> PrototypeModel:
    """Return a small transformer trained here by its class token, then frozen and given prompts."""
    x, y, _ = planted(400, 0)
    encoder = ImageEncoder("vit_tiny_patch16_224", size=32, model_args=TINY)
    torch.manual_seed(0)
    readout = nn.Linear(32, 3)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *readout.parameters()], lr=3e-3)
    for _ in range(10):
        for rows in torch.randperm(400).split(50):
            loss = F.cross_entropy(readout(encoder(x[rows]).summary), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    method = PromptCAM()
    model: PrototypeModel = method.build(encoder, 3)
    phase = method.phases()[0]
    assert isinstance(phase, Train)
    set_modes(model, phase)
    prompts = torch.optim.SGD([*model.bank.parameters(), *model.head.parameters()], lr=0.1, momentum=0.9)
    for _ in range(6):
        for rows in torch.randperm(400).split(50):
            loss = method.objective(model(x[rows]), y[rows])["cross_entropy"]
            prompts.zero_grad()
            loss.backward()
            prompts.step()
    return model.eval()


@pytest.mark.slow
def test_prompts_attend_to_the_patch_that_tells_the_class() -> None:
    model, (x, y, place) = asked(), planted(200, 1)
    with torch.no_grad():
        out = model(x)
    assert (out.logits.argmax(1) == y).float().mean() > 0.95
    own = out.positions.gather(1, y.unsqueeze(1)).squeeze(1)
    assert (own == place).float().mean() > 0.8


@pytest.mark.slow
def test_deleting_what_is_attended_to_costs_more_than_deleting_at_random() -> None:
    model, (x, y, _) = asked(), planted(200, 1)
    own = attention_maps(model, x).mean(2)[torch.arange(200), y]
    first = own.argsort(1, descending=True)[:, :2]
    draw = torch.Generator().manual_seed(0)
    chance = torch.stack([torch.randperm(16, generator=draw)[:2] for _ in range(200)])
    by_attention, by_chance = deletion_curve(model, x, first, y), deletion_curve(model, x, chance, y)
    assert torch.equal(by_attention[:, 0], by_chance[:, 0])
    cost = (by_attention[:, 0] - by_attention[:, -1]).mean()
    assert cost > 3 * (by_chance[:, 0] - by_chance[:, -1]).mean()
    assert cost > 0.5


@pytest.mark.slow
def test_blurring_all_heads_takes_away_what_the_class_was_known_by() -> None:
    model, (x, y, _) = asked(), planted(200, 1)
    with torch.no_grad():
        sharp = model(x).logits.softmax(1).gather(1, y.unsqueeze(1)).mean()
        known = torch.zeros(200)
        for label in range(3):
            blurred = torch.zeros(3, 4, dtype=torch.bool)
            blurred[label] = True
            tokens = model.encoder(x, model.bank, blurred)
            even = tokens.extras["attention"][:, :, label]
            assert torch.allclose(even, torch.full_like(even, 1 / (3 + 1 + 16)))  # whatever the picture shows
            found = model.run(tokens).logits.softmax(1)[:, label]
            known[y == label] = found[y == label]
    assert known.mean() < sharp - 0.03


@pytest.mark.slow
def test_heads_are_ranked_by_how_much_the_class_needs_them() -> None:
    model, (x, y, _) = asked(), planted(8, 2)
    for i in range(4):
        ranking = rank_heads(model, x[i : i + 1], int(y[i]))
        assert sorted(ranking.heads) == [0, 1, 2, 3]
        with torch.no_grad():
            alone = []
            for head in range(4):
                blurred = torch.zeros(3, 4, dtype=torch.bool)
                blurred[y[i], head] = True
                tokens = model.encoder(x[i : i + 1], model.bank, blurred)
                alone.append(float(model.run(tokens).logits.double().softmax(1)[0, y[i]]))
        assert ranking.heads[-1] == max(range(4), key=alone.__getitem__)  # blurred first: needed least
        assert ranking.probabilities[1] == pytest.approx(max(alone), abs=1e-6)


def test_what_has_no_prompts_has_no_heads_to_rank() -> None:
    other = get_method("protopnet")(prototypes_per_class=1).build(SmallEncoder(), 2)
    with pytest.raises(UsageError, match="no prompts"):
        rank_heads(other, torch.zeros(1, 3, 32, 32), 0)
    with pytest.raises(UsageError, match="one input"):
        rank_heads(model_of(), pictures(2), 0)
