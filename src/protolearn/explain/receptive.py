"""How far a place really sees: the pixels behind a match, beside the region that is drawn for it.

A match is drawn as a rectangle: the cell of the token, or the hottest part of the enlarged similarity map. The token
was computed from more than that. Two answers say how much more:

- the *receptive field*: every pixel that can change the token at all, whatever the picture. It is found by probing:
  gradients of a random mixture of the token's values, at random inputs, are 0 outside it. The union over probes is a
  lower bound, exact in practice, since every probe mixes all channels.
- the *sensitive region*: the pixels that the similarity at this place of this picture reacts to, the smallest box that
  holds most of the gradient's size (Luo et al., 2016, call it the effective receptive field). It is averaged over a few
  slightly noisy copies, because the gradient of a single picture is grainy, and at an exact match it is 0.

A sensitive pixel is one whose small change moves the similarity. It need not be the reason why the similarity is high.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from protolearn.core.model import PrototypeModel
from protolearn.core.modes import evaluating
from protolearn.errors import UsageError
from protolearn.explain.boxes import area, bounding_box, box_overlap, holding_box, share_inside
from protolearn.explain.gradients import (
    Asked,
    Prototype,
    asking,
    best_places,
    noisy_slopes,
    rows_of,
    slopes,
    sound,
)
from protolearn.explain.passes import device_of
from protolearn.explain.regions import percentile_boxes, upsample
from protolearn.structures import Box

REGIONS = ("cell", "percentile")


@dataclass(frozen=True, eq=False)
class Honesty:
    """One match: the region drawn for it, and the pixels behind it. Boxes are in pixels of the encoder's input.

    Attributes
    ----------
    prototype, position : int
        What matched where.
    size : (int, int)
        Height and width of the input.
    drawn : Box
        The region that is shown.
    sensitive : Box or None
        The box that holds ``share`` of the gradient's size; None where there is no gradient at all.
    field : Box
        The receptive field of the place.
    inside : float or None
        Share of the gradient's size inside the drawn region.
    sensitivity : ndarray
        ``(H, W)`` size of the gradient, summed over channels, mean over noisy copies.
    share, least : float
        Settings: what the sensitive box holds, and how much of it must lie inside the drawn region.
    """

    prototype: int
    position: int
    size: tuple[int, int]
    drawn: Box
    sensitive: Box | None
    field: Box
    inside: float | None
    sensitivity: np.ndarray
    share: float
    least: float

    @property
    def disagrees(self) -> bool | None:
        """Whether less than ``least`` of what the match reacts to lies in the drawn region; None = cannot be said."""
        return None if self.inside is None else self.inside < self.least

    @property
    def overlap(self) -> float | None:
        """Intersection over union of the drawn and the sensitive box."""
        return None if self.sensitive is None else box_overlap(self.drawn, self.sensitive)

    def covered(self, box: Box) -> float:
        """Return the share of the input that a box covers."""
        return area(box) / (self.size[0] * self.size[1])

    def words(self) -> str:
        """Return what was found, for a person."""
        if self.inside is None or self.sensitive is None:
            return "The similarity at this place has no gradient here, so what it reacts to cannot be said."
        whole = self.covered(self.field) >= 1.0
        reach = "the whole picture" if whole else f"{_percent(self.covered(self.field))} of the picture"
        told = (
            f"The outlined region is {_percent(self.covered(self.drawn))} of the picture and holds "
            f"{_percent(self.inside)} of what the match reacts to; {_percent(self.share)} of it lies within "
            f"{_percent(self.covered(self.sensitive))} of the picture, and {reach} can play a part."
        )
        return f"The outline and what the place sees disagree. {told}" if self.disagrees else told

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types, without the map."""
        boxes = {name: getattr(self, name) for name in ("drawn", "sensitive", "field")}
        plain = {name: None if box is None else list(box) for name, box in boxes.items()}
        rest = ("prototype", "position", "inside", "overlap", "disagrees", "share", "least")
        return {**{name: getattr(self, name) for name in rest}, "size": list(self.size), **plain}


def region_honesty(
    model: PrototypeModel,
    inputs: Tensor,
    prototype: Prototype,
    *,
    positions: Tensor | Sequence[int] | None = None,
    region: str = "cell",
    share: float = 0.95,
    least: float = 0.5,
    draws: int = 4,
    noise: float = 0.05,
    seed: int = 0,
) -> list[Honesty]:
    """Compare the region drawn for a match with the pixels behind it, one prototype for each input.

    Parameters
    ----------
    model : PrototypeModel
        Left as it is.
    inputs : Tensor
        ``(B, C, H, W)`` pictures as the encoder takes them.
    prototype : int or one for each input
        Ids.
    positions : Tensor or sequence of int, optional
        ``(B,)`` places; where each prototype matches best by default.
    region : {"cell", "percentile"}
        What is drawn: the token's cell (or the window of cells it stands for), or the rectangle around the hottest
        five percent of the enlarged map.
    share : float
        Of the gradient's size that the sensitive box holds.
    least : float
        Disagreement: less than this share lies in the drawn region.
    draws, noise
        Noisy copies and their standard deviation as a share of the input's range.
    seed : int
        Of the noise and of the probes.

    Raises
    ------
    UsageError
        If places are not laid out in a picture, or the encoder is not differentiable.

    Examples
    --------
    >>> from protolearn.encoders import SmallEncoder
    >>> from protolearn.methods import get_method
    >>> model = get_method("protopnet")(prototypes_per_class=1, dim=8).build(SmallEncoder(size=32), 3)
    >>> found = region_honesty(model, torch.rand(1, 3, 32, 32), 0, positions=[27])[0]
    >>> found.drawn, found.field, found.disagrees
    (Box(x0=8.0, y0=8.0, x1=20.0, y1=20.0), Box(x0=5.0, y0=5.0, x1=20.0, y1=20.0), False)
    """
    if region not in REGIONS:
        raise UsageError(f"region is 'cell' or 'percentile', got {region!r}")
    _check(share, least, draws, noise)
    inputs = sound(inputs).to(device_of(model))
    rows = rows_of(model, prototype, len(inputs))
    if not len(inputs):
        return []
    given = best_places(model, inputs, rows) if positions is None else torch.as_tensor(positions).to(rows.device)
    places = _real_places(model, inputs, given.view(-1))
    draw = torch.Generator().manual_seed(seed)
    drawn = _drawn(model, inputs, rows, places, region)
    found = sensitivity(model, inputs, rows, places, draws=draws, noise=noise, generator=draw)
    distinct = sorted(set(places.tolist()))
    fields = dict(
        zip(distinct, receptive_fields(model, tuple(inputs.shape[1:]), distinct, generator=draw), strict=True)
    )
    ids = model.bank.ids[rows].tolist()
    made = []
    for b, position in enumerate(places.tolist()):
        seen = found[b].double().cpu().numpy()
        felt = seen.sum() > 0
        made.append(
            Honesty(
                prototype=ids[b],
                position=position,
                size=(inputs.shape[2], inputs.shape[3]),
                drawn=drawn[b],
                sensitive=holding_box(seen, share) if felt else None,
                field=fields[position],
                inside=share_inside(seen, drawn[b]) if felt else None,
                sensitivity=seen,
                share=share,
                least=least,
            )
        )
    return made


def sensitivity(
    model: PrototypeModel,
    inputs: Tensor,
    rows: Tensor,
    places: Tensor,
    *,
    draws: int = 4,
    noise: float = 0.05,
    generator: torch.Generator,
) -> Tensor:
    """Return ``(B, H, W)``: how strongly each pixel moves the similarity of one prototype at one place of each input.

    Parameters
    ----------
    model : PrototypeModel
        Left as it is.
    inputs : Tensor
        ``(B, C, H, W)``.
    rows, places : Tensor
        ``(B,)`` int64: row of the bank and position.
    draws, noise, generator
        Of noisy copies, see :func:`protolearn.explain.gradients.noisy_slopes`.
    """
    asked = Asked(model, "similarity", fixed=True)
    with asking(model):
        return noisy_slopes(lambda x: asked(x, rows, places), inputs, draws, noise, generator)


def receptive_fields(
    model: PrototypeModel,
    shape: Sequence[int],
    positions: Sequence[int],
    *,
    draws: int = 4,
    generator: torch.Generator | None = None,
) -> list[Box]:
    """Return the smallest box around every pixel that can change a token, for some positions.

    Parameters
    ----------
    model : PrototypeModel
        Left as it is; its neck is part of the way.
    shape : sequence of int
        ``(C, H, W)`` of an input: padding and the size of a grid depend on it.
    positions : sequence of int
        Of tokens.
    draws : int
        Probes a position.
    generator : Generator, optional
        Of the probes; seed 0 by default.

    Examples
    --------
    >>> from protolearn.encoders import SmallEncoder
    >>> from protolearn.methods import get_method
    >>> model = get_method("protopnet")(prototypes_per_class=1, dim=8).build(SmallEncoder(size=32), 2)
    >>> receptive_fields(model, (3, 32, 32), [0, 27])
    [Box(x0=0.0, y0=0.0, x1=8.0, y1=8.0), Box(x0=5.0, y0=5.0, x1=20.0, y1=20.0)]
    """
    draw = torch.Generator().manual_seed(0) if generator is None else generator
    probes = torch.randn((draws, *shape), generator=draw).to(device_of(model))
    boxes = []
    with asking(model):
        tokens = model.embed(model.encode(probes)).values
        mix = torch.randn(draws, tokens.shape[2], generator=draw).to(tokens)
        for position in positions:

            def mixture(x: Tensor, at: int = position) -> Tensor:
                # a large factor: a faint corner of a deep network's field must not be rounded to 0
                return 2.0**40 * (model.embed(model.encode(x)).values[:, at] * mix).sum(1)

            touched = slopes(mixture, probes) != 0
            boxes.append(bounding_box(touched.any(1).any(0).cpu().numpy()))
    return boxes


def _check(share: float, least: float, draws: int, noise: float) -> None:
    if not 0 < share <= 1 or not 0 <= least <= 1:
        raise UsageError(f"share must lie in (0, 1] and least in [0, 1], got {share} and {least}")
    if draws < 1 or not noise >= 0:
        raise UsageError(f"draws must be at least 1 and noise at least 0, got {draws} and {noise}")


def _real_places(model: PrototypeModel, inputs: Tensor, places: Tensor) -> Tensor:
    with evaluating(model), torch.no_grad():
        tokens = model.embed(model.encode(inputs[:1]))
    if tokens.grid is None or len(tokens.grid) != 2 or tokens.input_size is None:
        raise UsageError("the tokens of this encoder are not laid out in a picture: no region can be drawn for them")
    count = tokens.values.shape[1]
    if len(places) != len(inputs) or not bool(((places >= 0) & (places < count)).all()):
        raise UsageError(f"positions are one number from 0 to {count - 1} for each input, got {places.tolist()}")
    return places


def _drawn(model: PrototypeModel, inputs: Tensor, rows: Tensor, places: Tensor, region: str) -> list[Box]:
    with evaluating(model), torch.no_grad():
        tokens = model.embed(model.encode(inputs))
        assert tokens.grid is not None
        if region == "cell":
            return [box for place in places.tolist() if (box := tokens.region(place)) is not None]
        maps = model.maps(tokens)[torch.arange(len(rows), device=rows.device), rows].unsqueeze(1)
    boxes = percentile_boxes(upsample(maps, tokens.grid, inputs.shape[2:]).squeeze(1))
    return [Box(*map(float, box)) for box in boxes.tolist()]


def _percent(share: float) -> str:
    shown = 100 * share
    return f"{shown:.0f} %" if shown >= 1 or shown == 0 else "less than 1 %"
