"""What a faithful ProtoTree must show, on scikit-learn's real handwritten digits."""

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
from protolearn.core.trees import TreeHead
from protolearn.data import digits
from protolearn.data.features import FeatureCases, features
from protolearn.encoders import FeatureEncoder, SmallEncoder
from protolearn.errors import UsageError
from protolearn.explain import explain
from protolearn.explain.tree import compare_routings, routes
from protolearn.methods import get_method, make_method
from protolearn.structures import Output
from protolearn.tasks.doctor import examine
from protolearn.training.fit import Fit, fit
from protolearn.training.folder import load, save

ProtoTree = get_method("prototree")
FAST = {
    "depth": 6,
    "dim": 32,
    "epochs": 30,
    "encoder_rate": None,
    "milestones": (),
    "neck_rate": 3e-2,
    "prototype_rate": 1e-2,
    "prune_threshold": 0.01,
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
    method = ProtoTree(**{**FAST, **changes})
    return fit(method, digits_between(0, 600), encoder=FeatureEncoder(25), batch_size=50, quiet=True, device="cpu")


def seen(model: PrototypeModel, cases: FeatureCases) -> Output:
    with torch.no_grad():
        out: Output = model(torch.stack([cases[i].inputs for i in range(len(cases))]))
    return out


def accuracy(out: Output, cases: FeatureCases) -> float:
    return float((out.logits.argmax(1).numpy() == cases.labels).mean())


def test_it_learns_and_hard_routing_follows() -> None:
    test, model = digits_between(1000, 1400), trained().model
    assert accuracy(seen(model, test), test) > 0.6, "far above the 0.1 of chance, with fewer than 64 prototypes"
    found = compare_routings(model, test)
    assert found.accuracy["soft"] == pytest.approx(accuracy(seen(model, test), test))
    assert min(found.accuracy["max_leaf"], found.accuracy["greedy"]) > 0.5
    assert min(found.fidelity.values()) > 0.6
    assert 0 < found.mean_length["greedy"] <= 6


def test_scores_are_probabilities_and_the_ledger_telescopes_to_them() -> None:
    test, model = digits_between(1000, 1040), trained().model
    out = seen(model, test)
    assert torch.allclose(out.logits.sum(1), torch.ones(40), atol=1e-5)
    assert torch.allclose(out.head.probabilities(out.logits), out.logits, atol=1e-5)
    total = out.head.ledger(out).sum(2) + out.head.offset()
    assert torch.allclose(total, out.logits, atol=1e-6)
    for explanation in explain(model, test, [0, 1, 2]):
        assert explanation.total == pytest.approx(explanation.logit, abs=1e-5)
        assert explanation.probability == pytest.approx(explanation.logit, abs=1e-5)
        assert all(row.owner is None for row in explanation.rows)


def test_leaves_are_distributions_moved_without_gradient() -> None:
    head = trained().model.head
    assert isinstance(head, TreeHead)
    assert not list(head.parameters())
    assert torch.allclose(head.leaf_distributions().sum(1), torch.ones(len(head.leaves)))
    assert (head.leaves >= 0).all()
    assert 400 < head.leaves.sum().item() <= 600, "a case counts once, its older counts are worn off, pruning loses few"


def test_the_loss_falls() -> None:
    rows = [row["nll"] for row in trained().history]
    assert rows[0] == pytest.approx(2.3, abs=0.15), "leaves say nothing at first"
    assert rows[-1] < 0.5 * rows[0]


def test_pruning_costs_prototypes_and_hardly_any_prediction() -> None:
    """The same training without pruning, pruned by hand."""
    whole = trained(prune_threshold=0.0).model
    pruned = copy.deepcopy(whole)
    ProtoTree().revise(pruned, "prune")
    assert len(pruned.bank) < 0.8 * len(whole.bank)
    assert len(whole.bank) == 63
    test = digits_between(1000, 1400)
    before, after = seen(whole, test), seen(pruned, test).logits
    assert (before.logits.argmax(1) == after.argmax(1)).float().mean() > 0.9
    assert accuracy(seen(pruned, test), test) > accuracy(before, test) - 0.03
    head = whole.head
    assert isinstance(head, TreeHead)
    unsure = head.leaf_distributions().amax(1) <= 1.1 / 10
    lost = head.reach(before.evidence)[1].exp()[:, unsure].sum(1)
    moved = (before.logits - after).abs().sum(1) / 2
    assert (moved <= lost + 1e-5).all(), "no more than the probability of what was cut"
    assert torch.allclose(after.sum(1), torch.ones(len(test)), atol=1e-5)


def test_every_prototype_is_a_training_patch_of_any_class() -> None:
    done = trained()
    assert all(source is not None for source in done.model.bank.sources)
    assert len(done.model.bank) == len(done.model.head.left)  # type: ignore[arg-type]
    projected = done.model.metadata["projections"][-1]
    assert projected["accuracy_after"] > projected["accuracy_before"] - 0.1
    assert float(done.model.bank.ownership.sum()) == 0, "a prototype of a tree belongs to no class"


def test_the_doctor_misses_no_class() -> None:
    """Prototypes that belong to no class are not prototypes that a class lacks."""
    topics = {finding.topic for finding in examine(trained().model, digits_between(0, 600))}
    assert "class without prototypes" not in topics


def test_projection_below_takes_patches_of_the_classes_a_node_leads_to() -> None:
    model = trained(projection="below").model
    for row, source in enumerate(model.bank.sources):
        assert source is not None
        assert source.label is not None
        assert model.bank.ownership[row, source.label] > 0


def test_the_schedule_is_the_papers() -> None:
    plan = ProtoTree().phases()
    frozen, joint, prune, project = plan
    assert isinstance(frozen, Train)
    assert isinstance(joint, Train)
    assert (frozen.epochs, joint.epochs) == (30, 70)
    assert frozen.rates == {"neck": 1e-3, "prototypes": 1e-3}
    assert joint.rates == {"encoder": 1e-5, "neck": 1e-3, "prototypes": 1e-3}
    assert frozen.optimizer == joint.optimizer == "adamw"
    falls = [frozen.factor(done) for done in range(30)] + [joint.factor(done) for done in range(70)]
    expected = [1.0] * 60 + [0.5] * 10 + [0.25] * 10 + [0.125] * 10 + [0.0625] * 10
    assert falls == pytest.approx(expected)
    assert (prune, project) == (Revise("prune"), Project(rule="any"))
    assert ProtoTree(projection="below").phases()[-1] == Project(rule="own_class")
    assert ProtoTree(start="k_means").phases()[0] == Initialise()
    late = ProtoTree(freeze_epochs=70).phases()[1]
    assert isinstance(late, Train)
    assert late.factor(0) == pytest.approx(0.25), "rates that fell while the encoder was frozen stay fallen"


def test_it_starts_as_the_paper_says() -> None:
    model = ProtoTree().build(SmallEncoder(), classes=200, seed=1)
    assert model.bank.vectors.shape == (511, 256)
    assert float(model.bank.vectors.detach().mean()) == pytest.approx(0.5, abs=1e-2)
    assert float(model.bank.vectors.detach().std()) == pytest.approx(0.1, abs=1e-2)
    assert torch.allclose(model.head.offset(), torch.full((200,), 1 / 200))
    again = ProtoTree().build(SmallEncoder(), classes=200, seed=1)
    assert torch.equal(model.bank.vectors, again.bank.vectors)


def test_a_batch_without_labels_counts_for_the_epoch_of_the_leaf_rule() -> None:
    """Else the next epoch begins in the middle, and ever more is worn off or kept."""
    model = ProtoTree(depth=2, dim=25).build(FeatureEncoder(25), 10)
    method, head = ProtoTree(depth=2, dim=25), model.head
    assert isinstance(head, TreeHead)
    tokens, labels = patches()
    out = model(tokens[:20])
    sums = []
    for _ in range(3):
        for step in range(4):
            y = torch.from_numpy(labels[:20]).long() if step != 1 else torch.full((20,), -1)
            method.after_step(model, out, y, 4)
        sums.append(float(head.leaves.sum()))
    assert int(head.done) == 12
    assert sums[0] == pytest.approx(60, abs=1e-3), "an epoch's counts are its labelled cases"
    assert sums == pytest.approx([60.0] * 3, rel=0.1)


def test_edges() -> None:
    """One batch of one class, no label at all, one prototype, and a NaN that must surface."""
    model = ProtoTree(depth=1, dim=4).build(SmallEncoder(8), classes=3)
    out = model(torch.rand(4, 3, 32, 32))
    method = ProtoTree(depth=1, dim=4)
    for labels in (torch.ones(4, dtype=torch.long), torch.full((4,), -1)):
        term = method.objective(out, labels)["nll"]
        assert term.isfinite()
        before = model.head.leaves.clone()  # type: ignore[operator, union-attr]
        method.after_step(model, out, labels, 1)
        counted = float(model.head.leaves.sum())  # type: ignore[operator, union-attr]
        assert not torch.equal(before, model.head.leaves)  # type: ignore[arg-type]
        assert counted == pytest.approx(float((labels >= 0).sum()), abs=1e-4), "an epoch keeps what it counted"
    with torch.no_grad():
        broken = model(torch.full((1, 3, 32, 32), float("nan")))
    assert broken.logits.isnan().all()
    model.bank.ban([0])
    out = model(torch.rand(2, 3, 32, 32))
    left = model.head.leaf_distributions()[0]  # type: ignore[operator]
    assert torch.allclose(out.logits, left.expand(2, -1), atol=1e-6), "a banned prototype counts as absent"


@pytest.mark.slow
def test_with_the_encoder_trained(tmp_path: Path) -> None:
    """The whole schedule through pictures; the tree is saved, read back, drawn and followed."""
    train, test = digits("train").subset(range(0, 1200, 3)), digits("test").subset(range(100))
    method = ProtoTree(
        depth=4, dim=32, epochs=12, freeze_epochs=2, milestones=(8, 10),
        encoder_rate=3e-3, neck_rate=3e-3, prototype_rate=1e-2,
    )  # fmt: skip
    done = fit(method, train, encoder=SmallEncoder(), batch_size=50, quiet=True, device="cpu")
    assert compare_routings(done.model, test).accuracy["soft"] > 0.5
    projected = done.model.metadata["projections"][-1]
    assert projected["accuracy_after"] is not None
    save(done.model, tmp_path / "model", train)
    again = load(tmp_path / "model")
    assert [r.told(again.classes) for r in routes(again, test, [0, 5])] == [
        r.told(again.classes) for r in routes(done.model, test, [0, 5])
    ]


def test_settings_round_trip_and_wrong_ones_are_refused() -> None:
    method = ProtoTree(depth=4, milestones=(3, 5))
    assert make_method(method.settings()) == method
    assert make_method({**method.settings(), "milestones": [3, 5]}) == method
    for wrong in ({"depth": 0}, {"depth": 17}, {"prune_threshold": 1.0}, {"dim": 0}, {"epochs": 0}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            ProtoTree(**wrong)
