"""Averaging neighbours, and the place of what was averaged."""

from __future__ import annotations

import pytest
import torch

from protolearn.core.smoothing import smooth
from protolearn.structures import Box, Tokens


def test_each_token_is_the_mean_of_the_cells_around_it() -> None:
    values = torch.randn(2, 12, 3)
    found = smooth(Tokens(values, grid=(3, 4)), 3)
    maps = values.view(2, 3, 4, 3)
    for row in range(3):
        for column in range(4):
            around = maps[:, max(0, row - 1) : row + 2, max(0, column - 1) : column + 2].flatten(1, 2)
            torch.testing.assert_close(found.values[:, row * 4 + column], around.mean(1))


def test_the_place_of_a_smoothed_token_is_its_window() -> None:
    tokens = Tokens(torch.randn(1, 9, 2), grid=(3, 3), input_size=(30, 60))
    assert tokens.region(4) == Box(20, 10, 40, 20)
    assert smooth(tokens, 3).region(4) == Box(0, 0, 60, 30)
    assert smooth(tokens, 3).region(0) == Box(0, 0, 40, 20), "cut at the border"
    assert smooth(tokens, 3).window == 3
    assert smooth(tokens, 1) is tokens


def test_what_has_no_neighbours_is_refused() -> None:
    with pytest.raises(ValueError, match="grid"):
        smooth(Tokens(torch.zeros(1, 4, 2)), 3)
    with pytest.raises(ValueError, match="odd"):
        smooth(Tokens(torch.zeros(1, 4, 2), grid=(2, 2)), 2)
    with pytest.raises(ValueError, match="odd"):
        Tokens(torch.zeros(1, 4, 2), window=2)
