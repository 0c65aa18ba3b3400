"""CBC (Saralajew, Rana, Villmann, Shaker, AAAI 2025, arXiv 2412.15499): classes expect components present or absent.

    d_k in [0, 1]: how surely component k is found, either
      channels: max over places s of softmax over channels p_s (as in PIP-Net, channel k is component k), or
      rbf: max over s of exp(-|z_s - w_k|^2 / sigma_k), on tokens, features or a table
    R+, R- = softmax of theta over all 2 K slots of a class;   score_c = sum over k of R+_ck d_k + R-_ck (1 - d_k)
    loss = mean of relu(best other score - own score + 0.025): scores are no logits, so no cross-entropy
         (+ robust_weight * relu(robust_target - certified radius), rbf only)
    channels: 12 epochs without labels (align, its weight rising to 1, + 5 tanh), 48 of theta alone, 84 of everything
    rbf: components start on k-means centres (or the mean) of each class; then w, sigma and theta together

What a class says reads: expected and found, R+ d; expected absent, and absent, R- (1 - d). No state is indefinite.
The certified radius (``core.certificate``) holds where distances are taken: for ``rbf`` without a neck that is the
input of the head, so the features of a deep encoder and not its picture. For ``channels`` there is none.

Departs from the authors' code: constant rates (theirs fall on a plateau, and in pretraining along a cosine to 1 %); the
encoder is trained whole, or as far as its ``train_from`` allows (theirs keeps early layers frozen); the two views of a
case share their geometry only where the encoder is trained, so for a frozen one augmentation must leave places where
they are; labelled phases see one view unless align counts.
Unverified: ``rbf``, its start and its settings, and the form of the robustness term, for which no code was released.
Counting detections below 0.1 as 0 at inference makes absence look surer than in training; ``clip=0`` switches it off.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from protolearn.core.bank import PrototypeBank
from protolearn.core.certificate import radius_closed_form
from protolearn.core.channels import channel_prototypes
from protolearn.core.encoder import Encoder
from protolearn.core.measures import dot, squared_l2
from protolearn.core.method import Initialise, Method, Phase, Project, Ramp, Recipe, Train, TrainingTokens, register
from protolearn.core.model import PrototypeModel
from protolearn.core.reasoning import Reasoning
from protolearn.core.settings import at_least, rates_of, require, within
from protolearn.core.similarities import RadialBasis
from protolearn.core.starts import labelled_tokens
from protolearn.core.updates import k_means
from protolearn.objectives.margin import margin_loss, robust_margin
from protolearn.objectives.two_view import two_view_terms
from protolearn.structures import Output

FROZEN = Recipe(
    about="a frozen encoder and few pictures, or features, of each of which there is one view: no augmentation",
    method={
        "components": 256, "two_views": False, "encoder_rate": None, "margin": 0.1, "pretrain_epochs": 10,
        "head_epochs": 20, "joint_epochs": 20, "align_weight": 0.01, "neck_rate": 5e-3, "head_rate": 5e-2,
        "joint_head_rate": 5e-2,
    },
    encoder={"layer": "final"},
    options={"batch_size": 40},
)  # fmt: skip
TABLE = Recipe(
    about="a standardised table or features, one vector each: radial basis functions and a certified radius",
    method={"detection": "rbf", "encoder_rate": None, "rbf_epochs": 60, "head_rate": 5e-2},
    options={"batch_size": 32},
)


@register(
    "cbc",
    area="parts",
    paper="Saralajew, Rana, Villmann, Shaker, AAAI 2025, arXiv 2412.15499",
    verified="reasoning and margin loss against numbers from the authors' code, radii against independent loops and "
    "attacks; detection by radial basis functions and its schedule unverified; published accuracies unchecked",
)
@dataclass(frozen=True)
class CBC(Method):
    """Settings of CBC; those of ``channels`` are the paper's, those of ``rbf`` ours.

    ``encoder_rate=None`` keeps the encoder frozen. ``components=0`` takes every channel of the encoder; a number puts a
    linear layer before them. ``per_class`` is for ``rbf``: how many start on each class; all classes reason with all.

    Examples
    --------
    >>> CBC(detection="rbf", per_class=2).settings()["margin"]
    0.025
    """

    recipes = {"frozen": FROZEN, "table": TABLE}

    detection: Literal["channels", "rbf"] = "channels"
    absence: bool = True
    margin: float = 0.025
    components: int = 0
    clip: float = 0.1
    two_views: bool = True
    pretrain_epochs: int = 12
    pretrain_tanh_weight: float = 5.0
    head_epochs: int = 48
    joint_epochs: int = 84
    align_weight: float = 0.0
    encoder_rate: float | None = 3.75e-4
    neck_rate: float = 3.75e-4
    head_rate: float = 5e-3
    joint_head_rate: float = 3.75e-4
    per_class: int = 3
    start: Literal["k_means", "class_means"] = "k_means"
    rbf_epochs: int = 100
    prototype_rate: float = 1e-2
    robust_weight: float = 0.0
    robust_target: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 0, "components", "pretrain_epochs", "head_epochs", "joint_epochs", "rbf_epochs", "robust_weight")
        within(self, "(0, 1)", "margin")
        within(self, "[0, 1)", "clip")
        at_least(self, 1, "per_class")
        require(self, self.start != "class_means" or self.per_class == 1, "per_class", "be 1 with class means")
        if self.detection == "channels":
            learns = self.encoder_rate is not None or self.components > 0
            require(self, learns, "components", "be at least 1 with a frozen encoder (nothing could learn)")
            require(self, self.robust_weight == 0, "robust_weight", "be 0 without rbf (no certificate)")

    def build(self, encoder: Encoder, classes: int, seed: int = 0) -> PrototypeModel:
        """Return the untrained model; its components belong to no class."""
        draw = torch.Generator().manual_seed(seed)
        if self.detection == "rbf":
            count = self.per_class * classes
            vectors = torch.rand(count, encoder.dim, generator=draw)
            bank = PrototypeBank(vectors, torch.zeros(count, classes))
            head = Reasoning.start(classes, count, absence=self.absence, generator=draw)
            similarity = RadialBasis(torch.full((count,), float(encoder.dim)))
            return PrototypeModel(encoder, nn.Identity(), bank, squared_l2, head, similarity=similarity)
        neck, bank = channel_prototypes(encoder.dim, self.components, classes, generator=draw)
        head = Reasoning.start(classes, len(bank), absence=self.absence, clip=self.clip, generator=draw)
        return PrototypeModel(encoder, neck, bank, dot, head)

    @torch.no_grad()
    def initialise(self, model: PrototypeModel, batches: TrainingTokens, seed: int) -> None:
        """Put components on centres of their class, and make them as wide as tokens are far from them on average."""
        draw, bank = torch.Generator().manual_seed(seed), model.bank
        tokens, label = labelled_tokens(model, batches)
        for c in range(bank.classes):
            own = tokens[label == c]
            if len(own):  # a class without cases keeps random components
                centres = k_means(own, min(self.per_class, len(own)), generator=draw).centres
                rows = torch.arange(self.per_class, device=own.device)
                bank.vectors[c * self.per_class + rows] = centres[rows % len(centres)]
        if isinstance(model.similarity, RadialBasis) and len(tokens):
            away = torch.stack([(tokens - vector).square().sum(1).mean() for vector in bank.vectors])
            model.similarity.reset(away.clamp_min(1e-6))

    def objective(self, out: Output, labels: Tensor) -> dict[str, Tensor]:
        """Return margin and, by the kind of detection, the robustness or the two-view terms."""
        terms = {"margin": margin_loss(out.logits, labels, self.margin)}
        if self.detection == "channels":
            align, tanh = two_view_terms(out)
            return {**terms, "align": align, "tanh": tanh}
        if self.robust_weight > 0:
            assert isinstance(out.head, Reasoning) and isinstance(out.similarity, RadialBasis), "build made it so"
            assert out.distances is not None, "build made it so"
            shares, distances = out.head.shares(out.bank.usable), out.distances.clamp_min(1e-12).sqrt()
            radii = radius_closed_form(distances, out.similarity.width, shares, labels.clamp_min(0)).amin(1)
            terms["robust"] = robust_margin(radii, labels, self.robust_target)
        return terms

    def weights(self) -> dict[str, float]:
        """Return the coefficients of the labelled phases."""
        if self.detection == "channels":
            return {"margin": 1.0, "align": self.align_weight, "tanh": 0.0}
        return {"margin": 1.0, **({"robust": self.robust_weight} if self.robust_weight > 0 else {})}

    def phases(self) -> list[Phase]:
        """Return the schedule of the kind of detection."""
        sources = Project("sources", rule="any", move=False)
        if self.detection == "rbf":
            rates = {"prototypes": self.prototype_rate, "head": self.head_rate}
            return [Initialise(), Train("learn", self.rbf_epochs, rates), sources]
        body = rates_of(encoder=self.encoder_rate, neck=self.neck_rate)
        whole = {**body, "head": self.joint_head_rate}
        pairs: Literal["same_places", False] = "same_places" if self.two_views else False
        unlabelled: dict[str, float | Ramp] = {"align": Ramp(0.0, 1.0), "tanh": self.pretrain_tanh_weight}
        plan = [
            Train("pretrain", self.pretrain_epochs, body, weights=unlabelled, pairs=pairs),
            Train("head", self.head_epochs, {"head": self.head_rate}, weights={"margin": 1.0}),
            Train("joint", self.joint_epochs, whole, pairs=pairs if self.align_weight > 0 else False),
        ]
        return [*(phase for phase in plan if phase.epochs), sources]
