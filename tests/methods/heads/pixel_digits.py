"""Scikit-learn's digits as 64 grey values each: frozen features that train in moments."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from protolearn.core.model import PrototypeModel
from protolearn.data import digits
from protolearn.data.features import FeatureCases, features
from protolearn.structures import Output


@lru_cache
def grey(part: str) -> tuple[np.ndarray, np.ndarray]:
    """Return ``(N, 64)`` float32 in [0, 1] and labels."""
    cases = digits(part)
    rows = [np.asarray(cases.picture(i).convert("L").resize((8, 8)), dtype=np.float32) for i in range(len(cases))]
    return np.stack(rows).reshape(len(rows), -1) / 255.0, np.array(cases.labels)


def pixels(part: str, count: int | None = None, *, rows: Sequence[int] | np.ndarray | None = None) -> FeatureCases:
    """Return the first ``count`` digits, or some rows, as cases."""
    values, labels = grey(part)
    chosen = np.arange(len(labels))[:count] if rows is None else np.asarray(rows)
    ids = [f"{part}/{i:04d}" for i in chosen]
    return features(values[chosen], labels[chosen], classes=[str(c) for c in range(10)], name=part, ids=ids)


def few(per_class: int, seed: int) -> np.ndarray:
    """Return training rows with so many of each class."""
    draw, labels = np.random.default_rng(seed), grey("train")[1]
    return np.concatenate([draw.permutation(np.flatnonzero(labels == c))[:per_class] for c in range(10)])


def inputs(cases: FeatureCases) -> Tensor:
    return torch.stack([cases[i].inputs for i in range(len(cases))])


def answer(model: PrototypeModel, cases: FeatureCases) -> Output:
    with torch.no_grad():
        out: Output = model(inputs(cases))
    return out


def accuracy(model: PrototypeModel, cases: FeatureCases) -> float:
    return float((answer(model, cases).logits.argmax(1).numpy() == cases.labels).mean())
