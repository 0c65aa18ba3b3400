"""Clusters that were found beside the known classes, each with a gallery, for a person to look at and to name."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from PIL import Image

from protolearn.audit.discovered import Cluster, Discovery
from protolearn.audit.result import figure
from protolearn.explain.charts import curve_chart
from protolearn.explain.draw import View, index_of
from protolearn.explain.lettering import percent
from protolearn.explain.page import image, short, table, text
from protolearn.explain.passes import CaseList, picture_of

Find = Callable[[str], Image.Image | None]
UNSTABLE = 0.6
"""Below, other draws rarely find the cluster again."""


def clusters(found: Discovery, *cases: CaseList) -> str:
    """Return the findings as HTML; pictures are those of ``cases``, by id, where there are some."""
    find = _finder(cases)
    notes = "".join(f'<p class="notice">{text(note[:1].upper() + note[1:])}.</p>' for note in found.notes)
    cards = "".join(_card(found, each, find) for each in found.new)
    none = '<p class="notice calm">No unlabelled case is in a cluster of its own: nothing new was found.</p>'
    return (
        f"{_opening(found)}{notes}{_number(found)}"
        f'<h3>New clusters</h3>{f"""<div class="protos">{cards}</div>""" if cards else none}{_known(found)}'
    )


def _finder(cases: Sequence[CaseList]) -> Find:
    def find(case: str) -> Image.Image | None:
        for part in cases:
            place = index_of(part, case)
            if place is not None:
                return picture_of(part, place)
        return None

    return find


def _opening(found: Discovery) -> str:
    fresh = sum(each.size for each in found.new)
    share = f" ({percent(fresh / len(found.cases))})" if found.cases else ""
    return (
        f"<p>{len(found.cases)} unlabelled cases were sorted beside {len(found.classes)} known classes by "
        f"{text(found.facts.get('method'))}; {fresh} of them{share} are in {len(found.new)} new clusters. A cluster is "
        "cases whose features lie together; whether they are a class only a person can say. Clear: how much nearer a "
        "case is to its own centre than to the next, or how probable its class is, from 0 to 1. Stable: how much of "
        f"the cluster other draws of the cases find again; below {UNSTABLE} it should not be trusted.</p>"
    )


def _number(found: Discovery) -> str:
    number = found.number
    if number is None:
        return '<p class="small soft">The number of classes was given.</p>'
    chart = curve_chart("How many classes", number.curve, number.count, "classes, old and new", "criterion")
    return (
        f"<p>The number of classes was estimated: <b>{number.count}</b>, old and new, searched from {number.low} to "
        f"{number.high}. Criterion: {text(number.criterion)}. A flat or ragged curve says that the data do not settle "
        f'it.</p><div class="charts">{chart}</div>'
    )


def _card(found: Discovery, each: Cluster, find: Find) -> str:
    flags = []
    if each.stability is not None and each.stability < UNSTABLE:
        flags.append(f"unstable: other draws find {percent(each.stability)} of it again")
    if each.size < 5:
        flags.append("very small")
    told = [f"{each.size} cases", f"clear {figure(each.confidence)}"]
    told += [f"stable {figure(each.stability)}"] if each.stability is not None else []
    head = f'<h4>{short(each.name, 60)}</h4><div class="small soft">{", ".join(told)}</div>'
    parts = [head, _gallery("Typical cases", each.typical, find)]
    parts.append(_gallery("Doubtful cases", each.doubtful, find, doubtful=True))
    if each.nearest is not None:
        words = (
            f"Closest I know: {each.nearest} (cosine of the centres {figure(each.likeness)}); labelled cases nearest"
        )
        parts.append(_gallery(words, each.beside, find))
    listed = "".join(f"<li>{text(words)}</li>" for words in flags)
    flagged = f'<ul class="flags">{listed}</ul>' if listed else ""
    return f'<article class="proto">{"".join(parts)}{flagged}</article>'


def _gallery(words: str, ids: Sequence[str], find: Find, *, doubtful: bool = False) -> str:
    if not ids:
        return ""
    items = []
    for case in ids:
        picture = find(case)
        shown = ""
        if picture is not None:
            lossless = max(picture.size) <= 64
            shown = image(View(picture, supports=not doubtful).thumbnail(114), f"case {case}", lossless=lossless)
        kind = ' class="other"' if doubtful else ""
        items.append(f"<li{kind}>{shown}{short(case, 22)}</li>")
    return f'<p class="small">{text(words)}</p><ol class="near">{"".join(items)}</ol>'


def _known(found: Discovery) -> str:
    rows = [
        [short(each.name, 40), str(each.labelled), str(each.size), figure(each.confidence), figure(each.stability)]
        for each in found.clusters
        if not each.new
    ]
    head = ["known class", "labelled", "unlabelled cases in it", "clear", "stable"]
    body = table(head, rows, numbers=range(1, 5), stack=True)
    folded = body if len(rows) <= 20 else f"<details><summary>All {len(rows)} known classes</summary>{body}</details>"
    return f"<h3>Known classes</h3>{folded}"
