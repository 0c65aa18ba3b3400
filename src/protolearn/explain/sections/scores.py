"""What a report says of how good the model is."""

from __future__ import annotations

import torch

from protolearn.audit.classification import ClassificationResult
from protolearn.explain import charts
from protolearn.explain.gathered import Gathered
from protolearn.explain.lettering import number, percent
from protolearn.explain.page import short, table


def scores(known: Gathered) -> str:
    """Return how often the model is right, class by class, and whether it knows when."""
    judged = known.judged
    if judged is None or not judged.n:
        return "<p>No labelled case was given, so nothing can be said about how often the model is right.</p>"
    where = "test" if known.on_test else "training"
    low, high = judged.interval or (0.0, 1.0)
    parts = [
        f"<p>On {judged.n} {where} cases the model is right {percent(judged.accuracy)} of the time. With so many "
        f"cases, anything from {100 * low:.1f} to {100 * high:.1f} % is compatible with that (Wilson, 95 %). "
        + _other_part(known)
        + "</p>"
        + _unknown(known, judged)
    ]
    rows = []
    for s in judged.per_class:
        span = "–" if s.interval is None else f"{100 * s.interval[0]:.0f} to {100 * s.interval[1]:.0f}"
        rows.append([short(s.name, 60), str(s.count), percent(s.recall), span, percent(s.precision)])
    shown = table(
        ["class", "cases", "found (recall)", "95 % range", "right when said (precision)"], rows, numbers=range(1, 5)
    )
    if len(rows) > 40:
        shown = f"<details><summary>All {len(rows)} classes</summary>{shown}</details>"
    sure = (
        "<h3>Does it know how sure it is</h3><p>Each point holds cases about which the model was equally sure. On "
        "the dashed line it is right as often as it is sure; below it is too sure, above too modest. Large points "
        f"hold many cases. The mean gap (expected calibration error, 15 bins) is {number(judged.ece or 0.0, 3)}.</p>"
        + charts.reliability_chart(judged.bins)
    )
    parts.append(f'<div class="two"><div><h3>Class by class</h3>{shown}</div><div>{sure}</div></div>')
    parts.append("<h3>Which classes are taken for which</h3>" + _confusion(known, judged))
    return "".join(parts)


def _unknown(known: Gathered, judged: ClassificationResult) -> str:
    count = int(known.model.head.abstains(torch.from_numpy(judged.logits)).sum())
    if not count:
        return ""
    return (
        f"<p>For {count} of these cases the model <strong>does not know</strong>: no class scores anything. They are "
        "counted here as if it had named the first class.</p>"
    )


def _other_part(known: Gathered) -> str:
    train = known.found.train
    if not known.on_test or train is None or not train.n:
        return ""
    return f"On the {train.n} training cases it is right {percent(train.accuracy)} of the time."


def _confusion(known: Gathered, scores: ClassificationResult) -> str:
    counts = scores.confusion.tolist()
    pairs = sorted(
        ((counts[r][c], r, c) for r in range(len(counts)) for c in range(len(counts)) if r != c and counts[r][c]),
        key=lambda entry: (-entry[0], entry[1], entry[2]),
    )[:8]
    listed = ""
    if pairs:
        rows = [[short(known.names[r], 60), short(known.names[c], 60), str(n)] for n, r, c in pairs]
        listed = table(["most often, this", "was taken for", "cases"], rows, numbers=[2])
    if len(counts) > 20:
        return f'<div class="two">{charts.confusion_chart(counts)}<div>{listed}</div></div>'
    head = "".join(f'<th scope="col">{short(name, 22)}</th>' for name in known.names)
    body = []
    for r, name in enumerate(known.names):
        total = sum(counts[r]) or 1
        cells = []
        for c, n in enumerate(counts[r]):
            tone = "var(--for)" if r == c else "var(--against)"
            style = (
                f' style="background:color-mix(in srgb,{tone} {round(8 + 42 * n / total)}%,transparent)"' if n else ""
            )
            cells.append(f"<td{style}>{n if n else '<span class=soft>·</span>'}</td>")
        body.append(f'<tr><th scope="row">{short(name, 30)}</th>{"".join(cells)}</tr>')
    matrix = (
        '<div class="scroll"><table class="confusion"><caption>Rows: the label. Columns: what the model '
        "said.</caption>"
        f"<thead><tr><td></td>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )
    if sum(min(len(str(name)), 22) for name in known.names) > 40:  # beside a list its last columns would be hidden
        return matrix + listed
    return f'<div class="two">{matrix}<div>{listed}</div></div>' if listed else matrix
