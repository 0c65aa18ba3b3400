from __future__ import annotations

import numpy as np
import pytest
import torch

from protolearn.audit.continuity import (
    Move,
    cropped,
    peak_pixels,
    region_overlap,
    shifted,
)
from protolearn.errors import UsageError


def test_peaks_are_those_of_the_enlarged_map() -> None:
    maps, counted = torch.randn(5, 3, 7, 7), torch.rand(5, 3) < 0.7
    maps[1, 2] = 5.0
    counted[1, 2] = True
    found = peak_pixels(maps, counted, 56)
    fine = torch.nn.functional.interpolate(maps, size=(56, 56), mode="bicubic")
    for b in range(5):
        for p in range(3):
            if not counted[b, p] or (b, p) == (1, 2):
                assert found[b, p].isnan().all(), "not counted, or flat"
                continue
            y, x = divmod(int(fine[b, p].argmax()), 56)
            assert found[b, p].tolist() == [x, y]
    with pytest.raises(ValueError, match="must be"):
        peak_pixels(maps, counted[:2])
    with pytest.raises(UsageError, match="size"):
        peak_pixels(maps, counted, 0)


def test_overlap_of_regions_against_masks() -> None:
    g = torch.Generator().manual_seed(0)
    peaks = torch.randint(0, 40, (2, 200, 2), generator=g).float()
    found = region_overlap(peaks[0], peaks[1], half_side=6, size=40)
    grid = np.arange(40)

    def mask(peak: torch.Tensor) -> np.ndarray:
        x, y = peak.tolist()
        inside = [(grid >= centre - 6) & (grid < centre + 6) for centre in (y, x)]
        return inside[0][:, None] & inside[1]

    for i in range(200):
        one, two = mask(peaks[0, i]), mask(peaks[1, i])
        assert float(found[i]) == pytest.approx((one & two).sum() / (one | two).sum(), abs=1e-6)
    assert region_overlap(peaks[0], torch.full((200, 2), float("nan"))).isnan().all()
    with pytest.raises(UsageError, match="half_side"):
        region_overlap(peaks[0], peaks[1], half_side=0)


@pytest.mark.parametrize(("right", "down"), [(0, 0), (3, 1), (-2, 5), (-7, -7)])
def test_a_shift_and_its_way_back(right: int, down: int) -> None:
    pictures = torch.rand(2, 3, 10, 20)
    moved, move = shifted(pictures, right, down)
    assert moved.shape == pictures.shape
    for y, x in ((2, 8), (5, 10)):
        if 0 <= y + down < 10 and 0 <= x + right < 20:
            assert torch.equal(moved[..., y + down, x + right], pictures[..., y, x])
        share = torch.tensor([(x + 0.5) / 20, (y + 0.5) / 10]) * 200 - 0.5  # in a square of 200 pixels
        there = share + torch.tensor([right / 20, down / 10]) * 200
        assert torch.allclose(move.back(there, 200), share, atol=1e-4)
        assert bool(move.shows(share, 200)) == (0 <= y + down < 10 and 0 <= x + right < 20)
    if right == down == 0:
        assert torch.equal(moved, pictures)


def test_a_crop_and_its_way_back() -> None:
    picture = torch.zeros(1, 1, 40, 40)
    picture[0, 0, 12, 25] = 1.0
    inner, move = cropped(picture, 0.5)
    at = int(inner.flatten().argmax())
    back = move.back(torch.tensor([at % 40, at // 40]).float(), 40)
    assert (back - torch.tensor([25.0, 12.0])).abs().max() <= 0.5
    assert not bool(move.shows(torch.tensor([5.0, 20.0]), 40))
    assert bool(move.shows(torch.tensor([25.0, 12.0]), 40))
    whole, still = cropped(picture, 1.0)
    assert torch.equal(whole, picture)
    assert still == Move()
    with pytest.raises(UsageError, match="share of a crop"):
        cropped(picture, 0.0)
