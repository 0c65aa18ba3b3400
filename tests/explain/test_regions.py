from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from protolearn.data import Preprocess
from protolearn.explain.regions import Cells, percentile_boxes, to_original, upsample
from protolearn.structures import Box, Tokens


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 40), st.integers(1, 40))
def test_upsampling_is_torchs_bicubic(h: int, w: int, height: int, width: int) -> None:
    maps = torch.randn(2, 3, h * w, generator=torch.Generator().manual_seed(h * 100 + w))
    expected = F.interpolate(maps.view(2, 3, h, w), size=(height, width), mode="bicubic", align_corners=False)
    torch.testing.assert_close(upsample(maps, (h, w), (height, width)), expected, atol=1e-5, rtol=1e-5)


def test_a_position_that_cannot_match_leaves_no_nan() -> None:
    maps = torch.tensor([[[1.0, 2.0, float("-inf"), 3.0], [float("-inf")] * 4]])
    grown = upsample(maps, (2, 2), (8, 8))
    assert torch.isfinite(grown).all()
    assert grown[0, 0, 7, 0] < grown[0, 0, 7, 7]  # the impossible corner is the lowest, not the hottest


@given(st.integers(2, 30), st.integers(2, 30), st.sampled_from([50.0, 90.0, 95.0, 100.0]))
def test_percentile_box_is_the_papers_rule(height: int, width: int, percentile: float) -> None:
    maps = torch.randn(4, height, width, generator=torch.Generator().manual_seed(height * 31 + width))
    for found, one in zip(percentile_boxes(maps, percentile).tolist(), maps.numpy(), strict=True):
        hot = one >= np.float32(np.percentile(one, percentile))
        rows, columns = np.flatnonzero(hot.any(1)), np.flatnonzero(hot.any(0))
        assert found == [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


def test_percentile_box_of_a_flat_map_is_everything() -> None:
    assert percentile_boxes(torch.ones(3, 5)).tolist() == [0, 0, 5, 3]


def test_boxes_go_back_to_the_original_picture() -> None:
    squash = Preprocess(size=(32, 64))
    assert to_original(Box(0, 0, 32, 16), squash, (128, 32)) == Box(0, 0, 64, 16)
    crop = Preprocess(size=(32, 32), resize="crop")
    assert to_original(Box(0, 0, 32, 32), crop, (100, 50)) == Box(25, 0, 75, 50)
    assert to_original(Box(1, 2, 3, 4), None, (9, 9)) == Box(1, 2, 3, 4)


def test_cells_tile_the_picture() -> None:
    cells = Cells(Tokens(torch.zeros(1, 6, 2), grid=(2, 3), input_size=(32, 48)), Preprocess(size=(32, 48)))
    boxes = [cells.box(p, (300, 100)) for p in range(6)]
    assert sum((b.x1 - b.x0) * (b.y1 - b.y0) for b in boxes if b is not None) == pytest.approx(300 * 100)
    assert cells.box(5, (300, 100)) == Box(200, 50, 300, 100)
    assert Cells(Tokens(torch.zeros(1, 6, 2))).box(2, (9, 9)) is None


def test_wrong_shapes_say_what_was_expected() -> None:
    with pytest.raises(ValueError, match="positions"):
        upsample(torch.rand(1, 2, 5), (2, 2), (8, 8))
    with pytest.raises(ValueError, match="0 to 100"):
        percentile_boxes(torch.rand(2, 2), 101)
