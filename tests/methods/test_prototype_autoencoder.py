"""What a faithful prototype autoencoder must show: by hand, as laws, and as directions on a small MNIST subset."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from protolearn.core.method import Initialise, Project, Train
from protolearn.core.model import PrototypeModel
from protolearn.encoders import ConvAutoencoder, FeatureEncoder
from protolearn.errors import UsageError
from protolearn.methods import get_method, make_method

PrototypeAutoencoder = get_method("prototype-autoencoder")
EPOCHS = 24


def encoder() -> ConvAutoencoder:
    """Return the paper's network for half the size; weights by fan-in, so that it learns within a test's time."""
    return ConvAutoencoder(size=14, maps=(32, 32, 10), spread=None)


def toy() -> PrototypeModel:
    """Return the model of a toy: features are codes, two prototypes, two classes."""
    model = PrototypeAutoencoder(prototypes=2, dim=2).build(FeatureEncoder(2), classes=2)
    model.neck = nn.Identity()
    with torch.no_grad():
        model.bank.vectors.copy_(torch.tensor([[0.0, 1.0], [3.0, 0.0]]))
        model.head.weight.copy_(torch.tensor([[0.5, -0.25], [-0.5, 0.25]]))
    return model


def test_the_objective_of_a_toy_worked_by_hand() -> None:
    """Distances 1, 9; 2, 4; 18, 16. Logits are -D w: -0.5 + 2.25 = 1.75 and its opposite, and so on."""
    method, model = PrototypeAutoencoder(prototypes=2, dim=2), toy()
    out = model(torch.tensor([[0.0, 0.0], [1.0, 0.0], [3.0, 4.0]]))
    first = torch.tensor([-0.5 + 2.25, -1.0 + 1.0, -9.0 + 4.0])
    torch.testing.assert_close(out.logits, torch.stack([first, -first], dim=1), rtol=1e-6, atol=1e-6)
    made = torch.tensor([[[0.5, 0.0]], [[1.0, 1.0]], [[3.0, 2.0]]])
    terms = method.objective(out.replace(reconstruction=made), torch.tensor([0, 1, 1]))
    wanted = nn.functional.softplus(torch.tensor([-3.5, 0.0, -10.0])).mean()
    torch.testing.assert_close(terms["classification"], wanted, rtol=1e-6, atol=1e-6)
    assert terms["reconstruction"].item() == pytest.approx((0.25 + 1 + 4) / 3, abs=1e-6)
    assert terms["r1"].item() == pytest.approx((1 + 4) / 2, abs=1e-6)
    assert terms["r2"].item() == pytest.approx((1 + 2 + 16) / 3, abs=1e-6)
    total = 20 * wanted + 5.25 / 3 + 2.5 + 19 / 3
    assert method.loss(terms).item() == pytest.approx(float(total), rel=1e-6)


def test_a_constant_for_all_classes_of_one_prototype_changes_no_probability() -> None:
    model = toy()
    x = torch.randn(5, 2)
    before = model(x).logits
    with torch.no_grad():
        model.head.weight[:, 1] += 3.0
    after = model(x).logits
    assert not torch.allclose(before, after)
    torch.testing.assert_close(before.softmax(1), after.softmax(1), rtol=1e-4, atol=1e-5)
    model.constrain()
    torch.testing.assert_close(model(x).logits, before, rtol=1e-4, atol=1e-4)


def test_nearer_is_larger_and_contributions_add_up() -> None:
    model = toy()
    out = model(torch.randn(20, 2))
    assert out.distances is not None
    torch.testing.assert_close(out.evidence, -out.distances)
    torch.testing.assert_close(model.head.ledger(out).sum(-1), out.logits)
    assert model.head.favoured().tolist() == [0, 1]


def test_start_and_schedule_are_the_papers() -> None:
    model = PrototypeAutoencoder().build(ConvAutoencoder(), classes=10)
    assert model.bank.vectors.shape == (15, 40)
    assert 0 <= float(model.bank.vectors.detach().min()) <= float(model.bank.vectors.detach().max()) < 1
    assert (model.bank.owner() == -1).all()
    weight = model.head.weight.detach()
    assert float((weight.amax(0) - weight.amin(0)).max()) < 1, "W is uniform in [0, 1), up to a constant a prototype"
    torch.testing.assert_close(weight.mean(0), torch.zeros(15), atol=1e-6, rtol=0)
    joint, near = PrototypeAutoencoder().phases()
    assert isinstance(joint, Train)
    assert joint.epochs == 1500
    assert joint.rates == dict.fromkeys(("encoder", "neck", "prototypes", "head", "decoder"), 0.002)
    assert near == Project("nearest_case", rule="any", move=False)
    assert isinstance(PrototypeAutoencoder(start="k_means").phases()[0], Initialise)
    assert PrototypeAutoencoder().weights() == {"classification": 20, "reconstruction": 1, "r1": 1, "r2": 1}
    paper = PrototypeAutoencoder.recipes["paper"]
    assert paper.augment is not None
    assert (paper.augment["elastic"], paper.augment["elastic_sigma"]) == (20, 4)
    assert paper.options["batch_size"] == 250


def test_batches_of_all_kinds_give_finite_terms() -> None:
    method = PrototypeAutoencoder(prototypes=1)
    model = method.build(encoder(), classes=3)
    for labels in (torch.tensor([-1, -1]), torch.tensor([2, 2])):
        terms = method.objective(model(torch.rand(2, 1, 14, 14)), labels)
        assert all(term.isfinite() for term in terms.values())
    broken = method.objective(model(torch.full((2, 1, 14, 14), float("nan"))), torch.tensor([0, 1]))
    assert all(term.isnan() for term in broken.values())


def test_wrong_settings_are_refused() -> None:
    method = PrototypeAutoencoder(prototypes=3, axes=5)
    assert make_method(method.settings()) == method
    for wrong in ({"prototypes": 0}, {"dim": 0}, {"axes": 0}, {"start": "zero"}, {"epochs": -1}, {"rate": 0.0}):
        with pytest.raises(UsageError, match=f"prototype-autoencoder: .*{next(iter(wrong))}"):
            PrototypeAutoencoder(**wrong)
    with pytest.raises(UsageError, match="encoder_rate"):
        PrototypeAutoencoder(encoder_rate=None).build(encoder(), classes=2)


class Seen:
    """Three trainings that differ in one term, on the same 800 pictures."""

    def __init__(self, mnist: Callable[..., Any], short_training: Callable[..., PrototypeModel]) -> None:
        self.data, self._learn = mnist(800, 2000), short_training
        self.model = lru_cache(self._model)

    def _model(self, **changed: float) -> PrototypeModel:
        method = PrototypeAutoencoder(epochs=EPOCHS, **changed)
        return self._learn(method, encoder(), self.data.train, self.data.train_labels)

    def distances(self, **changed: float) -> Tensor:
        found: Tensor | None = self.model(**changed)(self.data.train).distances
        assert found is not None
        return found

    def decoded_error(self, **changed: float) -> float:
        model = self.model(**changed)
        assert model.decoder is not None
        nearest = self.data.train[self.distances(**changed).argmin(0)]
        return float((model.decoder(model.bank.vectors) - nearest).square().flatten(1).sum(1).mean())


@pytest.fixture(scope="module")
def seen(mnist: Callable[..., Any], short_training: Callable[..., PrototypeModel]) -> Seen:
    return Seen(mnist, short_training)


@pytest.mark.slow
def test_r1_brings_prototypes_near_codes(seen: Seen) -> None:
    with_it, without = (float(seen.distances(**kw).amin(0).mean()) for kw in ({}, {"r1_weight": 0.0}))
    assert with_it < 0.6 * without


@pytest.mark.slow
def test_r2_brings_codes_near_prototypes(seen: Seen) -> None:
    with_it, without = (float(seen.distances(**kw).amin(1).mean()) for kw in ({}, {"r2_weight": 0.0}))
    assert with_it < 0.6 * without


@pytest.mark.slow
def test_decoded_prototypes_are_nearer_to_their_nearest_picture_with_r1(seen: Seen) -> None:
    assert seen.decoded_error() < seen.decoded_error(r1_weight=0.0)


@pytest.mark.slow
def test_accuracy_is_within_a_point_of_a_plain_linear_layer_on_the_same_network(seen: Seen) -> None:
    torch.manual_seed(0)
    network, layer = encoder(), nn.Linear(40, 10)
    optimizer = torch.optim.Adam([*network.parameters(), *layer.parameters()], lr=0.002)
    for epoch in range(EPOCHS):
        for cases in torch.randperm(800, generator=torch.Generator().manual_seed(epoch)).split(50):
            logits = layer(network(seen.data.train[cases]).values[:, 0])
            optimizer.zero_grad()
            nn.functional.cross_entropy(logits, seen.data.train_labels[cases]).backward()
            optimizer.step()
    with torch.no_grad():
        plain = layer(network(seen.data.test).values[:, 0]).argmax(1)
    ours = seen.model()(seen.data.test).logits.argmax(1)
    accuracy, reference = (float((found == seen.data.test_labels).float().mean()) for found in (ours, plain))
    assert accuracy > 0.7
    assert accuracy > reference - 0.01


@pytest.mark.slow
def test_most_prototypes_speak_for_the_class_of_their_nearest_codes(seen: Seen) -> None:
    nearest = seen.distances().topk(20, dim=0, largest=False).indices
    majority = seen.data.train_labels[nearest].mode(0).values
    assert float((seen.model().head.favoured() == majority).float().mean()) > 0.5
