"""Kidney-stone parts (Flores-Araiza et al., 2024, arXiv 2409.12883): part prototypes that say what they look at.

    s_p = max over positions of log((d + 1) / (d + eps)), d squared L2 distance;   logit_c = sum_p w_cp s_p
    loss = cross-entropy + 0.8 cluster - 0.08 separation + 1e-4 |w_cp| over other-class weights     (ProtoPNet's)
    descriptors: local phi_m = fall of s_p at the place of its match when characteristic m of the picture is altered;
    global Phi_m = mean of phi_m over training pictures, weighted by s_p;  m: hue, saturation, contrast, brightness,
    texture, shape      (protolearn.explain.characteristics; any model of the core has them)

The base is ProtoPNet (Chen et al., 2019) with its schedule; what the paper adds is the descriptors, and a loss that we
could not verify: no code of it is out. ``guessed_loss=True`` adds a guess after its name, an inter-class nearest
neighbour term (ICNN): mean over cases of d_own / (d_own + d_other), distances between the mean tokens of the cases of a
batch. It is a guess in form, inputs and weight; nothing measured with it says anything about the paper.
Departs from ProtoPNet as ProtoPNet's own page does (any timm encoder, frozen parts in eval mode, one view an epoch).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from protolearn.core.encoder import Encoder
from protolearn.core.heads import LinearEvidence
from protolearn.core.method import Phase, Recipe, register
from protolearn.core.model import PrototypeModel
from protolearn.core.necks import NeckKind
from protolearn.core.part_prototypes import PartMethod, part_model
from protolearn.core.pooling import mean_pool
from protolearn.core.settings import at_least
from protolearn.objectives.class_parts import part_terms
from protolearn.objectives.neighbours import nearest_class_share
from protolearn.structures import Output

FROZEN = Recipe(
    about="a frozen pretrained encoder and few pictures: minutes without an accelerator",
    method={
        "neck": "principal", "start": "k_means", "encoder_rate": None, "warm_epochs": 0, "neck_rate": 1e-3,
        "project_at": (20, 40), "step": 20, "gamma": 0.6, "last_layer": "final", "last_layer_epochs": 40,
        "head_rate": 1e-2,
    },
    encoder={"layer": "final"},
    options={"batch_size": 40},
)  # fmt: skip


@register(
    "kidney-stone-parts",
    area="parts",
    paper="Flores-Araiza et al., 2024, arXiv 2409.12883",
    verified="unverified: the paper's loss is not known, guessed_loss is a guess; the base against ProtoPNet's numbers",
)
@dataclass(frozen=True)
class KidneyStoneParts(PartMethod):
    """Settings; those of the base are ProtoPNet's, and ``guessed_loss`` adds the unverified term.

    Examples
    --------
    >>> sorted(KidneyStoneParts().weights())
    ['cluster', 'cross_entropy', 'l1', 'separation']
    >>> "guessed_icnn" in KidneyStoneParts(guessed_loss=True).weights()
    True
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
    guessed_loss: bool = False
    guessed_weight: float = 0.1
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

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 0, "guessed_weight")

    def build(self, encoder: Encoder, classes: int, seed: int = 0) -> PrototypeModel:
        """Return the untrained model."""
        return part_model(self, encoder, classes, seed, eps=self.eps, similarity=self.similarity)

    def objective(self, out: Output, labels: Tensor) -> dict[str, Tensor]:
        """Return ProtoPNet's four terms, and the guessed one where it is asked for and tokens are at hand."""
        assert isinstance(out.head, LinearEvidence), "build made it so"
        terms = part_terms(out, labels, out.head.weight)
        if self.guessed_loss and out.tokens is not None:
            terms["guessed_icnn"] = nearest_class_share(mean_pool(out.tokens.values, out.tokens.mask), labels)
        return terms

    def weights(self) -> dict[str, float]:
        """Return the coefficients."""
        known = {
            "cross_entropy": 1.0,
            "cluster": self.cluster_weight,
            "separation": self.separation_weight,
            "l1": self.l1_weight,
        }
        return {**known, "guessed_icnn": self.guessed_weight} if self.guessed_loss else known

    def phases(self) -> list[Phase]:
        """Return warm, then joint interrupted by projection and last layer, as ProtoPNet does."""
        return self.warm_joint_last(step=self.step, gamma=self.gamma)
