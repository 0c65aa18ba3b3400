"""Counterfactuals: a planted case worked out by hand, and real predictions checked by doing what they say."""

from __future__ import annotations

import json
import math
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from protolearn.core.bank import PrototypeBank
from protolearn.core.heads import ClassSoftmaxEvidence, LinearEvidence, NearestOfClass
from protolearn.core.measures import cosine, squared_l2
from protolearn.core.model import PrototypeModel
from protolearn.core.reasoning import Reasoning
from protolearn.core.scoring import ScoringSheet
from protolearn.core.similarities import Exponential, LogRatio, Negative
from protolearn.core.votes import Votes
from protolearn.data import features
from protolearn.encoders import FeatureEncoder
from protolearn.errors import DataError, UsageError
from protolearn.explain.alter import Alteration, altered
from protolearn.explain.counterfactual import counterfactuals
from protolearn.explain.explain import explain


def line(head: Any = None, similarity: Any = None, measure: Any = squared_l2) -> PrototypeModel:
    """Prototypes at 0 and 1 (class a), 3 (class b) and 9 (class c) on a line."""
    bank = PrototypeBank(torch.tensor([[0.0], [1.0], [3.0], [9.0]]), torch.eye(3)[torch.tensor([0, 0, 1, 2])])
    head = LinearEvidence(bank.ownership.T) if head is None else head(bank)
    if measure is squared_l2:
        similarity = Negative() if similarity is None else similarity
    model = PrototypeModel(FeatureEncoder(1), nn.Identity(), bank, measure, head, similarity=similarity)
    model.classes = ("a", "b", "c")
    return model.eval()


def at(*places: float) -> Any:
    return features(np.array(places, dtype=np.float32).reshape(-1, 1), [0] * len(places), classes=["a", "b", "c"])


def test_worked_out_by_hand() -> None:
    """At 1.5: evidence -2.25, -0.25, -2.25, -56.25; logits a -2.5, b -2.25, c -56.25, so b is predicted."""
    (found,) = counterfactuals(line(), at(1.5), most=5)
    assert (found.predicted, found.target) == (1, 0)
    assert found.lead == pytest.approx(0.25)
    assert [one.prototype for one in found.nearer] == [1, 0], "nearest first, of the other class alone"
    first = found.nearer[0]
    assert (first.similarity, first.evidence, first.distance) == (-0.25, -0.25, 0.25)
    assert first.change == pytest.approx(0.25), "a tie at the prototype itself"
    assert first.needed_distance == pytest.approx(0.0, abs=1e-6)
    assert first.reachable is True
    assert found.nearer[1].needed_distance == pytest.approx(2.0)
    assert found.fewer is not None
    assert found.fewer.prototypes == (3,), "evidence is negative: without its prototype class c scores 0, the most"
    assert found.fewer.becomes == 2


def test_far_away_nothing_suffices() -> None:
    (found,) = counterfactuals(line(), at(2.9), target="c")
    assert found.nearer[0].prototype == 3
    assert found.nearer[0].change == pytest.approx(6.1**2 - 0.01, rel=1e-4)
    assert found.nearer[0].reachable is True
    (found,) = counterfactuals(line(similarity=Exponential()), at(0.5), target="b")
    one = found.nearer[0]
    assert one.change == pytest.approx(2 * math.exp(-0.25) - math.exp(-6.25), rel=1e-5)
    assert one.evidence + one.change > 1
    assert (one.reachable, one.needed_distance) == (False, None), "two prototypes outweigh what one can bring"


def evidence_of(model: PrototypeModel, case: Any) -> Tensor:
    with torch.no_grad():
        return model(case[0].inputs.unsqueeze(0)).evidence


@pytest.mark.parametrize("similarity", [LogRatio(), Exponential(), Negative()])
def test_doing_what_is_said_flips_the_prediction(similarity: Any) -> None:
    """The evidence is raised by the change, and the prototype moved to the distance, in 40 random models."""
    reached = 0
    for seed in range(40):
        g = torch.Generator().manual_seed(seed)
        bank = PrototypeBank(torch.randn(9, 3, generator=g), torch.eye(3).repeat(3, 1))
        head = LinearEvidence(torch.randn(3, 9, generator=g), torch.randn(3, generator=g))
        model = PrototypeModel(FeatureEncoder(3), nn.Identity(), bank, squared_l2, head, similarity=similarity).eval()
        case = features(torch.randn(1, 4, 3, generator=g).numpy(), [0], classes=["0", "1", "2"])
        (found,) = counterfactuals(model, case, most=3)
        before = evidence_of(model, case)
        assert int(model.head(before).argmax()) == found.predicted
        for one in found.nearer:
            if one.change is None:
                continue
            for share, flips in ((0.999, False), (1.001, True)):
                raised = before.clone()
                raised[0, one.prototype] += share * one.change
                leads = int(model.head(raised).argmax()) == found.target
                assert leads == flips or one.change * 0.001 < 1e-4
            assert one.reachable == (one.needed_distance is not None)
            if one.reachable:
                reached += 1
                assert 0 <= one.needed_distance <= one.distance
                back = similarity(torch.tensor(one.needed_distance, dtype=torch.float64))
                assert float(back) == pytest.approx(one.evidence + one.change, abs=1e-4)
    assert reached > 10


def test_a_prototype_that_all_classes_weigh_alike_cannot_flip_anything() -> None:
    weight = torch.tensor([[1.0, 0.5], [1.0, 0.2]])
    bank = PrototypeBank(torch.tensor([[0.0], [1.0]]), torch.ones(2, 2) * torch.tensor([0.0, 1.0]))
    model = PrototypeModel(
        FeatureEncoder(1), nn.Identity(), bank, squared_l2, LinearEvidence(weight), similarity=LogRatio()
    )
    cases = features(np.array([[0.1]], dtype=np.float32), [0], classes=["0", "1"])
    (found,) = counterfactuals(model, cases, most=5)
    assert {one.prototype: one.change for one in found.nearer} == {0: None, 1: None}
    assert found.fewer is None, "prototype 1 speaks for the predicted class, and without it there is a tie"


# -- the smallest set, on a model of real digits ----------------------------------------------------------------------


def test_the_smallest_set_on_digits(model: PrototypeModel, parts: Any) -> None:
    test = parts[1]
    found = counterfactuals(model, test, range(60), most=2)
    explained = explain(model, test, range(60))
    inputs = torch.stack([model.encoder.preprocess(test.picture(i)) for i in range(60)])
    with torch.no_grad():
        out = model(inputs)
        ledger, logits = model.head.ledger(out).double(), out.logits.double()
    sizes = []
    for b, (one, told) in enumerate(zip(found, explained, strict=True)):
        assert one.predicted == told.predicted
        assert one.target == int(logits[b].argsort(descending=True, stable=True)[1])
        assert one.fewer is not None and one.fewer.smallest
        gone = list(one.fewer.prototypes)
        sizes.append(len(gone))
        without = altered(model, Alteration(ban=tuple(gone)))
        with torch.no_grad():
            assert int(without(inputs[b : b + 1]).logits.argmax()) == one.fewer.becomes != one.predicted
        if len(gone) <= 3:  # no smaller set, by trying them all
            for fewer in combinations(range(30), len(gone) - 1):
                left = logits[b] - ledger[b][:, list(fewer)].sum(1)
                assert int(left.argmax()) == one.predicted
    assert min(sizes) <= 3
    assert all(near.source is not None and near.region is not None for one in found for near in one.nearer)
    json.dumps([one.to_dict(model.classes) for one in found], allow_nan=False)


def test_a_class_that_is_named_and_the_own_class(model: PrototypeModel, parts: Any) -> None:
    test = parts[1]
    by_name = counterfactuals(model, test, range(40), target="7")
    for one in by_name:
        assert one.target == 7
        if one.predicted == 7:
            assert (one.nearer, one.fewer, one.lead) == ((), None, 0.0)
            continue
        assert model.bank.owner()[one.nearer[0].prototype] == 7
        if one.fewer is not None:
            i = test.ids.index(one.case)
            inputs = model.encoder.preprocess(test.picture(i)).unsqueeze(0)
            with torch.no_grad():
                scores = altered(model, Alteration(ban=one.fewer.prototypes))(inputs).logits[0]
            assert scores[7] > scores[one.predicted]
    assert any(one.predicted == 7 for one in by_name) and any(one.fewer is not None for one in by_name)
    own = counterfactuals(model, test, range(40), target="label")
    assert all(one.target == int(test.labels[i]) for i, one in enumerate(own))
    assert all((one.fewer is None and not one.nearer) == (one.predicted == one.target) or one.nearer for one in own)


# -- other heads ------------------------------------------------------------------------------------------------------


def votes(bank: PrototypeBank) -> Votes:
    return Votes(bank, k=3)


def detected(bank: PrototypeBank) -> Reasoning:
    return Reasoning(4 * bank.ownership.T.unsqueeze(0))


def winner(bank: PrototypeBank) -> NearestOfClass:
    return NearestOfClass(bank.owner(), 3)


@pytest.mark.parametrize("head", [votes, detected, winner])
def test_heads_that_are_not_linear(head: Any) -> None:
    model = line(head, Exponential(4.0))
    (found,) = counterfactuals(model, at(0.8), most=3)
    assert found.predicted == 0
    assert found.target == 1
    assert found.nearer[0].prototype == 2 and found.nearer[0].change is None and found.nearer[0].reachable is None
    assert found.fewer is not None
    assert set(found.fewer.prototypes) <= {0, 1} and not (len(found.fewer.prototypes) > 1 and found.fewer.smallest)
    without = altered(model, Alteration(ban=found.fewer.prototypes))
    with torch.no_grad():
        assert int(without(torch.tensor([[0.8]])).logits.argmax()) == found.fewer.becomes != 0
    assert counterfactuals(model, at(0.8), most_removed=1)[0].fewer is None or len(found.fewer.prototypes) == 1


def test_evidence_that_does_not_count_and_prototypes_of_nobody() -> None:
    """A scoring sheet: prototypes belong to nobody, and evidence below 0.3 counts as none."""
    bank = PrototypeBank(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), torch.zeros(3, 2))
    sheet = ScoringSheet(torch.tensor([[1.0, 0.0, 0.2], [0.0, 1.0, 0.2]]), clip=0.3)
    model = PrototypeModel(FeatureEncoder(2), nn.Identity(), bank, cosine, sheet).train()
    cases = features(np.array([[1.0, 0.1], [0.2, 0.2]], dtype=np.float32), [0, 0], classes=["0", "1"])
    first, second = counterfactuals(model, cases, most=3)
    assert model.training and sheet.training
    assert [one.prototype for one in first.nearer] == [1], "what class 1 weighs more than class 0 does"
    one = first.nearer[0]
    assert one.evidence == 0.0, "too little to count"
    assert one.similarity == pytest.approx(0.0995, abs=1e-3)
    assert one.change == pytest.approx(first.lead, abs=1e-5)
    assert one.reachable is True and one.distance is None
    assert second.lead == pytest.approx(0.0, abs=1e-6)
    assert first.fewer is None, "without prototype 0 nothing speaks for either class: that is no answer of class 1"


def test_shares_of_a_class() -> None:
    model = line(lambda bank: ClassSoftmaxEvidence(bank.ownership), Exponential())
    (found,) = counterfactuals(model, at(1.2))
    weight = model.head.per_unit(4).detach()
    assert found.nearer[0].change == pytest.approx(found.lead / float(weight[1, 2]), rel=1e-5)


def test_empty_and_wrong_questions(model: PrototypeModel, parts: Any) -> None:
    assert counterfactuals(model, parts[1], []) == []
    (no_nearer,) = counterfactuals(model, parts[1], [0], most=0)
    assert no_nearer.nearer == () and no_nearer.fewer is not None
    for wrong in ("predicted", "11"):
        with pytest.raises(UsageError):
            counterfactuals(model, parts[1], [0], target=wrong)
    with pytest.raises(UsageError, match="most must be"):
        counterfactuals(model, parts[1], [0], most=-1)
    unlabelled = features(np.array([[0.5]], dtype=np.float32))
    with pytest.raises(DataError, match="has no label"):
        counterfactuals(line(), unlabelled, target="label")
    assert counterfactuals(line(), unlabelled)[0].label is None
    one = line()
    one.bank.ban([2])
    (found,) = counterfactuals(one, at(0.8), target="b")
    assert found.nearer == (), "a banned prototype is no way out"


def test_the_model_stays_as_it_is(model: PrototypeModel, parts: Any) -> None:
    model.train()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    head, bank = model.head, model.bank
    counterfactuals(model, parts[1], range(5))
    assert model.training and model.encoder.training
    assert model.head is head and model.bank is bank
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in state.items())
