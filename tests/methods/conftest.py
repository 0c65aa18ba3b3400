"""A small MNIST subset as tensors, and a plain loop that trains a method on tensors in seconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from protolearn.core.encoder import Encoder
from protolearn.core.method import Initialise, Method, Train
from protolearn.core.model import PrototypeModel
from protolearn.training.steps import after_step, epoch_order, minimised, set_modes, start_run


class Pictures(NamedTuple):
    """``(N, 1, 14, 14)`` from 0 to 1, and labels."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


@pytest.fixture(scope="session")
def mnist(shared_data: Path) -> Callable[..., Pictures]:
    """Return a function that draws cases of MNIST at half its size, of some digits for training."""
    path = shared_data / "mnist_federated" / "mnist_federated.npz"
    if not path.exists():
        pytest.skip(f"no MNIST subset at {path}")

    def draw(train: int, test: int, digits: range = range(10)) -> Pictures:
        with np.load(path) as arrays:
            held = {name: arrays[name] for name in ("x_train", "y_train", "x_test", "y_test")}
        parts = []
        for part, count in (("train", train), ("test", test)):
            pictures, labels = held[f"x_{part}"], held[f"y_{part}"]
            if part == "train":
                known = np.isin(labels, list(digits))
                pictures, labels = pictures[known], labels[known]
            chosen = np.random.default_rng(0).permutation(len(labels))[:count]
            half = pictures[chosen].reshape(-1, 1, 14, 2, 14, 2).mean((3, 5)) / 255
            parts += [torch.from_numpy(half).float(), torch.from_numpy(labels[chosen].astype(np.int64))]
        return Pictures(*parts)

    return draw


def learn(
    method: Method, encoder: Encoder, inputs: Tensor, labels: Tensor, *, batch_size: int = 50, seed: int = 0
) -> PrototypeModel:
    """Run the phases of a method over tensors; nothing is cached, projected or saved."""
    torch.manual_seed(seed)
    model = method.build(encoder, int(labels.max()) + 1, seed)
    for phase in method.phases():
        if isinstance(phase, Initialise):
            model.eval()
            with torch.no_grad():
                method.initialise(model, [(model.encode(inputs), labels)], seed)
        if not isinstance(phase, Train):
            continue
        set_modes(model, phase)
        run = start_run(model, phase)
        for epoch in range(phase.epochs):
            batches = epoch_order(len(labels), batch_size, seed + epoch)
            for step, cases in enumerate(batches):
                out = model(inputs[cases])
                weights = phase.coefficients(method.weights(), epoch, step)
                loss, _ = minimised(method, out, labels[cases], weights)
                run.optimizer.zero_grad(set_to_none=True)
                loss.backward()
                run.optimizer.step()
                after_step(model, method, out, labels[cases], len(batches))
    return model.requires_grad_(False).eval()


@pytest.fixture(scope="session")
def short_training() -> Callable[..., PrototypeModel]:
    """Return :func:`learn`."""
    return learn
