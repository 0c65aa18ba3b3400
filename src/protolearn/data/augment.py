"""Chance views of a picture, with boxes, key points and masks travelling along.

The draws are torchvision's, taken from a passed generator: the global random state is left as it was.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from protolearn.data.annotations import Annotation
from protolearn.data.transforms import Preprocess, clipped, from_plain, moved, to_plain
from protolearn.errors import UsageError
from protolearn.structures import Box


@dataclass(frozen=True)
class Augment:
    """What may happen to a picture; the defaults are ProtoPNet's (rotation, skew or shear, each with a random flip).

    Parameters
    ----------
    flip : float
        Probability of a mirror image.
    rotation, shear : float
        Largest angle in degrees, both ways.
    skew : float
        Perspective distortion, 0 to below 1.
    one_of : bool
        Draw one of rotation, skew and shear for a view, as the paper does, or apply all of them.
    crop : (float, float) or None
        Smallest and largest share of the picture's area that a random window keeps.
    ratio : (float, float)
        Width over height of that window.
    brightness, contrast, saturation, hue : float
        Strength of colour changes, as torchvision's ``ColorJitter`` counts them.
    recolour : float
        Probability that a view's colours change at all.
    grey : float
        Probability that a view loses its colours.
    elastic, elastic_sigma : float
        Elastic deformation (Simard et al., 2003), applied last: every pixel moves by ``elastic`` times uniform noise
        from -1 to 1, blurred with a Gaussian of this deviation in pixels. 0 = none. The prototype autoencoder's is 20
        and 4, on 28 x 28 pixels.

    Examples
    --------
    >>> generator = torch.Generator().manual_seed(0)
    >>> Augment(rotation=30)(Image.new("RGB", (12, 8)), generator).size
    (12, 8)
    """

    flip: float = 0.5
    rotation: float = 15.0
    shear: float = 10.0
    skew: float = 0.2
    one_of: bool = True
    crop: tuple[float, float] | None = None
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    recolour: float = 1.0
    grey: float = 0.0
    elastic: float = 0.0
    elastic_sigma: float = 4.0

    def __post_init__(self) -> None:
        if not 0 <= self.flip <= 1 or not 0 <= self.skew < 1:
            raise UsageError(f"flip must lie in 0 to 1 and skew in 0 to below 1, got {self.flip} and {self.skew}")
        if not 0 <= self.rotation <= 180 or not 0 <= self.shear < 90:
            raise UsageError(
                f"rotation must lie in 0 to 180 and shear in 0 to 90, got {self.rotation} and {self.shear}"
            )
        if min(self.brightness, self.contrast, self.saturation) < 0 or not 0 <= self.hue <= 0.5:
            raise UsageError("brightness, contrast and saturation must be at least 0, hue must lie in 0 to 0.5")
        if not 0 <= self.recolour <= 1 or not 0 <= self.grey <= 1:
            raise UsageError(f"recolour and grey must lie in 0 to 1, got {self.recolour} and {self.grey}")
        if not 0 <= self.elastic < float("inf") or not 0 < self.elastic_sigma <= 100:
            raise UsageError(
                f"elastic must be at least 0 and elastic_sigma in (0, 100], got {self.elastic} and {self.elastic_sigma}"
            )
        if self.crop is not None:
            object.__setattr__(self, "crop", tuple(self.crop))
            if len(self.crop) != 2 or not 0 < self.crop[0] <= self.crop[1] <= 1:
                raise UsageError(f"crop must be two rising shares of the area in (0, 1], got {self.crop}")
        object.__setattr__(self, "ratio", tuple(self.ratio))
        if len(self.ratio) != 2 or not 0 < self.ratio[0] <= self.ratio[1]:
            raise UsageError(f"ratio must be two rising numbers above 0, got {self.ratio}")

    def __call__(self, picture: Image.Image, generator: torch.Generator | None = None) -> Image.Image:
        """Return a view of the picture in its own size; without a generator the picture itself."""
        return self.apply(picture, Annotation(), generator)[0]

    def apply(
        self, picture: Image.Image, annotation: Annotation, generator: torch.Generator | None = None
    ) -> tuple[Image.Image, Annotation]:
        """Return a view of the picture in its own size, and the annotation in its pixels."""
        if generator is None:
            return picture, annotation
        with drawing_from(generator):
            window = self.window(picture)
            if window is not None:
                size = (picture.height, picture.width)
                picture = picture.resize(picture.size, Image.Resampling.BICUBIC, box=window)
                annotation = moved(annotation, window, size)
            return self.distort(picture, annotation)

    def window(self, picture: Image.Image) -> Box | None:
        """Draw the random window, from torch's global generator."""
        if self.crop is None:
            return None
        from torchvision.transforms import v2

        drawn = v2.RandomResizedCrop(1, scale=self.crop, ratio=self.ratio).make_params([picture])
        left, top = float(drawn["left"]), float(drawn["top"])
        return Box(left, top, left + drawn["width"], top + drawn["height"])

    def distort(self, picture: Image.Image, annotation: Annotation, colours: int = 0) -> tuple[Image.Image, Annotation]:
        """Draw and apply everything but the window, from torch's global generator.

        With another number for ``colours`` the same state of the generator gives the same places in other colours.

        Corners of boxes and key points travel as boxes without area: torchvision's ``KeyPoints`` are mirrored about the
        centre of pixels and its boxes about their edges, which is one pixel apart; our coordinates are the boxes'.
        """
        from torchvision import tv_tensors

        size = (picture.height, picture.width)
        chain = self._chain(_border_colour(picture), lines=min(size) < 2, colours=colours)
        corners = annotation.boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 2)
        places = torch.from_numpy(np.concatenate([corners, annotation.points[:, :2]])).float().repeat(1, 2)
        carried = tv_tensors.BoundingBoxes(places, format="XYXY", canvas_size=size, clamping_mode=None)  # type: ignore[call-overload]
        if annotation.mask is None:
            picture, carried = chain(picture, carried)
            mask = None
        else:
            regions = tv_tensors.Mask(torch.from_numpy(annotation.mask.copy())[None])
            picture, carried, regions = chain(picture, carried, regions)
            mask = regions.as_subclass(Tensor)[0].numpy()
        found = carried.as_subclass(Tensor).double().numpy()[:, :2]
        if self.elastic:
            picture, found, mask = self._bent(picture, found, mask)
        quads = found[: len(corners)].reshape(-1, 4, 2)
        boxes = np.concatenate([quads.min(1), quads.max(1)], axis=1)
        points = np.concatenate([found[len(corners) :], annotation.points[:, 2:]], axis=1)
        return picture, clipped(dataclasses.replace(annotation, boxes=boxes, points=points, mask=mask), size)

    def _chain(self, fill: list[int], *, lines: bool, colours: int) -> Any:
        from torchvision import tv_tensors
        from torchvision.transforms import v2

        fills: Any = {Image.Image: fill, tv_tensors.Mask: 0, "others": 0}
        smooth = v2.InterpolationMode.BILINEAR
        shapes: list[Any] = []
        if self.rotation:
            shapes.append(v2.RandomAffine(self.rotation, interpolation=smooth, fill=fills))
        if self.skew and not lines:  # a line of pixels has no perspective
            shapes.append(v2.RandomPerspective(self.skew, p=1.0, interpolation=smooth, fill=fills))
        if self.shear:
            angles = [-self.shear, self.shear, -self.shear, self.shear]
            shapes.append(v2.RandomAffine(0, shear=angles, interpolation=smooth, fill=fills))
        if self.one_of and len(shapes) > 1:
            shapes = [v2.RandomChoice(shapes)]
        jitter: Any = v2.ColorJitter(self.brightness, self.contrast, self.saturation, self.hue)
        if self.recolour < 1 or self.grey:
            jitter = v2.Compose([v2.RandomApply([jitter], self.recolour), v2.RandomGrayscale(self.grey)])

        def other(*parts: Any) -> Any:
            jitter(*parts)  # takes from the generator what the first colours take: later draws are the same
            generator = torch.Generator()
            generator.set_state(torch.default_generator.get_state())
            generator.manual_seed(int(torch.randint(2**62, (), generator=generator)) + colours)
            with drawing_from(generator):
                return jitter(*parts)

        return v2.Compose([*shapes, v2.RandomHorizontalFlip(self.flip), other if colours else jitter])

    def _bent(
        self, picture: Image.Image, places: np.ndarray, mask: np.ndarray | None
    ) -> tuple[Image.Image, np.ndarray, np.ndarray | None]:
        """Draw and apply the elastic deformation, to places ``(N, 2)`` too."""
        height, width = picture.height, picture.width
        reach = int(4 * self.elastic_sigma + 0.5)
        bell = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / self.elastic_sigma).square())
        bell /= bell.sum()
        moves = torch.rand(2, 1, height, width) * 2 - 1
        moves = F.conv2d(moves, bell.view(1, 1, -1, 1), padding=(reach, 0))  # beyond the border nothing moves
        moves = self.elastic * F.conv2d(moves, bell.view(1, 1, 1, -1), padding=(0, reach))[:, 0]  # (x and y, H, W)

        def at(points: Tensor, values: Tensor, mode: str = "bilinear") -> Tensor:
            """Return values (K, H, W) at places (..., 2) in pixels, whose centres lie on halves."""
            unit = points.reshape(1, 1, -1, 2) / torch.tensor([width, height]) * 2 - 1
            found = F.grid_sample(values[None], unit, mode=mode, padding_mode="border", align_corners=False)
            return found[0, :, 0]

        down, across = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
        seen = torch.stack([across + moves[0], down + moves[1]], dim=-1)
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float()
        bent = at(seen, pixels).round().clamp(0, 255).to(torch.uint8).view(-1, height, width)
        if mask is not None:
            mask = at(seen, torch.from_numpy(mask.copy())[None].float(), "nearest").view(height, width).numpy()
            mask = mask.astype(np.uint8)
        # a pixel shows what was at its place plus its move: what was at a place is found by going back, step by step
        start = torch.from_numpy(places).float()
        goal = start
        for _ in range(20):
            goal = start - at(goal, moves).T
        return Image.fromarray(bent.permute(1, 2, 0).numpy()), goal.double().numpy(), mask

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return to_plain(self)

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Augment:
        """Build from :meth:`to_dict`'s output."""
        return from_plain(cls, plain)


@dataclass(frozen=True)
class Augmented:
    """A transform: random window and resize in one resampling, the other draws, normalise.

    Without a generator nothing is drawn and the result is ``preprocess(picture)``. A random window is drawn from the
    whole picture, also where ``preprocess`` shows its middle.

    Parameters
    ----------
    preprocess : Preprocess
        The encoder's own.
    augment : Augment
        What may happen.
    colours : int
        Two views of one draw that differ in this number show the same places in other colours.
    """

    preprocess: Preprocess = field(default_factory=Preprocess)
    augment: Augment = field(default_factory=Augment)
    colours: int = 0

    def __call__(self, picture: Image.Image, generator: torch.Generator | None = None) -> Tensor:
        """Return a view as the encoder's input ``(3, h, w)``."""
        return self.with_annotation(picture, Annotation(), generator)[0]

    def with_annotation(
        self, picture: Image.Image, annotation: Annotation, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Annotation]:
        """Return a view and the annotation in its pixels."""
        if generator is None:
            return self.preprocess.with_annotation(picture, annotation)
        with drawing_from(generator):
            window = self.augment.window(picture) or self.preprocess.window(picture.size)
            view, seen = self.augment.distort(
                self.preprocess.resized(picture, window),
                moved(annotation, window, self.preprocess.size),
                self.colours,
            )
        return self.preprocess.normalise(view), seen

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {"preprocess": self.preprocess.to_dict(), "augment": self.augment.to_dict()}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Augmented:
        """Build from :meth:`to_dict`'s output."""
        parts = from_plain(cls, plain)
        return cls(Preprocess.from_dict(parts.preprocess), Augment.from_dict(parts.augment))  # type: ignore[arg-type]


@contextlib.contextmanager
def drawing_from(generator: torch.Generator) -> Iterator[None]:
    """Let code that draws from torch's global CPU generator draw from this one; the global state is restored.

    Unlike ``torch.manual_seed`` this leaves the generators of accelerators alone.
    """
    seed = int(torch.randint(2**62, (), generator=generator))
    before = torch.default_generator.get_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.default_generator.set_state(before)


def _border_colour(picture: Image.Image) -> list[int]:
    """Return the median colour of the picture's edge: what uncovered corners are filled with."""
    pixels = np.asarray(picture)
    edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    return [int(value) for value in np.median(edge, axis=0)]
