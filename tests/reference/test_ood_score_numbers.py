"""Novelty scores against numbers of OpenOOD's and pytorch-ood's own code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from protolearn.core.clipped_scores import ActivationShaping
from protolearn.core.scorer import Scorer, View, make_scorer

Reference = Callable[[str], dict[str, np.ndarray]]


@pytest.fixture
def numbers(reference: Reference) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.array(values)) for name, values in reference("ood_scores").items()}


def fitted(numbers: dict[str, torch.Tensor], name: str, **settings: Any) -> tuple[Scorer, View]:
    weight, bias = numbers["W"], numbers["b"]
    known = View(numbers["ftr"], numbers["ftr"] @ weight.T + bias, None, weight, bias)
    asked = View(numbers["fte"], numbers["logits_te"], None, weight, bias)
    return make_scorer({"name": name, **settings}).fit(known, numbers["ytr"]), asked


def close(found: torch.Tensor, wanted: torch.Tensor, tolerance: float = 1e-5) -> None:
    assert float((found.double() - wanted.double()).abs().max() / wanted.double().abs().max()) < tolerance


@pytest.mark.parametrize(
    ("name", "settings", "wanted"),
    [
        ("msp", {}, "msp"),
        ("max_logit", {}, "maxlogit"),
        ("energy", {}, "energy_T1"),
        ("energy", {"temperature": "energy_temperature"}, "energy_T"),
        ("mahalanobis", {}, "mds_float64"),
        ("mahalanobis", {}, "mds"),
        ("relative_mahalanobis", {}, "rmds_float64"),
        ("relative_mahalanobis", {}, "rmds"),
        ("knn", {"k": "knn_K"}, "knn"),
        ("vim", {"dim": "vim_D"}, "vim"),
        ("react", {"percentile": "react_p"}, "react"),
        ("ash", {"percentile": "ash_q", "kind": "p"}, "ash_p_energy"),
        ("ash", {"percentile": "ash_q", "kind": "b"}, "ash_b_energy"),
        ("ash", {"percentile": "ash_q", "kind": "s"}, "ash_s_energy"),
    ],
)
def test_scores(numbers: dict[str, torch.Tensor], name: str, settings: dict[str, str], wanted: str) -> None:
    given = {key: numbers[value].item() if "_" in value else value for key, value in settings.items()}
    score, asked = fitted(numbers, name, **given)
    close(score.score(asked), numbers[wanted], 1e-3 if wanted in ("mds", "rmds") else 1e-5)


def test_what_they_are_made_of(numbers: dict[str, torch.Tensor]) -> None:
    vim, _ = fitted(numbers, "vim", dim=int(numbers["vim_D"]))
    close(vim.alpha.reshape(1), numbers["vim_alpha"].reshape(1))
    close(vim.origin, numbers["vim_u"])
    react, _ = fitted(numbers, "react", percentile=float(numbers["react_p"]))
    close(react.limit.reshape(1), numbers["react_t"].reshape(1))
    for kind in ("p", "b", "s"):
        ash, asked = fitted(numbers, "ash", percentile=float(numbers["ash_q"]), kind=kind)
        assert isinstance(ash, ActivationShaping)
        close(ash.alter(asked.features), numbers[f"ash_{kind}"])


def test_one_gaussian_of_standardised_features(numbers: dict[str, torch.Tensor]) -> None:
    known = View(numbers["ssd_ftr"], numbers["ssd_ftr"][:, :1])
    asked = View(numbers["ssd_fte"], numbers["ssd_fte"][:, :1])
    score = make_scorer("ssd").fit(known, torch.zeros(len(known), dtype=torch.long))
    close(score.score(asked), numbers["ssd_score"])
