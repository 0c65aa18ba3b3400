"""Metrics of detection and neuron activation coverage against numbers of the authors' own code."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from protolearn.audit.ood import Convention, detect, false_positive_rate
from protolearn.core.activation_coverage import (
    activation_state,
    count_states,
    coverage_confidence,
    coverage_edges,
    filled,
    mean_coverage,
    uniform_gradients,
)
from protolearn.core.taps import pool

Reference = Callable[[str], dict[str, np.ndarray]]


@pytest.mark.parametrize(
    ("figure", "wanted"),
    [
        ("auroc", "auroc"),
        ("aupr_known", "aupr_id_positive"),
        ("aupr_foreign", "aupr_ood_positive"),
        ("fpr", "fpr95_id_positive_roc_exact"),
        ("error_rate", "palm_dterr"),
        ("autc", "autc"),
    ],
)
def test_detection(reference: Reference, figure: str, wanted: str) -> None:
    numbers = reference("ood_metrics")
    found = detect(numbers["id_conf"], numbers["ood_conf"])
    assert getattr(found, figure) == pytest.approx(float(numbers[wanted]), rel=1e-9)


@pytest.mark.parametrize(
    ("positive", "rule", "wanted"),
    [
        ("known", "roc", "fpr95_id_positive_roc_exact"),
        ("known", "roc", "fpr95_id_positive_roc"),
        ("known", "percentile", "fpr95_id_positive_percentile"),
        ("foreign", "roc", "fpr95_ood_positive_exact"),
        ("foreign", "roc", "fpr95_ood_positive_pood"),
    ],
)
def test_every_convention(reference: Reference, positive: str, rule: str, wanted: str) -> None:
    numbers = reference("ood_metrics")
    how = Convention(positive, rule)  # type: ignore[arg-type]
    assert false_positive_rate(numbers["id_conf"], numbers["ood_conf"], how) == pytest.approx(float(numbers[wanted]))


def test_activation_coverage(reference: Reference) -> None:
    numbers = {name: torch.from_numpy(np.array(values)) for name, values in reference("nac").items()}
    alpha, edges = float(numbers["alpha"]), coverage_edges(int(numbers["M"]))
    assert torch.allclose(edges, numbers["edges"], rtol=0, atol=1e-15)
    states = {}
    for part in ("build", "test"):
        outputs = numbers[f"o_{part}"].clone().requires_grad_()
        logits = outputs.mean((2, 3)) @ numbers["W"].T + numbers["b"]
        (gradient,) = uniform_gradients(logits, [outputs])
        assert gradient is not None
        assert torch.allclose(gradient, numbers[f"grad_{part}"], rtol=1e-9, atol=1e-15)
        states[part] = activation_state(pool(outputs.detach(), "sum"), pool(gradient, "sum"), alpha)
        assert torch.allclose(states[part], numbers[f"state_{part}"], rtol=1e-9, atol=1e-15)
    counts = count_states(states["build"], edges)
    full = filled(counts, float(numbers["O"]))
    assert torch.equal(counts, numbers["counts"].long())
    assert torch.allclose(full, numbers["phi"].double(), atol=1e-6)  # the authors' phi is in single precision
    assert mean_coverage(full) == pytest.approx(float(numbers["nac_me"]), rel=1e-5)
    found = coverage_confidence(states["test"], full, edges)
    assert torch.allclose(found, numbers["nac_ue"].double(), rtol=1e-5)
