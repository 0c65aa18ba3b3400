"""Every method in a size that trains in seconds: settings, encoder, and what it must reach on digits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from protolearn.core.encoder import Encoder
from protolearn.core.method import Method
from protolearn.data import Cases, digits, features
from protolearn.encoders import FeatureEncoder, ImageEncoder, SmallEncoder
from protolearn.methods import get_method


@dataclass(frozen=True)
class Small:
    """How a method is tried; ``accuracy`` is far above the 0.1 of chance and far below what it can do."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    encoder: Callable[[], Encoder] = lambda: FeatureEncoder(16)
    pictures: bool = False
    accuracy: float = 0.5
    options: Mapping[str, Any] = field(default_factory=dict)
    augment: bool = False
    targets: Callable[[Cases], Mapping[str, np.ndarray]] | None = None
    wrong: Mapping[str, Any] = field(default_factory=dict)
    """A setting that the method must refuse."""

    def method(self, slug: str) -> Method:
        return get_method(slug)(**self.settings)

    def cases(self, part: str, count: int) -> Cases:
        """Return digits as pictures, or cut into four quarters of 16 pixels each."""
        found: Cases = digits(part).subset(range(count))
        if not self.pictures:
            grey = np.stack([np.asarray(found.picture(i).convert("L")) for i in range(count)]) / 255.0
            quarters = grey.reshape(-1, 2, 4, 2, 4).transpose(0, 1, 3, 2, 4).reshape(-1, 4, 16)
            found = features(
                quarters.astype(np.float32), found.labels, classes=found.classes, name=f"quarters/{part}",
                ids=[f"quarters/{part}/{i:04d}" for i in range(count)],
            )  # fmt: skip
        return found if self.targets is None else found.with_targets(self.targets(found))


FAST = {"neck_rate": 1e-2, "prototype_rate": 1e-2, "head_rate": 1e-2}

SHAPES = np.array([
    [1, 0, 1], [0, 1, 0], [0, 0, 1], [0, 0, 1], [0, 1, 0], [0, 0, 1], [1, 0, 1], [0, 1, 0], [1, 0, 1], [1, 1, 1]
])  # fmt: skip
"""For each digit: whether it has a loop, an upright stroke, a curve."""

SMALL: dict[str, Small] = {
    "protopnet": Small(
        {"prototypes_per_class": 2, "dim": 16, "warm_epochs": 12, "project_at": (12,), "last_layer_epochs": 8,
         "encoder_rate": None, **FAST},
        wrong={"dim": 0},
    ),
    "kidney-stone-parts": Small(
        {"prototypes_per_class": 2, "dim": 16, "warm_epochs": 12, "project_at": (12,), "last_layer_epochs": 8,
         "encoder_rate": None, **FAST},
        wrong={"guessed_weight": -1.0},
    ),
    "csr": Small(
        {"concepts": ("loop", "upright", "curve"), "prototypes_per_concept": 6, "dim": 16, "encoder_rate": None,
         "concept_epochs": 20, "contrast_epochs": 10, "task_epochs": 60, "concept_rate": 3e-2, "contrast_rate": 1e-2,
         "task_rate": 5e-2},
        targets=lambda cases: {"concepts": SHAPES[cases.labels]},
        wrong={"concepts_from": "people"},
    ),
    "st-protopnet": Small(
        {"prototypes_per_class": 2, "dim": 16, "warm_epochs": 20, "project_at": (20,), "last_layer_epochs": 8,
         "encoder_rate": None, **FAST},
        wrong={"pictures": "half"},
    ),
    "eval-protopnet": Small(
        {"prototypes_per_class": 3, "dim": 16, "warm_epochs": 0, "epochs": 20, "encoder_rate": None, "step": 0, **FAST},
        wrong={"alignment_margin": 3.0},
    ),
    "prototree": Small(
        {"depth": 5, "dim": 16, "epochs": 30, "freeze_epochs": 0, "encoder_rate": None, "milestones": (),
         "neck_rate": 1e-2, "prototype_rate": 1e-2},
        wrong={"depth": 0},
    ),
    "protopool": Small(
        {"prototypes": 20, "slots": 3, "dim": 16, "gumbel_epochs": 10, "warm_epochs": 10, "joint_epochs": 5,
         "last_layer_epochs": 8, "encoder_rate": None, "slot_rate": 1e-2, **FAST},
        wrong={"slots": 0},
    ),
    "prototype-autoencoder": Small(
        {"prototypes": 20, "dim": 16, "encoder_rate": None, "epochs": 30, "rate": 1e-2}, wrong={"prototypes": 0},
    ),
    "prob-psenn": Small(
        {"law": "diagonal", "dim": 16, "encoder_rate": None, "autoencoder_epochs": 8, "epochs": 25, "rate": 1e-2},
        wrong={"samples": 0},
    ),
    "cbc": Small(
        {"components": 32, "two_views": False, "pretrain_epochs": 4, "head_epochs": 8, "joint_epochs": 20,
         "encoder_rate": None, "neck_rate": 5e-2, "head_rate": 5e-2},
        wrong={"margin": 0.0},
    ),
    "pipnet": Small(
        {"prototypes": 32, "two_views": False, "pretrain_epochs": 4, "joint_epochs": 20, "encoder_rate": None,
         "neck_rate": 0.1},
        wrong={"power": 0.5},
    ),
    "epic": Small(  # with a classifier of its own, since the encoder of the tests has none
        {"first": 20, "last": 5, "stages": 3, "rate": 1e-2, "classifier_epochs": 15, "classifier_rate": 0.1},
        wrong={"stages": 0},
    ),
    "naive-bayes-head": Small({}, wrong={"smoothing": -1.0}),
    "harmonic": Small(
        {"encoder_rate": None, "exponent": 8.0, "prototype_rate": 1e-2, "epochs": 15, "init": "means"},
        wrong={"exponent": 0.0},
    ),
    "d-simplex": Small(
        {"preallocated": 16, "encoder_rate": None, "rate": 0.3, "epochs": 15}, wrong={"preallocated": 1}
    ),
    "moment-probing": Small({"hidden": 32, "rate": 1e-2, "epochs": 15}, wrong={"hidden": 33}),
    "knn-augment": Small({"head_rate": 3e-2, "epochs": 15, "temperature": 0.1}, wrong={"k": 0}),
    "nw-head": Small(
        {"encoder_rate": None, "kernel": "clip", "dim": 16, "rate": 1e-2, "optimizer": "adam", "epochs": 6,
         "refresh": 3},
        wrong={"mode": "hnsw"},
    ),
    "pdiscoformer": Small(
        {"parts": 4, "dim": 16, "neck": "principal", "start": "k_means", "epochs": 40, "step": 0, "encoder_rate": None,
         "temperature": 0.05, "gumbel": False, "total_variation_weight": 0.1, "entropy_weight": 0.1,
         "part_dropout": 0.1, "neck_rate": 1e-2, "prototype_rate": 1e-2, "head_rate": 3e-2},
        encoder=lambda: FeatureEncoder(16, grid=(2, 2)),
        wrong={"parts": 0},
    ),
    "prompt-cam": Small(  # accuracy: through a transformer that has learned nothing
        {"epochs": 12, "warmup": 1, "rate": 0.3, "head_rate": 0.3, "dropout": 0.0, "drop_path": 0.0},
        encoder=lambda: small_transformer(),
        pictures=True,
        accuracy=0.25,
        wrong={"dropout": 1.0},
    ),
    "palm": Small(
        {"encoder_rate": None, "two_views": False, "start": "k_means", "dim": 16, "hidden": 64, "momentum": 0.9,
         "epochs": 30, "warmup": 2, "neck_rate": 0.1},
        wrong={"momentum": 1.1},
    ),
    "protogcd": Small(
        {"hidden": 32, "projection": 16, "neck": "linear", "views": "dropout", "dropout": 0.1, "init": "means",
         "epochs": 20, "hard_epochs": 10, "encoder_rate": None},
        wrong={"dropout": 1.0},
    ),
    # of four quarters the one that is most like a prototype decides: hard for means, better where borders are learned
    "nearest-class-mean": Small({"prototypes_per_class": 4}, accuracy=0.15, wrong={"scale": 0.0}),
    "rbf-network": Small({"prototypes_per_class": 6}, accuracy=0.4, wrong={"ridge": -1.0}),
    "glvq": Small({"prototypes_per_class": 4, "epochs": 8}, accuracy=0.3, wrong={"transfer": "tanh"}),
    "grlvq": Small({"prototypes_per_class": 4, "epochs": 8}, accuracy=0.3, wrong={"prototypes_per_class": 0}),
    "gmlvq": Small({"prototypes_per_class": 4, "epochs": 8}, accuracy=0.3, wrong={"rank": 0}),
}  # fmt: skip


def small_transformer() -> ImageEncoder:
    """Return a transformer whose random weights are large enough that attention is not even."""
    made = {"depth": 2, "embed_dim": 32, "num_heads": 4, "patch_size": 4, "img_size": 16}
    encoder = ImageEncoder("vit_tiny_patch16_224", size=16, mean=0.5, std=0.5, model_args=made)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in encoder.parameters():
            if parameter.ndim == 2:
                parameter.copy_(1.5 * torch.randn(parameter.shape, generator=draw) / parameter.shape[1] ** 0.5)
    return encoder


def small_encoder() -> SmallEncoder:
    return SmallEncoder(dim=16, size=16)
