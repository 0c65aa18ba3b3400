"""Anomalies: a memory of normal cases beside k-NN, isolation forest and LOF, on MVTec-AD features, tables and pills.

    python results/anomaly.py

Writes ``anomaly.json`` and the tables of ``anomaly.md``. Nothing was chosen on these data: settings are the defaults of
the papers and packages, stated below.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import ROOT, data_folder, made, make_encoder
from sklearn.ensemble import IsolationForest
from sklearn.neighbors import LocalOutlierFactor, NearestNeighbors

from protolearn.audit.anomaly import score_detection
from protolearn.core.patch_memory import patch_features
from protolearn.data.archive import archive
from protolearn.data.features import features
from protolearn.encoders import FeatureEncoder, ImageEncoder
from protolearn.explain.passes import inputs_over
from protolearn.tasks.anomaly import fit_anomaly

SEEDS = (0, 1, 2)
TABLES = ("breastw", "cardio", "Ionosphere", "thyroid", "vowels", "yeast")
LAYERS, SIDE = (2, 3), 256  # strides 8 and 16, as in PatchCore; the pills are stored at this size
MARKS = ("<!-- table {}: written by python results/anomaly.py -->", "<!-- end of table {} -->")
Judge = Callable[[np.ndarray, np.ndarray, int], np.ndarray]


def ours(**settings: Any) -> Judge:
    """Return a memory with these settings: what it makes of test vectors, or sets of patches, after training ones."""

    def judge(train: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
        model = fit_anomaly(FeatureEncoder(train.shape[-1]), features(train), seed=seed, **settings)
        return model.judge(features(test)).confidence

    return judge


def thinned(train: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
    """Return what a memory says that holds a tenth of the normal cases, drawn at random: what a coreset must beat."""
    rows = np.random.default_rng(seed).permutation(len(train))[: int(np.ceil(len(train) / 10))]
    return ours(size=1.0, neighbours=1)(train[rows], test, seed)


def neighbours(train: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
    """Return minus the mean distance to the five nearest normal cases."""
    return np.asarray(-NearestNeighbors(n_neighbors=5).fit(train).kneighbors(test)[0].mean(1))


def forest(train: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
    """Return scikit-learn's isolation forest's score, higher = more normal, as is."""
    return np.asarray(IsolationForest(random_state=seed).fit(train).score_samples(test))


def local(train: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
    """Return minus scikit-learn's local outlier factor."""
    return np.asarray(LocalOutlierFactor(novelty=True).fit(train).score_samples(test))


VECTORS: dict[str, Judge] = {
    "memory, all": ours(size=1.0, neighbours=1),
    "memory, all, weighed": ours(size=1.0),
    "memory, coreset 25 %": ours(size=0.25, neighbours=1),
    "memory, coreset 10 %": ours(size=0.1, neighbours=1),
    "memory, random 10 %": thinned,
    "k-NN, 5": neighbours,
    "isolation forest": forest,
    "LOF, 20": local,
}
PATCHES: dict[str, Judge] = {
    "patch memory, coreset 10 %": ours(size=0.1, pool=20_000),
    "patch memory, coreset 1 %": ours(size=0.01, pool=20_000),
}


def scored(confidence: np.ndarray, bad: np.ndarray) -> dict[str, Any]:
    found = score_detection(confidence, bad)
    return {"auroc": found.auroc, "ap": found.ap, "f1max": found.f1max}


def of_vectors(path: Path, *, table: bool) -> dict[str, Any]:
    """Learn from half of the normal cases, drawn by the seed; test on the other half and all anomalies."""
    with np.load(path, allow_pickle=False) as z:
        x, y = z["x"].astype(np.float64), z["y"].astype(int).ravel()
    rows = len(x)
    if table:  # repeated rows would lie on both sides; those with both labels are left out
        x, first, where = np.unique(x, axis=0, return_index=True, return_inverse=True)
        share = np.bincount(where.ravel(), y) / np.bincount(where.ravel())
        kept = (share == 0) | (share == 1)
        x, y = x[kept], y[first][kept]
    runs: dict[str, Any] = {}
    for seed in SEEDS:
        order = np.random.default_rng(seed).permutation(np.flatnonzero(y == 0))
        train, rest = order[: len(order) // 2], order[len(order) // 2 :]
        test = np.append(rest, np.flatnonzero(y == 1))
        a, b = x[train], x[test]
        if table:
            mean, spread = a.mean(0), a.std(0)
            a, b = ((part - mean) / np.where(spread > 0, spread, 1.0) for part in (a, b))
        a, b = a.astype(np.float32), b.astype(np.float32)
        runs[str(seed)] = {name: scored(judge(a, b, seed), y[test]) for name, judge in VECTORS.items()}
    counts = {"rows": rows, "distinct": len(x), "train": len(train), "normal": len(rest), "anomalous": int(y.sum())}
    return {**counts, "seeds": runs}


def pill_features() -> tuple[list[str], np.ndarray, np.ndarray]:
    """Return file names, patches ``(N, S, D)`` and pooled last features ``(N, D)`` of a frozen network."""
    cases = archive(data_folder() / "pill_defects" / "pill_defects.zip")
    deep, last = make_encoder(layer=list(LAYERS), size=SIDE).eval(), make_encoder(layer="final", size=SIDE).eval()
    assert isinstance(deep, ImageEncoder)
    patches, pooled = [], []
    with torch.no_grad():
        for shown in inputs_over(cases, deep.preprocess, batch_size=16):
            patches.append(patch_features(deep.layer_maps(shown.inputs)).values)
            pooled.append(last(shown.inputs).values.mean(1))
    return list(cases.ids), torch.cat(patches).numpy(), torch.cat(pooled).numpy()


def of_pills() -> dict[str, Any]:
    """Split by file number: runs of frames of near-identical pills stay together."""
    ids, patches, pooled = pill_features()
    run, number = (np.array([int(name.split("/")[-1].split(".")[k]) for name in ids]) for k in (1, 2))
    bad = np.array(["defect" in name for name in ids])
    parts = {
        "train": ~bad & (run == 6) & (number <= 507),
        "held_out": ~bad & (run == 6) & (number > 507),
        "other_run": ~bad & (run == 7),
        "defect": bad,
    }
    train, held, other, defects = (np.flatnonzero(part) for part in parts.values())
    test = np.concatenate([held, other, defects])
    place = np.repeat(["held_out", "other_run", "defect"], [len(held), len(other), len(defects)])
    runs: dict[str, Any] = {}
    for seed in SEEDS:
        runs[str(seed)] = {}
        for name, judge in {**PATCHES, **VECTORS}.items():
            x = patches if name in PATCHES else pooled
            confidence = judge(x[train], x[test], seed)
            limit = np.sort(confidence[place == "held_out"])[::-1][int(np.ceil(0.95 * len(held))) - 1]
            found = {}
            for normal in ("held_out", "other_run"):
                chosen = (place == normal) | (place == "defect")
                found[normal] = scored(confidence[chosen], place[chosen] == "defect")
            found["accepted_other_run"] = float((confidence[place == "other_run"] >= limit).mean())
            found["refused_defects"] = float((confidence[place == "defect"] < limit).mean())
            runs[str(seed)][name] = found
    return {"counts": {name: int(part.sum()) for name, part in parts.items()}, "seeds": runs}


def mean(runs: dict[str, Any], *path: str) -> float:
    values = []
    for run in runs.values():
        for key in path:
            run = run[key]
        values.append(run)
    return float(np.mean(values))


def write(receipt: dict[str, Any]) -> None:
    """Write the tables between their marks."""
    page = (ROOT / "anomaly.md").read_text("utf-8")
    for part in ("mvtec", "tables"):
        sets = receipt[part]
        head = ["| AUROC | " + " | ".join(VECTORS) + " |", "|---" * (len(VECTORS) + 1) + "|"]
        table = {name: [mean(found["seeds"], method, "auroc") for method in VECTORS] for name, found in sets.items()}
        rows = [f"| {name} | " + " | ".join(f"{v:.3f}" for v in values) + " |" for name, values in table.items()]
        total = np.mean(list(table.values()), axis=0)
        page = between(page, part, [*head, *rows, "| **mean** | " + " | ".join(f"**{v:.3f}**" for v in total) + " |"])
    runs = receipt["pills"]["seeds"]
    head = [
        "| | AUROC, other run | AUROC, same run | other run accepted | defects refused |",
        "|---|---|---|---|---|",
    ]
    paths = (("other_run", "auroc"), ("held_out", "auroc"), ("accepted_other_run",), ("refused_defects",))
    rows = [
        f"| {name} | " + " | ".join(f"{mean(runs, name, *path):.3f}" for path in paths) + " |"
        for name in {**PATCHES, **VECTORS}
    ]
    (ROOT / "anomaly.md").write_text(between(page, "pills", [*head, *rows]), encoding="utf-8")


def between(page: str, name: str, lines: list[str]) -> str:
    start, end = (mark.format(name) for mark in MARKS)
    before, _, rest = page.partition(start)
    return before + "\n".join([start, *lines, end]) + rest.partition(end)[2]


def main() -> None:
    folder = data_folder()
    receipt: dict[str, Any] = {**made("python results/anomaly.py"), "layers": LAYERS, "side": SIDE}
    receipt["mvtec"] = {
        path.stem.removeprefix("MVTec-AD_"): of_vectors(path, table=False)
        for path in sorted((folder / "mvtec_features").glob("*.npz"))
    }
    receipt["tables"] = {
        name: of_vectors(folder / "anomaly_tables" / f"{name}.npz", table=True) for name in TABLES
    }  # fmt: skip
    receipt["pills"] = of_pills()
    (ROOT / "anomaly.json").write_text(json.dumps(receipt, indent=1) + "\n", encoding="utf-8")
    write(receipt)


if __name__ == "__main__":
    main()
