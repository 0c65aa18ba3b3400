"""Learned metrics, inverse similarities and the head where the nearest prototype of a class speaks alone."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from protolearn.core.bank import PrototypeBank
from protolearn.core.heads import NearestOfClass
from protolearn.core.measures import squared_l2
from protolearn.core.metrics import Metric, Omega, Relevances, on_simplex, under, unit_trace
from protolearn.core.model import PrototypeModel
from protolearn.core.similarities import Inverse
from protolearn.core.starts import class_centres
from protolearn.core.updates import k_means
from protolearn.encoders import FeatureEncoder
from protolearn.errors import UsageError
from protolearn.structures import Output, Tokens


def model_of(metric: Metric | None, classes: int = 3, dim: int = 4) -> PrototypeModel:
    bank = PrototypeBank.per_class(classes, 2, dim, generator=torch.Generator().manual_seed(1))
    head = NearestOfClass(bank.owner(), classes)
    return PrototypeModel(
        FeatureEncoder(dim), nn.Sequential(), bank, squared_l2, head, similarity=Inverse(), metric=metric
    )


def metrics(dim: int = 4) -> list[Metric]:
    made: list[Metric] = [Relevances(dim), Omega(dim), Omega(dim, 2)]
    for metric in made:
        nn.init.uniform_(metric.weight, 0.1, 1.0)
        metric.constrain()
    return made


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=6))
def test_relevances_stay_positive_with_sum_one(values: list[float]) -> None:
    got = on_simplex(torch.tensor(values).double())
    assert bool((got > 0).all())
    assert float(got.sum()) == pytest.approx(1.0, abs=1e-5)
    assert float(unit_trace(torch.tensor([values]).double() + 6.0).square().sum()) == pytest.approx(1.0)


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_distance_is_the_quadratic_form_of_the_matrix(kind: int) -> None:
    metric = metrics()[kind]
    model = model_of(metric)
    x = torch.rand(5, 3, 4)
    gaps = x.unsqueeze(2) - model.bank.vectors.detach()
    want = torch.einsum("bspi,ij,bspj->bsp", gaps, metric.matrix(), gaps)
    out = model(x)
    torch.testing.assert_close(out.distances, want.amin(1))
    assert torch.equal(out.positions, want.argmin(1))
    torch.testing.assert_close(model.maps(Tokens(x)), Inverse()(want).transpose(1, 2))
    assert float(metric.matrix().trace()) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_the_gradient_reaches_metric_and_prototypes(kind: int) -> None:
    model = model_of(metrics()[kind])
    x = torch.rand(5, 3, 4)
    model(x).distances.sum().backward()
    got = model.metric.weight.grad.clone(), model.bank.vectors.grad.clone()
    model.zero_grad()
    table = squared_l2.pairwise(model.metric(x), model.metric(model.bank.vectors))
    table.amin(1).sum().backward()
    torch.testing.assert_close(got[0], model.metric.weight.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got[1], model.bank.vectors.grad, rtol=1e-4, atol=1e-5)


def test_a_relevance_at_its_least_keeps_a_finite_gradient() -> None:
    metric = Relevances(2)
    with torch.no_grad():
        metric.weight.copy_(torch.tensor([1.0, 0.0]))
    metric.constrain()
    metric(torch.tensor([[1.0, 2.0]])).square().sum().backward()
    torch.testing.assert_close(metric.weight.grad, torch.tensor([1.0, 4.0]))


def test_the_metric_is_trained_with_the_neck_saved_and_copied() -> None:
    model = model_of(Omega(4, 2))
    assert [p is model.metric.weight for p in model.groups()["neck"]] == [True]
    assert "metric.weight" in model.state_dict()
    twin = copy.deepcopy(model)
    with torch.no_grad():
        model.metric.weight.mul_(3.0)
    x = torch.rand(1, 4)
    assert float(twin.measure.paired(x, x + 1)) * 9 == pytest.approx(float(model.measure.paired(x, x + 1)), rel=1e-5)
    model.constrain()
    assert float(model.metric.matrix().trace()) == pytest.approx(1.0)


def test_under_composes_product_and_pairs() -> None:
    x, p = torch.rand(5, 4), torch.rand(3, 4)
    metric = metrics()[1]
    bent = under(squared_l2, metric)
    torch.testing.assert_close(bent.pairwise(x, p), squared_l2.pairwise(metric(x), metric(p)))
    torch.testing.assert_close(bent.product.table(x, p), bent.pairwise(x, p), rtol=1e-4, atol=1e-5)


# -- the head -----------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(-1, 2), min_size=1, max_size=7), st.integers(0, 2**31))
def test_the_ledger_adds_up_and_one_prototype_a_class_speaks(owner: list[int], seed: int) -> None:
    head = NearestOfClass(torch.tensor(owner), 3)
    evidence = torch.rand(6, len(owner), generator=torch.Generator().manual_seed(seed)).round(decimals=1)
    scores, ledger = head(evidence), head.contributions(evidence)
    assert torch.equal(ledger.sum(2) + head.offset(), scores)
    assert bool(((ledger != 0).sum(2) <= 1).all())
    for c in range(3):
        mine = [p for p, o in enumerate(owner) if o == c]
        want = evidence[:, mine].amax(1) if mine else torch.zeros(6)
        assert torch.equal(scores[:, c], want)
        others = [p for p, o in enumerate(owner) if o != c]
        assert bool((ledger[:, c, others] == 0).all())


def test_banned_pruned_and_absent_prototypes() -> None:
    model = model_of(None)
    x = torch.rand(4, 1, 4)
    before = model(x)
    model.bank.ban([0, 1])
    out: Output = model(x)
    assert bool((out.logits[:, 0] == 0).all()) and torch.equal(out.logits[:, 1:], before.logits[:, 1:])
    assert bool((model.head.probabilities(out.logits)[:, 0] == 0).all())
    model.bank.unban([0, 1])
    model.prune([0, 1, 2])
    assert torch.equal(model.head.owner, torch.tensor([1, 2, 2]))
    assert torch.equal(model(x).logits[:, 2], before.logits[:, 2])
    twin = model_of(None)
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin(x).logits, model(x).logits)


def test_shares_of_powers() -> None:
    logits = torch.tensor([[0.5, 0.25, 0.25], [0.0, 0.0, 0.0], [0.4, 0.0, 0.0]])
    one, two = (NearestOfClass(torch.tensor([0, 1, 2]), 3, power).probabilities(logits) for power in (1.0, 2.0))
    torch.testing.assert_close(one[0], torch.tensor([0.5, 0.25, 0.25]))
    torch.testing.assert_close(two[0], torch.tensor([4.0, 1.0, 1.0]) / 6)
    torch.testing.assert_close(one[1], torch.full((3,), 1 / 3))
    torch.testing.assert_close(one[2], torch.tensor([1.0, 0.0, 0.0]))


@given(st.floats(0, 1e6), st.floats(0, 1e6), st.floats(1e-3, 1e3))
def test_shares_of_inverse_similarities_are_relative_distances(a: float, b: float, scale: float) -> None:
    s = Inverse(scale)(torch.tensor([a, b], dtype=torch.float64))
    assert float((s[0] - s[1]) / s.sum()) == pytest.approx((b - a) / (a + b + 2 * scale), rel=1e-9, abs=1e-12)


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="owner"):
        NearestOfClass(torch.tensor([3]), 3)
    with pytest.raises(ValueError, match="power"):
        NearestOfClass(torch.tensor([0]), 3, power=0.0)
    with pytest.raises(UsageError, match="scale"):
        Inverse(0.0)


# -- starts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_weighted_k_means_is_k_means_of_repetitions(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(60, 3, generator=draw, dtype=torch.float64)
    weights = torch.randint(0, 4, (60,), generator=draw)
    start = x[weights > 0][:5]
    weighted = k_means(x, 5, generator=draw, start=start, weights=weights)
    repeated = k_means(x.repeat_interleave(weights, 0), 5, generator=draw, start=start)
    torch.testing.assert_close(weighted.centres, repeated.centres)
    assert weighted.inertia == pytest.approx(repeated.inertia)
    # the draw too, as repetitions lie side by side
    by_draw = [
        k_means(*given, 5, generator=torch.Generator().manual_seed(7), weights=w, iterations=0).centres
        for given, w in (((x,), weights), ((x.repeat_interleave(weights, 0),), None))
    ]
    torch.testing.assert_close(*by_draw)


def test_class_centres_of_few_and_equal_tokens() -> None:
    draw = torch.Generator().manual_seed(0)
    assert class_centres(torch.ones(4, 2), 3, generator=draw).shape == (1, 2)
    assert class_centres(torch.rand(2, 2), 5, generator=draw).shape == (2, 2)
    mean = class_centres(torch.tensor([[0.0], [3.0]]), 1, generator=draw, weights=torch.tensor([2.0, 1.0]))
    assert float(mean) == pytest.approx(1.0)
