"""Channel prototypes, scoring sheet and two-view terms against numbers from released code (README.md says which)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from protolearn.core.bank import PrototypeBank
from protolearn.core.measures import dot
from protolearn.core.model import PrototypeModel
from protolearn.core.scoring import ScoringSheet, squash
from protolearn.objectives.classification import cross_entropy
from protolearn.objectives.two_view import presence_tanh, two_view_alignment
from protolearn.structures import Output, Tokens

Reference = Callable[[str], dict[str, np.ndarray]]


class AsTokens(nn.Module):
    def forward(self, inputs: Tensor) -> Tokens:
        return Tokens(inputs)


@pytest.fixture
def want(reference: Reference) -> dict[str, Tensor]:
    return {key: torch.from_numpy(value) for key, value in reference("pipnet").items()}


@pytest.fixture
def out(want: dict[str, Tensor]) -> Output:
    return model(want).train()(want["features"].flatten(2).transpose(1, 2))


def model(want: dict[str, Tensor]) -> PrototypeModel:
    head = ScoringSheet(want["weight"], power=float(want["multiplier"]), clip=0.1)
    classes, channels = want["weight"].shape
    bank = PrototypeBank(torch.eye(channels).double(), torch.zeros(channels, classes), learned=False)
    return PrototypeModel(AsTokens(), nn.Softmax(-1), bank, dot, head)


def test_map_presence_and_scores(want: dict[str, Tensor], out: Output) -> None:
    assert out.tokens is not None
    assert torch.allclose(out.tokens.values, want["prototype_map"].flatten(2).transpose(1, 2), atol=1e-12)
    assert torch.allclose(out.evidence, want["presence"], atol=1e-12)
    assert torch.allclose(out.logits, want["scores"], atol=1e-12)


def test_small_presence_is_dropped_at_inference(want: dict[str, Tensor]) -> None:
    out = model(want).eval()(want["features"].flatten(2).transpose(1, 2))
    head = out.head
    assert isinstance(head, ScoringSheet)
    assert torch.allclose(head.weighed(out.evidence), want["presence_inference"], atol=1e-12)
    assert torch.allclose(out.logits, want["scores_inference"], atol=1e-12)
    assert torch.allclose(head.contributions(out.evidence).sum(2) + head.offset(), out.logits, atol=1e-12)


def test_losses(want: dict[str, Tensor], out: Output) -> None:
    assert out.tokens is not None
    align = two_view_alignment(*out.tokens.values.chunk(2))
    assert align.item() == pytest.approx(float(want["align"]), abs=1e-12)
    assert align.item() == pytest.approx(float(want["align_original"]), abs=1e-12)
    tanh = {eps: torch.stack([presence_tanh(p, eps) for p in out.evidence.chunk(2)]).mean() for eps in (1e-8, 1e-10)}
    assert tanh[1e-8].item() == pytest.approx(float(want["tanh"]), abs=1e-12)
    assert tanh[1e-10].item() == pytest.approx(float(want["tanh_original"]), abs=1e-12)
    classification = cross_entropy(squash(out.logits, float(want["multiplier"])), want["labels"].repeat(2))
    assert classification.item() == pytest.approx(float(want["classification"]), abs=1e-12)
    total = 5 * align + 2 * tanh[1e-10] + 2 * classification
    assert total.item() == pytest.approx(float(want["total_original"]), abs=1e-11)


def test_weights_shrink_after_a_step(want: dict[str, Tensor]) -> None:
    head = ScoringSheet(want["weight"]).eval()
    head.constrain()
    assert torch.equal(head.raw, want["weight"]), "a frozen head is left alone"
    head.train()
    head.constrain()
    assert torch.allclose(head.raw, want["weight_after_clamp"], atol=1e-12)
