"""Search among cached tokens: exact by default, the same through faiss."""

from __future__ import annotations

import builtins
import importlib.util
from typing import Any

import numpy as np
import pytest
import torch

from protolearn.core.measures import cosine, dot, get_measure, squared_l2
from protolearn.core.neighbours import neighbour_probabilities
from protolearn.data.features import features
from protolearn.encoders import FeatureEncoder
from protolearn.encoders.search import nearest_cases, retrieval_for
from protolearn.errors import MissingExtra, UsageError
from protolearn.methods import get_method
from protolearn.structures import Output
from protolearn.tasks.classify import evaluate


@pytest.mark.parametrize("measure", [squared_l2, cosine, dot])
@pytest.mark.parametrize("itself", [False, True])
def test_faiss_gives_the_same_answers(measure: Any, itself: bool) -> None:
    pytest.importorskip("faiss")
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(3000, 16, generator=draw)
    labels = torch.randint(0, 5, (3000,), generator=draw)
    asked = rows[:200] if itself else torch.randn(200, 16, generator=draw)
    left_out = torch.arange(200) if itself else None
    found = {how: nearest_cases(asked, rows, measure, 20, left_out=left_out, search=how) for how in ("exact", "faiss")}
    torch.testing.assert_close(found["faiss"][0], found["exact"][0], rtol=1e-4, atol=1e-4)
    assert float((found["faiss"][1] == found["exact"][1]).double().mean()) > 0.995, "but for rounding"
    sign = -1 if measure is squared_l2 else 1
    one, other = (neighbour_probabilities(sign * near, labels[at], 5) for near, at in found.values())
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
    if itself:
        assert bool((found["faiss"][1] != torch.arange(200).unsqueeze(1)).all())


def test_without_faiss_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *args: Any, **how: Any) -> Any:
        if name == "faiss":
            raise ImportError(name)
        return real(name, *args, **how)

    monkeypatch.setattr(builtins, "__import__", missing)
    rows = torch.rand(5, 2)
    with pytest.raises(MissingExtra, match=r"protolearn\[scale\]"):
        nearest_cases(rows, rows, squared_l2, 1, search="faiss")
    assert nearest_cases(rows, rows, squared_l2, 1)[1].flatten().tolist() == [0, 1, 2, 3, 4]


def test_what_cannot_be() -> None:
    rows = torch.rand(5, 2)
    with pytest.raises(UsageError, match="exact or faiss"):
        nearest_cases(rows, rows, squared_l2, 1, search="annoy")
    with pytest.raises(UsageError, match="k must be at least 1"):
        nearest_cases(rows, rows, squared_l2, 0)
    with pytest.raises(UsageError, match="nothing to find"):
        nearest_cases(rows[:1], rows[:1], squared_l2, 1, left_out=torch.tensor([0]))
    assert nearest_cases(rows, rows, squared_l2, 99)[1].shape == (5, 5), "as many as there are"
    pytest.importorskip("faiss")
    with pytest.raises(UsageError, match="does not know projection_length"):
        nearest_cases(rows, rows, get_measure("projection_length"), 1, search="faiss")


@pytest.mark.parametrize("search", ["exact", "faiss"])
@pytest.mark.parametrize(
    ("slug", "settings"),
    [
        ("nw-head", {"mode": "knn", "neighbours": 7, "balanced": False, "encoder_rate": None}),
        ("nw-head", {"mode": "knn", "neighbours": 7, "balanced": False, "encoder_rate": None, "kernel": "hypersphere"}),
        ("knn-augment", {"k": 7}),
        ("knn-augment", {"k": 7, "similarity": "cosine", "temperature": 0.1}),
    ],
)
def test_a_model_predicts_the_same_by_its_nearest_cases(search: str, slug: str, settings: dict[str, Any]) -> None:
    if search == "faiss":
        pytest.importorskip("faiss")
    draw = torch.Generator().manual_seed(0)
    model = get_method(slug)(**settings).build(FeatureEncoder(16), 3).eval()
    labels = torch.randint(0, 3, (500,), generator=draw)
    model.bank.grow(torch.randn(500, 16, generator=draw), torch.eye(3)[labels], groups=torch.ones(500))
    model.bank.ban([20])
    asked = torch.randn(40, 1, 16, generator=draw)
    whole, found = model(asked), retrieval_for(model, search)
    assert found is not None
    some = found(asked)
    torch.testing.assert_close(some.logits, whole.logits, rtol=1e-5, atol=1e-6)
    ledger = model.head.ledger(some)
    torch.testing.assert_close(ledger, model.head.ledger(whole), rtol=1e-5, atol=1e-6)
    assert int(torch.isfinite(some.similarities).sum(1).max()) < 30, "the others are not compared"
    if some.distances is not None:
        assert whole.distances is not None
        near = torch.isfinite(some.distances)
        torch.testing.assert_close(some.distances[near], whole.distances[near], rtol=1e-4, atol=1e-5)


def test_retrieval_is_taken_where_it_helps_and_refused_where_it_would_change_the_answer() -> None:
    knn = {"mode": "knn", "balanced": False, "encoder_rate": None}
    model = get_method("nw-head")(**knn).build(FeatureEncoder(4), 3)
    assert retrieval_for(model) is None, "few cases"
    if importlib.util.find_spec("faiss") is not None:
        assert retrieval_for(model, many=2) is not None
    for other in ({**knn, "mode": "full"}, {**knn, "balanced": True}, {**knn, "environments": "single"}):
        one = get_method("nw-head")(**other).build(FeatureEncoder(4), 3)
        assert retrieval_for(one, many=1) is None
        with pytest.raises(UsageError, match="retrieval needs a model"):
            retrieval_for(one, "exact")
    with pytest.raises(UsageError, match="auto, exact or faiss"):
        retrieval_for(model, "fast")


def test_evaluation_goes_through_it() -> None:
    method = get_method("nw-head")(mode="knn", neighbours=3, balanced=False, encoder_rate=None)
    draw = torch.Generator().manual_seed(0)
    values, labels = torch.randn(200, 4, generator=draw), torch.randint(0, 3, (200,), generator=draw)
    model = method.build(FeatureEncoder(4), 3)
    model.classes = ("a", "b", "c")
    model.bank.keep(model.bank.rows(model.bank.grow(values, torch.eye(3)[labels], groups=torch.ones(200))))
    cases = features(torch.randn(50, 4, generator=draw).numpy(), labels[:50].numpy(), classes=["a", "b", "c"], name="t")
    seen: list[int] = []
    found = retrieval_for(model, "exact")
    assert found is not None

    def run(inputs: torch.Tensor) -> Output:
        seen.append(len(inputs))
        return found(inputs)

    one, other = evaluate(model, cases), evaluate(model, cases, run=run)
    assert sum(seen) == 50
    assert one.accuracy == other.accuracy
    np.testing.assert_allclose(one.logits, other.logits, rtol=1e-5, atol=1e-6)
