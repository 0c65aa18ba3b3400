"""What scores said of known and foreign cases: a table with near and far sets apart, as OpenOOD has it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from protolearn.audit.classification import ClassificationResult
from protolearn.audit.ood import FIGURES, Convention, OODMetrics
from protolearn.audit.result import _finite, figure, span
from protolearn.core.scorer import Scorer
from protolearn.errors import UsageError, look_up
from protolearn.structures import Explanation

KNOWN = "known"
"""The name of the known cases among the parts of the data."""
KINDS = ("near", "far", "outside")
"""Sets of foreign cases: like the known ones, unlike them, or not said."""


@dataclass(frozen=True, eq=False)
class ForeignCase:
    """A foreign case worth looking at.

    Attributes
    ----------
    part, case : str
        Its set and id.
    confidence : float
        By the first score.
    known : bool or None
        Whether the threshold takes it for known; None where none was set.
    explanation : Explanation or None
        Why it gets the class it gets; its rows say how similar each prototype is. None without prototypes.
    picture : object or None
        A Pillow image, where the case is one.
    """

    part: str
    case: str
    confidence: float
    known: bool | None
    explanation: Explanation | None = None
    picture: Any = None


@dataclass(frozen=True, eq=False)
class OODResult:
    """What was found.

    Attributes
    ----------
    facts : mapping
        Model, data, counts, seed, how scores were fitted: plain JSON types.
    classified : ClassificationResult
        Scores of the model on the labelled known cases: its accuracy stands beside every figure.
    convention : Convention
        What "FPR" means in every figure.
    specs : mapping of str to mapping
        Name and settings of each score, by its label.
    thresholds : mapping of str to (float, float) or None
        Threshold of each score and the share of held-out known cases it was set to accept.
    kinds : mapping of str to str
        Near, far or outside, by set.
    cases : mapping of str to tuple of str
        Ids, by part: "known" and the sets.
    confidences : mapping of str to mapping
        ``(n,)`` by score and part; -inf where a score gave NaN, which counts as unknown.
    detections : mapping of (str, str) to OODMetrics
        By score and set.
    by_class : mapping of (str, str) to mapping
        AUROC of each known class against the set, by score and set.
    by_foreign_class : mapping of (str, str) to mapping
        AUROC of the known cases against each class of the set, where its cases are labelled.
    examples : tuple of ForeignCase
        The most foreign cases, and those most taken for known, by the first score.
    notes : tuple of str
        What a reader must know.
    fitted : mapping of str to Scorer
        The scores themselves, by label: ``model.scorer = result.fitted["knn"]`` keeps one.
    """

    facts: Mapping[str, Any]
    classified: ClassificationResult
    convention: Convention
    specs: Mapping[str, Mapping[str, Any]]
    thresholds: Mapping[str, tuple[float, float] | None]
    kinds: Mapping[str, str]
    cases: Mapping[str, tuple[str, ...]]
    confidences: Mapping[str, Mapping[str, np.ndarray]]
    detections: Mapping[tuple[str, str], OODMetrics]
    by_class: Mapping[tuple[str, str], Mapping[str, float]]
    by_foreign_class: Mapping[tuple[str, str], Mapping[str, float]]
    examples: tuple[ForeignCase, ...] = ()
    notes: tuple[str, ...] = ()
    fitted: Mapping[str, Scorer] = field(default_factory=dict)

    @property
    def scores(self) -> tuple[str, ...]:
        """Labels of the scores, in the order asked for."""
        return tuple(self.specs)

    def __getitem__(self, key: tuple[str, str]) -> OODMetrics:
        """Return what a score did on a set: ``result["energy", "textures"]``.

        Raises
        ------
        UsageError
            If there is no such score or set.
        """
        if not isinstance(key, tuple) or len(key) != 2:
            raise UsageError(f"ask for a score and a set, e.g. result[{self.scores[0]!r}, {next(iter(self.kinds))!r}]")
        look_up("score", key[0], self.specs)
        look_up("set", key[1], self.kinds)
        return self.detections[key]

    def of_kind(self, kind: str) -> list[str]:
        """Return the sets of a kind."""
        look_up("kind of set", kind, dict.fromkeys(KINDS))
        return [name for name, each in self.kinds.items() if each == kind]

    def mean(self, score: str, kind: str, what: str = "auroc") -> float | None:
        """Return the mean of a figure over the sets of a kind, each set counted once; None where there is none."""
        look_up("figure", what, dict.fromkeys(FIGURES))
        found = [getattr(self[score, name], what) for name in self.of_kind(kind)]
        return float(np.mean(found)) if found else None

    def accepted(self, score: str, part: str = KNOWN) -> float | None:
        """Return the share of a part that is at or above the threshold of a score; None where none was set."""
        look_up("score", score, self.specs)
        set_at = self.thresholds[score]
        if set_at is None:
            return None
        return float((self.confidences[score][part] >= set_at[0]).mean())

    def rows(self) -> list[dict[str, Any]]:
        """Return one flat row a score and set, and one a score and kind for the means; for a CSV or a data frame."""
        made = []
        for score in self.scores:
            for kind in KINDS:
                names = self.of_kind(kind)
                for name in names:
                    made.append(self._row(score, name))
                if names:
                    means = {what: self.mean(score, kind, what) for what in FIGURES}
                    made.append({"score": score, "set": f"{kind} (mean)", "kind": kind, **means, **self._beside(score)})
        return made

    def _row(self, score: str, name: str) -> dict[str, Any]:
        found = self[score, name]
        row: dict[str, Any] = {"score": score, "set": name, "kind": self.kinds[name]}
        row |= {what: _finite(getattr(found, what)) for what in FIGURES}
        for what in ("auroc", "fpr"):
            row[f"{what}_low"], row[f"{what}_high"] = found.intervals.get(what, (None, None))
        row |= {"known": found.known, "foreign": found.foreign, "accepted": self.accepted(score, name)}
        return {**row, **self._beside(score)}

    def _beside(self, score: str) -> dict[str, Any]:
        return {
            "known_accepted": self.accepted(score),
            "accuracy": self.classified.accuracy,
            "convention": self.convention.words,
        }

    def class_rows(self) -> list[dict[str, Any]]:
        """Return one flat row a score, set and class, known or foreign: its AUROC."""
        return [
            {"score": score, "set": name, "class": cls, "of": of, "auroc": value}
            for of, table in (("known", self.by_class), ("foreign", self.by_foreign_class))
            for (score, name), found in table.items()
            for cls, value in found.items()
        ]

    def case_rows(self) -> list[dict[str, Any]]:
        """Return one flat row a case: its confidence by every score, and the verdict where a threshold was set."""
        made = []
        for part, ids in self.cases.items():
            for i, case in enumerate(ids):
                row: dict[str, Any] = {"part": part, "case": case}
                for score in self.scores:
                    value, set_at = float(self.confidences[score][part][i]), self.thresholds[score]
                    row[score] = _finite(value)
                    if set_at is not None:
                        row[f"{score}: known"] = value >= set_at[0]
                made.append(row)
        return made

    def to_dict(self) -> dict[str, Any]:
        """Return everything but confidences of single cases as plain JSON types."""
        plain = {
            "facts": dict(self.facts),
            "accuracy": self.classified.to_dict(),
            "convention": self.convention.words,
            "scores": {
                score: {
                    "spec": dict(self.specs[score]),
                    "threshold": None if set_at is None else set_at[0],
                    "rate": None if set_at is None else set_at[1],
                    "known_accepted": self.accepted(score),
                    "mean": {
                        kind: {what: self.mean(score, kind, what) for what in FIGURES}
                        for kind in KINDS
                        if self.of_kind(kind)
                    },
                    "sets": {
                        name: {
                            **self[score, name].to_dict(),
                            "convention": self.convention.words,
                            "kind": self.kinds[name],
                            "accepted": self.accepted(score, name),
                            "by_class": dict(self.by_class.get((score, name), {})),
                            "by_foreign_class": dict(self.by_foreign_class.get((score, name), {})),
                        }
                        for name in self.kinds
                    },
                }
                for score, set_at in self.thresholds.items()
            },
            "examples": [
                {"set": e.part, "case": e.case, "confidence": e.confidence, "known": e.known} for e in self.examples
            ],
            "notes": list(self.notes),
        }
        found: dict[str, Any] = _finite(plain)
        return found

    def to_json(self) -> str:
        """Return one JSON document."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n"

    def table(self) -> str:
        """Return a plain text table: means over near and far sets, then every set."""
        accuracy, pair = self.classified.accuracy, self.classified.interval
        right = "no known case is labelled"
        if accuracy is not None:
            right = f"{100 * accuracy:.1f} % right"
            right += "" if pair is None else f" (95 %: {100 * pair[0]:.1f} to {100 * pair[1]:.1f})"
        head = f"{self.facts.get('model', 'model')} on {self.facts.get('data', 'its cases')}: {right}"
        fpr = self.convention.title
        kinds = [kind for kind in KINDS if self.of_kind(kind)]
        columns = ["score", *(f"{kind} {what}" for kind in kinds for what in ("AUROC", fpr)), "known accepted"]
        means = [
            [score, *(figure(self.mean(score, kind, what)) for kind in kinds for what in ("auroc", "fpr")),
             figure(self.accepted(score))]
            for score in self.scores
        ]  # fmt: skip
        detail = []
        for score in self.scores:
            for kind in kinds:
                for name in self.of_kind(kind):
                    found = self[score, name]
                    detail.append([
                        score, name, kind, str(found.foreign), figure(found.auroc), span(found.intervals.get("auroc")),
                        figure(found.fpr), span(found.intervals.get("fpr")), figure(found.aupr_known),
                        figure(found.aupr_foreign), figure(found.detection_error), figure(self.accepted(score, name)),
                    ])  # fmt: skip
        names = ["score", "set", "kind", "cases", "AUROC", "95 %", fpr, "95 %", "AUPR known", "AUPR foreign",
                 "error", "accepted"]  # fmt: skip
        lines = [head, self.convention.words, "", *_aligned(columns, means, 1), "", *_aligned(names, detail, 3)]
        return "\n".join([*lines, *([""] if self.notes else []), *(f"note: {note}" for note in self.notes)])


def over_runs(results: Sequence[OODResult]) -> list[dict[str, Any]]:
    """Return mean and standard deviation over trainings of the same kind (seeds): one flat row a score and kind of set.

    Raises
    ------
    UsageError
        If there is no result, or they differ in scores, sets or convention.
    """
    if not results:
        raise UsageError("there is no result to average")
    first = results[0]
    for other in results[1:]:
        if (other.scores, other.kinds, other.convention) != (first.scores, first.kinds, first.convention):
            raise UsageError("results to average must have the same scores, sets and convention")
    made = []
    for score in first.scores:
        for kind in (kind for kind in KINDS if first.of_kind(kind)):
            row: dict[str, Any] = {"score": score, "kind": kind, "runs": len(results)}
            for what in ("auroc", "fpr"):
                values = [v for each in results if (v := each.mean(score, kind, what)) is not None]
                row[what] = float(np.mean(values))
                row[f"{what}_std"] = float(np.std(values, ddof=1)) if len(values) > 1 else None
            right = [each.classified.accuracy for each in results if each.classified.accuracy is not None]
            made.append({**row, "accuracy": float(np.mean(right)) if right else None})
    return made


def _aligned(head: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> list[str]:
    """Return lines of a table, the first ``left`` columns to the left, the others to the right."""
    widths = [max(len(row[k]) for row in (head, *rows)) for k in range(len(head))]
    return [
        "  ".join(
            cell.ljust(width) if k < left else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (head, *rows)
    ]
