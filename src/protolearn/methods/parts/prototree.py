"""ProtoTree (Nauta, van Bree, Seifert, CVPR 2021, arXiv 2012.02046): a decision tree whose questions are prototypes.

    s_n = max over positions of exp(-|z - p_n|);   at node n right (present) with probability s_n, left with 1 - s_n
    pi_l = product over the path to leaf l;   p(y) = sum_l pi_l softmax(w_l)_y;   loss = -log p(y)
    leaves, no gradient, after every batch of an epoch of M:
        w_l <- max(0, w_l - w_l(epoch start) / M) + sum over cases of  1[y] pi_l softmax(w_l)_y / p(y)
    phases: encoder frozen for 30 epochs, then joint to 100, AdamW, rates halved after 60, 70, 80, 90; then leaves with
    no probability above a threshold are cut off, and every prototype becomes the nearest training patch

As a ledger: p = value of the root + sum_n P(reach n) (s_n - 1/2) (value right - value left), exactly, where a node's
value is the mean of its children's and a leaf's its distribution.

Departs from the paper: any timm encoder, at one rate (the authors give the last block of a ResNet-50 the rate of the
neck); frozen parts stay in eval mode; probabilities are mixed in the logarithm by default (the authors' option);
pruning also cuts beside the root, and the threshold is at least 1.1 / classes, so that it is "slightly above uniform"
for few classes too. Projection takes any training patch, as in the paper; ``projection="below"`` takes only patches of
classes that a leaf below the node predicts, as the authors' script does. The optimiser's moments start anew in the
joint run, and AdamW has its usual eps, 1e-8 (the authors' 1e-7). ``leaves="normalised"`` divides a leaf's counts by
their sum, as an option of the authors' code does, but without its ten passes over the data. Not here: leaves by
gradient, ensembles.

Beyond the paper, off by default: a neck on principal axes and a k-means start, for frozen encoders (recipe "frozen").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from protolearn.core.bank import PrototypeBank
from protolearn.core.encoder import Encoder
from protolearn.core.measures import squared_l2
from protolearn.core.method import Initialise, Method, Phase, Project, Recipe, Revise, Train, TrainingTokens, register
from protolearn.core.model import PrototypeModel
from protolearn.core.necks import make_neck, one_layer
from protolearn.core.settings import at_least, require, within
from protolearn.core.similarities import ExponentialRoot
from protolearn.core.starts import start_pool
from protolearn.core.trees import TreeHead
from protolearn.objectives.classification import negative_log_likelihood
from protolearn.structures import Output

FROZEN = Recipe(
    about="a frozen pretrained encoder and few pictures: under a minute once they are encoded",
    method={
        "neck": "principal", "start": "k_means", "axes": 32, "dim": 32, "depth": 6, "encoder_rate": None,
        "epochs": 40, "milestones": (), "leaves": "normalised", "neck_rate": 3e-3, "prototype_rate": 1e-2,
    },
    encoder={"layer": "final", "smooth": 3},
    options={"batch_size": 20},
)  # fmt: skip


@register(
    "prototree",
    area="parts",
    paper="Nauta, van Bree, Seifert, CVPR 2021, arXiv 2012.02046",
    verified="routing, leaf rule and pruning against numbers from a package; published accuracies unchecked",
)
@dataclass(frozen=True)
class ProtoTree(Method):
    """Settings of ProtoTree with the paper's defaults for CUB; ``encoder_rate=None`` keeps the encoder frozen.

    Examples
    --------
    >>> ProtoTree(depth=3).settings()["depth"]
    3
    """

    recipes = {"frozen": FROZEN}

    depth: int = 9
    dim: int = 256
    neck: Literal["sigmoid", "principal"] = "sigmoid"
    axes: int = 256
    start: Literal["normal", "k_means"] = "normal"
    leaves: Literal["softmax", "normalised"] = "softmax"
    log_space: bool = True
    epochs: int = 100
    freeze_epochs: int = 30
    encoder_rate: float | None = 1e-5
    neck_rate: float = 1e-3
    prototype_rate: float = 1e-3
    weight_decay: float = 0.0
    milestones: tuple[int, ...] = (60, 70, 80, 90, 100)
    gamma: float = 0.5
    prune_threshold: float = 0.01
    projection: Literal["any", "below"] = "any"

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "depth", "dim", "axes", "epochs")
        at_least(self, 0, "freeze_epochs")
        require(self, self.depth <= 16, "depth", "be at most 16 (65535 prototypes)")
        within(self, "[0, 1)", "prune_threshold")

    def build(self, encoder: Encoder, classes: int, seed: int = 0) -> PrototypeModel:
        """Return the untrained model: a complete tree, prototypes in pre-order, owned by no class."""
        draw = torch.Generator().manual_seed(seed)
        if self.neck == "principal":
            neck = make_neck("principal", encoder.dim, self.dim, axes=self.axes)
        else:
            neck = one_layer(encoder.dim, self.dim, bias=False, xavier=True, generator=draw)
        nodes = 2**self.depth - 1
        vectors = 0.5 + 0.1 * torch.randn(nodes, self.dim, generator=draw)
        bank = PrototypeBank(vectors, torch.zeros(nodes, classes))
        head = TreeHead.complete(self.depth, classes, normalised=self.leaves == "normalised", log_space=self.log_space)
        return PrototypeModel(encoder, neck, bank, squared_l2, head, similarity=ExponentialRoot())

    def initialise(self, model: PrototypeModel, batches: TrainingTokens, seed: int) -> None:
        """Fit the principal axes; then put the prototypes on the k-means centres of all training tokens."""
        start_pool(model, batches, seed, prototypes=self.start)

    def objective(self, out: Output, labels: Tensor) -> dict[str, Tensor]:
        """Return the negative log-likelihood of the labels."""
        assert isinstance(out.head, TreeHead), "build made it so"
        return {"nll": negative_log_likelihood(out.head.log_scores(out.evidence), labels)}

    def weights(self) -> dict[str, float]:
        """Return the coefficient."""
        return {"nll": 1.0}

    def after_step(self, model: PrototypeModel, out: Output, labels: Tensor, steps: int) -> None:
        """Move the leaves by the rule, from what the batch looked like before the step."""
        assert isinstance(model.head, TreeHead)
        model.head.adapt(out.evidence, labels, steps)

    def revise(self, model: PrototypeModel, name: str) -> None:
        """Cut off what never learned to say anything, and note which classes each node can lead to."""
        assert isinstance(model.head, TreeHead)
        if self.prune_threshold > 0:
            threshold = max(self.prune_threshold, 1.1 / model.bank.classes)
            model.prune(model.bank.ids[model.head.trim(threshold)])
        if self.projection == "below":
            model.bank.ownership.copy_(model.head.predicted_below())

    def phases(self) -> list[Phase]:
        """Return frozen and joint training, then pruning and projection."""
        plan: list[Phase] = [Initialise()] if self.neck == "principal" or self.start == "k_means" else []
        rates = {"neck": self.neck_rate, "prototypes": self.prototype_rate}
        decay = {"encoder": self.weight_decay, "neck": self.weight_decay}
        how: dict[str, Any] = {"optimizer": "adamw", "gamma": self.gamma}
        frozen = self.epochs if self.encoder_rate is None else min(self.freeze_epochs, self.epochs)
        if frozen:
            plan += [Train("frozen", frozen, rates, decay, milestones=self.milestones, **how)]
        if self.encoder_rate is not None and self.epochs > frozen:
            rates = {"encoder": self.encoder_rate, **rates}
            left = tuple(milestone - frozen for milestone in self.milestones)
            plan += [Train("joint", self.epochs - frozen, rates, decay, milestones=left, **how)]
        return [*plan, Revise("prune"), Project(rule="any" if self.projection == "any" else "own_class")]
