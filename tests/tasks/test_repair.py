"""A repair does what it says, in a copy: twins merge without a trace in any score, and no class is emptied."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from protolearn.audit.subject import ModelSubject
from protolearn.core.bank import PrototypeBank
from protolearn.core.heads import ClassSoftmaxEvidence
from protolearn.core.model import PrototypeModel
from protolearn.data import Cases, arrays, digits, features
from protolearn.data.archive import archive
from protolearn.encoders import FeatureEncoder, ImageEncoder, SmallEncoder
from protolearn.errors import DataError, UsageError
from protolearn.explain.explain import explain
from protolearn.explain.passes import run_over
from protolearn.methods import get_method
from protolearn.tasks.repair import repair
from protolearn.tasks.repair_steps import ban_background, merge_twins, spared, why_not_merge
from protolearn.tasks.verify import verify
from protolearn.training.fit import fit
from protolearn.training.folder import load, save
from protolearn.training.project import project

ONLY_MERGE: Any = {"drop_dead": False, "drop_impure": False, "refit": False, "metrics": None}
ONLY_DROP: Any = {"merge": False, "refit": False, "metrics": None}
TRAIN, TEST = digits("train").subset(range(200)), digits("test").subset(range(120))


@pytest.fixture
def model() -> PrototypeModel:
    """Digits, three prototypes a class on real tokens, a random last layer."""
    method = get_method("protopnet")(prototypes_per_class=3, dim=8)
    made = method.build(SmallEncoder(dim=8), 10, 0).eval()
    made.method, made.classes = method, TRAIN.classes
    project(made, TRAIN.with_transform(made.encoder.preprocess))
    made.head.weight.data += 0.3 * torch.randn(made.head.weight.shape, generator=torch.Generator().manual_seed(0))
    return made


def scattered(model: PrototypeModel) -> PrototypeModel:
    """Put prototypes far from each other, with no source: none has a twin."""
    count = len(model.bank)
    vectors = 5.0 * torch.randn(count, 8, generator=torch.Generator().manual_seed(1))
    model.bank.move(torch.arange(count), vectors, [None] * count)
    return model


def twin(model: PrototypeModel, row: int, of: int) -> None:
    """Put one prototype on the token of another."""
    model.bank.move(torch.tensor([row]), model.bank.vectors[[of]].detach(), [model.bank.sources[of]])


def scores(model: PrototypeModel, cases: Cases) -> torch.Tensor:
    return torch.cat([seen.output.logits for seen in run_over(model, cases)])


# -- merging --------------------------------------------------------------------------------------------------------


def test_twins_merge_without_a_change_of_any_score(model: PrototypeModel) -> None:
    twin(model, 1, 0)
    twin(model, 2, 0)
    model.bank.counts += torch.arange(30.0)
    digest, before = ModelSubject(model).digest(), scores(model, TEST)
    result = repair(model, TRAIN, TEST, near=0.0, **ONLY_MERGE)
    assert ModelSubject(model).digest() == digest
    first = {change.prototype for change in result.of("merged") if change.owner == TRAIN.classes[0]}
    (stays,) = {0, 1, 2} - first
    assert {change.into for change in result.of("merged") if change.owner == TRAIN.classes[0]} == {stays}
    assert torch.allclose(scores(result.model, TEST), before, atol=1e-4)
    assert result.shift is not None and result.shift < 1e-4
    assert np.array_equal(result.before.predicted, result.after.predicted)
    (row,) = result.model.bank.rows([stays]).tolist()
    assert result.model.bank.sources[row] == model.bank.sources[0]
    assert float(result.model.bank.counts[row]) == 3.0
    weights = model.head.weight.detach()
    assert torch.allclose(result.model.head.weight[:, row], weights[:, :3].sum(1), atol=1e-5)
    old, new = explain(model, TEST, [0])[0], explain(result.model, TEST, [0])[0]
    together = sum(entry.contribution for entry in old.rows if entry.prototype in (0, 1, 2))
    (one,) = [entry for entry in new.rows if entry.prototype == stays]
    assert one.contribution == pytest.approx(together, abs=1e-4)
    assert new.total == pytest.approx(new.logit, abs=1e-4)


def test_near_prototypes_merge_into_one_of_them_and_chains_do_not_collapse(model: PrototypeModel) -> None:
    """The three prototypes of a class in a row: only neighbours are near."""
    scattered(model)
    usual = float(torch.pdist(model.bank.vectors.detach()).square().median())
    line = model.bank.vectors[[0, 0, 0]].detach().clone()
    line[1:, 0] += torch.tensor([1.0, 2.0]) * (0.015 * usual) ** 0.5
    model.bank.move(torch.arange(3), line, [None] * 3)
    ends, middle = copy.deepcopy(model), copy.deepcopy(model)
    ends.head.weight.data[:, 0] = 9.0
    made, note = merge_twins(ends, 0.02)
    assert [(change.prototype, change.into) for change in made] == [(1, 0)]
    assert (note, ends.bank.ids.tolist()) == ("", [0, *range(2, 30)])
    assert "hardly differs" in made[0].reason
    middle.head.weight.data[:, 1] = 9.0
    made, _ = merge_twins(middle, 0.02)
    assert [(change.prototype, change.into) for change in made] == [(0, 1), (2, 1)]
    assert torch.equal(middle.bank.vectors[0], model.bank.vectors[1])
    assert merge_twins(model, 0.0) == ([], "")


def test_twins_of_other_classes_or_groups_stay_apart(model: PrototypeModel) -> None:
    scattered(model)
    twin(model, 5, 0)  # classes 1 and 0
    assert merge_twins(model) == ([], "")
    twin(model, 1, 0)
    model.bank.groups = torch.arange(30)
    assert merge_twins(model) == ([], "")
    model.bank.groups = None
    assert [change.prototype for change in merge_twins(model)[0]] in ([0], [1])


def test_a_banned_twin_is_no_twin(model: PrototypeModel) -> None:
    scattered(model)
    twin(model, 1, 0)
    model.bank.ban([0])
    assert merge_twins(model) == ([], "")


def test_heads_that_cannot_merge_say_so(model: PrototypeModel) -> None:
    scattered(model)
    twin(model, 1, 0)
    model.head = ClassSoftmaxEvidence(model.bank.ownership)
    result = repair(model, TRAIN, **ONLY_MERGE)
    assert result.changes == ()
    assert any("ClassSoftmaxEvidence cannot" in note for note in result.notes)
    model.across = lambda table, usable: table.softmax(2)
    assert "compete" in why_not_merge(model)
    result = repair(model, TRAIN, **{**ONLY_MERGE, "drop_dead": True})
    assert [note.split(":")[0] for note in result.notes] == [
        "nothing is merged", "dead prototypes stay", "judged on the training cases, which both models have seen"
    ]  # fmt: skip


def test_equal_vectors_with_other_widths_are_no_twins() -> None:
    method = get_method("rbf-network")()
    model = method.build(FeatureEncoder(4), 2, 0)
    assert "width of its own" in why_not_merge(model)


# -- dropping -------------------------------------------------------------------------------------------------------


def test_dead_prototypes_go_and_the_reason_is_said(model: PrototypeModel) -> None:
    model.head.weight.data[:, 4] = 0.0
    model.bank.active[7] = False
    model.bank.ban([9])
    result = repair(model, TRAIN, TEST, drop_impure=False, **ONLY_DROP)
    told = {change.prototype: change.reason for change in result.of("dropped")}
    assert told[4] == "dead: no class gives it any weight"
    assert told[7] == "dead: inactive: it brings no evidence"
    assert 9 not in told and bool(result.model.bank.banned[result.model.bank.rows([9])])
    assert result.shift is None


def test_an_impure_prototype_goes_but_never_the_last_of_its_class(model: PrototypeModel) -> None:
    twin(model, 1, 20)  # a prototype of class 0 on a token of class 6
    result = repair(model, TRAIN, TEST, drop_dead=False, minimum=6, **ONLY_DROP)
    told = {change.prototype: change for change in result.changes}
    assert told[1].action in ("dropped", "spared")
    assert told[1].reason.startswith("impure: ")
    assert result.model.bank.ownership.gt(0).any(0).all()
    kept = result.of("spared")
    assert kept, "with all six neighbours demanded, some class must lose everything but one"
    for change in kept:
        assert change.prototype in result.model.bank.ids.tolist()
        mates = [other for other in result.of("dropped") if other.owner == change.owner]
        assert all(int(change.reason.split()[1]) >= int(m.reason.split()[1]) for m in mates)


def test_the_purest_and_most_used_is_spared() -> None:
    member = torch.tensor([[True, False], [True, True], [False, True], [False, False]])
    every = torch.ones(4, dtype=torch.bool)
    assert spared(member, every, [(0.0,), (1.0,), (5.0,), (9.0,)]) == [1]  # the first class keeps one that both have
    assert spared(member, every, [(2.0,), (1.0,), (5.0,), (9.0,)]) == [0, 2]
    assert spared(member, torch.tensor([True, False, True, True]), [(0.0,)] * 4) == []
    assert spared(torch.zeros(2, 2, dtype=torch.bool), torch.ones(2, dtype=torch.bool), [(0.0,)] * 2) == []


def test_classes_with_few_cases_are_not_impure_for_that() -> None:
    """With two cases of a class no more than two can be near: three of six cannot be asked for."""
    values = np.concatenate([np.zeros((20, 2)), np.full((2, 2), 9.0)]) + 0.01 * np.arange(44).reshape(22, 2)
    cases = features(values.astype(np.float32), [0] * 20 + [1] * 2, name="few")
    method = get_method("glvq")(prototypes_per_class=2)
    model = method.build(FeatureEncoder(2), 2, 0)
    model.method, model.classes = method, cases.classes
    where = torch.tensor([[0.0, 0.0], [0.1, 0.1], [9.4, 9.4], [9.42, 9.42]])
    model.bank.move(torch.arange(4), where, [None] * 4)
    result = repair(model, cases, drop_dead=False, **ONLY_DROP)
    assert result.changes == ()


# -- banning --------------------------------------------------------------------------------------------------------


def test_a_ban_silences_and_is_refused_where_it_empties_a_class(model: PrototypeModel) -> None:
    how: Any = {"merge": False, "drop_dead": False, "drop_impure": False, "metrics": None}
    result = repair(model, TRAIN, TEST, ban=[3, 5, 3], epochs=2, **how)
    assert [(change.action, change.prototype) for change in result.changes] == [("banned", 3), ("banned", 5)]
    assert result.model.bank.banned.nonzero().squeeze(1).tolist() == [3, 5]
    assert len(result.model.bank) == 30
    assert result.prototypes == (30, 28)
    assert not {row.prototype for row in explain(result.model, TEST, [0])[0].rows} & {3, 5}
    assert repair(result.model, TRAIN, ban=[3], **how).changes == ()
    digest = ModelSubject(model).digest()
    with pytest.raises(UsageError, match="class '0' without a prototype: it has 0-2"):
        repair(model, TRAIN, ban=[0, 1, 2], **how)
    with pytest.raises(UsageError, match="no prototype has the id 99: this model's ids are 0-29"):
        repair(model, TRAIN, ban=[1, 99], **how)
    assert ModelSubject(model).digest() == digest


def test_background_is_banned_but_the_least_bad_of_a_class_stays(model: PrototypeModel) -> None:
    outside = torch.full((30,), 0.2, dtype=torch.float64)
    outside[0] = 0.9
    outside[3:6] = torch.tensor([0.95, 0.85, 0.99], dtype=torch.float64)
    outside[6] = float("nan")
    made = ban_background(model, outside, 0.8)
    assert [(change.action, change.prototype) for change in made] == [
        ("banned", 0), ("banned", 3), ("spared", 4), ("banned", 5)
    ]  # fmt: skip
    assert made[0].reason == "background: 90% of its heat lies outside the object"
    assert model.bank.banned.nonzero().squeeze(1).tolist() == [0, 3, 5]
    with pytest.raises(UsageError, match="between 0 and 1"):
        ban_background(model, outside, 1.0)


# -- fitting and judging --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quarters() -> tuple[Cases, Cases]:
    """Digits cut into four quarters of 16 pixels."""

    def cut(part: str, count: int) -> Cases:
        found = digits(part)
        grey = np.stack([np.asarray(found.picture(i).convert("L")) for i in range(count)]) / 255.0
        values = grey.reshape(-1, 2, 4, 2, 4).transpose(0, 1, 3, 2, 4).reshape(-1, 4, 16).astype(np.float32)
        return features(values, found.labels[:count], classes=found.classes, name=f"quarters ({part})")

    return cut("train", 600), cut("test", 300)


@pytest.fixture(scope="module")
def trained(quarters: tuple[Cases, Cases]) -> PrototypeModel:
    """More prototypes than digits need: ten a class."""
    rates = {"neck_rate": 1e-2, "prototype_rate": 1e-2, "head_rate": 1e-2, "encoder_rate": None}
    settings = {"prototypes_per_class": 10, "dim": 16, "warm_epochs": 10, "project_at": (10,), "last_layer_epochs": 6}
    method = get_method("protopnet")(**settings, **rates)
    return fit(method, quarters[0], encoder=FeatureEncoder(16), quiet=True, device="cpu", seed=0).model


def test_a_crowded_model_of_digits_gets_smaller_and_no_worse(
    trained: PrototypeModel, quarters: tuple[Cases, Cases], tmp_path: Path
) -> None:
    """The direction on real data: many prototypes go, and the accuracy on other cases stays where it was."""
    train, test = quarters
    metrics = ["local_size", "global_size"]
    result = repair(trained, train, test, near=0.1, epochs=20, metrics=metrics)
    assert result.refitted is not None and result.refitted.n == 300
    assert result.of("merged") and result.of("dropped")
    assert result.prototypes[1] < 0.8 * result.prototypes[0]
    assert result.before.accuracy is not None and result.after.accuracy is not None
    assert result.after.accuracy > result.before.accuracy - 0.03
    assert result.refitted.accuracy is not None and result.after.accuracy > result.refitted.accuracy - 0.03
    assert verify(result.model, train).ok, "what is left are the same training tokens"
    assert result.audits is not None
    first, second = result.audits
    assert second["global_size"].value < first["global_size"].value
    figures = {row["figure"]: row for row in result.rows()}
    assert figures["global_size"]["after"] == second["global_size"].value
    assert figures["accuracy"]["before_interval"] == list(result.before.interval or ())
    assert figures["accuracy"]["refitted"] == result.refitted.accuracy
    better, worse = result.switched
    assert (better - worse) / result.after.n == pytest.approx(result.after.accuracy - result.before.accuracy)
    text = result.text()
    for word in (
        "merged",
        "dropped",
        "accuracy",
        "only refitted",
        "prototypes in use",
        "local_size",
        "test cases of quarters (test)",
    ):
        assert word in text
    again = load(save(result.model, tmp_path / "repaired", train))
    assert torch.allclose(scores(again, test), scores(result.model, test), atol=1e-6)
    kept = again.metadata["repairs"][-1]
    assert kept["prototypes"] == list(result.prototypes)
    assert len(kept["changes"]) == len(result.changes)
    assert again.metadata["metrics"]["accuracy"] == pytest.approx(result.after.accuracy)
    assert again.metadata["metrics"]["judged_on"] == "test cases of quarters (test)"


def test_only_the_last_layer_is_fitted_and_the_seed_decides(
    trained: PrototypeModel, quarters: tuple[Cases, Cases]
) -> None:
    train, _ = quarters
    how: Any = {"ban": [2], "merge": False, "drop_dead": False, "drop_impure": False, "epochs": 3, "metrics": None}
    one, other = repair(trained, train, **how), repair(trained, train, **how)
    before, after = trained.state_dict(), one.model.state_dict()
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert changed == {"head.weight", "bank.banned"}
    assert ModelSubject(one.model).digest() == ModelSubject(other.model).digest()
    plain = repair(trained, train, **{**how, "refit": False})
    assert plain.refitted is None and torch.equal(plain.model.head.weight, trained.head.weight)
    assert plain.judged_on == "training cases of quarters (train)"
    assert plain.model.metadata["metrics"].keys() >= {"training_accuracy"}


def test_with_nothing_to_repair_the_copy_is_equal(model: PrototypeModel) -> None:
    result = repair(scattered(model), TRAIN, TEST, drop_dead=False, drop_impure=False, metrics=None)
    assert result.changes == () and result.refitted is None
    assert ModelSubject(result.model).digest() == ModelSubject(model).digest()
    assert result.model is not model
    assert "repairs" not in result.model.metadata
    assert result.text().startswith("nothing to repair")


def test_a_head_without_weights_is_not_fitted(model: PrototypeModel, quarters: tuple[Cases, Cases]) -> None:
    train, test = quarters
    method = get_method("glvq")(prototypes_per_class=3)
    flat = [part_of(cases) for cases in (train, test)]
    found = fit(method, flat[0], encoder=FeatureEncoder(64), quiet=True, device="cpu", seed=0).model
    found.bank.move(torch.tensor([1]), found.bank.vectors[[0]].detach(), [None])
    result = repair(found, flat[0], flat[1], ban=[5], metrics=None)
    assert result.refitted is None
    assert any("has nothing to learn" in note for note in result.notes)
    assert {(change.action, change.prototype) for change in result.changes} >= {("banned", 5), ("merged", 1)}
    assert result.shift == pytest.approx(0.0, abs=1e-6)


def part_of(cases: Cases) -> Cases:
    values = np.stack([cases[i].inputs.numpy().reshape(-1) for i in range(len(cases))])
    return features(values, cases.labels, classes=cases.classes, name="whole digits")


@pytest.mark.slow
def test_birds_without_their_background_prototypes_look_more_at_the_bird(shared_data: Path) -> None:
    """Chosen by the boxes of the training pictures, seen in the test pictures."""
    folder = shared_data / "cub_birds6" / "cub_birds6.zip"
    train, test = archive(folder, "train"), archive(folder, "test")
    weights = shared_data / "backbones" / "mobilenetv2_100_in1k.safetensors"
    network: Any = {"mean": 0.5, "std": 0.5, "model_args": {"pad_type": "same"}}
    encoder = ImageEncoder("mobilenetv2_100", weights=weights, size=112, **network)
    rates = {"neck_rate": 3e-3, "prototype_rate": 3e-3, "head_rate": 1e-2, "encoder_rate": None}
    settings = {"prototypes_per_class": 5, "dim": 32, "warm_epochs": 15, "project_at": (15,), "last_layer_epochs": 10}
    method = get_method("protopnet")(**settings, **rates)
    model = fit(method, train, encoder=encoder, quiet=True, device="cpu", seed=0, batch_size=32).model
    how: Any = {"merge": False, "drop_dead": False, "drop_impure": False, "metrics": ["content_heat_share", "oirr"]}
    result = repair(model, train, test, background=0.65, epochs=10, **how)
    assert 3 <= len(result.of("banned")) < 30
    assert all(change.reason.startswith("background: ") for change in result.changes)
    assert result.audits is not None
    before, after = result.audits
    assert after["content_heat_share"].value > before["content_heat_share"].value
    assert after["oirr"].value < before["oirr"].value
    assert any("the background takes" in note for note in result.notes)
    assert (result.model.bank.ownership[result.model.bank.usable] > 0).any(0).all()


# -- refusals -------------------------------------------------------------------------------------------------------


def test_what_cannot_be_repaired_is_refused(model: PrototypeModel) -> None:
    with pytest.raises(UsageError, match="near"):
        repair(model, TRAIN, near=1.0)
    with pytest.raises(UsageError, match="minimum"):
        repair(model, TRAIN, minimum=9)
    with pytest.raises(UsageError, match="got none"):
        repair(model, TRAIN.subset([]))
    with pytest.raises(UsageError, match="content_heat_share"):
        repair(model, TRAIN, background=0.7, metrics=None)
    strange = arrays(np.zeros((3, 8, 8), np.uint8), ["x", "0", "1"])
    with pytest.raises(DataError, match="class 'x', which the model was not trained on"):
        repair(model, strange, metrics=None)
    hand = copy.deepcopy(model)
    hand.method = None
    with pytest.raises(UsageError, match="by hand"):
        repair(hand, TRAIN, ban=[1], metrics=None)
    hand.bank = PrototypeBank(torch.zeros(1, 30, 8), hand.bank.ownership)
    with pytest.raises(UsageError, match="drawn"):
        repair(hand, TRAIN)


def test_cases_that_vote_are_not_repaired() -> None:
    cases = features(np.random.default_rng(0).random((30, 4)).astype(np.float32), [0, 1] * 15, name="votes")
    method = get_method("nw-head")()
    model = method.build(FeatureEncoder(4), 2, 0)
    with pytest.raises(UsageError, match="themselves vote"):
        repair(model, cases)


def test_one_case_is_enough_to_look(model: PrototypeModel) -> None:
    result = repair(model, TRAIN.subset([0]), TEST, drop_dead=False, **ONLY_DROP)
    assert all(change.reason.startswith("impure: 0 of its 1 nearest") for change in result.changes)
    assert {change.owner for change in result.changes} <= {TRAIN.classes[int(TRAIN.labels[0])]}
