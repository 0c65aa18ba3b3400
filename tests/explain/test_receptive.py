from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.contract.small import SMALL, small_transformer
from tests.explain.sighted import CELL, SIDE, sighted, spotted, state_of, unchanged
from torch import nn

from protolearn.core.bank import PrototypeBank
from protolearn.core.heads import LinearEvidence
from protolearn.core.measures import squared_l2
from protolearn.core.model import PrototypeModel
from protolearn.core.similarities import LogRatio
from protolearn.encoders import FeatureEncoder, ImageEncoder, SmallEncoder
from protolearn.errors import DataError, UsageError
from protolearn.explain.receptive import Honesty, receptive_fields, region_honesty, sensitivity
from protolearn.methods import get_method
from protolearn.structures import Box


def built(encoder: Any) -> PrototypeModel:
    return get_method("protopnet")(prototypes_per_class=1, dim=8).build(encoder, 2)


def open_branches(model: PrototypeModel) -> PrototypeModel:
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.ones_(layer.weight)
    return model


@pytest.mark.parametrize(
    ("strides", "kernels"),
    [((2, 2, 1), (3, 3, 3)), ((2, 1, 1), (3, 3, 1)), ((1, 1, 1), (1, 1, 1)), ((2, 2, 2), (5, 3, 1))],
)
def test_the_field_of_a_convolution_is_what_arithmetic_says(strides: tuple[int, ...], kernels: tuple[int, ...]) -> None:
    """The usual recursion from the last layer to the first, cut at the border of the picture."""
    side = 24
    model = built(SmallEncoder(16, strides=strides, kernels=kernels, size=side))
    grid = side // int(torch.tensor(strides).prod())
    for position in (0, grid * grid // 2 + grid // 2, grid * grid - 1):
        wanted = []
        for place in divmod(position, grid):
            low = high = place
            for stride, kernel in zip(reversed(strides), reversed(kernels), strict=True):
                low, high = low * stride - kernel // 2, high * stride - kernel // 2 + kernel - 1
            wanted.append((max(low, 0), min(high + 1, side)))
        (y0, y1), (x0, x1) = wanted
        assert receptive_fields(model, (3, side, side), [position]) == [Box(x0, y0, x1, y1)]


def test_a_max_pool_and_deep_layers_do_not_hide_the_field() -> None:
    """A residual network's field is wider than its picture at this size; its first stage's is known: 43 pixels.

    An untrained one has residual branches that are multiplied by 0, and then really sees little.
    """
    deep = built(ImageEncoder("resnet18", size=64))
    assert receptive_fields(deep, (3, 64, 64), [0]) == [Box(0, 0, 6, 6)]
    open_branches(deep)
    assert receptive_fields(deep, (3, 64, 64), [0]) == [Box(0, 0, 64, 64)]
    early = open_branches(built(ImageEncoder("resnet18", layer=1, size=128)))  # cells of 4 pixels
    field = receptive_fields(early, (3, 128, 128), [16 * 32 + 16])[0]
    assert (field.x1 - field.x0, field.y1 - field.y0) == (43, 43)


def test_attention_sees_the_whole_picture() -> None:
    model = built(ImageEncoder("vit_tiny_patch16_224", size=64))
    assert receptive_fields(model, (3, 64, 64), [5]) == [Box(0, 0, 64, 64)]


def test_an_outline_that_is_true_agrees() -> None:
    found = region_honesty(sighted(), spotted((1, 2), (3, 0)), 0)
    for honesty, cell in zip(found, (Box(8, 4, 12, 8), Box(0, 12, 4, 16)), strict=True):
        assert (honesty.drawn, honesty.sensitive, honesty.field) == (cell, cell, cell)
        assert honesty.inside == pytest.approx(1.0)
        assert honesty.overlap == 1.0
        assert honesty.disagrees is False
        assert "disagree" not in honesty.words()
    assert found[1].position == 12


def test_an_outline_that_lies_is_told() -> None:
    honesty = region_honesty(sighted(turned=True), spotted((0, 3)), 0)[0]
    assert honesty.drawn == Box(0, 12, 4, 16)
    assert honesty.sensitive == honesty.field == Box(12, 0, 16, 4)
    assert honesty.inside == pytest.approx(0.0)
    assert honesty.overlap == 0.0
    assert honesty.disagrees is True
    assert honesty.words().startswith("The outline and what the place sees disagree")


def test_a_faint_field_does_not_widen_the_sensitive_region() -> None:
    """Every pixel can move the token a little; most of what moves it still lies in its cell."""
    honesty = region_honesty(sighted(sees_all=True), spotted((1, 2)), 0, share=0.8)[0]
    assert honesty.field == Box(0, 0, SIDE, SIDE)
    assert honesty.sensitive == honesty.drawn == Box(8, 4, 12, 8)
    assert 0.8 < float(honesty.inside or 0) < 1.0
    assert "the whole picture can play a part" in honesty.words()


def test_the_setting_decides_what_disagrees() -> None:
    model, picture = sighted(sees_all=True), spotted((1, 2))
    inside = region_honesty(model, picture, 0)[0].inside
    assert inside is not None
    assert region_honesty(model, picture, 0, least=inside - 0.005)[0].disagrees is False
    assert region_honesty(model, picture, 0, least=inside + 0.005)[0].disagrees is True


def test_the_hottest_region_can_be_judged_too() -> None:
    model, picture = built(SmallEncoder(16, size=32)), torch.rand(1, 3, 32, 32)
    cell, hot = (region_honesty(model, picture, 0, region=region)[0] for region in ("cell", "percentile"))
    assert hot.drawn != cell.drawn and hot.inside != cell.inside
    assert hot.sensitive == cell.sensitive


def test_an_exact_match_needs_the_noise_and_without_it_nothing_is_said() -> None:
    model, picture = sighted(), torch.zeros(1, 3, SIDE, SIDE)
    picture[0, 0, :CELL, :CELL] = 1.0
    assert region_honesty(model, picture, 0)[0].sensitive == Box(0, 0, CELL, CELL)
    silent = region_honesty(model, picture, 0, noise=0.0)[0]
    assert (silent.sensitive, silent.inside, silent.overlap, silent.disagrees) == (None, None, None, None)
    assert "cannot be said" in silent.words()
    json.dumps(silent.to_dict(), allow_nan=False)


def test_sensitivity_is_the_size_of_the_gradient() -> None:
    """By dot product with red the gradient is one over the pixels of the cell, whatever the noise."""
    model = sighted(linear=True)
    found = sensitivity(
        model, spotted((2, 2)), torch.tensor([0]), torch.tensor([10]), generator=torch.Generator().manual_seed(0)
    )
    wanted = torch.zeros(1, SIDE, SIDE)
    wanted[0, 8:12, 8:12] = 1 / CELL**2
    assert torch.allclose(found, wanted)


def test_the_same_seed_gives_the_same_and_the_model_stays() -> None:
    model = built(SmallEncoder(16, size=16))
    model.train()
    before, state = state_of(model), torch.get_rng_state()
    inputs = torch.rand(2, 3, 16, 16)
    torch.set_rng_state(state)
    first, again = (region_honesty(model, inputs, [0, 1], seed=3) for _ in range(2))
    assert torch.equal(state, torch.get_rng_state())
    assert unchanged(before, state_of(model))
    assert [f.to_dict() for f in first] == [f.to_dict() for f in again]


@pytest.mark.parametrize("slug", sorted(SMALL))
def test_every_method_that_reads_pictures(slug: str) -> None:
    """Where places are drawn, they are judged; where they are not, that is said in a line."""
    model = (
        SMALL[slug].method(slug).build(small_transformer() if slug == "prompt-cam" else SmallEncoder(16, size=16), 3)
    )
    key = int(model.bank.ids[model.bank.usable][0])
    inputs = torch.rand(1, 3, 16, 16)
    if model.embed(model.encode(inputs)).grid is None:
        with pytest.raises(UsageError, match="not laid out in a picture"):
            region_honesty(model, inputs, key)
        return
    found = region_honesty(model, inputs, key, draws=2)[0]
    assert found.inside is None or 0 <= found.inside <= 1
    assert found.field.x1 > found.field.x0


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"region": "cells"}, "'cell' or 'percentile'"),
        ({"share": 0.0}, "share must lie"),
        ({"least": 1.5}, "least in"),
        ({"draws": 0}, "draws must be"),
        ({"noise": -0.1}, "noise at least 0"),
        ({"positions": [16]}, "0 to 15"),
        ({"positions": [0, 1]}, "for each input"),
    ],
)
def test_wrong_questions(how: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        region_honesty(sighted(), spotted((0, 0)), 0, **how)


def test_encoders_without_places_or_gradients_are_refused() -> None:
    with pytest.raises(UsageError, match="not differentiable"):
        region_honesty(sighted(differentiable=False), spotted((0, 0)), 0)
    bank = PrototypeBank(torch.eye(4), torch.eye(4))
    model = PrototypeModel(
        FeatureEncoder(4),
        nn.Identity(),
        bank,
        squared_l2,
        LinearEvidence.from_ownership(bank.ownership),
        similarity=LogRatio(),
    )
    with pytest.raises(UsageError, match="pictures"):
        region_honesty(model, torch.zeros(1, 4), 0)
    with pytest.raises(DataError, match="NaN"):
        region_honesty(sighted(), torch.full((1, 3, SIDE, SIDE), float("nan")), 0)
    assert region_honesty(sighted(), torch.zeros(0, 3, SIDE, SIDE), 0) == []


def test_words_name_shares_of_the_picture() -> None:
    honesty = region_honesty(sighted(turned=True), spotted((0, 3)), 0)[0]
    assert "6 % of the picture and holds 0 %" in honesty.words()
    small = replace(honesty, size=(1000, 1000))
    assert isinstance(small, Honesty) and "less than 1 % of the picture" in small.words()
