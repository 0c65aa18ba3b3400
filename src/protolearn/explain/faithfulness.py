"""Which attribution to believe: patches of a picture go, or come, in the order of importance that each method claims.

*Deletion* covers the patches that are said to matter most first: the sooner the prototype's similarity falls, the truer
the order. *Insertion* begins with a blank picture and uncovers them first: the sooner it rises, the truer. Both are
measured on the similarity of the prototype that is explained, not on a class (Petsiuk et al., RISE, 2018, measured a
class's probability), and beside random orders of the same patches. Every curve is scaled so that 1 is the similarity of
the whole picture and 0 that of a blank one; an area lies mostly between. Means over inputs weigh each by this gap, so
that a match that hardly needs its picture does not outweigh the others.

A picture with patches missing is not like any the network has seen. That an order breaks a match quickly is evidence,
not proof, that a person should look there; and other fills give other numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from protolearn.audit.deletion import area, exchanged, pixel_ranks, shuffles, substrate
from protolearn.audit.heat import uneven
from protolearn.core.model import PrototypeModel
from protolearn.core.modes import evaluating
from protolearn.errors import UsageError
from protolearn.explain.attribution import METHODS, Settings, attribute, method_named
from protolearn.explain.faithfulness_result import RANDOM, Comparison
from protolearn.explain.gradients import Prototype, best_places, placed, rows_of, sound
from protolearn.explain.passes import device_of
from protolearn.explain.survey import predicted_contribution

BLANKS = ("fill", "blur")


def compare_attributions(
    model: PrototypeModel,
    inputs: Tensor,
    prototypes: Prototype | None = None,
    methods: Sequence[str] = tuple(METHODS),
    *,
    place: str = "fixed",
    patch: int | None = None,
    steps: int = 24,
    orders: int = 3,
    blank: str = "fill",
    settings: Settings | None = None,
) -> Comparison:
    """Measure by deletion and insertion which attribution of prototypes' similarities is most faithful.

    Every input goes through the model about ``2 * steps * (methods + orders)`` times, beside what the methods need.

    Parameters
    ----------
    model : PrototypeModel
        Left as it is.
    inputs : Tensor
        ``(B, C, H, W)`` pictures as the encoder takes them.
    prototypes : int or one for each input, optional
        Ids; by default what adds most to the predicted class of each input.
    methods : sequence of str
        Names, see :mod:`protolearn.explain.attribution`; all by default.
    place : {"fixed", "free"}
        Where the similarity is read, in maps and curves alike.
    patch : int, optional
        Side in pixels of what is covered at once; a sixteenth of the shorter side by default. All orders, random ones
        too, are of the same patches.
    steps : int
        Points of a curve after its first.
    orders : int
        Random orders of each input.
    blank : {"fill", "blur"}
        What a covered patch becomes: the settings' ``fill``, whose edges the network sees, or the same place of the
        picture blurred.
    settings : Settings, optional
        Of the methods; ``seed`` is also of the random orders.

    Raises
    ------
    UsageError
        If a name or setting cannot be right.

    Examples
    --------
    >>> from protolearn.encoders import SmallEncoder
    >>> from protolearn.methods import get_method
    >>> model = get_method("protopnet")(prototypes_per_class=1, dim=8).build(SmallEncoder(size=16), 3)
    >>> found = compare_attributions(model, torch.rand(4, 3, 16, 16), methods=["upsample", "smooth_grad"], steps=4)
    >>> found.methods, found.deletion.shape
    (('upsample', 'smooth_grad', 'random'), (4, 3, 5))
    """
    settings = Settings() if settings is None else settings
    chosen = _checked(methods, steps, orders)
    fixed = placed(place)
    if blank not in BLANKS:
        raise UsageError(f"blank is 'fill' or 'blur', got {blank!r}")
    inputs = sound(inputs).to(device_of(model))
    if not len(inputs):
        raise UsageError("attributions are compared on at least one input")
    if prototypes is None:
        with evaluating(model), torch.no_grad():
            rows = predicted_contribution(model(inputs)).masked_fill(~model.bank.usable, float("-inf")).argmax(1)
    else:
        rows = rows_of(model, prototypes, len(inputs))
    ids = model.bank.ids[rows].tolist()
    side = max(1, round(min(inputs.shape[2:]) / 16)) if patch is None else patch
    if not 1 <= side <= min(inputs.shape[2:]):
        raise UsageError(f"a patch is 1 to {min(inputs.shape[2:])} pixels wide, got {side}")
    draw = torch.Generator().manual_seed(settings.seed)
    ranks, even = [], []
    for method in chosen:
        maps = attribute(model, inputs, prototype=ids, method=method, place=place, settings=settings)
        order, flat = patch_ranks(maps, side, draw)
        ranks.append(order)
        even.append(flat)
    chance = [patch_ranks(torch.zeros_like(inputs[:, 0]), side, draw)[0] for _ in range(orders)]
    every = torch.stack([*ranks, *chance], 1)
    counts = torch.linspace(0, int(every.max()) + 1, steps + 1).round().long().unique()
    nothing = torch.full_like(inputs, settings.fill) if blank == "fill" else substrate(inputs, "blur")
    curves = []
    with evaluating(model), torch.no_grad():
        for start in range(0, len(inputs), settings.batch_size):
            part = slice(start, start + settings.batch_size)
            score = _table(model, inputs[part], rows[part], fixed)
            own = torch.arange(len(inputs[part]), device=inputs.device)
            for a, b in ((inputs, nothing), (nothing, inputs)):
                curves.append(exchanged(score, a[part], b[part], every[part], counts, own, at_once=settings.batch_size))
    found = [torch.cat(curves[k::2]).double().cpu() for k in (0, 1)]
    found = [torch.cat([c[:, : len(chosen)], c[:, len(chosen) :].mean(1, keepdim=True)], 1) for c in found]
    whole, least = found[0][:, :1, :1], found[0][:, :1, -1:]
    span = whole - least
    judged = span > 1e-6 * (whole.abs() + least.abs())
    flat = torch.stack([*even, torch.zeros(len(inputs), dtype=torch.bool)], 1)
    areas = [
        area((c - least) / torch.where(judged, span, 1.0)).masked_fill(~judged.squeeze(2) | flat, float("nan"))
        for c in found
    ]
    result = Comparison(
        methods=(*chosen, RANDOM),
        prototypes=tuple(ids),
        shares=(counts / counts[-1]).double().numpy(),
        deletion=found[0].numpy(),
        insertion=found[1].numpy(),
        gap=span.flatten().numpy(),
        deletion_area=areas[0].numpy(),
        insertion_area=areas[1].numpy(),
        patch=side,
        place=place,
        blank=blank,
        seed=settings.seed,
        notes=(),
    )
    return replace(result, notes=_notes(int((~judged).sum()), flat.sum(0).tolist(), result))


def patch_ranks(maps: Tensor, side: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return when each pixel's patch goes, 0 first, and which maps are the same everywhere.

    Parameters
    ----------
    maps : Tensor
        ``(B, H, W)``; the patch with the largest mean goes first, equal ones in random order.
    side : int
        Of a patch in pixels; patches at the right and lower border may be smaller.
    generator : Generator
        Of the order of equal patches, on the CPU.

    Returns
    -------
    ranks : Tensor
        ``(B, H, W)`` int64.
    flat : Tensor
        ``(B,)`` bool, on the CPU.

    Examples
    --------
    >>> ranks, flat = patch_ranks(torch.tensor([[[0.0, 0.0, 5.0, 5.0]]]), 1, torch.Generator().manual_seed(0))
    >>> bool(ranks[0, 0, 2:].max() < ranks[0, 0, :2].min()), flat.tolist()
    (True, [False])
    """
    height, width = maps.shape[1:]
    means = F.avg_pool2d(maps.unsqueeze(1).double(), side, ceil_mode=True, count_include_pad=False).squeeze(1)
    seeds = torch.randint(2**62, (len(maps),), generator=generator).tolist()
    ranks = pixel_ranks(means, shuffles(seeds, means[0].numel()).to(means.device))
    ys, xs = (torch.arange(size, device=means.device) // side for size in (height, width))
    return ranks[:, ys][:, :, xs], ~uneven(means).cpu()


def _table(model: PrototypeModel, inputs: Tensor, rows: Tensor, fixed: bool) -> Callable[[Tensor], Tensor]:
    """Return what gives, for altered inputs ``(n, ...)``, the similarities ``(n, B)`` asked of this batch's B cases."""
    if not fixed:
        return lambda altered: model(altered).similarities[:, rows]
    places = best_places(model, inputs, rows)
    distinct, which = rows.unique(return_inverse=True)
    return lambda altered: model.maps(model.embed(model.encode(altered)), distinct)[:, which, places]


def _checked(methods: Sequence[str], steps: int, orders: int) -> list[str]:
    chosen = list(dict.fromkeys(methods))
    if not chosen or isinstance(methods, str):
        raise UsageError(f"name a list of methods, of {', '.join(METHODS)}")
    for method in chosen:
        method_named(method)
    if steps < 1 or orders < 1:
        raise UsageError(f"steps and orders must be at least 1, got {steps} and {orders}")
    return chosen


def _notes(unjudged: int, flat: Sequence[int], found: Comparison) -> tuple[str, ...]:
    notes = []
    if unjudged:
        notes.append(
            f"{unjudged} of {len(found.prototypes)} inputs are left out: a blank picture is as similar to the "
            "prototype as the whole one, so nothing of the picture made the match."
        )
    for method, count in zip(found.methods, flat, strict=True):
        if count:
            notes.append(f"{method} says nothing about {count} inputs: its map is the same everywhere.")
    if len(found.prototypes) < 20:
        notes.append(f"{len(found.prototypes)} inputs are few: the intervals are too narrow for so small a sample.")
    return tuple(notes)
