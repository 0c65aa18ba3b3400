"""What a report needs beside the survey, gathered once: the cases to show, the prototypes to show, what is odd."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from protolearn.audit.classification import ClassificationResult
from protolearn.core.bank import PrototypeBank
from protolearn.core.model import PrototypeModel
from protolearn.explain.draw import NO_PICTURE, Painter, View
from protolearn.explain.passes import CaseList, pictured
from protolearn.explain.survey import Survey, explained, telling
from protolearn.structures import Explanation, Source

NEIGHBOURS = 5
"""Nearest training cases shown of a prototype."""

Shown = tuple[int, Explanation, Explanation | None]
"""A case to show: its position, why the predicted class, why the runner-up."""


@dataclass(frozen=True, eq=False)
class Gathered:
    """What every section of a report reads; nothing is added to it later.

    Attributes
    ----------
    model : PrototypeModel
        Reported on.
    train : Cases or None
        Where prototypes come from.
    found : Survey
        What was measured.
    painter : Painter
        Makes the views.
    data_name : str
        What the data are called.
    on_test : bool
        Whether the model is judged by test cases, or only by those it has seen.
    cases : Cases or None
        Of the predictions shown.
    first, best, worst : list
        Predictions shown: the one to learn reading from, other sure ones, and the ones to learn from.
    chosen : tuple of int
        Rows of the bank that are shown with pictures.
    troubles : dict
        What is odd about a prototype, by id.
    """

    model: PrototypeModel
    train: CaseList | None
    found: Survey
    painter: Painter
    data_name: str
    on_test: bool
    cases: CaseList | None
    first: Sequence[Shown]
    best: Sequence[Shown]
    worst: Sequence[Shown]
    chosen: tuple[int, ...]
    troubles: dict[int, list[str]]

    @property
    def names(self) -> Sequence[str]:
        """The classes."""
        return self.model.classes

    @property
    def bank(self) -> PrototypeBank:
        """The prototypes."""
        return self.model.bank

    @property
    def meta(self) -> dict[str, Any]:
        """The model's own record."""
        return dict(self.model.metadata or {})

    @property
    def judged(self) -> ClassificationResult | None:
        """The scores the model is judged by."""
        return self.found.scored

    @property
    def pictured(self) -> bool:
        """Whether there are pictures to show, or only numbers."""
        return all(pictured(cases) for cases in (self.train, self.cases) if cases is not None)

    @property
    def method_name(self) -> str:
        """What the method is called."""
        method = self.model.method
        return str(getattr(type(method), "__name__", "Prototype model")) if method is not None else "Prototype model"


def gather(
    model: PrototypeModel, train: CaseList | None, test: CaseList | None, found: Survey, *, most: int, examples: int
) -> Gathered:
    """Choose what a report shows of a survey, and explain the predictions among it."""
    on_test = found.test is not None and found.test.n > 0
    cases = test if on_test else train
    first, best, worst = _predictions(model, cases, found.scored, examples)
    if not first and not worst:
        # nothing is labelled: the first cases are shown all the same
        cases = test if test is not None and len(test) else train
        shown = [] if cases is None else explained(model, cases, [str(i) for i in cases.ids[: examples + 1]])
        first, best = shown[:1], shown[1:]
    painter = Painter(model, train)
    return Gathered(
        model=model,
        train=train,
        found=found,
        painter=painter,
        data_name=_data_name(model, train if train is not None else test),
        on_test=on_test,
        cases=cases,
        first=first,
        best=best,
        worst=worst,
        chosen=_chosen(model.bank, found, most),
        troubles=_troubles(model.bank, found, painter),
    )


def _predictions(
    model: PrototypeModel, cases: CaseList | None, scores: ClassificationResult | None, examples: int
) -> tuple[list[Shown], list[Shown], list[Shown]]:
    if cases is None or scores is None:
        return [], [], []
    best, worst = telling(scores, examples + 1)
    # the surest one is the example to learn reading from
    parts = best[:1], best[1:], worst[:examples]
    first, others, bad = (explained(model, cases, [scores.ids[i] for i in part]) if part else [] for part in parts)
    return first, others, bad


def _data_name(model: PrototypeModel, cases: CaseList | None) -> str:
    data = (model.metadata or {}).get("data")
    named = data.get("name") if isinstance(data, dict) else None
    return str(named or getattr(cases, "name", "its data"))


def _chosen(bank: PrototypeBank, found: Survey, most: int) -> tuple[int, ...]:
    """Return rows to show: most in charge first within a class, classes in turn, then in the bank's order."""
    use, owners = found.use, bank.owner().tolist()
    by_class: dict[int, list[int]] = {}
    for row in sorted(range(len(bank)), key=lambda r: (-int(use.leading[r]), -int(use.among[r]), r)):
        by_class.setdefault(owners[row], []).append(row)
    taken: list[int] = []
    depth = 0
    while len(taken) < min(most, len(bank)):
        layer = [rows[depth] for rows in by_class.values() if depth < len(rows)]
        taken += layer[: most - len(taken)]
        depth += 1
    return tuple(sorted(taken))


def plain_view(painter: Painter, source: Source | None) -> tuple[View | None, str]:
    """Return the source picture with its place outlined, or None and why; a map would cost a pass a prototype."""
    picture, why = painter.source_picture(source)
    return (None, why) if picture is None or source is None else (View(picture, source.region), "")


def _troubles(bank: PrototypeBank, found: Survey, painter: Painter) -> dict[int, list[str]]:
    """Return what is suspicious about each prototype, by id."""
    told: dict[int, list[str]] = {}
    for key, reason in found.dead.items():
        told.setdefault(key, []).append(f"Dead: {reason}.")
    for group in found.shared:
        for key in group:
            others = _ids([o for o in group if o != key])
            told.setdefault(key, []).append(f"Redundant: stands on the same token as prototype {others}.")
    shared = {frozenset(p) for g in found.shared for p in [(a, b) for a in g for b in g if a < b]}
    for near in found.pairs:
        if frozenset((near.left, near.right)) in shared:
            continue
        for key, other in ((near.left, near.right), (near.right, near.left)):
            figures = f"({near.value:.2g}; a usual pair: {near.usual:.2g})"
            told.setdefault(key, []).append(f"Redundant: hardly differs from prototype {other} {figures}.")
    for key in found.impure:
        told.setdefault(key, []).append("Impure: most of its nearest training cases are of other classes.")
    for key, source, usable in zip(bank.ids.tolist(), bank.sources, bank.usable.tolist(), strict=True):
        if source is None and usable:
            told.setdefault(key, []).append("No training case behind it: it was never projected, or was merged.")
        elif usable and painter.sources is not None:
            doubt = painter.source_picture(source)[1]
            if doubt and doubt != NO_PICTURE:
                told.setdefault(key, []).append(f"Source in doubt: {doubt}.")
    return dict(sorted(told.items()))


def _ids(keys: Sequence[int]) -> str:
    return ", ".join(map(str, keys[:8])) + (f" and {len(keys) - 8} more" if len(keys) > 8 else "")
