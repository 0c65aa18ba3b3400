"""Nadaraya-Watson head (Wang, Nguyen, Sabuncu, NeurIPS 2023; TMLR 2022): training cases vote, near ones count more.

    score_j = -|z - z_j| (not squared);   w = softmax over supports j;   p_c = sum of w_j over supports of class c
    loss = -log(p_y + 1e-12), over queries whose class is among the supports; queries and supports get gradients alike
    environments="single": the supports of a step all come from one environment, drawn anew each step, queries from any,
    which teaches features that are the same in every environment; prediction is then the mean over environments
    phases: 200 epochs of SGD (rate 1e-3), encoder and optional projection; then the supports are embedded
    supports for prediction (``mode``): full (up to 100 a class), random, cluster (k-means centres of a class) or
    cluster_cases (the case nearest to each), knn (the nearest 20 of all)

The score is a probability and the ledger lists the supports: each adds its weight to its class.

Departs from the code: the supports of a training step are the other cases of the batch (embedded in the same pass, a
case never votes for itself) with weight 1 / n_c a class, not a second draw with equally many of every class; supports
for prediction are weighted by 1 / n_c too (balanced=False turns both off); they are embedded again every ``refresh``
epochs, so accuracies shown while training are of supports that are a little old and include the case itself:
"left_out_accuracy" is the vote of the batch. Environments come as the target "environment" of the cases. HNSW, the
explicit penalty between environments and leave-one-out influence are left out. Momentum 0.9 is ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from protolearn.core.bank import PrototypeBank
from protolearn.core.distances import cosine_distance
from protolearn.core.encoder import Encoder
from protolearn.core.gathering import Pooled
from protolearn.core.measures import Measure, cosine, dot, squared_l2
from protolearn.core.method import Initialise, Method, Phase, Project, Recipe, Train, TrainingTokens, register
from protolearn.core.model import PrototypeModel
from protolearn.core.necks import uniform_linear
from protolearn.core.precision import full_precision
from protolearn.core.settings import at_least, rates_of
from protolearn.core.similarities import Identity, NegativeRoot, ToSimilarity
from protolearn.core.starts import labelled_tokens
from protolearn.core.updates import k_means
from protolearn.core.votes import Votes, balance, vote, vote_weights
from protolearn.errors import TrainingError, UsageError
from protolearn.objectives.votes import vote_likelihood
from protolearn.structures import Output

Kernel = Literal["euclidean", "hypersphere", "cosine", "dot", "clip"]
KERNELS: dict[str, tuple[Measure, ToSimilarity]] = {
    "euclidean": (squared_l2, NegativeRoot()),
    "hypersphere": (cosine_distance, NegativeRoot(2.0)),
    "cosine": (cosine, Identity()),
    "dot": (dot, Identity()),
    "clip": (cosine, Identity()),  # times a learned scale that starts at 1 / 0.07
}

FROZEN = Recipe(
    about="a frozen encoder: a learned projection, compared by its direction",
    method={"encoder_rate": None, "dim": 128, "kernel": "clip", "rate": 3e-4, "optimizer": "adam", "epochs": 40},
)


@register(
    "nw-head",
    area="heads",
    paper="Wang, Nguyen, Sabuncu, NeurIPS 2023; TMLR 2022",
    verified="kernels, weights and loss against numbers from the authors' code; published accuracies unverified",
)
@dataclass(frozen=True)
class NWHead(Method):
    """Settings; ``dim`` is the width of the projection (None: none), ``shots`` the supports a class of some modes.

    Examples
    --------
    >>> [phase.name for phase in NWHead(encoder_rate=None).phases()]
    ['supports']
    """

    recipes = {"frozen": FROZEN}

    kernel: Kernel = "euclidean"
    learn_scale: bool = False
    dim: int | None = None
    mode: Literal["full", "random", "cluster", "cluster_cases", "knn"] = "full"
    per_class: int = 100
    shots: int = 10
    neighbours: int = 20
    balanced: bool = True
    environments: Literal["mixed", "single"] = "mixed"
    epochs: int = 200
    refresh: int = 20
    encoder_rate: float | None = 1e-3
    rate: float = 1e-3
    optimizer: Literal["sgd", "adam"] = "sgd"
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "per_class", "shots", "neighbours", "refresh", "dim")

    def build(self, encoder: Encoder, classes: int, seed: int = 0) -> PrototypeModel:
        """Return the model with one random support a class, until there are real ones."""
        draw = torch.Generator().manual_seed(seed)
        layers: nn.Module = nn.Identity()
        if self.dim is not None:
            layers = uniform_linear(encoder.dim, self.dim, bias=False, generator=draw)
        vectors = torch.rand(classes, self.dim or encoder.dim, generator=draw)
        bank = PrototypeBank(vectors, torch.eye(classes), learned=False, groups=torch.zeros(classes))
        clip = self.kernel == "clip"
        head = Votes(
            bank, k=self.neighbours if self.mode == "knn" else None, scale=1 / 0.07 if clip else 1.0,
            learn_scale=clip or self.learn_scale, balanced=self.balanced, by_group=self.environments == "single",
        )  # fmt: skip
        measure, similarity = KERNELS[self.kernel]
        return PrototypeModel(encoder, Pooled(layers), bank, measure, head, similarity=similarity)

    @torch.no_grad()
    def initialise(self, model: PrototypeModel, batches: TrainingTokens, seed: int) -> None:
        """Fill the bank with supports, embedded as the network is now."""
        values, labels = labelled_tokens(model, batches)
        place = torch.zeros_like(labels)
        if self.environments == "single":
            place = _environment(batches.targets.get("environment"), labels)
        draw = torch.Generator().manual_seed(seed)
        vectors: list[Tensor] = []
        owners: list[int] = []
        groups: list[int] = []
        cases: list[int] = []
        for label in range(model.bank.classes):
            for group in place.unique().tolist():
                rows = ((labels == label) & (place == group)).nonzero().squeeze(1)
                most = {"full": self.per_class, "knn": len(rows)}.get(self.mode, self.shots)
                centres = self.mode in ("cluster", "cluster_cases") and len(rows) > most
                if centres:
                    found = k_means(values[rows], most, generator=draw).centres
                else:
                    rows = rows[torch.randperm(len(rows), generator=draw)[:most].sort().values.to(rows.device)]
                    found = values[rows]
                vectors.append(found)
                cases += [-1] * len(found) if centres else rows.tolist()
                owners += [label] * len(found)
                groups += [group] * len(found)
        if not owners:
            raise TrainingError("nw-head: no labelled case that could be a support")
        real = [case for case in cases if case >= 0]
        known = iter(batches.sources(real) if real else [])
        sources = [None if case < 0 else next(known) for case in cases]
        bank, ownership = model.bank, torch.eye(model.bank.classes, device=values.device)[owners]
        fresh = bank.grow(torch.cat(vectors), ownership, sources, groups=torch.tensor(groups))
        bank.keep(bank.rows(fresh))

    def objective(self, out: Output, labels: Tensor) -> dict[str, Tensor]:
        """Return the likelihood of the vote of the other cases in the batch, and its accuracy, which is not minimised.

        Where no gradient is asked for (validation), the supports of the bank vote.
        """
        assert isinstance(out.head, Votes) and out.tokens is not None, "build made it so"
        if not torch.is_grad_enabled():
            present = (out.bank.ownership[out.bank.usable] > 0).any(0)
            return _terms(out.logits, labels, present)
        values = out.tokens.values[:, 0]
        values = values.to(torch.promote_types(values.dtype, torch.float32))
        measure, similarity = KERNELS[self.kernel]
        ownership = F.one_hot(labels.clamp_min(0), out.bank.classes).to(values) * (labels >= 0).unsqueeze(1)
        allowed = ~torch.eye(len(labels), dtype=torch.bool, device=labels.device) & (labels >= 0)
        if self.environments == "single":
            place = _environment(out.targets.get("environment"), labels)
            found = place.unique()
            allowed = allowed & (place == found[torch.randint(len(found), (1,)).to(found.device)])
        with full_precision(values.device):  # near cases are told apart by small differences of large numbers
            scores = out.head.scaled(similarity(measure.pairwise(values, values)))
            if self.balanced:
                scores = scores + balance(ownership, allowed)
            votes = vote(vote_weights(scores, allowed), ownership)
            return _terms(votes, labels, allowed.to(values) @ ownership > 0)

    def weights(self) -> dict[str, float]:
        """Return the coefficients."""
        return {"votes": 1.0, "left_out_accuracy": 0.0}

    def phases(self) -> list[Phase]:
        """Return training in rounds, supports embedded again after each; with nothing to train, supports only."""
        scaled = self.kernel == "clip" or self.learn_scale
        rates = rates_of(
            encoder=self.encoder_rate,
            # even a neck without weights, where the scale is learned: the supports of a step are tokens of the batch
            neck=None if self.dim is None and not scaled else self.rate,
            head=self.rate if scaled else None,
        )
        decay = {name: self.weight_decay for name in rates if name != "head"}
        plan: list[Phase] = [Initialise("supports")]
        done = 0
        while rates and done < self.epochs:
            epochs = min(self.refresh, self.epochs - done)
            plan += [Train("learn", epochs, rates, decay, optimizer=self.optimizer), Initialise("supports")]
            done += epochs
        if self.mode in ("cluster", "cluster_cases"):
            real = self.mode == "cluster_cases"
            plan.append(Project(move=real, distinct=real))
        return plan


def _environment(given: object, labels: Tensor) -> Tensor:
    """Return ``(B,)`` int64 from the target "environment"."""
    if given is None:
        raise UsageError(
            "nw-head: environments='single' needs the target 'environment', a number for each case: give "
            "cases.with_targets({'environment': ...})"
        )
    return torch.as_tensor(given).reshape(len(labels), -1)[:, 0].round().long().to(labels.device)


def _terms(votes: Tensor, labels: Tensor, present: Tensor) -> dict[str, Tensor]:
    known = labels >= 0
    right = ((votes.argmax(1) == labels) & known).sum() / known.sum().clamp_min(1)
    return {"votes": vote_likelihood(votes, labels, present), "left_out_accuracy": right}
