"""What methods share in which the nearest prototype of all decides: how they are put together, started and trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from protolearn.core.bank import PrototypeBank
from protolearn.core.encoder import Encoder
from protolearn.core.heads import NearestOfClass
from protolearn.core.measures import squared_l2
from protolearn.core.method import Initialise, Method, Phase, Project, Train, TrainingTokens
from protolearn.core.metrics import Metric
from protolearn.core.model import PrototypeModel
from protolearn.core.settings import above, at_least, rates_of
from protolearn.core.similarities import Inverse
from protolearn.core.starts import start_on_classes


class WinnerMethod(Method):
    """A method whose prototypes start on the centres of their class, and of which the nearest one decides.

    What is named here are settings that a page declares with its paper's values.
    """

    prototypes_per_class: int
    scale: float
    power: float

    def __post_init__(self) -> None:
        """Refuse impossible settings."""
        super().__post_init__()
        at_least(self, 1, "prototypes_per_class")
        above(self, 0, "scale", "power")

    def initialise(self, model: PrototypeModel, batches: TrainingTokens, seed: int) -> None:
        """Start the prototypes on the mean of their class, or on its k-means centres."""
        start_on_classes(model, batches, seed)


@dataclass(frozen=True)
class QuantisationMethod(WinnerMethod):
    """Learning vector quantisation: one term, ``quantisation``, made small by moving prototypes, and maybe a metric.

    Its settings and their defaults are those of the whole family; a page adds its own.
    """

    prototypes_per_class: int = 1
    transfer: Literal["sigmoid", "identity"] = "sigmoid"
    sharpness: float = 10.0
    scale: float = 0.1
    power: float = 10.0
    epochs: int = 50
    rate: float = 0.05

    def __post_init__(self) -> None:
        """Refuse impossible settings."""
        super().__post_init__()
        at_least(self, 1, "epochs")
        above(self, 0, "sharpness", "rate")

    def weights(self) -> dict[str, float]:
        """Return the coefficient."""
        return {"quantisation": 1.0}

    def quantise(self, metric_rate: float | None = None) -> list[Phase]:
        """Return start, training with rates that fall along a cosine, and the naming of the nearest cases."""
        rates = rates_of(prototypes=self.rate, neck=metric_rate)
        return [Initialise(), Train("quantise", self.epochs, rates, cosine=True), Project(move=False)]


def winner_model(
    method: WinnerMethod, encoder: Encoder, classes: int, seed: int, *, metric: Metric | None = None
) -> PrototypeModel:
    """Return an untrained model in which tokens are compared as they are, or under a metric that is learned."""
    draw = torch.Generator().manual_seed(seed)
    bank = PrototypeBank.per_class(classes, method.prototypes_per_class, encoder.dim, generator=draw)
    head, similar = NearestOfClass(bank.owner(), classes, method.power), Inverse(method.scale)
    return PrototypeModel(encoder, nn.Sequential(), bank, squared_l2, head, similarity=similar, metric=metric)
