"""What a faithful CBC must show: the method card's list, on a planted table, real tables and real digits."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from protolearn.audit.sparsity import abstains
from protolearn.core.certificate import certified_radius
from protolearn.core.method import Project, Ramp, Train
from protolearn.core.reasoning import Reasoning, agreement_columns
from protolearn.core.similarities import RadialBasis
from protolearn.data import FeatureCases, features
from protolearn.encoders import FeatureEncoder, SmallEncoder
from protolearn.errors import UsageError
from protolearn.explain import explain
from protolearn.explain.draw import contribution_is
from protolearn.methods import get_method, make_method
from protolearn.objectives.margin import margin_loss
from protolearn.structures import Output
from protolearn.training.fit import Fit, fit
from protolearn.training.folder import load, save

CBC = get_method("cbc")


@lru_cache
def wine() -> tuple[FeatureCases, Tensor, np.ndarray]:
    """Return the real wine table, standardised: training cases, test rows, test labels."""
    from sklearn.datasets import load_wine
    from sklearn.model_selection import train_test_split
    from sklearn.preprocessing import StandardScaler

    x, y = load_wine(return_X_y=True)
    a, b, label, wanted = train_test_split(x, y, test_size=0.4, random_state=0, stratify=y)
    scale = StandardScaler().fit(a)
    train = features(scale.transform(a).astype(np.float32), label, classes=["0", "1", "2"], name="wine")
    return train, torch.from_numpy(scale.transform(b)).float(), wanted


@lru_cache
def on_wine(seed: int = 0, **settings: Any) -> Fit:
    method = CBC(detection="rbf", per_class=2, rbf_epochs=40, head_rate=5e-2, encoder_rate=None, **settings)
    return fit(method, wine()[0], encoder=FeatureEncoder(13), batch_size=32, seed=seed, quiet=True, device="cpu")


def scored(done: Fit, rows: Tensor) -> Output:
    with torch.no_grad():
        return done.model(rows)


def accuracy(out: Output) -> float:
    return float((out.logits.argmax(1).numpy() == wine()[2]).mean())


def test_it_learns_a_table_and_its_scores_are_shares() -> None:
    out = scored(on_wine(), wine()[1])
    assert accuracy(out) > 0.9
    assert bool(((out.logits >= 0) & (out.logits <= 1)).all())
    head = out.head
    assert isinstance(head, Reasoning)
    assert torch.allclose(head.shares().sum((0, 2)), torch.ones(3))
    found, missed = head.columns(out)
    assert torch.allclose((found + missed).sum(2), out.logits, atol=1e-6)
    assert torch.allclose(head.ledger(out).sum(2) + head.offset(), out.logits, atol=1e-6)


def moved_within(done: Fit, rows: Tensor, radius: Tensor, seed: int) -> Tensor:
    """Return which predictions random moves and projected gradients within the radius can change."""
    g = torch.Generator().manual_seed(seed)
    before = scored(done, rows).logits.argmax(1)
    changed = torch.zeros(len(rows), dtype=torch.bool)
    for _ in range(3):
        move = torch.nn.functional.normalize(torch.randn(rows.shape, generator=g), dim=1) * radius.unsqueeze(1)
        for _ in range(10):
            leaf = move.clone().requires_grad_()
            s = done.model(rows + leaf).logits
            own = torch.nn.functional.one_hot(before, s.shape[1]).bool()
            lead = s[own] - s.masked_fill(own, -1.0).amax(1)
            changed |= lead.detach() < 0
            (slope,) = torch.autograd.grad(lead.sum(), leaf)
            move = move - 0.3 * radius.unsqueeze(1) * torch.nn.functional.normalize(slope, dim=1)
            move = move * (radius / move.norm(dim=1).clamp_min(1e-12)).clamp_max(1.0).unsqueeze(1)
    return changed


@pytest.mark.slow
def test_attacks_on_a_trained_model_stay_without_effect_inside_the_certified_radius() -> None:
    rows = wine()[1]
    for seed in range(2):
        done = on_wine(seed)
        radius = certified_radius(scored(done, rows)).float()
        assert bool((radius > 0).all())
        assert not bool(moved_within(done, rows, 0.999 * radius, seed).any())
    assert bool(moved_within(done, rows, 6 * radius + 1, 0).any()), "an attack that never succeeds proves nothing"


def test_the_radius_covers_moves_of_all_tokens_of_an_input_together() -> None:
    method = CBC(detection="rbf", encoder_rate=None)
    done = Fit(method.build(FeatureEncoder(4), 3, seed=2).eval(), [], [], None)
    with torch.no_grad():
        done.model.head.theta.mul_(8)
    bags = torch.randn(20, 5, 4, generator=torch.Generator().manual_seed(0))
    radius = certified_radius(scored(done, bags)).float()
    before = scored(done, bags).logits
    g = torch.Generator().manual_seed(1)
    for _ in range(200):
        move = torch.randn(bags.shape, generator=g)
        move = move * (0.999 * radius / move.flatten(1).norm(dim=1)).view(-1, 1, 1)
        after = scored(done, bags + move).logits.argmax(1)
        assert torch.equal(after, before.argmax(1))


@pytest.mark.slow
def test_the_robustness_term_raises_the_certified_radius_at_little_cost() -> None:
    rows = wine()[1]
    for seed in range(2):
        plain, robust = on_wine(seed), on_wine(seed, robust_weight=1.0, robust_target=0.5)
        radii = [float(certified_radius(scored(done, rows)).mean()) for done in (plain, robust)]
        assert radii[1] > 1.2 * radii[0]
        assert accuracy(scored(robust, rows)) > accuracy(scored(plain, rows)) - 0.05


def absence_table(seed: int) -> tuple[Tensor, Tensor]:
    """Six components are found or not; the second class is what lacks the first, often with nothing found at all."""
    g = torch.Generator().manual_seed(seed)
    found = (torch.rand(400, 6, generator=g) < 0.1).float()
    labels = torch.randint(2, (400,), generator=g)
    found[:, 0] = (labels == 0).float()
    return found, labels


@pytest.mark.parametrize("seed", [0, 1])
def test_a_class_defined_by_absence_is_learned_by_negative_reasoning_alone(seed: int) -> None:
    def right(absence: bool) -> float:
        head = Reasoning.start(2, 6, absence=absence, generator=torch.Generator().manual_seed(seed))
        steps = torch.optim.Adam(head.parameters(), lr=0.1)
        found, labels = absence_table(seed)
        for _ in range(150):
            steps.zero_grad()
            margin_loss(head(found), labels).backward()
            steps.step()
        found, labels = absence_table(seed + 100)
        scores = head.eval()(found).detach()
        if absence:
            assert head.shares()[1, 1].argmax() == 0, "it expects the first to be absent"
            _, missed = agreement_columns(found, head.shares())
            assert bool((missed[labels == 1, 1, 0] > missed[labels == 1, 1, 1:].amax(1)).all())
        lead = scores.gather(1, labels.unsqueeze(1)).squeeze(1) - scores.gather(1, 1 - labels.unsqueeze(1)).squeeze(1)
        return float((lead > 0).float().mean())

    assert right(absence=True) > 0.98
    assert right(absence=False) < 0.8


def test_far_away_only_absence_speaks_and_without_it_the_model_does_not_know() -> None:
    far = torch.full((1, 13), 1e3)
    out = scored(on_wine(), far)
    assert isinstance(out.head, Reasoning)
    assert torch.allclose(out.logits[0], out.head.shares()[1].sum(1), atol=1e-6)
    positive = scored(on_wine(absence=False), far)
    assert positive.logits.abs().max() < 1e-6
    assert bool(abstains(positive.logits, 1e-3).all())
    known = scored(on_wine(absence=False), wine()[1])
    assert float(abstains(known.logits, 1e-3).float().mean()) < 0.2


def test_an_explanation_says_what_was_expected_present_and_what_absent() -> None:
    done = on_wine()
    for why in explain(done.model, wine()[0].subset(range(5)), target="runner_up"):
        assert why.total == pytest.approx(why.logit, abs=1e-6)
        for row in why.rows:
            assert list(row.parts) == ["expected and found", "expected absent, and absent"]
            assert sum(row.parts.values()) == pytest.approx(row.contribution, abs=1e-7)
            assert min(row.parts.values()) >= 0
        assert json.loads(why.to_json())["rows"][0]["parts"]["expected and found"] >= 0
        assert contribution_is(why.rows) == "expected and found + expected absent, and absent"


def test_clipping_at_inference_makes_absence_look_surer() -> None:
    """The rule of the deep experiments, measured: what is clipped can only raise the second column."""
    method = CBC(components=12, encoder_rate=None)
    model = method.build(FeatureEncoder(8), 3).eval()
    with torch.no_grad():
        out = model(torch.randn(30, 2, 8))
    assert isinstance(out.head, Reasoning)
    below = out.evidence < 0.1
    assert bool(below.any())
    found, missed = out.head.columns(out)
    plain_found, plain_missed = agreement_columns(out.evidence, out.head.shares())
    assert bool((missed >= plain_missed).all())
    assert bool((found <= plain_found).all())
    assert bool((missed > plain_missed)[below.unsqueeze(1).expand_as(missed)].all())
    assert torch.allclose(out.head.ledger(out).sum(2), out.logits, atol=1e-6)
    with pytest.raises(UsageError, match="certified radius"):
        certified_radius(out)


def test_widths_are_trained_saved_and_pruned_with_the_components(tmp_path: Any) -> None:
    done = on_wine()
    similar = done.model.similarity
    assert isinstance(similar, RadialBasis)
    save(done.model, tmp_path / "m")
    again = load(tmp_path / "m")
    rows = wine()[1]
    with torch.no_grad():
        assert torch.equal(again(rows).logits, scored(done, rows).logits)
        assert isinstance(again.similarity, RadialBasis)
        assert torch.equal(again.similarity.width, similar.width)
        maps = again.maps(again.embed(again.encode(rows)), torch.tensor([3, 1]))
        assert torch.allclose(maps[:, :, 0], again(rows).similarities[:, [3, 1]])
        again.prune([int(again.bank.ids[0])])
        kept = again(rows)
    assert len(again.similarity.width) == len(again.bank)
    assert torch.allclose(kept.similarities, scored(done, rows).similarities[:, 1:])
    save(again, tmp_path / "smaller")
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "smaller")(rows).logits, kept.logits)
    assert float(similar.width.detach().std()) > 0


def test_components_start_on_their_class_and_a_class_with_few_rows_shares_its_centres() -> None:
    x = np.array([[0.0, 0], [0, 1], [9, 9], [5, 5]], dtype=np.float32)
    cases = features(x, ["a", "a", "b", "c"], classes=["a", "b", "c"])
    method = CBC(detection="rbf", per_class=2, rbf_epochs=1, prototype_rate=1e-9, encoder_rate=None)
    bank = fit(method, cases, encoder=FeatureEncoder(2), quiet=True, device="cpu").model.bank
    assert torch.allclose(bank.vectors[2:4], torch.tensor([9.0, 9.0]), atol=1e-5)
    assert sorted(bank.vectors[:2, 1].tolist()) == pytest.approx([0.0, 1.0], abs=1e-5)
    assert all(source is not None and not source.moved for source in bank.sources)


def test_the_schedule_is_the_papers() -> None:
    plan = CBC().phases()
    assert [(p.name, p.epochs) for p in plan if isinstance(p, Train)] == [("pretrain", 12), ("head", 48), ("joint", 84)]
    pretrain, head, joint, sources = plan
    assert isinstance(pretrain, Train)
    assert isinstance(head, Train)
    assert isinstance(joint, Train)
    assert pretrain.rates == {"encoder": 3.75e-4, "neck": 3.75e-4}
    assert pretrain.weights == {"align": Ramp(0.0, 1.0), "tanh": 5.0}
    assert pretrain.pairs
    assert head.rates == {"head": 5e-3}
    assert joint.rates == {"encoder": 3.75e-4, "neck": 3.75e-4, "head": 3.75e-4}
    tuned = CBC(**CBC.recipes["frozen"].method).phases()
    assert [p.rates for p in tuned if isinstance(p, Train)][1:] == [{"head": 5e-2}, {"neck": 5e-3, "head": 5e-2}]
    assert CBC().weights() == {"margin": 1.0, "align": 0.0, "tanh": 0.0}
    assert sources == Project("sources", rule="any", move=False)
    aligned = CBC(align_weight=1.25, joint_epochs=108).phases()[2]
    assert isinstance(aligned, Train)
    assert aligned.pairs


def test_channels_of_the_encoder_are_components() -> None:
    model = CBC().build(SmallEncoder(dim=24), 5)
    assert model.bank.vectors.shape == (24, 24)
    assert not list(model.neck.parameters())
    out = model(torch.rand(2, 3, 32, 32))
    assert out.tokens is not None
    assert torch.allclose(out.tokens.values.sum(-1), torch.ones(2, out.tokens.values.shape[1]))
    assert torch.equal(out.evidence, out.tokens.values.amax(1))


def test_settings_round_trip_and_wrong_ones_are_refused() -> None:
    method = CBC(detection="rbf", per_class=5, robust_weight=0.5)
    assert make_method(method.settings()) == method
    for wrong in (
        {"margin": 0.0}, {"clip": 1.0}, {"per_class": 0}, {"components": -1}, {"robust_weight": 1.0},
        {"encoder_rate": None}, {"detection": "rbf", "start": "class_means"},
    ):  # fmt: skip
        with pytest.raises(UsageError, match=r"^cbc: "):
            CBC(**wrong)
