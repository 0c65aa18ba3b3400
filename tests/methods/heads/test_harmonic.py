"""What a faithful harmonic head must show: scale-free probabilities, bounded weights, vectors that become centres."""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from protolearn.core.distances import DISTANCES
from protolearn.core.method import Train
from protolearn.core.similarities import NegativeLog
from protolearn.encoders import FeatureEncoder
from protolearn.errors import UsageError
from protolearn.methods import get_method
from protolearn.training.fit import Fit, fit

from .pixel_digits import accuracy, answer, inputs, pixels

Harmonic = get_method("harmonic")
MAPPED = ("mahalanobis_diagonal", "mahalanobis_cholesky")


def train(epochs: int = 20, count: int = 300, **settings: object) -> Fit:
    method = Harmonic(encoder_rate=None, epochs=epochs, **{"exponent": 8.0, "prototype_rate": 1e-2, **settings})
    return fit(method, pixels("train", count), encoder=FeatureEncoder(64), quiet=True, device="cpu", batch_size=50)


@lru_cache
def euclid() -> Fit:
    return train(epochs=50, distance="l2", exponent=8.0)  # the root of the width, as the original paper advises


def test_probabilities_sum_to_one_and_do_not_depend_on_the_scale() -> None:
    distances = torch.rand(5, 7, dtype=torch.double) + 0.1
    for n in (1.0, 3.5, 20.0):
        similar = NegativeLog(n, eps=0.0)
        shares = similar(distances).softmax(1)
        torch.testing.assert_close(shares.sum(1), torch.ones(5).double())
        torch.testing.assert_close(similar(37.0 * distances).softmax(1), shares)
        by_hand = distances.pow(-n) / distances.pow(-n).sum(1, keepdim=True)
        torch.testing.assert_close(shares, by_hand)


@pytest.mark.parametrize("name", [*sorted(DISTANCES), *MAPPED])
def test_every_distance_trains_and_adds_up(name: str) -> None:
    done = train(epochs=2, count=100, distance=name)
    out = answer(done.model, pixels("test", 40))
    assert bool(torch.isfinite(out.logits).all())
    torch.testing.assert_close(done.model.head.ledger(out).sum(2) + done.model.head.offset(), out.logits)
    losses = [row["cross_entropy"] for row in done.history]
    assert losses[-1] < losses[0] or name == "hamming_hard", "bits that do not flip give no way down in two epochs"


@pytest.mark.parametrize("name", ["squared_l2", "l2", "manhattan", "cosine_distance", "bray_curtis_abs", *MAPPED])
def test_an_input_on_its_class_vector_is_certain(name: str) -> None:
    model = Harmonic(distance=name, encoder_rate=None, exponent=2.0).build(FeatureEncoder(64), classes=10)
    vectors = torch.rand(10, 64)
    with torch.no_grad():
        model.bank.vectors.copy_(model.neck.layers(vectors))
        share = model(vectors).logits.softmax(1).diagonal()
    assert float(share.min()) > 1 - 1e-2


def test_mahalanobis_starts_as_euclid() -> None:
    asked = torch.rand(6, 64)
    with torch.no_grad():
        one, other, plain = (
            Harmonic(distance=name, encoder_rate=None, eps=0.0).build(FeatureEncoder(64), 10)(asked).logits.softmax(1)
            for name in (*MAPPED, "l2")
        )
    torch.testing.assert_close(one, plain, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(other, plain, rtol=1e-4, atol=1e-5)


def growth(weight: Tensor, step: object, epochs: int, every: int) -> list[float]:
    norms = []
    for epoch in range(1, epochs + 1):
        step()  # type: ignore[operator]
        if epoch % every == 0:
            norms.append(float(weight.detach().norm()))
    return norms


def test_weights_stay_bounded_where_those_of_a_linear_layer_grow() -> None:
    """600 full-batch steps on 300 digits: a linear layer still grows at the end, class vectors have settled."""
    cases = pixels("train", 300)
    values, labels = inputs(cases), torch.from_numpy(cases.labels.copy())
    model = Harmonic(encoder_rate=None, distance="l2", exponent=8.0).build(FeatureEncoder(64), 10)
    linear = nn.Linear(64, 10)
    norms = {}
    for name, weight, logits in (
        ("centres", model.bank.vectors, lambda: model(values).logits),
        ("linear", linear.weight, lambda: linear(values)),
    ):
        optimizer = torch.optim.Adam([weight], lr=1e-2)

        def step(optimizer: torch.optim.Optimizer = optimizer, logits: object = logits) -> None:
            optimizer.zero_grad()
            F.cross_entropy(logits(), labels).backward()  # type: ignore[operator]
            optimizer.step()

        norms[name] = growth(weight, step, epochs=600, every=150)
    late = {name: values[-1] / values[-2] for name, values in norms.items()}
    assert late["linear"] > 1.05, norms
    assert late["centres"] < 1.02, norms
    assert norms["centres"][-1] < norms["linear"][-1]


def test_class_vectors_become_centres() -> None:
    model, cases = euclid().model, pixels("train", 300)
    values, labels = inputs(cases), torch.from_numpy(cases.labels.copy())
    means = torch.stack([values[labels == c].mean(0) for c in range(10)])
    nearness = F.cosine_similarity(model.bank.vectors.detach(), means)
    assert float(nearness.min()) > 0.9
    assert accuracy(model, pixels("test")) > 0.85


def test_phases_and_wrong_settings() -> None:
    plan = Harmonic(distance="mahalanobis_diagonal").phases()
    assert isinstance(plan[0], Train)
    assert set(plan[0].rates) == {"encoder", "prototypes", "neck"}
    assert Harmonic().exponent == 1.0
    assert Harmonic(init="means").phases()[0].name == "initialise"
    with pytest.raises(UsageError, match="distance must be one of"):
        Harmonic(distance="euclidian")
    with pytest.raises(UsageError, match="exponent"):
        Harmonic(exponent=0.0)


@pytest.mark.parametrize("distance", ["chebyshev_soft", "chebyshev_smooth"])
def test_one_feature_has_no_deviation_to_divide_by(distance: str) -> None:
    with pytest.raises(UsageError, match=r"harmonic: distance .* needs at least 2 features, got 1"):
        get_method("harmonic")(distance=distance).build(FeatureEncoder(1), 3)
