"""Enlarging maps, folding fine ones onto coarse grids, and laying tokens out on finer ones."""

from __future__ import annotations

import pytest
import torch

from protolearn.core.maps import enlarge, fine_peaks, fold_blocks, peaks, upsample_maps
from protolearn.structures import Tokens


@pytest.mark.parametrize(
    ("cells", "size"), [((7, 7), (224, 224)), ((5, 3), (18, 24)), ((9, 8), (4, 4)), ((1, 1), (3, 2))]
)
@pytest.mark.parametrize("leading", [(), (4,), (2, 3), (0, 2)])
def test_two_products_enlarge_as_torch_does(
    cells: tuple[int, int], size: tuple[int, int], leading: tuple[int, ...]
) -> None:
    maps = torch.randn(*leading, *cells, dtype=torch.float64)
    found = upsample_maps(maps, size)
    assert found.shape == (*leading, *size)
    if maps.numel():
        there = torch.nn.functional.interpolate(maps.reshape(-1, 1, *cells), size=size, mode="bicubic")
        torch.testing.assert_close(found.reshape(-1, 1, *size), there)
    assert torch.equal(upsample_maps(maps, cells), maps), "a map that has its size already is not touched"


def test_maps_that_cannot_be_enlarged() -> None:
    with pytest.raises(ValueError, match="enlarged to"):
        upsample_maps(torch.rand(3), (2, 2))
    with pytest.raises(ValueError, match="enlarged to"):
        upsample_maps(torch.rand(3, 3), (0, 2))


def test_the_first_peak_in_row_major_order() -> None:
    maps = torch.randint(0, 4, (50, 3, 6, 5)).float()  # many ties
    first = maps.flatten(2).argmax(2)
    assert torch.equal(peaks(maps), torch.stack([first // 5, first % 5], 2))
    assert peaks(maps[:0]).shape == (0, 3, 2)


@pytest.mark.parametrize("count", [0, 1, 7, 50])
def test_peaks_of_enlarged_maps_are_the_same_in_chunks(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    maps = torch.randn(count, 5, 4, requires_grad=True)
    want = peaks(upsample_maps(maps, (40, 30)))
    assert torch.equal(fine_peaks(maps, (40, 30)), want)
    assert torch.equal(fine_peaks(maps.double() + 1e3, (40, 30)), want), "the level does not matter"
    monkeypatch.setattr("protolearn.core.maps.CACHE_BYTES", 8 * 3 * 4 * 40 * 30 // 4)  # three maps at a time
    assert torch.equal(fine_peaks(maps, (40, 30)), want)


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
