"""Rotation, purity, prototypes and folded head against numbers from the authors' code (README.md says which)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from protolearn.core.purity import Exemplars, peaks, purity_of
from protolearn.core.rotation import ChannelRotation, FoldedLinear, RotationKind, exponential
from protolearn.encoders.cut import normed_by_mean
from protolearn.structures import Tokens

Reference = Callable[[str], dict[str, np.ndarray]]
KINDS: tuple[RotationKind, ...] = ("orthogonal", "invertible")


@pytest.fixture
def want(reference: Reference) -> dict[str, Tensor]:
    return {key: torch.from_numpy(value) for key, value in reference("epic").items()}


def flat(maps: Tensor) -> Tensor:
    return maps.flatten(2).transpose(1, 2)


def turned(want: dict[str, Tensor], kind: RotationKind) -> ChannelRotation:
    turn = ChannelRotation(len(want["raw"]), kind).double()
    with torch.no_grad():
        turn.raw.copy_(want["raw"])
    return turn


@pytest.mark.parametrize("kind", KINDS)
def test_matrix_sums_and_purity(want: dict[str, Tensor], kind: RotationKind) -> None:
    turn = turned(want, kind)
    torch.testing.assert_close(turn.matrix().detach(), want[f"{kind}_matrix"], rtol=1e-12, atol=1e-14)
    values = turn(flat(want["maps"])).detach()
    torch.testing.assert_close(values.sum(1), want[f"{kind}_sums"], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(peaks(values).purity, want[f"{kind}_purity"], rtol=1e-12, atol=1e-12)
    every = torch.cartesian_prod(torch.arange(len(values)), torch.arange(values.shape[2]))
    torch.testing.assert_close(purity_of(values, every), want[f"{kind}_purity"].flatten(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_folded_head(want: dict[str, Tensor], kind: RotationKind) -> None:
    turn = turned(want, kind)
    head = FoldedLinear(turn, want["weight"], want["bias"])
    torch.testing.assert_close(head.weight.detach(), want[f"{kind}_folded"], rtol=1e-10, atol=1e-12)
    evidence = turn(flat(want["maps"])).mean(1)
    torch.testing.assert_close(head(evidence).detach(), want[f"{kind}_logits"], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 5, 24])
def test_prototypes(want: dict[str, Tensor], kind: RotationKind, size: int) -> None:
    maps = flat(want["maps"])
    found = Exemplars(maps.shape[2], 3, matrix=want[f"{kind}_matrix"], located=False)
    for part in torch.arange(len(maps)).split(size):
        found.update_from(Tokens(maps[part]), part)
    assert torch.equal(found.cases, want[f"{kind}_prototypes"])


@pytest.mark.parametrize("kind", KINDS)
def test_five_steps_of_their_training(want: dict[str, Tensor], kind: RotationKind) -> None:
    """Adam divides by the size of a gradient, so rounding where one is nearly 0 shows more than elsewhere."""
    cases, channels = want[f"{kind}_start"].unbind(1)
    maps, pairs = flat(want["maps"])[cases], torch.stack([torch.arange(len(cases)), channels], 1)
    turn = ChannelRotation(maps.shape[2], kind).double()
    adam = torch.optim.Adam(turn.parameters(), lr=1e-3, weight_decay=1e-5)
    losses = []
    for _ in range(5):
        loss = -purity_of(turn(maps), pairs).mean()
        losses.append(loss.item())
        adam.zero_grad()
        loss.backward()
        adam.step()
    assert losses == pytest.approx(want[f"{kind}_losses"].tolist(), rel=1e-8)
    torch.testing.assert_close(turn.raw.detach(), want[f"{kind}_raw"], rtol=1e-6, atol=1e-9)


def test_channels_to_show(want: dict[str, Tensor]) -> None:
    turn = turned(want, "orthogonal")
    head = FoldedLinear(turn, want["weight"], want["bias"]).requires_grad_(False)
    evidence = turn(flat(want["maps"])).mean(1).detach()
    predicted = head(evidence).argmax(1)
    speaks = head.weight[predicted] * evidence.clamp_min(0)
    ours = speaks.argsort(dim=1, descending=True, stable=True)[:, :4]
    positive = speaks.gather(1, want["shown"]) > 0  # where fewer than four are above 0, theirs fills up with any
    assert torch.equal(ours.where(positive, -1), want["shown"].where(positive, -1))


def test_layer_norm_behind_the_pooling(want: dict[str, Tensor]) -> None:
    layer = nn.LayerNorm(6, eps=1e-6).double().requires_grad_(False)
    layer.weight.copy_(want["gamma"])
    layer.bias.copy_(want["beta"])
    found = normed_by_mean(flat(want["maps"]), layer)
    torch.testing.assert_close(found, flat(want["normed"]), rtol=1e-10, atol=1e-12)


def test_the_exponential_is_torch_s() -> None:
    draw = torch.Generator().manual_seed(0)
    for scale in (0.0, 1e-6, 0.1, 1.0, 4.0):
        matrix = scale * torch.randn(9, 9, generator=draw, dtype=torch.float64)
        torch.testing.assert_close(exponential(matrix), torch.matrix_exp(matrix), rtol=1e-10, atol=1e-12)
