"""What an input shows of its picture, there and back."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from protolearn.data import Annotation, Preprocess
from protolearn.errors import UsageError
from protolearn.structures import Box

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
sides = st.integers(1, 500)
unit = st.floats(-0.2, 1.2)


@st.composite
def preprocesses(draw: st.DrawFn) -> Preprocess:
    size = (draw(st.integers(1, 300)), draw(st.integers(1, 300)))
    return Preprocess(
        size=size, resize=draw(st.sampled_from(["squash", "crop"])), crop_fraction=draw(st.floats(0.1, 1.0))
    )


@st.composite
def boxes(draw: st.DrawFn) -> Box:
    """A box in shares of width and height, perhaps beyond the picture."""
    (x0, x1), (y0, y1) = (sorted((draw(unit), draw(unit))) for _ in range(2))
    return Box(x0, y0, x1, y1)


def scaled(box: Box, width: float, height: float) -> Box:
    return Box(box.x0 * width, box.y0 * height, box.x1 * width, box.y1 * height)


def cut(box: Box, window: Box) -> Box:
    x0, x1 = (min(max(x, window.x0), window.x1) for x in (box.x0, box.x1))
    y0, y1 = (min(max(y, window.y0), window.y1) for y in (box.y0, box.y1))
    return Box(x0, y0, x1, y1)


@given(preprocesses(), boxes(), sides, sides)
def test_there_and_back_is_the_part_that_is_shown(preprocess: Preprocess, share: Box, width: int, height: int) -> None:
    box = scaled(share, width, height)
    back = preprocess.to_picture(preprocess.to_input(box, (width, height)), (width, height))
    assert back == pytest.approx(cut(box, preprocess.window((width, height))), abs=1e-6 * max(width, height))


@given(preprocesses(), boxes(), sides, sides)
def test_back_and_there_is_the_part_inside(preprocess: Preprocess, share: Box, width: int, height: int) -> None:
    h, w = preprocess.size
    box = scaled(share, w, h)
    again = preprocess.to_input(preprocess.to_picture(box, (width, height)), (width, height))
    assert again == pytest.approx(cut(box, Box(0, 0, w, h)), abs=1e-6 * max(w, h))


@given(preprocesses(), sides, sides)
def test_the_window_lies_inside_and_fills_the_input(preprocess: Preprocess, width: int, height: int) -> None:
    window = preprocess.window((width, height))
    assert 0 <= window.x0 < window.x1 <= width + 1e-9
    assert 0 <= window.y0 < window.y1 <= height + 1e-9
    h, w = preprocess.size
    assert preprocess.to_picture(Box(0, 0, w, h), (width, height)) == pytest.approx(window)
    if preprocess.resize == "crop":
        across, down = w / (window.x1 - window.x0), h / (window.y1 - window.y0)
        assert across == pytest.approx(down)  # the shape of things is kept
        left, right = window.x0, width - window.x1
        assert left == pytest.approx(right, abs=1e-6)


@given(preprocesses(), st.integers(1, 60), st.integers(1, 60))
def test_any_picture_gives_the_size_asked_for(preprocess: Preprocess, width: int, height: int) -> None:
    values = preprocess(Image.new("RGB", (width, height), (255, 255, 255)))
    assert values.shape == (3, *preprocess.size)
    assert values.dtype == torch.float32


@pytest.mark.parametrize("resize", ["squash", "crop"])
@pytest.mark.parametrize("size", [(40, 90), (90, 40), (30, 30)])
def test_the_map_is_where_the_pixels_went(resize: str, size: tuple[int, int]) -> None:
    """A white rectangle lands where ``to_input`` says, seen by its centre and its area."""
    pixels = np.zeros((120, 160, 3), dtype=np.uint8)
    pixels[50:80, 70:110] = 255
    preprocess = Preprocess(size=size, resize=resize, interpolation="bilinear", **PLAIN)
    seen = preprocess(Image.fromarray(pixels))[0].numpy()
    box = preprocess.to_input(Box(70, 50, 110, 80), (160, 120))
    rows, columns = np.mgrid[: size[0], : size[1]] + 0.5
    centre = ((seen * columns).sum() / seen.sum(), (seen * rows).sum() / seen.sum())
    assert centre == pytest.approx(((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2), abs=0.05)
    assert seen.sum() == pytest.approx((box.x1 - box.x0) * (box.y1 - box.y0), rel=0.03)


def test_normalisation_and_back() -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8))
    preprocess = Preprocess(size=(6, 5), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), interpolation="nearest")
    values = preprocess(picture)
    wanted = (np.asarray(picture)[2, 3] / 255 - np.array([0.5, 0.4, 0.3])) / np.array([0.2, 0.3, 0.4])
    assert values[:, 2, 3].tolist() == pytest.approx(wanted.tolist(), abs=1e-5)
    assert np.array_equal(np.asarray(preprocess.unnormalise(values)), np.asarray(picture))


def test_annotations_follow() -> None:
    marks = Annotation(
        boxes=np.array([[0, 0, 10, 10], [40, 0, 60, 20]]),
        box_labels=("corner", "middle"),
        points=np.array([[5, 5, 1], [50, 10, 1], [55, 5, 0]]),
        point_names=("a", "b", "c"),
        mask=np.repeat(np.arange(4, dtype=np.uint8), 25)[None].repeat(20, 0),
    )
    picture = Image.new("RGB", (100, 20))
    squashed = Preprocess(size=(10, 10)).with_annotation(picture, marks)[1]
    assert squashed.boxes.tolist() == [[0, 0, 1, 5], [4, 0, 6, 10]]
    assert squashed.points.tolist() == [[0.5, 2.5, 1], [5, 5, 1], [5.5, 2.5, 0]]
    assert squashed.mask is not None
    assert squashed.mask[0].tolist() == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]  # the values at 5, 15, 25 ...
    middle = Preprocess(size=(10, 10), resize="crop").with_annotation(picture, marks)[1]
    assert middle.boxes.tolist() == [[0, 0, 10, 10]]  # the other is outside: gone, with its name
    assert middle.box_labels == ("middle",)
    assert middle.points[:, 2].tolist() == [0, 1, 0]
    assert middle.point_names == ("a", "b", "c")


def test_settings_survive_json() -> None:
    preprocess = Preprocess(size=(32, 48), resize="crop", interpolation="bilinear", crop_fraction=0.875)
    assert Preprocess.from_dict(json.loads(json.dumps(preprocess.to_dict()))) == preprocess
    with pytest.raises(UsageError, match="Preprocess has no setting 'sise'; did you mean 'size'"):
        Preprocess.from_dict({"sise": [3, 3]})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": (0, 5)}, "size must be two whole numbers above 0"),
        ({"size": (5,)}, "size must be two whole numbers"),
        ({"std": (1, 0, 1)}, "std above 0"),
        ({"mean": (1, 0)}, "three numbers each"),
        ({"resize": "sqash"}, "unknown resize 'sqash'; did you mean 'squash'"),
        ({"interpolation": "cubic"}, "unknown interpolation 'cubic'; did you mean 'bicubic'"),
        ({"crop_fraction": 0}, r"crop_fraction must lie in \(0, 1\]"),
    ],
)
def test_settings_are_checked(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Preprocess(**settings)
