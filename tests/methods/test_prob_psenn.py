"""What a faithful Prob-PSENN must show: as laws, and as directions on a small MNIST subset."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from protolearn.core.distributions import FullLaw
from protolearn.core.gaussians import class_moments
from protolearn.core.method import Initialise, Project, Train
from protolearn.core.model import PrototypeModel
from protolearn.core.sampling import calibrate_refusal, decoded_spread, predictive
from protolearn.core.uncertainty import Refusal
from protolearn.data.features import features
from protolearn.encoders import ConvAutoencoder, FeatureEncoder
from protolearn.errors import UsageError
from protolearn.methods import get_method, make_method
from protolearn.structures import Tokens
from protolearn.training.fit import fit
from protolearn.training.folder import load, save

ProbPSENN = get_method("prob-psenn")
LAWS = ("diagonal", "full", "mixture")


def encoder() -> ConvAutoencoder:
    """Return the network for half the size; weights by fan-in, so that it learns within a test's time."""
    return ConvAutoencoder(size=14, maps=(32, 32, 10), spread=None)


def coded(per_class: int = 60, classes: int = 3, width: int = 6) -> tuple[Tensor, Tensor]:
    """Return features of classes that lie apart, each with a covariance of its own."""
    g = torch.Generator().manual_seed(0)
    values = [
        torch.randn(per_class, width, generator=g) @ torch.randn(width, width, generator=g) * 0.3 + 3 * label
        for label in range(classes)
    ]
    return torch.cat(values), torch.arange(classes).repeat_interleave(per_class)


def fitted(**settings: Any) -> tuple[PrototypeModel, Tensor, Tensor]:
    method = ProbPSENN(dim=4, floor=0.0, **settings)
    values, labels = coded()
    model = method.build(FeatureEncoder(6), classes=3).eval()
    method.initialise(model, [(model.encode(values), labels)], seed=0)
    with torch.no_grad():
        codes = model(values).tokens.values[:, 0]
    return model, codes, labels


def test_after_the_fit_the_distributions_are_those_of_the_classes() -> None:
    model, codes, labels = fitted()
    means, covariances, _ = class_moments(codes, labels, 3)
    torch.testing.assert_close(model.bank.vectors.detach(), means, atol=1e-4, rtol=0)
    assert isinstance(model.bank.law, FullLaw)
    torch.testing.assert_close(model.bank.law.covariance().detach(), covariances, atol=1e-4, rtol=1e-4)
    diagonal, _, _ = fitted(law="diagonal")
    variances = covariances.diagonal(dim1=1, dim2=2)
    found = diagonal.bank.law.covariance().detach().diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(found, variances, atol=1e-4, rtol=1e-4)


def test_several_prototypes_of_a_class_part_its_codes() -> None:
    model, codes, labels = fitted(prototypes_per_class=2)
    for label in range(3):
        own = codes[labels == label]
        rows = (model.bank.owner() == label).nonzero().squeeze(1)
        nearest = torch.cdist(own, model.bank.vectors[rows].detach()).argmin(1)
        for part, row in enumerate(rows.tolist()):
            # k-means may stop just before its last point changes sides
            torch.testing.assert_close(
                model.bank.vectors[row].detach(), own[nearest == part].mean(0), atol=0.1, rtol=0.1
            )


def test_a_class_without_cases_keeps_its_prior() -> None:
    method = ProbPSENN(dim=4)
    values, labels = coded(classes=2)
    model = method.build(FeatureEncoder(6), classes=3).eval()
    before = model.bank.vectors[2].detach().clone()
    method.initialise(model, [(model.encode(values), labels)], seed=0)
    assert torch.equal(model.bank.vectors[2], before)
    assert model.bank.vectors.isfinite().all()


@pytest.mark.parametrize("law", LAWS)
def test_without_variance_it_is_the_prototype_autoencoder_with_the_same_prototypes(law: str) -> None:
    model, _, _ = fitted(law=law)
    model.bank.law.scale_by(1e-12)
    points = get_method("prototype-autoencoder")(prototypes=3, dim=4).build(FeatureEncoder(6), classes=3).eval()
    points.neck.load_state_dict(model.neck.state_dict())
    points.head.load_state_dict(model.head.state_dict())
    with torch.no_grad():
        points.bank.vectors.copy_(model.bank.vectors)
        values, _ = coded()
        ours, theirs = model(values), points(values)
    torch.testing.assert_close(ours.logits, theirs.logits, rtol=1e-5, atol=1e-5)
    drawn = predictive(model, ours.tokens, 5, torch.Generator().manual_seed(0)).mean
    torch.testing.assert_close(drawn, theirs.logits.softmax(1), rtol=0, atol=2e-4)


@pytest.mark.parametrize("law", LAWS)
def test_terms_have_gradients_that_are_finite_and_batches_of_all_kinds_are_met(law: str) -> None:
    method = ProbPSENN(law=law, variational=law == "full", samples=3)
    model = method.build(ConvAutoencoder(size=8, maps=(8, 6), spread=None), classes=3).train()
    pictures = torch.rand(4, 1, 8, 8)
    for labels in (torch.tensor([0, 1, 2, -1]), torch.tensor([-1] * 4), torch.tensor([2] * 4)):
        terms = method.objective(model(pictures), labels)
        assert set(terms) == set(method.weights())
        assert all(term.isfinite() for term in terms.values())
        model.zero_grad()
        method.loss(terms).backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    broken = method.objective(model(pictures * float("nan")), torch.tensor([0, 1, 2, 0]))
    assert any(term.isnan() for term in broken.values())


def test_what_is_decoded_varies_with_the_prototype() -> None:
    model, _, _ = fitted()
    assert model.bank.law is not None
    before = decoded_spread(model, 50, torch.Generator().manual_seed(0))
    assert before.shape == (3,)
    assert (before > 0).all()
    model.bank.law.scale_by(1e-12)
    assert float(decoded_spread(model, 50, torch.Generator().manual_seed(0)).max()) < 1e-3 * float(before.min())


def test_the_model_itself_gives_out_the_mode_and_its_ledger_is_exact() -> None:
    model, _, _ = fitted()
    values, _ = coded()
    one, again = model(values), model(values)
    assert torch.equal(one.logits, again.logits)
    torch.testing.assert_close(model.head.ledger(one).sum(-1) + model.head.offset(), one.logits)


def test_start_and_schedule() -> None:
    method = ProbPSENN()
    model = method.build(ConvAutoencoder(), classes=10)
    assert model.bank.vectors.shape == (10, 40)
    assert torch.equal(model.bank.owner(), torch.arange(10))
    weight = model.head.weight.detach()
    off = weight - weight.diagonal()
    assert off[~torch.eye(10, dtype=torch.bool)] == pytest.approx(-0.5, abs=1e-6), "0.5 above the others, W = -weight"
    alone, distributions, joint, near = method.phases()
    assert isinstance(alone, Train)
    assert set(alone.rates) == {"encoder", "neck", "decoder"}
    assert alone.coefficients(method.weights(), 0, 0) == {"nll": 0, "reconstruction": 1, "r1": 0, "int": 0}
    assert isinstance(distributions, Initialise)
    assert isinstance(joint, Train)
    assert joint.rates == dict.fromkeys(("encoder", "neck", "prototypes", "head", "decoder"), 1e-3)
    assert near == Project("nearest_case", rule="own_class", move=False)
    assert method.weights() == {"nll": 1, "reconstruction": 10, "r1": 0, "int": 0.05}
    drawn = ProbPSENN(variational=True)
    assert drawn.weights()["divergence"] == 0.05
    assert drawn.phases()[0].weights == {"reconstruction": 1.0, "divergence": 0.05}  # type: ignore[attr-defined]
    some = ProbPSENN(joint=("prototypes", "head")).phases()[2]
    assert isinstance(some, Train)
    assert set(some.rates) == {"prototypes", "head"}
    assert "encoder" not in ProbPSENN(encoder_rate=None).phases()[0].rates  # type: ignore[attr-defined]


def test_wrong_settings_are_refused() -> None:
    method = ProbPSENN(law="mixture", joint=("head",))
    assert make_method(method.settings()) == method
    for wrong in ({"samples": 0}, {"law": "flat"}, {"axes": 0}, {"joint": ("body",)}, {"epochs": -1}, {"rate": 0.0}):
        with pytest.raises(UsageError, match=f"prob-psenn: .*{next(iter(wrong))}"):
            ProbPSENN(**wrong)
    with pytest.raises(UsageError, match="encoder_rate"):
        ProbPSENN(encoder_rate=None).build(encoder(), classes=2)


@pytest.mark.parametrize("law", LAWS)
def test_a_saved_model_draws_the_same_and_refuses_the_same(law: str, tmp_path: Path) -> None:
    values, labels = coded(20)
    cases = features(values.numpy(), labels.numpy())
    method = ProbPSENN(law=law, dim=4, autoencoder_epochs=2, epochs=3, encoder_rate=None, rate=1e-2)
    model = fit(method, cases, encoder=FeatureEncoder(6), device="cpu", quiet=True).model
    tokens: Tokens = model(values).tokens
    rule = calibrate_refusal(model, tokens, 0.9, generator=torch.Generator().manual_seed(1))
    again = load(save(model, tmp_path / "model"))
    first, second = (predictive(m, tokens, 9, torch.Generator().manual_seed(2)).samples for m in (model, again))
    assert torch.equal(first, second)
    assert Refusal.from_dict(again.metadata["refusal"]) == rule


KNOWN = range(8)


class Seen:
    """Trainings on eight digits; the other two are new to it."""

    def __init__(self, mnist: Callable[..., Any], short_training: Callable[..., PrototypeModel]) -> None:
        self.data, self._learn = mnist(600, 1200, KNOWN), short_training
        self._kept: dict[float, PrototypeModel] = {}

    def model(self, int_weight: float = 0.05) -> PrototypeModel:
        if int_weight not in self._kept:
            method = ProbPSENN(
                autoencoder_epochs=12, epochs=14, rate=2e-3, encoder_rate=2e-3, samples=5, int_weight=int_weight
            )
            self._kept[int_weight] = self._learn(method, encoder(), self.data.train, self.data.train_labels)
        return self._kept[int_weight]

    def epistemic(self, pictures: Tensor, model: PrototypeModel | None = None) -> Tensor:
        model = self.model() if model is None else model
        return predictive(model, model(pictures).tokens, 30, torch.Generator().manual_seed(0)).uncertainty.epistemic

    def own_density(self, int_weight: float) -> float:
        model = self.model(int_weight)
        density = model.bank.law.log_prob(model.bank.vectors, model(self.data.train).tokens.values[:, 0])
        return float(density.gather(1, self.data.train_labels.unsqueeze(1)).mean())


@pytest.fixture(scope="module")
def seen(mnist: Callable[..., Any], short_training: Callable[..., PrototypeModel]) -> Seen:
    return Seen(mnist, short_training)


def auroc(low: Tensor, high: Tensor) -> float:
    """Return how often a value of the second is above one of the first."""
    return float(np.mean(low.numpy()[:, None] < high.numpy()[None]))


@pytest.mark.slow
def test_it_doubts_new_digits_and_noise_more_than_what_it_knows(seen: Seen) -> None:
    known = seen.data.test_labels < len(KNOWN)
    usual = seen.epistemic(seen.data.test[known])
    assert (usual >= 0).all()
    model = seen.model()
    found = predictive(model, model(seen.data.test[known]).tokens, 30, torch.Generator().manual_seed(0)).mean.argmax(1)
    assert float((found == seen.data.test_labels[known]).float().mean()) > 0.75
    assert auroc(usual, seen.epistemic(seen.data.test[~known])) > 0.6
    noise = 0.7 * torch.randn(seen.data.test[known].shape, generator=torch.Generator().manual_seed(1))
    assert auroc(usual, seen.epistemic((seen.data.test[known] + noise).clamp(0, 1))) > 0.6


@pytest.mark.slow
def test_int_raises_the_density_of_codes_under_their_own_class(seen: Seen) -> None:
    assert seen.own_density(0.05) > seen.own_density(0.0)


@pytest.mark.slow
def test_four_times_the_covariances_raise_epistemic_uncertainty(seen: Seen) -> None:
    before = float(seen.epistemic(seen.data.test).mean())
    law = seen.model().bank.law
    assert law is not None
    law.scale_by(4.0)
    try:
        assert float(seen.epistemic(seen.data.test).mean()) > before
    finally:
        law.scale_by(0.25)
