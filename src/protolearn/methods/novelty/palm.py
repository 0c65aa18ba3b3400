"""PALM (Lu, Gong, Wang, Xue, Yao, Moore, ICLR 2024, arXiv 2402.02653): a class is a mixture of prototypes on a sphere.

    z = unit(MLP(encoder(x))), two views of a case;  K prototypes p a class, unit rows moved by rule, never by gradient
    Q = Sinkhorn of exp(z p' / eps) over all prototypes: cases sum to 1, prototypes alike (eps = 0.05, 3 rounds)
    A = the k largest of Q among a case's own class;  W = A, rows and then columns summing to 1
    p <- unit(m p + (1 - m) W' z), m = 0.999;  Q', A' likewise with the moved p, where A was kept
    mle = mean of  -sum of A'_ip z_i p / T  +  log of sum over all p of exp(z_i p / T),  p held fixed, T = 0.1
    contrast = mean over p of  -mean over q of its class (p q / 0.5)  +  log of sum over all other q of exp(p q / 0.5)
    loss = mle + 1 contrast.  contrast reaches z through the moved p alone, so (1 - m) times
    SGD, Nesterov 0.9, rate 0.5, decay 1e-6, batches of 512, 500 epochs: 10 of linear warm-up, then a cosine to 1/1000

``prototypes_per_class=1`` is training with one prototype a class. ``likelihood="paper"`` puts the weights inside the
logarithm, ``contrast="paper"`` leaves the own class out of the contrast's sum; the defaults are the released code's.
``keep_graph=False`` cuts what little gradient the contrast has. ``labelled=False`` drops the classes: every case may be
assigned to every prototype, and every prototype is pushed from all others (our reading; the released code has none).

The class posterior of the mixture, with equal weights, is the prediction: a softmax over all prototypes, added up by
class. The released code has no classifier. The novelty score of the paper is ``ssd``: one Gaussian of the encoder's own
features, not a distance to prototypes.

Departs from the code: the last model is kept, not the one of least training loss; the first step is not taken at the
full rate before the warm-up begins; cases without a label (-1) take no part; the MLP is as wide as the encoder.
Ours: ``start="k_means"``, for short trainings in which a moving average that slow never leaves its random start.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from protolearn.core.bank import PrototypeBank, unit_norm
from protolearn.core.encoder import Encoder
from protolearn.core.gathering import Pooled, UnitLength
from protolearn.core.measures import cosine
from protolearn.core.method import Initialise, Method, Phase, Project, Recipe, Train, TrainingTokens, register
from protolearn.core.model import PrototypeModel
from protolearn.core.necks import uniform_linear
from protolearn.core.settings import above, at_least, rates_of, within
from protolearn.core.soft_moves import SoftMove, soft_move
from protolearn.core.starts import pool_on_tokens, start_from_tokens
from protolearn.core.together import summed, together
from protolearn.core.votes import Votes
from protolearn.objectives.contrastive import group_contrast
from protolearn.objectives.mixture import mixture_likelihood, soft_prototype_likelihood, weights_by_class
from protolearn.structures import Output

PAPER = Recipe(
    about="an encoder trained from scratch on two views of small pictures, as in the paper; needs an accelerator",
    encoder={"encoder": "image", "name": "resnet34", "size": 32},
    augment={
        "one_of": False, "rotation": 0, "shear": 0, "skew": 0, "crop": (0.2, 1.0), "brightness": 0.4, "contrast": 0.4,
        "saturation": 0.4, "hue": 0.1, "recolour": 0.8, "grey": 0.2,
    },
    options={"batch_size": 512},
)  # fmt: skip
FROZEN = Recipe(
    about="a frozen encoder, of each case one view: the MLP alone is trained",
    method={
        "encoder_rate": None, "two_views": False, "start": "k_means", "momentum": 0.99, "epochs": 60, "warmup": 5,
        "neck_rate": 0.1,
    },
    encoder={"layer": "final"},
    options={"batch_size": 64},
)  # fmt: skip

Form = Literal["code", "paper"]


@register(
    "palm",
    area="novelty",
    paper="Lu, Gong, Wang, Xue, Yao, Moore, ICLR 2024, arXiv 2402.02653",
    verified="assignment, moved prototypes, both losses, their gradients and the score against numbers from the "
    "authors' code; published tables unverified",
)
@dataclass(frozen=True)
class PALM(Method):
    """Settings of PALM with the paper's defaults; ``encoder_rate=None`` keeps the encoder frozen throughout.

    ``k=0`` keeps all shares of a case. ``dim`` is the width of the sphere, ``hidden`` that of the MLP's inner layer
    (None: as wide as the encoder).

    Examples
    --------
    >>> PALM(prototypes_per_class=1).weights()
    {'mle': 1.0, 'contrast': 1.0}
    """

    recipes = {"paper": PAPER, "frozen": FROZEN}

    prototypes_per_class: int = 6
    k: int = 5
    momentum: float = 0.999
    keep_graph: bool = True
    epsilon: float = 0.05
    iterations: int = 3
    temperature: float = 0.1
    likelihood: Form = "code"
    contrast: Form = "code"
    contrast_weight: float = 1.0
    contrast_temperature: float = 0.5
    labelled: bool = True
    two_views: bool = True
    dim: int = 128
    hidden: int | None = None
    start: Literal["uniform", "k_means"] = "uniform"
    epochs: int = 500
    warmup: int = 10
    encoder_rate: float | None = 0.5
    neck_rate: float = 0.5
    weight_decay: float = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "prototypes_per_class", "iterations", "dim", "hidden")
        at_least(self, 0, "k", "contrast_weight", "epochs", "warmup", "weight_decay")
        above(self, 0, "epsilon", "temperature", "contrast_temperature", "neck_rate", "encoder_rate")
        within(self, "[0, 1]", "momentum")

    def build(self, encoder: Encoder, classes: int, seed: int = 0) -> PrototypeModel:
        """Return the untrained model; its prototypes start all in one corner of the sphere, as in the code."""
        draw = torch.Generator().manual_seed(seed)
        width = encoder.dim if self.hidden is None else self.hidden
        first = uniform_linear(encoder.dim, width, generator=draw)
        layers = nn.Sequential(first, nn.ReLU(), uniform_linear(width, self.dim, generator=draw), UnitLength())
        vectors = torch.rand(classes * self.prototypes_per_class, self.dim, generator=draw)
        ownership = torch.eye(classes).repeat_interleave(self.prototypes_per_class, dim=0) * self.labelled
        bank = PrototypeBank(vectors, ownership, learned=False, constraint=unit_norm)
        return PrototypeModel(encoder, Pooled(layers), bank, cosine, Votes(bank, scale=1 / self.temperature))

    def initialise(self, model: PrototypeModel, batches: TrainingTokens, seed: int) -> None:
        """Put the prototypes of each class, or all where there are none, on k-means centres of the cases."""
        begin = start_from_tokens if self.labelled else pool_on_tokens
        begin(model, batches, seed)

    def moved(self, out: Output, labels: Tensor) -> tuple[SoftMove, Tensor, Tensor, Tensor]:
        """Return what a batch, of all processes, does to the usable prototypes.

        Returns
        -------
        move : SoftMove
            Of the usable prototypes.
        values : Tensor
            ``(N, D)``: the rows of all processes.
        allowed : Tensor
            ``(N, P)`` bool.
        mine : Tensor
            ``(N,)`` bool: this process's rows.
        """
        assert out.tokens is not None, "build made it so"
        values, mine = together(out.tokens.values[:, 0])
        usable = out.bank.usable
        if self.labelled:
            allowed = out.bank.owned_by(together(labels, -1)[0])[:, usable]
        else:  # a row without a direction is a filling
            allowed = (values.detach() != 0).any(1, keepdim=True).expand(-1, int(usable.sum()))
        move = soft_move(
            out.bank.vectors[usable], values if self.keep_graph else values.detach(), allowed,
            k=self.k, momentum=self.momentum, epsilon=self.epsilon, iterations=self.iterations,
        )  # fmt: skip
        return move, values, allowed, mine

    def objective(self, out: Output, labels: Tensor) -> dict[str, Tensor]:
        """Return both terms, with the prototypes as this batch moves them."""
        move, values, allowed, mine = self.moved(out, labels)
        counted = allowed.any(1).sum().clamp_min(1)
        similar = values[mine].to(move.vectors) @ move.vectors.detach().T
        owner = out.bank.owner()[out.bank.usable]
        if self.likelihood == "code":
            near = soft_prototype_likelihood(similar, move.shares()[mine], self.temperature, "sum")
        else:
            weights, own = move.balanced[mine], move.kept[mine]
            if self.labelled:
                weights, own = weights_by_class(weights, owner, self.k or self.prototypes_per_class), allowed[mine]
            near = mixture_likelihood(similar, weights, own, self.temperature, "sum")
        apart = group_contrast(
            move.vectors, owner if self.labelled else torch.arange(len(owner), device=owner.device),
            self.contrast_temperature, against="all" if self.contrast == "code" else "others", alone="itself",
        )  # fmt: skip
        return {"mle": summed(near) / counted, "contrast": apart}

    def weights(self) -> dict[str, float]:
        """Return the coefficients."""
        return {"mle": 1.0, "contrast": self.contrast_weight}

    def after_step(self, model: PrototypeModel, out: Output, labels: Tensor, steps: int) -> None:
        """Move the prototypes as the objective of the step had them."""
        model.bank.vectors[model.bank.usable] = self.moved(out, labels)[0].vectors.to(model.bank.vectors)

    def phases(self) -> list[Phase]:
        """Return the training, and the search for the cases nearest to the prototypes, which stay where they are."""
        rates = rates_of(encoder=self.encoder_rate, neck=self.neck_rate)
        plan: list[Phase] = [Initialise()] if self.start == "k_means" else []
        plan += [
            Train(
                "learn", self.epochs, rates, dict.fromkeys(rates, self.weight_decay), pairs=self.two_views,
                optimizer="sgd", nesterov=True, warmup=self.warmup, cosine=True, floor=1e-3, per="step",
            )
        ]  # fmt: skip
        return [*plan, Project("sources", rule="own_class" if self.labelled else "any", move=False)]
