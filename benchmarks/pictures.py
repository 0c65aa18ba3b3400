"""The pictures, the encoder and the model that the questions about training and explaining share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from protolearn.data import arrays
from protolearn.data.arrays import ArrayCases
from protolearn.encoders import ImageEncoder
from protolearn.methods import get_method

if TYPE_CHECKING:
    from protolearn.core.method import Method
    from protolearn.core.model import PrototypeModel

CLASSES, PER_CLASS, DIM, BATCH = 10, 10, 128, 40
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def pixels(count: int, size: int, seed: int = 0) -> np.ndarray:
    """Return ``(N, size, size, 3)`` uint8 noise: no question here depends on what a picture shows."""
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def cases(count: int, size: int) -> ArrayCases:
    """Return labelled pictures in memory; each is decoded, resized and normalised when it is read."""
    return arrays(pixels(count, size), np.arange(count) % CLASSES, classes=[f"c{i}" for i in range(CLASSES)])


def encoder(size: int) -> ImageEncoder:
    """Return a ResNet-18 with random weights."""
    return ImageEncoder("resnet18", layer="last", size=size, mean=MEAN, std=STD)


def method(**settings: object) -> Method:
    """Return ProtoPNet with the paper's settings but for its size."""
    return get_method("protopnet")(prototypes_per_class=PER_CLASS, dim=DIM, **settings)  # type: ignore[no-any-return]


def model(size: int) -> PrototypeModel:
    """Return an untrained model in eval mode."""
    return method().build(encoder(size), CLASSES).eval()


class LinearHead(nn.Module):
    """The bare encoder: pooled tokens and one linear layer."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.encoder = encoder(size)
        self.head = nn.Linear(self.encoder.dim, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits."""
        logits: Tensor = self.head(self.encoder(inputs).values.mean(1))
        return logits


def shuffled(count: int) -> list[list[int]]:
    """Return the batches of an epoch."""
    return [part.tolist() for part in torch.randperm(count).split(BATCH)]
