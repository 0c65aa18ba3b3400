"""What the result scripts share: the data, the encoder, the yardstick, and what a receipt says about its making."""

from __future__ import annotations

import datetime
import math
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from protolearn.data import Augment, arrays
from protolearn.data.archive import archive
from protolearn.data.cases import Cases
from protolearn.encoders import ImageEncoder
from protolearn.encoders.cache import token_cache

ROOT = Path(__file__).resolve().parent
SETS = ("birds", "wbc")
NAMES = {"birds": "birds (cub_birds6)", "wbc": "white blood cells (wbc_tecom)"}


def data_folder() -> Path:
    """Return the folder of the shared data sets: PROTOLEARN_DATA, else ../shared/data beside the checkout."""
    named = os.environ.get("PROTOLEARN_DATA")
    folder = Path(named) if named else ROOT.parent.parent / "shared" / "data"
    if not folder.is_dir():
        raise SystemExit("no data: set PROTOLEARN_DATA to the folder that holds cub_birds6, wbc_tecom and backbones")
    return folder


def load(name: str, part: str) -> Cases:
    """Return the training or test part; of the blood cells without the class that has a single picture."""
    if name == "birds":
        return archive(data_folder() / "cub_birds6" / "cub_birds6.zip", part)
    with np.load(data_folder() / "wbc_tecom" / "wbc_tecom.npz", allow_pickle=False) as z:
        pictures, labels, test, classes = z["x"], z["y"], z["test"], [str(c) for c in z["classes"]]
    several = np.bincount(labels, minlength=len(classes)) > 1
    assert several[:-1].all(), "the class with one picture is the last"
    keep = several[labels]
    ids = np.array([f"wbc_tecom/{row:06d}" for row in range(len(labels))])
    chosen = keep & (test if part == "test" else ~test)
    return arrays(
        pictures[chosen], labels[chosen], classes=[c for c, s in zip(classes, several, strict=True) if s],
        name=f"wbc_tecom/{part}", ids=ids[chosen].tolist(),
    )  # fmt: skip


def make_encoder(**settings: Any) -> ImageEncoder:
    """Return MobileNetV2 with the ImageNet weights of the shared data, laid out as processors run it fastest."""
    encoder = ImageEncoder(
        "mobilenetv2_100", weights=data_folder() / "backbones" / "mobilenetv2_100_in1k.safetensors",
        mean=0.5, std=0.5, model_args={"pad_type": "same"}, **settings,
    )  # fmt: skip
    return encoder.to(memory_format=torch.channels_last)


def pooled(cases: Cases, size: int) -> np.ndarray:
    """Return each picture's mean over the positions of the last map, what the network's own classifier sees."""
    cache = token_cache(make_encoder(layer="final", size=size), cases, quiet=True, batch_size=16)
    return cache.tokens().values.mean(1).numpy()


def regression() -> LogisticRegression:
    """Return the yardstick: scikit-learn's logistic regression with its default strength, on raw pooled features."""
    return LogisticRegression(C=1.0, max_iter=3000)


def wilson(right: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """Return the 95 % interval of a share of ``count`` pictures."""
    share = right / count
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return round(centre - half, 4), round(centre + half, 4)


def made(command: str) -> dict[str, Any]:
    """Return when, how and with what a receipt was made."""
    names = ("protolearn", "torch", "torchvision", "timm", "lightning", "numpy", "scikit-learn", "pillow")
    return {
        "command": command,
        "date": datetime.date.today().isoformat(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in names},
        "threads": torch.get_num_threads(),
    }


__all__ = [
    "NAMES",
    "ROOT",
    "SETS",
    "Augment",
    "data_folder",
    "load",
    "made",
    "make_encoder",
    "pooled",
    "regression",
    "wilson",
]
