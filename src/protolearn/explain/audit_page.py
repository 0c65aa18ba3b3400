"""An audit as files: a page to open, JSON for machines, tables for a spreadsheet."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from protolearn.audit.result import AuditResult
from protolearn.errors import UsageError
from protolearn.explain import charts
from protolearn.explain.page import page, section, short, write_text
from protolearn.explain.sections.audits import audit_tiles, audits

FORMS = (".html", ".json", ".csv")


def save_audit(found: AuditResult, path: str | Path) -> Path:
    """Write an audit whole or not at all: ``.html``, ``.json`` or ``.csv`` (one row a metric) by the file's suffix.

    Raises
    ------
    UsageError
        If the suffix is another.

    Examples
    --------
    >>> import tempfile
    >>> from protolearn.data import digits
    >>> from protolearn.encoders import SmallEncoder
    >>> from protolearn.methods import get_method
    >>> from protolearn.tasks.audit import audit
    >>> model = get_method("protopnet")(prototypes_per_class=1).build(SmallEncoder(), 10)
    >>> result = audit(model, digits("test").subset(range(4)), metrics="quick")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     "Coherence" in save_audit(result, f"{folder}/audit.html").read_text(encoding="utf-8")
    True
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in FORMS:
        raise UsageError(f"an audit is written as {', '.join(FORMS)}, got {path.name!r}")
    if suffix == ".json":
        return write_text(path, found.to_json())
    return write_text(path, audit_html(found) if suffix == ".html" else as_csv(found.rows()))


def save_audit_folder(found: AuditResult, folder: str | Path) -> list[Path]:
    """Write everything there is: the page, the JSON, and a table each of metrics, prototypes and cases."""
    folder = Path(folder)
    made = [save_audit(found, folder / f"audit{suffix}") for suffix in (".html", ".json")]
    tables = {"metrics": found.rows(), "prototypes": found.prototype_rows(), "cases": found.case_rows()}
    return made + [write_text(folder / f"{name}.csv", as_csv(rows)) for name, rows in tables.items()]


def as_csv(rows: list[dict[str, Any]]) -> str:
    """Return flat rows as CSV; an empty cell is what was not judged."""
    held = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(held, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return held.getvalue()


def audit_html(found: AuditResult) -> str:
    """Return an audit as one self-contained page: no script, nothing loaded from anywhere."""
    title = f"Audit of {found.facts.get('model')} on {found.facts.get('data')}"
    drawn = charts.reliability_chart(found.classified.bins)
    if "risk_coverage" in found and found["risk_coverage"].extras.get("curve"):
        drawn += charts.risk_coverage_chart(**found["risk_coverage"].extras["curve"])
    calibrated = f'<div class="charts">{drawn}</div>' if drawn else ""
    return page(
        title,
        f"<header><div><h1>{short(title, 90)}</h1>{audit_tiles(found)}</div></header>\n"
        f"<main>{section('audit', 'What the explanations are worth', audits(found), calibrated)}</main>\n"
        f"<footer>Written by protolearn {found.facts.get('protolearn')}. Everything is in this file; it loads "
        "nothing.</footer>",
    )
