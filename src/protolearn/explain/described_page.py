"""Described prototypes as a file: a page, JSON, or a table for a spreadsheet."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from PIL import Image

from protolearn.errors import UsageError
from protolearn.explain.audit_page import as_csv
from protolearn.explain.described import Characteristics, Match
from protolearn.explain.draw import Painter, View
from protolearn.explain.lettering import share, signed
from protolearn.explain.page import image, page, section, short, text, write_text
from protolearn.explain.sections.characteristics import characteristics

FORMS = (".html", ".json", ".csv")


def save_characteristics(
    found: Characteristics,
    path: str | Path,
    *,
    painter: Painter | None = None,
    pictures: Sequence[Image.Image] = (),
) -> Path:
    """Write described prototypes whole or not at all: ``.html``, ``.json`` or ``.csv`` by the file's suffix.

    The table has a row a prototype; where pictures were asked about, a row a match instead.

    Parameters
    ----------
    found : Characteristics
        Of :func:`~protolearn.explain.described.characterise`.
    path : path
        The file.
    painter : Painter, optional
        Of the model, to draw matches beside the prototypes' own pictures.
    pictures : sequence of Image
        Those asked about, one for each case of ``found.matches``, in order.

    Raises
    ------
    UsageError
        If the suffix is another.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in FORMS:
        raise UsageError(f"described prototypes are written as {', '.join(FORMS)}, got {path.name!r}")
    if suffix == ".json":
        return write_text(path, json.dumps(found.to_dict(), allow_nan=False, indent=2) + "\n")
    if suffix == ".csv":
        return write_text(path, as_csv(found.match_rows() if found.matches else found.rows()))
    return write_text(path, characteristics_html(found, painter, pictures))


def characteristics_html(
    found: Characteristics, painter: Painter | None = None, pictures: Sequence[Image.Image] = ()
) -> str:
    """Return described prototypes as one self-contained page: no script, nothing loaded from anywhere."""
    title = f"Why similar: {found.facts['data']}"
    by_case = [list(group) for _, group in groupby(found.matches, key=lambda match: (match.case, match.index))]
    if pictures and len(pictures) != len(by_case):
        raise ValueError(f"{len(pictures)} pictures for the matches of {len(by_case)} cases")
    shown = [*pictures] if pictures else [None] * len(by_case)
    cards = "".join(_case(group, painter, picture) for group, picture in zip(by_case, shown, strict=True))
    told = section("matches", "These pictures", _reading(), cards) if cards else ""
    return page(
        title,
        f"<header><div><h1>{short(title, 90)}</h1></div></header>\n<main>{told}"
        f"{section('characteristics', 'What prototypes look at', characteristics(found))}</main>\n"
        "<footer>Everything is in this file; it loads nothing.</footer>",
    )


def _reading() -> str:
    return (
        "<p>For each picture the matches that add most to the predicted class: where the picture matched, beside the "
        "prototype's own place, and what the similarity falls with when this one picture is altered, in words against "
        "the usual size of a fall in one training picture.</p>"
    )


def _case(group: Sequence[Match], painter: Painter | None, picture: Image.Image | None) -> str:
    first = group[0]
    cards = "".join(_card(match, painter, picture) for match in group)
    return (
        f"<h3>{short(first.case, 60)}: looks like {short(first.predicted, 48)} ({share(first.probability)})</h3>"
        f'<div class="protos">{cards}</div>'
    )


def _card(match: Match, painter: Painter | None, picture: Image.Image | None) -> str:
    drawn = ""
    if painter is not None and picture is not None:
        where = f"case {match.case} where prototype {match.row.prototype} matched"
        drawn = _close(painter.case_view(picture, match.case, match.row), where)
        there, _ = painter.source_view(match.row)
        if there is not None:
            drawn += _close(there, f"the own place of prototype {match.row.prototype}")
        drawn = f'<div class="pair">{drawn}</div>'
    return (
        f'<article class="proto"><div class="head">{drawn}<div><h4>Prototype {match.row.prototype}</h4>'
        f'<div class="small">{signed(match.row.contribution)} for the class</div></div></div>'
        f"<p>{text(match.words[:1].upper() + match.words[1:])}.</p></article>"
    )


def _close(view: View, alt: str) -> str:
    tiny = max(view.picture.size) <= 64
    return image(view.close_up(140), alt, lossless=tiny and view.heat is None)
