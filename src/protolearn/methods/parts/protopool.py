"""ProtoPool (Rymarczyk et al., ECCV 2022, arXiv 2112.02902): classes share a pool of prototypes through slots.

    q_ck over the pool = Gumbel-softmax of scores;   d_ck = sum_p q_ckp d_p, for the smallest and for the mean distance
    f_ck = g(smallest d_ck) - g(mean d_ck),  g(d) = log((d + 1) / (d + eps));   logits = w f (w starts at 1 own, 0 else)
    loss = cross-entropy + 0.8 cluster - 0.08 separation + orthogonality + 1e-4 |w| over other-class slots
    cluster: smallest distance among the K prototypes that the class's slots hold most of; separation: among all others
    orthogonality: mean over slots of the cosines with the other slots of the class
    phases: 10 epochs with the encoder frozen, joint; then every slot keeps its best prototype, prototypes move onto the
    nearest training patch of any class that holds them, and the last layer is learned alone

Distances are mixed first and become a similarity afterwards. The scores are multiplied by 1000 sqrt(epoch / 30) before
the noise is added (temperature 0.5), so that choices harden; this is what the released code does.

Departs from the paper: any timm encoder; frozen parts stay in eval mode, and evaluation draws no noise; no mix-up of
pictures; masked minima instead of the max_dist trick, and separation takes exactly the prototypes that cluster leaves;
a prototype that no slot keeps is removed (the released code leaves it as zeros); orthogonality is taken on the scores,
as in the released code, not on the distributions. The code does not say how many joint epochs: 20 is unverified.

Beyond the paper, off by default: a neck on principal axes and a k-means start, for frozen encoders (recipe "frozen").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from protolearn.core.bank import PrototypeBank
from protolearn.core.encoder import Encoder
from protolearn.core.measures import squared_l2
from protolearn.core.method import Initialise, Method, Phase, Project, Recipe, Revise, Train, TrainingTokens, register
from protolearn.core.model import PrototypeModel
from protolearn.core.necks import NeckKind, make_neck
from protolearn.core.settings import above, at_least, rates_of
from protolearn.core.similarities import LogRatio
from protolearn.core.slots import SlotHead
from protolearn.core.starts import start_pool
from protolearn.objectives.attraction import cluster, separation
from protolearn.objectives.classification import cross_entropy
from protolearn.objectives.slots import slot_orthogonality
from protolearn.objectives.sparsity import other_class_l1
from protolearn.structures import Output

FROZEN = Recipe(
    about="a frozen pretrained encoder, few pictures, few classes: under a minute once they are encoded",
    method={
        "neck": "principal", "start": "k_means", "axes": 64, "dim": 64, "prototypes": 60, "encoder_rate": None,
        "warm_epochs": 15, "joint_epochs": 15, "step": 15, "gumbel_scale": 30.0, "slot_rate": 3e-2,
        "neck_rate": 1e-3, "last_layer_epochs": 30, "head_rate": 1e-2,
    },
    encoder={"layer": "final", "smooth": 3},
    options={"batch_size": 40},
)  # fmt: skip


@register(
    "protopool",
    area="parts",
    paper="Rymarczyk et al., ECCV 2022, arXiv 2112.02902",
    verified="formulas and terms against numbers from a package; epochs of joint training and accuracies unchecked",
)
@dataclass(frozen=True)
class ProtoPool(Method):
    """Settings of ProtoPool with the paper's defaults for CUB; ``encoder_rate=None`` keeps the encoder frozen.

    Examples
    --------
    >>> ProtoPool(prototypes=20, slots=3).settings()["slots"]
    3
    """

    recipes = {"frozen": FROZEN}

    prototypes: int = 202
    slots: int = 10
    dim: int = 256
    neck: Literal["sigmoid", "principal"] = "sigmoid"
    axes: int = 256
    start: Literal["uniform", "k_means"] = "uniform"
    eps: float = 1e-4
    gumbel_epochs: int = 30
    gumbel_scale: float = 1e3
    cluster_weight: float = 0.8
    separation_weight: float = -0.08
    orthogonality_weight: float = 1.0
    l1_weight: float = 1e-4
    warm_epochs: int = 10
    joint_epochs: int = 20
    last_layer_epochs: int = 25
    encoder_rate: float | None = 1e-4
    neck_rate: float = 3e-3
    prototype_rate: float = 3e-3
    slot_rate: float = 3e-3
    head_rate: float = 1e-4
    weight_decay: float = 1e-3
    step: int = 5
    gamma: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "prototypes", "slots", "dim", "axes", "step")
        at_least(self, 0, "warm_epochs", "joint_epochs", "last_layer_epochs", "gumbel_epochs")
        above(self, 0, "gumbel_scale")

    def build(self, encoder: Encoder, classes: int, seed: int = 0) -> PrototypeModel:
        """Return the untrained model; no class owns a prototype until the slots are settled."""
        draw = torch.Generator().manual_seed(seed)
        kind: NeckKind = "principal" if self.neck == "principal" else "single"
        neck = make_neck(kind, encoder.dim, self.dim, axes=self.axes, generator=draw)
        vectors = torch.rand(self.prototypes, self.dim, generator=draw)
        bank = PrototypeBank(vectors, torch.zeros(self.prototypes, classes))
        similarity = LogRatio(self.eps)
        head = SlotHead.random(
            classes, self.prototypes, self.slots, similarity,
            generator=draw, epochs=self.gumbel_epochs, stop=self.gumbel_scale,
        )  # fmt: skip
        return PrototypeModel(encoder, neck, bank, squared_l2, head, similarity=similarity)

    def initialise(self, model: PrototypeModel, batches: TrainingTokens, seed: int) -> None:
        """Fit the principal axes; then put the prototypes on the k-means centres of all training tokens."""
        start_pool(model, batches, seed, prototypes=self.start)

    def objective(self, out: Output, labels: Tensor) -> dict[str, Tensor]:
        """Return the five terms."""
        head = out.head
        assert out.distances is not None and isinstance(head, SlotHead), "build made it so"
        own = head.own(labels, out.bank.usable)
        other = ~own & out.bank.usable & (labels >= 0).unsqueeze(1)
        return {
            "cross_entropy": cross_entropy(out.logits, labels),
            "cluster": cluster(out.distances, own),
            "separation": separation(out.distances, other),
            "orthogonality": slot_orthogonality(head.open_scores),
            "l1": other_class_l1(head.last_layer, head.own_slots),
        }

    def weights(self) -> dict[str, float]:
        """Return the coefficients."""
        return {
            "cross_entropy": 1.0,
            "cluster": self.cluster_weight,
            "separation": self.separation_weight,
            "orthogonality": self.orthogonality_weight,
            "l1": self.l1_weight,
        }

    def after_step(self, model: PrototypeModel, out: Output, labels: Tensor, steps: int) -> None:
        """Count the step: choices harden with every epoch."""
        assert isinstance(model.head, SlotHead)
        model.head.advance(steps)

    def revise(self, model: PrototypeModel, name: str) -> None:
        """Let every slot keep one prototype, and remove those that no slot keeps."""
        assert isinstance(model.head, SlotHead)
        model.bank.ownership.copy_(model.head.settle())
        model.prune(model.bank.ids[model.bank.ownership.sum(1) == 0])

    def phases(self) -> list[Phase]:
        """Return warm and joint training, settling and projection, and the last layer."""
        rates = {"neck": self.neck_rate, "prototypes": self.prototype_rate, "head": self.slot_rate}
        decay = dict.fromkeys(("encoder", "neck"), self.weight_decay)
        joint = rates_of(encoder=self.encoder_rate, **rates)
        falls = tuple(range(self.step, self.joint_epochs, self.step))
        return [
            *([Initialise()] if self.neck == "principal" or self.start == "k_means" else []),
            Train("warm", self.warm_epochs, rates, decay),
            Train("joint", self.joint_epochs, joint, decay, milestones=falls, gamma=self.gamma),
            Revise("settle"),
            Project(),
            Train(
                "last_layer", self.last_layer_epochs, {"head": self.head_rate}, {"head": self.weight_decay},
                milestones=tuple(range(5, self.last_layer_epochs, 5)), gamma=0.95,
                weights={"cross_entropy": 1.0, "l1": self.l1_weight},
            ),
        ]  # fmt: skip
