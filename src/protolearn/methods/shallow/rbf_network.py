"""RBF network (Broomhead and Lowe, 1988; Moody and Darken, 1989): bumps on prototypes, and a linear readout.

    h_p = exp(-|x - w_p|^2 / sigma_p);   score_c = sum over p of W_cp h_p + b_c
    w: k-means centres;   sigma_p: mean squared distance from w_p to its two nearest other centres
    W, b: linear least squares on targets 1 for the own class and 0 for others, with a small ridge

Moody and Darken's hybrid: centres and widths without labels' help, then the readout in closed form; nothing is trained
by gradient unless ``joint_epochs`` asks for it (centres, widths and readout together, by cross-entropy).

Departs from the papers: k-means inside each class, so that every centre has a class and a nearest case; a ridge beside
the pseudo-inverse; scores and bias are multiplied by one factor, fitted to the training cases, that makes their softmax
a probability (no decision depends on it). Features should have comparable scales.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from protolearn.core.bank import PrototypeBank
from protolearn.core.encoder import Encoder
from protolearn.core.heads import LinearEvidence
from protolearn.core.measures import squared_l2
from protolearn.core.method import Initialise, Method, Phase, Project, Train, TrainingTokens, register
from protolearn.core.model import PrototypeModel
from protolearn.core.regression import least_squares, sureness
from protolearn.core.settings import above, at_least
from protolearn.core.similarities import RadialBasis
from protolearn.core.starts import neighbour_widths, start_on_classes
from protolearn.objectives.classification import cross_entropy
from protolearn.structures import Output


@register(
    "rbf-network",
    area="shallow",
    paper="Broomhead and Lowe, 1988; Moody and Darken, Neural Computation 1989",
    verified="widths and readout against loops and numpy's least squares; the papers' own figures unchecked",
)
@dataclass(frozen=True)
class RBFNetwork(Method):
    """Settings of the RBF network.

    Examples
    --------
    >>> [phase.name for phase in RBFNetwork().phases()]
    ['initialise', 'projection']
    """

    prototypes_per_class: int = 5
    neighbours: int = 2
    width: float = 1.0
    ridge: float = 1e-4
    joint_epochs: int = 0
    prototype_rate: float = 1e-3
    head_rate: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "prototypes_per_class", "neighbours")
        above(self, 0, "width", "prototype_rate", "head_rate")
        at_least(self, 0, "ridge", "joint_epochs")

    def build(self, encoder: Encoder, classes: int, seed: int = 0) -> PrototypeModel:
        """Return the untrained model: every class reads every bump."""
        draw = torch.Generator().manual_seed(seed)
        bank = PrototypeBank.per_class(classes, self.prototypes_per_class, encoder.dim, generator=draw)
        head = LinearEvidence(torch.zeros(classes, len(bank)), torch.full((classes,), 1.0 / classes))
        similarity = RadialBasis(torch.full((len(bank),), float(encoder.dim)))
        return PrototypeModel(encoder, nn.Sequential(), bank, squared_l2, head, similarity=similarity)

    @torch.no_grad()
    def initialise(self, model: PrototypeModel, batches: TrainingTokens, seed: int) -> None:
        """Set centres, widths and readout."""
        start_on_classes(model, batches, seed)
        similarity, head, usable = model.similarity, model.head, model.bank.usable
        assert isinstance(similarity, RadialBasis) and isinstance(head, LinearEvidence), "build made it so"
        assert head.bias is not None, "build made it so"
        widths = torch.ones_like(similarity.width)
        widths[usable] = self.width * neighbour_widths(model.bank.vectors[usable], self.neighbours)
        similarity.reset(widths)
        seen = [(model.score(model.embed(tokens)).evidence, labels) for tokens, labels in batches]
        evidence, labels = torch.cat([h for h, _ in seen]), torch.cat([y for _, y in seen])
        readout = least_squares(evidence, labels, model.bank.classes, ridge=self.ridge)
        factor = sureness(evidence @ readout.weight.T + readout.bias, labels)
        head.weight.copy_(factor * readout.weight)
        head.bias.copy_(factor * readout.bias)

    def objective(self, out: Output, labels: Tensor) -> dict[str, Tensor]:
        """Return what the optional joint training makes small."""
        return {"cross_entropy": cross_entropy(out.logits, labels)}

    def weights(self) -> dict[str, float]:
        """Return the coefficient."""
        return {"cross_entropy": 1.0}

    def phases(self) -> list[Phase]:
        """Return the closed form, the optional joint training, and the naming of the nearest cases."""
        rates = {"prototypes": self.prototype_rate, "head": self.head_rate}
        joint: list[Phase] = [Train("joint", self.joint_epochs, rates)] if self.joint_epochs else []
        return [Initialise(), *joint, Project(move=False)]
