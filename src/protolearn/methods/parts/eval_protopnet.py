"""EvalProtoPNet (Huang et al., ICCV 2023, arXiv 2212.05946): parts that stay in place, weighed within their class.

    a_p = max over positions of <z, v_p>, v_p of unit length, z = sigmoid(linear(encoder)) not normalised
    logit_c = sum over its own K prototypes of K softmax(w_c)_p a_p      (score aggregation; no evidence from others)
    loss = CE + 0.8 cluster - 0.08 separation + 1e-4 orthogonality + 0.5 alignment
    cluster, separation: mean smallest -cos(z, v) to the own class, to any other
    orthogonality: sum over classes of |V_c V_c^T - I|; it grows with the number of classes (1e-4 is for 200)
    alignment (shallow-deep feature alignment): mean of relu(|A_deep - A_shallow| - 0.1), where A holds the cosines
    between positions of the encoder's tokens, of an early map (without gradient); in the rows of those positions where
    prototypes of the own class are found
phases: 5 warm epochs (encoder frozen, no alignment), 7 joint, rates x 0.2 every 3.

The early map is asked of the encoder (its setting ``shallow``); each block of its cells that lies under one deep cell
is stacked into that cell's channels. The term acts on the encoder alone: it is left out where the encoder is frozen
(its tokens are cached), and, with a warning, where the encoder that is trained gives no early map.

The authors' code never projects; here the nearest training token of each prototype is recorded at the end
(``project="record"``), or prototypes move onto it (``"move"``). Loss coefficient 0.5 and the schedule are those of the
authors' training script; the defaults of its arguments differ (0.3; 20 epochs, rates x 0.1 every 5).
Beyond the paper, off by default: a neck on principal axes and a k-means start, for frozen encoders (recipe "frozen").
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from protolearn.core.bank import PrototypeBank, unit_norm
from protolearn.core.encoder import Encoder
from protolearn.core.heads import ClassSoftmaxEvidence
from protolearn.core.maps import fold_blocks
from protolearn.core.matching import best_match
from protolearn.core.measures import cosine, projection_length
from protolearn.core.method import Initialise, Method, Phase, Project, Recipe, Train, TrainingTokens, register
from protolearn.core.model import PrototypeModel
from protolearn.core.necks import NeckKind, make_neck
from protolearn.core.settings import at_least, rates_of, require, within
from protolearn.core.starts import start_from_tokens
from protolearn.objectives.alignment import gram_alignment
from protolearn.objectives.attraction import similarity_cluster, similarity_separation
from protolearn.objectives.classification import cross_entropy
from protolearn.objectives.geometry import class_gram_orthogonality
from protolearn.structures import Output

FROZEN = Recipe(
    about="a frozen pretrained encoder and few pictures (no alignment then): minutes without an accelerator",
    method={
        "neck": "principal", "start": "k_means", "encoder_rate": None, "warm_epochs": 0, "epochs": 20,
        "neck_rate": 3e-3, "prototype_rate": 3e-3, "head_rate": 1e-2, "step": 10, "gamma": 0.5, "project": "move",
    },
    encoder={"layer": "final", "smooth": 3},
    options={"batch_size": 40},
)  # fmt: skip


@register(
    "eval-protopnet",
    area="parts",
    paper="Huang et al., ICCV 2023, arXiv 2212.05946",
    verified="formulas against numbers from the authors' code; published figures unchecked",
)
@dataclass(frozen=True)
class EvalProtoPNet(Method):
    """Settings of EvalProtoPNet with the defaults of the authors' training script.

    Examples
    --------
    >>> EvalProtoPNet(alignment_margin=0.2).settings()["alignment_weight"]
    0.5
    """

    recipes = {"frozen": FROZEN}

    prototypes_per_class: int = 10
    dim: int = 64
    neck: NeckKind = "single"
    axes: int = 256
    start: Literal["uniform", "k_means"] = "uniform"
    cluster_weight: float = 0.8
    separation_weight: float = -0.08
    orthogonality_weight: float = 1e-4
    alignment_weight: float = 0.5
    alignment_margin: float = 0.1
    warm_epochs: int = 5
    epochs: int = 12
    project: Literal["record", "move"] = "record"
    encoder_rate: float | None = 1e-4
    neck_rate: float = 3e-3
    prototype_rate: float = 3e-3
    head_rate: float = 1e-6
    weight_decay: float = 1e-3
    step: int = 3
    gamma: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "prototypes_per_class", "dim")
        at_least(self, 0, "warm_epochs")
        require(
            self,
            self.warm_epochs <= self.epochs,
            "epochs",
            f"(all of them) be at least warm_epochs = {self.warm_epochs}",
        )
        within(self, "[0, 2)", "alignment_margin")

    def build(self, encoder: Encoder, classes: int, seed: int = 0) -> PrototypeModel:
        """Return the untrained model."""
        draw = torch.Generator().manual_seed(seed)
        neck = make_neck(self.neck, encoder.dim, self.dim, axes=self.axes, generator=draw)
        bank = PrototypeBank.per_class(classes, self.prototypes_per_class, self.dim, generator=draw)
        bank.constraint = unit_norm
        bank.constrain()
        return PrototypeModel(encoder, neck, bank, projection_length, ClassSoftmaxEvidence(bank.ownership))

    def initialise(self, model: PrototypeModel, batches: TrainingTokens, seed: int) -> None:
        """Fit the principal axes; then put the prototypes of a class on the k-means centres of its own directions."""
        start_from_tokens(model, batches, seed, prototypes=self.start, directions=True)

    def objective(self, out: Output, labels: Tensor) -> dict[str, Tensor]:
        """Return the terms; the alignment only where the encoder ran and gave an early map."""
        assert out.tokens is not None, "no phase trains the head alone, so tokens are always there"
        own, other = out.bank.owned_by(labels), out.bank.others(labels)
        cosines, _ = best_match(out.tokens.values, out.bank.vectors, cosine, out.tokens.mask)
        terms = {
            "cross_entropy": cross_entropy(out.logits, labels),
            "cluster": -similarity_cluster(cosines, own),
            "separation": -similarity_separation(cosines, other),
            "orthogonality": class_gram_orthogonality(out.bank.vectors, out.bank.owner().where(out.bank.usable, -1)),
        }
        encoded = out.encoded
        if encoded is not None and "shallow" in encoded.extras and encoded.grid is not None:
            shallow = fold_blocks(encoded.extras["shallow"], encoded.grid)
            terms["alignment"] = gram_alignment(
                encoded.values, shallow, out.positions, own, margin=self.alignment_margin
            )
        elif encoded is not None and encoded.values.requires_grad and self.alignment_weight != 0:
            warnings.warn(
                "eval-protopnet: the encoder gives no early map, so the alignment term is left out: set the encoder's "
                "shallow to an early layer, or alignment_weight to 0",
                stacklevel=2,
            )
        return terms

    def weights(self) -> dict[str, float]:
        """Return the coefficients."""
        return {
            "cross_entropy": 1.0,
            "cluster": self.cluster_weight,
            "separation": self.separation_weight,
            "orthogonality": self.orthogonality_weight,
            "alignment": self.alignment_weight,
        }

    def phases(self) -> list[Phase]:
        """Return warm, without the alignment, then joint."""
        rates = {"neck": self.neck_rate, "prototypes": self.prototype_rate, "head": self.head_rate}
        joint, decay = (
            rates_of(encoder=self.encoder_rate, **rates),
            dict.fromkeys(("encoder", "neck"), self.weight_decay),
        )
        return [
            *([] if self.neck != "principal" and self.start == "uniform" else [Initialise()]),
            Train("warm", self.warm_epochs, rates, decay, weights={**self.weights(), "alignment": 0.0}),
            Train("joint", self.epochs - self.warm_epochs, joint, decay, step=self.step, gamma=self.gamma),
            Project(move=self.project == "move"),
        ]
