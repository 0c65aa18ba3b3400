from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from protolearn.core.model import PrototypeModel
from protolearn.errors import ModelFileError, UsageError
from protolearn.explain import Painter, contrast, explanation_picture, save_explanation
from protolearn.explain.draw import CHANGED, MARK, NO_CASE, NOT_AT_HAND, View
from protolearn.explain.lettering import lettering
from protolearn.structures import Box

YELLOW = tuple(int(MARK[k : k + 2], 16) for k in (1, 3, 5))


def yellow(picture: Image.Image) -> np.ndarray:
    return (np.asarray(picture.convert("RGB")) == YELLOW).all(2)


def test_the_outline_lies_on_the_region() -> None:
    shown = View(Image.new("RGB", (400, 200)), Box(200, 50, 300, 150)).thumbnail(200)
    assert shown.size == (200, 100)
    rows, columns = np.nonzero(yellow(shown))
    assert (columns.min(), columns.max()) == pytest.approx((100, 150), abs=2)
    assert (rows.min(), rows.max()) == pytest.approx((25, 75), abs=2)


@pytest.mark.parametrize("box", [Box(0, 0, 1, 1), Box(7, 7, 8, 8), Box(0, 0, 8, 8), Box(3, 3, 3, 3)])
@pytest.mark.parametrize("size", [(8, 8), (1, 8), (3000, 500)])
def test_any_box_in_any_picture_can_be_drawn(box: Box, size: tuple[int, int]) -> None:
    view = View(Image.new("RGB", size), box, np.random.default_rng(0).random((16, 16)), supports=False)
    assert max(view.thumbnail(96).size) == 96
    assert max(view.close_up(96).size) == 96


def test_small_pictures_keep_their_pixels_and_large_ones_shrink() -> None:
    digit = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 4).convert("RGB")
    assert len(np.unique(np.asarray(View(digit).thumbnail(160)))) == 64
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (1000, 1000, 3), dtype=np.uint8))
    assert np.asarray(View(noise).thumbnail(100)).std() < 20


def test_the_glow_lies_where_the_map_is_high() -> None:
    heat = np.zeros((10, 10))
    heat[:5, 5:] = 1.0
    shown = np.asarray(View(Image.new("RGB", (100, 100), "#808080"), heat=heat).thumbnail(100), int)
    warm = shown[..., 0] - shown[..., 2]
    assert warm[10:40, 60:90].min() > 30
    assert warm[60:90, 10:40].max() < 5
    # a centre crop is all that the model saw: nothing glows beside it
    seen = View(Image.new("RGB", (300, 100), "#808080"), heat=np.ones((9, 9)), window=Box(100, 0, 200, 100)).thumbnail(
        300
    )
    warm = np.asarray(seen, int)[..., 0] - np.asarray(seen, int)[..., 2]
    assert warm[50, 150] > 30
    assert warm[50, 50] == warm[50, 250] == 0


def test_a_card_is_drawn_with_and_without_runner_up(model: PrototypeModel, parts: Any) -> None:
    (first, second), painter = contrast(model, parts[1], [0])[0], Painter(model, parts[0])
    both = explanation_picture(painter, parts[1].picture(0), first, second)
    alone = explanation_picture(painter, parts[1].picture(0), first)
    assert both.width == alone.width
    assert both.height > alone.height
    assert yellow(both).sum() > yellow(alone).sum() > 1000


def test_support_and_objection_differ_without_colour(model: PrototypeModel, parts: Any) -> None:
    picture = View(Image.new("RGB", (64, 64)), Box(16, 16, 48, 48)).thumbnail(128)
    dashed = View(Image.new("RGB", (64, 64)), Box(16, 16, 48, 48), supports=False).thumbnail(128)
    assert yellow(dashed).sum() < 0.8 * yellow(picture).sum()


def test_why_there_is_no_source_picture_is_said(model: PrototypeModel, parts: Any) -> None:
    train = parts[0]
    source = model.bank.sources[0]
    assert source is not None
    assert Painter(model, train).source_picture(None)[1] == NO_CASE
    assert Painter(model).source_picture(source)[1] == NOT_AT_HAND
    assert Painter(model, train.subset([])).source_picture(source)[1] == NOT_AT_HAND
    assert Painter(model, lambda s: None).source_picture(source)[1] == NOT_AT_HAND
    assert Painter(model, lambda s: Image.new("RGB", (8, 8))).source_picture(source)[1] == ""
    other = train.subset(range(len(train)))
    other.pictures[other.index(source.case)] = Image.new("RGB", (8, 8), "red")
    assert Painter(model, other).source_picture(source) == (None, CHANGED)
    picture, why = Painter(model, train).source_picture(source)
    assert picture is not None
    assert not why


def test_a_prototype_without_a_case_is_drawn_as_such(model: PrototypeModel, parts: Any) -> None:
    with_cases = explanation_picture(Painter(model, parts[0]), parts[1].picture(0), *contrast(model, parts[1], [0])[0])
    model.bank.sources = [None] * len(model.bank)
    without = explanation_picture(Painter(model, parts[0]), parts[1].picture(0), *contrast(model, parts[1], [0])[0])
    assert without.size == with_cases.size
    assert yellow(without).sum() < yellow(with_cases).sum()


def test_the_percentile_region_can_be_outlined_instead(model: PrototypeModel, parts: Any) -> None:
    first, _ = contrast(model, parts[1], [0])[0]
    cells, hots = Painter(model, parts[0]), Painter(model, parts[0], region="percentile")
    differ = 0
    for row in first.rows:
        cell, hot = (p.case_view(parts[1].picture(0), first.case, row) for p in (cells, hots))
        assert cell.box == row.region
        assert hot.box is not None
        assert 0 <= hot.box.x0 < hot.box.x1 <= 8
        differ += hot.box != cell.box
    assert differ > 0
    with pytest.raises(ValueError, match="percentile"):
        Painter(model, region="blob")


def test_names_of_any_kind_can_be_written() -> None:
    canvas = Image.new("RGB", (900, 60), "white")
    end = lettering(24).write(ImageDraw.Draw(canvas), 5, 5, "Émile – 中文 × −3 \u202e\x00 <b>", "black")
    assert 100 < end < 900
    assert (np.asarray(canvas) < 128).any()
    assert lettering(24).length(lettering(24).shortened("ß" * 5000, 200)) <= 200
    assert lettering(14).shortened("", 10) == ""


@pytest.mark.parametrize("suffix", ["png", "html", "json"])
def test_one_picture_can_be_explained_into_a_file(
    model: PrototypeModel, parts: Any, tmp_path: Path, suffix: str
) -> None:
    path = save_explanation(model, parts[1], 3, tmp_path / "new" / f"e.{suffix}", sources=parts[0])
    assert path.stat().st_size > 1000
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    if suffix == "json":
        plain = json.loads(path.read_text(encoding="utf-8"))
        total = plain["bias"] + sum(row["contribution"] for row in plain["rows"])
        assert total == pytest.approx(plain["logit"], rel=1e-4)
        assert plain["runner_up"]["target"] != plain["target"]
    if suffix == "png":
        assert Image.open(path).width > 1000


def test_files_that_cannot_be_written_are_named(model: PrototypeModel, parts: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\.png, \.html or \.json"):
        save_explanation(model, parts[1], 0, tmp_path / "e.gif")
    (tmp_path / "file").write_text("")
    for name in ("e.png", "e.json"):
        with pytest.raises(ModelFileError, match="cannot write"):
            save_explanation(model, parts[1], 0, tmp_path / "file" / name)


def test_drawing_leaves_the_model_alone(model: PrototypeModel, parts: Any) -> None:
    model.train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    explanation_picture(Painter(model, parts[0]), parts[1].picture(0), *contrast(model, parts[1], [0])[0])
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
