"""Prompt-CAM (Chowdhury et al., CVPR 2025, arXiv 2501.09333): one prompt a class asks a frozen vision transformer.

    before block l the prompts p_lc of all classes are put before the tokens, and taken off behind it, except the last
    x_c = what prompt c is after the last block and the final norm;   logit_c = w . x_c + b, one w for all classes
    loss = cross-entropy; the backbone is frozen
    130 epochs of SGD (0.005, momentum 0.9, weight decay 1e-3), 20 of them warm-up, on a cosine down to 1e-6

Only the prompts tell classes apart, so for class c to win its prompt must attend to patches that speak for c: the
attention of its row in the last block, head by head, is the explanation. Prompts start uniform in ±sqrt(6 / (3 patch
area + width)). In training an entry of a prompt is dropped with p = 0.1 and a block's branch with up to 0.1.

The prompts are the bank: row c holds those of all blocks, one after the other. A class's similarity at a patch is its
attention there, averaged over heads; its contribution is its own score. ``protolearn.explain.attention`` ranks heads.

Departs from the paper: the training patch of its own class that a prompt attends to most is recorded as its source
(nothing moves); the rest of the backbone is in eval mode in training. In the code that we read the optimiser is given
the prompts alone and w keeps its random start: ``head_rate=None`` does that.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from protolearn.core.bank import PrototypeBank
from protolearn.core.encoder import Encoder
from protolearn.core.measures import cosine
from protolearn.core.method import Method, Phase, Project, Train, register
from protolearn.core.model import PrototypeModel
from protolearn.core.necks import make_neck
from protolearn.core.part_heads import SharedScore
from protolearn.core.settings import above, at_least, rates_of, require, within
from protolearn.encoders.prompted import PromptedEncoder, mean_attention
from protolearn.errors import UsageError
from protolearn.objectives.classification import cross_entropy
from protolearn.structures import Output


@register(
    "prompt-cam",
    area="parts",
    paper="Chowdhury et al., CVPR 2025, arXiv 2501.09333",
    verified="unverified: blocks against timm's own, laws on planted data; no pretrained transformer was at hand",
)
@dataclass(frozen=True)
class PromptCAM(Method):
    """Settings of Prompt-CAM with the paper's defaults for CUB and a DINO ViT-B/16; for a vision transformer of timm.

    Examples
    --------
    >>> PromptCAM(epochs=10, warmup=2).settings()["momentum"]
    0.9
    """

    deep: bool = True
    dropout: float = 0.1
    drop_path: float = 0.1
    epochs: int = 130
    warmup: int = 20
    rate: float = 0.005
    head_rate: float | None = 0.005
    least_rate: float = 1e-6
    momentum: float = 0.9
    weight_decay: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        within(self, "[0, 1)", "dropout", "drop_path")
        at_least(self, 0, "epochs")
        require(self, 0 <= self.warmup <= self.epochs, "warmup", f"lie from 0 to epochs = {self.epochs}")
        above(self, 0, "rate")
        require(self, 0 <= self.least_rate <= self.rate, "least_rate", f"lie from 0 to rate = {self.rate}")

    def build(self, encoder: Encoder, classes: int, seed: int = 0) -> PrototypeModel:
        """Return the untrained model, the encoder wrapped so that prompts can enter it."""
        try:
            prompted = PromptedEncoder(encoder, deep=self.deep, dropout=self.dropout, drop_path=self.drop_path)
        except UsageError as error:
            raise UsageError(f"prompt-cam: {error}") from error
        draw = torch.Generator().manual_seed(seed)
        height, width = prompted.patch
        bound = (6 / (3 * height * width + prompted.dim)) ** 0.5
        vectors = bound * (2 * torch.rand(classes, prompted.depth * prompted.dim, generator=draw) - 1)
        bank = PrototypeBank(vectors, torch.eye(classes))
        head = SharedScore(bank.ownership, prompted.dim, generator=draw)
        neck = make_neck("identity", prompted.dim, prompted.dim)
        return PrototypeModel(prompted, neck, bank, cosine, head, compare=mean_attention)

    def objective(self, out: Output, labels: Tensor) -> dict[str, Tensor]:
        """Return the one term."""
        return {"cross_entropy": cross_entropy(out.logits, labels)}

    def weights(self) -> dict[str, float]:
        """Return the coefficient."""
        return {"cross_entropy": 1.0}

    def phases(self) -> list[Phase]:
        """Return the one phase; then what each prompt looks at most is recorded."""
        rates = rates_of(prototypes=self.rate, head=self.head_rate)
        learn = Train(
            "prompts",
            self.epochs,
            rates,
            dict.fromkeys(rates, self.weight_decay),
            optimizer="sgd",
            momentum=self.momentum,
            cosine=True,
            warmup=self.warmup,
            overlap=True,
            floor=self.least_rate / self.rate,
        )
        return [learn, Project(move=False)]
