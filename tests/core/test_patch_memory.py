"""Patch features, their distances to a memory and the weighed score, against plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from protolearn.core.anomaly_maps import blurred, cosine_gap, enlarged, top_mean
from protolearn.core.patch_memory import nearest_patches, patch_features, worst_patch


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_patch_is_the_mean_of_the_cells_around_it() -> None:
    one = draw(1, 2, 4, 5)
    tokens = patch_features([one], 3)
    assert tokens.grid == (4, 5)
    assert tokens.window == 3
    values = tokens.values.view(4, 5, 2)
    torch.testing.assert_close(values[1, 2], one[0, :, 0:3, 1:4].mean((1, 2)))
    torch.testing.assert_close(values[0, 0], one[0, :, 0:2, 0:2].mean((1, 2)))
    assert torch.equal(patch_features([one], 1).values.view(4, 5, 2)[3, 4], one[0, :, 3, 4])


def test_layers_are_joined_on_the_finest_grid_in_the_width_asked_for() -> None:
    tokens = patch_features([draw(2, 6, 4, 4), draw(2, 10, 2, 2)], 3, width=4)
    assert tokens.values.shape == (2, 16, 8)
    assert tokens.grid == (4, 4)


def test_score_and_nearest_against_loops() -> None:
    values, memory = draw(3, 6, 4), draw(20, 4, seed=1)
    near = nearest_patches(values, memory, budget=200)
    found = worst_patch(values, memory, near, 5)
    for b in range(3):
        table = [[float((x - m).norm()) for m in memory] for x in values[b]]
        gaps = [min(row) for row in table]
        at = int(np.argmax(gaps))
        m = int(np.argmin(table[at]))
        around = sorted(range(20), key=lambda n: float((memory[n] - memory[m]).norm()))[:5]
        weight = 1 - math.exp(gaps[at]) / sum(math.exp(table[at][n]) for n in around)
        assert (int(found.position[b]), int(found.row[b])) == (at, m)
        assert float(found.score[b]) == pytest.approx(weight * gaps[at], rel=1e-5)


def test_large_distances_do_not_overflow_and_padding_is_not_judged() -> None:
    values = torch.tensor([[[5000.0], [1.0]]])
    memory = torch.tensor([[0.0], [1.0], [2.0]])
    near = nearest_patches(values, memory)
    whole = worst_patch(values, memory, near, 3)
    assert bool(whole.score.isfinite().all())
    assert int(whole.position) == 0
    real = worst_patch(values, memory, near, 1, torch.tensor([[False, True]]))
    assert (int(real.position), float(real.score)) == (1, 0.0)


def test_one_remembered_patch_is_enough() -> None:
    memory = torch.zeros(1, 2)
    found = worst_patch(torch.ones(1, 1, 2), memory, nearest_patches(torch.ones(1, 1, 2), memory), 9)
    assert float(found.score) == pytest.approx(math.sqrt(2))


def test_blur_is_the_usual_one_and_darkens_borders_only_on_request() -> None:
    maps = draw(2, 40, 30)
    usual = np.stack([gaussian_filter(one, 2.0, mode="nearest") for one in maps.double().numpy()])
    np.testing.assert_allclose(blurred(maps.double(), 2.0).numpy(), usual, atol=1e-9)
    flat = torch.ones(1, 12, 12)
    torch.testing.assert_close(blurred(flat, 4.0), flat)
    dark = blurred(flat, 4.0, size=5, zeros_outside=True)
    assert float(dark[0, 0, 0]) < 0.5
    assert float(dark[0, 6, 6]) == pytest.approx(1.0)


def test_pooling_and_gaps() -> None:
    maps = torch.arange(200.0).view(1, 10, 20)
    assert float(top_mean(maps, 0.01)) == 198.5
    assert float(top_mean(maps, 0.0001)) == 199.0
    assert float(cosine_gap(torch.zeros(1, 3), torch.ones(1, 3))) == 1.0
    assert enlarged(maps, (5, 5)).shape == (1, 5, 5)
    with pytest.raises(ValueError, match="share"):
        top_mean(maps, 0.0)
    with pytest.raises(ValueError, match="odd"):
        blurred(maps, 1.0, size=4)
    with pytest.raises(ValueError, match="no map"):
        patch_features([])
    with pytest.raises(ValueError, match="odd"):
        patch_features([draw(1, 2, 4, 4)], 2)
