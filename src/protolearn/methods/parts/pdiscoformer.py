"""PDiscoFormer (Aniraj et al., ECCV 2024, arXiv 2407.04538): parts of any size and shape, found without part labels.

    A_k(s) = softmax over K parts and a background of -|z_s - w_k|^2, in training with Gumbel noise (temperature 1)
    v_k = mean over all positions s of A_k(s) z_s;   logit_c = mean over the K parts of u_c . m_k(v_k)
    loss = cross-entropy + presence + 2 background + equivariance + orthogonality + total variation + entropy
    m: layer norm over all parts together with a factor and a shift for each number; whole parts dropped with p = 0.3
    one phase of 28 epochs, Adam: encoder 1e-6, prototypes 1e3 and head 1e4 times that, halved every 4 epochs

For equivariance the network sees every batch twice, the second time under one random affine transform (up to 90
degrees, 11 % shift, 0.8 to 1.4 times as large), which is undone on the maps; the copies count for nothing else.

The defaults are what the authors' instructions give for the paper's experiments; their parser's own defaults are
modulation="elementwise", gumbel=False, orthogonality_of="plain". In the paper the encoder is a DINOv2 ViT of which only
class token, register tokens and position embeddings are trained: ``train_from="embeddings"`` on the encoder; gradients
are clipped at norm 2 (``clip=2.0``).

Departs from the paper: any encoder; Gumbel noise in training only (the authors' code draws in evaluation too); maps
are brought back by the exact inverse and one bilinear resampling (theirs: two, nearest neighbour). Beyond it: at the
end the training token nearest to each part is recorded as its source, and nothing moves. Terms of neighbours are left
out where tokens have no grid; equivariance where the encoder is frozen and its tokens are cached, since nothing can be
shown to it then. Off by default: a neck on principal axes and a k-means start, for frozen encoders (recipe "frozen").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from protolearn.core.affine import inverse, random_affine, warp
from protolearn.core.bank import PrototypeBank
from protolearn.core.competition import SoftShares
from protolearn.core.encoder import Encoder
from protolearn.core.folding import border_share, folded, sides
from protolearn.core.measures import squared_l2
from protolearn.core.method import Initialise, Method, Phase, Project, Recipe, Train, TrainingTokens, register
from protolearn.core.model import PrototypeModel
from protolearn.core.necks import NeckKind, make_neck
from protolearn.core.part_heads import Modulation, PartFeatures
from protolearn.core.pooling import mean_pool
from protolearn.core.settings import above, at_least, rates_of, require, within
from protolearn.core.similarities import Negative
from protolearn.core.starts import start_pool
from protolearn.errors import UsageError
from protolearn.objectives import part_discovery as terms
from protolearn.objectives.classification import cross_entropy
from protolearn.structures import Output

PART, BACKGROUND = 1, 0  # groups of the bank

FROZEN = Recipe(
    about="a frozen pretrained encoder and few pictures: half a minute without an accelerator; no equivariance term",
    method={
        "neck": "principal", "dim": 128, "start": "k_means", "encoder_rate": None, "temperature": 0.05,
        "gumbel": False, "epochs": 60, "step": 15, "neck_rate": 3e-4, "prototype_rate": 3e-4, "head_rate": 3e-2,
    },
    encoder={"layer": "final"},
    options={"batch_size": 40},
)  # fmt: skip


@register(
    "pdiscoformer",
    area="parts",
    paper="Aniraj et al., ECCV 2024, arXiv 2407.04538",
    verified="unverified: terms against loops written from the formulas; no number of the paper reproduced",
)
@dataclass(frozen=True)
class PDiscoFormer(Method):
    """Settings of PDiscoFormer with the paper's defaults; ``encoder_rate=None`` keeps the encoder frozen throughout.

    Examples
    --------
    >>> PDiscoFormer(parts=4).weights()["background"]
    2.0
    """

    recipes = {"frozen": FROZEN}

    parts: int = 8
    gumbel: bool = True
    temperature: float = 1.0
    modulation: Modulation = "layer_norm"
    part_dropout: float = 0.3
    window: int = 3
    presence_weight: float = 1.0
    background_weight: float = 2.0
    equivariance_weight: float = 1.0
    orthogonality_weight: float = 1.0
    orthogonality_of: Literal["modulated", "plain"] = "modulated"
    total_variation_weight: float = 1.0
    entropy_weight: float = 1.0
    concentration_weight: float = 0.0
    degrees: float = 90.0
    translate: float = 0.11
    scale: tuple[float, float] = (0.8, 1.4)
    epochs: int = 28
    encoder_rate: float | None = 1e-6
    prototype_rate: float = 1e-3
    head_rate: float = 1e-2
    step: int = 4
    gamma: float = 0.5
    neck: NeckKind = "identity"
    dim: int | None = None
    axes: int = 256
    neck_rate: float = 1e-3
    start: Literal["random", "k_means"] = "random"

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "parts", "window", "axes", "dim")
        at_least(self, 0, "epochs", "step")
        above(self, 0, "temperature")
        within(self, "[0, 1)", "part_dropout")
        right = len(self.scale) == 2 and 0 < self.scale[0] <= self.scale[1]
        require(self, right, "scale", "be a smallest and a largest factor")

    def build(self, encoder: Encoder, classes: int, seed: int = 0) -> PrototypeModel:
        """Return the untrained model; the background is the last prototype, and none belongs to a class."""
        draw = torch.Generator().manual_seed(seed)
        dim = encoder.dim if self.dim is None else self.dim
        if self.neck == "identity" and dim != encoder.dim:
            raise UsageError(f"pdiscoformer: dim must be the encoder's {encoder.dim} without a neck, got {dim}")
        neck = make_neck(self.neck, encoder.dim, dim, axes=self.axes, generator=draw)
        group = torch.tensor([PART] * self.parts + [BACKGROUND])
        vectors = (2 * torch.rand(len(group), dim, generator=draw) - 1) / dim**0.5
        bank = PrototypeBank(vectors, torch.zeros(len(group), classes), groups=group)
        options = {"modulation": self.modulation, "dropout": self.part_dropout}
        head = PartFeatures(group == PART, classes, dim, generator=draw, **options)  # type: ignore[arg-type]
        shares = SoftShares(self.temperature, gumbel=self.gumbel)
        return PrototypeModel(
            encoder, neck, bank, squared_l2, head, similarity=Negative(), pooling=mean_pool, across=shares
        )

    def initialise(self, model: PrototypeModel, batches: TrainingTokens, seed: int) -> None:
        """Fit the axes; put prototypes on k-means centres, and the one that lies most at the border last."""
        start_pool(model, batches, seed, prototypes=self.start)
        if self.start == "k_means":
            order = border_share(model, batches).argsort()
            model.bank.vectors.data = model.bank.vectors.detach()[order]

    def prepare(
        self, inputs: Tensor, labels: Tensor, targets: Mapping[str, Tensor], generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Mapping[str, Tensor]]:
        """Add the transformed copies, without labels; ``theta`` says how each row was transformed."""
        if self.equivariance_weight == 0 or inputs.ndim != 4:
            return inputs, labels, targets
        size = (inputs.shape[-2], inputs.shape[-1])
        drawn = random_affine(
            size, generator=generator, degrees=self.degrees, translate=self.translate, scale=self.scale
        )
        theta = torch.stack([torch.eye(2, 3), drawn]).repeat_interleave(len(inputs), 0).to(inputs)
        more = {name: rows.repeat(2, *[1] * (rows.ndim - 1)) for name, rows in targets.items()}
        moved = warp(inputs, theta[len(inputs) :])
        return torch.cat([inputs, moved]), torch.cat([labels, torch.full_like(labels, -1)]), {**more, "theta": theta}

    def objective(self, out: Output, labels: Tensor) -> dict[str, Tensor]:
        """Return the terms that the tokens allow; copies, where there are any, are the second half of the rows."""
        theta = out.targets.get("theta")
        half = len(labels) if theta is None else len(labels) // 2
        real = out if theta is None else out.part(slice(0, half))
        head, bank = real.head, real.bank
        assert isinstance(head, PartFeatures) and bank.groups is not None and real.tokens is not None, "build made it"
        parts, rest = (bank.groups == PART) & bank.usable, (bank.groups == BACKGROUND) & bank.usable
        maps, placed, mask = folded(real), sides(real.tokens) is not None, real.tokens.mask
        assert real.table is not None
        plain, modulated = head.of(real)
        features = plain if self.orthogonality_of == "plain" else modulated
        found = {
            "cross_entropy": cross_entropy(real.logits, labels[:half]),
            "presence": terms.part_presence(maps[:, parts], window=self.window if placed else 1),
            "orthogonality": terms.part_orthogonality(features[:, bank.usable]),
            "entropy": terms.assignment_entropy(real.table if mask is None else real.table[mask], dim=-1),
        }
        if placed:
            found["background"] = terms.background_presence(maps[:, rest].sum(1), self.window)
            found["total_variation"] = terms.total_variation(maps)
            found["concentration"] = terms.concentration(maps[:, parts])
        if placed and theta is not None:
            moved = folded(out.part(slice(half, None)))[:, parts]
            found["equivariance"] = terms.equivariance(maps[:, parts], warp(moved, inverse(theta[half:].to(moved))))
        return found

    def weights(self) -> dict[str, float]:
        """Return the coefficients."""
        return {
            "cross_entropy": 1.0,
            "presence": self.presence_weight,
            "background": self.background_weight,
            "equivariance": self.equivariance_weight,
            "orthogonality": self.orthogonality_weight,
            "total_variation": self.total_variation_weight,
            "entropy": self.entropy_weight,
            "concentration": self.concentration_weight,
        }

    def phases(self) -> list[Phase]:
        """Return one joint phase; then the nearest tokens are recorded."""
        neck_rate = None if self.neck == "identity" else self.neck_rate
        rates = rates_of(encoder=self.encoder_rate, neck=neck_rate, prototypes=self.prototype_rate, head=self.head_rate)
        falls = tuple(range(self.step, self.epochs, self.step)) if self.step else ()
        plan: list[Phase] = [] if self.neck != "principal" and self.start == "random" else [Initialise()]
        plan += [Train("joint", self.epochs, rates, milestones=falls, gamma=self.gamma)]
        return [*plan, Project(rule="any", move=False)]
