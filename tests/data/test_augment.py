"""Chance views repeat from a generator, and what is marked goes where its pixels go."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from protolearn.data import Annotation, Augment, Augmented, Preprocess
from protolearn.data.augment import drawing_from
from protolearn.errors import UsageError

PLAIN = Preprocess(size=(96, 128), mean=(0, 0, 0), std=(1, 1, 1), interpolation="bilinear")
KINDS = {
    "flip": Augment(flip=1.0, rotation=0, shear=0, skew=0),
    "rotation": Augment(flip=0, rotation=25, shear=0, skew=0),
    "shear": Augment(flip=0, rotation=0, shear=20, skew=0),
    "skew": Augment(flip=0, rotation=0, shear=0, skew=0.4),
    "crop": Augment(flip=0, rotation=0, shear=0, skew=0, crop=(0.5, 0.8)),
    "elastic": Augment(flip=0, rotation=0, shear=0, skew=0, elastic=80, elastic_sigma=12),
    "one": Augment(),
    "all": Augment(one_of=False, crop=(0.7, 1.0)),
}


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blob() -> tuple[Image.Image, Annotation]:
    """A white square on black, with its box, its centre and its mask."""
    pixels = np.zeros((120, 160, 3), dtype=np.uint8)
    pixels[52:64, 76:92] = 255
    marks = Annotation(
        boxes=np.array([[76, 52, 92, 64]]),
        box_labels=("square",),
        points=np.array([[84, 58, 1]]),
        point_names=("centre",),
        mask=(pixels[..., 0] > 0).astype(np.uint8),
    )
    return Image.fromarray(pixels), marks


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(6))
def test_marks_go_where_their_pixels_go(kind: str, seed: int) -> None:
    values, marks = Augmented(PLAIN, KINDS[kind]).with_annotation(*blob(), generator(seed))
    seen = values[0].numpy()
    assert seen.sum() > 20
    rows, columns = np.mgrid[: seen.shape[0], : seen.shape[1]] + 0.5
    centre = np.array([(seen * columns).sum(), (seen * rows).sum()]) / seen.sum()
    assert marks.points[0, :2] == pytest.approx(centre, abs=0.35)
    lit_rows, lit_columns = np.nonzero(seen > 0.5)
    hull = [lit_columns.min(), lit_rows.min(), lit_columns.max() + 1, lit_rows.max() + 1]
    assert marks.boxes[0] == pytest.approx(hull, abs=1.3)
    assert marks.mask is not None
    assert ((seen > 0.5) != (marks.mask > 0)).mean() < 0.004


def test_a_flip_is_exact_to_the_pixel() -> None:
    picture, marks = blob()
    flipped, moved = KINDS["flip"].apply(picture, marks, generator(0))
    assert np.array_equal(np.asarray(flipped), np.asarray(picture)[:, ::-1])
    assert moved.boxes.tolist() == [[160 - 92, 52, 160 - 76, 64]]
    assert moved.points.tolist() == [[160 - 84, 58, 1]]
    assert moved.mask is not None
    assert marks.mask is not None
    assert np.array_equal(moved.mask, marks.mask[:, ::-1])


@pytest.mark.parametrize("kind", KINDS)
def test_equal_generators_give_equal_views(kind: str) -> None:
    draw = np.random.default_rng(0)
    picture = Image.fromarray(draw.integers(0, 256, (40, 50, 3), dtype=np.uint8))
    view = Augmented(PLAIN, KINDS[kind])
    torch.manual_seed(1)
    one = view(picture, generator(3))
    torch.manual_seed(2)
    assert torch.equal(one, view(picture, generator(3)))
    if kind != "flip":
        assert not torch.equal(one, view(picture, generator(4)))


def test_with_and_without_marks_the_same_view_is_drawn() -> None:
    picture, marks = blob()
    view = Augmented(PLAIN, KINDS["all"])
    assert torch.equal(view(picture, generator(0)), view.with_annotation(picture, marks, generator(0))[0])


def test_without_a_generator_nothing_is_drawn() -> None:
    picture, marks = blob()
    view = Augmented(PLAIN, KINDS["all"])
    assert torch.equal(view(picture), PLAIN(picture))
    assert view.with_annotation(picture, marks)[1] == PLAIN.with_annotation(picture, marks)[1]
    assert KINDS["all"](picture) is picture


def test_one_of_draws_each_kind() -> None:
    """Told apart by four points: a rotation keeps lengths, a shear keeps parallels, a skew keeps neither."""
    corners = np.array([[20, 20, 1], [60, 20, 1], [60, 60, 1], [20, 60, 1]])
    kinds = set()
    for seed in range(20):
        found = Augment(flip=0).apply(Image.new("RGB", (80, 80)), Annotation(points=corners), generator(seed))[1].points
        sides = np.diff(found[[0, 1, 2, 3, 0], :2], axis=0)
        rigid = np.allclose(np.linalg.norm(sides, axis=1), 40, atol=0.01)
        kinds.add("rotation" if rigid else "shear" if np.allclose(sides[0], -sides[2], atol=0.01) else "skew")
    assert kinds == {"rotation", "shear", "skew"}


def test_marks_that_leave_are_gone_or_invisible() -> None:
    picture = Image.new("RGB", (100, 100))
    marks = Annotation(
        boxes=np.array([[0, 0, 2, 2], [0, 0, 100, 100]]), box_labels=("corner", "all"), points=np.array([[1, 1, 1]])
    )
    view, moved = Augment(flip=0, rotation=0, shear=0, skew=0, crop=(0.2, 0.2)).apply(picture, marks, generator(1))
    assert view.size == (100, 100)
    assert (moved.box_labels, moved.boxes.tolist()) == (("all",), [[0, 0, 100, 100]])
    assert moved.points[0, 2] == 0


def test_points_that_leave_are_not_held_at_the_edge() -> None:
    """Corners leave a turned picture on every side; clamped, they would seem to lie on its left and upper edge."""
    corners = Annotation(
        points=np.array([[0.01, 0.01, 1], [79.99, 0.01, 1], [79.99, 79.99, 1], [0.01, 79.99, 1], [40, 40, 1]])
    )
    for seed in range(8):
        turned = Augment(flip=0, rotation=30, shear=0, skew=0).apply(
            Image.new("RGB", (80, 80)), corners, generator(seed)
        )[1]
        assert turned.points[:, 2].tolist() == [0, 0, 0, 0, 1]


def test_uncovered_corners_take_the_colour_of_the_border() -> None:
    picture = Image.new("RGB", (40, 40), (10, 200, 30))
    turned = np.asarray(Augment(flip=0, rotation=45, shear=0, skew=0)(picture, generator(0))).astype(int)
    assert np.abs(turned - [10, 200, 30]).max() <= 1


def test_colours_change_pixels_and_no_marks() -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8))
    marks = Annotation(boxes=np.array([[1, 2, 3, 4]]), mask=np.eye(20, dtype=np.uint8))
    plain = {"flip": 0, "rotation": 0, "shear": 0, "skew": 0}
    for name in ("brightness", "contrast", "saturation", "hue"):
        view, moved = Augment(**plain, **{name: 0.4}).apply(picture, marks, generator(1))
        assert not np.array_equal(np.asarray(view), np.asarray(picture)), name
        assert moved == marks
    same, _ = Augment(**plain).apply(picture, marks, generator(1))
    assert np.array_equal(np.asarray(same), np.asarray(picture))


def test_colours_change_in_some_views_and_are_lost_in_some() -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8))
    still = Augment(flip=0, rotation=0, shear=0, skew=0, hue=0.3, brightness=0.4)

    def share(augment: Augment, looks: str) -> float:
        views = [np.asarray(augment(picture, generator(seed))).astype(int) for seed in range(200)]
        grey = [np.ptp(view, axis=2).max() == 0 for view in views]
        same = [np.array_equal(view, np.asarray(picture)) for view in views]
        return float(np.mean(grey if looks == "grey" else same))

    assert share(still, "same") == share(still, "grey") == 0
    assert share(dataclasses.replace(still, recolour=0.75), "same") == pytest.approx(0.25, abs=0.1)
    assert share(dataclasses.replace(still, recolour=0.0), "same") == 1
    assert share(dataclasses.replace(still, grey=0.2), "grey") == pytest.approx(0.2, abs=0.1)
    assert share(dataclasses.replace(still, grey=1.0), "grey") == 1


@pytest.mark.parametrize("size", [(1, 1), (1, 30), (8, 8)])
def test_tiny_pictures(size: tuple[int, int]) -> None:
    for augment in KINDS.values():
        assert augment(Image.new("RGB", size), generator(0)).size == size
        assert Augmented(Preprocess(size=(16, 16)), augment)(Image.new("RGB", size), generator(0)).shape == (3, 16, 16)


def test_accelerator_generators_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("a sample must not reseed the GPU"))
    before = torch.get_rng_state()
    with drawing_from(generator(0)):
        first = torch.rand(())
    assert torch.equal(torch.get_rng_state(), before)
    with contextlib.suppress(ValueError), drawing_from(generator(0)):
        assert torch.rand(()) == first
        raise ValueError
    assert torch.equal(torch.get_rng_state(), before)


def test_settings_survive_json() -> None:
    view = Augmented(Preprocess(size=(8, 9)), Augment(crop=(0.3, 1.0), hue=0.1))
    assert Augmented.from_dict(json.loads(json.dumps(view.to_dict()))) == view
    with pytest.raises(UsageError, match="Augment has no setting 'rotate'; did you mean 'rotation'"):
        Augment.from_dict({"rotate": 3})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"flip": 1.5}, "flip must lie in 0 to 1"),
        ({"skew": 1}, "skew in 0 to below 1"),
        ({"rotation": -1}, "rotation must lie in 0 to 180"),
        ({"shear": 90}, "shear in 0 to 90"),
        ({"hue": 0.6}, "hue must lie in 0 to 0.5"),
        ({"brightness": -0.1}, "must be at least 0"),
        ({"grey": 1.2}, "recolour and grey must lie in 0 to 1"),
        ({"crop": (0.9, 0.5)}, "two rising shares"),
        ({"crop": (0.0, 0.5)}, "two rising shares"),
        ({"ratio": (2, 1)}, "two rising numbers"),
    ],
)
def test_settings_are_checked(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Augment(**settings)


def test_other_colours_leave_every_place_where_it_is() -> None:
    """Where nothing changes colours the two views are one; else pixels differ and places do not."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8))
    annotation = Annotation(points=np.array([[7.0, 9.0, 1.0], [20.0, 30.0, 1.0]]))

    def view(colours: int, **settings: Any) -> tuple[Tensor, Annotation]:
        transform = Augmented(Preprocess(size=(24, 24)), Augment(crop=(0.5, 1.0), elastic=3.0, **settings), colours)
        return transform.with_annotation(picture, annotation, torch.Generator().manual_seed(5))

    plain = view(0)[0]
    assert torch.equal(plain, view(1)[0])
    first, second, third = (view(colours, brightness=0.5, hue=0.3) for colours in (0, 1, 2))
    assert not torch.allclose(first[0], second[0])
    assert not torch.allclose(second[0], third[0])
    np.testing.assert_array_equal(first[1].points, second[1].points)
    assert torch.equal(view(1, brightness=0.5, hue=0.3)[0], second[0])
    chancy = [view(colours, brightness=0.5, hue=0.3, recolour=0.5, grey=0.5) for colours in range(6)]
    assert len({float(values.sum()) for values, _ in chancy}) > 2
    assert all(np.array_equal(marks.points, chancy[0][1].points) for _, marks in chancy)


def test_an_elastic_deformation_moves_pixels_by_what_it_says() -> None:
    """Blurred noise from -1 to 1 has the deviation 1 / (2 sigma sqrt(3 pi)): times 20, for sigma 4, 0.81 pixels."""
    bend = Augment(flip=0, rotation=0, shear=0, skew=0, elastic=20, elastic_sigma=4)
    places = np.array([[x, y, 1] for x in range(30, 130, 10) for y in range(30, 90, 10)], dtype=float)
    marks = Annotation(points=places, point_names=tuple(map(str, range(len(places)))))
    picture = Image.new("RGB", (160, 120))
    moves = []
    for seed in range(8):
        moved = bend.apply(picture, marks, generator(seed))[1]
        moves.append(moved.points[:, :2] - places[:, :2])
    assert np.std(moves) == pytest.approx(20 / (2 * 4 * np.sqrt(3 * np.pi)), rel=0.1)
    assert abs(np.mean(moves)) < 0.1


def test_without_strength_or_generator_nothing_bends() -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    still = Augment(flip=0, rotation=0, shear=0, skew=0)
    assert np.array_equal(np.asarray(still(picture, generator(0))), np.asarray(picture))
    bend = dataclasses.replace(still, elastic=5.0)
    assert bend(picture) is picture
    assert not np.array_equal(np.asarray(bend(picture, generator(0))), np.asarray(picture))
    with pytest.raises(UsageError, match="elastic"):
        Augment(elastic=-1)
    with pytest.raises(UsageError, match="elastic_sigma"):
        Augment(elastic_sigma=0)
