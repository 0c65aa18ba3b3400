"""How a training is run, whatever is trained: batches, seed, device, precision."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from protolearn.errors import UsageError, nearest_names


@dataclass(frozen=True)
class Options:
    """How a training is run; see :func:`~protolearn.training.fit.fit`."""

    batch_size: int = 80
    seed: int = 0
    device: str = "auto"
    precision: str = "32-true"
    clip: float | None = None
    workers: int = 0
    patience: int | None = None
    views: int = 1
    tensorboard: bool = False
    quiet: bool = False

    def __post_init__(self) -> None:
        for name in ("batch_size", "views"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.workers < 0 or (self.patience is not None and self.patience < 1):
            raise UsageError(f"workers must be >= 0 and patience >= 1, got {self.workers} and {self.patience}")
        if self.clip is not None and not self.clip > 0:
            raise UsageError(f"clip must be positive, got {self.clip}")


def make_options(given: Mapping[str, Any]) -> Options:
    """Return options by name; an unknown name suggests the nearest ones."""
    names = Options.__dataclass_fields__
    for name in given:
        if name not in names:
            raise UsageError(f"fit has no option {name!r}: {nearest_names(name, names)}")
    return Options(**given)


def choose_device(name: str) -> torch.device:
    """Return the device of a name; "auto" takes CUDA, then MPS, then the processor.

    Raises
    ------
    UsageError
        If the device is not there.
    """
    local = int(os.environ.get("LOCAL_RANK", "0"))
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        name = "cuda" if cuda else "mps" if mps else "cpu"
    kind = name.split(":")[0]
    if kind not in ("cpu", "cuda", "mps"):
        raise UsageError(f"device must be auto, cpu, cuda or mps, got {name!r}")
    if (kind == "cuda" and not cuda) or (kind == "mps" and not mps):
        raise UsageError(f"device {name!r} is not available on this machine: use --device cpu or auto")
    return torch.device(f"cuda:{local}") if name == "cuda" else torch.device(name)
