"""Shallow prototype methods on six tables beside prototorch and scikit-learn: tables.json and the table of tables.md.

``python results/tables.py [--sets NAME ...] [--prototorch PYTHON]``; rows of a set are replaced when it is run again.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import sys
import tempfile
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT.parent))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from benchmarks.peers.process import Peer, find_peer  # noqa: E402
from common import data_folder  # noqa: E402
from sklearn import datasets  # noqa: E402
from sklearn.linear_model import LogisticRegression  # noqa: E402
from sklearn.model_selection import train_test_split  # noqa: E402
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402
from sklearn.svm import SVC  # noqa: E402

from protolearn.interop.shallow import (  # noqa: E402
    CBCClassifier,
    GLVQClassifier,
    GMLVQClassifier,
    GRLVQClassifier,
    NearestMeanClassifier,
    RBFNetworkClassifier,
)

SETS = ("iris", "wine", "breast_cancer", "digits", "satimage", "letter")
SEEDS = (0, 1, 2)
EPOCHS, BATCH = 50, 64
LARGE = 2000  # beyond so many training cases prototorch is run with one seed: it takes minutes
MARKS = ("<!-- table: written by python results/tables.py -->", "<!-- end of table -->")
Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]

OURS: dict[str, Any] = {
    "nearest mean, 1": lambda seed: NearestMeanClassifier(1, random_state=seed),
    "nearest mean, 5": lambda seed: NearestMeanClassifier(5, random_state=seed),
    "GLVQ, 1": lambda seed: GLVQClassifier(1, random_state=seed),
    "GLVQ, 5": lambda seed: GLVQClassifier(5, random_state=seed),
    "GLVQ, 1, identity": lambda seed: GLVQClassifier(1, transfer="identity", random_state=seed),
    "GLVQ, 5, identity": lambda seed: GLVQClassifier(5, transfer="identity", random_state=seed),
    "GRLVQ, 1": lambda seed: GRLVQClassifier(1, random_state=seed),
    "GRLVQ, 5": lambda seed: GRLVQClassifier(5, random_state=seed),
    "GMLVQ, 1": lambda seed: GMLVQClassifier(1, random_state=seed),
    "GMLVQ, 5": lambda seed: GMLVQClassifier(5, random_state=seed),
    "RBF network, 5": lambda seed: RBFNetworkClassifier(5, random_state=seed),
    "RBF network, 20": lambda seed: RBFNetworkClassifier(20, random_state=seed),
    "CBC, 3": lambda seed: CBCClassifier(3, random_state=seed),
}
THEIRS: dict[str, Any] = {
    "scikit-learn NearestCentroid": lambda seed: NearestCentroid(),
    "scikit-learn 1-NN": lambda seed: KNeighborsClassifier(1),
    "scikit-learn logistic regression": lambda seed: LogisticRegression(max_iter=3000),
    "scikit-learn SVM, RBF": lambda seed: SVC(random_state=seed),
}
PEER = {"prototorch GLVQ, 1": ("GLVQ", 1), "prototorch GLVQ, 5": ("GLVQ", 5), "prototorch GMLVQ, 1": ("GMLVQ", 1)}


def load(name: str, seed: int) -> Arrays:
    """Return train and test cases; a fifth of scikit-learn's sets is drawn by the seed, the others have a test part."""
    if name in ("satimage", "letter"):
        with np.load(data_folder() / "tables" / f"{name}.npz", allow_pickle=False) as z:
            return tuple(z[key] for key in ("x_train", "y_train", "x_test", "y_test"))  # type: ignore[return-value]
    X, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    x, test, y, labels = train_test_split(X, y, test_size=0.2, random_state=seed, stratify=y)
    return x, y, test, labels


def one(name: str, seed: int, peer: Peer | None) -> dict[str, dict[str, float]]:
    """Return accuracy and processor seconds of every method on one split."""
    x, y, test, labels = load(name, seed)
    scaler = StandardScaler().fit(x)
    x, test = scaler.transform(x), scaler.transform(test)
    found = {}
    for method, make in {**OURS, **THEIRS}.items():
        start = time.process_time()
        made = make(seed).fit(x, y)
        found[method] = {"seconds": time.process_time() - start, "accuracy": float(made.score(test, labels))}
    if peer is not None and (seed == SEEDS[0] or len(x) <= LARGE):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "table.npz"
            np.savez(
                path, x=x.astype(np.float32), y=y.astype(np.int64), test=test.astype(np.float32),
                labels=labels.astype(np.int64),
            )  # fmt: skip
            for method, (kind, per_class) in PEER.items():
                order = {"kind": kind, "per_class": per_class, "epochs": EPOCHS, "batch": BATCH, "seed": seed}
                done = peer.ask("fit", data=str(path), **order)
                found[method] = {"seconds": done["processor_seconds"], "accuracy": done["accuracy"]}
    return found


def main() -> None:
    """Run, and write both files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", nargs="*", default=list(SETS), choices=SETS)
    parser.add_argument("--prototorch", metavar="PYTHON", help="interpreter with prototorch, or PROTOTORCH_PYTHON")
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    python, why = find_peer(given.prototorch, "prototorch", ".venv-prototorch")
    peer = None if python is None else Peer(python, 1, ROOT.parent / "benchmarks" / "peers" / "prototorch_runner.py")
    path = ROOT / "tables.json"
    kept: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {"sets": {}}
    try:
        for name in given.sets:
            x, y, test, _ = load(name, 0)
            runs = {str(seed): one(name, seed, peer) for seed in SEEDS}
            kept["sets"][name] = {
                "train": len(x), "test": len(test), "features": x.shape[1], "classes": len(np.unique(y)),
                "sha256": digest(x, y, test), "seeds": runs,
            }  # fmt: skip
            kept |= {
                "command": "python results/tables.py", "date": datetime.date.today().isoformat(),
                "epochs": EPOCHS, "batch": BATCH, "threads": int(os.environ.get("OMP_NUM_THREADS", "1")),
                "versions": {
                    **{p: version(p) for p in ("protolearn", "torch", "scikit-learn", "numpy")},
                    **({"prototorch": f"not measured: {why}"} if peer is None else peer.versions),
                },
            }  # fmt: skip
            path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
            print(
                name, {m: round(mean(kept, name, m, "accuracy") or 0, 3) for m in [*OURS, *THEIRS, *PEER]}, flush=True
            )
    finally:
        if peer is not None:
            peer.close()
    write(kept)


def digest(*arrays: np.ndarray) -> str:
    """Return the SHA-256 of the cases and labels of seed 0."""
    return hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)).hexdigest()


def mean(kept: dict[str, Any], name: str, method: str, what: str) -> float | None:
    """Return the mean over seeds; None where it was not measured."""
    values = [run[method][what] for run in kept["sets"][name]["seeds"].values() if method in run]
    return float(np.mean(values)) if values else None


def write(kept: dict[str, Any]) -> None:
    """Replace the table between the two marks of the page."""
    names = [name for name in SETS if name in kept["sets"]]
    lines = [f"| method, prototypes a class | {' | '.join(names)} |", f"|---|{'---:|' * len(names)}"]
    for method in [*OURS, *THEIRS, *PEER]:
        cells = []
        for name in names:
            right, took = (mean(kept, name, method, what) for what in ("accuracy", "seconds"))
            cells.append("-" if right is None or took is None else f"{right:.3f} ({took:.2g} s)")
        lines.append(f"| {method} | {' | '.join(cells)} |")
    page = ROOT / "tables.md"
    head, rest = page.read_text("utf-8").split(MARKS[0])
    page.write_text(f"{head}{MARKS[0]}\n\n" + "\n".join(lines) + f"\n\n{MARKS[1]}{rest.split(MARKS[1])[1]}", "utf-8")


if __name__ == "__main__":
    main()
