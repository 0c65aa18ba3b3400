"""Prototypes as what they look like, for models whose decoder makes pictures; and as what they could look like."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from protolearn.core.heads import LinearEvidence
from protolearn.core.model import PrototypeModel
from protolearn.core.modes import evaluating
from protolearn.core.sampling import draw as draw_prototypes
from protolearn.errors import UsageError
from protolearn.explain.lettering import lettering
from protolearn.explain.passes import device_of

if TYPE_CHECKING:
    from protolearn.explain.draw import Painter

_PAPER, _INK, _SOFT, _LINE = "#ffffff", "#16202a", "#5a6672", "#d5dbe1"


def decodes_pictures(model: PrototypeModel) -> bool:
    """Say whether a model's prototypes can be shown without a training case."""
    return model.decoder is not None and model.decoder.pictures and model.encoder.preprocess is not None


@torch.no_grad()
def decoded_pictures(model: PrototypeModel, vectors: Tensor | None = None) -> list[Image.Image]:
    """Return what the decoder makes of prototypes: of all in the bank's order, or of vectors ``(N, D)``.

    Raises
    ------
    UsageError
        If the model has no decoder, or one that makes no pictures.

    Examples
    --------
    >>> from protolearn.encoders import ConvAutoencoder
    >>> from protolearn.methods import get_method
    >>> model = get_method("prototype-autoencoder")(prototypes=3).build(ConvAutoencoder(), classes=2)
    >>> [picture.size for picture in decoded_pictures(model)]
    [(28, 28), (28, 28), (28, 28)]
    """
    if not decodes_pictures(model):
        raise UsageError("this model has no decoder to pictures: its prototypes are shown by training cases")
    assert model.decoder is not None
    given = model.bank.vectors if vectors is None else vectors.to(device_of(model))
    with evaluating(model):
        made = model.decoder(given).float().cpu()
    return [model.encoder.preprocess.unnormalise(picture.expand(3, -1, -1)) for picture in made]


@torch.no_grad()
def drawn_pictures(
    model: PrototypeModel, prototype: int, count: int = 8, generator: torch.Generator | None = None
) -> list[Image.Image]:
    """Return pictures of draws from one prototype (by id) that is a distribution: what it could look like."""
    row = int(model.bank.rows([prototype])[0])
    return decoded_pictures(model, draw_prototypes(model, count, generator)[:, row])


def prototype_strip(
    model: PrototypeModel,
    painter: Painter | None = None,
    *,
    prototypes: Sequence[int] | None = None,
    draws: int = 0,
    generator: torch.Generator | None = None,
    side: int = 112,
    columns: int = 8,
) -> Image.Image:
    """Draw prototypes side by side: each decoded, and below it the training case nearest to it.

    Parameters
    ----------
    model : PrototypeModel
        With a decoder that makes pictures.
    painter : Painter, optional
        Of the model, with the training cases at hand; without it only decoded pictures are shown.
    prototypes : sequence of int, optional
        Ids; all by default.
    draws : int
        For prototypes that are distributions: so many draws below the decoded mode.
    generator : torch.Generator, optional
        Of the draws.
    side, columns : int
        Pixels of one picture, and prototypes in one line.
    """
    ids = model.bank.ids.tolist() if prototypes is None else list(prototypes)
    rows = model.bank.rows(ids).tolist()
    made = decoded_pictures(model)
    drawn = draw_prototypes(model, draws, generator) if draws else None
    stacks: list[list[Image.Image | str]] = []
    for row in rows:
        stack: list[Image.Image | str] = [made[row]]
        if drawn is not None:
            stack += decoded_pictures(model, drawn[:, row])
        if painter is not None:
            picture, why = painter.source_picture(model.bank.sources[row])
            stack.append(why if picture is None else picture)
        stacks.append(stack)
    names = ["decoded", *(["drawn"] * draws), *(["nearest case"] if painter is not None else [])]
    margin, gap, label = 14, 8, 96
    high, wide = 40 + len(names) * (side + gap), side + gap
    lines = [list(range(start, min(start + columns, len(ids)))) for start in range(0, len(ids), columns)]
    width = 2 * margin + label + min(columns, max(1, len(ids))) * wide
    canvas = Image.new("RGB", (width, 2 * margin + max(1, len(lines)) * (high + gap)), _PAPER)
    draw = ImageDraw.Draw(canvas)
    for line, members in enumerate(lines):
        top = margin + line * (high + gap)
        for k, name in enumerate(names):
            lettering(14).write(draw, margin, top + 40 + k * (side + gap) + side / 2 - 8, name, _SOFT)
        for place, member in enumerate(members):
            x = margin + label + place * wide
            title, below = _names(model, rows[member], ids[member])
            lettering(14).write(draw, x, top, lettering(14).shortened(title, side), _INK, bold=True)
            lettering(13).write(draw, x, top + 18, lettering(13).shortened(below, side), _SOFT)
            for k, shown in enumerate(stacks[member]):
                y = top + 40 + k * (side + gap)
                if isinstance(shown, str):
                    draw.rectangle([x, y, x + side - 1, y + side - 1], outline=_LINE)
                    for n, part in enumerate(lettering(13).wrapped(shown, side - 12)):
                        lettering(13).write(draw, x + 6, y + 6 + 17 * n, part, _SOFT)
                    continue
                canvas.paste(fitted(shown, side), (x, y))
    return canvas


def fitted(picture: Image.Image, side: int) -> Image.Image:
    """Return a picture within a square of this side; small ones keep their pixels."""
    scale = side / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    tiny = scale > 1 and max(picture.size) <= 64
    return picture.convert("RGB").resize(size, Image.Resampling.NEAREST if tiny else Image.Resampling.LANCZOS)


def _names(model: PrototypeModel, row: int, key: int) -> tuple[str, str]:
    owner = int(model.bank.owner()[row])
    if owner >= 0:
        return f"prototype {key}", f"of {model.classes[owner]}"
    if isinstance(model.head, LinearEvidence):
        return f"prototype {key}", f"speaks for {model.classes[int(model.head.favoured()[row])]}"
    return f"prototype {key}", ""
