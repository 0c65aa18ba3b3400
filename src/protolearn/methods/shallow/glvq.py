"""GLVQ (Sato and Yamada, NeurIPS 1995): a case draws the nearest prototype of its class and repels the nearest rival.

    d+ = squared distance to the nearest prototype of the own class, d- to the nearest of any other class
    mu = (d+ - d-) / (d+ + d-);   loss = mean of f(mu),  f(mu) = 1 / (1 + exp(-sharpness mu)), or mu itself
    score of class c = scale / (scale + d_c),  d_c the distance to its nearest prototype;  probability_c ~ score_c^power

The class of the nearest prototype is predicted. With two classes and power 1 the difference of the probabilities is
``-mu d / (d + scale)`` with ``d`` the mean of the two distances: a case is as sure as it is relatively near.

Departs from the paper: gradient descent by Adam in batches along half a cosine instead of case by case; a start on
k-means centres of the own class; ``sharpness`` is fixed, where the paper lets it grow with time; at the end every
prototype names the nearest case of its class without moving onto it. Features should have comparable scales.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from protolearn.core.bank import PrototypeBank
from protolearn.core.encoder import Encoder
from protolearn.core.heads import NearestOfClass
from protolearn.core.measures import squared_l2
from protolearn.core.method import Initialise, Method, Phase, Project, Train, register
from protolearn.core.model import PrototypeModel
from protolearn.core.similarities import Inverse
from protolearn.core.starts import start_on_classes
from protolearn.errors import UsageError
from protolearn.objectives.quantisation import quantisation
from protolearn.structures import Output, Tokens


@register(
    "glvq",
    area="shallow",
    paper="Sato and Yamada, NeurIPS 1995",
    verified="cost and gradients against prototorch 0.7.6; the paper's own figures unchecked",
)
@dataclass(frozen=True)
class GLVQ(Method):
    """Settings of GLVQ.

    Examples
    --------
    >>> GLVQ(prototypes_per_class=3).settings()["transfer"]
    'sigmoid'
    """

    prototypes_per_class: int = 1
    transfer: Literal["sigmoid", "identity"] = "sigmoid"
    sharpness: float = 10.0
    scale: float = 1.0
    power: float = 10.0
    epochs: int = 50
    rate: float = 0.05

    def __post_init__(self) -> None:
        for name in ("prototypes_per_class", "epochs"):
            if getattr(self, name) < 1:
                raise UsageError(f"glvq: {name} must be at least 1, got {getattr(self, name)}")
        for name in ("sharpness", "scale", "power", "rate"):
            if not getattr(self, name) > 0:
                raise UsageError(f"glvq: {name} must be positive, got {getattr(self, name)}")
        if self.transfer not in ("sigmoid", "identity"):
            raise UsageError(f"glvq: transfer must be sigmoid or identity, got {self.transfer!r}")

    def build(self, encoder: Encoder, classes: int, seed: int = 0) -> PrototypeModel:
        """Return the untrained model: tokens are compared as they are."""
        draw = torch.Generator().manual_seed(seed)
        bank = PrototypeBank.per_class(classes, self.prototypes_per_class, encoder.dim, generator=draw)
        head = NearestOfClass(bank.owner(), classes, self.power)
        return PrototypeModel(encoder, nn.Sequential(), bank, squared_l2, head, similarity=Inverse(self.scale))

    def initialise(self, model: PrototypeModel, batches: Iterable[tuple[Tokens, Tensor]], seed: int) -> None:
        """Start the prototypes on the k-means centres of their own class."""
        start_on_classes(model, batches, seed)

    def objective(self, out: Output, labels: Tensor) -> dict[str, Tensor]:
        """Return the mean transferred relative distance."""
        assert out.distances is not None, "build made it so"
        own = out.bank.owned_by(labels)
        other = ~own & out.bank.usable & (labels >= 0).unsqueeze(1)
        return {"quantisation": quantisation(out.distances, own, other, self.transfer, self.sharpness)}

    def weights(self) -> dict[str, float]:
        """Return the coefficient."""
        return {"quantisation": 1.0}

    def phases(self) -> list[Phase]:
        """Return start, training, and the naming of the nearest cases."""
        train = Train("quantise", self.epochs, {"prototypes": self.rate}, cosine=True)
        return [Initialise(), train, Project(move=False)]
