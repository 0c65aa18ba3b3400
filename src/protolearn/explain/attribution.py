"""Which pixels a prototype's similarity, or a class's logit, depends on: attributions by captum, and the plain map.

The picture of a prototype is usually its similarity map, enlarged. That map says where the *features* matched. It does
not say which pixels made those features. Attribution methods ask the network itself, and they do not agree with each
other either, so :func:`protolearn.explain.faithfulness.compare_attributions` measures which of them to believe.

| method | what a pixel's number is |
|---|---|
| ``upsample`` | the similarity map, enlarged (bicubic); not asked of the pixels at all |
| ``saliency`` | size of the gradient, summed over channels (Simonyan et al., 2014) |
| ``smooth_grad`` | the same, averaged over noisy copies of the input (Smilkov et al., 2017) |
| ``integrated_gradients`` | its part in the difference to a blank input; parts sum to it (Sundararajan et al., 2017) |
| ``occlusion`` | how much the number falls when a window around it is covered (Zeiler and Fergus, 2014) |
| ``grad_cam`` | the encoder's last map weighed by its mean gradient, enlarged; Selvaraju et al., 2017 |

``grad_cam`` is not cut at 0 as it usually is: where a similarity rises as features shrink, nothing would be left.

Prototypical relevance propagation (PRP) is not offered. It needs a rule for every layer, the comparison with the
prototype included. Captum's LRP has rules for a few layer classes and none for a comparison, refuses a residual network
for its identities already, and leaves marks in the layers of the model, which nothing here may touch.

At an exact match every gradient of a distance is 0: a prototype that is a token of this very picture gets an empty map
from ``saliency`` and ``grad_cam``. ``integrated_gradients`` and ``occlusion`` do not have this blind spot.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from protolearn.core.model import PrototypeModel
from protolearn.errors import MissingExtra, UsageError, look_up
from protolearn.explain.gradients import (
    Asked,
    Class,
    Prototype,
    asking,
    best_places,
    classes_of,
    noisy_slopes,
    placed,
    rows_of,
    sound,
)
from protolearn.explain.passes import device_of
from protolearn.explain.regions import upsample


@dataclass(frozen=True)
class Settings:
    """How the methods work.

    Attributes
    ----------
    fill : float
        What a blank or covered pixel is; 0 is the mean colour where pictures are centred.
    steps : int
        Points between the blank input and the input, for integrated gradients.
    draws : int
        Noisy copies, for smooth gradients.
    noise : float
        Their standard deviation, as a share of the range of each input.
    window : int, optional
        Side of the covered window in pixels; that of a token's cell by default. It moves by half of itself.
    batch_size : int
        Inputs that go through the model at a time.
    seed : int
        Of the noise.
    """

    fill: float = 0.0
    steps: int = 32
    draws: int = 16
    noise: float = 0.1
    window: int | None = None
    batch_size: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        whole = {"steps": self.steps, "draws": self.draws, "batch_size": self.batch_size, "window": self.window}
        for name, value in whole.items():
            if value is not None and value < 1:
                raise UsageError(f"{name} must be at least 1, got {value}")
        if not self.noise >= 0 or not math.isfinite(self.noise):
            raise UsageError(f"noise must be a number of at least 0, got {self.noise}")


@dataclass(frozen=True)
class _Job:
    """A few inputs and what is asked of each."""

    asked: Asked
    inputs: Tensor
    rows: Tensor
    places: Tensor
    settings: Settings
    generator: torch.Generator

    @property
    def arguments(self) -> tuple[Tensor, Tensor]:
        return self.rows, self.places

    def score(self, inputs: Tensor) -> Tensor:
        return self.asked(inputs, self.rows, self.places)


def attribute(
    model: PrototypeModel,
    inputs: Tensor,
    *,
    prototype: Prototype | None = None,
    target: Class | None = None,
    method: str = "integrated_gradients",
    place: str = "fixed",
    settings: Settings | None = None,
) -> Tensor:
    """Return which pixels of each input one number depends on.

    Parameters
    ----------
    model : PrototypeModel
        Left as it is, gradients of its parameters included.
    inputs : Tensor
        ``(B, C, H, W)`` pictures as the encoder takes them.
    prototype : int or one for each input, optional
        Ids: ask about a prototype's similarity.
    target : int, str or one for each input, optional
        Classes: ask about a class's logit instead.
    method : str
        See the table of this module.
    place : {"fixed", "free"}
        Of a prototype's similarity: at the place where the unaltered input matches best, or wherever an altered one
        does.
    settings : Settings, optional
        How the methods work.

    Returns
    -------
    Tensor
        ``(B, H, W)``; larger = speaks more for the match. ``integrated_gradients``, ``occlusion`` and ``upsample`` may
        be negative. Numbers of different methods are not on one scale.

    Raises
    ------
    UsageError
        If the question or method cannot be right; the nearest names are suggested.
    DataError
        If an input holds NaN.
    MissingExtra
        If captum is not installed (``upsample`` and ``smooth_grad`` do without).

    Examples
    --------
    >>> from protolearn.encoders import SmallEncoder
    >>> from protolearn.methods import get_method
    >>> model = get_method("protopnet")(prototypes_per_class=1, dim=8).build(SmallEncoder(size=16), 3)
    >>> attribute(model, torch.rand(2, 3, 16, 16), prototype=1, method="upsample").shape
    torch.Size([2, 16, 16])
    """
    settings = Settings() if settings is None else settings
    make = method_named(method)
    inputs = sound(inputs).to(device_of(model))
    if (prototype is None) == (target is None):
        raise UsageError("name a prototype or a target class, and not both")
    if prototype is None and method == "upsample":
        raise UsageError("upsample enlarges a prototype's map, and a class has none: name a prototype")
    fixed = placed(place)
    if prototype is not None:
        what, rows = "similarity", rows_of(model, prototype, len(inputs))
    else:
        assert target is not None
        what, rows = "logit", classes_of(model, target, len(inputs))
    asked = Asked(model, what, fixed=fixed)
    found = [inputs.new_zeros(0, *inputs.shape[2:])]
    with asking(model):
        for start in range(0, len(inputs), settings.batch_size):
            part = slice(start, start + settings.batch_size)
            places = best_places(model, inputs[part], rows[part]) if what == "similarity" else rows[part]
            draw = torch.Generator().manual_seed(settings.seed)
            found.append(make(_Job(asked, inputs[part], rows[part], places, settings, draw)).detach())
    return torch.cat(found)


def method_named(name: str) -> Callable[[_Job], Tensor]:
    """Return what makes maps by a method's name.

    Raises
    ------
    UsageError
        If there is none, with the reason where a known one is not offered.
    """
    if name.lower() in ("lrp", "prp"):
        raise UsageError(
            f"{name} is not offered: captum's relevance propagation has no rule for a comparison with a prototype and "
            f"leaves marks in the layers; choose from {', '.join(map(repr, METHODS))}"
        )
    return look_up("attribution method", name, METHODS)


def _captum() -> Any:
    try:
        import captum.attr
    except ImportError as error:
        raise MissingExtra("captum", "attribution", "attribution to pixels") from error
    return captum.attr


def _upsample(job: _Job) -> Tensor:
    model = job.asked.model
    with torch.no_grad():
        tokens = model.embed(model.encode(job.inputs))
        if tokens.grid is None or len(tokens.grid) != 2:
            raise UsageError("what is compared in this model is not laid out in a picture: there is no map to enlarge")
        each = torch.arange(len(job.rows), device=job.rows.device)
        maps = model.maps(tokens)[each, job.rows].unsqueeze(1)
        return upsample(maps, tokens.grid, job.inputs.shape[2:]).squeeze(1)


def _saliency(job: _Job) -> Tensor:
    leaf, saliency = job.inputs.clone().requires_grad_(True), _captum().Saliency(job.asked)
    with _differentiable("this model gives no gradients of its inputs: its encoder is not differentiable"):
        return _over_channels(saliency.attribute(leaf, additional_forward_args=job.arguments))


def _smooth_grad(job: _Job) -> Tensor:
    return noisy_slopes(job.score, job.inputs, job.settings.draws, job.settings.noise, job.generator)


def _integrated_gradients(job: _Job) -> Tensor:
    gradients = _captum().IntegratedGradients(job.asked)
    with _differentiable("this model gives no gradients of its inputs: its encoder is not differentiable"):
        found = gradients.attribute(
            job.inputs.clone(),
            baselines=job.settings.fill,
            additional_forward_args=job.arguments,
            n_steps=job.settings.steps,
            internal_batch_size=max(job.settings.batch_size, len(job.inputs)),
        )
    return _over_channels(found)


def _occlusion(job: _Job) -> Tensor:
    channels = job.inputs.shape[1]
    sides = _window(job)
    steps = tuple(max(1, side // 2) for side in sides)
    with torch.no_grad():
        found = (
            _captum()
            .Occlusion(job.asked)
            .attribute(
                job.inputs,
                sliding_window_shapes=(channels, *sides),
                strides=(channels, *steps),
                baselines=job.settings.fill,
                additional_forward_args=job.arguments,
                perturbations_per_eval=max(1, job.settings.batch_size // len(job.inputs)),
            )
        )
    return found.mean(1)


def _window(job: _Job) -> tuple[int, int]:
    height, width = job.inputs.shape[2:]
    if job.settings.window is not None:
        return min(job.settings.window, height), min(job.settings.window, width)
    grid = _grid(job)
    return max(1, round(height / grid[0])), max(1, round(width / grid[1]))


def _grid(job: _Job) -> tuple[int, ...]:
    with torch.no_grad():
        grid = job.asked.model.encode(job.inputs[:1]).grid
    if grid is None or len(grid) != 2:
        raise UsageError("the tokens of this encoder are not laid out in a picture: it has no map and no cells")
    return grid


def _grad_cam(job: _Job) -> Tensor:
    _grid(job)
    layer = _captum().LayerGradCam(job.asked, job.asked.last)
    with _differentiable("grad_cam: this model does not read its number off the encoder's map"):
        found = layer.attribute(job.inputs.clone(), additional_forward_args=job.arguments)
    return upsample(found.detach().flatten(2), found.shape[2:], job.inputs.shape[2:]).squeeze(1)


@contextmanager
def _differentiable(otherwise: str) -> Iterator[None]:
    """Turn torch's complaint that nothing depends on what is differentiated into one line."""
    try:
        yield
    except RuntimeError as error:
        if "not have been used" not in str(error) and "does not require grad" not in str(error):
            raise
        raise UsageError(otherwise) from error


def _over_channels(found: Tensor) -> Tensor:
    return found.detach().sum(1)


METHODS: dict[str, Callable[[_Job], Tensor]] = {
    "upsample": _upsample,
    "saliency": _saliency,
    "smooth_grad": _smooth_grad,
    "integrated_gradients": _integrated_gradients,
    "occlusion": _occlusion,
    "grad_cam": _grad_cam,
}
