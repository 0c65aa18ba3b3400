"""Runs inside pytorch-ood's environment, never imported by ours: orders come as lines of JSON, answers go the same way.

Only its public interface is used: ``pytorch_ood.detector.Mahalanobis`` with ``fit_features`` and ``predict_features``.
"""

import json
import os
import sys
import time

answers = os.fdopen(os.dup(1), "w")  # what libraries print must not come between
os.dup2(2, 1)

import numpy as np  # noqa: E402
import torch  # noqa: E402

held: dict = {}


def fit(data: str) -> dict:
    """Fit on the features of an npz file; return seconds."""
    from pytorch_ood.detector import Mahalanobis

    features, labels = arrays(data)
    start = time.perf_counter()
    held["detector"] = Mahalanobis(None).fit_features(features, labels)
    return {"seconds": time.perf_counter() - start}


def score(data: str, count: int) -> dict:
    """Score the first ``count`` features asked about; return seconds and outlier scores."""
    asked = held.setdefault("asked", torch.from_numpy(np.load(data)["asked"]))[:count]
    start = time.perf_counter()
    found = held["detector"].predict_features(asked)
    return {"seconds": time.perf_counter() - start, "scores": found.tolist()}


def arrays(data: str) -> tuple:
    """Return features and labels, read once."""
    if "known" not in held:
        with np.load(data) as z:
            held["known"] = torch.from_numpy(z["features"]), torch.from_numpy(z["labels"])
    return held["known"]


def start(threads: int) -> dict:
    """Import everything and return versions."""
    from importlib.metadata import version

    import pytorch_ood.detector  # noqa: F401  what an order would wait for

    torch.set_num_threads(threads)
    return {name: version(name) for name in ("pytorch-ood", "torch")}


if __name__ == "__main__":
    for line in sys.stdin:
        order, arguments = json.loads(line)
        found = {"start": start, "fit": fit, "score": score}[order](**arguments)
        answers.write(json.dumps(found) + "\n")
        answers.flush()
