"""ST-ProtoPNet (Wang et al., ICCV 2023, arXiv 2301.04011): prototypes at the class boundary and far from it.

Two branches, trivial t and support s, each with a neck, prototypes of unit length and last-layer weights of its own;
logits = l_t + l_s, and in each branch l_c = sum_p w_cp s_p with s_p the largest over positions of
    full pictures     relu(cos(z, v_p))        cropped pictures  <z, v_p>, z not normalised
loss of a batch, in turns:
    trivial  CE(l_t) - 0.8 cluster + 0.08 separation + 1e-3 orthogonality + 1 discrimination + 1e-4 L1
    support  CE(l_s) - 0.8 cluster + 0.48 separation + 1e-3 orthogonality + 1 closeness      + 1e-4 L1
    cluster, separation: mean largest similarity to the own class, to any other (cropped: plain cosine, no relu)
    orthogonality: sum over classes of |V_c V_c^T - I|; it grows with the number of classes (1e-3 is for 200)
    discrimination: mean over pairs of classes of the largest <v, v'>; closeness: mean of minus the smallest
phases: 10 warm epochs (encoder frozen), joint to epoch 120, rates x 0.2 every 20; projection at 100 and 110, each
followed by 10 epochs of the last layer. Cropped pictures: recipe "cropped", with a neck of linear, tanh, linear, tanh.

One bank holds both branches: a token is [z_t | z_s], a prototype is 0 outside its half (``bank.groups``: 0 trivial,
1 support), so that branch sum, ledger, projection and report are those of any method.

Departs from the authors' code: a last projection at epoch 120, where theirs ends on prototypes that are no patches
any more; masked maxima where theirs takes max(similarity * mask), 0 where all are negative; prototypes start at unit
length; Adam's momentum also moves the branch whose turn it is not. For full pictures the encoder's map is enlarged
twice (the authors: all but VGG; set ``enlarge`` to 1 there), after the neck, which is linear, instead of before it;
tokens without a grid stay as they are.
Beyond the paper, off by default: a neck on principal axes and a k-means start, for frozen encoders (recipe "frozen").
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from protolearn.core.bank import PrototypeBank
from protolearn.core.constraints import WithinPart
from protolearn.core.encoder import Encoder
from protolearn.core.heads import LinearEvidence
from protolearn.core.matching import best_match
from protolearn.core.measures import cosine, cosine_in_parts, dot
from protolearn.core.method import Phase, Recipe, TrainingTokens, register
from protolearn.core.model import PrototypeModel
from protolearn.core.necks import Finer, NeckKind, SideBySide, make_neck
from protolearn.core.part_prototypes import PartMethod
from protolearn.core.settings import at_least
from protolearn.core.similarities import Relu
from protolearn.core.starts import fit_axes, tokens_of_class
from protolearn.core.updates import k_means
from protolearn.objectives.attraction import similarity_cluster, similarity_separation
from protolearn.objectives.classification import cross_entropy
from protolearn.objectives.geometry import (
    class_gram_orthogonality,
    largest_between_classes,
    smallest_between_classes,
)
from protolearn.objectives.sparsity import other_class_l1
from protolearn.structures import Output

BRANCHES = ("trivial", "support")

CROPPED = Recipe(
    about="pictures cropped to the object: the paper's other variant, similarity by projection length",
    method={
        "pictures": "cropped", "neck": "tanh", "enlarge": 1, "weight_decay": 5e-4, "warm_epochs": 5,
        "project_at": (20, 30), "step": 0, "milestones": (2, 4, 6, 8),
    },
)  # fmt: skip
FROZEN = Recipe(
    about="a frozen pretrained encoder and few pictures: minutes without an accelerator",
    method={
        "neck": "principal", "start": "k_means", "enlarge": 1, "encoder_rate": None, "warm_epochs": 0,
        "neck_rate": 3e-3, "prototype_rate": 3e-3, "project_at": (20, 40), "step": 20, "gamma": 0.5,
        "last_layer": "final", "last_layer_epochs": 40, "head_rate": 1e-2,
    },
    encoder={"layer": "final", "smooth": 3},
    options={"batch_size": 40},
)  # fmt: skip


@register(
    "st-protopnet",
    area="parts",
    paper="Wang et al., ICCV 2023, arXiv 2301.04011",
    verified="formulas against numbers from the authors' code; published accuracies unchecked",
)
@dataclass(frozen=True)
class STProtoPNet(PartMethod):
    """Settings of ST-ProtoPNet with the paper's defaults for full pictures; prototypes are per class and branch.

    Examples
    --------
    >>> STProtoPNet(prototypes_per_class=3).settings()["closeness_weight"]
    1.0
    """

    recipes = {"cropped": CROPPED, "frozen": FROZEN}

    pictures: Literal["full", "cropped"] = "full"
    prototypes_per_class: int = 5
    dim: int = 64
    enlarge: int = 2
    neck: NeckKind = "linear"
    axes: int = 256
    start: Literal["uniform", "k_means"] = "uniform"
    cluster_weight: float = -0.8
    trivial_separation_weight: float = 0.08
    support_separation_weight: float = 0.48
    orthogonality_weight: float = 1e-3
    discrimination_weight: float = 1.0
    closeness_weight: float = 1.0
    l1_weight: float = 1e-4
    warm_epochs: int = 10
    project_at: tuple[int, ...] = (100, 110, 120)
    last_layer: Literal["each", "final"] = "each"
    last_layer_epochs: int = 10
    encoder_rate: float | None = 1e-4
    neck_rate: float = 3e-3
    prototype_rate: float = 3e-3
    head_rate: float = 1e-4
    weight_decay: float = 1e-4
    step: int = 20
    milestones: tuple[int, ...] = ()
    gamma: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "enlarge")

    def build(self, encoder: Encoder, classes: int, seed: int = 0) -> PrototypeModel:
        """Return the untrained model."""
        draw = torch.Generator().manual_seed(seed)
        necks = [make_neck(self.neck, encoder.dim, self.dim, axes=self.axes, generator=draw) for _ in BRANCHES]
        neck: nn.Module = SideBySide(*necks)
        if self.neck == "principal":  # both branches stand on the same axes
            neck = nn.Sequential(necks[0][0], SideBySide(necks[0][1], copy.deepcopy(necks[0][1])))
        vectors = torch.rand(2 * classes * self.prototypes_per_class, 2 * self.dim, generator=draw)
        owner = torch.eye(classes).repeat_interleave(self.prototypes_per_class, 0).repeat(2, 1)
        branch = torch.arange(2).repeat_interleave(classes * self.prototypes_per_class)
        bank = PrototypeBank(vectors, owner, groups=branch)
        bank.constraint = WithinPart(bank, 2)
        bank.constrain()
        head = LinearEvidence.from_ownership(bank.ownership, own=1.0, other=-0.5)
        full = self.pictures == "full"
        return PrototypeModel(
            encoder,
            neck if self.enlarge == 1 else Finer(neck, self.enlarge),
            bank,
            cosine_in_parts(2) if full else dot,
            head,
            similarity=Relu() if full else None,
        )

    @torch.no_grad()
    def initialise(self, model: PrototypeModel, batches: TrainingTokens, seed: int) -> None:
        """Fit the principal axes; then put the prototypes of a class on the k-means centres of its own directions."""
        fit_axes(model.neck, batches)
        if self.start == "uniform":
            return
        draw, owner = torch.Generator().manual_seed(seed), model.bank.owner()
        for label in range(model.bank.classes):
            parts = F.normalize(tokens_of_class(model, batches, label).view(-1, 2, self.dim), dim=2)
            for branch in range(2):
                rows = ((owner == label) & (model.bank.groups == branch)).nonzero().squeeze(1)
                if len(parts) >= len(rows):
                    columns = slice(branch * self.dim, (branch + 1) * self.dim)
                    model.bank.vectors[rows, columns] = k_means(parts[:, branch], len(rows), generator=draw).centres
        model.bank.constrain()

    def objective(self, out: Output, labels: Tensor) -> dict[str, Tensor]:
        """Return the six terms of each branch; which of them count is for the phase to say."""
        assert isinstance(out.head, LinearEvidence) and out.bank.groups is not None, "build made it so"
        own, other = out.bank.owned_by(labels), out.bank.others(labels)
        owner = out.bank.owner().where(out.bank.usable, -1)
        terms = {}
        for branch, name in enumerate(BRANCHES):
            rows = (out.bank.groups == branch).nonzero().squeeze(1)
            part = slice(branch * self.dim, (branch + 1) * self.dim)
            vectors, weight = out.bank.vectors[rows, part], out.head.weight[:, rows]
            terms[f"{name}_cross_entropy"] = cross_entropy(out.evidence[:, rows] @ weight.T, labels)
            alike = out.similarities[:, rows] if self.pictures == "full" else None
            if alike is None and out.tokens is not None:
                alike, _ = best_match(out.tokens.values[..., part], vectors, cosine, out.tokens.mask)
            if alike is not None:  # from cached scores of cropped pictures no cosine is known, nor could it be changed
                terms[f"{name}_cluster"] = similarity_cluster(alike, own[:, rows])
                terms[f"{name}_separation"] = similarity_separation(alike, other[:, rows])
            terms[f"{name}_orthogonality"] = class_gram_orthogonality(vectors, owner[rows])
            if name == "trivial":
                terms["discrimination"] = largest_between_classes(vectors, owner[rows])
            else:
                terms["closeness"] = -smallest_between_classes(vectors, owner[rows])
            terms[f"{name}_l1"] = other_class_l1(weight, out.bank.ownership[rows])
        return terms

    def turns(self) -> tuple[dict[str, float], dict[str, float]]:
        """Return the coefficients of a trivial batch and of a support batch."""

        def of(name: str, separation: float) -> dict[str, float]:
            values = {"cross_entropy": 1.0, "cluster": self.cluster_weight, "separation": separation}
            values |= {"orthogonality": self.orthogonality_weight, "l1": self.l1_weight}
            return {f"{name}_{term}": value for term, value in values.items()}

        return (
            {**of("trivial", self.trivial_separation_weight), "discrimination": self.discrimination_weight},
            {**of("support", self.support_separation_weight), "closeness": self.closeness_weight},
        )

    def weights(self) -> dict[str, float]:
        """Return the coefficients of both branches; in training they take turns."""
        trivial, support = self.turns()
        return {**trivial, **support}

    def phases(self) -> list[Phase]:
        """Return warm, then joint interrupted by projection and last layer; every batch serves one branch."""
        return self.warm_joint_last(weights=self.turns(), step=self.step, milestones=self.milestones, gamma=self.gamma)
