"""Outliers of six tables: mean-shifted autoencoders beside neighbours, isolation forest and LOF; json and md.

``python results/tabular_outliers.py [--sets NAME ...]``. Nothing was chosen by labels: every detector runs with its
defaults, trained on all rows without labels, and ranks the same rows.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT.parent))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from common import data_folder  # noqa: E402
from sklearn.ensemble import IsolationForest  # noqa: E402
from sklearn.metrics import average_precision_score, roc_auc_score  # noqa: E402
from sklearn.neighbors import LocalOutlierFactor, NearestNeighbors  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402

from protolearn.interop.outliers import VERIFIED, AutoencoderOutliers  # noqa: E402

SETS = ("breastw", "cardio", "Ionosphere", "thyroid", "vowels", "yeast")
SEEDS = (0, 1, 2)
MARKS = ("<!-- table: written by python results/tabular_outliers.py -->", "<!-- end of table -->")


def neighbours(x: np.ndarray, seed: int) -> np.ndarray:
    """Return the distance to the 30th other row."""
    found: np.ndarray = NearestNeighbors(n_neighbors=30).fit(x).kneighbors()[0][:, -1]
    return found


def autoencoder(**settings: Any) -> Any:
    """Return a detector: an autoencoder with these settings."""
    return lambda x, seed: AutoencoderOutliers(random_state=seed, **settings).fit(x).outlier_scores_


DETECTORS: dict[str, Any] = {
    "autoencoder": autoencoder(probabilistic=False, shifts=0),
    "autoencoder, mean shift": autoencoder(probabilistic=False),
    "probabilistic autoencoder, likelihood": autoencoder(rank_by="likelihood", shifts=0),
    "probabilistic autoencoder, error": autoencoder(shifts=0),
    "probabilistic autoencoder, error, mean shift (default)": autoencoder(),
    "probabilistic autoencoder, likelihood, mean shift": autoencoder(rank_by="likelihood"),
    "30th neighbour's distance": neighbours,
    "isolation forest": lambda x, seed: -IsolationForest(random_state=seed).fit(x).score_samples(x),
    "LOF, 20 neighbours": lambda x, seed: -LocalOutlierFactor().fit(x).negative_outlier_factor_,
    "LOF, 30 neighbours": lambda x, seed: -LocalOutlierFactor(30).fit(x).negative_outlier_factor_,
}
RANDOM = ("autoencoder", "probabilistic", "isolation")


def load(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return rows and marks (1 = anomaly) of one table, repeated rows included."""
    with np.load(data_folder() / "anomaly_tables" / f"{name}.npz", allow_pickle=False) as z:
        return z["x"].astype(np.float64), z["y"].astype(int)


def main() -> None:
    """Run, and write both files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", nargs="*", default=list(SETS), choices=SETS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    path = ROOT / "tabular_outliers.json"
    kept: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {"sets": {}}
    for name in given.sets:
        x, y = load(name)
        runs: dict[str, Any] = {}
        for seed in SEEDS:
            for detector, score in DETECTORS.items():
                if seed and not detector.startswith(RANDOM):
                    continue  # draws nothing
                start = time.process_time()
                found = score(StandardScaler().fit_transform(x), seed)
                seconds = time.process_time() - start
                runs.setdefault(detector, {})[str(seed)] = {
                    "auroc": float(roc_auc_score(y, found)),
                    "average_precision": float(average_precision_score(y, found)), "seconds": seconds,
                }  # fmt: skip
        digest = hashlib.sha256(x.tobytes() + y.tobytes()).hexdigest()
        repeated = len(x) - len(np.unique(x, axis=0))
        kept["sets"][name] = {
            "rows": len(x), "columns": x.shape[1], "anomalies": int(y.sum()), "repeated_rows": repeated,
            "sha256": digest, "detectors": runs,
        }  # fmt: skip
        kept |= {
            "command": "python results/tabular_outliers.py", "date": datetime.date.today().isoformat(),
            "verified": VERIFIED, "settings": AutoencoderOutliers().get_params() | {"random_state": "the seed"},
            "versions": {p: version(p) for p in ("protolearn", "torch", "scikit-learn", "numpy")},
        }  # fmt: skip
        path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
        print(name, {d: round(mean(kept, name, d, "auroc"), 3) for d in DETECTORS}, flush=True)
    write(kept)


def mean(kept: dict[str, Any], name: str, detector: str, what: str) -> float:
    """Return the mean over seeds."""
    return float(np.mean([run[what] for run in kept["sets"][name]["detectors"][detector].values()]))


def spread(kept: dict[str, Any], name: str, detector: str, what: str) -> float:
    """Return the largest difference between seeds."""
    values = [run[what] for run in kept["sets"][name]["detectors"][detector].values()]
    return max(values) - min(values)


def write(kept: dict[str, Any]) -> None:
    """Replace the tables between the two marks of the page."""
    names = [name for name in SETS if name in kept["sets"]]
    lines = ["| table | rows | columns | anomalies | repeated rows |", "|---|---:|---:|---:|---:|"]
    for name in names:
        entry = kept["sets"][name]
        lines.append(
            f"| {name} | " + " | ".join(str(entry[k]) for k in ("rows", "columns", "anomalies", "repeated_rows")) + " |"
        )
    for what, title in (("auroc", "AUROC"), ("average_precision", "average precision")):
        lines += ["", f"| {title} | {' | '.join(names)} | mean |", f"|---|{'---:|' * (len(names) + 1)}"]
        for detector in DETECTORS:
            values = [mean(kept, name, detector, what) for name in names]
            cells = []
            for name, value in zip(names, values, strict=True):
                apart = spread(kept, name, detector, what)
                cells.append(f"{value:.3f} ({apart:.3f})" if detector.startswith(RANDOM) else f"{value:.3f}")
            lines.append(f"| {detector} | {' | '.join(cells)} | {np.mean(values):.3f} |")
    page = ROOT / "tabular_outliers.md"
    head, rest = page.read_text("utf-8").split(MARKS[0])
    page.write_text(f"{head}{MARKS[0]}\n\n" + "\n".join(lines) + f"\n\n{MARKS[1]}{rest.split(MARKS[1])[1]}", "utf-8")


if __name__ == "__main__":
    main()
