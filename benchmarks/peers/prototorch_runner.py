"""Runs inside prototorch's environment, never imported by ours: orders come as lines of JSON, answers go the same way.

Only prototorch's public interface is used, with its own Lightning trainer and its defaults (Adam, rate 0.01).
"""

import json
import logging
import os
import sys
import time
import warnings

answers = os.fdopen(os.dup(1), "w")  # what libraries print must not come between
os.dup2(2, 1)

warnings.filterwarnings("ignore")
logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)

import numpy as np  # noqa: E402
import torch  # noqa: E402


def fit(data: str, kind: str, per_class: int, epochs: int, batch: int, seed: int) -> dict:
    """Train on the arrays of an npz file; return seconds, start included, and the accuracy on its test part."""
    import prototorch as pt
    import pytorch_lightning as pl
    from prototorch.core.distances import squared_euclidean_distance
    from torch.utils.data import DataLoader, TensorDataset

    with np.load(data) as z:
        x, y, test, labels = (torch.from_numpy(z[name]) for name in ("x", "y", "test", "labels"))
    pl.seed_everything(seed)
    start, busy = time.perf_counter(), time.process_time()
    cases = TensorDataset(x, y)
    hparams = {"distribution": {"num_classes": int(y.max()) + 1, "per_class": per_class}, "lr": 0.01}
    if kind == "GMLVQ":
        hparams |= {"input_dim": x.shape[1], "latent_dim": x.shape[1]}
    if kind == "GRLVQ":
        hparams |= {"input_dim": x.shape[1]}
    # GLVQ's default distance there has a root, whose gradient is not finite where a prototype lies on a case: the
    # prototypes then turn to nan, and class 0 is predicted for all
    more = {"distance_fn": squared_euclidean_distance} if kind == "GLVQ" else {}
    begin = pt.initializers.LCI(centres(x, y, per_class, seed))
    model = getattr(pt.models, kind)(hparams, prototypes_initializer=begin, **more)
    trainer = pl.Trainer(
        max_epochs=epochs, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, DataLoader(cases, batch_size=batch, shuffle=True))
    seconds, busy = time.perf_counter() - start, time.process_time() - busy
    model.eval()
    with torch.no_grad():
        right = (model.predict(test) == labels).float().mean()
    return {"seconds": seconds, "processor_seconds": busy, "accuracy": float(right)}


def centres(x: torch.Tensor, y: torch.Tensor, per_class: int, seed: int) -> torch.Tensor:
    """Return the k-means centres of each class: the start that ours and the plain loop have."""
    from sklearn.cluster import KMeans

    found = [KMeans(per_class, n_init=1, random_state=seed).fit(x[y == c]).cluster_centers_ for c in y.unique()]
    return torch.from_numpy(np.concatenate(found)).to(x)


def start(threads: int) -> dict:
    """Import everything and return versions."""
    from importlib.metadata import version

    import prototorch.models  # noqa: F401  what an order would wait for

    torch.set_num_threads(threads)
    return {name: version(name) for name in ("prototorch", "prototorch-models", "torch")}


if __name__ == "__main__":
    for line in sys.stdin:
        order, arguments = json.loads(line)
        found = {"start": start, "fit": fit}[order](**arguments)
        answers.write(json.dumps(found) + "\n")
        answers.flush()
