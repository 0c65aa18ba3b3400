"""Assignment and update rules against numbers from released code (README.md says which)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from protolearn.core.assignment import nearest, sinkhorn, softmax, top_k_weights
from protolearn.core.updates import Prior, em_step, fit_mixture, k_means, moving_average

Reference = Callable[[str], dict[str, np.ndarray]]


def load(reference: Reference, name: str) -> dict[str, Tensor]:
    return {key: torch.from_numpy(value) for key, value in reference(name).items()}


@pytest.mark.parametrize("log_domain", [True, False])
def test_balanced_assignment_and_moving_average(reference: Reference, log_domain: bool) -> None:
    want = load(reference, "palm")
    z = want["z_views"].transpose(0, 1).flatten(0, 1)
    labels = want["y"].repeat(2)
    classes, momentum = int(want["num_classes"]), float(want["m"])
    options = {"epsilon": float(want["eps"]), "iterations": 3, "log_domain": log_domain}
    before = want["protos0"]
    shares = sinkhorn(z @ before.T, **options)
    assert torch.allclose(shares, want["sinkhorn_Q0"], atol=1e-10)
    own = torch.arange(len(before)) % classes == labels.unsqueeze(1)
    weights = top_k_weights(shares * own, int(want["k"]))
    assert torch.allclose(weights, want["topk_weights"], atol=1e-10)
    weights = weights / weights.sum(1, keepdim=True)
    columns = weights.sum(0)
    weights = weights / columns.clamp_min(1e-12)
    assert torch.allclose(weights, want["ema_weights"], atol=1e-10)
    after = moving_average(before, weights.T @ z, momentum, columns > 0, normalise=True)
    assert torch.allclose(after, want["protos1"], atol=1e-10)
    assert torch.allclose(sinkhorn(z @ after.T, **options), want["sinkhorn_Q1"], atol=1e-10)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("junk", [0.0, 1e3, float("nan")])
def test_map_em(reference: Reference, steps: int, junk: float) -> None:
    want = load(reference, "panther")
    mask = want["mask"] > 0
    bags = want["bags"].masked_fill(~mask.unsqueeze(-1), junk)
    means = want["prototypes"]
    prior = Prior(means, torch.full_like(means, float(want["eps"])), float(want["tau"]))
    mixture, posterior = fit_mixture(bags, prior.start(), steps, mask, prior=prior)
    for got, name in (
        (mixture.log_weights.exp(), "pi"),
        (mixture.means, "mu"),
        (mixture.variances, "var"),
        (posterior, "posterior"),
    ):
        assert torch.allclose(got, want[f"{name}_{steps}"], atol=1e-10), name
    alone, _ = fit_mixture(bags[1], prior.start(), steps, mask[1], prior=prior)
    assert torch.allclose(alone.means, mixture.means[1])
    small = Prior(means.float(), prior.variances.float(), prior.strength)
    single, _ = em_step(bags.float(), small.start(), mask, prior=small)
    assert torch.allclose(single.variances.double(), want["var_1"], atol=1e-5)


def test_k_means_with_labelled_tokens(reference: Reference) -> None:
    want = load(reference, "gpc")
    tokens = torch.cat([want["xl"], want["xu"]])
    ranks = torch.unique(want["yl"], return_inverse=True)[1]
    given = torch.cat([ranks, torch.full((len(want["xu"]),), -1)])
    draw = torch.Generator().manual_seed(0)
    first = torch.where(given >= 0, given, nearest(tokens, want["init"])[1])
    assert torch.equal(first, want["step1_labels"])
    for iterations, name in ((1, "step1"), (100, "final")):
        found = k_means(
            tokens, 4, generator=draw, start=want["init"], given=given, iterations=iterations, tolerance=0.0
        )
        assert torch.allclose(found.centres, want[f"{name}_centres"], atol=1e-10)
    assert torch.equal(found.rows, want["final_labels"])
    assert found.inertia <= float(want["final_inertia"]) + 1e-9


def test_reading_from_prototypes(reference: Reference) -> None:
    want = load(reference, "st_ssdl")
    query = want["h_current"] @ want["w_query"]
    assert torch.allclose(query, want["query_current"], atol=1e-12)
    shares = softmax(query @ want["prototypes"].T)
    assert torch.allclose(shares, want["attention_current"], atol=1e-12)
    assert torch.allclose(shares @ want["prototypes"], want["value_current"], atol=1e-12)
