"""Moment Probing (Gao et al., ICCV 2023): a probe on the distribution of the tokens, not on their mean alone.

    first moment m = class token (or mean of the tokens)
    second: Y = Linear(tokens), cut into 4 parts of 128, each layer-normalised; C_a = mean over tokens of
    (Y_a - mean)' (Y_a+1 - mean) for a = 0..2, columns of unit length; two 3 x 3 convolutions of stride 2, a GELU
    between them (3 maps of 128 -> 63 -> 31), flattened: 2883 numbers f
    logits = 1/2 (W_1 m + b_1) + 1/2 (W_2 f + b_2);   loss = cross-entropy; the encoder stays frozen

In the path of this library an input becomes one vector (m, f), and each class has two rows in the bank: its weights on
the first moment and on the second. Both count one half, so an explanation says how much came from the mean and how much
from the way the tokens vary together. The rows are weights, not cases: they have no source.

Departs from the code: means over tokens are taken off for each channel (the code takes one number off for the whole
input; centre="scalar" does that); widths follow from the settings (the code has 2883 written in). MP+ (scale and shift
inside the encoder) and other pairings of parts are left out. Rates and epochs are ours: the paper's are not verified.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from protolearn.core.bank import PrototypeBank
from protolearn.core.encoder import Encoder
from protolearn.core.heads import FixedEvidence
from protolearn.core.measures import dot
from protolearn.core.method import Method, Phase, Recipe, Train, register
from protolearn.core.model import PrototypeModel
from protolearn.core.moments import Blocks, Centre, TokenMoments
from protolearn.core.settings import above, at_least, require
from protolearn.objectives.classification import cross_entropy
from protolearn.structures import Output

FROZEN = Recipe(about="a frozen encoder and few pictures", method={"hidden": 128, "epochs": 40, "rate": 1e-3})


@register(
    "moment-probing",
    area="heads",
    paper="Gao et al., ICCV 2023",
    verified="forward pass against numbers from the authors' code; hyper-parameters and published results unverified",
)
@dataclass(frozen=True)
class MomentProbing(Method):
    """Settings.

    Examples
    --------
    >>> MomentProbing(hidden=64).weights()
    {'cross_entropy': 1.0}
    """

    recipes = {"frozen": FROZEN}

    hidden: int = 512
    heads: int = 4
    centre: Centre = "channel"
    epochs: int = 30
    rate: float = 1e-3
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        fits = self.heads >= 2 and self.hidden % self.heads == 0 and self.hidden // self.heads >= 7
        require(self, fits, "hidden", f"be heads (>= 2) times a width of at least 7, for heads = {self.heads}")
        at_least(self, 0, "epochs")
        above(self, 0, "rate")

    def build(self, encoder: Encoder, classes: int, seed: int = 0) -> PrototypeModel:
        """Return the model; both classifiers start as linear layers do."""
        draw = torch.Generator().manual_seed(seed)
        neck = TokenMoments(encoder.dim, hidden=self.hidden, heads=self.heads, centre=self.centre, generator=draw)
        widths = neck.first, neck.second
        block = torch.arange(2).repeat_interleave(classes)  # first moment of every class, then second
        reach = torch.tensor(widths)[block].rsqrt().unsqueeze(1)
        vectors = (2 * torch.rand(2 * classes, sum(widths), generator=draw) - 1) * reach
        bank = Blocks(widths).hold(PrototypeBank(vectors, torch.eye(classes).repeat(2, 1), groups=block))
        head = FixedEvidence(0.5 * torch.eye(classes).repeat(1, 2), torch.zeros(classes))
        return PrototypeModel(encoder, neck, bank, dot, head)

    def objective(self, out: Output, labels: Tensor) -> dict[str, Tensor]:
        """Return the cross-entropy of the averaged logits."""
        return {"cross_entropy": cross_entropy(out.logits, labels)}

    def weights(self) -> dict[str, float]:
        """Return the coefficients."""
        return {"cross_entropy": 1.0}

    def phases(self) -> list[Phase]:
        """Return one training with the encoder frozen."""
        rates = dict.fromkeys(("neck", "prototypes", "head"), self.rate)
        return [Train("probe", self.epochs, rates, dict.fromkeys(rates, self.weight_decay))]
