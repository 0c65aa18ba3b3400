"""What a faithful ProtoPool must show: laws of its slots, and directions on real handwritten digits."""

from __future__ import annotations

import copy
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from protolearn.core.method import Initialise, Project, Revise, Train
from protolearn.core.model import PrototypeModel
from protolearn.core.slots import SlotHead, choose, gumbel_noise, rising_scale
from protolearn.data.features import FeatureCases, features
from protolearn.encoders import FeatureEncoder, SmallEncoder
from protolearn.errors import UsageError
from protolearn.explain import explain
from protolearn.methods import get_method, make_method
from protolearn.objectives.slots import slot_orthogonality
from protolearn.structures import Output, Tokens
from protolearn.training.fit import Fit, fit
from protolearn.training.folder import load, save

ProtoPool = get_method("protopool")
POOL, SLOTS, CLASSES = 24, 4, 10
FAST = {
    "prototypes": POOL,
    "slots": SLOTS,
    "dim": 32,
    "encoder_rate": None,
    "warm_epochs": 4,
    "joint_epochs": 8,
    "step": 100,
    "gumbel_epochs": 12,
    "gumbel_scale": 30.0,
    "last_layer_epochs": 8,
    "neck_rate": 1e-2,
    "prototype_rate": 1e-2,
    "slot_rate": 3e-2,
    "head_rate": 3e-3,
}


@lru_cache
def patches() -> tuple[Tensor, np.ndarray]:
    """Real digits as nine overlapping patches of 4 x 4 pixels, each with its place as a one-hot vector."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    cut = torch.from_numpy(raw.images / 16).float().unfold(1, 4, 2).unfold(2, 4, 2).flatten(1, 2).flatten(2)
    return torch.cat([cut, torch.eye(9).expand(len(cut), 9, 9)], 2), raw.target


def digits_between(start: int, stop: int) -> FeatureCases:
    tokens, labels = patches()
    return features(tokens[start:stop], labels[start:stop], classes=tuple("0123456789"))


@lru_cache
def trained(**changes: object) -> Fit:
    method = ProtoPool(**{**FAST, **changes})
    return fit(method, digits_between(0, 600), encoder=FeatureEncoder(25), batch_size=50, quiet=True, device="cpu")


def seen(model: PrototypeModel, cases: FeatureCases) -> Output:
    with torch.no_grad():
        out: Output = model(torch.stack([cases[i].inputs for i in range(len(cases))]))
    return out


def head_of(model: PrototypeModel) -> SlotHead:
    assert isinstance(model.head, SlotHead)
    return model.head


def untrained(**changes: object) -> tuple[PrototypeModel, Output]:
    method = ProtoPool(**{**FAST, **changes})
    model = method.build(FeatureEncoder(25), CLASSES, seed=3).eval()
    return model, model(patches()[0][:6])


def test_it_learns_with_shared_prototypes_fewer_than_a_pool_for_each_class() -> None:
    model, test = trained().model, digits_between(1000, 1400)
    assert (seen(model, test).logits.argmax(1).numpy() == test.labels).mean() > 0.7
    assert len(model.bank) <= POOL < SLOTS * CLASSES, "ProtoPNet would need one for every slot"
    served = (model.bank.ownership > 0).sum(1)
    assert (served >= 1).all(), "what no slot keeps is removed"
    assert (served >= 2).float().mean() > 0.25, "and many serve several classes"
    assert model.bank.ownership.sum().item() == SLOTS * CLASSES


def test_every_slot_keeps_one_prototype_and_settling_is_final() -> None:
    head = head_of(trained().model)
    assert bool(head.settled)
    assert torch.equal(head.chosen().sum(1), torch.ones(CLASSES, SLOTS))
    assert sorted(head.chosen().unique().tolist()) == [0.0, 1.0]
    again = copy.deepcopy(head)
    again.settle()
    assert torch.equal(again.scores, head.scores)


def test_prototypes_are_patches_of_a_class_that_holds_them() -> None:
    model = trained().model
    for row, source in enumerate(model.bank.sources):
        assert source is not None
        assert source.label is not None
        assert model.bank.ownership[row, source.label] > 0


def test_a_slot_that_is_settled_is_the_focal_similarity_of_its_prototype() -> None:
    model = trained().model
    out = seen(model, digits_between(1000, 1020))
    assert out.distances is not None
    assert out.average is not None
    focal = model.similarity(out.distances) - model.similarity(out.average)
    kept = head_of(model).chosen().argmax(1)
    logits = torch.einsum("bs,os->bo", focal[:, kept.flatten()], head_of(model).weight.detach())
    assert torch.allclose(logits, out.logits, atol=1e-5)


def test_what_is_everywhere_counts_for_nothing() -> None:
    """Focal similarity: a case whose tokens are all the same has its smallest distance equal to the mean."""
    model, _ = untrained()
    out = model(torch.rand(3, 1, 25).expand(3, 9, 25))
    assert torch.allclose(out.logits, torch.zeros(3, CLASSES), atol=1e-4)


@pytest.mark.parametrize("settled", [False, True])
def test_contributions_sum_to_the_logit(settled: bool) -> None:
    if settled:
        model = trained().model
        out = seen(model, digits_between(1000, 1030))
        for explanation in explain(model, digits_between(1000, 1003)):
            assert explanation.total == pytest.approx(explanation.logit, abs=1e-4)
    else:
        _, out = untrained()
    assert torch.allclose(out.head.ledger(out).sum(2) + out.head.offset(), out.logits, atol=1e-5)


def test_choices_are_distributions_and_harden_with_the_scale() -> None:
    scores = torch.randn(3, 7, 2)
    soft, hard = choose(scores, 0.1, noise=gumbel_noise(scores)), choose(scores, 1e3)
    for chosen in (soft, hard):
        assert torch.allclose(chosen.sum(1), torch.ones(3, 2))
    assert hard.amax(1).min() > 0.999
    assert torch.equal(hard.argmax(1), scores.argmax(1))
    scales = [rising_scale(epoch, 30, 1e3) for epoch in range(1, 40)]
    assert scales == sorted(scales)
    assert scales[0] == pytest.approx(1e3 / 30**0.5)
    assert scales[-1] == 1e3


def test_gumbel_draws_choose_as_often_as_the_softmax_says() -> None:
    scores = torch.tensor([0.0, 1.0, 2.0]).view(1, 3, 1).expand(4000, 3, 1)
    drawn = choose(scores, 1.0, noise=gumbel_noise(scores)).argmax(1).flatten()
    shares = torch.bincount(drawn, minlength=3) / 4000
    assert torch.allclose(shares, torch.tensor([0.0, 1.0, 2.0]).softmax(0), atol=0.03)


def test_noise_is_drawn_in_training_only_and_the_scale_rises_by_epochs() -> None:
    model, out = untrained()
    assert torch.equal(out.logits, model(patches()[0][:6]).logits)
    head = head_of(model).train()
    first, second = (model(patches()[0][:6]).logits for _ in range(2))
    assert not torch.equal(first, second)
    drawn = head.chosen()
    assert torch.equal(drawn, head.chosen()), "objectives see what the forward pass drew"
    before = float(head.scale)
    for _ in range(3):
        head.advance(3)
    assert float(head.scale) == pytest.approx(before * 2**0.5)


def test_the_last_layer_waits_until_slots_are_settled() -> None:
    model, _ = untrained()
    head, labels = head_of(model.train()), torch.arange(6)
    method = ProtoPool(**FAST)
    method.loss(method.objective(model(patches()[0][:6]), labels)).backward()
    assert head.weight.grad is None
    assert head.scores.grad is not None
    assert head.scores.grad.abs().sum() > 0
    method.revise(model, "settle")
    head = head_of(model)
    method.loss(method.objective(model(patches()[0][:6]), labels)).backward()
    assert head.weight.grad is not None
    assert head.scores.grad is None


def test_orthogonality_makes_slots_of_a_class_choose_differently() -> None:
    def repeats(weight: float) -> int:
        chosen = head_of((trained() if weight else trained(orthogonality_weight=0.0)).model).chosen().argmax(1)
        return sum(SLOTS - len(set(row.tolist())) for row in chosen)

    assert repeats(1.0) < repeats(0.0)
    same, apart = torch.ones(2, 5, 3), torch.eye(5)[:, :3].expand(2, 5, 3)
    assert slot_orthogonality(same).item() == pytest.approx(2.0)
    assert slot_orthogonality(apart).item() == pytest.approx(0.0)


def test_cluster_counts_what_the_class_holds_most_of() -> None:
    model, _ = untrained()
    head, usable = head_of(model), model.bank.usable
    own = head.own(torch.tensor([2, -1]), usable)
    assert own.sum(1).tolist() == [SLOTS, 0]
    mass = head.chosen()[2].sum(1)
    assert mass[own[0]].min() >= mass[~own[0]].max()
    usable = usable.clone()
    usable[own[0].nonzero()[0]] = False
    assert not (head.own(torch.tensor([2]), usable)[0] & ~usable).any()


def test_the_schedule_is_the_codes() -> None:
    warm, joint, settle, project, last = ProtoPool().phases()
    assert isinstance(warm, Train)
    assert isinstance(joint, Train)
    assert isinstance(last, Train)
    assert (warm.epochs, joint.epochs, last.epochs) == (10, 20, 25)
    assert warm.rates == {"neck": 3e-3, "prototypes": 3e-3, "head": 3e-3}
    assert joint.rates == {"encoder": 1e-4, **warm.rates}
    assert joint.decay == {"encoder": 1e-3, "neck": 1e-3}
    assert [joint.factor(done) for done in (0, 4, 5, 10)] == pytest.approx([1, 1, 0.1, 0.01])
    assert [last.factor(done) for done in (0, 5)] == pytest.approx([1, 0.95])
    assert last.rates == {"head": 1e-4}
    assert last.coefficients(ProtoPool().weights(), 0, 0)["cluster"] == 0
    assert (settle, project) == (Revise("settle"), Project())
    assert ProtoPool(neck="principal").phases()[0] == Initialise()


def test_it_starts_as_the_paper_says() -> None:
    model = ProtoPool().build(SmallEncoder(), classes=5, seed=1)
    assert model.bank.vectors.shape == (202, 256)
    vectors = model.bank.vectors.detach()
    assert 0 <= float(vectors.min()) <= float(vectors.max()) < 1
    head = head_of(model)
    assert head.weight.shape == (5, 50)
    assert torch.equal(head.weight.detach().T > 0, head.own_slots > 0)
    assert torch.equal(head.scores, head_of(ProtoPool().build(SmallEncoder(), classes=5, seed=1)).scores)


def test_edges() -> None:
    """One batch of one class, no label, one prototype for all, an empty input, a ban, and a NaN that must surface."""
    method = ProtoPool(**{**FAST, "prototypes": 1})
    model = method.build(FeatureEncoder(25), CLASSES)
    for labels in (torch.ones(6, dtype=torch.long), torch.full((6,), -1)):
        assert all(term.isfinite() for term in method.objective(model(patches()[0][:6]), labels).values())
    model, out = untrained()
    broken = model(torch.full((1, 9, 25), float("nan")))
    assert broken.logits.isnan().all()
    empty = model.score(Tokens(torch.rand(2, 3, 32), torch.tensor([[True, True, False], [False] * 3])))
    assert empty.logits.isfinite().all()
    assert torch.equal(empty.logits[1], torch.zeros(CLASSES))
    ids = model.bank.ids[:3]
    model.bank.ban(ids)
    banned = model(patches()[0][:6])
    ledger = banned.head.ledger(banned)
    assert torch.allclose(ledger.sum(2), banned.logits, atol=1e-5)
    assert torch.equal(ledger[..., :3], torch.zeros(6, CLASSES, 3))
    model.bank.unban(ids)
    assert torch.equal(model(patches()[0][:6]).logits, out.logits)
    settled = trained().model
    gone = copy.deepcopy(settled)
    gone.prune([int(gone.bank.ids[0])])
    after = seen(gone, digits_between(1000, 1010))
    assert after.logits.isfinite().all()
    assert torch.allclose(after.head.ledger(after).sum(2), after.logits, atol=1e-5)


def test_settings_round_trip_and_wrong_ones_are_refused() -> None:
    method = ProtoPool(prototypes=7, slots=2)
    assert make_method(method.settings()) == method
    for wrong in ({"prototypes": 0}, {"slots": 0}, {"gumbel_scale": 0.0}, {"warm_epochs": -1}, {"dim": 0}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            ProtoPool(**wrong)
    with pytest.raises(TypeError, match="read"):
        untrained()[0].head(torch.zeros(1, POOL))


@pytest.mark.parametrize("slug", ["protopool", "prototree", "protopnet"])
def test_a_pruned_model_with_as_many_prototypes_as_classes_and_width_is_read_back(slug: str, tmp_path: Path) -> None:
    """Which side of a saved table counts prototypes must not be guessed from its length."""
    small = {
        "protopool": {"prototypes": 3, "slots": 1, "dim": 3, "neck": "sigmoid"},
        "prototree": {"depth": 2, "dim": 3},
        "protopnet": {"prototypes_per_class": 1, "dim": 3},
    }[slug]
    method = get_method(slug)(**small)
    model = method.build(FeatureEncoder(4), 3).eval()
    model.method, model.classes = method, ("a", "b", "c")
    if slug == "protopool":
        method.revise(model, "settle")
    model.prune([int(model.bank.ids[-1])])
    again = load(save(model, tmp_path / "model"))
    assert len(again.bank) == len(model.bank) < 3
    inputs = torch.rand(5, 2, 4)
    assert torch.equal(again(inputs).logits, model(inputs).logits)
