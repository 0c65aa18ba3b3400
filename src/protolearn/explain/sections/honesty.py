"""What a report says of the outlines it draws: how much more than the outlined place the match reacts to."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from PIL import Image

from protolearn.errors import UsageError
from protolearn.explain.draw import View
from protolearn.explain.gathered import Gathered, Shown
from protolearn.explain.page import image, short, text
from protolearn.explain.passes import device_of, picture_of
from protolearn.explain.receptive import Honesty, region_honesty
from protolearn.explain.regions import to_original
from protolearn.structures import Box, LedgerRow

MOST = 4
"""Predictions looked at, one match each: every one costs a few backward passes."""


def honesty_section(known: Gathered) -> str:
    """Return, for a few predictions shown, the outlined place beside what it sees; nothing where no place is drawn."""
    matches = _matches(known)
    preprocess = getattr(known.model.encoder, "preprocess", None)
    if not matches or preprocess is None:
        return ""
    inputs = torch.stack([preprocess(picture) for _, picture, _ in matches]).to(device_of(known.model))
    rows = [row for _, _, row in matches]
    try:
        found = region_honesty(
            known.model,
            inputs,
            [row.prototype for row in rows],
            positions=[row.position for row in rows],
            region=known.painter.region,
        )
    except UsageError as error:
        return f'<p class="notice calm">Not measured: {text(error)}.</p>'
    cards = "".join(_card(known, *match, honesty) for match, honesty in zip(matches, found, strict=True))
    return f'{_opening(found)}<div class="protos">{cards}</div>'


def _matches(known: Gathered) -> list[tuple[Shown, Image.Image, LedgerRow]]:
    """Return predictions with the match that speaks most for the predicted class, if it has a place in a picture."""
    cases = known.cases
    if cases is None or not known.pictured:
        return []
    shown = [*known.first[:1], *known.worst[: MOST // 2], *known.best]
    found = []
    for entry in shown[:MOST]:
        picture = picture_of(cases, entry[0])
        rows = [row for row in entry[1].rows if row.contribution > 0 and row.region is not None]
        if picture is not None and rows and not View(picture, rows[0].region).whole:
            found.append((entry, picture, rows[0]))
    return found


def _opening(found: list[Honesty]) -> str:
    said = [each for each in found if each.disagrees is not None]
    wrong, share = sum(bool(each.disagrees) for each in said), round(100 * found[0].share)
    least = "half" if found[0].least == 0.5 else f"{100 * found[0].least:.0f} %"
    words = (
        "<p>An outline marks the place whose features were compared. Those features were computed from more than that "
        "place. For the strongest match of a few predictions this is measured by the gradient: how strongly each pixel "
        f"moves the similarity there. Yellow: the outline as this page draws it. Blue, dashed: the box that holds "
        f"{share} % of what the match reacts to. Glow, in the second picture: where that lies.</p>"
    )
    if not said:
        return words
    if wrong:
        these = "this match" if len(said) == 1 else f"{wrong} of {len(said)} matches"
        return words + (
            f'<p class="notice">In {these} less than {least} of what the match reacts to lies inside the outline. Do '
            "not read these outlines as “the model looked only here”.</p>"
        )
    return words + f'<p class="notice calm">In every match here at least {least} of it lies inside the outline.</p>'


def _card(known: Gathered, entry: Shown, picture: Image.Image, row: LedgerRow, found: Honesty) -> str:
    case, preprocess = entry[1].case, known.model.encoder.preprocess
    whole = to_original(Box(0.0, 0.0, float(found.size[1]), float(found.size[0])), preprocess, picture.size)
    drawn = to_original(found.drawn, preprocess, picture.size)
    seen = None if found.sensitive is None else to_original(found.sensitive, preprocess, picture.size)
    plain = View(picture, drawn, field=seen)
    top = float(np.quantile(found.sensitivity, 0.99))
    glow = replace(plain, heat=(found.sensitivity / top).clip(0.0, 1.0) if top > 0 else None, window=whole)
    tiny = max(picture.size) <= 64
    alts = (f"case {case}: the outline and what it sees", f"case {case}: pixels that the match reacts to")
    pair = image(plain.thumbnail(224), alts[0], lossless=tiny) + image(glow.thumbnail(224), alts[1])
    flag = f'<ul class="flags"><li>{text(found.words())}</li></ul>'
    told = flag if found.disagrees or found.disagrees is None else f"<p>{text(found.words())}</p>"
    owner = "of no single class" if row.owner is None else f"class {known.names[row.owner]}"
    return (
        f'<div class="proto sees"><div class="pair">{pair}</div>{told}<p class="small soft">case {short(case, 60)}, '
        f"prototype {row.prototype}, {short(owner, 34)}</p></div>"
    )
