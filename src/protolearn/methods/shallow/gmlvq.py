"""GMLVQ (Schneider, Biehl and Hammer, Neural Computation 2009): GLVQ that learns which directions count.

    d(x, w) = |Omega (x - w)|^2,   trace(Omega^T Omega) = 1
    d+, d- = that distance to the nearest prototype of the own class, and of any other class
    mu = (d+ - d-) / (d+ + d-);   loss = mean of f(mu),  f(mu) = 1 / (1 + exp(-sharpness mu)), or mu itself
    score of class c = scale / (scale + d_c),  d_c the distance to its nearest prototype;  probability_c ~ score_c^power

Prototypes stay in the space of the input. After each step Omega is scaled to unit trace; it starts as the identity.
The diagonal of Omega^T Omega says how much each feature counts, the rest which pairs count together.

Departs from the paper: gradient descent by Adam in batches along half a cosine instead of case by case; a start on
k-means centres of the own class; at the end every prototype names the nearest case of its class. A ``rank`` below the
width is the limited-rank variant (Bunte et al., 2012). Features should have comparable scales.
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
from protolearn.core.metrics import Omega
from protolearn.core.model import PrototypeModel
from protolearn.core.similarities import Inverse
from protolearn.core.starts import start_on_classes
from protolearn.errors import UsageError
from protolearn.objectives.quantisation import quantisation
from protolearn.structures import Output, Tokens


@register(
    "gmlvq",
    area="shallow",
    paper="Schneider, Biehl and Hammer, Neural Computation 21 (2009)",
    verified="distance, cost and gradients against prototorch 0.7.6; the paper's own figures unchecked",
)
@dataclass(frozen=True)
class GMLVQ(Method):
    """Settings of GMLVQ.

    Examples
    --------
    >>> GMLVQ(prototypes_per_class=3).settings()["transfer"]
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
    rank: int | None = None

    def __post_init__(self) -> None:
        for name in ("prototypes_per_class", "epochs"):
            if getattr(self, name) < 1:
                raise UsageError(f"gmlvq: {name} must be at least 1, got {getattr(self, name)}")
        for name in ("sharpness", "scale", "power", "rate", "metric_rate"):
            if not getattr(self, name) > 0:
                raise UsageError(f"gmlvq: {name} must be positive, got {getattr(self, name)}")
        if self.rank is not None and self.rank < 1:
            raise UsageError(f"gmlvq: rank must be at least 1, or None for the width, got {self.rank}")
        if self.transfer not in ("sigmoid", "identity"):
            raise UsageError(f"gmlvq: transfer must be sigmoid or identity, got {self.transfer!r}")

    def build(self, encoder: Encoder, classes: int, seed: int = 0) -> PrototypeModel:
        """Return the untrained model: tokens and prototypes are turned by one matrix before they are compared."""
        draw = torch.Generator().manual_seed(seed)
        bank = PrototypeBank.per_class(classes, self.prototypes_per_class, encoder.dim, generator=draw)
        head = NearestOfClass(bank.owner(), classes, self.power)
        metric = Omega(encoder.dim, self.rank)
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
