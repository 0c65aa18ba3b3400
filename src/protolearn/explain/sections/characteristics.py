"""What prototypes look at, for a report: falls of similarity by visual characteristic, in figures and in words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from protolearn.explain.described import Characteristics
from protolearn.explain.lettering import signed
from protolearn.explain.page import short, table, text
from protolearn.explain.perturb import perturbation
from protolearn.explain.wording import LITTLE, MUCH, NOTHING

FIRST = 24
"""Prototypes listed openly, those that stand out most; the rest unfold."""
PAIRS = 12


def characteristics(found: Characteristics, shown: frozenset[int] = frozenset()) -> str:
    """Return prototypes by visual characteristic as HTML; ``shown`` have a card on the same page (``#pID``)."""
    notes = "".join(f'<p class="notice calm">{text(note)}</p>' for note in found.notes)
    return f"{_opening(found)}{notes}{_prototypes(found, shown)}{_checks(found)}{_alike(found, shown)}"


def _opening(found: Characteristics) -> str:
    facts, over = found.facts, found.train
    of = "" if facts["cases"] == facts["of"] else f" of {facts['of']} (seed {facts['seed']}"
    if of:
        of += "; none that a prototype comes from)" if facts["sources_left_out"] else ")"
    altered = "; ".join(f"<b>{text(name)}</b>: {text(perturbation(name).words)}" for name in over.names)
    settings = "at the published settings" if facts["strength"] == 1 else f"at {facts['strength']} times those"
    return (
        f"<p>{over.cases} training pictures{of} were altered in one characteristic at a time, {settings} ({altered}). "
        "A figure says how far the similarity to a prototype falls by that, at the place where the unaltered picture "
        "matched, averaged with the similarity as weight: large, it matters; near 0, it does not; below 0, the altered "
        "picture is more alike.</p>"
        "<p>Alterations are not of one strength, so compare figures down a column, not along a row. The bars are times "
        "the usual fall of the column, full at 3 times. Words compare those along a row: “matched for” is what lies at "
        f"least {MUCH} times as high as the prototype's own mean, “not for” at most {LITTLE} times, up or "
        "down; the usual fall is the mean size over prototypes. No words: nothing stands out. A colour is that of the "
        "prototype's own place in its training picture.</p>"
    )


def _prototypes(found: Characteristics, shown: frozenset[int]) -> str:
    over = found.train
    if not over.prototypes:
        return "<p>No prototype is in use.</p>"
    relative = over.relative
    order = np.argsort(-np.abs(relative).max(1), kind="stable").tolist()
    first, rest = order[:FIRST], order[FIRST:]
    more = ""
    if rest:
        more = (
            f"<details><summary>{len(rest)} more prototypes</summary>{_table(found, relative, rest, shown)}</details>"
        )
    return _table(found, relative, first, shown) + more


def _table(found: Characteristics, relative: np.ndarray, rows: Sequence[int], shown: frozenset[int]) -> str:
    over, kept = found.train, [m for m, told in enumerate(found.told) if told]
    body = []
    for k in rows:
        key, owner = over.prototypes[k], found.owners[k]
        whose = "" if owner is None else f", class {short(owner, 24)}"
        said = found.words(key)
        words = f"{_link(key, shown)}{whose}"
        if said != NOTHING:
            words += f'<br><span class="small soft">{text(said)}</span>'
        body.append([words, *(_cell(float(over.importance[k, m]), float(relative[k, m])) for m in kept)])
    usual = found.usual
    if usual is not None:
        body.append(["<span class='soft'>usual fall</span>", *(f"{usual[m]:.2f}" for m in kept)])
    made = table(["prototype", *(text(over.names[m]) for m in kept)], body, numbers=range(1, 1 + len(kept)), stack=True)
    return f'<div class="looksat">{made}</div>'


def _cell(value: float, relative: float) -> str:
    wide = min(abs(relative) / 3.0, 1.0)
    kind = "minus" if value < 0 else "plus"
    bar = f'<div class="bar" aria-hidden="true"><i class="{kind}" style="width:{100 * wide:.0f}%"></i></div>'
    return f"{signed(value)}{bar}"


def _checks(found: Characteristics) -> str:
    if not found.generalises:
        return (
            '<p class="notice calm">Not checked on other pictures: without held-out ones the description holds for the '
            "training pictures only.</p>"
        )
    rows = [
        [
            text(each.name), f"{each.train:+.3f}", f"{each.test:+.3f}", _p(each.p), _p(each.normal_train),
            _p(each.normal_test), "—" if each.correlation is None else f"{each.correlation:.2f}",
        ]
        for each, told in zip(found.generalises, found.told, strict=True)
        if told
    ]  # fmt: skip
    head = ["", "mean, training", "mean, held-out", "Welch p", "Shapiro p, training", "Shapiro p, held-out", "r"]
    apart = [each.name for each in found.generalises if each.p is not None and each.p < 0.05]
    told = (
        f"The means of {', '.join(apart)} differ between the two parts (p below 0.05, {len(rows)} tests, "
        "not corrected)."
        if apart
        else "No difference of means was found, which is no proof that there is none."
    )
    return (
        f"<h3>The same on other pictures?</h3><p>Importances over {found.facts['cases']} training pictures and over "
        f"{found.facts['test_cases']} held-out ones. Welch's test asks whether their means over prototypes are equal "
        "and is rough where Shapiro-Wilk's says that they are not spread normally (p below 0.05); r is the correlation "
        f"over prototypes. {told}</p>{table(head, rows, numbers=range(1, 7), stack=True)}"
    )


def _alike(found: Characteristics, shown: frozenset[int]) -> str:
    if not found.alike:
        return ""
    items = ""
    for pair in found.alike[:PAIRS]:
        kind = "the same by their vectors too: duplicates" if pair.duplicates else "different vectors"
        whose = "of one class" if pair.same_class else "not of one class"
        items += f"<li>{_link(pair.left, shown)} and {_link(pair.right, shown)}, {whose}; {kind}</li>"
    rest = len(found.alike) - PAIRS
    items += f"<li>and {rest} more pairs</li>" if rest > 0 else ""
    return (
        "<h3>Prototypes that react alike</h3><p>For these pairs the same characteristics matter as much, within 0.05 "
        f'of a usual fall in every column. That alone does not make them duplicates.</p><ul class="small">{items}</ul>'
    )


def _link(key: int, shown: frozenset[int]) -> str:
    return f'<a href="#p{key}">Prototype {key}</a>' if key in shown else f"Prototype {key}"


def _p(value: float | None) -> str:
    return "—" if value is None else "&lt; 0.001" if value < 0.001 else f"{value:.3f}"
