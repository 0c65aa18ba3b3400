"""What an audit found, for a report: by property of an explanation, with what was not measured and what cannot be."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from protolearn.audit.co12 import CO12, Property
from protolearn.audit.metric import Score
from protolearn.audit.result import AuditResult, figure, span
from protolearn.explain.audit_charts import histogram, interval_strip
from protolearn.explain.lettering import percent
from protolearn.explain.page import short, table, text

WAY = {"higher": "higher is better", "lower": "lower is better", "": "no better way"}
OTHERS = {"train": "training cases", "outside": "cases of no class of the model", "shifted": "altered copies"}
RANGES = {"0-1": "0 to 1", "0-100": "0 to 100", "0-2": "0 to 2"}


def audits(found: AuditResult, shown: frozenset[int] = frozenset()) -> str:
    """Return the findings of an audit as HTML.

    Parameters
    ----------
    found : AuditResult
        What was found.
    shown : frozenset of int
        Prototypes that have a card on the same page (``#pID``), to be linked to.
    """
    parts = [_opening(found)]
    placed: set[str] = set()
    for each in CO12:
        names = [name for name in each.metrics if name in found.scores]
        refused = [r for r in found.refused if r.about.name in each.metrics]
        fresh = [name for name in names if name not in placed]
        placed.update(names)
        parts.append(_property(found, each, names, fresh, [r.reason for r in refused], shown))
    rest = [name for name in found.scores if name not in placed]
    if rest:
        parts.append(f"<h3>Further figures</h3>{_table(found, rest)}{_details(found, rest, shown)}")
    return "".join(parts)


def _opening(found: AuditResult) -> str:
    accuracy, cases = found.classified.accuracy, found.facts.get("cases", {})
    right = "No audited case is labelled." if accuracy is None else f"The model is right on {percent(accuracy)} of them"
    if accuracy is not None:
        low, high = found.classified.interval or (0.0, 1.0)
        right += f" (95 %: {100 * low:.1f} to {100 * high:.1f}); every figure below is to be read beside that."
    others = [f"{count} {OTHERS.get(name, name)}" for name, count in cases.items() if name != "cases"]
    beside = f", with {' and '.join(others)} for metrics that need them" if others else ""
    warned = "".join(f'<p class="notice">{text(each)}</p>' for each in found.warnings())
    seed = text(found.facts.get("seed"))
    return (
        f"{warned}<p>{len(found.cases)} cases were audited{text(beside)} (seed {seed}). {right} "
        "An interval (95 %) says how far a figure would move with other prototypes of this kind, or with other cases "
        "of this kind; it says nothing about another training of the model, nor about data of another kind. The model "
        "was not changed by the audit.</p>"
    )


def _property(
    found: AuditResult, each: Property, names: list[str], fresh: list[str], refused: list[str], shown: frozenset[int]
) -> str:
    body = _table(found, names) if names else ""
    if not each.metrics:
        body = '<p class="notice calm">Nothing here measures it.</p>'
    elif not names:
        body = '<p class="notice calm">Not measured in this audit.</p>'
    if refused:
        listed = "".join(f"<li>{text(reason)}</li>" for reason in refused)
        body += f'<details><summary>{len(refused)} not run</summary><ul class="small">{listed}</ul></details>'
    people = f'<p class="small soft">For people to judge: {text(each.people)}</p>'
    heading = f'<h3>{text(each.name)}</h3><p class="soft">{text(each.asks)}</p>'
    return f"{heading}{body}{_details(found, fresh, shown)}{people}"


def _table(found: AuditResult, names: list[str]) -> str:
    rows = []
    for name in names:
        about, score = found.abouts[name], found.scores[name]
        pair = score.over_cases or score.over_prototypes
        rows.append(
            [
                f'{text(about.title)}<br><code class="small">{text(name)}</code>',
                f"<b>{figure(score.value)}</b>",
                interval_strip(score.value, pair, about.unit),
                span(score.over_prototypes),
                span(score.over_cases),
                f"{text(RANGES.get(about.unit, about.unit))}<br><span class='small soft'>{WAY[about.better]}</span>",
            ]
        )
    head = ["what", "figure", "on its scale", "over prototypes", "over cases", "unit"]
    return table(head, rows, numbers=[1, 3, 4], stack=True)


def _details(found: AuditResult, names: list[str], shown: frozenset[int]) -> str:
    if not names:
        return ""
    parts = "".join(_detail(found, name, found.scores[name], shown) for name in names)
    return f"<details><summary>How these were measured</summary>{parts}</details>"


def _detail(found: AuditResult, name: str, score: Score, shown: frozenset[int]) -> str:
    about = found.abouts[name]
    lines = [f"<p><b>{text(about.title)}</b>: {text(about.variant)}. Source: {text(about.source)}.</p>"]
    lines += [f'<p class="notice calm">{text(note)}</p>' for note in score.notes]
    told = [f"<li>{text(what)} <b>{count}</b></li>" for what, count in score.counts.items()]
    told += [f"<li>{text(what)} <b>{figure(value)}</b></li>" for what, value in _numbers(score.extras)]
    if told:
        lines.append(f'<ul class="counts">{"".join(told)}</ul>')
    if score.per_prototype is not None:
        values = score.per_prototype.double().tolist()
        lines.append(histogram(values, f"{about.title} over prototypes", about.unit))
        lines.append(_extremes(found, values, about.better, shown))
    return "".join(lines)


def _numbers(extras: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Return figures by name, those of a small table under it one by one; longer lists are left to the JSON."""
    found = []
    for what, value in extras.items():
        inner = value.items() if isinstance(value, Mapping) and len(value) <= 6 else [("", value)]
        for key, v in inner:
            if isinstance(v, int | float) and not isinstance(v, bool):
                found.append((f"{what}, {key}" if key else what, float(v)))
    return found


def _extremes(found: AuditResult, values: list[float], better: str, shown: frozenset[int], most: int = 8) -> str:
    """Return the prototypes with the worst figures, linked to their cards where those are on the page."""
    if not better:
        return ""
    judged = [(v, key) for v, key in zip(values, found.prototypes, strict=True) if math.isfinite(v)]
    worst = sorted(judged, key=lambda entry: entry[0] if better == "higher" else -entry[0])[:most]
    if len(judged) < 2 or worst[0][0] == worst[-1][0] == max(v for v, _ in judged):
        return ""
    links = [
        f'{f"<a href=#p{key}>{key}</a>" if key in shown else key} <span class="soft">({figure(v)})</span>'
        for v, key in worst
    ]
    return f'<p class="small">Weakest prototypes: {", ".join(links)}</p>'


def audit_tiles(found: AuditResult) -> str:
    """Return the head of a page about an audit alone."""
    accuracy = found.classified.accuracy
    tiles = [(percent(accuracy), "of the audited cases right")] if accuracy is not None else []
    tiles += [
        (str(len(found.scores)), "metrics run"),
        (str(len(found.refused)), "not run, for want of marks or data"),
        (str(found.facts.get("usable")), "prototypes in use"),
    ]
    listed = "".join(f"<li><b>{text(value)}</b><span>{text(words)}</span></li>" for value, words in tiles)
    return f'<ul class="tiles">{listed}</ul><p class="soft">Data: {short(found.facts.get("data"), 90)}</p>'
