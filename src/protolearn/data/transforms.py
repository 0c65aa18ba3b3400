"""From a picture to an encoder's input and back: which pixels became which, exactly.

Sizes of pictures are ``(width, height)`` as in ``picture.size``; sizes of inputs are ``(height, width)`` as in tensors.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from protolearn.data.annotations import Annotation
from protolearn.data.cases import as_tensor
from protolearn.errors import UsageError, nearest_names
from protolearn.structures import Box

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
RESIZES = ("squash", "crop")
T = TypeVar("T")


@dataclass(frozen=True)
class Preprocess:
    """How a picture becomes an encoder's input, without chance.

    Parameters
    ----------
    size : (int, int)
        Height and width of the input.
    mean, std : three floats
        Subtracted and divided by, after scaling to 0 to 1.
    resize : {"squash", "crop"}
        ``squash`` shows the whole picture and changes its shape; ``crop`` keeps the shape and shows the middle.
    interpolation : {"bicubic", "bilinear", "nearest", "box", "lanczos"}
        How pixels are resampled, once, with Pillow's antialiasing.
    crop_fraction : float
        With ``crop``, the share of the largest fitting window that is kept (timm's ``crop_pct``).

    Examples
    --------
    >>> preprocess = Preprocess(size=(32, 64))
    >>> preprocess(Image.new("RGB", (100, 80))).shape
    torch.Size([3, 32, 64])
    >>> preprocess.to_picture(Box(0, 0, 32, 32), (100, 80))
    Box(x0=0.0, y0=0.0, x1=50.0, y1=80.0)
    """

    size: tuple[int, int] = (224, 224)
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    resize: str = "squash"
    interpolation: str = "bicubic"
    crop_fraction: float = 1.0

    def __post_init__(self) -> None:
        for name in ("size", "mean", "std"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if len(self.size) != 2 or not all(isinstance(side, int) and side > 0 for side in self.size):
            raise UsageError(f"size must be two whole numbers above 0, height and width, got {self.size}")
        if len(self.mean) != 3 or len(self.std) != 3 or not all(value > 0 for value in self.std):
            raise UsageError(f"mean and std must be three numbers each, std above 0, got {self.mean} and {self.std}")
        if self.resize not in RESIZES:
            raise UsageError(f"unknown resize {self.resize!r}; {nearest_names(str(self.resize), RESIZES)}")
        if self.interpolation not in INTERPOLATIONS:
            raise UsageError(
                f"unknown interpolation {self.interpolation!r}; "
                f"{nearest_names(str(self.interpolation), INTERPOLATIONS)}"
            )
        if not 0 < self.crop_fraction <= 1:
            raise UsageError(f"crop_fraction must lie in (0, 1], got {self.crop_fraction}")

    def __call__(self, picture: Image.Image, generator: torch.Generator | None = None) -> Tensor:
        """Return the input ``(3, h, w)``; the generator is not used."""
        return self.normalise(self.resized(picture))

    def with_annotation(
        self, picture: Image.Image, annotation: Annotation, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Annotation]:
        """Return the input and the annotation in its pixels."""
        return self(picture), moved(annotation, self.window(picture.size), self.size)

    def window(self, picture_size: tuple[int, int]) -> Box:
        """Return the part of a picture of this (width, height) that fills the input."""
        width, height = picture_size
        if self.resize == "squash":
            return Box(0.0, 0.0, float(width), float(height))
        scale = max(self.size[1] / width, self.size[0] / height) / self.crop_fraction
        w, h = min(self.size[1] / scale, width), min(self.size[0] / scale, height)
        left, top = (width - w) / 2, (height - h) / 2
        return Box(left, top, left + w, top + h)

    def resized(self, picture: Image.Image, window: Box | None = None) -> Image.Image:
        """Return a window of the picture (by default :meth:`window`) at the input's size."""
        box = _within(window or self.window(picture.size), picture.size)
        return picture.resize((self.size[1], self.size[0]), INTERPOLATIONS[self.interpolation], box=box)

    def normalise(self, picture: Image.Image) -> Tensor:
        """Return a picture as a normalised float tensor."""
        mean, std = (torch.tensor(values, dtype=torch.float32).view(3, 1, 1) for values in (self.mean, self.std))
        return as_tensor(picture).sub_(mean).div_(std)

    def unnormalise(self, values: Tensor) -> Image.Image:
        """Return an input ``(3, h, w)`` as the picture it shows."""
        mean, std = (torch.tensor(v, dtype=torch.float32).view(3, 1, 1) for v in (self.mean, self.std))
        shown = (values.detach().float().cpu() * std + mean).clamp(0, 1).mul(255).round()
        return Image.fromarray(shown.to(torch.uint8).permute(1, 2, 0).numpy())

    def to_picture(self, box: Box, picture_size: tuple[int, int]) -> Box:
        """Map a box in input pixels to a picture of this (width, height), clipped to what the input shows of it."""
        window = self.window(picture_size)
        return _clipped(_mapped(box, Box(0.0, 0.0, float(self.size[1]), float(self.size[0])), window), window)

    def to_input(self, box: Box, picture_size: tuple[int, int]) -> Box:
        """Map a box in a picture of this (width, height) to input pixels, clipped: the inverse of ``to_picture``."""
        whole = Box(0.0, 0.0, float(self.size[1]), float(self.size[0]))
        return _clipped(_mapped(box, self.window(picture_size), whole), whole)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return to_plain(self)

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Preprocess:
        """Build from :meth:`to_dict`'s output."""
        return from_plain(cls, plain)


def moved(annotation: Annotation, window: Box, size: tuple[int, int]) -> Annotation:
    """Return an annotation as seen in a window of the picture resized to ``size`` (height, width).

    Boxes are clipped and dropped when nothing of them is left; points outside become invisible.
    """
    whole = Box(0.0, 0.0, float(size[1]), float(size[0]))
    boxes = np.array([_mapped(Box(*box), window, whole) for box in annotation.boxes.tolist()])
    points = annotation.points.copy()
    points[:, 0] = (points[:, 0] - window.x0) * (size[1] / (window.x1 - window.x0))
    points[:, 1] = (points[:, 1] - window.y0) * (size[0] / (window.y1 - window.y0))
    mask = annotation.mask
    if mask is not None:
        picture = Image.fromarray(mask)
        box = _within(window, picture.size)
        mask = np.asarray(picture.resize((size[1], size[0]), Image.Resampling.NEAREST, box=box))
    return clipped(dataclasses.replace(annotation, boxes=boxes, points=points, mask=mask), size)


def clipped(annotation: Annotation, size: tuple[int, int]) -> Annotation:
    """Clip boxes to a canvas of (height, width), drop the empty ones and call points outside invisible."""
    height, width = size
    boxes = annotation.boxes.clip(min=0, max=np.array([width, height, width, height]))
    kept = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    labels = tuple(name for name, keep in zip(annotation.box_labels, kept.tolist(), strict=False) if keep)
    points = annotation.points.copy()
    inside = (points[:, 0] >= 0) & (points[:, 0] < width) & (points[:, 1] >= 0) & (points[:, 1] < height)
    points[:, 2] *= inside
    return dataclasses.replace(annotation, boxes=boxes[kept], box_labels=labels, points=points)


def _mapped(box: Box, source: Box, target: Box) -> Box:
    across = (target.x1 - target.x0) / (source.x1 - source.x0)
    down = (target.y1 - target.y0) / (source.y1 - source.y0)
    return Box(
        target.x0 + (box.x0 - source.x0) * across,
        target.y0 + (box.y0 - source.y0) * down,
        target.x0 + (box.x1 - source.x0) * across,
        target.y0 + (box.y1 - source.y0) * down,
    )


def _clipped(box: Box, to: Box) -> Box:
    x0, x1 = (min(max(x, to.x0), to.x1) for x in (box.x0, box.x1))
    y0, y1 = (min(max(y, to.y0), to.y1) for y in (box.y0, box.y1))
    return Box(x0, y0, x1, y1)


def _within(window: Box, picture_size: tuple[int, int]) -> tuple[float, float, float, float]:
    return _clipped(window, Box(0.0, 0.0, float(picture_size[0]), float(picture_size[1])))


def to_plain(settings: Any) -> dict[str, Any]:
    """Return a settings dataclass as plain JSON types."""
    plain = dataclasses.asdict(settings)
    return {name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()}


def from_plain(cls: type[T], plain: Mapping[str, Any]) -> T:
    """Build a settings dataclass from plain JSON types, refusing names it does not have."""
    names = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    unknown = [name for name in plain if name not in names]
    if unknown:
        raise UsageError(f"{cls.__name__} has no setting {unknown[0]!r}; {nearest_names(str(unknown[0]), names)}")
    return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()})
