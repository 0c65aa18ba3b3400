from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from protolearn.explain.boxes import area, bounding_box, box_overlap, holding_box, share_inside
from protolearn.structures import Box

VALUES = arrays.arrays(np.float64, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.floats(0, 1e6))


@given(VALUES, st.floats(0.05, 1.0))
def test_a_box_holds_what_it_must_and_no_side_can_be_taken_off(values: np.ndarray, share: float) -> None:
    total = values.sum()
    if total <= 0:
        return
    box = holding_box(values, share)
    x0, y0, x1, y1 = map(int, box)
    assert values[y0:y1, x0:x1].sum() >= share * total * (1 - 1e-9)
    assert share_inside(values, box) == pytest.approx(values[y0:y1, x0:x1].sum() / total)
    smaller = [values[y0:y1, x0 + 1 : x1], values[y0:y1, x0 : x1 - 1]] if x1 - x0 > 1 else []
    smaller += [values[y0 + 1 : y1, x0:x1], values[y0 : y1 - 1, x0:x1]] if y1 - y0 > 1 else []
    assert all(part.sum() < share * total * (1 + 1e-9) for part in smaller)


def test_a_box_keeps_the_spot_and_drops_the_dust() -> None:
    values = np.full((20, 30), 0.001)
    values[5:8, 11:15] = 1.0
    assert holding_box(values, 0.9) == Box(11.0, 5.0, 15.0, 8.0)
    assert holding_box(values, 1.0) == Box(0.0, 0.0, 30.0, 20.0)


def test_boxes_around_nothing_and_everything() -> None:
    assert bounding_box(np.zeros((3, 3), bool)) == Box(0, 0, 0, 0)
    assert bounding_box(np.ones((3, 4), bool)) == Box(0, 0, 4, 3)


def test_overlap() -> None:
    whole = Box(0, 0, 4, 4)
    assert box_overlap(whole, whole) == 1.0
    assert box_overlap(whole, Box(5, 5, 6, 6)) == 0.0
    assert box_overlap(Box(0, 0, 0, 0), Box(0, 0, 0, 0)) == 0.0
    assert box_overlap(whole, Box(0, 0, 4, 2)) == 0.5
    assert area(Box(2, 0, 1, 5)) == 0.0
