"""PALM: what its gradients reach, what its prototypes do, its special cases, and what it does on digits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional as F

from protolearn.core.encoder import Encoder
from protolearn.core.model import PrototypeModel
from protolearn.core.scorer import View, make_scorer, view_of
from protolearn.data import Augment
from protolearn.encoders import FeatureEncoder, make_encoder
from protolearn.errors import UsageError
from protolearn.explain import explain
from protolearn.methods import get_method
from protolearn.structures import Output, Tokens
from protolearn.training.fit import fit

from .heads.pixel_digits import accuracy, answer, grey, pixels

PALM = get_method("palm")
Learn = Callable[..., PrototypeModel]
SHORT: dict[str, Any] = {"two_views": False, "dim": 32, "epochs": 20, "warmup": 2}


class Perceptron(Encoder):
    """Two layers on pixels."""

    dim = 64

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU())

    def forward(self, inputs: Tensor) -> Tokens:
        return Tokens(self.net(inputs).unsqueeze(1))

    def spec(self) -> dict[str, Any]:
        return {}


def digits(part: str, known: range = range(10)) -> tuple[Tensor, Tensor]:
    values, labels = grey(part)
    chosen = np.isin(labels, list(known))
    return torch.from_numpy(values[chosen]), torch.from_numpy(labels[chosen].astype(np.int64))


def batch(classes: int = 4, rows: int = 24, **settings: Any) -> tuple[Any, PrototypeModel, Output, Tensor, Tensor]:
    """Return an untrained model on random features, its output, labels, and the unit features as a leaf."""
    draw = torch.Generator().manual_seed(0)
    method = PALM(**{"dim": 8, "two_views": False, **settings})
    model = method.build(FeatureEncoder(8), classes, seed=1)
    leaf = F.normalize(torch.randn(rows, 8, generator=draw), dim=1).requires_grad_()
    out = model.score(Tokens(leaf.unsqueeze(1)))
    return method, model, out, torch.arange(rows) % classes, leaf


def inter_class(model: PrototypeModel) -> float:
    """Return the mean cosine of prototypes of different classes."""
    vectors, owner = model.bank.vectors, model.bank.owner()
    return float((vectors @ vectors.T)[owner.unsqueeze(1) != owner].mean())


def test_no_gradient_moves_a_prototype_and_the_contrast_reaches_cases_through_the_step_alone() -> None:
    method, model, out, labels, leaf = batch()
    assert not model.bank.vectors.requires_grad
    assert model.groups()["prototypes"] == []
    terms = method.objective(out, labels)
    assert torch.autograd.grad(terms["mle"], leaf, retain_graph=True)[0].abs().sum() > 0
    through = torch.autograd.grad(terms["contrast"], leaf)[0].norm()
    # the step is (1 - m) of the sum: ten times the share, ten times the gradient
    method, _, out, labels, leaf = batch(momentum=0.99)
    more = torch.autograd.grad(method.objective(out, labels)["contrast"], leaf)[0].norm()
    assert float(more / through) == pytest.approx(10, rel=0.1)
    assert float(through) > 0
    method, _, out, labels, leaf = batch(momentum=1.0)
    assert not torch.autograd.grad(method.objective(out, labels)["contrast"], leaf)[0].any()


def test_without_the_graph_the_contrast_is_only_reported() -> None:
    kept, cut = batch(momentum=0.9), batch(momentum=0.9, keep_graph=False)
    terms = [method.objective(out, labels) for method, _, out, labels, _ in (kept, cut)]
    for name in ("mle", "contrast"):
        torch.testing.assert_close(terms[0][name], terms[1][name])
    assert not terms[1]["contrast"].requires_grad
    for method, model, out, labels, _ in (kept, cut):
        method.after_step(model, out, labels, 1)
    assert torch.equal(kept[1].bank.vectors, cut[1].bank.vectors)


def test_the_rule_moves_prototypes_as_the_objective_had_them_and_leaves_absent_classes() -> None:
    method, model, out, labels, _ = batch(momentum=0.9)
    before = model.bank.vectors.clone()
    labels = labels % 2  # two of the four classes, and one case without a label
    labels[0] = -1
    method.objective(out, labels)
    assert torch.equal(model.bank.vectors, before), "an objective looks and does not touch"
    with torch.no_grad():
        method.after_step(model, out, labels, 1)
    model.constrain()
    present = model.bank.owner() < 2
    assert torch.equal(model.bank.vectors[~present], before[~present])
    assert not torch.equal(model.bank.vectors[present], before[present])
    lengths = torch.linalg.vector_norm(model.bank.vectors, dim=1)
    torch.testing.assert_close(lengths, torch.ones_like(lengths), rtol=0, atol=1e-6)


def test_one_prototype_a_class_is_training_with_a_moving_class_mean() -> None:
    method, model, out, labels, leaf = batch(prototypes_per_class=1, k=1, momentum=0.8)
    terms = method.objective(out, labels)
    means = torch.stack([leaf.detach()[labels == c].mean(0) for c in range(4)])
    moved = F.normalize(0.8 * model.bank.vectors + 0.2 * means, dim=1)
    torch.testing.assert_close(terms["mle"], F.cross_entropy(leaf @ moved.T / 0.1, labels))
    scores = moved @ moved.T / 0.5
    apart = torch.stack([scores[c][torch.arange(4) != c].logsumexp(0) - scores[c, c] for c in range(4)]).mean()
    torch.testing.assert_close(terms["contrast"].detach(), apart)
    method.after_step(model, out, labels, 1)
    torch.testing.assert_close(model.bank.vectors, moved)


def test_several_prototypes_lie_nearer_their_cases_than_one() -> None:
    values, labels = digits("train")
    gaps = {}
    for count, k in ((1, 1), (6, 5), (6, 1)):
        method = PALM(prototypes_per_class=count, k=k, momentum=0.9, dim=64, start="k_means")
        model = method.build(FeatureEncoder(64), 10, seed=0)
        out = model.score(Tokens(F.normalize(values - values.mean(0), dim=1).unsqueeze(1)))
        for _ in range(60):  # features that stay where they are
            method.after_step(model, out, labels, 1)
        move, held, _, _ = method.moved(out, labels)
        gaps[count, k] = float(1 - (move.shares() * (held @ move.vectors.T)).sum(1).mean())
    assert gaps[6, 1] < gaps[6, 5] < gaps[1, 1]


@pytest.mark.parametrize("seed", [0, 1])
def test_the_contrast_holds_classes_apart(short_training: Learn, seed: int) -> None:
    """At a momentum of 0.99; at 0.999 its gradient is a thousandth, and in so short a training nothing shows."""
    values, labels = digits("train")
    found = {}
    for weight in (0.0, 1.0):
        settings = {**SHORT, "epochs": 8, "momentum": 0.99, "encoder_rate": 0.05, "neck_rate": 0.05}
        method = PALM(**settings, contrast_weight=weight)
        found[weight] = inter_class(short_training(method, Perceptron(seed), values, labels, seed=seed))
    assert found[1.0] < found[0.0] - 0.01


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_distances_tell_unknown_digits_better_than_the_confidence_of_a_classifier(
    short_training: Learn, seed: int
) -> None:
    """Known 0 to 4, unknown 5 to 9, by Mahalanobis distance. On the classifier's own features that does no worse."""
    (values, labels), (known, _), (foreign, _) = (
        digits("train", range(5)), digits("test", range(5)), digits("test", range(5, 10))
    )  # fmt: skip
    method = PALM(**{**SHORT, "epochs": 40}, encoder_rate=0.1, neck_rate=0.1)
    model = short_training(method, Perceptron(seed), values, labels, seed=seed)
    with torch.no_grad():
        score = make_scorer("mahalanobis").fit(view_of(model(values)), labels)
        ours = auroc(*(score.score(view_of(model(part))) for part in (known, foreign)))
    encoder = Perceptron(seed)
    layer = nn.Linear(64, 5)
    optimiser = torch.optim.SGD([*encoder.parameters(), *layer.parameters()], 0.1, momentum=0.9, nesterov=True)
    draw = torch.Generator().manual_seed(seed)
    for _ in range(40):
        for part in torch.randperm(len(values), generator=draw).split(50):
            loss = F.cross_entropy(layer(encoder.net(values[part])), labels[part])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    plain = make_scorer("msp")
    with torch.no_grad():
        views = [View(found := encoder.net(part), layer(found)) for part in (known, foreign)]
        assert ours > auroc(*map(plain.score, views)) + 0.005


def auroc(known: Tensor, foreign: Tensor) -> float:
    truth = torch.cat([torch.ones(len(known)), torch.zeros(len(foreign))])
    return float(roc_auc_score(truth.numpy(), torch.cat([known, foreign]).numpy()))


@pytest.mark.parametrize("likelihood", ["code", "paper"])
@pytest.mark.parametrize("contrast", ["code", "paper"])
@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("rows", [1, 24])
def test_every_variant_is_finite_down_to_a_single_case(
    likelihood: str, contrast: str, labelled: bool, rows: int
) -> None:
    for count in (1, 3):
        method, model, out, labels, leaf = batch(
            rows=rows, likelihood=likelihood, contrast=contrast, labelled=labelled, prototypes_per_class=count, k=2
        )
        for given in (labels, torch.zeros_like(labels), torch.full_like(labels, -1)):
            terms = method.objective(out, given)
            (gradient,) = torch.autograd.grad(method.loss(terms), leaf, retain_graph=True)
            assert torch.isfinite(gradient).all() and all(torch.isfinite(term) for term in terms.values())
            method.after_step(model, out, given, 1)
            assert torch.isfinite(model.bank.vectors).all()
            model.score(Tokens(leaf.detach().unsqueeze(1)))


def test_pushing_from_other_classes_only_leaves_the_own_out_of_the_sum() -> None:
    (method, _, out, labels, _), paper = batch(), PALM(dim=8, two_views=False, contrast="paper")
    vectors = method.moved(out, labels)[0].vectors.detach()
    owner, scores = out.bank.owner(), vectors @ vectors.T / 0.5
    each = []
    for p in range(len(owner)):
        same = (owner == owner[p]) & (torch.arange(len(owner)) != p)
        each.append(scores[p][owner != owner[p]].logsumexp(0) - scores[p][same].mean())
    torch.testing.assert_close(paper.objective(out, labels)["contrast"].detach(), torch.stack(each).mean())


def test_without_labels_every_case_may_go_anywhere_and_no_class_is_predicted() -> None:
    train = pixels("train", 300)
    method = PALM(**SHORT, labelled=False, encoder_rate=None, momentum=0.9, neck_rate=0.05)
    done = fit(method, train, encoder=FeatureEncoder(64), batch_size=50, device="cpu", quiet=True)
    model = done.model
    assert (model.bank.owner() == -1).all()
    assert done.history[-1]["mle"] < done.history[0]["mle"]
    out = answer(model, train)
    for found, given in zip(
        method.objective(out, torch.zeros(300, dtype=torch.long)).values(),
        method.objective(out, torch.arange(300) % 10).values(), strict=True,
    ):  # fmt: skip
        assert torch.equal(found, given), "labels are not looked at"
    assert all(source is not None for source in model.bank.sources)
    (why,) = explain(model, train.subset(range(1)))
    assert why.abstains
    assert why.total == pytest.approx(0.0)


def test_the_explanation_adds_up_to_the_posterior_of_the_mixture() -> None:
    train, test = pixels("train", 400), pixels("test", 100)
    method = PALM(**SHORT, encoder_rate=None, momentum=0.9, neck_rate=0.1, prototypes_per_class=3, start="k_means")
    model = fit(method, train, encoder=FeatureEncoder(64), batch_size=50, device="cpu", quiet=True).model
    assert accuracy(model, test) > 0.85
    (why,) = explain(model, test.subset(range(1)))
    exponents = {row.prototype: np.exp(row.similarity / 0.1) for row in why.rows}
    own = [row for row in why.rows if row.owner == why.target]
    wanted = sum(exponents[row.prototype] for row in own) / sum(exponents.values())
    assert why.score_name == "probability"
    assert why.logit == pytest.approx(wanted, rel=1e-4)
    assert why.total == pytest.approx(why.logit, rel=1e-5)
    assert all(source is not None and not source.moved for source in model.bank.sources)


def test_two_views_are_one_batch_of_twice_the_rows() -> None:
    method, _, out, labels, _ = batch(rows=24)
    (phase, _) = PALM().phases()
    assert phase.pairs is True
    assert (phase.nesterov, phase.warmup, phase.per, phase.floor) == (True, 10, "step", 1e-3)
    halves = method.objective(out.replace(paired=True), labels)
    whole = method.objective(out, labels)
    assert {name: float(term.detach()) for name, term in halves.items()} == {
        name: float(term.detach()) for name, term in whole.items()
    }


def test_a_banned_prototype_takes_no_part() -> None:
    method, model, out, labels, _ = batch(momentum=0.5)
    model.bank.ban([0])
    before = model.bank.vectors.clone()
    terms = method.objective(out, labels)
    assert all(torch.isfinite(term) for term in terms.values())
    method.after_step(model, out, labels, 1)
    assert torch.equal(model.bank.vectors[0], before[0])
    assert not torch.equal(model.bank.vectors[1:], before[1:])


@pytest.mark.parametrize(
    "wrong", [{"k": -1}, {"momentum": 1.5}, {"epsilon": 0.0}, {"likelihood": "mle"}, {"prototypes_per_class": 0}]
)
def test_impossible_settings(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        PALM(**wrong)


def test_recipes_are_settings_that_exist() -> None:
    paper, frozen = (PALM.recipes[name] for name in ("paper", "frozen"))
    assert paper.augment is not None
    assert Augment(**paper.augment).recolour == 0.8
    assert make_encoder(paper.encoder).dim == 512
    (start, learn, _) = PALM(**frozen.method).phases()
    assert start.name == "initialise"
    assert (set(learn.rates), learn.pairs) == ({"neck"}, False)
