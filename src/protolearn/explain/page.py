"""Pieces of a self-contained HTML page: style, pictures as data URIs, tables, one explained prediction.

Every name that comes from data (class, case, path, setting) passes through ``text``; nothing else makes HTML of it.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from protolearn.explain.draw import (
    NO_PICTURE,
    Painter,
    View,
    contribution_is,
    far_speaks,
    headings,
    made_of,
    origin,
    summands,
    verdict,
)
from protolearn.explain.lettering import number, share, signed
from protolearn.explain.passes import whole_file
from protolearn.structures import Explanation, LedgerRow

STYLE = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
WEIGHTED = "How similar the two are, times the weight the class gives the prototype, is the contribution."
UNWEIGHTED = "What the likeness adds to the class score is the contribution; it depends on the other likenesses too."
NUMBERS = "The cases are numbers, not pictures, so nothing is drawn: a part is named by its token, counted from 0. "


def text(value: Any) -> str:
    """Return a value as HTML text, safe in attributes too; control characters and bidi overrides are shown as ``?``."""
    shown = "".join("?" if _hidden(c) else c for c in str(value))
    return escape(shown, quote=True)


def _hidden(char: str) -> bool:
    code = ord(char)
    return (code < 32 and char not in "\n\t") or 0x7F <= code < 0xA0 or 0xD800 <= code < 0xE000 or (
        0x202A <= code <= 0x202E or 0x2066 <= code <= 0x2069
    )  # fmt: skip


def short(value: Any, most: int = 48) -> str:
    """Return HTML text cut in the middle, with the whole as its title."""
    whole = str(value)
    if len(whole) <= most:
        return _breakable(whole)
    head = most // 2
    return f'<span title="{text(whole)}">{_breakable(whole[:head])}…{_breakable(whole[-(most - head) :])}</span>'


def _breakable(value: str) -> str:
    """Return HTML text that may break after the separators of paths and names."""
    shown = text(value)
    for separator in ("_", "/", "\\"):
        shown = shown.replace(separator, f"{separator}<wbr>")
    return shown


def page(title: str, body: str) -> str:
    """Return a whole document that asks for nothing outside itself."""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<link rel="icon" href="data:,">'
        f"<title>{text(title)}</title><style>{STYLE}</style></head><body>\n{body}\n</body></html>\n"
    )


def write_text(path: str | Path, content: str) -> Path:
    """Write a file whole or not at all."""
    with whole_file(path, "the page") as temporary:
        temporary.write_text(content, encoding="utf-8")
    return Path(path)


def section(key: str, title: str, *parts: str) -> str:
    """Return a section with its heading."""
    heading = f'<h2 id="{key}-h">{text(title)}</h2>'
    return f'<section id="{key}" aria-labelledby="{key}-h">{heading}\n{"".join(parts)}</section>\n'


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    numbers: Iterable[int] = (),
    caption: str = "",
    stack: bool = False,
) -> str:
    """Return a table of cells that are HTML already, the first of each row its heading; ``numbers`` align right.

    ``stack`` lays each row out in lines on a narrow screen, every cell with the head of its column.
    """
    right = set(numbers)

    def cls(k: int) -> str:
        return ' class="n"' if k in right else ""

    def cell(k: int, html: str) -> str:
        if k == 0:
            return f'<th scope="row"{cls(0)}>{html}</th>'
        return f"<td{cls(k)} data-head='{head[k]}'>{html}</td>" if stack else f"<td{cls(k)}>{html}</td>"

    top = "".join(f'<th scope="col"{cls(k)}>{cell}</th>' for k, cell in enumerate(head))
    body = "".join(f"<tr>{''.join(cell(k, html) for k, html in enumerate(row))}</tr>" for row in rows)
    named = f"<caption>{text(caption)}</caption>" if caption else ""
    kind = ' class="stack"' if stack else ""
    return f'<div class="scroll"><table{kind}>{named}<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def facts(rows: Iterable[tuple[str, str]]) -> str:
    """Return a table of name and value; values are HTML already."""
    body = "".join(f'<tr><th scope="row">{text(name)}</th><td>{value}</td></tr>' for name, value in rows if value)
    return f'<div class="scroll"><table class="facts"><tbody>{body}</tbody></table></div>'


def data_uri(picture: Image.Image, *, lossless: bool = False) -> str:
    """Return a picture as a data URI: PNG for pixel art, JPEG for the rest."""
    buffer = io.BytesIO()
    if lossless:
        picture.save(buffer, "PNG", optimize=True)
    else:
        picture.convert("RGB").save(buffer, "JPEG", quality=84)
    kind = "png" if lossless else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def image(picture: Image.Image, alt: str, *, lossless: bool = False, cls: str = "") -> str:
    """Return an ``img`` with its size and alternative text."""
    named = f' class="{cls}"' if cls else ""
    return (
        f'<img{named} src="{data_uri(picture, lossless=lossless)}" width="{picture.width}" height="{picture.height}" '
        f'alt="{text(alt)}">'
    )


def pair(view: View, what: str, *, close_first: bool, side: int = 168) -> str:
    """Return a picture and the close-up of its region; the picture alone where all of it was meant."""
    tiny = max(view.picture.size) <= 64
    if view.whole:
        alone = image(view.thumbnail(side), what, lossless=tiny and view.heat is None)
        return f'<div class="pair">{alone}</div>'
    whole = image(view.thumbnail(side), f"{what}, the region outlined", lossless=tiny and view.heat is None)
    close = image(view.close_up(side), f"close-up of the region in {what}", lossless=tiny and view.heat is None)
    return f'<div class="pair">{close + whole if close_first else whole + close}</div>'


def decoded_beside(made: Image.Image, prototype: int, view: View | None, why: str, side: int = 168) -> str:
    """Return a decoded prototype and the training case nearest to it, or why that is not shown."""
    shown = image(View(made).thumbnail(side), f"prototype {prototype}, decoded", lossless=max(made.size) <= 64)
    if view is None:
        return f'<div class="pair">{shown}<div class="absent">{text(why)}</div></div>'
    tiny = max(view.picture.size) <= 64
    near = image(view.thumbnail(side), f"the training case nearest to prototype {prototype}", lossless=tiny)
    return f'<div class="pair">{shown}{near}</div>'


def whole(picture: Image.Image, alt: str, side: int) -> str:
    """Return a picture without marks."""
    return image(View(picture).thumbnail(side), alt, lossless=max(picture.size) <= 64, cls="photo")


def how_to_read(pictured: bool = True, *, decoded: bool = False, weighted: bool = True) -> str:
    """Return how an explained prediction is read.

    ``decoded`` if prototypes are shown as a decoder makes them, ``weighted`` if a contribution is similarity times
    weight.
    """
    noun = "picture" if pictured else "case"
    if decoded:
        return (
            "<p>Each row compares this whole picture with a <em>prototype</em>, shown as the model's decoder makes it. "
            "It is no training case; the training case nearest to it is beside it. How similar the two are, times the "
            "weight the class gives the prototype, is the contribution; all contributions add up to the class score. "
            "Where the sign of likeness is struck through, being far from the prototype speaks for the "
            'class. <span class="plus">Blue, plus, solid</span> speaks for the class; '
            '<span class="minus">orange, minus, hatched</span> against it.</p>'
        )
    marks = (
        "The yellow outline is the place that was compared, "
        "the glow the prototype's similarity over the whole picture. "
    )
    return (
        f"<p>Each row says: <em>this part of this {noun}</em> looks like <em>that part of a training {noun}</em>. "
        f"{WEIGHTED if weighted else UNWEIGHTED} All contributions (and the bias, where there is one) add up to the "
        "class score. "
        f"{marks if pictured else NUMBERS}"
        '<span class="plus">Blue, plus, solid</span> speaks for the class; '
        '<span class="minus">orange, minus, hatched or dashed</span> against it.</p>'
    )


def explained_prediction(
    painter: Painter,
    picture: Image.Image | None,
    explanation: Explanation,
    runner_up: Explanation | None = None,
    *,
    most: int = 4,
    against: int = 2,
) -> str:
    """Return one prediction: the case, its matches, the arithmetic, and the class that came second."""
    names = painter.model.classes
    e = explanation
    arguments = [e, *([runner_up] if runner_up is not None else [])]
    every = [row for argument in arguments for row in argument.rows]
    scale = max((abs(row.contribution) for row in every if math.isfinite(row.contribution)), default=1.0) or 1.0
    left = [] if picture is None else [whole(picture, f"the case {e.case}", 400)]
    left.append(f'<p class="verdict">{short(verdict(e, names))}</p>')
    if e.abstains:
        left.append('<p class="small">No class scores anything, so the one below is no answer.</p>')
    elif e.unknown and e.confidence is not None:
        left.append(
            f'<p class="small">Its confidence, {number(e.confidence)}, is below the threshold: nothing the model knows '
            "is like it. The class below is only the closest.</p>"
        )
    known = ""
    if e.label is not None:
        good = e.label == e.predicted and not e.unknown
        known = f"labelled {short(names[e.label])}: " + (
            '<span class="right">✓ right</span>'
            if good
            else f'<span class="wrong">✗ {"not known" if e.unknown else "wrong"}</span>'
        )
    if known:
        left.append(f'<p class="small">{known}</p>')
    left.append(f'<p class="small soft">case {short(e.case, 60)}</p>')
    rows = "".join(
        f'<tr><th scope="row">{short(names[a.target], 30)}</th><td class="n">{share(a.probability)}</td>'
        f'<td class="n">{number(a.logit)}</td></tr><tr class="under"><td colspan="3">{_bar(a.probability)}</td></tr>'
        for a in arguments
    )
    head = (
        '<tr><td></td><th scope="col" class="n">probability</th>'
        f'<th scope="col" class="n">{"score" if e.score_name == "probability" else e.score_name}</th></tr>'
    )
    left.append(f'<table class="scores"><thead>{head}</thead><tbody>{rows}</tbody></table>')
    right = [_argument(painter, picture, e, most, scale, f"Why {names[e.target]}")]
    if runner_up is not None:
        right.append(_argument(painter, picture, runner_up, against, scale, f"Runner-up: {names[runner_up.target]}"))
    return f'<article class="why"><div>{"".join(left)}</div><div>{"".join(right)}</div></article>'


def _argument(
    painter: Painter, picture: Image.Image | None, e: Explanation, most: int, scale: float, heading: str
) -> str:
    rows = e.top(most)
    body = "".join(_row(painter, picture, e, row, scale) for row in rows)
    noun = "case" if picture is None else "picture"
    here, there, beside = f"this part of this {noun}", f"that part of a training {noun}", ""
    if picture is not None:
        here, there, beside = headings(painter, rows)
    there += f", {beside}" if beside else ""
    head = (
        f'<thead><tr role="row"><th scope="col">{here}</th><th scope="col">{there}</th>'
        f'<th scope="col">{text(contribution_is(rows))}</th></tr></thead>'
    )
    ledger = f'<table class="ledger" role="table">{head}<tbody role="rowgroup">{body}</tbody></table>' if rows else ""
    parts = [
        f"{signed(value) if k == 0 else _spaced(value)} <span class='soft small'>({what})</span>"
        for k, (value, what) in enumerate(summands(e, len(rows)))
    ]
    total = f"<b>{text(e.score_name)} {number(e.logit)}</b>"
    return f"<h4>{text(heading)}</h4>{ledger}<p class='sum'>{' '.join(parts)} = {total}</p>"


def _row(painter: Painter, picture: Image.Image | None, e: Explanation, row: LedgerRow, scale: float) -> str:
    names = painter.model.classes
    there, why = painter.source_view(row)
    made = painter.decoded(row.prototype)
    owner = "of no single class" if row.owner is None else f"class {names[row.owner]}"
    source = row.source.case if row.source is not None else ""
    if made is not None:
        like = decoded_beside(made, row.prototype, there, why)
    elif row.source is not None and why == NO_PICTURE:
        like, why = f'<div class="absent">token {row.source.position}</div>', ""
    elif there is None:
        like = f'<div class="absent">{text(why)}</div>'
    else:
        like = pair(there, f"training case {source}, source of prototype {row.prototype}", close_first=True)
    told = (
        f'<div class="big {_sign(row.contribution)}">{signed(row.contribution)}</div>{_bar(row.contribution / scale)}'
        f"<div>{text(made_of(row))}</div>"
        f'<div class="soft small">prototype {row.prototype}, {short(owner, 34)}<br>'
        f"{text(why) if why else short(origin(row.source), 48)}</div>"
    )
    alike = "like unlike" if far_speaks(row) else "like"
    if picture is None:
        what = f'<div class="absent">token {row.position}</div>'
    else:
        here = painter.case_view(picture, e.case, row)
        what = pair(here, f"case {e.case} where prototype {row.prototype} matched", close_first=False)
    return (
        f'<tr role="row"><td role="cell" class="looks">{what}</td><td role="cell" class="{alike}">{like}</td>'
        f'<td role="cell" class="told">{told}</td></tr>'
    )


def _bar(fraction: float) -> str:
    wide = 100 * min(abs(fraction), 1.0) if math.isfinite(fraction) else 0.0
    return f'<div class="bar" aria-hidden="true"><i class="{_sign(fraction)}" style="width:{wide:.1f}%"></i></div>'


def _sign(value: float) -> str:
    return "minus" if value < 0 else "plus"


def _spaced(value: float) -> str:
    words = signed(value)
    return f"{words[0]} {words[1:]}"
