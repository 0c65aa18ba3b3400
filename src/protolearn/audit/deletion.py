"""Deletion and insertion: what becomes of a prediction when the places that are said to matter go, or come first.

Source: the deletion measure of RISE (Petsiuk et al., 2018) as ST-ProtoPNet's evaluation uses it. B pictures, R orders
of their pixels, T steps, C classes.

A curve means nothing alone: any picture that is taken apart loses its class sooner or later. Read it beside the curves
of the inverse order and of random ones. Pixels taken out here and there leave noise of a kind that no model has seen,
and a class is lost in it much sooner than in a picture with a hole; a random map of the same few cells makes holes as
large as the saliency does, and is the fairer of the two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from protolearn.audit.blanking import exchanged, substrate
from protolearn.audit.heat import uneven
from protolearn.core.maps import upsample_maps
from protolearn.core.model import PrototypeModel
from protolearn.core.modes import evaluating
from protolearn.errors import UsageError

ORDERS = ("salient first", "inverse", "random pixels", "random cells")
"""The orders of pixels that :func:`deletion` tries, as its curves have them; the last where a grid is given."""


def shuffles(seeds: Sequence[int], pixels: int) -> Tensor:
    """Return ``(B, pixels)`` int64: a random order of the pixels for each seed, whatever the others are.

    Examples
    --------
    >>> torch.equal(shuffles([3, 4], 9)[1:], shuffles([4], 9))
    True
    """
    drawn = [torch.randperm(pixels, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(drawn) if drawn else torch.zeros(0, pixels, dtype=torch.int64)


def random_maps(seeds: Sequence[int], grid: Sequence[int], size: Sequence[int]) -> Tensor:
    """Return ``(B, H, W)``: a random map of ``(h, w)`` cells for each seed, enlarged (bicubic).

    Examples
    --------
    >>> random_maps([0, 1], (7, 7), (32, 32)).shape
    torch.Size([2, 32, 32])
    """
    drawn = [torch.rand(*grid, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return upsample_maps(torch.stack(drawn) if drawn else torch.zeros(0, *grid), size)


def pixel_ranks(saliency: Tensor, ties: Tensor | None = None) -> Tensor:
    """Return ``(B, H, W)`` int64: the place of each pixel when they are sorted by falling saliency, 0 first.

    Parameters
    ----------
    saliency : Tensor
        ``(B, H, W)``.
    ties : Tensor, optional
        ``(B, H*W)`` an order of the pixels, such as one of :func:`shuffles`, that equally salient ones keep; by default
        they go row by row, the upper left first.

    Examples
    --------
    >>> pixel_ranks(torch.tensor([[[0.1, 0.9], [0.5, 0.0]]])).tolist()
    [[[2, 0], [1, 3]]]
    """
    flat = saliency.flatten(1)
    if ties is None:
        order = flat.argsort(dim=1, descending=True, stable=True)
    else:
        order = ties.gather(1, flat.gather(1, ties).argsort(dim=1, descending=True, stable=True))
    return _places(order).view(saliency.shape)


def _places(order: Tensor) -> Tensor:
    """Return the inverse of permutations ``(B, N)``."""
    places = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places)


def area(curves: Tensor) -> Tensor:
    """Return ``(...)``: the area under curves ``(..., T)`` by the trapezoid rule, over a width of 1.

    Examples
    --------
    >>> area(torch.tensor([1.0, 0.5, 0.0])).item()
    0.5
    """
    return (curves.sum(-1) - (curves[..., 0] + curves[..., -1]) / 2) / (curves.shape[-1] - 1)


@dataclass(frozen=True, eq=False)
class Deletion:
    """What was found by taking pixels out, or putting them in.

    Attributes
    ----------
    curves : Tensor
        ``(B, R, T + 1)`` probability of the target, in the orders of ``ORDERS``: 4, or 3 without a grid.
    areas : Tensor
        ``(B, R)`` under the curves, over a width of 1; NaN where the saliency is the same everywhere or not finite.
    counts : Tensor
        ``(T + 1,)`` pixels exchanged at each point of a curve.
    """

    curves: Tensor
    areas: Tensor
    counts: Tensor


def deletion(
    score: Callable[[Tensor], Tensor],
    inputs: Tensor,
    saliency: Tensor,
    targets: Tensor,
    *,
    steps: int = 28,
    step: int | None = None,
    kind: str = "zero",
    insert: bool = False,
    seeds: Sequence[int],
    grid: Sequence[int] | None = None,
    at_once: int | None = None,
) -> Deletion:
    """Take the most salient pixels out of pictures step by step, and see how long the class stays probable.

    Parameters
    ----------
    score : callable
        From inputs ``(n, C, H, W)`` to probabilities ``(n, classes)``.
    inputs : Tensor
        ``(B, C, H, W)``; not changed.
    saliency : Tensor
        ``(B, H, W)``.
    targets : Tensor
        ``(B,)`` int64: the class that is predicted for the whole picture.
    steps : int
        In how many steps, as equal as whole pixels allow: 1792 pixels of 224 x 224 by default.
    step : int, optional
        Pixels a step instead; the last may hold fewer.
    kind : {"zero", "blur"}
        What a pixel is without what it shows, as :func:`substrate` says.
    insert : bool
        Begin with nothing and put the most salient pixels in first.
    seeds : sequence of int
        One a picture: of its random orders. Equally salient pixels keep that of its pixels.
    grid : sequence of int, optional
        ``(h, w)`` cells of the maps that the saliency was made of, for a random order of cells.
    at_once : int, optional
        Pictures in one call of ``score``; few large ones on a processor by default.

    Examples
    --------
    A model that sees the upper left pixel alone:

    >>> def score(inputs):
    ...     return torch.stack([inputs[:, 0, 0, 0], 1 - inputs[:, 0, 0, 0]], 1)
    >>> picture, place = torch.ones(1, 1, 2, 2), torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    >>> found = deletion(score, picture, place, torch.tensor([0]), step=1, seeds=[0])
    >>> found.curves[0, 0].tolist(), found.areas[0, 0].item()
    ([1.0, 0.0, 0.0, 0.0, 0.0], 0.125)
    """
    fit = inputs.ndim == 4 and saliency.shape == (len(inputs), *inputs.shape[2:])
    if not fit or not len(targets) == len(seeds) == len(inputs):
        raise UsageError(
            f"inputs {tuple(inputs.shape)} must be (B, C, H, W), saliency {tuple(saliency.shape)} (B, H, W), targets "
            f"{tuple(targets.shape)} (B,) and seeds as many, got {len(seeds)}"
        )
    pixels = int(inputs.shape[2] * inputs.shape[3])
    if steps < 1 or (step is not None and step < 1):
        raise UsageError(f"there is at least one step, and it takes at least one pixel, got {steps} and {step}")
    chance = shuffles(seeds, pixels).to(saliency.device)
    salient = pixel_ranks(saliency, chance)
    ranks = [salient, pixels - 1 - salient, _places(chance).view(saliency.shape)]
    if grid is not None:
        ranks.append(pixel_ranks(random_maps(seeds, grid, inputs.shape[2:]).to(saliency.device), chance))
    if step is None:
        counts = (torch.arange(steps + 1, dtype=torch.float64) * pixels / steps).round().long()
    else:
        counts = (torch.arange(math.ceil(pixels / step) + 1) * step).clamp_max(pixels)
    blank = substrate(inputs, kind)
    start, end = (blank, inputs) if insert else (inputs, blank)
    curves = exchanged(score, start, end, torch.stack(ranks, 1), counts, targets, at_once=at_once)
    areas = area(curves.double()).masked_fill(~uneven(saliency.double()).unsqueeze(1), float("nan"))
    return Deletion(curves, areas, counts)


@torch.no_grad()
def deletion_curve(
    model: PrototypeModel, inputs: Tensor, order: Tensor, targets: Tensor, *, fill: float = 0.0
) -> Tensor:
    """Return the target's logit ``(B, K + 1)`` with none, one, ... K places taken out, in eval mode.

    Parameters
    ----------
    model : PrototypeModel
        Left as it is.
    inputs : Tensor
        ``(B, C, H, W)`` pictures as the encoder takes them.
    order : Tensor
        ``(B, K)`` int64 positions of tokens; each stands for its cell of the picture.
    targets : Tensor
        ``(B,)`` int64 classes.
    fill : float
        What a cell becomes; 0 is the mean colour where pictures are centred.

    Raises
    ------
    ValueError
        If the encoder's tokens have no place in its input.

    Examples
    --------
    >>> from protolearn.encoders import SmallEncoder
    >>> from protolearn.methods import get_method
    >>> model = get_method("protopnet")(prototypes_per_class=1).build(SmallEncoder(size=16), 2)
    >>> curve = deletion_curve(model, torch.rand(3, 3, 16, 16), torch.tensor([[0, 5]] * 3), torch.tensor([0, 1, 0]))
    >>> curve.shape
    torch.Size([3, 3])
    """
    with evaluating(model):
        ranks = _cell_ranks(model, inputs, order)
        counts, blank = torch.arange(order.shape[1] + 1), torch.full_like(inputs, fill)
        return exchanged(lambda shown: model(shown).logits, inputs, blank, ranks, counts, targets).squeeze(1)


def _cell_ranks(model: PrototypeModel, inputs: Tensor, order: Tensor) -> Tensor:
    """Return ``(B, 1, H, W)``: at which place of the order each pixel goes, K where it never does."""
    tokens, most = model.encode(inputs[:1]), order.shape[1]
    when = order.new_full((len(inputs), tokens.values.shape[1]), most)
    when.scatter_(1, order, torch.arange(most, device=order.device).expand_as(order))
    ranks = order.new_full((len(inputs), 1, *inputs.shape[2:]), most)
    for position in order.unique().tolist():
        cell = tokens.region(position)
        if cell is None:
            raise ValueError("these tokens have no place in the input: nothing can be taken out of it")
        x0, y0, x1, y1 = (round(side) for side in cell)
        # cells of neighbours may overlap: a pixel goes with the first of them
        ranks[..., y0:y1, x0:x1] = torch.minimum(ranks[..., y0:y1, x0:x1], when[:, position, None, None, None])
    return ranks
