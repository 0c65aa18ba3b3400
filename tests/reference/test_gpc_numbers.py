"""Gaussian evidence, split and merge ratios, temperatures and prototype contrast against released code (README.md)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from protolearn.core.gaussian_evidence import Expected, gaussian_evidence, log_split_ratio
from protolearn.objectives.prototype_contrast import density_temperatures, prototype_contrast


@pytest.fixture
def want(reference: Callable[[str], dict[str, np.ndarray]]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.asarray(a)) for name, a in reference("gpc").items()}


def test_evidence_and_ratios(want: dict[str, Tensor]) -> None:
    expected = Expected(want["niw_m"], float(want["kappa"]), float(want["nu"]), float(want["psi_scale"]))
    rows = torch.cat([want["sa"], want["sb"]])
    groups = torch.tensor([0] * len(want["sa"]) + [1] * len(want["sb"]))
    for budget in (None, 1):
        halves = gaussian_evidence(
            rows, groups, 2, expected, means=torch.stack([want["mu_a"], want["mu_b"]]), budget=budget
        )
        whole = gaussian_evidence(rows, groups * 0, 1, expected, means=want["mu_ab"].unsqueeze(0), budget=budget)
        torch.testing.assert_close(halves, torch.stack([want["ml_a"], want["ml_b"]]), rtol=1e-9, atol=0)
        torch.testing.assert_close(whole[0], want["ml_ab"], rtol=1e-9, atol=0)
    own = gaussian_evidence(rows, groups, 2, expected)  # the means it finds are those that were given
    torch.testing.assert_close(own, halves, rtol=1e-9, atol=0)
    ratio = log_split_ratio(whole, torch.bincount(groups).unsqueeze(0), halves.unsqueeze(0), float(want["alpha"]))
    torch.testing.assert_close(ratio[0], want["logH_split"], rtol=1e-9, atol=0)
    torch.testing.assert_close(-ratio[0], want["logH_merge"], rtol=1e-9, atol=0)


def test_temperatures_and_contrast(want: dict[str, Tensor]) -> None:
    values = torch.cat([want["xl"], want["xu"]])
    found = density_temperatures(values, want["final_centres"], want["final_labels"], float(want["tau"]))
    torch.testing.assert_close(found, want["density"], rtol=1e-6, atol=0)
    both, rows = torch.cat([want["q"], want["k"]]), want["assign"].repeat(2)
    loss = prototype_contrast(both, want["centres_unit"], rows, found)
    torch.testing.assert_close(loss, want["L_pcl"], rtol=1e-6, atol=0)
    one = prototype_contrast(want["q"], want["centres_unit"], want["assign"], found)
    by_hand = torch.nn.functional.cross_entropy(want["pcl_logits_q"], want["assign"])
    torch.testing.assert_close(one, by_hand, rtol=1e-6, atol=0)
