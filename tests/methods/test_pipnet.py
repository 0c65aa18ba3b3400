"""What a faithful PIP-Net must show: its schedule, what each term does, sparse points, and saying "I don't know"."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch

from protolearn.audit.sparsity import abstains, global_size, local_size
from protolearn.core.bank import PrototypeBank
from protolearn.core.method import Project, Ramp, Revise, Train
from protolearn.core.scoring import ScoringSheet
from protolearn.data import Augment, Augmented, digits
from protolearn.encoders import FeatureEncoder, SmallEncoder
from protolearn.errors import UsageError
from protolearn.methods import get_method, make_method
from protolearn.objectives.two_view import presence_tanh, two_view_alignment, two_view_terms
from protolearn.structures import Output, Tokens
from protolearn.training.fit import Fit, fit
from protolearn.training.lightning_loop import Pairs

PIPNet = get_method("pipnet")
COLOURS = Augment(flip=0, rotation=0, shear=0, skew=0, brightness=0.4, contrast=0.4)


@lru_cache
def trained(**settings: Any) -> Fit:
    how = {"prototypes": 32, "encoder_rate": None, "joint_epochs": 20, "neck_rate": 0.1}
    train = digits("train").subset(range(0, 1200, 5))
    return fit(
        PIPNet(**{**how, **settings}), train, encoder=SmallEncoder(size=16), augment=COLOURS, views=2, batch_size=20,
        quiet=True, device="cpu",
    )  # fmt: skip


def outcome(done: Fit) -> tuple[Output, np.ndarray]:
    test = digits("test").with_transform(done.model.encoder.preprocess)
    with torch.no_grad():
        return done.model(torch.stack([test[i].inputs for i in range(len(test))])), test.labels


def rows(done: Fit, phase: str) -> list[dict[str, Any]]:
    return [row for row in done.history if row["phase"] == phase]


def test_it_learns_and_adds_up_points() -> None:
    out, labels = outcome(trained())
    assert (out.logits.argmax(1).numpy() == labels).mean() > 0.7
    head = out.head
    assert isinstance(head, ScoringSheet)
    assert bool((head.weight >= 0).all())
    assert torch.allclose(head.ledger(out).sum(2) + head.offset(), out.logits, atol=1e-4)
    assert bool((head.ledger(out) >= 0).all()), "nothing speaks against a class"


def test_pretraining_needs_no_label_and_makes_views_agree() -> None:
    before, after = rows(trained(), "pretrain")[0], rows(trained(), "pretrain")[-1]
    assert after["align"] < before["align"]
    assert after["classification"] == pytest.approx(before["classification"], rel=0.2), "no label has been used"


@pytest.mark.slow
def test_without_the_tanh_term_few_prototypes_are_ever_seen() -> None:
    """Alignment alone is served best by one prototype for every place."""
    only = {"scores_epochs": 0, "joint_epochs": 0}

    def seen(weight: float) -> int:
        out, _ = outcome(trained(**only, pretrain_tanh_weight=weight))
        return int((out.evidence.amax(0) > 0.5).sum())

    assert seen(0.0) < 0.5 * seen(5.0)


@pytest.mark.slow
def test_the_step_towards_zero_makes_scores_sparse() -> None:
    sparse, dense = trained(shrink=1e-2), trained(shrink=0.0)

    def kept(done: Fit) -> int:
        head = done.model.head
        assert isinstance(head, ScoringSheet)
        return int((head.weight > 1e-3).sum())

    assert kept(sparse) < 0.75 * kept(dense)
    (small, labels), (large, _) = outcome(sparse), outcome(dense)
    assert local_size(small).float().mean() < local_size(large).float().mean()
    assert (small.logits.argmax(1).numpy() == labels).mean() > 0.6
    total = global_size(sparse.model)
    assert total is not None
    assert total <= global_size(dense.model) <= 32  # type: ignore[operator]


def test_it_abstains_where_nothing_is_found() -> None:
    model = PIPNet(prototypes=30, encoder_rate=None).build(FeatureEncoder(4), 3).eval()
    with torch.no_grad():
        nothing, something = torch.zeros(1, 4), torch.full((1, 4), 40.0)
        out = model(torch.cat([nothing, something]))
    assert abstains(out.logits).tolist() == [True, False], "1/30 everywhere is below 0.1"
    known, _ = outcome(trained())
    assert not bool(abstains(known.logits).all())
    assert abstains(torch.tensor([[torch.nan, 0.0]])).tolist() == [True]


def test_prototypes_that_no_case_shows_lose_their_weights() -> None:
    done = trained()
    head, bank = done.model.head, done.model.bank
    assert isinstance(head, ScoringSheet)
    assert all(source is not None and not source.moved for source in bank.sources)
    unseen = torch.tensor([s.distance < 0.1 for s in bank.sources if s is not None])
    assert head.weight[:, unseen].eq(0).all()
    assert torch.equal(bank.vectors, torch.eye(32))
    with torch.no_grad():
        head.raw.fill_(1.0)
        bank.sources[3] = None
        assert done.model.method is not None
        done.model.method.revise(done.model, "silence")
    assert head.weight[:, 3].eq(0).all()
    trained.cache_clear()


def test_terms_of_paired_and_single_views() -> None:
    model = PIPNet(prototypes=6, encoder_rate=None).build(FeatureEncoder(4), 2)
    out = model(torch.randn(6, 5, 4))
    assert out.tokens is not None
    first, second = out.tokens.values.chunk(2)
    align, tanh = two_view_terms(out.replace(paired=True))
    assert align.item() == pytest.approx(two_view_alignment(first, second).item())
    assert tanh.item() == pytest.approx(sum(presence_tanh(e).item() for e in out.evidence.chunk(2)) / 2)
    odd = out.part(slice(0, 3))
    assert odd.tokens is not None
    align, tanh = two_view_terms(odd)
    collision = -odd.tokens.values.square().sum(-1).log().mean()
    assert align.item() == pytest.approx(collision.item(), rel=1e-5)
    assert tanh.item() == pytest.approx(presence_tanh(odd.evidence).item())
    assert two_view_terms(odd.replace(tokens=None))[0].item() == 0
    mask = torch.tensor([[True, True, False, True, False]]).expand(6, 5).clone()
    mask[4, 0] = False
    masked = model.score(Tokens(out.tokens.values.where(mask.unsqueeze(-1), torch.nan), mask)).replace(paired=True)
    real = mask[:3] & mask[3:]
    by_hand = -(first * second).sum(-1).log()[real].mean()
    assert two_view_terms(masked)[0].item() == pytest.approx(by_hand.item(), rel=1e-5)


def test_each_side_of_the_alignment_is_held_fixed_once() -> None:
    first = torch.rand(2, 3, 4).softmax(-1).requires_grad_()
    second = torch.rand(2, 3, 4).softmax(-1).requires_grad_()
    two_view_alignment(first, second).backward()
    weight = 0.5 / (first.detach() * second.detach()).sum(-1, keepdim=True) / 6
    assert first.grad is not None
    assert second.grad is not None
    assert torch.allclose(first.grad, -weight * second.detach())
    assert torch.allclose(second.grad, -weight * first.detach())


def test_pairs_need_two_views() -> None:
    train = digits("train").subset(range(0, 200, 10))
    method = PIPNet(prototypes=8, encoder_rate=None, pretrain_epochs=1, joint_epochs=1)
    with pytest.raises(UsageError, match="two views"):
        fit(method, train, encoder=SmallEncoder(), quiet=True, device="cpu")


def test_pairs_share_their_places_where_the_encoder_is_trained() -> None:
    encoder = SmallEncoder(size=16)
    cases = digits("train").subset(range(6))
    turned = Augment(rotation=30, crop=(0.5, 1.0))
    with pytest.raises(UsageError, match="give augment"):
        Pairs(cases.with_transform(encoder.preprocess), same_places=True)
    for augment, alike in ((turned, True), (replace(turned, brightness=0.9), False)):
        pairs = Pairs(cases.with_transform(Augmented(encoder.preprocess, augment)), same_places=True)
        first, second = pairs[0].inputs
        assert torch.equal(first, second) == alike
        pairs.set_epoch(3)
        assert not torch.equal(pairs[0].inputs[0], first)


def test_it_trains_through_the_network() -> None:
    method = PIPNet(pretrain_epochs=1, scores_epochs=1, joint_epochs=1)
    train = digits("train").subset(range(0, 400, 10))
    encoder = SmallEncoder(dim=16, size=16)
    before = encoder.fingerprint()
    done = fit(method, train, encoder=encoder, augment=COLOURS, batch_size=20, quiet=True, device="cpu")
    assert encoder.fingerprint() != before
    assert [row["phase"] for row in done.history] == ["pretrain", "scores", "joint"]
    assert all(source is not None for source in done.model.bank.sources)


def test_the_schedule_is_the_papers() -> None:
    plan = PIPNet().phases()
    pretrain, scores, joint = plan[:3]
    assert isinstance(pretrain, Train)
    assert isinstance(scores, Train)
    assert isinstance(joint, Train)
    assert [(p.name, p.epochs) for p in (pretrain, scores, joint)] == [("pretrain", 10), ("scores", 3), ("joint", 57)]
    assert pretrain.rates == {"encoder": 5e-4, "neck": 5e-3}
    assert pretrain.coefficients(PIPNet().weights(), 0, 0) == {"classification": 0.0, "align": 0.1, "tanh": 5.0}
    assert pretrain.coefficients(PIPNet().weights(), 9, 0)["align"] == 1.0
    assert scores.rates == {"head": 5e-2}
    assert joint.rates == {"encoder": 5e-4, "neck": 5e-3, "head": 5e-2}
    assert PIPNet().weights() == {"classification": 2.0, "align": 5.0, "tanh": 2.0}
    assert pretrain.pairs
    assert joint.pairs
    assert {p.optimizer for p in (pretrain, scores, joint)} == {"adamw"}
    assert joint.factor(56.999, group="neck") == pytest.approx(0.01, abs=1e-3)
    assert joint.factor(9.999, group="head") == pytest.approx(0.01, abs=1e-3)
    assert joint.factor(10, group="head") == pytest.approx(1.0), "anew every ten epochs"
    assert joint.factor(10, group="neck") > 0.9
    with pytest.raises(UsageError, match="restart"):
        Train("x", rates={"head": 1.0}, restart={"head": 0})
    assert plan[3:] == [Project("sources", rule="any", move=False), Revise("silence")]
    assert isinstance(pretrain.weights, dict)
    assert pretrain.weights["align"] == Ramp(0.0, 1.0)


def test_the_start_is_the_papers() -> None:
    model = PIPNet().build(SmallEncoder(dim=24), 50, seed=1)
    assert isinstance(model.head, ScoringSheet)
    assert model.head.raw.mean().item() == pytest.approx(1.0, abs=0.02)
    assert model.head.raw.std().item() == pytest.approx(0.1, abs=0.02)
    assert torch.equal(model.bank.vectors, torch.eye(24))
    assert not list(model.bank.parameters())
    assert isinstance(model.bank, PrototypeBank)


def test_settings_round_trip_and_wrong_ones_are_refused() -> None:
    method = PIPNet(prototypes=7, two_views=False)
    assert make_method(method.settings()) == method
    for wrong in ({"prototypes": -1}, {"clip": 1.0}, {"power": 0.5}, {"restart": 0}, {"encoder_rate": None}):
        with pytest.raises(UsageError, match=r"^pipnet: "):
            PIPNet(**wrong)
