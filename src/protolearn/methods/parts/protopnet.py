"""ProtoPNet (Chen, Li et al., NeurIPS 2019, arXiv 1806.10574): a class is known by parts like parts seen before.

    s_p = max over positions of log((d + 1) / (d + eps)), d squared L2 distance;   logit_c = sum_p w_cp s_p
    (similarity="linear": -d, an option of the authors' code, which then trains no last layer: last_layer_epochs=0)
    loss = cross-entropy + 0.8 cluster - 0.08 separation + 1e-4 |w_cp| over other-class weights
    cluster, separation: mean distance to the nearest prototype of the own class, of any other class
    phases: 5 warm epochs (encoder frozen), then joint; at epochs 10, 20, 30 projection onto the nearest own-class
    training patch, each followed by 20 epochs of the last layer alone (w starts at 1 own, -0.5 other, no bias)

Departs from the paper: any timm encoder; frozen parts stay in eval mode (in the authors' code batch-norm statistics
drift in the last-layer stage, so that prototypes stop being patches); a class without a training case keeps its
prototypes at projection (the authors' code overwrites them with zeros); masked minima instead of the max_dist trick;
an epoch draws one view of each picture (the paper's has 30 augmented copies laid up beforehand, so small data want more
epochs here); pruning leaves every class its last prototype; by our reading the authors project an epoch later, after
11, 21, 31.

Beyond the paper, off by default: a neck on principal axes and a k-means start, for frozen encoders (recipe "frozen").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from protolearn.core.encoder import Encoder
from protolearn.core.heads import LinearEvidence
from protolearn.core.method import Phase, Prune, Recipe, Train, register
from protolearn.core.model import PrototypeModel
from protolearn.core.necks import NeckKind
from protolearn.core.part_prototypes import PartMethod, part_model
from protolearn.objectives.class_parts import part_terms
from protolearn.structures import Output

FROZEN = Recipe(
    about="a frozen pretrained encoder and few pictures: minutes without an accelerator",
    method={
        "neck": "principal", "start": "k_means", "encoder_rate": None, "warm_epochs": 0, "neck_rate": 1e-3,
        "project_at": (20, 40, 60, 80, 100, 120), "step": 20, "gamma": 0.6,
        "last_layer": "final", "last_layer_epochs": 40, "head_rate": 1e-2,
    },
    encoder={"layer": "final", "smooth": 3, "size": 320},
    augment={
        "one_of": False, "rotation": 15, "shear": 10, "skew": 0, "crop": (0.6, 1.0), "ratio": (0.8, 1.25),
        "brightness": 0.2, "contrast": 0.2, "saturation": 0.1, "hue": 0.02,
    },
    options={"views": 5, "batch_size": 40},
)  # fmt: skip


@register(
    "protopnet",
    area="parts",
    paper="Chen, Li et al., NeurIPS 2019, arXiv 1806.10574",
    verified="formulas and projection against numbers from the authors' code; published accuracies unchecked",
)
@dataclass(frozen=True)
class ProtoPNet(PartMethod):
    """Settings of ProtoPNet with the paper's defaults; ``encoder_rate=None`` keeps the encoder frozen throughout.

    Examples
    --------
    >>> ProtoPNet(prototypes_per_class=5).settings()["cluster_weight"]
    0.8
    """

    recipes = {"frozen": FROZEN}

    prototypes_per_class: int = 10
    dim: int = 128
    neck: NeckKind = "regular"
    axes: int = 256
    start: Literal["uniform", "k_means"] = "uniform"
    similarity: Literal["log", "linear"] = "log"
    eps: float = 1e-4
    cluster_weight: float = 0.8
    separation_weight: float = -0.08
    l1_weight: float = 1e-4
    warm_epochs: int = 5
    project_at: tuple[int, ...] = (10, 20, 30)
    last_layer: Literal["each", "final"] = "each"
    last_layer_epochs: int = 20
    encoder_rate: float | None = 1e-4
    neck_rate: float = 3e-3
    prototype_rate: float = 3e-3
    head_rate: float = 1e-4
    weight_decay: float = 1e-3
    step: int = 5
    gamma: float = 0.1
    freeze_batch_norm: bool = False
    prune: bool = False
    prune_k: int = 6
    prune_minimum: int = 3
    prune_epochs: int = 100

    def build(self, encoder: Encoder, classes: int, seed: int = 0) -> PrototypeModel:
        """Return the untrained model."""
        return part_model(self, encoder, classes, seed, eps=self.eps, similarity=self.similarity)

    def objective(self, out: Output, labels: Tensor) -> dict[str, Tensor]:
        """Return cross-entropy, cluster, separation and L1."""
        assert isinstance(out.head, LinearEvidence), "build made it so"
        return part_terms(out, labels, out.head.weight)

    def weights(self) -> dict[str, float]:
        """Return the coefficients."""
        return {
            "cross_entropy": 1.0,
            "cluster": self.cluster_weight,
            "separation": self.separation_weight,
            "l1": self.l1_weight,
        }

    def phases(self) -> list[Phase]:
        """Return warm, then joint interrupted by projection and last layer."""
        plan = self.warm_joint_last(step=self.step, gamma=self.gamma, freeze_batch_norm=self.freeze_batch_norm)
        if self.prune:
            plan += [Prune(k=self.prune_k, minimum=self.prune_minimum)]
            plan += [Train("pruned_last_layer", self.prune_epochs, {"head": self.head_rate})]
        return plan
