"""What a faithful PDiscoFormer must show: laws of its maps and terms, and directions on real handwritten digits."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor

from protolearn.core.affine import inverse, random_affine, warp
from protolearn.core.method import Project, Train
from protolearn.core.model import PrototypeModel
from protolearn.data import digits
from protolearn.encoders import FeatureEncoder, ImageEncoder, SmallEncoder
from protolearn.errors import UsageError
from protolearn.methods import get_method
from protolearn.objectives import part_discovery as terms
from protolearn.structures import Output
from protolearn.training.fit import Fit, fit
from protolearn.training.steps import set_modes

PDiscoFormer = get_method("pdiscoformer")
TERMS = (
    "cross_entropy", "presence", "background", "equivariance", "orthogonality", "total_variation", "entropy",
    "concentration",
)  # fmt: skip


def model_of(**settings: Any) -> PrototypeModel:
    built: PrototypeModel = PDiscoFormer(**settings).build(SmallEncoder(dim=16), 3)
    return built.eval()


def pictures(count: int = 4) -> Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def seen(method: Any, model: PrototypeModel, x: Tensor, labels: Tensor) -> tuple[Output, Tensor]:
    """Return what an objective is given in a phase that goes through the network."""
    inputs, labels, targets = method.prepare(x, labels, {}, torch.Generator().manual_seed(0))
    return model(inputs).replace(targets=targets), labels


# -- laws ---------------------------------------------------------------------------------------------------------


def test_shares_sum_to_1_at_every_place() -> None:
    model = model_of(parts=5)
    out = model(pictures())
    assert out.table is not None
    torch.testing.assert_close(out.table.sum(-1), torch.ones(4, 64))
    torch.testing.assert_close(out.evidence, out.table.mean(1))
    assert torch.equal(out.positions, out.table.argmax(1))
    assert out.tokens is not None
    torch.testing.assert_close(model.maps(out.tokens, torch.tensor([5]))[:, 0], out.table[..., 5])


def test_every_term_is_named_weighed_and_as_its_formula_says() -> None:
    method = PDiscoFormer(parts=3, gumbel=False)
    assert tuple(method.weights()) == TERMS
    assert [method.weights()[name] for name in TERMS] == [1, 1, 2, 1, 1, 1, 1, 0]
    model = method.build(SmallEncoder(dim=16), 3).eval()
    x, y = pictures(), torch.tensor([0, 1, 2, 0])
    out, labels = seen(method, model, x, y)
    assert labels.tolist() == [0, 1, 2, 0, -1, -1, -1, -1]
    found = method.objective(out, labels)
    assert set(found) == set(TERMS)
    alone = model(x)
    assert alone.table is not None and alone.tokens is not None and alone.tokens.grid == (8, 8)
    maps = alone.table.transpose(1, 2).reshape(4, 4, 8, 8)
    torch.testing.assert_close(found["cross_entropy"], torch.nn.functional.cross_entropy(alone.logits, y))
    torch.testing.assert_close(found["presence"], terms.part_presence(maps[:, :3]))
    torch.testing.assert_close(found["background"], terms.background_presence(maps[:, 3]))
    torch.testing.assert_close(found["total_variation"], terms.total_variation(maps))
    torch.testing.assert_close(found["entropy"], terms.assignment_entropy(maps))
    torch.testing.assert_close(found["concentration"], terms.concentration(maps[:, :3]))
    features = torch.einsum("bsp,bsd->bpd", alone.table, alone.tokens.values) / 64
    normed = torch.nn.functional.layer_norm(features, (4, 16))
    torch.testing.assert_close(found["orthogonality"], terms.part_orthogonality(normed))
    theta = random_affine((32, 32), generator=torch.Generator().manual_seed(0)).expand(4, 2, 3)
    other = model(warp(x, theta)).table
    assert other is not None
    back = warp(other.transpose(1, 2).reshape(4, 4, 8, 8)[:, :3], inverse(theta))
    torch.testing.assert_close(found["equivariance"], terms.equivariance(maps[:, :3], back), atol=1e-5, rtol=1e-4)
    assert found["equivariance"] > 1e-3
    cells = PDiscoFormer(parts=3, window=1).objective(out, labels)
    torch.testing.assert_close(cells["presence"], 1 - maps[:, :3].amax((0, 2, 3)).mean())
    torch.testing.assert_close(cells["background"], terms.background_presence(maps[:, 3], window=1))
    plain = PDiscoFormer(parts=3, orthogonality_of="plain").objective(out, labels)["orthogonality"]
    torch.testing.assert_close(plain, terms.part_orthogonality(features))


def test_equivariance_is_0_when_nothing_is_transformed() -> None:
    method = PDiscoFormer(parts=3, degrees=0.0, translate=0.0, scale=(1.0, 1.0))
    out, labels = seen(method, model_of(parts=3), pictures(), torch.zeros(4, dtype=torch.long))
    assert method.objective(out, labels)["equivariance"].abs() < 1e-5


def test_copies_count_for_equivariance_alone() -> None:
    """Everything else is the same as without them."""
    method, model = PDiscoFormer(parts=3), model_of(parts=3)
    x, y = pictures(), torch.tensor([0, 1, 2, 0])
    with_copies = method.objective(*seen(method, model, x, y))
    without = method.objective(model(x), y)
    assert set(with_copies) - set(without) == {"equivariance"}
    for name, value in without.items():
        torch.testing.assert_close(value, with_copies[name], atol=1e-6, rtol=1e-5)
    off = PDiscoFormer(equivariance_weight=0.0)
    assert off.prepare(x, y, {}, torch.Generator())[0] is x


def test_targets_travel_with_the_copies_and_one_draw_moves_a_batch() -> None:
    method = PDiscoFormer()
    y, more = torch.tensor([0, 1]), {"more": torch.tensor([[5.0], [6.0]])}
    inputs, labels, targets = method.prepare(pictures(2), y, more, torch.Generator().manual_seed(1))
    assert inputs.shape == (4, 3, 32, 32)
    assert labels.tolist() == [0, 1, -1, -1]
    assert targets["more"].flatten().tolist() == [5, 6, 5, 6]
    assert torch.equal(targets["theta"][0], torch.eye(2, 3))
    assert torch.equal(targets["theta"][2], targets["theta"][3])
    again = method.prepare(pictures(2), y, more, torch.Generator().manual_seed(1))[2]["theta"]
    assert torch.equal(again, targets["theta"])


def test_the_ledger_is_exact_and_the_background_adds_nothing() -> None:
    model = model_of(parts=4)
    out = model(pictures())
    ledger = model.head.ledger(out)
    torch.testing.assert_close(ledger.sum(2) + model.head.offset(), out.logits)
    assert ledger[:, :, 4].eq(0).all()
    assert model.bank.owner().eq(-1).all()


def test_the_phase_is_the_papers() -> None:
    joint, record = PDiscoFormer().phases()
    assert isinstance(joint, Train)
    assert isinstance(record, Project) and not record.move
    assert joint.rates == pytest.approx({"encoder": 1e-6, "prototypes": 1e-6 * 1e3, "head": 1e-6 * 1e4})
    factors = [joint.factor(epoch) for epoch in range(28)]
    assert factors == [0.5 ** (epoch // 4) for epoch in range(28)]


def test_noise_and_dropout_in_training_only() -> None:
    model, x = model_of(parts=4), pictures()
    joint = PDiscoFormer().phases()[0]
    assert isinstance(joint, Train)
    with torch.no_grad():
        assert torch.equal(model(x).logits, model(x).logits)
        set_modes(model, joint)
        assert not torch.equal(model(x).table, model(x).table)  # type: ignore[arg-type]
        frozen = Train("other", 1, {"head": 1e-3})
        set_modes(model, frozen)
        assert torch.equal(model(x).table, model(x).table)  # type: ignore[arg-type]
        assert not torch.equal(model(x).logits, model(x).logits)


def test_tokens_without_a_grid_lack_the_terms_of_neighbours() -> None:
    method = PDiscoFormer(parts=2)
    for encoder, names in (
        (FeatureEncoder(4), {"cross_entropy", "presence", "orthogonality", "entropy"}),
        (FeatureEncoder(4, grid=(3,)), set(TERMS) - {"equivariance"}),
    ):
        found = method.objective(method.build(encoder, 2).eval()(torch.rand(3, 3, 4)), torch.tensor([0, 1, -1]))
        assert set(found) == names
        assert all(value.isfinite() for value in found.values())
    single = method.build(FeatureEncoder(4), 2).eval()(torch.rand(3, 4))
    assert all(value.isfinite() for value in method.objective(single, torch.tensor([0, 0, 0])).values())


def test_one_part_one_class_no_label_and_nan() -> None:
    method = PDiscoFormer(parts=1)
    model = method.build(SmallEncoder(dim=8), 1).eval()
    for labels in (torch.zeros(2, dtype=torch.long), torch.full((2,), -1)):
        out, seen_labels = seen(method, model, pictures(2), labels)
        found = method.objective(out, seen_labels)
        loss = method.loss(found)
        assert all(value.isfinite() for value in found.values())
        loss.backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    broken = pictures(2)
    broken[:] = float("nan")
    assert method.objective(model(broken), torch.zeros(2, dtype=torch.long))["cross_entropy"].isnan()


@pytest.mark.parametrize(
    "wrong",
    [{"parts": 0}, {"temperature": 0.0}, {"part_dropout": 1.0}, {"scale": (1.4, 0.8)}, {"modulation": "other"},
     {"dim": 0}, {"epochs": -1}, {"window": 0}],
)  # fmt: skip
def test_bad_settings(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="pdiscoformer: "):
        PDiscoFormer(**wrong)
    with pytest.raises(UsageError, match="pdiscoformer: dim"):
        PDiscoFormer(dim=5).build(FeatureEncoder(4), 2)


def test_a_transformer_that_trains_its_embeddings_alone() -> None:
    encoder = ImageEncoder(
        "vit_tiny_patch16_224", size=32, train_from="embeddings",
        model_args={"depth": 1, "embed_dim": 16, "num_heads": 2, "patch_size": 8},
    )  # fmt: skip
    method = PDiscoFormer(parts=2)
    model = method.build(encoder, 3)
    joint = method.phases()[0]
    assert isinstance(joint, Train)
    set_modes(model, joint)
    out, labels = seen(method, model, pictures(), torch.tensor([0, 1, 2, 0]))
    method.loss(method.objective(out, labels)).backward()
    moved = {name for name, p in encoder.net.named_parameters() if p.grad is not None}
    assert moved == {"cls_token", "pos_embed"}
    assert not any(module.training for module in encoder.net.modules())


# -- directions on digits: tokens of a random, frozen network -------------------------------------------------------


@lru_cache
def trained(**settings: Any) -> Fit:
    method = PDiscoFormer(**{
        "parts": 4, "epochs": 10, "step": 0, "encoder_rate": None, "neck": "principal", "dim": 16,
        "start": "k_means", "temperature": 0.05, "gumbel": False, "prototype_rate": 3e-3, "head_rate": 3e-2,
        "presence_weight": 2.0, "total_variation_weight": 0.5, **settings,
    })  # fmt: skip
    train = digits("train").subset(range(0, 1200, 6))
    return fit(method, train, encoder=SmallEncoder(dim=32), batch_size=40, quiet=True, device="cpu")


@lru_cache
def shares(**settings: Any) -> Tensor:
    """Return the shares ``(200, 64, 5)`` of the training digits; the background is the last."""
    model = trained(**settings).model
    cases = digits("train").subset(range(0, 1200, 6)).with_transform(SmallEncoder().preprocess)
    with torch.no_grad():
        table = model(torch.stack([cases[i].inputs for i in range(200)])).table
    assert table is not None
    return table


@pytest.mark.slow
def test_more_total_variation_weight_gives_shorter_boundaries() -> None:
    lengths = [trained(total_variation_weight=w).history[-1]["total_variation"] for w in (0.0, 0.5, 2.0)]
    assert lengths[0] > lengths[1] > lengths[2]


@pytest.mark.slow
def test_presence_keeps_all_parts_in_use_and_without_it_parts_die() -> None:
    used = [len(set(shares(presence_weight=w).argmax(2).flatten().tolist()) - {4}) for w in (2.0, 0.0)]
    assert used[0] == 4
    assert used[1] < 4


@pytest.mark.slow
def test_the_background_covers_the_border_more_than_the_centre() -> None:
    background = shares()[..., 4].mean(0).view(8, 8)
    border = torch.cat([background[0], background[-1], background[1:-1, 0], background[1:-1, -1]]).mean()
    assert border > 2 * background[3:5, 3:5].mean()


@pytest.mark.slow
def test_it_learns_more_than_chance_and_sources_are_recorded() -> None:
    done = trained()
    assert done.history[-1]["accuracy"] > 0.3
    assert all(source is not None and not source.moved for source in done.model.bank.sources)


def test_equivariance_is_trained_through_the_network_and_only_there() -> None:
    train = digits("train").subset(range(40))
    done = fit(
        PDiscoFormer(parts=2, epochs=1, encoder_rate=1e-3), train, encoder=SmallEncoder(dim=8), batch_size=20,
        validation=digits("test").subset(range(20)), quiet=True, device="cpu",
    )  # fmt: skip
    assert 0 < done.history[-1]["equivariance"] < 1
    assert "validation_loss" in done.history[-1]
    assert "equivariance" not in trained_quickly().history[-1]


def trained_quickly() -> Fit:
    return fit(
        PDiscoFormer(parts=2, epochs=1, encoder_rate=None), digits("train").subset(range(40)),
        encoder=SmallEncoder(dim=8), quiet=True, device="cpu",
    )  # fmt: skip
