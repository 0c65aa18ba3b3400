"""PIP-Net (Nauta, Schlötterer, van Keulen, Seifert, CVPR 2023): a few parts, learned without labels, add up to a class.

    p_s = softmax over channels at place s: channel k is prototype k;    presence_k = max over s of p_sk
    score_c = sum over k of w_ck presence_k,  w >= 0, no bias;  all scores 0 means "I don't know"
    align = mean over places of -log <p_s, p'_s>, p' the other view of the case, each side held fixed once
    tanh = -mean over k of log tanh(sum over the batch of presence_k): every prototype is seen in some case
    classification = cross-entropy of log(1 + score^2), which rewards few, large scores
    phases: 10 epochs of pretraining without labels (align, its weight rising to 1, + 5 tanh), 3 epochs of w alone, then
    57 of everything with 5 align + 2 tanh + 2 classification. After a step that trains w, w loses 1e-3, down to 0.
    At inference presence below 0.1 counts as 0. AdamW; rates fall along a cosine, that of w again every 10 epochs.

Departs from the authors' code: the two views of a case share their geometry and differ in colour, as there, only where
the encoder is trained (cached views of a frozen one do not, so its augmentation must leave places where they are); the
encoder is trained whole, or as far as its ``train_from`` allows, from the first epoch (theirs opens its early layers
after 10); cosines begin and optimisers start anew with a phase, and end at 1 % of each rate; w alone is trained on one
view; w does not lose another 1e-3 before epochs 30 and 60, and its cosine is 10 epochs long in a short run too (theirs
5, where there are at most 30 after pretraining); tanh is kept finite by 1e-10, their function's default (their training
passes 1e-8); any encoder. On several processes tanh sums over a process's own cases. As there, a prototype that no
training case shows above 0.1 loses its weights at the end.

Beyond the paper, off by default: ``two_views=False``, for features of which there is one view. A view is then aligned
with itself, which only asks each place to choose one prototype (collision entropy).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from protolearn.core.channels import channel_prototypes
from protolearn.core.encoder import Encoder
from protolearn.core.measures import dot
from protolearn.core.method import Method, Phase, Project, Ramp, Recipe, Revise, Train, register
from protolearn.core.model import PrototypeModel
from protolearn.core.scoring import ScoringSheet, squash
from protolearn.core.settings import at_least, rates_of, require, within
from protolearn.objectives.classification import cross_entropy
from protolearn.objectives.two_view import two_view_terms
from protolearn.structures import Output

FROZEN = Recipe(
    about="a frozen encoder and few pictures, or features, of each of which there is one view: no augmentation",
    method={"prototypes": 256, "two_views": False, "encoder_rate": None, "joint_epochs": 30},
    encoder={"layer": "final"},
    options={"batch_size": 40},
)


@register(
    "pipnet",
    area="parts",
    paper="Nauta, Schlötterer, van Keulen, Seifert, CVPR 2023",
    verified="forward pass and losses against numbers from the authors' code; schedule and rates compared with that "
    "code; published accuracies unchecked",
)
@dataclass(frozen=True)
class PIPNet(Method):
    """Settings of PIP-Net with the paper's defaults; ``encoder_rate=None`` keeps the encoder frozen throughout.

    ``prototypes=0`` takes every channel of the encoder as a prototype; a number puts a linear layer before them.

    Examples
    --------
    >>> PIPNet(prototypes=64).settings()["align_weight"]
    5.0
    """

    recipes = {"frozen": FROZEN}

    prototypes: int = 0
    two_views: bool = True
    pretrain_epochs: int = 10
    pretrain_tanh_weight: float = 5.0
    scores_epochs: int = 3
    joint_epochs: int = 57
    align_weight: float = 5.0
    tanh_weight: float = 2.0
    classification_weight: float = 2.0
    power: float = 2.0
    shrink: float = 1e-3
    clip: float = 0.1
    encoder_rate: float | None = 5e-4
    neck_rate: float = 5e-3
    head_rate: float = 5e-2
    restart: int = 10
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 0, "prototypes", "pretrain_epochs", "scores_epochs", "joint_epochs", "shrink", "weight_decay")
        within(self, "[0, 1)", "clip")
        at_least(self, 1, "power", "restart")
        learns = self.encoder_rate is not None or self.prototypes > 0
        require(self, learns, "prototypes", "be at least 1 with a frozen encoder (nothing could learn)")

    def build(self, encoder: Encoder, classes: int, seed: int = 0) -> PrototypeModel:
        """Return the untrained model."""
        draw = torch.Generator().manual_seed(seed)
        neck, bank = channel_prototypes(encoder.dim, self.prototypes, classes, generator=draw)
        options = {"power": self.power, "shrink": self.shrink, "clip": self.clip}
        head = ScoringSheet.start(classes, len(bank), generator=draw, **options)
        return PrototypeModel(encoder, neck, bank, dot, head)

    def objective(self, out: Output, labels: Tensor) -> dict[str, Tensor]:
        """Return the three terms."""
        align, tanh = two_view_terms(out)
        return {
            "classification": cross_entropy(squash(out.logits, self.power), labels),
            "align": align,
            "tanh": tanh,
        }

    def weights(self) -> dict[str, float]:
        """Return the coefficients of the joint phase."""
        return {
            "classification": self.classification_weight,
            "align": self.align_weight,
            "tanh": self.tanh_weight,
        }

    def phases(self) -> list[Phase]:
        """Return pretraining without labels, the scores alone, then everything."""
        body = rates_of(encoder=self.encoder_rate, neck=self.neck_rate)
        pairs: Literal["same_places", False] = "same_places" if self.two_views else False
        whole = {**body, "head": self.head_rate}
        how: dict[str, Any] = {
            "decay": dict.fromkeys(whole, self.weight_decay),
            "optimizer": "adamw",
            "cosine": True,
            "floor": 0.01,
            "per": "step",
            "restart": {"head": self.restart},
        }
        unlabelled: dict[str, float | Ramp] = {"align": Ramp(0.0, 1.0), "tanh": self.pretrain_tanh_weight}
        scores_only = {"classification": self.classification_weight}
        plan = [
            Train("pretrain", self.pretrain_epochs, body, weights=unlabelled, pairs=pairs, **how),
            Train("scores", self.scores_epochs, {"head": self.head_rate}, weights=scores_only, **how),
            Train("joint", self.joint_epochs, whole, pairs=pairs, **how),
        ]
        plan = [phase for phase in plan if phase.epochs]
        return [*plan, Project("sources", rule="any", move=False), Revise("silence")]

    def revise(self, model: PrototypeModel, name: str) -> None:
        """Take their weights from prototypes that no training case shows clearly."""
        assert isinstance(model.head, ScoringSheet), "build made it so"
        unseen = [source is None or source.distance < self.clip for source in model.bank.sources]
        model.head.silence(torch.tensor(unseen, device=model.head.raw.device))
