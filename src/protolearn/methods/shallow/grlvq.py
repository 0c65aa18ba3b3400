"""GRLVQ (Hammer and Villmann, Neural Networks 2002): GLVQ that learns how much each feature counts.

    d(x, w) = sum over i of l_i (x_i - w_i)^2,   l_i >= 0, sum of l = 1
    d+, d- = that distance to the nearest prototype of the own class, and of any other class
    mu = (d+ - d-) / (d+ + d-);   loss = mean of f(mu),  f(mu) = 1 / (1 + exp(-sharpness mu)), or mu itself
    score of class c = scale / (scale + d_c),  d_c the distance to its nearest prototype;  probability_c ~ score_c^power

Prototypes stay in the space of the input. After each step negative relevances are cut off and all scaled to sum 1.

Departs from the paper: gradient descent by Adam in batches along half a cosine instead of case by case; a start on
k-means centres of the own class; relevances are cut off at a millionth of an equal share instead of 0, so that one
can come back; at the end every prototype names the nearest case of its class. Features should have comparable scales.
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
from protolearn.core.metrics import Relevances
from protolearn.core.model import PrototypeModel
from protolearn.core.similarities import Inverse
from protolearn.core.starts import start_on_classes
from protolearn.errors import UsageError
from protolearn.objectives.quantisation import quantisation
from protolearn.structures import Output, Tokens


@register(
    "grlvq",
    area="shallow",
    paper="Hammer and Villmann, Neural Networks 15 (2002)",
    verified="distance, cost and gradients against loops and prototorch 0.7.6; the paper's own figures unchecked",
)
@dataclass(frozen=True)
class GRLVQ(Method):
    """Settings of GRLVQ.

    Examples
    --------
    >>> GRLVQ(prototypes_per_class=3).settings()["transfer"]
    'sigmoid'
    """

    prototypes_per_class: int = 1
    transfer: Literal["sigmoid", "identity"] = "sigmoid"
    sharpness: float = 10.0
    scale: float = 0.1
    power: float = 10.0
    epochs: int = 50
    rate: float = 0.05
    metric_rate: float = 1e-3

    def __post_init__(self) -> None:
        for name in ("prototypes_per_class", "epochs"):
            if getattr(self, name) < 1:
                raise UsageError(f"grlvq: {name} must be at least 1, got {getattr(self, name)}")
        for name in ("sharpness", "scale", "power", "rate", "metric_rate"):
            if not getattr(self, name) > 0:
                raise UsageError(f"grlvq: {name} must be positive, got {getattr(self, name)}")
        if self.transfer not in ("sigmoid", "identity"):
            raise UsageError(f"grlvq: transfer must be sigmoid or identity, got {self.transfer!r}")

    def build(self, encoder: Encoder, classes: int, seed: int = 0) -> PrototypeModel:
        """Return the untrained model: tokens and prototypes are compared feature by feature, weighted."""
        draw = torch.Generator().manual_seed(seed)
        bank = PrototypeBank.per_class(classes, self.prototypes_per_class, encoder.dim, generator=draw)
        head = NearestOfClass(bank.owner(), classes, self.power)
        metric = Relevances(encoder.dim)
        similar = Inverse(self.scale)
        return PrototypeModel(encoder, nn.Sequential(), bank, squared_l2, head, similarity=similar, metric=metric)

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
        rates = {"prototypes": self.rate, "neck": self.metric_rate}
        train = Train("quantise", self.epochs, rates, cosine=True)
        return [Initialise(), train, Project(move=False)]
