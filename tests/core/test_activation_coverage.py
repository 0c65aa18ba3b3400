"""Neuron activation coverage: its invariants, and that a model does not notice being differentiated."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import protolearn
from protolearn.core.activation_coverage import (
    ActivationCoverage,
    activation_state,
    balanced,
    bins_of,
    count_states,
    coverage_confidence,
    coverage_edges,
    filled,
    mean_coverage,
)
from protolearn.core.model import PrototypeModel
from protolearn.core.scorer import View, make_scorer
from protolearn.encoders import SmallEncoder
from protolearn.errors import UsageError
from protolearn.methods import get_method


def network(classes: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(6, 12), nn.ReLU(inplace=True), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, classes)]
    return nn.Sequential(*layers).eval()


def cases(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def model() -> PrototypeModel:
    method = get_method("protopnet")(prototypes_per_class=2)
    model = method.build(SmallEncoder(dim=16, size=16), 3)
    model.method = method
    return model.eval()


def states(count: int = 200, neurons: int = 5) -> Tensor:
    return torch.rand(count, neurons, generator=torch.Generator().manual_seed(2)).double()


@pytest.mark.parametrize("count", [4, 10, 50, 500])
def test_bins_cover_every_state(count: int) -> None:
    edges = coverage_edges(count)
    assert len(edges) == count and bool((edges.diff() > 0).all())
    ends = torch.tensor([[0.0], [0.5], [1.0]]).double()
    assert edges[0] == 0 and edges[-2] > 1
    at = bins_of(ends, edges)
    assert bool((edges[at] <= ends).all()) and bool((ends < edges[at + 1]).all())
    widths = edges[:-1].diff()
    assert bool((widths[: count // 2 - 1].diff() <= 1e-12).all())  # ever finer towards the middle
    assert torch.allclose(widths[:-1], widths[:-1].flip(0)) or count > 4


def test_no_case_is_lost() -> None:
    counts = count_states(states(), coverage_edges(10))
    assert counts.sum(0).tolist() == [200] * 5
    ends = torch.tensor([[0.0], [1.0]]).double()
    assert count_states(ends, coverage_edges(10)).sum() == 2


def test_looking_up_bins_is_comparing_with_every_edge() -> None:
    edges, state = coverage_edges(50), states()
    state = torch.cat([state, edges[:-1].unsqueeze(1).expand(-1, 5).clamp_max(1.0)])
    inside = (state.unsqueeze(0) >= edges[:-1].view(-1, 1, 1)) & (state.unsqueeze(0) < edges[1:].view(-1, 1, 1))
    assert torch.equal(inside.long().argmax(0), bins_of(state, edges))
    counts = count_states(state, edges)
    assert torch.equal(counts, inside.sum(1))
    full = filled(counts, 3)
    plain = (inside * full.unsqueeze(1)).sum(0).mean(1)
    assert torch.allclose(coverage_confidence(state, full, edges), plain)


def test_fullness_falls_with_saturation() -> None:
    counts = count_states(states(), coverage_edges(10))
    before = torch.full(counts.shape, math.inf)
    for saturation in (0.5, 1, 5, 100, 1000):
        full = filled(counts, saturation)
        assert bool(((full >= 0) & (full <= 1) & (full <= before)).all())
        before = full
    assert 0 < mean_coverage(filled(counts, 5)) < 1


def test_without_steepness_all_cases_are_the_same() -> None:
    outputs, gradients, edges = torch.randn(9, 4), torch.randn(9, 4), coverage_edges(10)
    state = activation_state(outputs, gradients, 0.0)
    full = filled(count_states(activation_state(outputs, gradients, 3.0), edges), 2)
    assert len(coverage_confidence(state, full, edges).unique()) == 1


def test_what_it_was_built_from_is_better_known_than_noise() -> None:
    net, known = network(), cases(400)
    score = ActivationCoverage(layers=["1", "3"], alpha=20.0, bins=20, saturation=5).fit_inputs(net, [known])
    inside, outside = score.score_inputs(net, known), score.score_inputs(net, 8 * cases(400, 9))
    assert inside.mean() > outside.mean() + 0.1
    assert bool(((inside >= 0) & (inside <= 1)).all())
    assert 0 < score.coverage() < 1


def test_batches_do_not_matter() -> None:
    net, known = network(), cases(50)
    one = ActivationCoverage(layers=["3"], bins=[10]).fit_inputs(net, [known])
    many = ActivationCoverage(layers=["3"], bins=[10]).fit_inputs(net, known.split(7))
    assert torch.equal(one.counts_0, many.counts_0)
    assert torch.allclose(one.score_inputs(net, known)[:5], many.score_inputs(net, known[:5]))


def test_it_asks_in_evaluation_mode_and_gives_the_mode_back() -> None:
    net, known = nn.Sequential(network()[0], nn.Dropout(0.5), nn.BatchNorm1d(12), nn.Linear(12, 3)).train(), cases(50)
    score = ActivationCoverage(layers=["2"], bins=10).fit_inputs(net, [known])
    assert torch.equal(score.score_inputs(net, known), score.score_inputs(net, known))
    assert all(module.training for module in net.modules())
    assert int(net[2].num_batches_tracked) == 0


def test_a_layer_of_its_own_settings_is_that_layer_alone() -> None:
    net, known = network(), cases(60)
    both = ActivationCoverage(layers=["1", "3"], alpha=[5.0, 50.0], bins=[10, 20], saturation=[2, 9])
    both.fit_inputs(net, [known])
    first = ActivationCoverage(layers=["1"], alpha=5.0, bins=10, saturation=2).fit_inputs(net, [known])
    second = ActivationCoverage(layers=["3"], alpha=50.0, bins=20, saturation=9).fit_inputs(net, [known])
    parts = first.score_inputs(net, known) + second.score_inputs(net, known)
    assert torch.allclose(both.score_inputs(net, known), parts / 2)
    assert both.coverage() == pytest.approx((first.coverage() + second.coverage()) / 2)


@pytest.mark.parametrize("surrounding", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_the_model_does_not_notice(model: PrototypeModel, surrounding: Any) -> None:
    inputs = torch.rand(12, 3, 16, 16)
    before = {name: values.clone() for name, values in model.state_dict().items()}
    trained = [each.requires_grad for each in model.parameters()]
    with torch.no_grad():
        logits = model(inputs).logits
    model.scorer = ActivationCoverage(bins=10, saturation=2).fit_inputs(model, [inputs])
    with surrounding():
        found = model.novelty(inputs.clone())
    assert not found.confidence.requires_grad
    assert all(each.grad is None for each in model.parameters())
    assert [each.requires_grad for each in model.parameters()] == trained
    state = model.state_dict()
    assert all(torch.equal(state[name], values) for name, values in before.items())
    with torch.no_grad():
        assert torch.equal(model(inputs).logits, logits)


def test_an_output_is_as_good_as_its_inputs(model: PrototypeModel) -> None:
    inputs = torch.rand(12, 3, 16, 16)
    model.scorer = ActivationCoverage(bins=10, saturation=2).fit_inputs(model, [inputs])
    with torch.no_grad():
        out = model(inputs)
    assert torch.equal(model.novelty(out).confidence, model.novelty(inputs).confidence)
    with pytest.raises(UsageError, match="ask about inputs"):
        model.novelty(out.replace(inputs=None))


def test_it_travels_with_the_model(model: PrototypeModel, tmp_path: Path) -> None:
    inputs = torch.rand(12, 3, 16, 16)
    score = ActivationCoverage(layers=["encoder", "encoder.net.5"], bins=[10, 20], saturation=2, most=7)
    model.scorer = score.fit_inputs(model, [inputs])
    before = model.novelty(inputs).confidence
    model.scorer.calibrate(before, 0.9)
    again = protolearn.load(protolearn.save(model, tmp_path / "model"))
    assert again.scorer is not None and again.scorer.spec() == score.spec()
    assert torch.equal(again.novelty(inputs).confidence, before)


@pytest.mark.parametrize("most", [0, 1, 2, 7, 30, 100, 1000])
def test_building_cases_are_balanced(most: int) -> None:
    labels = torch.tensor([0] * 50 + [1] * 5 + [2] * 20 + [-1] * 25)
    chosen = balanced(labels, most)
    assert len(chosen) == len(set(chosen.tolist())) <= (most or len(labels))
    assert len(chosen) >= min(most or len(labels), len(labels)) - 3
    kinds = labels[chosen].unique(return_counts=True)[1]
    assert most < 4 or most >= len(labels) or int(kinds.max()) - int(kinds.min()) <= max(0, int(kinds.max()) - 5)
    assert torch.equal(balanced(labels, most), chosen)


def test_one_case_and_cases_that_are_no_numbers() -> None:
    net = network()
    score = ActivationCoverage(layers=["3"]).fit_inputs(net, [cases(1)])
    found = score.score_inputs(net, torch.cat([cases(1), torch.full((1, 6), math.nan)]))
    assert found[0] == pytest.approx(1 / 50) and bool(found[1].isnan())
    known = score.calibrate(found[:1]).novelty(found).known
    assert known is not None and known.tolist() == [True, False]


def test_what_cannot_be_counted() -> None:
    net = network()
    with pytest.raises(UsageError, match="no case was seen"):
        ActivationCoverage(layers=["3"]).fit_inputs(net, [])
    with pytest.raises(UsageError, match="was not fitted"):
        ActivationCoverage(layers=["3"]).score_inputs(net, cases(2))
    with pytest.raises(UsageError, match="do not depend on '3'"):
        ActivationCoverage(layers=["3"]).fit_inputs(network(classes=1), [cases(9)])
    with pytest.raises(UsageError, match="no module 'encoder'"):
        ActivationCoverage().fit_inputs(net, [cases(9)])
    view = View(torch.zeros(2, 3), torch.zeros(2, 3))
    with pytest.raises(UsageError, match="fit_inputs"):
        make_scorer("nac").fit(view, torch.zeros(2))
    with pytest.raises(UsageError, match="reads inputs"):
        make_scorer("nac").score(view)
    with pytest.raises(UsageError, match="learns from outputs"):
        make_scorer("energy").fit_inputs(net, [cases(2)])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"bins": 7}, "even number"),
        ({"bins": 10**9}, "even number"),
        ({"alpha": 0.0}, "alpha must be above 0"),
        ({"alpha": [1.0, 2.0]}, "one for each of 1"),
        ({"saturation": math.inf}, "saturation must be above 0"),
        ({"layers": []}, "at least one"),
        ({"layers": "encoder"}, "different names"),
        ({"layers": ["a", "a"]}, "different names"),
        ({"pooling": "maen"}, "did you mean 'mean'"),
        ({"most": -1}, "most must be at least 0"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        make_scorer({"name": "nac", **settings})
