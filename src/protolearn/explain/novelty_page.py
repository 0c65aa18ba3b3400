"""What a model has not seen before, as files: a page to open, JSON for machines, tables for a spreadsheet."""

from __future__ import annotations

from pathlib import Path

from protolearn.audit.ood_result import OODResult
from protolearn.explain.audit_page import as_csv
from protolearn.explain.draw import Painter
from protolearn.explain.page import page, section, short, write_text
from protolearn.explain.sections.novelty import novelty


def novelty_html(found: OODResult, painter: Painter | None = None) -> str:
    """Return the findings as one self-contained page: no script, nothing loaded from anywhere."""
    title = f"What {found.facts.get('model')} knows and does not know"
    return page(
        title,
        f"<header><div><h1>{short(title, 90)}</h1></div></header>\n"
        f"<main>{section('novelty', 'Known and foreign', novelty(found, painter))}</main>\n"
        f"<footer>Written by protolearn {found.facts.get('protolearn')}. Everything is in this file; it loads "
        "nothing.</footer>",
    )


def save_novelty_folder(found: OODResult, folder: str | Path, painter: Painter | None = None) -> list[Path]:
    """Write everything there is: the page, the JSON, and a table each of sets, classes and cases."""
    folder = Path(folder)
    made = [
        write_text(folder / "novelty.html", novelty_html(found, painter)),
        write_text(folder / "novelty.json", found.to_json()),
    ]
    tables = {"sets": found.rows(), "classes": found.class_rows(), "cases": found.case_rows()}
    return made + [write_text(folder / f"{name}.csv", as_csv(rows)) for name, rows in tables.items()]
