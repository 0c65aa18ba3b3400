"""What a search for associations found: every test, and the table of them as text, CSV or plain JSON types."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Association:
    """One test. Numbers are None where the test could not be made, and ``status`` says why.

    Attributes
    ----------
    family, regressor, owner, source : str
        What was tested, its class, the training case behind it.
    label : str
        The external label.
    n, cases : int
        Records used, and how many of them have the label.
    odds_ratio : float or None
        Per standard deviation of the regressor over the cohort.
    interval : (float, float) or None
        Wald's 95 % interval of the odds ratio.
    p, corrected : float or None
        Wald's two-sided p-value, as it is and corrected over all tests.
    significant : bool
        Corrected p-value at most the level; False where there is none.
    status : str
        Empty, or why it is not estimable.
    """

    family: str
    regressor: str
    owner: str
    source: str
    label: str
    n: int
    cases: int
    odds_ratio: float | None = None
    interval: tuple[float, float] | None = None
    p: float | None = None
    corrected: float | None = None
    significant: bool = False
    status: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        low, high = (None, None) if self.interval is None else self.interval
        return {**{key: value for key, value in vars(self).items() if key != "interval"}, "low": low, "high": high}


COLUMNS = (
    "family", "regressor", "owner", "label", "n", "cases", "odds_ratio", "low", "high", "p", "corrected", "significant",
    "status", "source",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class AssociationTable:
    """Every test, the smallest p-value first, and what they stand on.

    Attributes
    ----------
    rows : tuple of Association
        Those that are not estimable come last.
    correction, alpha : str, float
        How p-values were corrected, and the level.
    tests : int
        How many they were corrected for: all that were tried, those that are not estimable too.
    dropped : mapping of str to str
        Labels that were not tested, and why.
    missing : mapping of str to int
        Records in which a label is not known, left out for that label.
    counts : mapping of str to int
        Records, groups, tests by family ...
    notes : tuple of str
        What a reader must know.
    """

    rows: tuple[Association, ...]
    correction: str
    alpha: float
    tests: int
    dropped: Mapping[str, str] = field(default_factory=dict)
    missing: Mapping[str, int] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def significant(self, family: str | None = None) -> tuple[Association, ...]:
        """Return the associations that hold after correction, of one family or all."""
        return tuple(row for row in self.rows if row.significant and family in (None, row.family))

    def by_family(self) -> dict[str, dict[str, int]]:
        """Return for each family of regressors how many tests were tried, estimable and significant."""
        found: dict[str, dict[str, int]] = {}
        for row in self.rows:
            entry = found.setdefault(row.family, {"tests": 0, "estimable": 0, "significant": 0})
            entry["tests"] += 1
            entry["estimable"] += row.p is not None
            entry["significant"] += row.significant
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {
            "correction": self.correction,
            "alpha": self.alpha,
            "tests": self.tests,
            "families": self.by_family(),
            "dropped": dict(self.dropped),
            "missing": dict(self.missing),
            "counts": dict(self.counts),
            "notes": list(self.notes),
            "rows": [row.to_dict() for row in self.rows],
        }

    def csv_text(self) -> str:
        """Return every test as CSV; empty cells where there is no number."""
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for row in self.rows:
            plain = row.to_dict()
            writer.writerow({name: "" if plain[name] is None else _cell(plain[name]) for name in COLUMNS})
        return text.getvalue()

    def text(self, most: int = 20) -> str:
        """Return the first rows as lines of text."""
        lines = [("regressor", "class", "label", "cases", "odds ratio (95 %)", "p", "corrected")]
        for row in self.rows[:most]:
            name = row.regressor if row.family == "prototype" else f"{row.family} {row.regressor}"
            ratio, p, corrected = row.status, "", ""
            if row.odds_ratio is not None and row.interval is not None:
                ratio = f"{row.odds_ratio:.3g} ({row.interval[0]:.3g} to {row.interval[1]:.3g})"
                p, corrected = f"{row.p:.2g}", f"{row.corrected:.2g}{' *' if row.significant else ''}"
            lines.append((name, row.owner, row.label, f"{row.cases}/{row.n}", ratio, p, corrected))
        widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
        return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def _cell(value: Any) -> Any:
    return int(value) if isinstance(value, bool) else f"{value:.8g}" if isinstance(value, float) else value
