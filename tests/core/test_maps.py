"""Folding fine maps onto coarse grids, laying tokens out on finer ones, and maps over pixels."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from protolearn.core.maps import enlarge, fold_blocks, upsample_maps
from protolearn.structures import Tokens


def test_folding_keeps_every_value_in_its_block() -> None:
    maps = torch.randn(2, 3, 8, 12)
    folded = fold_blocks(maps, (4, 3))
    assert folded.shape == (2, 12, 3 * 2 * 4)
    for d, i, j, u, v in ((0, 0, 0, 0, 0), (2, 1, 3, 3, 2), (1, 0, 2, 2, 1)):
        assert torch.equal(folded[:, u * 3 + v, (d * 2 + i) * 4 + j], maps[:, d, u * 2 + i, v * 4 + j])


def test_a_map_that_is_no_multiple_is_resized_first() -> None:
    assert fold_blocks(torch.randn(1, 2, 15, 15), (7, 7)).shape == (1, 49, 2 * 4)
    assert fold_blocks(torch.randn(1, 2, 3, 3), (7, 7)).shape == (1, 49, 2)
    with pytest.raises(ValueError, match="maps"):
        fold_blocks(torch.randn(1, 4, 2), (2, 2))


def test_enlarging_commutes_with_a_linear_layer() -> None:
    tokens, layer = Tokens(torch.randn(2, 12, 5), grid=(3, 4), input_size=(30, 40)), torch.nn.Linear(5, 3)
    after = enlarge(tokens.replace(values=layer(tokens.values)), 2)
    before = enlarge(tokens, 2)
    torch.testing.assert_close(after.values, layer(before.values))
    assert after.grid == (6, 8)
    assert after.window == 3
    box, old = after.region(0), tokens.region(0)
    assert box is not None
    assert old is not None
    assert box.x1 >= old.x1, "a token still shows the cell it came from"


def test_tokens_without_places_stay_as_they_are() -> None:
    loose = Tokens(torch.randn(2, 5, 3))
    assert enlarge(loose, 2) is loose
    masked = Tokens(torch.randn(2, 4, 3), mask=torch.ones(2, 4, dtype=torch.bool), grid=(2, 2))
    assert enlarge(masked, 2) is masked
    with pytest.raises(ValueError, match="whole number"):
        enlarge(loose, 0)


@pytest.mark.parametrize(
    ("grid", "size"), [((7, 7), (224, 224)), ((3, 5), (8, 21)), ((1, 4), (6, 2)), ((9, 9), (4, 4))]
)
def test_maps_are_upsampled_as_torch_does(grid: tuple[int, int], size: tuple[int, int]) -> None:
    maps = torch.randn(2, 3, *grid, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    want = functional.interpolate(maps, size=size, mode="bicubic")
    torch.testing.assert_close(upsample_maps(maps, size), want, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(upsample_maps(maps[0, 0], size), want[0, 0], atol=1e-5, rtol=1e-5)
