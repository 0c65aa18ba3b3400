"""k-NN augmentation (Jia et al., 2021, arXiv 2112.08459): neighbours say which cases are hard, and help to decide.

    z = unit(f - mean of the training features); sim_j = -|z - z_j|^2 (the code's "l2": the square)
    p_knn(c) = sum over the k nearest with class c of exp(sim_j / T) / sum over the k nearest;   k = 20, T = 1
    training: mean of CE_i (1 + coefficient * min(-log p_knn(y_i), cap)), case i itself left out by its id
    prediction: p = coefficient * p_knn + (1 - coefficient) * softmax of a linear classifier on f;   coefficient = 0.1
    phases: the training cases become the bank; then the linear classifier, encoder frozen

The score is the mixed probability. Each neighbour adds its weight to its class; the classifier's part stands in one row
a class, which is no case and has no source.

Departs from the code: the cap is 10, not 100, so that a case whose neighbours are all of other classes does not
outweigh others; the neighbours are those of the frozen features (no fine-tuning of the encoder, no search for T, k and
coefficient every epoch). Accuracies shown while training count a case among its own neighbours; the loss does not.
Optimiser and rates are ours, as the paper searches a grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from protolearn.core.bank import PrototypeBank
from protolearn.core.encoder import Encoder
from protolearn.core.gathering import CentredUnit, Pooled, summarise
from protolearn.core.measures import cosine, squared_l2
from protolearn.core.method import Initialise, Method, Phase, Recipe, Train, TrainingTokens, register
from protolearn.core.model import PrototypeModel
from protolearn.core.settings import above, at_least, within
from protolearn.core.similarities import Negative
from protolearn.core.votes import MixedVotes, vote
from protolearn.errors import TrainingError
from protolearn.objectives.votes import focal, hardness, weighted_cross_entropy
from protolearn.structures import Output

FROZEN = Recipe(about="a frozen encoder and few pictures", method={"epochs": 60, "head_rate": 1e-3, "temperature": 0.1})


@register(
    "knn-augment",
    area="heads",
    paper="Jia et al., 2021, arXiv 2112.08459",
    verified="similarities, probabilities, losses, mixture against numbers from the authors' code; tables unverified",
)
@dataclass(frozen=True)
class KnnAugment(Method):
    """Settings; ``reweight`` is how neighbours weigh the training cases: "log", "focal", or "none".

    Examples
    --------
    >>> KnnAugment().coefficient
    0.1
    """

    recipes = {"frozen": FROZEN}

    k: int = 20
    temperature: float = 1.0
    similarity: Literal["l2", "cosine"] = "l2"
    coefficient: float = 0.1
    reweight: Literal["log", "focal", "none"] = "log"
    cap: float = 10.0
    gamma: float = 2.0
    epochs: int = 100
    head_rate: float = 1e-3
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "k")
        within(self, "[0, 1]", "coefficient")
        above(self, 0, "temperature", "cap", "gamma", "head_rate")

    def build(self, encoder: Encoder, classes: int, seed: int = 0) -> PrototypeModel:
        """Return the model without a case: the classifier decides alone."""
        draw = torch.Generator().manual_seed(seed)
        vectors = torch.nn.functional.normalize(torch.randn(classes, encoder.dim, generator=draw), dim=1)
        bank = PrototypeBank(vectors, torch.eye(classes), learned=False, groups=torch.zeros(classes))
        head = MixedVotes(bank, encoder.dim, k=self.k, scale=1 / self.temperature, coefficient=self.coefficient)
        torch.nn.init.normal_(head.classifier.weight, std=0.01, generator=draw)
        torch.nn.init.zeros_(head.classifier.bias)
        neck = Pooled(CentredUnit(encoder.dim))
        if self.similarity == "cosine":
            return PrototypeModel(encoder, neck, bank, cosine, head)
        return PrototypeModel(encoder, neck, bank, squared_l2, head, similarity=Negative())

    @torch.no_grad()
    def initialise(self, model: PrototypeModel, batches: TrainingTokens, seed: int) -> None:
        """Centre on the training features and take every labelled case into the bank; class means stand for classes."""
        assert isinstance(model.neck, Pooled) and isinstance(model.neck.layers, CentredUnit)
        features = torch.cat([summarise(tokens) for tokens, _ in batches])
        labels = torch.cat([labels for _, labels in batches])
        known = (labels >= 0).nonzero().squeeze(1)
        if len(known) == 0:
            raise TrainingError("knn-augment: no labelled case to take as neighbour")
        model.neck.layers.mean.copy_(features.mean(0))
        bank, cases = model.bank, model.neck.layers(features[known])
        assert bank.groups is not None, "build made it so"
        bank.keep((bank.groups == 0).nonzero().squeeze(1))
        ownership = torch.eye(bank.classes, device=cases.device)[labels[known]]
        means = ownership.T @ cases / ownership.sum(0).clamp_min(1).unsqueeze(1)
        rows = ((bank.ownership @ ownership.T).sum(1) > 0).nonzero().squeeze(1)
        bank.move(rows, means[bank.owner()[rows]], [None] * len(rows))
        bank.grow(cases, ownership, batches.sources(known.tolist()), groups=torch.ones_like(known))

    def objective(self, out: Output, labels: Tensor) -> dict[str, Tensor]:
        """Return the cross-entropy of the classifier, each case weighed by its neighbours without itself."""
        assert isinstance(out.head, MixedVotes) and out.bank.groups is not None, "build made it so"
        with torch.no_grad():
            allowed = (out.bank.groups == 1).expand(len(labels), -1).clone()
            itself = out.bank.rows_of(out.cases) if out.cases else labels.new_full(labels.shape, -1)
            found = (itself >= 0).nonzero().squeeze(1)
            allowed[found, itself[found]] = False
            cases = out.head.weigh(out.similarities, allowed)
            own = vote(cases, out.bank.ownership).gather(1, labels.clamp_min(0).unsqueeze(1)).squeeze(1)
            own = own.clamp_max(1.0).where(cases.sum(1) > 0, torch.ones_like(own))  # no neighbour has nothing to say
            weights = torch.ones_like(own)
            if self.reweight == "log":
                weights = hardness(own, self.coefficient, self.cap)
            elif self.reweight == "focal":
                weights = focal(own, self.gamma)
        return {"weighted_cross_entropy": weighted_cross_entropy(out.head.classify(out), labels, weights)}

    def weights(self) -> dict[str, float]:
        """Return the coefficients."""
        return {"weighted_cross_entropy": 1.0}

    def phases(self) -> list[Phase]:
        """Return the making of the bank, then the classifier."""
        learn = Train("classifier", self.epochs, {"head": self.head_rate}, {"head": self.weight_decay})
        return [Initialise(), learn]
