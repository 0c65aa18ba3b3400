"""Prob-PSENN's formulas against numbers made with ``torch.distributions`` and plain loops (no authors' code exists)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from protolearn.core.bank import PrototypeBank
from protolearn.core.distributions import DiagonalLaw, FullLaw
from protolearn.core.gaussians import class_moments, diagonal_log_density, full_log_density, gaussian_samples
from protolearn.core.heads import LinearEvidence
from protolearn.core.measures import squared_l2
from protolearn.core.sampling import sampled_evidence
from protolearn.core.similarities import Negative
from protolearn.core.uncertainty import decompose
from protolearn.objectives.coverage import prototypes_near_data
from protolearn.objectives.density import own_density, sampled_cross_entropy
from protolearn.structures import Tokens

Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def numbers(reference: Callable[[str], Arrays]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.asarray(value)) for name, value in reference("prob_psenn").items()}


def near(found: Tensor, wanted: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


def test_densities(numbers: dict[str, Tensor]) -> None:
    near(full_log_density(numbers["z"], numbers["mu"], numbers["scale_tril"]), numbers["log_density"])
    deviations = numbers["scale_tril"].diagonal(dim1=1, dim2=2)
    wanted = full_log_density(numbers["z"], numbers["mu"], torch.diag_embed(deviations))
    near(diagonal_log_density(numbers["z"], numbers["mu"], deviations), wanted)


def test_a_law_keeps_the_factors_it_is_given(numbers: dict[str, Tensor]) -> None:
    law = FullLaw(FullLaw.raw_of(numbers["scale_tril"]))
    near(law.log_prob(numbers["mu"], numbers["z"]).detach(), numbers["log_density"])
    near(law.factors().detach(), numbers["scale_tril"])


def sampled(numbers: dict[str, Tensor]) -> Tensor:
    """Return logits (B, S, C) by the library's own way from tokens to logits."""
    samples = gaussian_samples(numbers["mu"], numbers["scale_tril"], numbers["noise"].transpose(0, 1))
    near(samples.transpose(0, 1), numbers["samples"])
    bank = PrototypeBank(numbers["mu"], torch.eye(3))
    evidence = sampled_evidence(bank, Tokens(numbers["z"].unsqueeze(1)), samples, squared_l2, Negative())
    near(-evidence.transpose(1, 2), numbers["distances"])
    return LinearEvidence(-numbers["last_layer"].T)(evidence)


def test_sampled_predictions_and_terms(numbers: dict[str, Tensor]) -> None:
    logits = sampled(numbers)
    near(logits, numbers["logits"])
    near(logits.softmax(-1), numbers["probabilities"])
    near(sampled_cross_entropy(logits, numbers["labels"]), numbers["nll"])
    own = torch.nn.functional.one_hot(numbers["labels"], 3).bool()
    near(own_density(numbers["log_density"], own), numbers["int_term"])
    near(prototypes_near_data(-numbers["log_density"]), numbers["r1"])


def test_entropies(numbers: dict[str, Tensor]) -> None:
    near(numbers["probabilities"].mean(1), numbers["predictive"])
    found = decompose(numbers["probabilities"])
    near(found.total, numbers["total_entropy"])
    near(found.aleatoric, numbers["aleatoric"])
    near(found.epistemic, numbers["epistemic"])


def test_the_mode_is_the_point_model(numbers: dict[str, Tensor]) -> None:
    logits = LinearEvidence(-numbers["last_layer"].T)(-squared_l2.pairwise(numbers["z"], numbers["mu"]))
    near(logits, numbers["logits_mode"])


def test_refit_takes_the_population_moments_of_each_class(numbers: dict[str, Tensor]) -> None:
    found = class_moments(numbers["codes"], numbers["code_labels"], 3)
    present = ~numbers["refit_mean"].isnan().any(1)
    assert (found.counts > 0).tolist() == present.tolist()
    near(found.means[present], numbers["refit_mean"][present])
    near(found.covariances[present], numbers["refit_cov"][present])
    draw = torch.Generator().manual_seed(0)
    full = FullLaw(torch.zeros(3, 3, 3, dtype=torch.float64))
    diagonal = DiagonalLaw(torch.zeros(3, 3, dtype=torch.float64))
    for label in present.nonzero().squeeze(1).tolist():
        own = numbers["codes"][numbers["code_labels"] == label]
        near(full.fit(label, own, draw), numbers["refit_mean"][label])
        diagonal.fit(label, own, draw)
    wanted = numbers["refit_cov"][present]
    near(full.covariance().detach()[present], wanted, 1e-8)
    near(diagonal.covariance().detach()[present], torch.diag_embed(wanted.diagonal(dim1=1, dim2=2)), 1e-8)
