"""What a model has not seen before: confidences of known and foreign cases, and the foreign ones worth a look."""

from __future__ import annotations

from dataclasses import replace

from protolearn.audit.ood_result import KINDS, KNOWN, ForeignCase, OODResult
from protolearn.audit.result import figure, span
from protolearn.explain.draw import NO_PICTURE, Painter, origin
from protolearn.explain.lettering import number, percent
from protolearn.explain.novelty_charts import confidence_chart
from protolearn.explain.page import decoded_beside, pair, short, table, text, whole
from protolearn.structures import LedgerRow

CLOSEST = 2
"""Prototypes shown beside a foreign case."""


def novelty(found: OODResult, painter: Painter | None = None) -> str:
    """Return the findings as HTML; with a painter, prototypes are shown beside foreign cases."""
    notes = "".join(f'<p class="notice">{text(note[:1].upper() + note[1:])}.</p>' for note in found.notes)
    return (
        f"{_opening(found)}{notes}{_means(found)}{_sets(found)}{_charts(found)}{_examples(found, painter)}"
        f"{_classes(found)}{_settings(found)}"
    )


def _opening(found: OODResult) -> str:
    accuracy = found.classified.accuracy
    right = "" if accuracy is None else f", of which it gets {percent(accuracy)} right"
    sets = ", ".join(f"{text(name)} ({len(found.cases[name])}, {kind})" for name, kind in found.kinds.items())
    return (
        f"<p>A score says how much a case is like what the model knows; higher is more alike. "
        f"{len(found.cases[KNOWN])} cases of its classes{right}, are compared with foreign cases: {sets}. AUROC is the "
        "chance that a known case has the higher confidence of two; 0.5 is none. "
        f"{text(found.convention.words)}.</p>"
    )


def _means(found: OODResult) -> str:
    kinds = [kind for kind in KINDS if found.of_kind(kind)]
    head = ["score", *(f"{kind}, {what}" for kind in kinds for what in ("AUROC", found.convention.title))]
    rows = [
        [text(score), *(figure(found.mean(score, kind, what)) for kind in kinds for what in ("auroc", "fpr")),
         figure(found.accepted(score))]
        for score in found.scores
    ]  # fmt: skip
    return table([*head, "known accepted"], rows, numbers=range(1, 2 * len(kinds) + 2), caption="Means over sets")


def _sets(found: OODResult) -> str:
    head = ["score", "set", "kind", "cases", "AUROC", "95 %", found.convention.title, "95 %", "AUPR known",
            "AUPR foreign", "error", "accepted"]  # fmt: skip
    rows = []
    for score in found.scores:
        for name, kind in found.kinds.items():
            one = found[score, name]
            rows.append([
                text(score), short(name, 30), kind, str(one.foreign), f"<b>{figure(one.auroc)}</b>",
                span(one.intervals.get("auroc")), figure(one.fpr), span(one.intervals.get("fpr")),
                figure(one.aupr_known), figure(one.aupr_foreign), figure(one.detection_error),
                figure(found.accepted(score, name)),
            ])  # fmt: skip
    words = (
        "Error: the least mean share that goes wrong of both kinds, over all thresholds. Accepted: at or above the "
        "model's own threshold. Intervals are over cases, not over trainings."
    )
    body = table(head, rows, numbers=range(3, 12), stack=True)
    folded = body if len(rows) <= 12 else f"<details><summary>All {len(rows)} rows</summary>{body}</details>"
    return f'<h3>Every set</h3>{folded}<p class="small soft">{words}</p>'


def _charts(found: OODResult) -> str:
    drawn = []
    for score in found.scores:
        set_at, parts = found.thresholds[score], found.confidences[score]
        drawn.append(confidence_chart(score, parts, None if set_at is None else set_at[0]))
    first, rest = drawn[0], [chart for chart in drawn[1:] if chart]
    more = f'<details><summary>The other scores</summary><div class="charts">{"".join(rest)}</div></details>'
    return f'<h3>Confidences</h3><div class="charts">{first}</div>{more if rest else ""}'


def _examples(found: OODResult, painter: Painter | None) -> str:
    if not found.examples:
        return ""
    half = (len(found.examples) + 1) // 2
    parts = []
    for heading, words, cases in (
        ("Most foreign", "Least like anything known, by the first score, with what they are closest to.",
         found.examples[:half]),
        ("Most taken for known", "Foreign cases with the highest confidence: what the model would wave through.",
         found.examples[half:]),
    ):  # fmt: skip
        if cases:
            shown = "".join(_example(case, painter) for case in cases)
            parts.append(f"<h3>{heading}</h3><p>{words}</p>{shown}")
    return "".join(parts)


def _example(case: ForeignCase, painter: Painter | None) -> str:
    named = f"{case.part}: {case.case}"
    left = [] if case.picture is None else [whole(case.picture, f"the foreign case {named}", 300)]
    verdict = "" if case.known is None else ("Taken for known" if case.known else "Does not know")
    if verdict:
        left.append(f'<p class="verdict">{verdict}</p>')
    told = number(case.confidence) if abs(case.confidence) < float("inf") else "none"
    left.append(f'<p class="small">confidence {told}</p><p class="small soft">{short(named, 60)}</p>')
    return f'<article class="why"><div>{"".join(left)}</div><div>{_closest(case, painter, named)}</div></article>'


def _closest(case: ForeignCase, painter: Painter | None, named: str) -> str:
    """Return the prototypes most similar to a case, whatever they say about its class."""
    if case.explanation is None or painter is None:
        return ""
    rows = sorted(case.explanation.rows, key=lambda row: -row.similarity)[:CLOSEST]
    rows = [replace(row, contribution=abs(row.contribution)) for row in rows]  # likeness alone: no outline is dashed
    body = "".join(_row(case, row, painter, named) for row in rows)
    predicted = painter.model.classes[case.explanation.predicted]
    return (
        f'<h4>Closest I know</h4><table class="ledger" role="table"><tbody role="rowgroup">{body}</tbody></table>'
        f'<p class="small soft">Of the classes it knows it would say {short(predicted, 40)}.</p>'
    )


def _row(case: ForeignCase, row: LedgerRow, painter: Painter, named: str) -> str:
    there, why = painter.source_view(row)
    made = painter.decoded(row.prototype)
    if made is not None:
        like = decoded_beside(made, row.prototype, there, why)
    elif there is not None:
        source = row.source.case if row.source is not None else ""
        like = pair(there, f"training case {source}, source of prototype {row.prototype}", close_first=True)
    else:
        at = f"token {row.source.position}" if row.source is not None and why == NO_PICTURE else why
        like = f'<div class="absent">{text(at)}</div>'
    if case.picture is None:
        what = f'<div class="absent">token {row.position}</div>'
    else:  # named with its set: cases of several sets may have the same id
        here = painter.case_view(case.picture, named, row)
        what = pair(here, f"foreign case {named} where prototype {row.prototype} matched", close_first=False)
    owner = "of no single class" if row.owner is None else f"class {painter.model.classes[row.owner]}"
    told = (
        f'<div class="big">{number(row.similarity)}</div><div>similarity</div><div class="soft small">prototype '
        f"{row.prototype}, {short(owner, 34)}<br>{short(origin(row.source), 48)}</div>"
    )
    return (
        f'<tr role="row"><td role="cell" class="looks">{what}</td><td role="cell" class="like">{like}</td>'
        f'<td role="cell" class="told">{told}</td></tr>'
    )


def _classes(found: OODResult) -> str:
    """Return the AUROC of each class, the hardest first, of the first score."""
    first = found.scores[0]
    parts = []
    for title, by in (("known class", found.by_class), ("foreign class", found.by_foreign_class)):
        tables = {name: by.get((first, name), {}) for name in found.kinds}
        rows = [
            [short(cls, 40), short(name, 30), figure(value)]
            for name, each in tables.items()
            for cls, value in sorted(each.items(), key=lambda entry: entry[1])[:40]
        ]
        if rows:
            parts.append(table([title, "set", "AUROC"], rows, numbers=[2]))
    if not parts:
        return ""
    words = f"AUROC by class, {first}, the hardest first (40 a set at most)"
    return f'<details><summary>{text(words)}</summary><div class="two">{"".join(parts)}</div></details>'


def _settings(found: OODResult) -> str:
    rows = []
    for score, spec in found.specs.items():
        set_at = found.thresholds[score]
        settings = ", ".join(f"{key} {value}" for key, value in spec.items() if key != "name")
        limit = "none" if set_at is None else f"{number(set_at[0])}, set to accept {percent(set_at[1])}"
        rows.append([text(score), text(settings), limit])
    return f"<details><summary>Settings</summary>{table(['score', 'settings', 'threshold'], rows)}</details>"
