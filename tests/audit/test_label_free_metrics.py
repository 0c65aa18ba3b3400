"""Metrics that need no annotation, through a whole audit: planted models, laws, wrong input, real directions."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from protolearn.audit.look import Look
from protolearn.audit.metric import METRICS, make_metric
from protolearn.audit.result import AuditResult
from protolearn.audit.sparsity import local_size
from protolearn.audit.subject import AdaptedSubject
from protolearn.core.bank import PrototypeBank
from protolearn.core.heads import Head, LinearEvidence
from protolearn.core.measures import dot
from protolearn.core.model import PrototypeModel
from protolearn.core.scoring import ScoringSheet
from protolearn.data import Augment, arrays, digits, features
from protolearn.data.features import FeatureCases
from protolearn.encoders import FeatureEncoder, SmallEncoder
from protolearn.errors import DataError, UsageError
from protolearn.methods import get_method
from protolearn.tasks.audit import audit
from protolearn.training.fit import fit

LABELLED = ("ece", "brier", "nll", "risk_coverage")
OF_CASES = ("local_size", "local_size_predicted", "active_prototypes", "concentration", "abstention", "completeness")
OF_WEIGHTS = ("global_size", "sparsity_ratio")
MINE = (*OF_CASES, *OF_WEIGHTS, *LABELLED, "simulatability", "ood_abstention")
CLASSES = ("a", "b", "c")
WEIGHT = torch.tensor([[2.0, 1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 2.0, 0.5, 0.0], [0.0, 0.0, 0.0, 0.5, 2.0]])


def model_of(head: Head, prototypes: int = 5) -> PrototypeModel:
    """Prototypes are the axes: what a case says of itself is its score."""
    bank = PrototypeBank(torch.eye(prototypes), torch.zeros(prototypes, 3), learned=False)
    model = PrototypeModel(FeatureEncoder(prototypes), nn.Identity(), bank, dot, head)
    model.classes = CLASSES
    return model


def cases_of(values: Tensor, labels: list[int] | None = None) -> FeatureCases:
    marks = [-1] * len(values) if labels is None else labels
    return features(values.numpy(), np.array(marks), classes=CLASSES)


def drawn(count: int = 60, seed: int = 0) -> tuple[Tensor, list[int]]:
    g = torch.Generator().manual_seed(seed)
    values = torch.rand(count, 5, generator=g) * (torch.rand(count, 5, generator=g) < 0.7)
    values[:, 0] += 1e-2  # every case shows something
    labels = (values @ WEIGHT.T + 0.6 * torch.rand(count, 3, generator=g)).argmax(1).tolist()
    return values, labels


def alike(one: AuditResult, other: AuditResult, names: tuple[str, ...]) -> None:
    for name in names:
        assert one[name].value == pytest.approx(other[name].value, rel=1e-5, abs=1e-7), name


@pytest.fixture(scope="module")
def seen() -> AuditResult:
    values, labels = drawn()
    outside = 0.1 * torch.rand(30, 5, generator=torch.Generator().manual_seed(1))
    return audit(model_of(ScoringSheet(WEIGHT)), cases_of(values, labels), metrics=MINE, outside=cases_of(outside))


def test_every_metric_says_what_it_is_and_gives_plain_json(seen: AuditResult) -> None:
    told = json.loads(seen.to_json())["metrics"]
    assert set(told) == set(MINE) == {name for name in MINE if name in METRICS}
    for name, each in told.items():
        assert each["value"] is not None, name
        assert each["variant"], name
        assert each["counts"] or name in LABELLED, name
        for span in (each["over_cases"], each["over_prototypes"]):
            assert span is None or span[0] <= span[1]
    within = {name for name in MINE if told[name]["over_cases"] is not None}
    assert within == set(MINE) - set(OF_WEIGHTS), "what is counted in the model has no interval over cases"


def test_sizes_of_a_planted_sheet() -> None:
    values = torch.tensor([[1.0, 1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0, 0.5], [0.0] * 5, [0.0, 5e-4, 0.1, 0.0, 0.0]])
    model = model_of(ScoringSheet(WEIGHT))
    found = audit(model, cases_of(values), metrics=[*OF_CASES, *OF_WEIGHTS])
    assert found["local_size"].per_case.tolist() == [2, 4, 0, 1], "the fourth prototype speaks for two classes"
    assert found["local_size_predicted"].per_case.tolist() == [2, 2, 0, 1]
    assert found["local_size_predicted"].per_case.tolist() == local_size(model(values)).tolist()
    assert found["active_prototypes"].per_case.tolist() == [2, 3, 0, 1]
    assert found["local_size"].value == pytest.approx(7 / 4)
    assert found["local_size"].per_prototype.tolist() == [0.25, 0.25, 0.5, 0.5, 0.25]
    assert found["local_size"].counts["cases in which none counts"] == 1
    assert found["abstention"].per_case.tolist() == [0, 0, 1, 0]
    assert found["concentration"].per_case[0] == pytest.approx(0.6)
    assert found["concentration"].per_case[2].isnan()
    assert found["concentration"].counts["cases in which every score is 0"] == 1
    assert found["global_size"].value == 5
    assert found["sparsity_ratio"].value == pytest.approx(9 / 15)


def test_a_batch_is_not_added_up_before_it_is_counted() -> None:
    """The released code sums contributions over the batch, so that its figure grows with it; this one must not."""
    values = torch.eye(5).repeat(4, 1)
    cases, model = cases_of(values), model_of(ScoringSheet(WEIGHT))
    pairs = [audit(model, cases, metrics=["local_size"], batch_size=size)["local_size"].value for size in (1, 7, 20)]
    assert pairs == [pytest.approx(6 / 5)] * 3


def test_neither_batches_nor_the_order_of_prototypes_or_cases_matter(seen: AuditResult) -> None:
    values, labels = drawn()
    outside = cases_of(0.1 * torch.rand(30, 5, generator=torch.Generator().manual_seed(1)))
    order = torch.tensor([3, 0, 4, 1, 2])
    mixed = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    model = model_of(ScoringSheet(WEIGHT))
    small = audit(model, cases_of(values, labels), metrics=MINE, outside=outside, batch_size=7)
    alike(seen, small, MINE)
    for name in OF_CASES:
        assert torch.allclose(small[name].per_case, seen[name].per_case, equal_nan=True), name
    turned = audit(
        model_of(ScoringSheet(WEIGHT[:, order])),
        cases_of(values[:, order], labels),
        metrics=MINE,
        outside=cases_of(0.1 * torch.rand(30, 5, generator=torch.Generator().manual_seed(1))[:, order]),
    )
    alike(seen, turned, tuple(name for name in MINE if name != "simulatability"))  # equal splits are tried by chance
    assert torch.equal(turned["local_size"].per_prototype, seen["local_size"].per_prototype[order])
    shuffled = cases_of(values[mixed], [labels[i] for i in mixed.tolist()])
    other = audit(model, shuffled, metrics=MINE, outside=outside)
    alike(seen, other, tuple(name for name in MINE if name != "simulatability"))  # other folds
    assert torch.allclose(other["brier"].per_case, seen["brier"].per_case[mixed])


def test_the_same_seed_gives_the_same_figures_and_intervals(seen: AuditResult) -> None:
    values, labels = drawn()
    outside = cases_of(0.1 * torch.rand(30, 5, generator=torch.Generator().manual_seed(1)))
    model = model_of(ScoringSheet(WEIGHT))
    assert audit(model, cases_of(values, labels), metrics=MINE, outside=outside).to_json() == seen.to_json()


def test_a_prototype_out_of_use_is_not_there() -> None:
    values, labels = drawn()
    banned, cut = model_of(ScoringSheet(WEIGHT)), model_of(ScoringSheet(WEIGHT[:, :4]), 4)
    banned.bank.ban([4])
    names = (*OF_CASES, *OF_WEIGHTS, *LABELLED)
    one = audit(banned, cases_of(values, labels), metrics=names)
    alike(one, audit(cut, cases_of(values[:, :4], labels), metrics=names), names)
    assert one["local_size"].per_prototype[4].isnan()
    assert one["global_size"].counts["prototypes out of use"] == 1


def test_one_case_and_one_prototype() -> None:
    bank = PrototypeBank(torch.ones(1, 1), torch.zeros(1, 3), learned=False)
    head = ScoringSheet(torch.tensor([[1.0], [0.0], [0.0]]))
    model = PrototypeModel(FeatureEncoder(1), nn.Identity(), bank, dot, head)
    model.classes = CLASSES
    case = cases_of(torch.tensor([[0.5]]), [0])
    found = audit(model, case, metrics=MINE, outside=case)
    for name in MINE:
        assert found[name].over_cases is None, "one case says nothing of others"
    assert found["simulatability"].value is None
    assert "Fewer than two" in found["simulatability"].notes[0]
    assert found["ood_abstention"].value == 1, "the very same case is accepted"
    assert found["risk_coverage"].value == 0
    assert found["concentration"].value == 0
    json.loads(found.to_json())


def test_all_scores_zero() -> None:
    nothing = cases_of(torch.zeros(8, 5), [0, 1, 2, 0, 1, 2, 0, 1])
    found = audit(model_of(ScoringSheet(WEIGHT)), nothing, metrics=MINE, outside=cases_of(torch.zeros(3, 5)))
    assert found["concentration"].value is None
    assert "nothing is spread" in found["concentration"].notes[0]
    assert found["abstention"].value == 1
    assert found["abstention"].extras["accuracy where it answers"] is None
    assert found["local_size"].value == 0 == found["active_prototypes"].value
    assert found["ood_abstention"].counts["outside cases on which the model says nothing"] == 3
    assert found["ood_abstention"].extras["AUROC"] == 0.5
    assert found["risk_coverage"].value == pytest.approx(5 / 8)
    assert "same confidence" in found["risk_coverage"].notes[1]
    json.loads(found.to_json())


def test_the_same_cases_as_outside_are_accepted() -> None:
    values, labels = drawn()
    cases = cases_of(values, labels)
    for head in (ScoringSheet(WEIGHT), LinearEvidence(-WEIGHT)):
        for score in ("logit", "probability"):
            metric = make_metric("ood_abstention", score=score)
            found = audit(model_of(head), cases, metrics=[metric], outside=cases)["ood_abstention"]
            assert found.value >= 0.95
            assert found.extras["share of audited cases accepted"] == found.value
            assert found.extras["AUROC"] == pytest.approx(0.5)


def test_unlabelled_cases() -> None:
    values, labels = drawn()
    part = [label if k % 3 else -1 for k, label in enumerate(labels)]
    model = model_of(ScoringSheet(WEIGHT))
    found = audit(model, cases_of(values, part), metrics=(*LABELLED, *OF_CASES))
    rows = [k for k in range(60) if k % 3]
    known = audit(model, cases_of(values[rows], [labels[k] for k in rows]), metrics=LABELLED)
    alike(found, known, LABELLED)
    assert found["brier"].counts == {"labelled cases": 40, "unlabelled cases": 20}
    assert found["brier"].per_case.isnan().nonzero().squeeze(1).tolist() == list(range(0, 60, 3))
    none = audit(model, cases_of(values))
    assert {each.about.name for each in none.refused} >= {*LABELLED, "ood_abstention"}
    with pytest.raises(UsageError, match="labelled cases"):
        none["ece"]
    for name in (*OF_CASES, "simulatability"):
        assert none[name].value is not None
    assert none["completeness"].extras["accuracy, by prototypes shown"] == {"1": None, "3": None, "5": None}


def planted(scores: Tensor, logits: Tensor, probabilities: Tensor | None = None) -> AdaptedSubject:
    """A model that says what it is told, case by case."""
    module = nn.Linear(1, 1)
    shares = logits.softmax(1) if probabilities is None else probabilities

    def look(inputs: Tensor) -> Look:
        at = inputs.squeeze(1).long()
        return Look(
            logits[at], shares[at], scores[at], None, lambda part: scores[at][part].unsqueeze(1).expand(-1, 3, -1)
        )

    return AdaptedSubject(module, look, classes=CLASSES, ownership=torch.zeros(scores.shape[1], 3))


def rows(count: int) -> FeatureCases:
    return cases_of(torch.arange(count).unsqueeze(1).float(), [0] * count)


@pytest.mark.parametrize("name", [*OF_CASES, "ece", "simulatability", "ood_abstention"])
def test_nan_is_refused_and_the_case_named(name: str) -> None:
    bad = torch.rand(6, 4)
    bad[4, 1] = float("nan")
    damaged = planted(bad, bad[:, :3])
    with pytest.raises(DataError, match=r"case 4 of the cases: .* NaN"):
        audit(damaged, rows(6), metrics=[name], outside=rows(2))


def test_scores_given_as_probabilities_are_refused() -> None:
    logits = 5 * torch.rand(6, 3)
    with pytest.raises(DataError, match="case 0 of the cases: probabilities must be at least 0 and sum to 1"):
        audit(planted(torch.rand(6, 4), logits, logits), rows(6), metrics=["brier"])


def test_a_model_without_weights_is_referred_to_what_it_has() -> None:
    subject = planted(torch.rand(6, 4), torch.rand(6, 3))
    with pytest.raises(UsageError, match="'active_prototypes'"):
        audit(subject, rows(6), metrics=["global_size"])
    found = audit(subject, rows(6))
    assert found["active_prototypes"].value > 3
    assert found["completeness"].extras["largest gap between score and sum of contributions"] > 0.1, "no true ledger"


def test_scores_on_another_scale_are_said_and_can_be_counted_by_shares() -> None:
    values, labels = drawn()
    model = model_of(LinearEvidence(WEIGHT))
    small, large = cases_of(values, labels), cases_of(1000 * values, labels)
    plain = [audit(model, cases, metrics=["local_size"])["local_size"] for cases in (small, large)]
    assert "presumes 0 to 1" in plain[1].notes[0]
    assert plain[0].value != plain[1].value or plain[0].notes == ()
    for name in ("local_size", "local_size_predicted", "active_prototypes"):
        shares = [audit(model, c, metrics=[make_metric(name, relative=0.1)])[name] for c in (small, large)]
        assert shares[0].value == shares[1].value < plain[1].value + 5
        assert shares[1].notes == ()
    with pytest.raises(UsageError, match="share lie in 0 to 1"):
        audit(model, small, metrics=[make_metric("local_size", relative=2.0)])


def test_distances_turned_round_are_never_active() -> None:
    below = planted(-torch.rand(6, 4), torch.rand(6, 3))
    found = audit(below, rows(6), metrics=["active_prototypes", "local_size_predicted"])
    assert found["active_prototypes"].value is None
    assert "none can be above 0" in found["active_prototypes"].notes[0]
    assert found["local_size_predicted"].value == 4


def test_weights_against_a_class_are_said() -> None:
    found = audit(model_of(LinearEvidence(WEIGHT - 0.25)), cases_of(*drawn()), metrics=OF_WEIGHTS)
    assert found["sparsity_ratio"].value == pytest.approx(9 / 15)
    assert found["sparsity_ratio"].extras["share of weights near 0"] == 0
    assert "9 of 15 weights speak against" in found["sparsity_ratio"].notes[0]


def test_who_never_abstains_is_said() -> None:
    cases = cases_of(*drawn())
    found = audit(model_of(LinearEvidence(WEIGHT)), cases, metrics=["abstention"])["abstention"]
    assert found.value == 0
    assert "answers every case" in found.notes[0]
    logits = torch.tensor([[0.0, 0.0, 0.0], [0.0, -1.0, -1.0], [-1.0, -2.0, -3.0]])
    bare = audit(planted(torch.rand(3, 4), logits), rows(3), metrics=["abstention"])["abstention"]
    assert bare.per_case.tolist() == [1, 1, 0], "without a head: the largest score is exactly 0"


def test_completeness_of_decisions_by_one_and_by_many() -> None:
    one = model_of(LinearEvidence(torch.tensor([[9.0, 0, 0, 0, 0], [0, 9.0, 0, 0, 0], [0, 0, 9.0, 0, 0]])))
    values, labels = drawn()
    found = audit(one, cases_of(values, labels), metrics=[make_metric("completeness", shown=1)])["completeness"]
    assert found.value == 1
    # class a by a crowd of small votes, class b by one large one that every case brings
    crowd = torch.zeros(3, 5)
    crowd[0], crowd[1, 0] = 1.0, 3.5
    found = audit(model_of(LinearEvidence(crowd)), cases_of(torch.ones(4, 5), [0] * 4), metrics=["completeness"])
    by = found["completeness"].extras["same prediction, by prototypes shown"]
    assert by == {"1": 0.0, "3": 0.0, "5": 1.0}
    assert found["completeness"].extras["accuracy, by prototypes shown"] == by
    by_class = found["completeness"].extras["same prediction, by prototypes of every class"]
    assert by_class == {"1": 0.0, "3": 0.0, "5": 1.0}
    falling = audit(model_of(LinearEvidence(-WEIGHT)), cases_of(values, labels), metrics=["completeness"])
    assert "sum to less than 0" in falling["completeness"].notes[2]


def test_simulatability_learns_from_the_training_cases_where_there_are_some() -> None:
    head = LinearEvidence(
        torch.tensor([[9.0, 0, 0, 0, 0], [4.0, 0, 0, 0, 0], [0, 0, 0, 0, 0]]), torch.tensor([0, 2.0, 0])
    )
    values, labels = drawn(200)
    train, test = cases_of(values[:120], labels[:120]), cases_of(values[120:], labels[120:])
    found = audit(model_of(head), test, train, metrics=["simulatability"])["simulatability"]
    assert (found.extras["learned from"], found.counts["cases learned from"]) == ("train", 120)
    assert found.value > 0.95, "one question is enough"
    assert found.extras["prototypes asked about"] == 1
    alone = audit(model_of(head), test, metrics=["simulatability"])["simulatability"]
    assert (alone.extras["learned from"], alone.counts["cases learned from"]) == ("cases", 80)
    assert alone.value > 0.9 > alone.extras["same prediction, always the commonest class"]
    with pytest.raises(UsageError, match="depth"):
        audit(model_of(head), test, metrics=[make_metric("simulatability", depth=0)])


@lru_cache
def trained(name: str) -> PrototypeModel:
    how = {
        "pipnet": {"prototypes": 32, "encoder_rate": None, "joint_epochs": 20, "neck_rate": 0.1, "shrink": 1e-2},
        "protopnet": {
            "prototypes_per_class": 3, "dim": 32, "warm_epochs": 24, "project_at": (16, 24), "last_layer_epochs": 15,
            "encoder_rate": None, "neck_rate": 1e-2, "prototype_rate": 1e-2, "head_rate": 1e-2,
        },
    }[name]  # fmt: skip
    train = digits("train").subset(range(0, 1200, 5))
    views = {"views": 2, "augment": Augment(flip=0, rotation=0, shear=0, skew=0, brightness=0.4, contrast=0.4)}
    views = views if name == "pipnet" else {}
    done = fit(
        get_method(name)(**how), train, encoder=SmallEncoder(size=16), batch_size=20, quiet=True, device="cpu", **views
    )
    return done.model


@pytest.mark.slow
def test_a_scoring_sheet_needs_less_reading_than_similarities_to_everything() -> None:
    """PIP-Net sums a few prototypes it found; ProtoPNet compares with all of them, whatever the threshold."""
    test = digits("test").subset(range(150))
    names = ("local_size", "local_size_predicted", "active_prototypes", "concentration")
    found = {name: audit(trained(name), test, metrics=names) for name in ("pipnet", "protopnet")}
    for name in names:
        few, many = found["pipnet"][name].value, found["protopnet"][name].value
        assert (few > many) if name == "concentration" else (few < many), (name, few, many)
    shares = [
        audit(trained(name), test, metrics=[make_metric("local_size_predicted", relative=0.01)])
        for name in ("pipnet", "protopnet")
    ]
    assert shares[0]["local_size_predicted"].value < shares[1]["local_size_predicted"].value


@pytest.mark.slow
def test_textures_are_refused_more_often_than_digits(shared_data: Path) -> None:
    file = shared_data / "textures6" / "textures6.npz"
    if not file.is_file():
        pytest.skip(f"no textures at {file}")
    with np.load(file) as held:
        outside = arrays(held["x_test"][:90], name="textures")
    test = digits("test")
    inside, others = test.subset(range(150)), test.subset(range(150, 300))

    def taken(name: str, score: str) -> tuple[float, float, float]:
        """Return the shares of textures and of other digits that are accepted, and the area for textures."""
        found = [
            audit(trained(name), inside, metrics=[make_metric("ood_abstention", score=score)], outside=each)
            for each in (outside, others)
        ]
        far, near = (each["ood_abstention"] for each in found)
        assert far.value is not None and near.value is not None
        assert 0.4 < near.extras["AUROC"] < 0.6, "digits are not told apart from digits"
        return far.value, near.value, far.extras["AUROC"]

    for name, score in (("pipnet", "logit"), ("pipnet", "probability"), ("protopnet", "probability")):
        far, near, area = taken(name, score)
        assert far < near, (name, score)
        assert area > 0.8, (name, score)
    # the largest logit of a model that compares with every prototype does not fall on what it has never seen
    assert taken("pipnet", "logit")[2] > 0.9 > 0.6 > taken("protopnet", "logit")[2]
