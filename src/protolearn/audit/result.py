"""What an audit found: scores by metric, what was refused and why, accuracy beside them; as table and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from protolearn.audit.classification import ClassificationResult
from protolearn.audit.metric import About, Score
from protolearn.errors import UsageError, nearest_names


@dataclass(frozen=True)
class Refused:
    """A metric that was not run: what it lacks, and which others need nothing of the kind."""

    about: About
    missing: str

    @property
    def reason(self) -> str:
        """One sentence for a person."""
        other = " or ".join(repr(name) for name in self.about.instead)
        instead = f"; without it, look at {other}" if other else ""
        return f"{self.about.name} needs {self.missing}{instead}"


@dataclass(frozen=True, eq=False)
class AuditResult:
    """What an audit found.

    Attributes
    ----------
    facts : mapping
        Model, data, counts, seed, noise: plain JSON types.
    classified : ClassificationResult
        Scores of the model on the audited cases; accuracy stands beside every metric.
    abouts : mapping of str to About
        What each metric is, in the order of ``scores``.
    scores : mapping of str to Score
        What was found, by metric.
    refused : tuple of Refused
        Metrics that lacked something.
    prototypes : tuple of int
        Ids, in the order of ``Score.per_prototype``.
    cases : tuple of str
        Ids of the audited cases, in the order of ``Score.per_case``.
    """

    facts: Mapping[str, Any]
    classified: ClassificationResult
    abouts: Mapping[str, About]
    scores: Mapping[str, Score]
    refused: tuple[Refused, ...]
    prototypes: tuple[int, ...]
    cases: tuple[str, ...]

    def __getitem__(self, name: str) -> Score:
        """Return the score of a metric.

        Raises
        ------
        UsageError
            If it was refused (why is said) or not run.
        """
        if name in self.scores:
            return self.scores[name]
        for each in self.refused:
            if each.about.name == name:
                raise UsageError(f"{each.reason}")
        known = [*self.scores, *(each.about.name for each in self.refused)]
        raise UsageError(f"no metric {name!r} in this audit: {nearest_names(name, known)}")

    def __contains__(self, name: str) -> bool:
        return name in self.scores

    def __iter__(self) -> Iterator[str]:
        return iter(self.scores)

    def __len__(self) -> int:
        return len(self.scores)

    def rows(self) -> list[dict[str, Any]]:
        """Return one flat row a metric: value, unit, intervals, accuracy; for a CSV or a data frame."""
        made = []
        for name, score in self.scores.items():
            about = self.abouts[name]
            row = {"metric": name, "value": score.value, "unit": about.unit, "better": about.better}
            for key, pair in (("prototypes", score.over_prototypes), ("cases", score.over_cases)):
                row[f"low_over_{key}"], row[f"high_over_{key}"] = (None, None) if pair is None else pair
            row |= {"accuracy": self.classified.accuracy, "variant": about.variant, "notes": " ".join(score.notes)}
            made.append(row)
        return made

    def prototype_rows(self) -> list[dict[str, Any]]:
        """Return one flat row a prototype: its figure in every metric that has one; None where it was not judged."""
        columns = {name: score.per_prototype for name, score in self.scores.items() if score.per_prototype is not None}
        return _flat("prototype", self.prototypes, columns)

    def case_rows(self) -> list[dict[str, Any]]:
        """Return one flat row an audited case: its figure in every metric that has one."""
        columns = {
            name: score.per_case
            for name, score in self.scores.items()
            if score.per_case is not None and len(score.per_case) == len(self.cases)
        }
        return _flat("case", self.cases, columns)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON types; a number that is not finite is None."""
        return {
            "facts": dict(self.facts),
            "accuracy": self.classified.to_dict(),
            "metrics": {name: self._plain(name, score) for name, score in self.scores.items()},
            "refused": {each.about.name: each.reason for each in self.refused},
            "prototypes": list(self.prototypes),
            "cases": list(self.cases),
        }

    def _plain(self, name: str, score: Score) -> dict[str, Any]:
        about = self.abouts[name]
        return {
            "title": about.title,
            "value": score.value,
            "unit": about.unit,
            "better": about.better,
            "variant": about.variant,
            "source": about.source,
            "over_prototypes": None if score.over_prototypes is None else list(score.over_prototypes),
            "over_cases": None if score.over_cases is None else list(score.over_cases),
            "counts": dict(score.counts),
            "extras": _finite(score.extras),
            "notes": list(score.notes),
            "per_prototype": _listed(score.per_prototype),
            "per_case": _listed(score.per_case),
        }

    def to_json(self) -> str:
        """Return one JSON document."""
        return json.dumps(_finite(self.to_dict()), indent=1, allow_nan=False) + "\n"

    def warnings(self) -> list[str]:
        """Return what speaks against the audit as a whole: cases the model was trained on, classes it does not know."""
        made = []
        if seen := self.facts.get("trained_on"):
            made.append(
                f"{seen} of the {len(self.cases)} audited cases are training cases, on which a model looks better than "
                "it is."
            )
        if unknown := self.facts.get("unknown_classes"):
            listed = ", ".join(unknown[:5]) + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else "")
            made.append(f"The model does not know the classes {listed}: their cases count as unlabelled.")
        return made

    def table(self) -> str:
        """Return a plain text table of values with their intervals, and what was refused."""
        accuracy = self.classified.accuracy
        shown = "no labelled case" if accuracy is None else f"{100 * accuracy:.1f} % right"
        head = f"{self.facts.get('model', 'model')} on {self.facts.get('data', 'its cases')}: {shown}"
        width = max([len(name) for name in self.scores] + [6])
        lines = [
            head,
            *self.warnings(),
            "",
            f"{'metric':<{width}}  {'value':>9}  {'over prototypes':>19}  {'over cases':>19}  unit",
        ]
        for name, score in self.scores.items():
            about = self.abouts[name]
            arrow = {"higher": "higher is better", "lower": "lower is better"}.get(about.better, "")
            unit = ", ".join(filter(None, (about.unit, arrow)))
            lines.append(
                f"{name:<{width}}  {figure(score.value):>9}  {span(score.over_prototypes):>19}  "
                f"{span(score.over_cases):>19}  {unit}"
            )
        if self.refused:
            lines += ["", "not run:", *(f"  {each.reason}" for each in self.refused)]
        return "\n".join(lines)


def figure(value: float | None, digits: int = 3) -> str:
    """Return a number as short as it can be read.

    Examples
    --------
    >>> figure(None), figure(12.3456), figure(0.00012), figure(3.0)
    ('-', '12.346', '0.00012', '3')
    """
    if value is None or not math.isfinite(value):
        return "-"
    if value == round(value):
        return str(round(value))
    return f"{value:.2g}" if abs(value) < 0.001 else f"{value:.{digits}f}"


def span(pair: tuple[float, float] | None) -> str:
    """Return an interval for a table.

    Examples
    --------
    >>> span((0.25, 0.5)), span(None)
    ('0.250 to 0.500', '')
    """
    return "" if pair is None else f"{figure(pair[0])} to {figure(pair[1])}"


def _flat(key: str, names: Sequence[Any], columns: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    lists = {name: _listed(values) or [] for name, values in columns.items()}
    return [{key: name, **{column: values[i] for column, values in lists.items()}} for i, name in enumerate(names)]


def _listed(values: Tensor | None) -> list[float | None] | None:
    if values is None:
        return None
    return [v if math.isfinite(v) else None for v in values.detach().double().cpu().tolist()]


def _finite(value: Any) -> Any:
    """Return plain JSON types: a number that is not finite becomes None, a tensor a list."""
    if isinstance(value, Mapping):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    if isinstance(value, torch.Tensor):
        return _finite(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
