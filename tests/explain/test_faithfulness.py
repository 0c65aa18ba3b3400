from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from tests.explain.sighted import CELL, SIDE, sighted, spotted, state_of, unchanged

from protolearn.errors import UsageError
from protolearn.explain.attribution import Settings
from protolearn.explain.faithfulness import RANDOM, compare_attributions, patch_ranks

CELLS = [(r, c) for r in range(4) for c in range(4)][:12]


def test_a_map_that_lies_loses_against_those_that_ask_the_pixels() -> None:
    """The token that matches looks at the other end of the picture: the enlarged map covers the wrong cells."""
    model, pictures = sighted(turned=True), spotted(*CELLS)
    found = compare_attributions(model, pictures, 0, ["upsample", "saliency", "occlusion"], patch=CELL, steps=16)
    told = found.summary()
    for method in ("saliency", "occlusion"):
        assert told[method]["deletion"]["value"] < 0.1
        assert told[method]["insertion"]["value"] > 0.9
        assert told[method]["deletion"]["gain_interval"][0] > 0
    assert told["upsample"]["deletion"]["value"] > 0.3
    assert told["upsample"]["insertion"]["value"] < 0.7
    assert found.best() in ("saliency", "occlusion")
    table = found.table().splitlines()
    assert [line.split()[0] for line in table[1:5]] == ["upsample", "saliency", "occlusion", RANDOM]
    assert "better, better" in table[2]


def test_a_map_that_is_true_wins_like_the_others() -> None:
    model, pictures = sighted(), spotted(*CELLS)
    told = compare_attributions(model, pictures, 0, ["upsample", "saliency"], patch=CELL, steps=16).summary()
    assert told["upsample"]["deletion"]["value"] < 0.1
    assert told["upsample"]["insertion"]["value"] > 0.9
    assert abs(told[RANDOM]["deletion"]["value"] - 0.5) < 0.15


def test_areas_are_those_of_the_curves_by_hand() -> None:
    """By dot product the fixed place counts the red of one cell: its curve falls in one step, where it is covered."""
    model, picture = sighted(linear=True), spotted((0, 0), background=0.0)
    found = compare_attributions(model, picture, 0, ["saliency"], patch=CELL, steps=16, orders=1)
    curve = found.deletion[0, 0]
    assert curve[0] == pytest.approx(0.9, abs=1e-6) and np.allclose(curve[1:], 0.0, atol=1e-6)
    assert found.deletion_area[0, 0] == pytest.approx(0.5 / 16, abs=1e-5)
    assert found.insertion_area[0, 0] == pytest.approx(1 - 0.5 / 16, abs=1e-5)
    assert found.gap[0] == pytest.approx(0.9, abs=1e-6)
    assert found.shares.tolist() == [k / 16 for k in range(17)]


def test_random_orders_are_random_and_belong_to_the_seed() -> None:
    model, pictures = sighted(), spotted(*CELLS[:3])
    how: dict[str, Any] = {"methods": ["saliency"], "patch": 2, "steps": 8}
    runs = [compare_attributions(model, pictures, 0, settings=Settings(seed=s), **how) for s in (1, 1, 2)]
    assert np.array_equal(runs[0].deletion, runs[1].deletion)
    assert not np.array_equal(runs[0].deletion[:, 1], runs[2].deletion[:, 1])


def test_by_default_the_prototype_that_adds_most_is_asked_about() -> None:
    model, pictures = sighted(), torch.cat([spotted((1, 1), colour=0), spotted((2, 2), colour=2)])
    assert compare_attributions(model, pictures, methods=["saliency"], steps=2).prototypes == (0, 2)


def test_a_match_that_a_blank_picture_makes_as_well_is_left_out_and_counted() -> None:
    model, pictures = sighted(), spotted((1, 1), (2, 2))
    pictures[1] = 0.5  # as blank as can be with this fill
    found = compare_attributions(model, pictures, 0, ["saliency"], patch=CELL, steps=4, settings=Settings(fill=0.5))
    assert np.isnan(found.deletion_area[1]).all() and not np.isnan(found.deletion_area[0]).any()
    assert found.summary()["saliency"]["judged"] == 1
    assert any("1 of 2 inputs are left out" in note for note in found.notes)


def test_a_method_with_nothing_to_say_is_not_ranked_by_chance() -> None:
    model, picture = sighted(), torch.zeros(1, 3, SIDE, SIDE)
    picture[0, 0, :CELL, :CELL] = 1.0  # the prototype itself: every gradient is 0
    found = compare_attributions(model, picture, 0, ["saliency", "occlusion"], patch=CELL, steps=4)
    assert np.isnan(found.deletion_area[0, 0]) and not np.isnan(found.deletion_area[0, 1])
    assert found.summary()["saliency"]["deletion"]["value"] is None
    assert found.best() is None  # one input has no interval
    assert "nothing to judge by" in found.table()
    json.dumps(found.to_dict(), allow_nan=False)


def test_blurred_patches_and_free_places() -> None:
    model, pictures = sighted(), spotted(*CELLS[:4])
    sharp = compare_attributions(model, pictures, 0, ["saliency"], patch=CELL, steps=4)
    blurred = compare_attributions(model, pictures, 0, ["saliency"], patch=CELL, steps=4, blank="blur", place="free")
    assert not np.allclose(sharp.deletion[..., -1], blurred.deletion[..., -1])
    assert (blurred.blank, blurred.place) == ("blur", "free")


def test_the_model_is_left_as_it_was() -> None:
    model = sighted()
    model.train()
    before = state_of(model)
    compare_attributions(model, spotted(*CELLS[:2]), 0, steps=2)
    assert unchanged(before, state_of(model))


def test_patches_at_the_border_and_equal_values() -> None:
    maps = torch.zeros(2, 5, 7)
    maps[0, 4, 6] = 1.0
    ranks, flat = patch_ranks(maps, 2, torch.Generator().manual_seed(0))
    assert ranks[0, 4, 6] == 0 and (ranks[0] == 0).sum() == 1  # the corner patch is one pixel
    assert sorted(ranks[1].unique().tolist()) == list(range(12))
    assert flat.tolist() == [False, True]


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"methods": ["saliensy"]}, "did you mean"),
        ({"methods": []}, "name a list"),
        ({"methods": "saliency"}, "name a list"),
        ({"steps": 0}, "at least 1"),
        ({"orders": 0}, "at least 1"),
        ({"patch": 17}, "1 to 16 pixels"),
        ({"blank": "black"}, "'fill' or 'blur'"),
        ({"place": "there"}, "'fixed' or 'free'"),
    ],
)
def test_wrong_questions(how: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        compare_attributions(sighted(), spotted((0, 0)), 0, **how)
    with pytest.raises(UsageError, match="at least one input"):
        compare_attributions(sighted(), torch.zeros(0, 3, SIDE, SIDE), 0)
