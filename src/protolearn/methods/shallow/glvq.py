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

from dataclasses import dataclass

from torch import Tensor

from protolearn.core.encoder import Encoder
from protolearn.core.method import Phase, register
from protolearn.core.model import PrototypeModel
from protolearn.core.winner import QuantisationMethod, winner_model
from protolearn.objectives.quantisation import quantisation_of
from protolearn.structures import Output


@register(
    "glvq",
    area="shallow",
    paper="Sato and Yamada, NeurIPS 1995",
    verified="cost and gradients against prototorch 0.7.6; the paper's own figures unchecked",
)
@dataclass(frozen=True)
class GLVQ(QuantisationMethod):
    """Settings of GLVQ.

    Examples
    --------
    >>> GLVQ(prototypes_per_class=3).settings()["transfer"]
    'sigmoid'
    """

    scale: float = 1.0

    def build(self, encoder: Encoder, classes: int, seed: int = 0) -> PrototypeModel:
        """Return the untrained model: tokens are compared as they are."""
        return winner_model(self, encoder, classes, seed)

    def objective(self, out: Output, labels: Tensor) -> dict[str, Tensor]:
        """Return the mean transferred relative distance."""
        return {"quantisation": quantisation_of(out, labels, self.transfer, self.sharpness)}

    def phases(self) -> list[Phase]:
        """Return start, training, and the naming of the nearest cases."""
        return self.quantise()
