"""Nearest class mean, with one mean a class or several (k-means inside the class): the floor that others must beat.

    w_c = mean of the cases of class c;  the class of the nearest w is predicted
    several: the k-means centres of the cases of each class
    score of class c = scale / (scale + d_c),  d_c the squared distance to its nearest mean
    probability of class c ~ score_c^power

Nothing is trained by gradient. Running means are exact in one pass: streamed, merged or taken at once they are the same
(``core.updates.running_mean``). As a floor for continual learning on frozen features see Janson et al. (2022).

Departs from usage elsewhere: features are not normalised; a class without a case has no mean and cannot be predicted
(other implementations store a row of zeros, which can win); every mean names the nearest case of its class.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from protolearn.core.bank import PrototypeBank
from protolearn.core.encoder import Encoder
from protolearn.core.heads import NearestOfClass
from protolearn.core.measures import squared_l2
from protolearn.core.method import Initialise, Method, Phase, Project, register
from protolearn.core.model import PrototypeModel
from protolearn.core.similarities import Inverse
from protolearn.core.starts import start_on_classes
from protolearn.errors import UsageError
from protolearn.objectives.attraction import cluster
from protolearn.structures import Output, Tokens


@register(
    "nearest-class-mean",
    area="shallow",
    paper="textbook; on frozen features Janson et al., 2022, arXiv 2210.04428 (id unchecked)",
    verified="means and predictions equal scikit-learn's NearestCentroid",
)
@dataclass(frozen=True)
class NearestClassMean(Method):
    """Settings of the nearest class mean.

    Examples
    --------
    >>> NearestClassMean().phases()[0].name
    'initialise'
    """

    prototypes_per_class: int = 1
    scale: float = 1.0
    power: float = 10.0

    def __post_init__(self) -> None:
        if self.prototypes_per_class < 1:
            raise UsageError(f"nearest-class-mean: prototypes_per_class must be >= 1, got {self.prototypes_per_class}")
        for name in ("scale", "power"):
            if not getattr(self, name) > 0:
                raise UsageError(f"nearest-class-mean: {name} must be positive, got {getattr(self, name)}")

    def build(self, encoder: Encoder, classes: int, seed: int = 0) -> PrototypeModel:
        """Return the model before it has seen a case: tokens are compared as they are."""
        draw = torch.Generator().manual_seed(seed)
        bank = PrototypeBank.per_class(classes, self.prototypes_per_class, encoder.dim, generator=draw)
        head = NearestOfClass(bank.owner(), classes, self.power)
        return PrototypeModel(encoder, nn.Sequential(), bank, squared_l2, head, similarity=Inverse(self.scale))

    def initialise(self, model: PrototypeModel, batches: Iterable[tuple[Tokens, Tensor]], seed: int) -> None:
        """Put the prototypes on the means of their class, or on its k-means centres."""
        start_on_classes(model, batches, seed)

    def objective(self, out: Output, labels: Tensor) -> dict[str, Tensor]:
        """Return what k-means inside the class makes small; nothing is trained by it."""
        assert out.distances is not None, "build made it so"
        return {"cluster": cluster(out.distances, out.bank.owned_by(labels))}

    def weights(self) -> dict[str, float]:
        """Return the coefficient."""
        return {"cluster": 1.0}

    def phases(self) -> list[Phase]:
        """Return the one pass that takes the means, and the naming of the nearest cases."""
        return [Initialise(), Project(move=False)]
