"""Alterations of one visual characteristic of a picture: colour, light, texture, shape.

Each acts on the stored picture (upright 8-bit RGB, in its own size), before the encoder's preprocessing, and is
deterministic; where it draws, it draws from a seed and the case's id. Strength 1 is the published setting, strength 0
returns the very same picture. Strengths of different alterations are not on one scale.

Source of the settings: Nauta et al., *This Looks Like That, Because ...*, 2021 (contrast 0.45, saturation 0.7, hue 0.1,
brightness 0.8, non-local means of strength 4 with windows 7 and 21, waves of 4 pixels).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch import Tensor
from torch.nn import functional as F

from protolearn.errors import UsageError, look_up
from protolearn.explain.passes import CaseList

Alteration = Callable[[Image.Image, float, np.random.Generator], Image.Image]


@dataclass(frozen=True)
class Perturbation:
    """A named alteration.

    Attributes
    ----------
    name : str
        As in settings and reports.
    words : str
        What it changes, for a person.
    alter : callable
        ``(picture, strength, generator) -> picture`` for a strength above 0.
    space : str
        What it acts on.
    """

    name: str
    words: str
    alter: Alteration
    space: str = "pixels of the stored picture"

    def __call__(self, picture: Image.Image, strength: float = 1.0, seed: int = 0) -> Image.Image:
        """Return the altered picture, the same one at strength 0."""
        if not strength >= 0 or math.isinf(strength):
            raise UsageError(f"strength must be a number of at least 0, got {strength}")
        picture = picture.convert("RGB")
        return picture if strength == 0 else self.alter(picture, strength, np.random.default_rng(seed))


def perturbation(name: str) -> Perturbation:
    """Return an alteration by name.

    Raises
    ------
    UsageError
        If there is none; the nearest names are suggested.

    Examples
    --------
    >>> grey = Image.new("RGB", (4, 4), (90, 90, 90))
    >>> perturbation("hue")(grey).getpixel((0, 0))
    (90, 90, 90)
    """
    return look_up("alteration", name, PERTURBATIONS)


@dataclass(frozen=True, eq=False)
class Perturbed:
    """Cases whose pictures are altered; ids, labels and classes stay.

    Examples
    --------
    >>> from protolearn.explain.passes import PictureList
    >>> cases = PictureList([Image.new("RGB", (4, 4), (200, 0, 0))], ["red"])
    >>> Perturbed(cases, perturbation("brightness")).picture(0).getpixel((0, 0))
    (160, 0, 0)
    """

    cases: CaseList
    alteration: Perturbation
    strength: float = 1.0
    seed: int = 0

    @property
    def ids(self) -> Sequence[str]:
        """Those of the cases."""
        return self.cases.ids

    @property
    def labels(self) -> np.ndarray:
        """Those of the cases."""
        return self.cases.labels

    @property
    def classes(self) -> Sequence[str]:
        """Those of the cases."""
        return self.cases.classes

    @property
    def pictured(self) -> bool:
        """Whether there are pictures to alter."""
        return bool(getattr(self.cases, "pictured", True))

    def __len__(self) -> int:
        return len(self.cases)

    def picture(self, i: int) -> Image.Image:
        """Return an altered picture; its draws depend on seed and case alone."""
        digest = hashlib.blake2b(f"{self.seed}/{self.alteration.name}/{self.cases.ids[i]}".encode(), digest_size=8)
        return self.alteration(self.cases.picture(i), self.strength, int.from_bytes(digest.digest(), "big"))


def _hue(picture: Image.Image, strength: float, _: np.random.Generator) -> Image.Image:
    values = np.array(picture.convert("HSV"))
    values[..., 0] += np.uint8(int(0.1 * strength * 255) % 256)  # the wheel is a byte and wraps; torchvision truncates
    return Image.frombytes("HSV", picture.size, values.tobytes()).convert("RGB")


def _enhanced(kind: type, full: float) -> Alteration:
    def alter(picture: Image.Image, strength: float, _: np.random.Generator) -> Image.Image:
        found: Image.Image = kind(picture).enhance(max(0.0, 1.0 - strength * (1.0 - full)))
        return found

    return alter


def _shape(picture: Image.Image, strength: float, _: np.random.Generator) -> Image.Image:
    values = np.array(picture)
    for row in range(values.shape[0]):
        values[row] = np.roll(values[row], _wave(row, strength), axis=0)
    for column in range(values.shape[1]):
        values[:, column] = np.roll(values[:, column], _wave(column, strength), axis=0)
    return Image.fromarray(values)


def _wave(line: int, strength: float) -> int:
    return int(4.0 * strength * math.sin(math.pi * 0.05 * line))


def _noise(picture: Image.Image, strength: float, draw: np.random.Generator) -> Image.Image:
    values = np.array(picture, dtype=np.float32)
    noisy = values + draw.normal(0.0, 20.0 * strength, values.shape)
    return Image.fromarray(noisy.round().clip(0, 255).astype(np.uint8))


def _texture(picture: Image.Image, strength: float, _: np.random.Generator) -> Image.Image:
    lab = torch.from_numpy(_to_lab(np.array(picture, dtype=np.float64))).float().permute(2, 0, 1)
    smooth = torch.cat([non_local_means(part, 4.0 * strength) for part in (lab[:1], lab[1:])])
    found = _from_lab(smooth.permute(1, 2, 0).double().numpy())
    return Image.fromarray(found.round().clip(0, 255).astype(np.uint8))


def non_local_means(channels: Tensor, strength: float, *, template: int = 7, search: int = 21) -> Tensor:
    """Return channels ``(C, H, W)`` in which each pixel is a mean of those nearby whose surroundings look alike.

    A neighbour counts ``exp(-d / strength^2)``, d the mean squared difference of the two surroundings. Texture goes,
    edges stay.

    Parameters
    ----------
    channels : Tensor
        In units of a byte.
    strength : float
        Above 0.
    template, search : int
        Odd sides of the surroundings compared and of the window searched.

    Examples
    --------
    >>> non_local_means(torch.full((1, 5, 5), 7.0), 4.0).unique()
    tensor([7.])
    """
    if not strength > 0 or template % 2 == 0 or search % 2 == 0:
        raise ValueError(f"strength must be positive and windows odd, got {strength}, {template}, {search}")
    count, height, width = channels.shape
    around, reach = template // 2, search // 2
    padded = _mirrored(channels, around + reach)
    centre = padded[:, reach : reach + height + 2 * around, reach : reach + width + 2 * around]
    total = torch.zeros_like(channels)
    weights = channels.new_zeros(height, width)
    for down in range(search):
        for across in range(search):
            there = padded[:, down : down + height + 2 * around, across : across + width + 2 * around]
            apart = (there - centre).square_().mean(0)
            weight = _box_mean(apart, template).mul_(-1.0 / strength**2).exp_()
            inner = there[:, around : around + height, around : around + width]
            total.addcmul_(inner, weight.expand(count, -1, -1))
            weights += weight
    return total / weights


def _mirrored(channels: Tensor, by: int) -> Tensor:
    """Return channels with mirrored borders, also where the border is wider than the picture."""
    rows, columns = (_reflected(size, by) for size in channels.shape[1:])
    return channels[:, rows][:, :, columns]


def _reflected(size: int, by: int) -> Tensor:
    if size == 1:
        return torch.zeros(1 + 2 * by, dtype=torch.long)
    step = torch.arange(-by, size + by).abs() % (2 * (size - 1))
    return torch.where(step < size, step, 2 * (size - 1) - step)


def _box_mean(values: Tensor, side: int) -> Tensor:
    return F.avg_pool2d(F.avg_pool2d(values[None, None], (side, 1), 1), (1, side), 1)[0, 0]


_TO_XYZ = np.array([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]])
_WHITE = _TO_XYZ.sum(1)


def _to_lab(pixels: np.ndarray) -> np.ndarray:
    """Return CIELAB of sRGB bytes, lightness scaled to a byte so that one strength fits all channels."""
    share = pixels / 255.0
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    part = linear @ _TO_XYZ.T / _WHITE
    root = np.where(part > 0.008856, np.cbrt(part), 7.787 * part + 16.0 / 116.0)
    light = np.where(part[..., 1] > 0.008856, 116.0 * np.cbrt(part[..., 1]) - 16.0, 903.3 * part[..., 1])
    a, b = 500.0 * (root[..., 0] - root[..., 1]), 200.0 * (root[..., 1] - root[..., 2])
    return np.stack([light * 2.55, a, b], -1)


def _from_lab(lab: np.ndarray) -> np.ndarray:
    middle = (lab[..., 0] / 2.55 + 16.0) / 116.0
    root = np.stack([middle + lab[..., 1] / 500.0, middle, middle - lab[..., 2] / 200.0], -1)
    part = np.where(root > 0.206893, root**3, (root - 16.0 / 116.0) / 7.787)
    linear = ((part * _WHITE) @ np.linalg.inv(_TO_XYZ).T).clip(0.0, None)
    share = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return share * 255.0


PERTURBATIONS: dict[str, Perturbation] = {
    found.name: found
    for found in (
        Perturbation("hue", "the colour itself, turned by a tenth of the colour wheel", _hue),
        Perturbation("saturation", "how strong colours are", _enhanced(ImageEnhance.Color, 0.7)),
        Perturbation("contrast", "how far light and dark lie apart", _enhanced(ImageEnhance.Contrast, 0.45)),
        Perturbation("brightness", "how light the picture is", _enhanced(ImageEnhance.Brightness, 0.8)),
        Perturbation("texture", "fine structure, smoothed away between edges", _texture),
        Perturbation("shape", "outlines, bent in waves", _shape),
        Perturbation("noise", "pixels, each shaken by itself", _noise),
    )
}
CHARACTERISTICS = ("hue", "saturation", "contrast", "brightness", "texture", "shape")
"""The alterations that describe a prototype in words; noise is for robustness alone."""
