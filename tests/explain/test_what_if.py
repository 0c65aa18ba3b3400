"""Banning, removing and reweighting prototypes in a copy: what changes, and that the model does not."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from protolearn.core.bank import PrototypeBank
from protolearn.core.heads import ClassSoftmaxEvidence, FixedEvidence, LinearEvidence, NearestOfClass
from protolearn.core.measures import squared_l2
from protolearn.core.model import PrototypeModel
from protolearn.core.reasoning import Reasoning
from protolearn.core.scoring import ScoringSheet
from protolearn.core.similarities import Exponential, Negative
from protolearn.core.trees import TreeHead
from protolearn.core.votes import Votes
from protolearn.data import digits, features
from protolearn.encoders import FeatureEncoder, SmallEncoder
from protolearn.errors import DataError, UsageError
from protolearn.explain.alter import Alteration, ReweighedHead, altered
from protolearn.explain.edits import Interaction
from protolearn.explain.explain import explain
from protolearn.explain.interact import interact
from protolearn.explain.what_if import Flip, what_if
from protolearn.methods import get_method
from protolearn.tasks.classify import evaluate

LINEAR = {
    "linear": lambda bank, g: LinearEvidence(torch.randn(3, 6, generator=g), torch.randn(3, generator=g)),
    "fixed": lambda bank, g: FixedEvidence(torch.randn(3, 6, generator=g), torch.randn(3, generator=g)),
    "shares": lambda bank, g: ClassSoftmaxEvidence(bank.ownership),
    "sheet": lambda bank, g: ScoringSheet(torch.randn(3, 6, generator=g), clip=0.2),
}
OTHERS = {
    "votes": lambda bank, g: Votes(bank, k=2),
    "reasoning": lambda bank, g: Reasoning.start(3, 6, generator=g),
    "winner": lambda bank, g: NearestOfClass(bank.owner(), 3),
}


def make(head: Any, seed: int = 0) -> PrototypeModel:
    g = torch.Generator().manual_seed(seed)
    bank = PrototypeBank(torch.randn(6, 3, generator=g), torch.eye(3).repeat_interleave(2, 0),
                         groups=torch.tensor([0, 1, 0, 1, 0, 1]))  # fmt: skip
    return PrototypeModel(
        FeatureEncoder(3), nn.Identity(), bank, squared_l2, head(bank, g), similarity=Exponential(4.0)
    ).eval()  # fmt: skip


def some(count: int = 30, seed: int = 1, labelled: bool = True) -> Any:
    g = torch.Generator().manual_seed(seed)
    values = torch.randn(count, 2, 3, generator=g)
    return features(values.numpy(), [i % 3 for i in range(count)] if labelled else None, classes=["0", "1", "2"])


def inputs_of(cases: Any) -> torch.Tensor:
    return torch.stack([cases[i].inputs for i in range(len(cases))])


# -- the copy ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(LINEAR))
def test_in_a_linear_head_a_ban_takes_away_the_contribution_and_a_factor_multiplies_it(name: str) -> None:
    model, inputs = make(LINEAR[name]), inputs_of(some())
    assert model.head.linear
    with torch.no_grad():
        out = model(inputs)
        ledger = model.head.ledger(out)
        banned = altered(model, Alteration(ban=(1, 4)))(inputs)
        removed = altered(model, Alteration(remove=(1, 4)))(inputs)
        half = altered(model, Alteration(reweight={2: 0.5, 5: 3.0}))
        new = half(inputs)
    expected = out.logits - ledger[:, :, [1, 4]].sum(2)
    torch.testing.assert_close(banned.logits, expected, atol=1e-5, rtol=1e-5)
    if name != "shares":  # there the prototypes that are left share the weight of the class anew
        torch.testing.assert_close(removed.logits, expected, atol=1e-5, rtol=1e-5)
    factors = torch.tensor([1.0, 1.0, 0.5, 1.0, 1.0, 3.0])
    torch.testing.assert_close(new.logits, (ledger * factors).sum(2) + model.head.offset(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(half.head.ledger(new).sum(2) + half.head.offset(), new.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(half.head.per_unit(6), model.head.per_unit(6) * factors)
    assert isinstance(half.head, ReweighedHead)
    both = altered(model, Alteration(remove=(0,), reweight={2: 0.5, 5: 3.0}))
    with torch.no_grad():
        assert both(inputs).logits.shape == (30, 3)
    assert both.head.factors.tolist() == [1.0, 0.5, 1.0, 1.0, 3.0]


@pytest.mark.parametrize("name", sorted(OTHERS))
def test_in_other_heads_the_model_answers_as_if_it_never_had_the_prototype(name: str) -> None:
    model, inputs = make(OTHERS[name]), inputs_of(some())
    assert not model.head.linear
    with torch.no_grad():
        banned = altered(model, Alteration(ban=(1, 4)))(inputs)
        removed = altered(model, Alteration(remove=(1, 4)))(inputs)
    torch.testing.assert_close(banned.logits, removed.logits, atol=1e-5, rtol=1e-5)
    with pytest.raises(UsageError, match="ban prototypes instead"):
        altered(model, Alteration(reweight={0: 2.0}))
    assert isinstance(altered(model, Alteration(reweight={0: 1.0})).head, type(model.head)), "1 changes nothing"
    with pytest.raises(ValueError, match="not linear"):
        ReweighedHead(model.head, torch.ones(6))


def test_in_a_tree_a_banned_node_sends_everybody_left() -> None:
    bank = PrototypeBank(torch.tensor([[0.0]]), torch.zeros(1, 2))
    head = TreeHead.complete(depth=1, classes=2)
    head.leaves.copy_(torch.tensor([[0.0, 5.0], [5.0, 0.0]]))
    model = PrototypeModel(FeatureEncoder(1), nn.Identity(), bank, squared_l2, head, similarity=Exponential()).eval()
    with torch.no_grad():
        assert int(model(torch.zeros(1, 1)).logits.argmax()) == 0
        assert int(altered(model, Alteration(ban=(0,)))(torch.zeros(1, 1)).logits.argmax()) == 1


def test_a_copy_is_a_copy() -> None:
    model = make(LINEAR["linear"])
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    whole, shared = (altered(model, Alteration(ban=(0,), remove=(3,)), share=how) for how in (False, True))
    for other in (whole, shared):
        assert len(other.bank) == 5 and other.bank.banned.tolist() == [True, False, False, False, False]
        assert other.bank is not model.bank and other.head is not model.head
        with torch.no_grad():
            other.bank.vectors.add_(1.0)
            other.head.weight.add_(1.0)
    assert shared.encoder is model.encoder and whole.encoder is not model.encoder
    assert whole.classes == model.classes
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in state.items())
    voting = make(OTHERS["votes"])
    other = altered(voting, Alteration(ban=(0,)))
    assert other.head.bank is other.bank, "a head that reads the bank reads the copy's"
    assert not bool(voting.bank.banned.any())


def test_groups_by_name_and_what_is_refused() -> None:
    model = make(LINEAR["linear"])
    assert altered(model, Alteration(ban=("group 1",))).bank.banned.tolist() == [False, True] * 3
    assert altered(model, Alteration(reweight={"group 0": 0.0})).head.factors.tolist() == [0.0, 1.0] * 3
    for wrong, words in (
        (Alteration(ban=(9,)), "no prototype 9"),
        (Alteration(ban=("grup 1",)), "did you mean 'group 1'"),
        (Alteration(remove=("group 0", "group 1")), "all prototypes would be removed"),
        (Alteration(reweight={0: 2.0, "group 0": 1.5}), "prototype 0 is given a factor twice"),
    ):
        with pytest.raises(UsageError, match=words):
            altered(model, wrong)
    for wrong_arguments in (
        {"ban": 3}, {"remove": "group 1"}, {"reweight": {0: -1.0}}, {"reweight": {0: float("nan")}},
        {"reweight": {0: "much"}}, {"ban": (True,)}, {"ban": (None,)},
    ):  # fmt: skip
        with pytest.raises(UsageError):
            Alteration(**wrong_arguments)
    drawn = make(LINEAR["linear"])
    drawn.bank.drawn = True
    with pytest.raises(UsageError, match="belong to one input"):
        altered(drawn, Alteration())


# -- over a data set --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted({**LINEAR, **OTHERS}))
def test_before_and_after_are_what_the_models_say(name: str) -> None:
    model, cases = make({**LINEAR, **OTHERS}[name]), some(50)
    alteration = Alteration(ban=(0, 2))
    found = what_if(model, cases, alteration, batch_size=7)
    other = altered(model, alteration)
    for mine, scores, table in (
        (model, found.before, found.probabilities_before),
        (other, found.after, found.probabilities_after),
    ):
        alone = evaluate(mine, cases)
        assert scores.accuracy == alone.accuracy
        assert np.array_equal(scores.confusion, alone.confusion)
        np.testing.assert_allclose(table, alone.probabilities, atol=1e-6)
    assert found.cases == 50 and len(found.ids) == 50
    changed = [case for case, old, new in zip(cases.ids, found.before.predicted, found.after.predicted, strict=True)
               if old != new]  # fmt: skip
    assert [flip.case for flip in found.flips if None not in (flip.before, flip.after)] == changed
    if not found.abstained_before and not found.abstained_after:
        gained = found.counts["repaired"] - found.counts["broken"]
        assert found.after.accuracy == pytest.approx(found.before.accuracy + gained / 50)
    recalls = found.per_class()
    assert sum(count for _, _, count in recalls.values()) == 50
    assert recalls["0"][0] == found.before.per_class[0].recall
    json.dumps(found.to_dict(), allow_nan=False)
    assert found.notes == ()


def test_nothing_changes_when_nothing_is_altered() -> None:
    for head in (*LINEAR.values(), *OTHERS.values()):
        found = what_if(make(head), some(), Alteration(reweight={1: 1.0}))
        assert found.flips == () and found.p_value is None
        assert found.largest_shift == 0.0
        assert found.summary().startswith("weight of 1 times 1: 0 of 30 answers change")


def test_a_class_without_its_prototypes_is_not_found_any_more() -> None:
    """Planted: a class whose every prototype is banned loses all its cases; the others only gain."""
    bank = PrototypeBank(torch.eye(3), torch.eye(3))
    model = PrototypeModel(
        FeatureEncoder(3), nn.Identity(), bank, squared_l2, LinearEvidence.from_ownership(bank.ownership),
        similarity=Exponential(0.3),
    )  # fmt: skip
    g = torch.Generator().manual_seed(0)
    values = torch.eye(3).repeat(20, 1) + 0.2 * torch.randn(60, 3, generator=g)
    cases = features(values.numpy(), list(range(3)) * 20, classes=["0", "1", "2"])
    found = what_if(model, cases, Alteration(ban=(2,)))
    assert found.before.accuracy > 0.9
    assert found.per_class()["2"][1] == 0.0
    assert found.counts["broken"] == int(found.before.confusion[2, 2])
    assert found.p_value < 1e-3
    assert {flip.before for flip in found.flips if flip.kind == "broken"} == {"2"}
    doubled = what_if(model, cases, Alteration(reweight={2: 2.0}))
    assert doubled.per_class()["2"][1] >= found.per_class()["2"][0]
    halved = what_if(model, cases, Alteration(reweight={2: 0.0}))
    assert [flip.case for flip in halved.flips] == [flip.case for flip in found.flips], "no weight is as good as a ban"


def test_the_evidence_path_agrees_with_rejecting_case_by_case() -> None:
    """In a linear head to ban a prototype and to reject it in every case is the same."""
    cases = digits("test").subset(range(12))
    model = get_method("protopnet")(prototypes_per_class=2, dim=8).build(SmallEncoder(size=16), 10)
    model.classes = cases.classes
    found = what_if(model, cases, Alteration(ban=(3, 7, 8)))
    corrected = interact(model, cases, Interaction().reject(3).reject(7).reject(8))
    after = torch.stack([one.logits_after for one in corrected])
    np.testing.assert_allclose(found.after.logits, after.numpy(), atol=1e-5)


def test_a_copy_explains_itself() -> None:
    cases = digits("test").subset(range(3))
    model = get_method("protopnet")(prototypes_per_class=2, dim=8).build(SmallEncoder(size=16), 10)
    model.classes = cases.classes
    other = altered(model, Alteration(ban=(0,), reweight={5: 0.25}))
    for told in explain(other, cases, target="2"):
        assert told.total == pytest.approx(told.logit, abs=1e-4)
        assert 0 not in {row.prototype for row in told.rows}
        (row,) = [row for row in told.rows if row.prototype == 5]
        assert row.contribution == pytest.approx(
            0.25 * row.evidence * float(model.head.weight.detach()[2, 5]), abs=1e-5
        )


def test_models_that_do_not_know() -> None:
    bank = PrototypeBank(torch.eye(2), torch.zeros(2, 2))
    sheet = ScoringSheet(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), clip=0.5)
    model = PrototypeModel(FeatureEncoder(2), nn.Identity(), bank, squared_l2, sheet, similarity=Exponential())
    cases = features(np.eye(2, dtype=np.float32), [1, 0], classes=["0", "1"])
    found = what_if(model, cases, Alteration(ban=(0,)))
    assert (found.abstained_before, found.abstained_after) == (0, 1)
    (flip,) = found.flips
    assert (flip.before, flip.after, flip.label, flip.kind) == ("1", None, "1", "broken")
    assert "without an answer 0 -> 1" in found.summary()


def test_evidence_below_zero_is_told() -> None:
    bank = PrototypeBank(torch.tensor([[0.0], [1.0]]), torch.eye(2))
    model = PrototypeModel(
        FeatureEncoder(1), nn.Identity(), bank, squared_l2, LinearEvidence(torch.eye(2)), similarity=Negative()
    )  # fmt: skip
    cases = features(np.array([[0.2], [0.9]], dtype=np.float32), [0, 1], classes=["0", "1"])
    found = what_if(model, cases, Alteration(ban=(0,)))
    assert "below 0 in 100% of its matches" in found.notes[0]
    assert what_if(model, cases, Alteration(reweight={0: 0.5})).notes == (), "nothing is gone"


def test_empty_unlabelled_and_unknown_cases() -> None:
    model = make(LINEAR["linear"])
    nothing = what_if(model, some(), Alteration(ban=(0,)), [])
    assert (nothing.cases, nothing.flips, nothing.largest_shift, nothing.before.accuracy) == (0, (), None, None)
    json.dumps(nothing.to_dict(), allow_nan=False)
    unlabelled = what_if(model, some(labelled=False), Alteration(ban=tuple(range(6))))
    assert unlabelled.before.accuracy is None and unlabelled.before.unlabelled == 30
    assert unlabelled.counts["unlabelled"] == len(unlabelled.flips) > 0
    assert "accuracy" not in unlabelled.summary()
    with pytest.raises(DataError, match="'hen'"):
        what_if(model, features(np.zeros((1, 3), dtype=np.float32), ["hen"]), Alteration())
    one = what_if(model, some(), Alteration(ban=(0,)), [4])
    assert one.ids == (some().ids[4],)
    assert Flip("x", "a", "b", "c", 0.5, 0.5).kind == "other"


def test_the_model_stays_as_it_is() -> None:
    cases = digits("test").subset(range(10))
    model = get_method("protopnet")(prototypes_per_class=2, dim=8).build(SmallEncoder(size=16), 10).train()
    model.classes = cases.classes
    model.encoder.eval()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    head = model.head
    for alteration in (Alteration(ban=(1,)), Alteration(remove=(1,)), Alteration(reweight={1: 2.0})):
        what_if(model, cases, alteration)
    assert model.head is head and len(model.bank) == 20
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in state.items())
