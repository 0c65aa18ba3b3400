from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from tests.contract.small import SMALL, small_transformer
from tests.explain.sighted import CELL, SIDE, sighted, spotted, state_of, unchanged

from protolearn.core.similarities import RadialBasis
from protolearn.encoders import FeatureEncoder, ImageEncoder, SmallEncoder
from protolearn.errors import DataError, MissingExtra, UsageError
from protolearn.explain.attribution import METHODS, Settings, attribute
from protolearn.explain.gradients import Asked, noisy_slopes, similarity_at
from protolearn.methods import get_method

FROM_PIXELS = ("saliency", "smooth_grad", "integrated_gradients", "occlusion")


def mass(maps: torch.Tensor, row: int, column: int) -> float:
    """Return the share of a map's size that lies in a cell."""
    size = maps[0].abs()
    cell = size[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL]
    return float(cell.sum() / size.sum())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("place", ["fixed", "free"])
def test_every_method_finds_the_place_of_a_model_that_looks_where_it_says(method: str, place: str) -> None:
    model, picture = sighted(), spotted((1, 2))
    maps = attribute(model, picture, prototype=0, method=method, place=place)
    assert maps.shape == (1, SIDE, SIDE)
    row, column = divmod(int(maps[0].argmax()), SIDE)
    assert (row // CELL, column // CELL) == (1, 2)


@pytest.mark.parametrize("method", FROM_PIXELS)
def test_methods_that_ask_the_pixels_find_the_true_place_of_a_model_that_looks_elsewhere(method: str) -> None:
    model, picture = sighted(turned=True), spotted((0, 3))
    maps = attribute(model, picture, prototype=0, method=method, settings=Settings(window=1))
    assert mass(maps, 0, 3) == pytest.approx(1.0, abs=1e-6)
    enlarged = attribute(model, picture, prototype=0, method="upsample")
    row, column = divmod(int(enlarged[0].argmax()), SIDE)
    assert (row // CELL, column // CELL) == (3, 0)  # the cell whose token matched: the pixels are not there


def test_integrated_gradients_sum_to_the_difference_to_a_blank_picture() -> None:
    model, pictures = sighted(), spotted((1, 2), (3, 3), (0, 0))
    settings = Settings(fill=0.25, steps=400)
    maps = attribute(model, pictures, prototype=[0, 0, 2], method="integrated_gradients", settings=settings)
    rows = torch.tensor([0, 0, 2])
    with torch.no_grad():
        places = model(pictures).positions.gather(1, rows.view(-1, 1)).squeeze(1)
        asked = Asked(model, "similarity", fixed=True)
        gap = asked(pictures, rows, places) - asked(torch.full_like(pictures, 0.25), rows, places)
    assert torch.allclose(maps.sum((1, 2)), gap, atol=2e-3)


def test_a_linear_similarity_is_attributed_exactly() -> None:
    """By a dot product with red, a pixel of the cell counts its red divided by the pixels of a cell, others nothing."""
    model, picture = sighted(linear=True), spotted((2, 1))
    exact = torch.zeros(1, SIDE, SIDE)
    exact[0, 8:12, 4:8] = picture[0, 0, 8:12, 4:8] / CELL**2
    found = attribute(model, picture, prototype=0, method="integrated_gradients", settings=Settings(steps=3))
    assert torch.allclose(found, exact, atol=1e-6)
    slope = attribute(model, picture, prototype=0, method="saliency")
    assert torch.allclose(slope[0, 8:12, 4:8], torch.tensor(1 / CELL**2))
    assert float(slope.sum()) == pytest.approx(1.0)
    whole = attribute(model, picture, prototype=0, method="occlusion", settings=Settings(window=1))
    assert torch.allclose(whole, exact, atol=1e-6)


def test_a_class_is_attributed_by_name_or_index_and_pools_its_prototypes() -> None:
    model = sighted()
    model.classes = ("red", "other")
    picture = spotted((1, 2))
    named = attribute(model, picture, target="red", method="saliency")
    assert torch.equal(named, attribute(model, picture, target=0, method="saliency"))
    row, column = divmod(int(named[0].argmax()), SIDE)
    assert (row // CELL, column // CELL) == (1, 2)
    with pytest.raises(UsageError, match="did you mean 'red'"):
        attribute(model, picture, target="rad", method="saliency")


def test_a_fixed_place_does_not_follow_a_match_that_moves() -> None:
    """Two red cells: covering the one that matched costs the fixed place all, the free maximum next to nothing."""
    model = sighted(linear=True)
    picture = spotted((0, 0))
    picture[0, 0, 8:12, 8:12] = 0.89
    fixed = attribute(model, picture, prototype=0, method="occlusion", place="fixed")
    free = attribute(model, picture, prototype=0, method="occlusion", place="free")
    assert float(fixed.max()) > 10 * float(free.max())


@pytest.mark.parametrize("method", METHODS)
def test_the_model_is_left_as_it_was(method: str) -> None:
    model = get_method("protopnet")(prototypes_per_class=1, dim=8).build(SmallEncoder(16, size=16), 3)
    model.train()
    model.encoder.net[0].weight.requires_grad_(False)
    before = state_of(model)
    random = torch.get_rng_state()
    inputs = torch.rand(2, 3, 16, 16)
    kept = inputs.clone()
    attribute(model, inputs, prototype=1, method=method)
    assert unchanged(before, state_of(model))
    assert torch.equal(inputs, kept) and not inputs.requires_grad
    torch.set_rng_state(random)
    first = attribute(model, inputs, prototype=1, method=method)
    with torch.no_grad():  # also where a caller has gradients off
        assert torch.equal(first, attribute(model, inputs, prototype=1, method=method))


def test_batches_change_nothing() -> None:
    model = sighted()
    pictures = spotted((0, 0), (1, 1), (2, 2), (3, 3), (0, 3))
    for method in METHODS:
        whole = attribute(model, pictures, prototype=0, method=method)
        parts = attribute(model, pictures, prototype=0, method=method, settings=Settings(batch_size=2))
        assert torch.allclose(whole, parts, atol=1e-6), method


def test_no_gradient_at_an_exact_match_and_what_still_answers() -> None:
    model, picture = sighted(), torch.zeros(1, 3, SIDE, SIDE)
    picture[0, 0, :CELL, :CELL] = 1.0  # this cell's token is the prototype itself
    assert float(attribute(model, picture, prototype=0, method="saliency").abs().max()) == 0.0
    assert mass(attribute(model, picture, prototype=0, method="integrated_gradients"), 0, 0) == pytest.approx(1.0)
    assert mass(attribute(model, picture, prototype=0, method="smooth_grad"), 0, 0) == pytest.approx(1.0, abs=1e-6)


def test_noise_is_drawn_from_the_seed_alone() -> None:
    model, picture = sighted(), spotted((1, 1))
    runs = [attribute(model, picture, prototype=0, method="smooth_grad", settings=Settings(seed=s)) for s in (1, 1, 2)]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


def test_smooth_gradients_without_noise_are_the_gradient() -> None:
    model, picture = sighted(), spotted((1, 1))
    plain = attribute(model, picture, prototype=0, method="saliency")
    smooth = attribute(model, picture, prototype=0, method="smooth_grad", settings=Settings(noise=0.0))
    assert torch.allclose(plain, smooth, atol=1e-7)


def test_similarity_at_a_place_is_what_the_map_holds() -> None:
    """Whatever makes it: a width for each prototype, prototypes that compete, an encoder that compares by itself."""
    draw = torch.Generator().manual_seed(1)
    plain = sighted()
    wide = sighted()
    wide.similarity = RadialBasis(torch.tensor([0.5, 1.0, 2.0]))
    competing = sighted()
    competing.across = lambda table, usable: table.masked_fill(~usable, float("-inf")).softmax(-1)
    prompts = SMALL["prompt-cam"].method("prompt-cam").build(small_transformer(), 3).eval()
    for model in (plain, wide, competing, prompts):
        inputs = torch.rand(4, 3, 16, 16, generator=draw)
        rows, places = torch.tensor([0, 1, 2, 1]), torch.tensor([3, 0, 7, 15])
        tokens = model.embed(model.encode(inputs))
        found = similarity_at(model, tokens, rows, places)
        wanted = model.maps(tokens)[torch.arange(4), rows, places]
        assert torch.allclose(found, wanted, atol=1e-5)
        assert found.requires_grad


@pytest.mark.parametrize("slug", sorted(SMALL))
def test_attributions_of_every_method_that_reads_pictures(slug: str) -> None:
    """Each gives maps, or says in one line why it cannot."""
    small = SMALL[slug]
    encoder = small_transformer() if slug == "prompt-cam" else SmallEncoder(16, size=16)
    model = small.method(slug).build(encoder, 3)
    inputs = torch.rand(2, 3, 16, 16)
    key = int(model.bank.ids[model.bank.usable][0])
    quick = Settings(steps=4, draws=2)
    refused: dict[str, str] = {}
    for method in METHODS:
        try:
            maps = attribute(model, inputs, prototype=key, method=method, settings=quick)
            assert maps.shape == (2, 16, 16)
            assert bool(torch.isfinite(maps).all())
        except UsageError as error:
            refused[method] = str(error)
    assert set(refused) <= {"upsample", "grad_cam"}  # what needs a map that the similarity is read off
    assert all("\n" not in reason for reason in refused.values())


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_networks_of_timm(name: str) -> None:
    model = get_method("protopnet")(prototypes_per_class=1, dim=8).build(ImageEncoder(name, size=64), 2)
    for method in METHODS:
        maps = attribute(
            model, torch.rand(1, 3, 64, 64), prototype=0, method=method, settings=Settings(steps=3, draws=1)
        )
        assert maps.shape == (1, 64, 64) and bool(torch.isfinite(maps).all())


def test_no_inputs_no_maps() -> None:
    assert attribute(sighted(), torch.zeros(0, 3, SIDE, SIDE), prototype=0).shape == (0, SIDE, SIDE)


@pytest.mark.parametrize(
    ("how", "error", "words"),
    [
        ({"prototype": 0, "method": "saliensy"}, UsageError, "did you mean 'saliency'"),
        ({"prototype": 0, "method": "LRP"}, UsageError, "not offered"),
        ({"prototype": 0, "method": "prp"}, UsageError, "no rule for a comparison"),
        ({"prototype": 9}, UsageError, "no prototype has the id 9"),
        ({"prototype": [0, 1]}, UsageError, "one for each of the 1"),
        ({"prototype": 0, "target": 1}, UsageError, "not both"),
        ({}, UsageError, "name a prototype or a target"),
        ({"target": 0, "method": "upsample"}, UsageError, "a class has none"),
        ({"target": 7}, UsageError, "classes 0 to 1"),
        ({"prototype": 0, "place": "anywhere"}, UsageError, "'fixed' or 'free'"),
    ],
)
def test_wrong_questions(how: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        attribute(sighted(), spotted((0, 0)), **how)


def test_wrong_inputs() -> None:
    with pytest.raises(DataError, match="input 1 of the batch holds NaN"):
        attribute(sighted(), torch.stack([torch.zeros(3, 16, 16), torch.full((3, 16, 16), float("nan"))]), prototype=0)
    with pytest.raises(UsageError, match=r"pictures \(B, C, H, W\)"):
        attribute(sighted(), torch.zeros(2, 5), prototype=0)
    with pytest.raises(UsageError, match="floating-point"):
        attribute(sighted(), torch.zeros(1, 3, 16, 16, dtype=torch.uint8), prototype=0)
    for wrong in ({"steps": 0}, {"noise": float("nan")}, {"window": 0}):
        with pytest.raises(UsageError):
            Settings(**wrong)


def test_a_prototype_out_of_use_is_refused() -> None:
    model = sighted()
    model.bank.ban([1])
    with pytest.raises(UsageError, match="prototype 1 is inactive or banned"):
        attribute(model, spotted((0, 0)), prototype=1)


def test_models_without_a_map_or_gradients_say_so() -> None:
    blind = sighted(differentiable=False)
    with pytest.raises(UsageError, match="no gradients"):
        noisy_slopes(
            lambda x: Asked(blind, "similarity", fixed=True)(x, torch.tensor([0]), torch.tensor([0])),
            spotted((0, 0)), 1, 0.0, torch.Generator(),
        )  # fmt: skip
    for method in ("saliency", "smooth_grad", "integrated_gradients"):
        with pytest.raises(UsageError, match="no gradients"):
            attribute(blind, spotted((0, 0)), prototype=0, method=method)
    assert attribute(blind, spotted((0, 0)), prototype=0, method="occlusion").shape == (1, SIDE, SIDE)
    features = sighted(encoder=FeatureEncoder(3))
    with pytest.raises(UsageError, match="pictures"):
        attribute(features, torch.rand(2, 5, 3), prototype=0, method="upsample")


def test_captum_is_asked_for_by_name_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "captum", None)
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(MissingExtra, match=r"protolearn\[attribution\]"):
        attribute(sighted(), spotted((0, 0)), prototype=0)
    assert attribute(sighted(), spotted((0, 0)), prototype=0, method="smooth_grad").shape == (1, SIDE, SIDE)
