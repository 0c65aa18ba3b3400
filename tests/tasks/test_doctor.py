"""The doctor: each illness is made on purpose and must be found; a healthy model has none."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
import torch

from protolearn.core.model import PrototypeModel
from protolearn.data import Cases, arrays, digits
from protolearn.encoders import SmallEncoder
from protolearn.methods.parts.protopnet import ProtoPNet
from protolearn.tasks.doctor import Finding, environment, examine
from protolearn.training.project import project


def make_model(cases: Cases, encoder: Any = None, **settings: Any) -> PrototypeModel:
    method = ProtoPNet(**{"prototypes_per_class": 2, "dim": 8, **settings})
    model = method.build(encoder or SmallEncoder(dim=8), len(cases.classes), 0).eval()
    model.method, model.classes = method, cases.classes
    project(model, cases.with_transform(model.encoder.preprocess))
    return model


@pytest.fixture(scope="module")
def cases() -> Cases:
    return digits("train").subset(range(0, 600, 6))


@pytest.fixture
def model(cases: Cases) -> PrototypeModel:
    return make_model(cases)


def topics(findings: list[Finding]) -> set[str]:
    return {finding.topic for finding in findings}


def found(findings: list[Finding], topic: str) -> Finding:
    return next(finding for finding in findings if finding.topic == topic)


def pictures(count: int, labels: list[int], **fields: Any) -> Cases:
    values = np.random.default_rng(0).integers(0, 255, (count, 8, 8), np.uint8)
    return arrays(values, labels, classes=[str(i) for i in range(10)], **fields)


def test_the_environment_is_told() -> None:
    facts = environment()
    assert facts["packages"]["torch"] == torch.__version__.split("+")[0] or facts["packages"]["torch"]
    assert facts["devices"][0].startswith("cpu")
    assert facts["extras"]["images"]["install"] == "pip install 'protolearn[images]'"
    assert "dev" not in facts["extras"]
    json.dumps(facts)


def test_nothing_wrong_is_said_of_the_model_alone(model: PrototypeModel) -> None:
    assert topics(examine(model)) <= {"duplicate", "collapsed"}  # chance meetings of an untrained model


def test_data_bring_no_errors(model: PrototypeModel, cases: Cases) -> None:
    findings = examine(model, cases, digits("test"))
    assert all(finding.severity != "error" for finding in findings)
    assert "split" not in topics(findings)
    json.dumps([finding.to_dict() for finding in findings])


def test_nan_weights(model: PrototypeModel, cases: Cases) -> None:
    with torch.no_grad():
        model.bank.vectors[0, 0] = float("nan")
    findings = examine(model, cases)
    assert findings[0].severity == "error"
    assert "bank.vectors" in found(findings, "nan").message


def test_class_without_prototypes(model: PrototypeModel) -> None:
    model.bank.ban([4, 5])
    findings = examine(model)
    assert "'2'" in found(findings, "class without prototypes").message
    assert found(findings, "switched off").prototypes == (4, 5)


def test_collapse_and_duplicates(model: PrototypeModel) -> None:
    with torch.no_grad():
        model.bank.vectors[1] = model.bank.vectors[0]
    model.bank.sources[1] = model.bank.sources[0]
    findings = examine(model)
    assert {0, 1} <= set(found(findings, "collapsed").prototypes)
    assert {0, 1} <= set(found(findings, "duplicate").prototypes)


def test_no_source(model: PrototypeModel) -> None:
    model.bank.sources[7] = None
    assert found(examine(model), "no source").prototypes == (7,)


def test_encoder_changed(model: PrototypeModel, cases: Cases) -> None:
    with torch.no_grad():
        next(model.neck.parameters()).mul_(2)
    findings = examine(model, cases)
    assert len(found(findings, "encoder changed").prototypes) == 20
    assert sum(finding.topic == "encoder changed" for finding in findings) == 1


def test_weight_against_its_own_class(model: PrototypeModel) -> None:
    with torch.no_grad():
        model.head.weight[0, 0] = -1.0
    assert found(examine(model), "weight").prototypes == (0,)


def test_accuracy_lost_at_projection(model: PrototypeModel) -> None:
    model.metadata["projections"] = [{"accuracy_before": 0.9, "accuracy_after": 0.7}, {"moved": 3}, "odd"]
    assert "20.0 points" in found(examine(model), "projection").message
    model.metadata["projections"] = "odd"
    assert "projection" not in topics(examine(model))


def test_missing_sources(model: PrototypeModel, cases: Cases) -> None:
    source = model.bank.sources[2]
    assert source is not None
    model.bank.sources[2] = dataclasses.replace(source, case="gone", content="0" * 64)
    assert found(examine(model, cases), "case missing").prototypes == (2,)


def test_dead_and_impure(model: PrototypeModel, cases: Cases) -> None:
    with torch.no_grad():
        model.bank.vectors[3] = 1e4
        model.bank.vectors[0] = model.bank.vectors[18]  # a place in a nine, owned by class 0
    findings = examine(model, cases)
    assert 3 in found(findings, "dead").prototypes
    assert 0 in found(findings, "impure").prototypes


def test_split_overlap(model: PrototypeModel, cases: Cases) -> None:
    findings = examine(model, cases, cases.subset([0, 1]))
    assert "2 pictures" in found(findings, "split").message


def test_test_data_of_other_classes(model: PrototypeModel, cases: Cases) -> None:
    other = arrays(np.zeros((2, 8, 8), np.uint8), ["cat", "dog"])
    assert found(examine(model, cases, other), "split").severity == "error"
    assert found(examine(model, other), "classes").severity == "error"


def test_imbalance_tiny_and_repeated(model: PrototypeModel) -> None:
    cases = pictures(60, [0] * 55 + [1] * 3 + [2, 3])
    findings = examine(model, cases)
    assert "'1' (3)" in found(findings, "tiny class").message
    assert "55 cases of '0'" in found(findings, "imbalance").message
    assert any("only one picture of '2', '3'" in finding.message for finding in findings)
    twice = arrays(np.zeros((4, 8, 8), np.uint8), [0, 1, 0, 1], classes=list("0123456789"))
    findings = examine(model, twice)
    assert "repeated picture" in topics(findings)
    assert "contradicting labels" in topics(findings)


def test_positions_at_the_border(model: PrototypeModel, cases: Cases) -> None:
    for row, source in enumerate(model.bank.sources):
        assert source is not None
        model.bank.sources[row] = dataclasses.replace(source, position=row % 8)  # the top row of 8 x 8
    assert "20 of 20" in found(examine(model, cases), "border").message


def test_worst_comes_first_and_the_model_is_left_alone(model: PrototypeModel, cases: Cases) -> None:
    model.bank.ban([0, 1])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    order = [finding.severity for finding in examine(model, cases)]
    assert order == sorted(order, key=["error", "warning", "note"].index)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
