"""Terms of part discovery against plain loops, and the laws that their paper states."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from protolearn.core.affine import inverse, random_affine, warp
from protolearn.objectives.part_discovery import (
    assignment_entropy,
    background_presence,
    concentration,
    equivariance,
    part_orthogonality,
    part_presence,
    radius,
    total_variation,
)

sides = st.integers(1, 7)
seeds = st.integers(0, 10**6)


def maps_of(batch: int, parts: int, height: int, width: int, seed: int) -> Tensor:
    """Return shares that sum to 1 at every place."""
    draw = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(batch, parts, height, width, generator=draw, dtype=torch.float64)).softmax(1)


def windows(one: list[list[float]]) -> list[list[float]]:
    """Return means over the 3 x 3 windows inside a map, over all of an axis that is shorter."""
    high, wide = min(3, len(one)), min(3, len(one[0]))
    return [
        [
            sum(one[y + i][x + j] for i in range(high) for j in range(wide)) / (high * wide)
            for x in range(len(one[0]) - wide + 1)
        ]
        for y in range(len(one) - high + 1)
    ]


@given(st.integers(1, 3), st.integers(1, 4), sides, sides, seeds)
def test_presence(batch: int, parts: int, height: int, width: int, seed: int) -> None:
    maps = maps_of(batch, parts, height, width, seed)
    best = [max(max(max(row) for row in windows(maps[b, k].tolist())) for b in range(batch)) for k in range(parts)]
    assert part_presence(maps).item() == pytest.approx(1 - sum(best) / parts, abs=1e-9)


@given(st.integers(1, 3), sides, sides, seeds)
def test_background(batch: int, height: int, width: int, seed: int) -> None:
    background = maps_of(batch, 2, height, width, seed)[:, 1]
    total = 0.0
    for b in range(batch):
        smooth = windows(background[b].tolist())
        rows, columns = len(smooth), len(smooth[0])

        def side(place: int, count: int) -> float:
            return 0.0 if count == 1 else 2 * place / (count - 1) - 1

        far = (rows > 1) + (columns > 1)
        best = max(
            smooth[y][x] * ((side(y, rows) ** 2 + side(x, columns) ** 2) / far if far else 1.0)
            for y in range(rows)
            for x in range(columns)
        )
        total -= math.log(best) if best > 0 else math.log(torch.finfo(torch.float64).tiny)
    assert background_presence(background).item() == pytest.approx(total / batch, rel=1e-6)


def test_background_weight_is_0_in_the_centre_and_1_in_the_corners() -> None:
    weight = radius(5, 7)
    assert weight[2, 3] < 1e-12
    assert weight[0, 0] == weight[-1, -1] == weight[0, -1] == 1
    centre, border = torch.zeros(1, 5, 5), torch.zeros(1, 5, 5)
    centre[:, 1:4, 1:4] = 1.0
    border[:, :3, :3] = 1.0
    assert background_presence(border) < background_presence(centre)


@given(st.integers(1, 3), st.integers(1, 4), sides, sides, seeds)
def test_total_variation_and_entropy_and_concentration(
    batch: int, parts: int, height: int, width: int, seed: int
) -> None:
    maps = maps_of(batch, parts, height, width, seed)
    values = maps.tolist()
    variation = entropy = spread = 0.0
    for b in range(batch):
        for k in range(parts):
            one = values[b][k]
            cells = [(y, x) for y in range(height) for x in range(width)]
            mass = sum(one[y][x] for y, x in cells)
            cy = sum(one[y][x] * y for y, x in cells) / mass
            cx = sum(one[y][x] * x for y, x in cells) / mass
            for y, x in cells:
                variation += abs(one[y + 1][x] - one[y][x]) if y + 1 < height else 0
                variation += abs(one[y][x + 1] - one[y][x]) if x + 1 < width else 0
                entropy -= one[y][x] * math.log(one[y][x])
                spread += one[y][x] * (((cy - y) / height) ** 2 + ((cx - x) / width) ** 2)
    places = batch * height * width
    assert total_variation(maps).item() == pytest.approx(variation / places, abs=1e-9)
    assert assignment_entropy(maps).item() == pytest.approx(entropy / places, abs=1e-9)
    assert concentration(maps).item() == pytest.approx(spread / (places * parts), abs=1e-9)


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 5), seeds)
def test_orthogonality(batch: int, parts: int, dim: int, seed: int) -> None:
    features = torch.randn(batch, parts, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    total = 0.0
    for b in range(batch):
        rows = [[v / math.sqrt(sum(x * x for x in row)) for v in row] for row in features[b].tolist()]
        for i in range(parts):
            for j in range(parts):
                cosine = sum(p * q for p, q in zip(rows[i], rows[j], strict=True))
                total += (cosine - (i == j)) ** 2
    assert part_orthogonality(features).item() == pytest.approx(total / (batch * parts * parts), abs=1e-9)


def test_total_variation_of_a_constant_map_is_0_and_a_boundary_costs_its_length() -> None:
    assert total_variation(torch.full((2, 3, 5, 4), 0.3)) == 0
    half, island = torch.zeros(1, 1, 6, 6), torch.zeros(1, 1, 6, 6)
    half[..., :3] = 1.0
    island[..., 2:4, 2:4] = 1.0
    assert total_variation(half).item() == pytest.approx(6 / 36)
    assert total_variation(island).item() == pytest.approx(8 / 36)


@given(st.integers(1, 3), st.integers(1, 4), sides, sides, seeds)
def test_equivariance_is_0_for_the_identity(batch: int, parts: int, height: int, width: int, seed: int) -> None:
    maps = maps_of(batch, parts, height, width, seed)
    same = torch.eye(2, 3, dtype=torch.float64).expand(batch, 2, 3)
    assert equivariance(maps, warp(maps, same)).item() == pytest.approx(0.0, abs=1e-6)


def test_equivariance_of_maps_that_move_with_the_picture_is_small_and_of_others_is_not() -> None:
    draw = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.linspace(-1, 1, 16), torch.linspace(-1, 1, 16), indexing="ij")
    blobs = [torch.exp(-((x - a) ** 2 + (y - b) ** 2) * 12) for a, b in ((-0.3, 0.0), (0.3, 0.2))]
    maps = torch.stack(blobs).unsqueeze(0)
    for _ in range(5):
        theta = random_affine((16, 16), generator=draw, degrees=60, translate=0.05, scale=(0.9, 1.1)).unsqueeze(0)
        assert equivariance(maps, warp(warp(maps, theta), inverse(theta))) < 0.02
        assert equivariance(maps, warp(maps.flip(1), inverse(theta))) > 0.2


def test_gradients_are_finite_where_shares_have_underflowed() -> None:
    logits = torch.tensor([0.0, -200.0, 50.0]).view(1, 3, 1, 1).expand(2, 3, 4, 4).clone().requires_grad_()
    maps = logits.softmax(1)
    total = (
        part_presence(maps[:, :2])
        + background_presence(maps[:, 2])
        + total_variation(maps)
        + assignment_entropy(maps)
        + concentration(maps)
        + equivariance(maps, maps.flip(3))
    )
    total.backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_nan_surfaces() -> None:
    maps = torch.full((1, 2, 4, 4), float("nan"))
    for term in (part_presence, total_variation, assignment_entropy, concentration):
        assert term(maps).isnan()
