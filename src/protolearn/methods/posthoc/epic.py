"""EPIC (Borycki et al., AAAI 2026, arXiv 2505.12897): prototypes for a trained classifier that has none.

    Z (S, D) last map of the frozen network, W, b its linear layer: logits = W mean(Z) + b
    Zhat_s = U Z_s;   U = exp(A - A') orthogonal, or exp(A) invertible, A = 0 at first;   W' = W U^-1
    logits = W' mean(Zhat) + b, the network's own; channel k adds W'_ck mean(Zhat_k) to class c
    prototypes of channel k: the n cases with the largest sum over s of Zhat_sk
    purity of case x for k: Zhat_s*k / |Zhat_s*|, s* = argmax over s of Zhat_sk;   loss = -mean purity over pairs (x, k)
    stages n = 100 ... 5, evenly in 10 steps: choose the prototypes with the U of the moment, then 2 epochs over the
    pairs of case and channel; one Adam throughout, rate 1e-3, weight decay 1e-5, 512 pairs a step (``batch_size``)

The network and its classifier come with the encoder (``encoders.NamedNetwork``, ``encoders.TrainedNetwork``). An
explanation shows the 4 channels with the largest W'_ck max(0, mean Zhat_k) (``explain.channels.telling_rows``) and the
5 cases that excite each most (``explain.channels.channel_gallery``). Labels are not read.

Departs from the authors' code: the steps end at n = 5 (theirs take n down by a tenth of the way each and end at 14),
and are even (theirs also along a logarithm or an exponential); prototypes are found over all cases, whatever the size
of the batches (theirs mistakes cases where a batch is smaller than n); equal scores go to the earlier case; W' follows
U at every moment. The source that is recorded of a channel is the first of its prototypes, at s*.

Beyond the paper, off by default: ``ranking="peak"`` ranks cases by the value at s* instead of the sum;
``classifier_epochs`` trains a linear layer on the mean token of a frozen encoder that has no classifier.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from protolearn.core.channels import OwnChannel, channel_bank
from protolearn.core.encoder import Encoder
from protolearn.core.measures import dot
from protolearn.core.method import Choose, Initialise, Method, Phase, Recipe, Train, TrainingTokens, register
from protolearn.core.model import PrototypeModel
from protolearn.core.pooling import mean_pool
from protolearn.core.purity import Exemplars, Ranking, peaks, purity_of
from protolearn.core.rotation import ChannelRotation, FoldedLinear, RotationKind
from protolearn.core.settings import above, at_least, require
from protolearn.core.top_cases import UnrankedCase
from protolearn.errors import DataError, UsageError
from protolearn.objectives.classification import cross_entropy
from protolearn.structures import Output


@register(
    "epic",
    area="posthoc",
    paper="Borycki, Tredowicz, Janusz, Tabor, Spurek, Lewicki, Struski, AAAI 2026, arXiv 2505.12897",
    verified="U, purity, sums and folded logits against numbers from the authors' code; published results unverified",
)
@dataclass(frozen=True)
class EPIC(Method):
    """Settings with the paper's defaults.

    Examples
    --------
    >>> EPIC().counts()
    (100, 89, 79, 68, 58, 47, 37, 26, 16, 5)
    """

    recipes = {
        "paper": Recipe(about="as many pairs a step as in the authors' code", options={"batch_size": 512}),
    }

    rotation: RotationKind = "orthogonal"
    ranking: Ranking = "sum"
    first: int = 100
    last: int = 5
    stages: int = 10
    epochs: int = 2
    rate: float = 1e-3
    weight_decay: float = 1e-5
    classifier_epochs: int = 0
    classifier_rate: float = 1e-2

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "last", "stages")
        at_least(self, 0, "epochs", "weight_decay", "classifier_epochs")
        above(self, 0, "rate", "classifier_rate")
        require(self, self.first >= self.last, "first", f"be at least last = {self.last}")

    @property
    def reads_labels(self) -> bool:
        """Only where a classifier is trained first."""
        return self.classifier_epochs > 0

    def counts(self) -> tuple[int, ...]:
        """Return how many prototypes of each channel every stage looks at."""
        steps = max(self.stages - 1, 1)
        return tuple(round(self.first + (self.last - self.first) * stage / steps) for stage in range(self.stages))

    def build(self, encoder: Encoder, classes: int, seed: int = 0) -> PrototypeModel:
        """Return the network as it is: every channel a prototype, U = I. There is no chance in it."""
        weight, bias = torch.zeros(classes, encoder.dim), torch.zeros(classes)
        if encoder.classifier is not None:
            weight, bias = encoder.classifier
            if len(weight) != classes:
                raise UsageError(
                    f"epic: the network tells {len(weight)} classes apart, the data name {classes}: give the cases the "
                    "network's classes, cases.with_classes(names, strict=False)"
                )
            if self.classifier_epochs:
                raise UsageError("epic: classifier_epochs must be 0, since the network brings its own classifier")
        turn = ChannelRotation(encoder.dim, self.rotation)
        bank = channel_bank(encoder.dim, classes)
        head = FoldedLinear(turn, weight, bias)
        return PrototypeModel(encoder, turn, bank, dot, head, pooling=mean_pool, compare=OwnChannel(bank))

    def objective(self, out: Output, labels: Tensor) -> dict[str, Tensor]:
        """Return the mean purity of the chosen pairs; of every channel in every case, where none are chosen."""
        terms: dict[str, Tensor] = {}
        if out.tokens is not None:
            values, mask = out.tokens.values, out.tokens.mask
            if out.chosen is not None:
                channels = out.bank.vectors.argmax(1)[out.chosen[:, 1]]
                pairs = torch.stack([out.chosen[:, 0], channels], 1)
                return {"purity": purity_of(values, pairs, mask).mean()}
            terms["purity"] = peaks(values, mask).purity.mean()
        return {**terms, "cross_entropy": cross_entropy(out.logits, labels)}

    def weights(self) -> dict[str, float]:
        """Return the coefficients: purity is to rise; the cross-entropy is for training a classifier, here or later."""
        return {"purity": -1.0, "cross_entropy": 1.0}

    def phases(self) -> list[Phase]:
        """Return choosing and turning, stage after stage, then the search for the sources."""
        plan: list[Phase] = []
        if self.classifier_epochs:
            rates = {"head": self.classifier_rate}
            plan.append(Train("classifier", self.classifier_epochs, rates, weights={"cross_entropy": 1.0}))
        turn = Train(
            "purity", self.epochs, {"neck": self.rate}, {"neck": self.weight_decay}, weights={"purity": -1.0},
            chosen=True,
        )  # fmt: skip
        for count in self.counts():
            plan += [Choose(f"top {count}", count), turn]
        return [*plan, Initialise("sources")]

    def choose(self, model: PrototypeModel, batches: TrainingTokens, phase: Choose) -> Tensor:
        """Return the prototypes of every channel with the U of the moment."""
        assert isinstance(model.head, FoldedLinear), "build made it so"
        if not bool(model.head.trained.any()):
            raise UsageError(
                "epic explains a trained classifier, and this encoder has none: take encoders.NamedNetwork with "
                "weights or encoders.TrainedNetwork, or train one first with classifier_epochs"
            )
        cases = self._search(model, batches, phase.count, located=False).cases
        row = torch.arange(len(cases), device=cases.device).unsqueeze(1).expand_as(cases)
        return torch.stack([cases, row], 2)[cases >= 0]

    @torch.no_grad()
    def initialise(self, model: PrototypeModel, batches: TrainingTokens, seed: int) -> None:
        """Record the first prototype of every channel as its source."""
        found = self._search(model, batches, 1, located=True)
        rows = (found.cases[:, 0] >= 0).nonzero().squeeze(1)
        cases, places = found.cases[rows, 0].tolist(), found.columns["positions"][rows, 0].tolist()
        values = found.columns["values"][rows, 0].tolist()
        sources = batches.sources(cases, places)
        model.bank.record(rows, [replace(s, distance=v, moved=False) for s, v in zip(sources, values, strict=True)])

    def _search(self, model: PrototypeModel, batches: TrainingTokens, count: int, *, located: bool) -> Exemplars:
        assert isinstance(model.neck, ChannelRotation), "build made it so"
        device = model.bank.vectors.device
        matrix = model.neck.matrix().detach()
        found = Exemplars(len(matrix), count, by=self.ranking, matrix=matrix, located=located, device=device)
        seen = 0
        for tokens, _ in batches:
            numbers = torch.arange(seen, seen + len(tokens.values), device=device)
            try:
                found.update_from(tokens, numbers)
            except UnrankedCase as error:
                raise DataError(f"the tokens of training case number {error.case} are not finite") from error
            seen += len(numbers)
        return found
