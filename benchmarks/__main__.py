"""``python -m benchmarks [NAME ...]``: measure, print the table, write it down."""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

NAMES = (
    "training",
    "matching",
    "nearest",
    "projection",
    "last_layer",
    "maps",
    "audits",
    "contrastive",
    "batch_job",
    "startup",
    "tables",
    "novelty",
    "discovery",
)
HERE = Path(__file__).resolve().parent
TABLE = ("<!-- table: written by python -m benchmarks -->", "<!-- end of table -->")


def main(argv: list[str] | None = None) -> int:
    """Measure the named questions, all by default; return 0 whatever the figures are."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(NAMES)}; all by default")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, one round: shows that the scripts run")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the rows go, beside those of other questions")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="all cores by default")
    parser.add_argument("--peer", metavar="PYTHON", help="interpreter with cabrnet (or the variable CABRNET_PYTHON)")
    given = parser.parse_args(argv)
    unknown = [name for name in given.names if name not in NAMES]
    if unknown:
        parser.error(f"no question is called {unknown[0]!r}: choose among {', '.join(NAMES)}")
    names = [name for name in NAMES if name in given.names] or list(NAMES)
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # before torch is imported, and for child processes
        os.environ[variable] = str(given.threads)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")

    import torch

    torch.set_num_threads(given.threads)
    from benchmarks.measure import Plan
    from benchmarks.peers.process import Peer, find_peer

    python, why = find_peer(given.peer)
    peer = None if python is None else Peer(python, given.threads)
    path = given.json or (None if given.quick else HERE / "results.json")
    found: dict[str, Any] = {}
    try:
        facts = machine(given.threads, {} if peer is None else peer.versions)
        for name in names:
            module = importlib.import_module(f"benchmarks.{name}")
            print(f"{module.TITLE} ...", file=sys.stderr, flush=True)
            load = round(os.getloadavg()[0], 1)
            rows = [as_dict(row) for row in module.run(Plan(given.quick, given.threads, peer, why))]
            found[name] = {"title": module.TITLE, **facts, "load": load, "quick": given.quick, "rows": rows}
            if path is not None:
                keep(path, found)
    finally:
        if peer is not None:
            peer.close()
    show(found)
    if path == HERE / "results.json":
        write_table(HERE / "README.md", json.loads(path.read_text(encoding="utf-8")))
    return 0


def keep(path: Path, found: dict[str, Any]) -> None:
    """Write what was found into a file that may hold other questions of earlier runs."""
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    known |= found
    ordered = {name: known[name] for name in NAMES if name in known}
    path.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")


def machine(threads: int, peer: dict[str, str]) -> dict[str, Any]:
    """Return what the figures were measured on, in words."""
    versions = {name: version(name) for name in ("protolearn", "torch", "torchvision", "lightning", "timm")}
    versions["python"] = platform.python_version()
    if peer:
        versions["cabrnet"] = f"{peer['cabrnet']} (torch {peer['torch']})"
    cores = len(os.sched_getaffinity(0))
    return {
        "date": datetime.date.today().isoformat(),
        "machine": f"{cores} cores, {platform.machine()}, {platform.system()}, {threads} threads, no accelerator",
        "versions": versions,
    }


def as_dict(row: Any) -> dict[str, Any]:
    """Return plain JSON types."""
    return {**vars(row), "target": row.target, "met": row.met}


def cells(row: dict[str, Any]) -> tuple[str, str, str, str, str, str]:
    """Return a row of the table."""
    unit = "" if row["unit"] == "x" else f" {row['unit']}"
    value = "not measured" if row["value"] is None else f"{figure(row['value'])}{unit}"
    spread = "" if row["low"] is None else f"{figure(row['low'])} to {figure(row['high'])}"
    met = {True: "yes", False: "**no**", None: ""}[row["met"]]
    return f"{row['what']} / {row['against']}", value, spread, row["target"].replace(" x", ""), met, row["note"]


def figure(value: float) -> str:
    """Return a figure with as many digits as say something, and enough to see on which side of a target it lies."""
    return f"{value:.3f}" if abs(value) < 2 else f"{value:.3g}"


HEADER = ("what / against what", "ratio", "middle half", "target", "met", "sizes and remarks")


def show(found: dict[str, Any]) -> None:
    """Print the table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*HEADER)
    for question in found.values():
        table.add_section()
        table.add_row(f"[bold]{question['title']}")
        for row in question["rows"]:
            table.add_row(*(cell.replace("**", "") for cell in cells(row)))
    Console(width=None if sys.stdout.isatty() else 180).print(table)


def write_table(path: Path, found: dict[str, Any]) -> None:
    """Replace the table between the two marks of a page."""
    text = path.read_text(encoding="utf-8")
    head, rest = text.split(TABLE[0])
    lines = []
    for question in found.values():
        versions = ", ".join(f"{name} {value}" for name, value in question["versions"].items())
        lines += ["", f"### {question['title']}", "", f"| {' | '.join(HEADER)} |", "|---|---:|---|---|---|---|"]
        lines += [f"| {' | '.join(cells(row))} |" for row in question["rows"]]
        lines += ["", f"{question['date']}; {question['machine']}; load {question['load']} before; {versions}."]
    path.write_text(f"{head}{TABLE[0]}\n" + "\n".join(lines) + f"\n\n{TABLE[1]}{rest.split(TABLE[1])[1]}", "utf-8")


if __name__ == "__main__":
    sys.exit(main())
