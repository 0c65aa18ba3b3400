"""What a repair did to a model: change by change, and the figures before and after side by side."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from protolearn.audit.classification import ClassificationResult
from protolearn.audit.result import AuditResult
from protolearn.core.model import PrototypeModel
from protolearn.tasks.repair_steps import Change


@dataclass(frozen=True, eq=False)
class RepairResult:
    """A repaired model and what the repair did to it.

    Attributes
    ----------
    model : PrototypeModel
        A copy, repaired; ``metadata["repairs"]`` tells what was done.
    changes : tuple of Change
        One a prototype, in the order of the steps.
    before, after : ClassificationResult
        Of the given and of the repaired model, on the same cases.
    prototypes : (int, int)
        In use, before and after.
    judged_on : str
        Which cases those are.
    shift : float or None
        Largest change of any score of a training case by merging alone, before anything was fitted; None where nothing
        was merged.
    refitted : ClassificationResult or None
        Of the given model with nothing done but its last layer fitted again, in the same way: what the fitting brings
        by itself. None where nothing was fitted.
    audits : (AuditResult, AuditResult) or None
        Of both models on the same cases.
    notes : tuple of str
        What was not done, and why.
    """

    model: PrototypeModel
    changes: tuple[Change, ...]
    before: ClassificationResult
    after: ClassificationResult
    prototypes: tuple[int, int]
    judged_on: str
    shift: float | None
    refitted: ClassificationResult | None = None
    audits: tuple[AuditResult, AuditResult] | None = None
    notes: tuple[str, ...] = field(default=())

    def of(self, action: str) -> tuple[Change, ...]:
        """Return the changes of one kind."""
        return tuple(change for change in self.changes if change.action == action)

    @property
    def switched(self) -> tuple[int, int]:
        """How many cases are right only after the repair, and how many only before it."""
        was, now = (found.predicted == found.labels for found in (self.before, self.after))
        return int((now & ~was).sum()), int((was & ~now).sum())

    def rows(self) -> list[dict[str, Any]]:
        """Return one row a figure: its name, before, after, and 95 % intervals where there are any."""
        made: list[dict[str, Any]] = [
            {"figure": "prototypes in use", "before": self.prototypes[0], "after": self.prototypes[1]}
        ]
        sides = {"before": self.before, "refitted": self.refitted, "after": self.after}
        known = {side: found for side, found in sides.items() if found is not None}
        made.append(_row("accuracy", {side: (each.accuracy, each.interval) for side, each in known.items()}))
        made.append(_row("balanced accuracy", {side: (each.balanced_accuracy, None) for side, each in known.items()}))
        if self.audits is not None:
            first, second = self.audits
            for name in first:
                if name in second:
                    pair = {"before": first[name], "after": second[name]}
                    made.append(_row(name, {side: (each.value, each.over_cases) for side, each in pair.items()}))
        return made

    def record(self) -> dict[str, Any]:
        """Return what the model keeps of its repair: plain JSON types."""
        better, worse = self.switched
        return {
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "changes": [change.to_dict() for change in self.changes],
            "judged_on": self.judged_on,
            "cases": self.after.n,
            "prototypes": list(self.prototypes),
            "accuracy": [self.before.accuracy, self.after.accuracy],
            "accuracy_of_fitting_alone": None if self.refitted is None else self.refitted.accuracy,
            "right_only_after": better,
            "right_only_before": worse,
            "largest_change_of_a_score_by_merging": self.shift,
            "notes": list(self.notes),
        }

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        audits = None if self.audits is None else [each.to_dict() for each in self.audits]
        return {**self.record(), "figures": self.rows(), "audits": audits}

    def text(self) -> str:
        """Return what was done, and the figures side by side."""
        lines = []
        for change in self.changes:
            lines.append(f"{change.action} {change.prototype} ({change.owner or 'no class'}): {change.reason}")
        lines += [""] if lines else ["nothing to repair"]
        sides = ("before", *(() if self.refitted is None else ("refitted",)), "after")
        cells = [("", *("only refitted" if side == "refitted" else side for side in sides))]
        cells += [(row["figure"], *(_shown(row, side) for side in sides)) for row in self.rows()]
        widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
        lines += ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in cells]
        better, worse = self.switched
        lines.append(f"{self.judged_on}: {better} cases are right only after, {worse} only before")
        if self.shift is not None:
            lines.append(f"merging alone changed no score by more than {self.shift:.2g}")
        return "\n".join([*lines, *(f"Note: {note}" for note in self.notes)])


def _row(name: str, sides: Mapping[str, tuple[float | None, tuple[float, float] | None]]) -> dict[str, Any]:
    row: dict[str, Any] = {"figure": name}
    for side, (value, interval) in sides.items():
        row[side] = value
        row[f"{side}_interval"] = None if interval is None else list(interval)
    return row


def _shown(row: dict[str, Any], side: str) -> str:
    value, interval = row.get(side), row.get(f"{side}_interval")
    if value is None:
        return "-" if side in row else ""
    text = str(value) if isinstance(value, int) else f"{value:.4g}"
    return text if interval is None else f"{text} ({interval[0]:.3g} to {interval[1]:.3g})"
