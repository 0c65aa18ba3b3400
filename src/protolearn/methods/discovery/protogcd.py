"""ProtoGCD (Ma, Zhu, Zhang, Liu, TPAMI 2025): one prototype head for known classes and for classes nobody has labelled.

Some training cases are labelled with old classes; the others, labelled -1, are of old classes or of new ones. There are
K = old + new prototypes w_k, one a class, compared by cosine, and two views of every case. x is the feature of a view,
p a projection of it that only the contrastive terms use.

    l_k = cos(x, w_k),   q = softmax(l / 0.1),   teacher = softmax(l / 0.05), the same l without gradient
    L_dapl  cross-entropy of each view's q with the pseudo-labels of the other view, labelled cases included. Pseudo-
            labels are the teacher's; for the share r of a view whose ratio of the two largest probabilities is largest
            they are a single class. r rises from 0 to 1 over 100 epochs: from soft labels to hard ones
    L_ent   log K - H(mean of q over both views): 0 where all prototypes are used alike; without it they collapse
    L_sep   mean_k log mean_{j != k} exp(w_k . w_j / 0.1)
    L_cls   cross-entropy of l / 0.1 over labelled cases
    L_con, L_sup    InfoNCE (temperature 1) over all p; supervised contrast (0.07) over the labelled ones
    L = 0.65 (L_dapl + 2 L_ent + w L_sep + L_con) + 0.35 (L_cls + L_sup)

Classes without a labelled case are the new ones: give the data their places with names of your own ("new 1", ...). A
batch holds labelled and unlabelled cases alike. Prediction is the largest cosine over all K prototypes.

Departs from the code: prototypes have unit length, where the code learns the length of a weight-normalised layer beside
the direction, so the effective rate differs; no epoch is chosen by the accuracy on the unlabelled cases, which nobody
knows; the entropy is taken of logarithms, so no share can be 0. The rule for the number of new classes is not in the
released code: ``tasks.class_number`` has others. Ours: the recipe for frozen features, with a linear map
of centred features before the prototypes and views by dropout; a start of new prototypes by k-means.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from protolearn.core.bank import PrototypeBank, unit_norm
from protolearn.core.encoder import Encoder
from protolearn.core.gathering import Beside, Pooled, Scaled
from protolearn.core.heads import FixedEvidence
from protolearn.core.measures import cosine
from protolearn.core.method import Initialise, Method, Phase, Project, Ramp, Recipe, Train, TrainingTokens, register
from protolearn.core.model import PrototypeModel
from protolearn.core.necks import gelu_layers, identity_linear
from protolearn.core.settings import above, at_least, rates_of, require, within
from protolearn.core.starts import centre_inputs, start_beside_known
from protolearn.objectives.classification import cross_entropy
from protolearn.objectives.contrastive import group_contrast
from protolearn.objectives.self_labelling import cross_view, crowding, uneven_use
from protolearn.structures import Output

FROZEN = Recipe(
    about="a frozen encoder or features: centred, then a linear map is learned; two views differ by dropout",
    method={
        "encoder_rate": None, "neck": "linear", "views": "dropout", "dropout": 0.2, "init": "means", "rate": 0.05,
        "epochs": 60, "hard_epochs": 30, "hidden": 512, "projection": 128,
    },
    options={"batch_size": 128},
)  # fmt: skip


@register(
    "protogcd",
    area="discovery",
    paper="Ma et al., TPAMI 2025, arXiv 2504.03755",
    verified="pseudo-labels, every term, the total and two gradients against numbers from the authors' code; published "
    "results unverified",
)
@dataclass(frozen=True)
class ProtoGCD(Method):
    """Settings; ``supervised`` is the share of the supervised terms, ``crowding_weight`` 0.05 for fine-grained classes.

    Examples
    --------
    >>> ProtoGCD(epochs=1, encoder_rate=None).phases()[0].scheduled["hard"].at(99, 200)
    1.0
    """

    recipes = {"frozen": FROZEN}

    temperature: float = 0.1
    teacher_temperature: float = 0.05
    hard_start: float = 0.0
    hard_stop: float = 1.0
    hard_epochs: int = 100
    supervised: float = 0.35
    evenness_weight: float = 2.0
    crowding_weight: float = 0.1
    contrast_temperature: float = 1.0
    supervised_temperature: float = 0.07
    hidden: int = 2048
    projection: int = 256
    neck: Literal["none", "linear"] = "none"
    views: Literal["augmented", "dropout"] = "augmented"
    dropout: float = 0.0
    init: Literal["drawn", "means", "k_means"] = "drawn"
    epochs: int = 200
    encoder_rate: float | None = 0.1
    rate: float = 0.1
    weight_decay: float = 5e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        above(self, 0, "temperature", "teacher_temperature", "contrast_temperature", "supervised_temperature", "rate")
        within(self, "[0, 1]", "hard_start", "hard_stop", "supervised")
        within(self, "[0, 1)", "dropout")
        at_least(self, 1, "hard_epochs", "hidden", "projection", "epochs")
        at_least(self, 0, "evenness_weight", "crowding_weight", "weight_decay")
        require(self, self.views == "augmented" or self.dropout > 0, "dropout", "be above 0 where it makes the views")

    def build(self, encoder: Encoder, classes: int, seed: int = 0) -> PrototypeModel:
        """Return the model: a unit prototype for each class, old and new, in a random direction."""
        draw = torch.Generator().manual_seed(seed)
        dim = encoder.dim
        side = gelu_layers((dim, self.hidden, self.hidden, self.projection), generator=draw)
        layers: list[nn.Module] = [nn.Dropout(self.dropout)]
        if self.neck == "linear":
            layers = [Scaled(dim), *layers, identity_linear(dim)]
        bank = PrototypeBank(torch.randn(classes, dim, generator=draw), torch.eye(classes), constraint=unit_norm)
        head = FixedEvidence(torch.eye(classes) / self.temperature)
        return PrototypeModel(encoder, Beside(Pooled(nn.Sequential(*layers)), side), bank, cosine, head)

    def initialise(self, model: PrototypeModel, batches: TrainingTokens, seed: int) -> None:
        """Centre features before a linear map; start prototypes of old classes at their means, new ones by k-means.

        With ``init="drawn"`` all prototypes, and with ``means`` those of new classes, stay where they were drawn.
        """
        centre_inputs(model, batches)
        if self.init != "drawn":
            start_beside_known(model, batches, seed, new="k_means" if self.init == "k_means" else "stay")

    def objective(self, out: Output, labels: Tensor) -> dict[str, Tensor]:
        """Return the terms; where there is one view of each case, it is compared with itself and not contrasted."""
        first, second = out.evidence.chunk(2) if out.paired else (out.evidence, out.evidence)
        hard = out.scheduled.get("hard", self.hard_stop)
        how = {"student": self.temperature, "teacher": self.teacher_temperature}
        assert out.tokens is not None, "this head is never trained alone"
        side = nn.functional.normalize(out.tokens.extras["projection"], dim=1)
        cases = torch.arange(len(first), device=side.device).repeat(len(side) // max(1, len(first)))
        return {
            "pseudo_labels": cross_view(first, second, hard, **how),
            "evenness": uneven_use(out.evidence, self.temperature),
            "crowding": crowding(out.bank.vectors, self.temperature),
            "cross_entropy": cross_entropy(out.logits, labels),
            "contrast": group_contrast(side, cases, self.contrast_temperature),
            "supervised_contrast": group_contrast(side, labels, self.supervised_temperature),
        }

    def weights(self) -> dict[str, float]:
        """Return the coefficients."""
        free = 1 - self.supervised
        return {
            "pseudo_labels": free,
            "evenness": free * self.evenness_weight,
            "crowding": free * self.crowding_weight,
            "cross_entropy": self.supervised,
            "contrast": free,
            "supervised_contrast": self.supervised,
        }

    def phases(self) -> list[Phase]:
        """Return one training, then the search for the case nearest to each prototype."""
        rates = rates_of(encoder=self.encoder_rate, neck=self.rate, prototypes=self.rate)
        learn = Train(
            "discover", self.epochs, rates, dict.fromkeys(rates, self.weight_decay), optimizer="sgd", cosine=True,
            floor=1e-3, pairs=True if self.views == "augmented" else "same_view", balanced=True,
            scheduled={"hard": Ramp(self.hard_start, self.hard_stop, over=self.hard_epochs)},
        )  # fmt: skip
        start: list[Phase] = [] if self.init == "drawn" and self.neck == "none" else [Initialise()]
        return [*start, learn, Project(rule="any", move=False)]
