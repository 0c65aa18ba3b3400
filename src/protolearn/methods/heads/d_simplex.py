"""d-Simplex with HOC (Biondi, Pernici, Ricci, Del Bimbo, CVPR 2024, arXiv 2405.02581): features outlive their model.

    W: K unit vertices of a regular simplex in K - 1 dimensions, W_i . W_j = -1 / (K - 1), fixed, alike for all models
    logits = W z with the raw feature z; cross-entropy over all K vertices, taken or not; class y has vertex K - 1 - y
    with a previous model: loss = 0.1 cross-entropy + 0.9 HOC,
    HOC = mean_i[-s_ii + log sum_j exp(s_ij [y_i != y_j])], s_ij = 10 cos(old feature i, new feature j)
    phases: 70 epochs of SGD (momentum 0.9), rate 1e-3 falling to 1e-5 along a cosine, weight decay 5e-4

A new class takes the next vertex and moves no other, so galleries need no new index. Whether a chain of models is
compatible is measured by ``audit.compatibility``.

Departs from the paper: the features of the previous model come with the cases, as the target "previous" (of the picture
without augmentation), instead of from a second network; rows are divided by their norm, not norm + 1e-8; rehearsal
and the class-balanced batches of the incremental protocol belong to a protocol and are not here; weight decay also on
vectors. The source of a vertex is the training case of its class that lies farthest along it; a vertex is no case.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from protolearn.core.bank import PrototypeBank
from protolearn.core.encoder import Encoder
from protolearn.core.gathering import Pooled
from protolearn.core.heads import FixedEvidence
from protolearn.core.measures import dot
from protolearn.core.method import Method, Phase, Project, Recipe, Train, register
from protolearn.core.model import PrototypeModel
from protolearn.core.necks import uniform_linear
from protolearn.core.settings import above, at_least, rates_of, within
from protolearn.core.simplex import simplex
from protolearn.errors import UsageError
from protolearn.objectives.classification import cross_entropy
from protolearn.objectives.compatibility import higher_order_compatibility
from protolearn.structures import Output

FROZEN = Recipe(
    about="a frozen encoder: only the map onto the simplex is learned",
    method={"encoder_rate": None, "preallocated": 128, "rate": 0.05, "epochs": 40},
)


@register(
    "d-simplex",
    area="heads",
    paper="Biondi et al., CVPR 2024, arXiv 2405.02581",
    verified="simplex, logits, HOC, AC and AM against numbers from the authors' code; published results unverified",
)
@dataclass(frozen=True)
class DSimplex(Method):
    """Settings; ``compatible`` turns the term to the previous model on.

    Examples
    --------
    >>> DSimplex(compatible=True).weights()
    {'cross_entropy': 0.1, 'hoc': 0.9}
    """

    recipes = {"frozen": FROZEN}

    preallocated: int = 1024
    compatible: bool = False
    balance: float = 0.1
    scale: float = 10.0
    leave_out: bool = False
    epochs: int = 70
    encoder_rate: float | None = 1e-3
    rate: float = 1e-3
    floor: float = 1e-2
    weight_decay: float = 5e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 2, "preallocated")
        within(self, "[0, 1]", "balance")
        above(self, 0, "scale", "rate")

    def build(self, encoder: Encoder, classes: int, seed: int = 0) -> PrototypeModel:
        """Return the model: a linear map to K - 1 dimensions (none where the width is right), and the vertices."""
        count = self.preallocated
        if classes > count:
            raise UsageError(f"d-simplex: preallocated must be at least the {classes} classes there are, got {count}")
        layers: nn.Module = nn.Identity()
        if encoder.dim != count - 1:
            draw = torch.Generator().manual_seed(seed)
            layers = uniform_linear(encoder.dim, count - 1, bias=False, generator=draw)
        ownership = torch.zeros(count, classes)
        ownership[count - 1 - torch.arange(classes), torch.arange(classes)] = 1.0
        bank = PrototypeBank(simplex(count), ownership, learned=False)
        bank.active.copy_(ownership.sum(1) > 0)  # vertices without a class bring no evidence yet
        return PrototypeModel(encoder, Pooled(layers), bank, dot, FixedEvidence(ownership.T))

    def objective(self, out: Output, labels: Tensor) -> dict[str, Tensor]:
        """Return the cross-entropy over all vertices, and the term to the previous model where it is turned on."""
        assert out.tokens is not None, "this head is never trained alone"
        features = out.tokens.values[:, 0]
        vertex = out.bank.ownership.argmax(0)[labels.clamp_min(0)].where(labels >= 0, labels)
        terms = {"cross_entropy": cross_entropy(F.linear(features, out.bank.vectors), vertex)}
        if self.compatible:
            old = out.targets.get("previous")
            if old is None or old.shape != features.shape:
                found = "none" if old is None else str(tuple(old.shape))
                raise UsageError(
                    f"d-simplex: compatible=True needs the target 'previous', features {tuple(features.shape)} of the "
                    f"previous model, got {found}: give cases.with_targets({{'previous': ...}})"
                )
            terms["hoc"] = higher_order_compatibility(features, old, labels, scale=self.scale, leave_out=self.leave_out)
        return terms

    def weights(self) -> dict[str, float]:
        """Return the coefficients."""
        return {"cross_entropy": self.balance, "hoc": 1 - self.balance} if self.compatible else {"cross_entropy": 1.0}

    def phases(self) -> list[Phase]:
        """Return one training, then the search for the case that lies farthest along each vertex."""
        rates = rates_of(encoder=self.encoder_rate, neck=self.rate)
        decay = dict.fromkeys(rates, self.weight_decay)
        learn = Train("learn", self.epochs, rates, decay, optimizer="sgd", cosine=True, floor=self.floor)
        return [learn, Project(move=False)]
