"""PALM against numbers from the authors' code (README.md says which): one training step, and the novelty score."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from protolearn.core.bank import PrototypeBank, unit_norm
from protolearn.core.measures import cosine
from protolearn.core.model import PrototypeModel
from protolearn.core.scorer import View, make_scorer
from protolearn.core.soft_moves import soft_move
from protolearn.core.votes import Votes
from protolearn.encoders import FeatureEncoder
from protolearn.methods import get_method
from protolearn.structures import Output
from protolearn.training.distributed import whole_batch

Reference = Callable[[str], dict[str, np.ndarray]]
PALM = get_method("palm")


@pytest.fixture
def want(reference: Reference) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.array(values)) for name, values in reference("palm").items()}


def close(got: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-9)


def step(want: dict[str, Tensor], **settings: Any) -> tuple[Any, PrototypeModel, Output, Tensor, Tensor]:
    """Return the method and an output whose embedded tokens are the given features, with leaves that take gradients."""
    views, classes = want["z_views"].clone().requires_grad_(), int(want["num_classes"])
    method = PALM(
        prototypes_per_class=int(want["K"]), k=int(want["k"]), momentum=float(want["m"]),
        epsilon=float(want["eps"]), temperature=float(want["temp"]), contrast_weight=float(want["lambda_pcon"]),
        **settings,
    )  # fmt: skip
    before = want["protos0"]
    owner = torch.arange(len(before)) % classes  # the numbers are laid out component by component
    bank = PrototypeBank(before, torch.eye(classes)[owner], learned=False, constraint=unit_norm)
    model = PrototypeModel(FeatureEncoder(before.shape[1]), nn.Identity(), bank, cosine, Votes(bank, scale=10.0))
    out = model(views.transpose(0, 1).flatten(0, 1).unsqueeze(1))
    return method, model, out, want["y"].repeat(2), views


def test_one_step_in_its_parts(want: dict[str, Tensor]) -> None:
    z, labels = want["z_views"].transpose(0, 1).flatten(0, 1), want["y"].repeat(2)
    own = torch.arange(len(want["protos0"])) % int(want["num_classes"]) == labels.unsqueeze(1)
    move = soft_move(
        want["protos0"], z, own, k=int(want["k"]), momentum=float(want["m"]), epsilon=float(want["eps"])
    )  # fmt: skip
    close(move.vectors, want["protos1"])
    close(move.balanced, want["sinkhorn_Q1"])
    assert torch.equal(move.kept, want["topk_weights"] > 0)


def test_terms_total_and_gradients(want: dict[str, Tensor]) -> None:
    for name, found in (("L_mle", "mle"), ("L_pcon", "contrast")):
        method, _, out, labels, views = step(want)
        term = method.objective(out, labels)[found]
        close(term.detach(), want[name])
        term.backward()
        close(views.grad, want[f"grad_z_{name[2:]}"])
    method, model, out, labels, views = step(want)
    total = method.loss(method.objective(out, labels))
    close(total.detach(), want["L_total"])
    total.backward()
    close(views.grad, want["grad_z_total"])
    with torch.no_grad():
        method.after_step(model, *whole_batch(out, labels), 1)
    model.constrain()
    close(model.bank.vectors, want["protos1"])


def test_the_paper_s_likelihood(want: dict[str, Tensor]) -> None:
    method, _, out, labels, _ = step(want, likelihood="paper")
    close(method.objective(out, labels)["mle"].detach(), want["L_mle_paper"])


@pytest.mark.parametrize(("centre", "name"), [("mean", "maha_score_paper"), ("twice", "maha_score")])
def test_the_score(want: dict[str, Tensor], centre: str, name: str) -> None:
    known, asked = (View(want[part], want[part][:, :1]) for part in ("ftr", "fte"))
    score = make_scorer({"name": "ssd", "centre": centre}).fit(known, torch.zeros(len(known), dtype=torch.long))
    torch.testing.assert_close(score.score(asked).double(), want[name], rtol=1e-5, atol=1e-5)
