"""What a search for new classes found, as files: a page to open, JSON for machines, a table of cases."""

from __future__ import annotations

from pathlib import Path

from protolearn.audit.discovered import Discovery
from protolearn.explain.audit_page import as_csv
from protolearn.explain.page import page, section, short, write_text
from protolearn.explain.passes import CaseList
from protolearn.explain.sections.clusters import clusters


def clusters_html(found: Discovery, *cases: CaseList) -> str:
    """Return the findings as one self-contained page: no script, nothing loaded from anywhere."""
    from protolearn import __version__

    title = f"New classes in {found.facts.get('data')}"
    return page(
        title,
        f"<header><div><h1>{short(title, 90)}</h1></div></header>\n"
        f"<main>{section('clusters', 'Clusters beside the known classes', clusters(found, *cases))}</main>\n"
        f"<footer>Written by protolearn {__version__}. Everything is in this file; it loads nothing.</footer>",
    )


def save_discovery_folder(found: Discovery, folder: str | Path, *cases: CaseList) -> list[Path]:
    """Write everything there is: the page, the JSON, and a table each of clusters and cases."""
    folder = Path(folder)
    plain = found.to_dict()["clusters"]
    rows = [{k: v if not isinstance(v, list | tuple) else " ".join(v) for k, v in each.items()} for each in plain]
    return [
        write_text(folder / "clusters.html", clusters_html(found, *cases)),
        write_text(folder / "clusters.json", found.to_json()),
        write_text(folder / "clusters.csv", as_csv(rows)),
        write_text(folder / "cases.csv", as_csv(found.table_rows())),
    ]
