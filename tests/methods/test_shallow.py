"""What the pages of the shallow methods must show, on flat rows of scikit-learn's digits."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from protolearn.core.method import Initialise, Project, Train, make_method
from protolearn.core.metrics import Omega, Relevances
from protolearn.core.model import PrototypeModel
from protolearn.data.features import features
from protolearn.encoders import FeatureEncoder
from protolearn.errors import UsageError
from protolearn.methods import get_method
from protolearn.training.fit import Fit, fit

SLUGS = ["nearest-class-mean", "rbf-network", "glvq", "grlvq", "gmlvq"]
TRAINED = SLUGS[2:]


@lru_cache
def rows() -> tuple[np.ndarray, np.ndarray]:
    X, y = load_digits(return_X_y=True)
    return ((X - X.mean(0)) / X.std()).astype(np.float32), y


@lru_cache
def trained(slug: str) -> Fit:
    X, y = rows()
    settings: dict[str, Any] = {"epochs": 15} if slug in TRAINED else {}
    method = get_method(slug)(**settings)
    train = features(X[:500], y[:500], classes=[str(c) for c in range(10)])
    return fit(method, train, encoder=FeatureEncoder(64), batch_size=64, seed=0, quiet=True, device="cpu")


def accuracy(model: PrototypeModel) -> float:
    X, y = rows()
    with torch.no_grad():
        logits = model(torch.from_numpy(X[500:1200])).logits
    return float((logits.argmax(1).numpy() == y[500:1200]).mean())


@pytest.mark.parametrize("slug", SLUGS)
def test_it_learns(slug: str) -> None:
    floor = accuracy(trained("nearest-class-mean").model)
    assert floor > 0.8
    assert slug == "nearest-class-mean" or accuracy(trained(slug).model) > floor + 0.02, "the floor is beaten"


@pytest.mark.parametrize("slug", TRAINED)
def test_the_cost_falls_and_only_what_is_named_moves(slug: str) -> None:
    done = trained(slug)
    costs = [row["quantisation"] for row in done.history if row["phase"] == "quantise"]
    assert costs[-1] < 0.7 * costs[0]
    plan = done.model.method.phases()
    assert [type(phase) for phase in plan] == [Initialise, Train, Project]
    assert isinstance(plan[1], Train) and plan[1].cosine
    assert set(plan[1].rates) == ({"prototypes"} if slug == "glvq" else {"prototypes", "neck"})


def test_metrics_keep_their_constraint_through_training() -> None:
    relevances, omega = trained("grlvq").model.metric, trained("gmlvq").model.metric
    assert isinstance(relevances, Relevances) and isinstance(omega, Omega)
    for metric in (relevances, omega):
        assert float(metric.matrix().trace()) == pytest.approx(1.0, abs=1e-4)
    assert bool((relevances.weight > 0).all())
    assert float(relevances.weight.max()) > 2 / 64, "features do not count the same any more"
    edge = relevances.weight[torch.tensor([0, 32, 39])]  # corners that are always white
    assert bool((edge < relevances.weight.max()).all())


@pytest.mark.parametrize("slug", SLUGS)
def test_prototypes_name_the_nearest_case_of_their_class_and_stay_where_they_are(slug: str) -> None:
    model = trained(slug).model
    X, y = (torch.from_numpy(a[:500]) for a in rows())
    vectors, owner = model.bank.vectors.detach(), model.bank.owner()
    for p in range(0, len(model.bank), 7):
        source = model.bank.sources[p]
        assert source is not None and not source.moved and source.label == owner[p]
        row = int(source.case.split("/")[-1])
        away = model.measure.pairwise(X[y == owner[p]], vectors[p : p + 1])
        assert source.distance == pytest.approx(float(away.min()), rel=1e-3, abs=1e-4)
        assert y[row] == owner[p]


def test_means_are_the_means() -> None:
    X, y = rows()
    want = np.stack([X[:500][y[:500] == c].mean(0) for c in range(10)])
    np.testing.assert_allclose(trained("nearest-class-mean").model.bank.vectors.detach().numpy(), want, atol=1e-5)


def test_a_class_without_cases_is_never_predicted_and_a_small_one_has_fewer_prototypes() -> None:
    X, y = rows()
    keep = np.concatenate([np.flatnonzero(y[:300] < 8), np.flatnonzero(y[:300] == 8)[[0, 0, 1, 1]]])
    train = features(X[:300][keep], y[:300][keep], classes=[str(c) for c in range(10)])
    for slug in SLUGS:
        settings: dict[str, Any] = {"epochs": 2} if slug in TRAINED else {}
        method = get_method(slug)(prototypes_per_class=3, **settings)
        model = fit(method, train, encoder=FeatureEncoder(64), seed=0, quiet=True, device="cpu").model
        assert model.bank.usable.view(10, 3).sum(1).tolist() == [3] * 8 + [2, 0]
        with torch.no_grad():
            out = model(torch.from_numpy(X))
        assert bool(torch.isfinite(out.logits).all())
        assert 9 not in out.logits.argmax(1).tolist()


@pytest.mark.parametrize("slug", SLUGS)
def test_settings_round_trip_and_wrong_ones_are_refused(slug: str) -> None:
    method = get_method(slug)(prototypes_per_class=3)
    assert make_method(method.settings()) == method
    wrong: list[dict[str, Any]] = [{"prototypes_per_class": 0}]
    wrong += {
        "nearest-class-mean": [{"scale": 0.0}, {"power": -1.0}],
        "rbf-network": [{"neighbours": 0}, {"width": 0.0}, {"ridge": -1.0}, {"joint_epochs": -1}],
    }.get(slug, [{"transfer": "tanh"}, {"sharpness": 0.0}, {"rate": 0.0}, {"epochs": 0}, {"scale": -1.0}])
    wrong += {"gmlvq": [{"rank": 0}, {"metric_rate": 0.0}], "grlvq": [{"metric_rate": -1.0}]}.get(slug, [])
    for change in wrong:
        with pytest.raises(UsageError, match=f"{slug}: {next(iter(change))}"):
            get_method(slug)(**change)


def test_joint_training_of_an_rbf_network_lowers_its_cross_entropy() -> None:
    X, y = rows()
    train = features(X[:300], y[:300], classes=[str(c) for c in range(10)])
    method = get_method("rbf-network")(prototypes_per_class=2, joint_epochs=5, head_rate=1e-2, prototype_rate=1e-2)
    done = fit(method, train, encoder=FeatureEncoder(64), batch_size=64, seed=0, quiet=True, device="cpu")
    costs = [row["cross_entropy"] for row in done.history if row["phase"] == "joint"]
    assert costs[-1] < costs[0]
