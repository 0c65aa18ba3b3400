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

from dataclasses import dataclass

from torch import Tensor

from protolearn.core.encoder import Encoder
from protolearn.core.method import Phase, register
from protolearn.core.metrics import Relevances
from protolearn.core.model import PrototypeModel
from protolearn.core.settings import above
from protolearn.core.winner import QuantisationMethod, winner_model
from protolearn.objectives.quantisation import quantisation_of
from protolearn.structures import Output


@register(
    "grlvq",
    area="shallow",
    paper="Hammer and Villmann, Neural Networks 15 (2002)",
    verified="distance, cost and gradients against loops and prototorch 0.7.6; the paper's own figures unchecked",
)
@dataclass(frozen=True)
class GRLVQ(QuantisationMethod):
    """Settings of GRLVQ.

    Examples
    --------
    >>> GRLVQ(prototypes_per_class=3).settings()["transfer"]
    'sigmoid'
    """

    metric_rate: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        above(self, 0, "metric_rate")

    def build(self, encoder: Encoder, classes: int, seed: int = 0) -> PrototypeModel:
        """Return the untrained model: tokens and prototypes are compared feature by feature, weighted."""
        return winner_model(self, encoder, classes, seed, metric=Relevances(encoder.dim))

    def objective(self, out: Output, labels: Tensor) -> dict[str, Tensor]:
        """Return the mean transferred relative distance."""
        return {"quantisation": quantisation_of(out, labels, self.transfer, self.sharpness)}

    def phases(self) -> list[Phase]:
        """Return start, training, and the naming of the nearest cases."""
        return self.quantise(self.metric_rate)
