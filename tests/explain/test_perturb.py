"""Alterations of pictures: deterministic, nothing at strength 0, and each touches what it says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from protolearn.errors import UsageError
from protolearn.explain.passes import PictureList
from protolearn.explain.perturb import (
    CHARACTERISTICS,
    PERTURBATIONS,
    Perturbed,
    _from_lab,
    _reflected,
    _to_lab,
    non_local_means,
    perturbation,
)


def painted(seed: int = 0, size: tuple[int, int] = (20, 26)) -> Image.Image:
    g = np.random.default_rng(seed)
    return Image.fromarray(g.integers(0, 256, (*size, 3), dtype=np.uint8))


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("RGB")).astype(int)


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_strength_0_is_the_same_picture_and_repeats_are_equal(name: str) -> None:
    picture = painted()
    alter = perturbation(name)
    assert np.array_equal(pixels(alter(picture, 0.0)), pixels(picture))
    for strength in (0.3, 1.0, 2.0):
        one = alter(picture, strength, seed=3)
        assert one.size == picture.size
        assert one.mode == "RGB"
        assert np.array_equal(pixels(one), pixels(alter(picture, strength, seed=3)))
    smooth = Image.fromarray((pixels(picture) // 64 + 100).astype(np.uint8))  # texture weak enough to be smoothed
    assert not np.array_equal(pixels(alter(smooth)), pixels(smooth))


@pytest.mark.parametrize("name", ["hue", "saturation"])
def test_grey_pictures_have_no_colour_to_alter(name: str) -> None:
    grey = painted().convert("L").convert("RGB")
    assert np.array_equal(pixels(perturbation(name)(grey)), pixels(grey))


def test_each_touches_what_it_says() -> None:
    picture = painted(1)
    before = pixels(picture)
    dark = pixels(perturbation("brightness")(picture))
    assert np.abs(dark - 0.8 * before).max() <= 1
    flat = pixels(perturbation("contrast")(picture))
    assert flat.std() == pytest.approx(0.45 * before.std(), rel=0.02)
    pale = np.asarray(perturbation("saturation")(picture).convert("HSV"))[..., 1].mean()
    assert pale < np.asarray(picture.convert("HSV"))[..., 1].mean()
    turned = perturbation("hue")(Image.new("RGB", (3, 3), (255, 0, 0))).convert("HSV").getpixel((0, 0))
    assert turned[0] == pytest.approx(int(0.1 * 255), abs=1)
    bent = pixels(perturbation("shape")(picture))
    assert np.array_equal(np.sort(bent.reshape(-1, 3), 0), np.sort(before.reshape(-1, 3), 0)), "pixels only move"
    line = Image.fromarray(np.tile(np.array([[0] * 13 + [255] * 13], np.uint8)[..., None], (20, 1, 3)))
    shifts = [int((row == 255).argmax()) for row in pixels(perturbation("shape")(line))[..., 0]]
    assert len(set(shifts)) > 1, "a straight edge is no longer straight"


def test_texture_goes_and_edges_stay() -> None:
    g = np.random.default_rng(0)
    step = np.full((24, 24, 3), 60.0)
    step[:, 12:] = 190.0
    noisy = (step + g.normal(0, 2.5, step.shape)).round().clip(0, 255)
    done = pixels(perturbation("texture")(Image.fromarray(noisy.astype(np.uint8))))
    left, right = done[:, :11], done[:, 13:]
    assert left.std() < 0.7 * noisy[:, :11].std()
    assert right.mean() - left.mean() == pytest.approx(130, abs=2)


def test_non_local_means_equals_a_plain_loop() -> None:
    g = torch.Generator().manual_seed(0)
    channels = torch.rand(2, 6, 5, generator=g) * 20
    h, template, search = 4.0, 3, 5
    wide = channels[:, _reflected(6, 3)][:, :, _reflected(5, 3)]
    wanted = torch.zeros_like(channels)
    for y in range(6):
        for x in range(5):
            total, weights = torch.zeros(2), 0.0
            for dy in range(-2, 3):
                for dx in range(-2, 3):
                    apart = 0.0
                    for oy in range(-1, 2):
                        for ox in range(-1, 2):
                            here, there = wide[:, y + 3 + oy, x + 3 + ox], wide[:, y + 3 + dy + oy, x + 3 + dx + ox]
                            apart += float((here - there).square().mean())
                    weight = np.exp(-apart / 9 / h**2)
                    total, weights = total + weight * wide[:, y + 3 + dy, x + 3 + dx], weights + weight
            wanted[:, y, x] = total / weights
    assert torch.allclose(non_local_means(channels, h, template=template, search=search), wanted, atol=1e-4)
    with pytest.raises(ValueError, match="windows odd"):
        non_local_means(channels, h, template=4)


def test_mirrored_borders_of_tiny_pictures() -> None:
    assert _reflected(3, 5).tolist() == [1, 0, 1, 2, 1, 0, 1, 2, 1, 0, 1, 2, 1]
    assert perturbation("texture")(Image.new("RGB", (1, 1), (9, 9, 9))).getpixel((0, 0)) == (9, 9, 9)


def test_colours_survive_the_way_to_lab_and_back() -> None:
    values = np.random.default_rng(0).integers(0, 256, (50, 40, 3)).astype(float)
    assert np.abs(_from_lab(_to_lab(values)) - values).max() < 0.01
    white = _to_lab(np.full((1, 1, 3), 255.0))[0, 0]
    assert white.tolist() == pytest.approx([255.0, 0.0, 0.0], abs=0.05)


def test_noise_depends_on_case_and_seed_alone() -> None:
    pictures = PictureList([painted(0), painted(1)], ["a", "b"])
    swapped = PictureList([painted(1), painted(0)], ["b", "a"])
    noise = perturbation("noise")
    one, other = Perturbed(pictures, noise), Perturbed(swapped, noise)
    assert np.array_equal(pixels(one.picture(0)), pixels(other.picture(1)))
    assert not np.array_equal(pixels(one.picture(0)), pixels(Perturbed(pictures, noise, seed=1).picture(0)))
    assert list(one.ids) == ["a", "b"]
    assert one.labels.tolist() == [-1, -1]
    assert len(one) == 2
    assert one.pictured


def test_unknown_names_and_strengths_are_refused() -> None:
    with pytest.raises(UsageError, match="did you mean 'hue'"):
        perturbation("hues")
    for wrong in (-0.1, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="strength"):
            perturbation("hue")(painted(), wrong)
    assert set(CHARACTERISTICS) < set(PERTURBATIONS)


@pytest.mark.parametrize("strength", [0.3, 1.0, 2.0])
def test_hue_is_turned_as_torchvision_turns_it(strength: float) -> None:
    from torchvision.transforms.functional import adjust_hue

    assert np.array_equal(
        pixels(perturbation("hue")(painted(), strength)), pixels(adjust_hue(painted(), 0.1 * strength))
    )
