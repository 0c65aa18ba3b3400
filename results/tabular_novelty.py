"""New classes of two tables: NCD k-means, NCD spectral clustering, PBN; settings by hidden known classes; json and md.

``python results/tabular_novelty.py [--sets NAME ...]``. Half of the classes are known, the others never labelled.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import sys
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT.parent))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from common import data_folder  # noqa: E402

from protolearn.audit.discovery import discovery_score  # noqa: E402
from protolearn.interop.novel_classes import NovelClasses, hidden_class_search  # noqa: E402

KNOWN = {"satimage": 3, "letter": 13}
ROWS = 1500  # of each table, drawn by the seed 0: spectral clustering takes the cube of the rows
SEEDS = (0, 1, 2)
SPACE: dict[str, Any] = {"weight": [0.2, 0.6], "latent": [10, 20], "dropout": [0.0, 0.2]}
LEARNED: dict[str, Any] = {"epochs": 60, "batch_size": 128}
MARKS = ("<!-- table: written by python results/tabular_novelty.py -->", "<!-- end of table -->")
METHODS: dict[str, dict[str, Any]] = {
    "k-means": {"embedding": "none", "clusterer": "k_means"},
    "NCD k-means": {"embedding": "none", "clusterer": "ncd_k_means"},
    "NCD spectral": {"embedding": "none", "clusterer": "ncd_spectral", "lowest": 0.5},
    "PBN, k-means": {"clusterer": "k_means"},
    "PBN, NCD k-means": {"clusterer": "ncd_k_means"},
    "PBN, NCD spectral": {"clusterer": "ncd_spectral"},
}


def load(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return rows of the training part and their classes."""
    with np.load(data_folder() / "tables" / f"{name}.npz", allow_pickle=False) as z:
        x, y = z["x_train"].astype(np.float64), z["y_train"].astype(int)
    chosen = np.random.default_rng(0).permutation(len(x))[:ROWS]
    return x[chosen], y[chosen]


def main() -> None:
    """Run, and write both files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", nargs="*", default=list(KNOWN), choices=list(KNOWN))
    given = parser.parse_args()
    torch.set_num_threads(1)
    path = ROOT / "tabular_novelty.json"
    kept: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {"sets": {}}
    for name in given.sets:
        x, truth = load(name)
        free = truth >= KNOWN[name]
        y = np.where(free, -1, truth)
        new = len(np.unique(truth[free]))
        start = time.process_time()
        chosen = hidden_class_search(NovelClasses(clusterer="k_means", **LEARNED), x, y, SPACE, folds=2)
        search = time.process_time() - start
        runs: dict[str, Any] = {}
        for method, settings in METHODS.items():
            learned = {} if settings.get("embedding") == "none" else {**LEARNED, **chosen.best}
            for seed in SEEDS:
                start = time.process_time()
                found = NovelClasses(new, random_state=seed, **settings, **learned).fit_predict(x, y)
                seconds = time.process_time() - start
                score = discovery_score(found[free], truth[free], old=[])
                runs.setdefault(method, {})[str(seed)] = {
                    "accuracy": score.all, "nmi": score.nmi, "ari": score.ari, "seconds": seconds
                }  # fmt: skip
        counts = {}
        for space, settings in (("columns", {"embedding": "none"}), ("PBN", {**LEARNED, **chosen.best})):
            counts[space] = [NovelClasses(random_state=seed, **settings).fit(x, y).n_clusters_ for seed in SEEDS]
        kept["sets"][name] = {
            "rows": len(x), "columns": x.shape[1], "known": KNOWN[name], "new": new, "unlabelled": int(free.sum()),
            "sha256": hashlib.sha256(x.tobytes() + truth.tobytes()).hexdigest(), "methods": runs,
            "estimated_new": counts, "search": asdict(chosen), "search_seconds": search,
        }  # fmt: skip
        kept |= {
            "command": "python results/tabular_novelty.py", "date": datetime.date.today().isoformat(),
            "learned": LEARNED, "space": SPACE, "seeds": SEEDS,
            "versions": {p: version(p) for p in ("protolearn", "torch", "scikit-learn", "numpy")},
        }  # fmt: skip
        path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
        print(name, {m: round(mean(kept, name, m, "accuracy"), 3) for m in METHODS}, counts, chosen.best, flush=True)
    write(kept)


def mean(kept: dict[str, Any], name: str, method: str, what: str) -> float:
    """Return the mean over seeds."""
    return float(np.mean([run[what] for run in kept["sets"][name]["methods"][method].values()]))


def write(kept: dict[str, Any]) -> None:
    """Replace the table between the two marks of the page."""
    names = [name for name in KNOWN if name in kept["sets"]]
    head = " | ".join(f"{name}: accuracy | NMI | ARI" for name in names)
    lines = [f"| method | {head} |", f"|---|{'---:|' * 3 * len(names)}"]
    for method in METHODS:
        cells = []
        for name in names:
            values = [run["accuracy"] for run in kept["sets"][name]["methods"][method].values()]
            cells.append(f"{np.mean(values):.3f} ({max(values) - min(values):.3f})")
            cells += [f"{mean(kept, name, method, what):.3f}" for what in ("nmi", "ari")]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    lines += [
        "",
        "| table | rows | known | new | chosen settings | new classes by silhouette: columns, PBN |",
        "|---|---:|---:|---:|---|---|",
    ]
    for name in names:
        entry = kept["sets"][name]
        best = ", ".join(f"{key} {value}" for key, value in entry["search"]["best"].items())
        counts = "; ".join(", ".join(map(str, found)) for found in entry["estimated_new"].values())
        lines.append(f"| {name} | {entry['rows']} | {entry['known']} | {entry['new']} | {best} | {counts} |")
    page = ROOT / "tabular_novelty.md"
    top, rest = page.read_text("utf-8").split(MARKS[0])
    page.write_text(f"{top}{MARKS[0]}\n\n" + "\n".join(lines) + f"\n\n{MARKS[1]}{rest.split(MARKS[1])[1]}", "utf-8")


if __name__ == "__main__":
    main()
