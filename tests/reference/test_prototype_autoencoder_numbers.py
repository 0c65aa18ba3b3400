"""The prototype autoencoder's formulas against numbers made with the authors' code."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from protolearn.core.heads import LinearEvidence
from protolearn.core.measures import squared_l2
from protolearn.core.similarities import Negative
from protolearn.objectives.classification import cross_entropy
from protolearn.objectives.coverage import data_near_prototypes, prototypes_near_data
from protolearn.objectives.reconstruction import squared_error_sum

Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def numbers(reference: Callable[[str], Arrays]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.asarray(value)) for name, value in reference("prototype_autoencoder").items()}


def test_distances_and_logits(numbers: dict[str, torch.Tensor]) -> None:
    distances = squared_l2.pairwise(numbers["z"], numbers["prototypes"])
    torch.testing.assert_close(distances, numbers["distances"].clamp_min(0), rtol=1e-9, atol=1e-9)
    head = LinearEvidence(-numbers["last_layer"].T)  # distances were weighed there, similarities are here
    logits = head(Negative()(distances))
    torch.testing.assert_close(logits, numbers["logits"], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(logits.softmax(1), numbers["probabilities"], rtol=1e-9, atol=1e-9)


def test_terms(numbers: dict[str, torch.Tensor]) -> None:
    found = [
        cross_entropy(numbers["logits"], numbers["labels"]),
        squared_error_sum(numbers["x_decoded"], numbers["x_true"]),
        prototypes_near_data(numbers["distances"]),
        data_near_prototypes(numbers["distances"]),
    ]
    for value, name in zip(found, ("classification", "reconstruction", "r1", "r2"), strict=True):
        torch.testing.assert_close(value, numbers[name], rtol=1e-9, atol=1e-9)
    total = sum(weight * value for weight, value in zip(numbers["weights"], found, strict=True))
    torch.testing.assert_close(total, numbers["total"], rtol=1e-9, atol=1e-9)
