"""Harmonic head (Baek et al., 2025; other distances: "Rethinking the Harmonic Loss via Non-Euclidean Distance Layers").

    p_c = d_c^-n / sum_j d_j^-n = softmax over c of (-n log d_c),   d_c a distance between embedding and class vector
    loss = -log p_y = cross-entropy of -n log(d + eps)

One learned vector a class, which acts as its centre: p does not change when all distances grow alike, and a finite
vector is the optimum, so weights do not grow without end as those of a linear layer do.

``distance`` names what is raised to -n, so ``squared_l2`` (the layer of the code, its default) is d^-2n and ``l2`` is
d^-n. Mahalanobis distances are Euclid's after a learned map of the embedding, ``diagonal`` or ``cholesky``.

Departs from the code: the logarithmic form (no division by the row's smallest distance, no 1e-8 inside a logarithm that
would stop gradients); no fall-back to another distance when one fails; the class vectors of a Mahalanobis distance are
learned behind the map; Gumbel-noise Hamming and the "standard" Mahalanobis, whose matrix need not be positive, are left
out (the latter is a function in core.distances). The repository behind the code is not named, the paper's arXiv number
is not known to us, and the learning rates are ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from protolearn.core.bank import PrototypeBank
from protolearn.core.distances import get_distance, minkowski
from protolearn.core.encoder import Encoder
from protolearn.core.gathering import DiagonalMap, Pooled, TriangularMap
from protolearn.core.heads import FixedEvidence
from protolearn.core.measures import squared_l2
from protolearn.core.method import Initialise, Method, Phase, Project, Recipe, Train, TrainingTokens, register
from protolearn.core.model import PrototypeModel
from protolearn.core.settings import above, at_least, rates_of
from protolearn.core.similarities import NegativeLog
from protolearn.core.statistics import ClassStatistics
from protolearn.errors import UsageError
from protolearn.objectives.classification import cross_entropy
from protolearn.structures import Output

DistanceName = Literal[
    "squared_l2", "l2", "cosine_distance", "manhattan", "minkowski", "chebyshev", "chebyshev_soft", "chebyshev_smooth",
    "hamming_soft", "hamming_hard", "canberra", "canberra_weighted", "bray_curtis", "bray_curtis_signed",
    "bray_curtis_abs", "bray_curtis_shares", "mahalanobis_diagonal", "mahalanobis_cholesky",
]  # fmt: skip
EPS: dict[str, float] = {
    "squared_l2": 1e-4, "cosine_distance": 1e-4, "manhattan": 1e-4, "minkowski": 1e-4, "bray_curtis": 1e-3,
    "bray_curtis_signed": 1e-3, "bray_curtis_abs": 1e-3, "bray_curtis_shares": 1e-3,
    "mahalanobis_diagonal": 1e-6, "mahalanobis_cholesky": 1e-6,
}  # fmt: skip
"""What the code adds to each distance; 1e-8 where none is named."""

FROZEN = Recipe(
    about="a frozen encoder: a large exponent, since distances to all classes are alike in many dimensions",
    method={"encoder_rate": None, "exponent": 30.0, "prototype_rate": 1e-2, "epochs": 60, "init": "means"},
)


@register(
    "harmonic",
    area="heads",
    paper="Baek et al., 2025 (Euclid); 'Rethinking the Harmonic Loss via Non-Euclidean Distance Layers', 2026",
    verified="every distance layer against numbers from stored code of unproven origin; published results unverified",
)
@dataclass(frozen=True)
class Harmonic(Method):
    """Settings; ``exponent`` is the code's default 1 (the original paper advises about the root of the width).

    Examples
    --------
    >>> Harmonic(distance="manhattan").distance
    'manhattan'
    """

    recipes = {"frozen": FROZEN}

    distance: DistanceName = "squared_l2"
    exponent: float = 1.0
    eps: float | None = None
    init: Literal["uniform", "means"] = "uniform"
    epochs: int = 50
    encoder_rate: float | None = 1e-3
    prototype_rate: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        above(self, 0, "exponent", "prototype_rate")
        at_least(self, 0, "epochs", "eps")

    def build(self, encoder: Encoder, classes: int, seed: int = 0) -> PrototypeModel:
        """Return the model: class vectors as a linear layer starts, uniform within 1 / sqrt(D)."""
        draw = torch.Generator().manual_seed(seed)
        dim = encoder.dim
        vectors = (2 * torch.rand(classes, dim, generator=draw) - 1) / dim**0.5
        layers: nn.Module = nn.Identity()
        if self.distance == "mahalanobis_diagonal":
            layers = DiagonalMap(dim)
        elif self.distance == "mahalanobis_cholesky":
            layers = TriangularMap(dim)
        mapped = self.distance.startswith("mahalanobis")
        if self.distance in ("chebyshev_soft", "chebyshev_smooth") and dim < 2:
            raise UsageError(f"harmonic: distance {self.distance} needs at least 2 features, got {dim}")
        eps = EPS.get(self.distance, 1e-8) if self.eps is None else self.eps
        measure = squared_l2 if mapped else get_distance(self.distance)
        if self.distance == "minkowski":  # the code adds it to each gap, to their sum and to the root
            measure = minkowski(1.5, eps)
        with torch.no_grad():
            bank = PrototypeBank(layers(vectors), torch.eye(classes))
        # Euclid's distance after the map comes squared: half the exponent
        power = self.exponent / 2 if mapped else self.exponent
        similarity = NegativeLog(power, 0.0 if self.distance == "minkowski" else eps)
        return PrototypeModel(
            encoder, Pooled(layers), bank, measure, FixedEvidence(torch.eye(classes)), similarity=similarity
        )

    @torch.no_grad()
    def initialise(self, model: PrototypeModel, batches: TrainingTokens, seed: int) -> None:
        """Start every class vector at the mean of its embeddings."""
        statistics = ClassStatistics(model.bank.classes, model.bank.vectors.shape[1], model.bank.vectors.device)
        for tokens, labels in batches:
            statistics.update(model.embed(tokens).values[:, 0], labels)
        seen = statistics.moments.counts > 0
        model.bank.vectors[seen] = statistics.moments.means[seen].to(model.bank.vectors)

    def objective(self, out: Output, labels: Tensor) -> dict[str, Tensor]:
        """Return the cross-entropy of ``-n log d``, which is minus the log of the inverse-power share."""
        return {"cross_entropy": cross_entropy(out.logits, labels)}

    def weights(self) -> dict[str, float]:
        """Return the coefficients."""
        return {"cross_entropy": 1.0}

    def phases(self) -> list[Phase]:
        """Return one training from end to end, then the search for the case nearest to each class vector."""
        mapped = self.prototype_rate if self.distance.startswith("mahalanobis") else None
        rates = rates_of(encoder=self.encoder_rate, neck=mapped, prototypes=self.prototype_rate)
        start: list[Phase] = [Initialise()] if self.init == "means" else []
        return [*start, Train("learn", self.epochs, rates), Project(move=False)]
