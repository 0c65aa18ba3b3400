"""A prediction before and after a person's corrections, as a file: a picture, a page or JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from protolearn.core.model import PrototypeModel
from protolearn.errors import UsageError
from protolearn.explain.decode import decodes_pictures
from protolearn.explain.draw import (
    FIELD,
    INK,
    MARK,
    PAPER,
    Painter,
    SourcePictures,
    View,
    explanation_picture,
    outline,
    verdict,
    weighed,
)
from protolearn.explain.edits import Interaction, Who
from protolearn.explain.explain import explanation_dict
from protolearn.explain.interact import Corrected, interact
from protolearn.explain.lettering import lettering, number, share
from protolearn.explain.page import (
    explained_prediction,
    how_to_read,
    image,
    page,
    section,
    short,
    table,
    text,
    write_text,
)
from protolearn.explain.passes import CaseList, picture_of, pictured, plain_json, whole_file

FORMS = (".png", ".html", ".json")


def save_corrected(
    model: PrototypeModel,
    cases: CaseList,
    index: int,
    interaction: Interaction,
    path: str | Path,
    *,
    done: Corrected | None = None,
    sources: SourcePictures | None = None,
    most: int = 4,
) -> Path:
    """Write one prediction before and after edits: ``.png``, ``.html`` or ``.json`` by the file's suffix.

    Parameters
    ----------
    model, cases, index
        Which case of which data set.
    interaction : Interaction
        The edits.
    path : path
        The file.
    done : Corrected, optional
        What ``interact`` returned for it, computed here without.
    sources : Cases or callable, optional
        The training cases, or a function from a ``Source`` to its picture.
    most : int
        Rows shown of either.

    Raises
    ------
    UsageError
        If the suffix is another, features are to be drawn, or the edits do not fit the model.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in FORMS:
        raise UsageError(f"a corrected prediction is written as {', '.join(FORMS)}, got {path.name!r}")
    if suffix == ".png" and not pictured(cases):
        raise UsageError("features cannot be drawn: write their correction as .html or .json")
    found = interact(model, cases, interaction, [index])[0] if done is None else done
    if suffix == ".json":
        return write_text(path, json.dumps(corrected_dict(model, found, interaction), allow_nan=False, indent=2) + "\n")
    painter = Painter(model, sources)
    if suffix == ".html":
        return write_text(path, corrected_html(painter, picture_of(cases, index), found, interaction, most=most))
    drawn = corrected_picture(painter, cases.picture(index), found, interaction, most=most)
    with whole_file(path, "the picture") as temporary:
        drawn.save(temporary, "PNG")
    return path


def corrected_dict(model: PrototypeModel, found: Corrected, interaction: Interaction) -> dict[str, Any]:
    """Return a correction as plain JSON types: both explanations, both rows of scores, the edits."""
    told: dict[str, Any] = plain_json(
        {
            "case": found.before.case,
            "changed": found.changed,
            "predicted": [model.classes[e.predicted] for e in (found.before, found.after)],
            "probability": [found.before.probability, found.after.probability],
            "logits": [found.logits_before, found.logits_after],
            "classes": model.classes,
            "without": found.without,
            "edits": json.loads(interaction.to_json()),
            "before": explanation_dict(found.before, model),
            "after": explanation_dict(found.after, model),
        }
    )
    return told


def corrected_picture(
    painter: Painter, picture: Image.Image, found: Corrected, interaction: Interaction, *, most: int = 4
) -> Image.Image:
    """Draw the prediction before, below it the edits and the picture with the boxes, and below those the one after."""
    first, second = (explanation_picture(painter, picture, e, most=most) for e in (found.before, found.after))
    side, margin, told = 220, 36, in_words(interaction)
    lines = ["Above: before. Below: after a person's edits:", *told[:6]]
    if len(told) > 6:
        lines.append(f"and {len(told) - 6} more edits")
    both = Image.new("RGB", (first.width, first.height + side + 2 * margin + second.height), PAPER)
    both.paste(first, (0, 0))
    both.paste(View(with_boxes(picture, interaction)).thumbnail(side), (margin, first.height + margin))
    for k, line in enumerate(lines):
        face = lettering(19)
        cut = face.shortened(line, both.width - side - 3 * margin)
        face.write(ImageDraw.Draw(both), side + 2 * margin, first.height + margin + 29 * k, cut, INK, bold=k == 0)
    both.paste(second, (0, first.height + side + 2 * margin))
    return both


def with_boxes(picture: Image.Image, interaction: Interaction) -> Image.Image:
    """Return a copy of a picture with positive boxes solid and yellow, negative ones dashed and blue."""
    shown = picture.convert("RGB")
    scale = max(1, round(400 / max(shown.size)))  # thin lines on a tiny picture would hide it
    shown = shown.resize((shown.width * scale, shown.height * scale), Image.Resampling.NEAREST)
    for kind, dashed, colour in (("positive", False, MARK), ("negative", True, FIELD)):
        for edit in interaction.boxes(kind):  # type: ignore[arg-type]
            assert edit.box is not None, "an edit that draws has a box"
            box = type(edit.box)(*(side * scale for side in edit.box))
            outline(shown, box, dashed=dashed, width=max(2, round(max(shown.size) / 120)), colour=colour)
    return shown


def corrected_html(
    painter: Painter, picture: Image.Image | None, found: Corrected, interaction: Interaction, *, most: int = 4
) -> str:
    """Return a correction as one self-contained page: what was done, the scores, both explanations."""
    model, names = painter.model, painter.model.classes
    said = f"Before: {verdict(found.before, names)}. After: {verdict(found.after, names)}"
    if not found.changed:
        said = f"{verdict(found.after, names)}, before as after"
    reading = how_to_read(picture is not None, decoded=decodes_pictures(model), weighted=weighed(found.before))
    glow = ""
    if picture is not None and found.after.rows:
        glow = "<p>The glow is the similarity map as the model computes it, edits left out; the outlines obey them.</p>"
    return page(
        f"Corrected: {found.before.case}",
        f"<header><div><h1>{short(said, 90)}</h1></div></header>\n<main>"
        f"{section('edits', 'What was corrected', _edits(picture, interaction, found), _scores(found, names))}"
        f"{section('before', 'Before', reading, explained_prediction(painter, picture, found.before, most=most))}"
        f"{section('after', 'After', glow, explained_prediction(painter, picture, found.after, most=most))}</main>\n"
        "<footer>Everything is in this file; it loads nothing. The model was not changed.</footer>",
    )


def _edits(picture: Image.Image | None, interaction: Interaction, found: Corrected) -> str:
    items = "".join(f"<li>{text(each)}</li>" for each in in_words(interaction))
    gone = ""
    if found.without:
        listed = f"prototype{'s' if len(found.without) > 1 else ''} {', '.join(map(str, found.without[:20]))}"
        listed += f" and {len(found.without) - 20} more" if len(found.without) > 20 else ""
        brings = "bringing nothing" if interaction.absent == "zero" else "bringing its mean evidence"
        gone = f"<p>Without a say, {brings}: {listed}.</p>"
    drawn = ""
    if picture is not None and (interaction.boxes("positive") or interaction.boxes("negative")):
        shown = image(View(with_boxes(picture, interaction)).thumbnail(260), "the picture with the boxes drawn", cls="")
        drawn = f"{shown}<p class='small soft'>Solid, yellow: where to look. Dashed, blue: nothing may be found.</p>"
    return f"<ul>{items or '<li>nothing</li>'}</ul>{gone}{drawn}"


def in_words(interaction: Interaction) -> list[str]:
    """Return the edits in words, one a line.

    Examples
    --------
    >>> in_words(Interaction().reject("spot").negative((0, 0, 8, 8), 3))
    ["rejected 'spot'", 'nothing of prototype 3 may be found in (0, 0) to (8, 8)']
    """

    def whom(who: Who) -> str:
        return f"prototype {who}" if isinstance(who, int) else repr(who)

    told = []
    for edit in interaction.edits:
        if edit.box is None:
            told.append(f"{'rejected' if edit.action == 'reject' else 'accepted again'} {whom(edit.who)}")
            continue
        place = f"({edit.box.x0:g}, {edit.box.y0:g}) to ({edit.box.x1:g}, {edit.box.y1:g})"
        of = "" if edit.who is None else f" of {whom(edit.who)}"
        if edit.action == "negative":
            told.append(f"nothing{of} may be found in {place}")
        else:
            told.append(f"{'look' if edit.who is None else f'look for {whom(edit.who)}'} in {place}")
    return told


def _scores(found: Corrected, names: Any) -> str:
    before, after = found.logits_before.double().cpu().tolist(), found.logits_after.double().cpu().tolist()
    chosen = sorted(range(len(before)), key=lambda c: -max(before[c], after[c]))[:10]
    rows = [[short(names[c], 40), number(before[c]), number(after[c])] for c in chosen]
    rest = f" Of {len(before)} classes, the ten with the highest scores." if len(before) > len(chosen) else ""
    told = (
        f"Probability of the answer: {share(found.before.probability)} before, {share(found.after.probability)} after."
    )
    head = ["class", f"{text(found.before.score_name)} before", "after"]
    return f"<p>{told}{rest}</p>{table(head, rows, numbers=[1, 2])}"
