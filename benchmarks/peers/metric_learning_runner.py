"""Runs inside an environment with pytorch-metric-learning, never imported by ours; orders and answers are JSON lines.

Only its public interface is used: ``NTXentLoss`` on embeddings and labels.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

answers = os.fdopen(os.dup(1), "w")  # what libraries print must not come between
os.dup2(2, 1)

import torch  # noqa: E402

kept = {}


def contrast(batch: int, dim: int, temperature: float, vectors: list) -> dict:
    """Keep the inputs; return the value of the loss."""
    from pytorch_metric_learning.losses import NTXentLoss

    kept.update(vectors=torch.tensor(vectors), labels=torch.arange(batch).repeat(2), loss=NTXentLoss(temperature))
    return {"value": again()["value"]}


def again() -> dict:
    """Work out value and gradient; return the seconds of it."""
    leaf = kept["vectors"].clone().requires_grad_()
    start = time.perf_counter()
    loss = kept["loss"](leaf, kept["labels"])
    loss.backward()
    return {"seconds": time.perf_counter() - start, "value": float(loss.detach())}


def peak(batch: int, dim: int, temperature: float) -> dict:
    """Return the extra memory of value and gradient at the peak, in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, json.dumps({"batch": batch, "dim": dim, "temperature": temperature})],
        capture_output=True, text=True, check=True,
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"},
    )  # fmt: skip
    return {"megabytes": float(done.stderr.split()[-1])}


def weigh(batch: int, dim: int, temperature: float) -> float:
    """Return megabytes, as benchmarks/memory.py counts them."""
    rows = torch.nn.functional.normalize(torch.randn(2 * batch, dim), dim=1)
    contrast(4, dim, temperature, torch.nn.functional.normalize(torch.randn(8, dim), dim=1).tolist())
    kept.update(vectors=rows, labels=torch.arange(batch).repeat(2))
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    again()
    return (status("VmHWM") - before) * 1024 / 1e6


def status(name: str) -> int:
    """Return a figure of this process in kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":"))


def start(threads: int) -> dict:
    """Import everything and return versions."""
    from importlib.metadata import version

    import pytorch_metric_learning.losses  # noqa: F401  what an order would wait for

    torch.set_num_threads(threads)
    return {name: version(name) for name in ("pytorch-metric-learning", "torch")}


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(weigh(**json.loads(sys.argv[1])), file=sys.stderr)
        sys.exit()
    for line in sys.stdin:
        order, arguments = json.loads(line)
        found = {"start": start, "contrast": contrast, "again": again, "peak": peak}[order](**arguments)
        answers.write(json.dumps(found) + "\n")
        answers.flush()
