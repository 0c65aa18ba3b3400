"""Retrieval: what is found is what is nearest, whatever the search, and never the case itself."""

from __future__ import annotations

import builtins
import json
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from protolearn.core.bank import PrototypeBank
from protolearn.core.heads import LinearEvidence
from protolearn.core.measures import squared_l2
from protolearn.core.model import PrototypeModel
from protolearn.core.scoring import ScoringSheet
from protolearn.core.similarities import Exponential, Negative
from protolearn.data import Cases, arrays, digits, features
from protolearn.encoders import FeatureEncoder, SmallEncoder
from protolearn.errors import DataError, MissingExtra, UsageError
from protolearn.explain.passes import PictureList
from protolearn.methods.parts.protopnet import ProtoPNet
from protolearn.tasks.retrieve import cases_of_prototypes, similar_cases
from protolearn.tasks.retrieve_result import Query, SimilarCase, SimilarCases
from protolearn.training.project import project


@pytest.fixture(scope="module")
def train() -> Cases:
    return digits("train").subset(range(0, 900, 6))


@pytest.fixture(scope="module")
def model(train: Cases) -> PrototypeModel:
    """Prototypes that are real tokens; the network is not trained."""
    method = ProtoPNet(prototypes_per_class=2, dim=8)
    made = method.build(SmallEncoder(dim=8), 10, 0).eval()
    made.method, made.classes = method, train.classes
    project(made, train.with_transform(made.encoder.preprocess))
    return made


def outputs(model: PrototypeModel, cases: Any) -> Any:
    with torch.no_grad():
        return model(torch.stack([model.encoder.preprocess(cases.picture(i)) for i in range(len(cases))]))


@pytest.mark.parametrize("by", ["evidence", "embedding"])
@pytest.mark.parametrize("search", ["exact", "faiss", "auto"])
def test_the_nearest_are_found(model: PrototypeModel, train: Cases, by: str, search: str) -> None:
    if search == "faiss":
        pytest.importorskip("faiss")
    test = digits("test").subset(range(40))
    found = similar_cases(model, test, train, k=4, by=by, search=search, many=100, batch_size=16)
    asked, stored = outputs(model, test), outputs(model, train)
    if by == "evidence":
        table = torch.cdist(asked.evidence.double(), stored.evidence.double()).square()
    else:
        one, other = (out.tokens.values.double().mean(1) for out in (asked, stored))
        table = -nn.functional.cosine_similarity(one.unsqueeze(1), other, dim=-1)
    order = table.argsort(dim=1, stable=True)[:, :4]
    for q, query in enumerate(found.queries):
        values = [one.value if by == "evidence" else -one.value for one in query.found]
        np.testing.assert_allclose(values, table[q, order[q]].numpy(), rtol=1e-4, atol=1e-5)
        assert values == sorted(values)
        rows = [train.index(one.case) for one in query.found]
        np.testing.assert_allclose(table[q, rows].numpy(), table[q, order[q]].numpy(), rtol=1e-4, atol=1e-5)
        assert [one.label for one in query.found] == [train.classes[train.labels[r]] for r in rows]
        assert query.case == test.ids[q] and query.label == test.classes[test.labels[q]]
        assert query.predicted == model.classes[int(asked.logits[q].argmax())]
        wanted = np.mean([label == query.predicted for label in (one.label for one in query.found)])
        assert query.agreement == pytest.approx(wanted)
    assert (found.by, found.stored) == (by, len(train))
    json.dumps(found.to_dict(), allow_nan=False)
    assert len(list(found.rows())) == 160


@pytest.mark.parametrize("by", ["evidence", "embedding"])
@pytest.mark.parametrize("measure", [None, "cosine", "dot"])
def test_faiss_and_exact_search_agree_to_the_last_digit(
    model: PrototypeModel, train: Cases, by: str, measure: str | None
) -> None:
    pytest.importorskip("faiss")
    one, other = (similar_cases(model, train, train, k=6, by=by, measure=measure, search=how)
                  for how in ("exact", "faiss"))  # fmt: skip
    assert one.search == "exact" and other.search == "faiss"
    assert one.queries == other.queries


def test_auto_needs_many_cases_and_faiss(model: PrototypeModel, train: Cases, monkeypatch: pytest.MonkeyPatch) -> None:
    assert similar_cases(model, train, train, [0], many=len(train) + 1).search == "exact"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert similar_cases(model, train, train, [0], many=1).search == "exact"
    real = builtins.__import__

    def missing(name: str, *args: Any, **how: Any) -> Any:
        if name == "faiss":
            raise ImportError(name)
        return real(name, *args, **how)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(MissingExtra, match=r"protolearn\[scale\]"):
        similar_cases(model, train, train, [0], search="faiss")


@pytest.mark.parametrize("by", ["evidence", "embedding", "prototype"])
def test_a_case_does_not_find_itself(model: PrototypeModel, train: Cases, by: str) -> None:
    same = similar_cases(model, train, train, range(20), by=by, k=3)
    again = similar_cases(model, train.subset(range(20)), train, by=by, k=3)  # another object, the same cases
    assert same == again
    for query in same.queries:
        assert query.case not in [one.case for one in query.found]
        assert len(query.found) == 3


def test_an_id_alone_is_not_the_same_case(model: PrototypeModel, train: Cases) -> None:
    """A new picture that happens to be called like a training case is compared with that case too."""
    other = arrays(np.stack([np.asarray(train.picture(9).convert("L"))]), ids=[train.ids[0]])
    found = similar_cases(model, other, train, k=len(train), by="embedding")
    assert train.ids[0] in [one.case for one in found.queries[0].found]
    assert found.queries[0].found[0].case == train.ids[9], "the same picture under another id is found, at distance 0"
    assert found.queries[0].found[0].value == pytest.approx(1.0, abs=1e-6)
    assert len(found.queries[0].found) == len(train)
    listed = PictureList([train.picture(0)], [train.ids[0]], train.classes)  # tells no content: the id must do
    assert len(similar_cases(model, listed, train, k=len(train)).queries[0].found) == len(train) - 1


def test_by_the_leading_prototype(model: PrototypeModel, train: Cases) -> None:
    test = digits("test").subset(range(30))
    found = similar_cases(model, test, train, by="prototype", k=3)
    asked = outputs(model, test)
    ledger = model.head.ledger(asked)
    near = {one.prototype: one for one in cases_of_prototypes(model, train, k=3)}
    assert found.measure == "squared_l2"
    for q, query in enumerate(found.queries):
        predicted = int(asked.logits[q].argmax())
        own = [2 * predicted, 2 * predicted + 1]
        assert query.prototype == own[int(ledger[q, predicted, own].argmax())]
        assert query.found == near[query.prototype].found


def test_the_cases_of_a_prototype_and_their_places(model: PrototypeModel, train: Cases) -> None:
    found = cases_of_prototypes(model, train, [17, 3], k=5)
    assert [one.prototype for one in found] == [17, 3]
    tokens = outputs(model, train).tokens
    table = torch.cdist(model.bank.vectors.detach().double(), tokens.values.double().flatten(0, 1)).square()
    best = table.view(20, len(train), -1).min(2)
    for one in found:
        order = best.values[one.prototype].argsort(stable=True)[:5]
        np.testing.assert_allclose([hit.value for hit in one.found], best.values[one.prototype, order], atol=1e-5)
        source = one.source
        assert source is not None
        assert one.found[0].value == pytest.approx(0.0, abs=1e-6)
        at_source = [hit for hit in one.found if hit.case == source.case]
        assert at_source[0].region == source.region, "the place it was taken from"
        assert one.owner == str(one.prototype // 2)
        labels = [hit.label for hit in one.found]
        assert one.purity == pytest.approx(np.mean([label == one.owner for label in labels]))
        for hit in one.found:
            x0, y0, x1, y1 = hit.region
            assert 0 <= x0 < x1 <= 8 and 0 <= y0 < y1 <= 8, "pixels of the original picture"
    json.dumps([one.to_dict() for one in found], allow_nan=False)
    assert len(cases_of_prototypes(model, train, k=1)) == 20


def line(similarity: Any, ownership: torch.Tensor, head: Any) -> PrototypeModel:
    bank = PrototypeBank(torch.tensor([[0.0], [4.0]]), ownership)
    made = PrototypeModel(FeatureEncoder(1), nn.Identity(), bank, squared_l2, head, similarity=similarity).eval()
    made.classes = ("a", "b")
    return made


def places(*values: float, labels: Any = None) -> Any:
    return features(np.array(values, dtype=np.float32).reshape(-1, 1), labels, classes=["a", "b"])


def test_minus_a_distance_still_has_a_leading_prototype() -> None:
    """Contributions are all below 0 there: the prototype of the predicted class counts, not whoever adds 0."""
    model = line(Negative(), torch.eye(2), LinearEvidence(torch.eye(2)))
    (query,) = similar_cases(model, places(1.0), places(0.5, 3.5, 9.0), by="prototype", k=2).queries
    assert (query.predicted, query.prototype) == ("a", 0)
    assert [one.case for one in query.found] == ["features/000001", "features/000002"] or len(query.found) == 2


def test_who_does_not_know_has_no_leading_prototype() -> None:
    model = line(Exponential(), torch.zeros(2, 2), ScoringSheet(torch.eye(2), clip=0.5))
    known, unknown = similar_cases(model, places(0.1, 2.0), places(0.0, 4.0, 5.0), by="prototype", k=2).queries
    assert (known.predicted, known.prototype, len(known.found)) == ("a", 0, 2)
    assert (unknown.predicted, unknown.prototype, unknown.found, unknown.agreement) == (None, None, (), None)
    other = similar_cases(model, places(2.0), places(0.0, 4.0), by="evidence").queries[0]
    assert other.predicted is None and len(other.found) == 2 and other.agreement is None


def test_classes_are_matched_by_name_and_unlabelled_cases_have_no_say() -> None:
    model = line(Exponential(), torch.eye(2), LinearEvidence(torch.eye(2)))
    turned = features(np.array([[0.1], [0.2], [3.9], [0.0]], dtype=np.float32), ["a", "b", "b", None],
                      classes=["b", "a", "c"], ids=["p", "q", "r", "s"])  # fmt: skip
    (query,) = similar_cases(model, places(0.0), turned, k=4).queries
    assert query.predicted == "a"
    assert [(one.case, one.label) for one in query.found] == [("s", None), ("p", "a"), ("q", "b"), ("r", "b")]
    assert query.agreement == pytest.approx(1 / 3)
    assert similar_cases(model, places(0.0), turned.subset([3])).queries[0].agreement is None


def test_agreement_tells_right_from_wrong_predictions() -> None:
    def query(predicted: str, label: str | None, *labels: str) -> Query:
        return Query("x", predicted, 0.9, label, None, tuple(SimilarCase("y", one, 0.0) for one in labels))

    found = SimilarCases("evidence", "squared_l2", "exact", 9, (
        query("a", "a", "a", "a"), query("a", "a", "a", "b"), query("a", "b", "b", "b"), query("a", None, "b"),
    ))  # fmt: skip
    assert (found.agreement_when_right, found.agreement_when_wrong) == (0.75, 0.0)
    none = SimilarCases("evidence", "squared_l2", "exact", 9, ())
    assert none.agreement_when_right is None and none.agreement_when_wrong is None


def test_ties_go_to_the_lower_row_and_twins_are_both_found() -> None:
    model = line(Exponential(), torch.eye(2), LinearEvidence(torch.eye(2)))
    stored = places(1.0, 0.5, 0.5, 0.5, labels=[0, 0, 1, 1])
    for search in ("exact", "faiss") if __import__("importlib").util.find_spec("faiss") else ("exact",):
        (query,) = similar_cases(
            model, places(0.5, 0.7).subset([1]), stored, k=3, measure="squared_l2", by="embedding", search=search
        ).queries  # fmt: skip
        assert [one.case[-1] for one in query.found] == ["1", "2", "3"], "row 1 has its id, and another content"


def test_what_cannot_be(model: PrototypeModel, train: Cases) -> None:
    for arguments, words in (
        ({"by": "evidense"}, "did you mean 'evidence'"),
        ({"k": 0}, "k must be at least 1"),
        ({"search": "annoy"}, "auto, exact or faiss"),
        ({"by": "prototype", "measure": "cosine"}, "model's own measure"),
        ({"measure": "cosin"}, "did you mean 'cosine'"),
    ):
        with pytest.raises(UsageError, match=words):
            similar_cases(model, train, train, [0], **arguments)
    with pytest.raises(UsageError, match="no prototype 99"):
        cases_of_prototypes(model, train, [99])
    with pytest.raises(UsageError, match="k must be"):
        cases_of_prototypes(model, train, k=0)
    for empty in (lambda: similar_cases(model, train, train.subset([])),
                  lambda: cases_of_prototypes(model, train.subset([]))):  # fmt: skip
        with pytest.raises(DataError, match="no case to find"):
            empty()
    assert similar_cases(model, train, train, []).queries == ()
    lone = similar_cases(model, train, train.subset([0]), [0, 1], k=3).queries
    assert [len(query.found) for query in lone] == [0, 1], "the case itself is all there is"
    one = cases_of_prototypes(model, train.subset([4]), [0], k=5)
    assert len(one[0].found) == 1
    drawn = line(Exponential(), torch.eye(2), LinearEvidence(torch.eye(2)))
    drawn.bank.drawn = True
    with pytest.raises(UsageError, match="belong to one input"):
        similar_cases(drawn, places(0.0), places(1.0), by="prototype")


def test_a_vector_that_is_not_finite_is_named() -> None:
    model = line(Exponential(), torch.eye(2), LinearEvidence(torch.eye(2)))
    with torch.no_grad():
        model.bank.vectors[1] = float("nan")
    with pytest.raises(DataError, match="case 'features/000000' has evidence or tokens"):
        similar_cases(model, places(0.0), places(1.0, 2.0))


def test_a_banned_prototype_finds_nothing_and_counts_in_no_evidence(train: Cases) -> None:
    model = line(Exponential(), torch.eye(2), LinearEvidence(torch.eye(2)))
    model.bank.ban([1])
    first, second = cases_of_prototypes(model, places(0.0, 4.0), [0, 1])
    assert len(first.found) == 2 and second.found == () and second.purity is None
    assert [one.prototype for one in cases_of_prototypes(model, places(0.0))] == [0]
    (query,) = similar_cases(model, places(3.9), places(-4.0, 4.0), by="evidence", k=1).queries
    assert query.found[0].value == pytest.approx(0.0, abs=1e-4)


def test_the_model_stays_as_it_is(model: PrototypeModel, train: Cases) -> None:
    model.train()
    model.bank.eval()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for by in ("evidence", "embedding", "prototype"):
        similar_cases(model, train, train, [0, 1], by=by)
    cases_of_prototypes(model, train, [0])
    assert model.training and model.encoder.training and not model.bank.training
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in state.items())
    model.eval()


def test_pictures_of_any_size(model: PrototypeModel, train: Cases) -> None:
    large = PictureList([Image.new("RGB", (50, 30), "white")], ["x"])
    for by in ("evidence", "embedding", "prototype"):
        (query,) = similar_cases(model, large, train, by=by, k=2).queries
        assert len(query.found) == 2 and query.label is None
