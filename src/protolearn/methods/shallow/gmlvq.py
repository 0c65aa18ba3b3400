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

from dataclasses import dataclass

from torch import Tensor

from protolearn.core.encoder import Encoder
from protolearn.core.method import Phase, register
from protolearn.core.metrics import Omega
from protolearn.core.model import PrototypeModel
from protolearn.core.settings import above, at_least
from protolearn.core.winner import QuantisationMethod, winner_model
from protolearn.objectives.quantisation import quantisation_of
from protolearn.structures import Output


@register(
    "gmlvq",
    area="shallow",
    paper="Schneider, Biehl and Hammer, Neural Computation 21 (2009)",
    verified="distance, cost and gradients against prototorch 0.7.6; the paper's own figures unchecked",
)
@dataclass(frozen=True)
class GMLVQ(QuantisationMethod):
    """Settings of GMLVQ.

    Examples
    --------
    >>> GMLVQ(prototypes_per_class=3).settings()["transfer"]
    'sigmoid'
    """

    metric_rate: float = 1e-3
    rank: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        above(self, 0, "metric_rate")
        at_least(self, 1, "rank")

    def build(self, encoder: Encoder, classes: int, seed: int = 0) -> PrototypeModel:
        """Return the untrained model: tokens and prototypes are turned by one matrix before they are compared."""
        return winner_model(self, encoder, classes, seed, metric=Omega(encoder.dim, self.rank))

    def objective(self, out: Output, labels: Tensor) -> dict[str, Tensor]:
        """Return the mean transferred relative distance."""
        return {"quantisation": quantisation_of(out, labels, self.transfer, self.sharpness)}

    def phases(self) -> list[Phase]:
        """Return start, training, and the naming of the nearest cases."""
        return self.quantise(self.metric_rate)
