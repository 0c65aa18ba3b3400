"""Arrays and the digits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from protolearn.data import arrays, digits, view_seed
from protolearn.errors import DataError


def test_shapes_and_types_show_the_same_picture() -> None:
    values = np.random.default_rng(0).integers(0, 256, (5, 6, 7, 3), dtype=np.uint8)
    wanted = values[2].tolist()
    for pictures in (
        values,
        values.transpose(0, 3, 1, 2),
        torch.from_numpy(values).permute(0, 3, 1, 2),
        values / 255.0,
        (values / 255.0).astype(np.float32),
        values.astype(np.uint16) * 257,
    ):
        assert np.asarray(arrays(pictures).picture(2)).tolist() == wanted


def test_grey_and_bool() -> None:
    ink = np.array([[[True, False]]])
    for pictures in (ink, ink[..., None], ink.astype(np.uint8) * 255, ink.astype(float)):
        assert np.asarray(arrays(pictures).picture(0)).tolist() == [[[255] * 3, [0] * 3]]


def test_ambiguous_channels() -> None:
    values = np.zeros((1, 3, 5, 3), dtype=np.uint8)
    assert arrays(values).picture(0).size == (5, 3)
    assert arrays(torch.from_numpy(values)).picture(0).size == (3, 5)


def test_labels() -> None:
    pictures = np.zeros((4, 2, 2), dtype=np.uint8)
    assert arrays(pictures).labels.tolist() == [-1] * 4
    text = arrays(pictures, ["b", "a", None, "b"])
    assert (text.classes, text.labels.tolist()) == (("a", "b"), [1, 0, -1, 1])
    gaps = arrays(pictures, torch.tensor([7, 3, -1, 7]))
    assert (gaps.classes, gaps.labels.tolist()) == (("3", "7"), [1, 0, -1, 1])
    named = arrays(pictures, [2, 0, 0, 0], classes=["x", "y", "z"])
    assert (named.classes, named.labels.tolist()) == (("x", "y", "z"), [2, 0, 0, 0])
    with pytest.raises(DataError, match="label 'c' is not a known class; "):
        arrays(pictures, ["a", "b", "c", "a"], classes=["a", "b"])


def test_ids() -> None:
    pictures = np.zeros((2, 2, 2), dtype=np.uint8)
    assert arrays(pictures, name="cells").ids == ("cells/000000", "cells/000001")
    assert arrays(pictures, ids=["x", "y"]).ids == ("x", "y")


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        (np.zeros((2, 4)), r"pictures have shape \(2, 4\)"),
        (np.zeros((2, 4, 4, 2)), r"expected \(N, H, W\)"),
        (np.zeros((2, 0, 4)), "pictures have shape"),
        (np.full((2, 4, 4), 200.0), "real values from 200 to 200; expected 0 to 1"),
        (np.full((2, 4, 4), -0.5), "expected 0 to 1"),
        (np.full((2, 4, 4), np.nan), "expected 0 to 1 without NaN"),
        (np.array([np.zeros((2, 2)), None], dtype=object), "different sizes or are no numbers"),
    ],
)
def test_wrong_pictures(pictures: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        arrays(pictures, [0, 1])


def test_integers_of_unknown_scale_are_named() -> None:
    with pytest.raises(DataError, match="arrays/1 holds int64 values, which have no agreed scale"):
        arrays(np.zeros((2, 4, 4), dtype=np.int64), [0, 1]).picture(1)


def test_digits() -> None:
    cases = digits()
    assert (len(cases), len(cases.classes), cases.picture(0).size) == (1797, 10, (8, 8))
    assert cases.ids[17] == "digits/000017"
    train, test = digits("train"), digits("test")
    assert set(train.ids).isdisjoint(test.ids)
    assert len(train) + len(test) == 1797
    shares = [test.counts()[name] / cases.counts()[name] for name in cases.classes]
    assert max(abs(share - 0.2) for share in shares) < 0.01
    assert np.asarray(cases.picture(0)).max() == 239  # 15 of 16 levels


def test_the_digits_test_part_never_moves() -> None:
    """The number was read off once; a change here changes what every stored score on the digits means."""
    assert view_seed(0, 0, "\n".join(digits("test").ids)) == 3792520653060774018
