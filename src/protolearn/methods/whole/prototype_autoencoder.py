"""Prototype autoencoder (Li, Liu, Chen, Rudin, AAAI 2018, arXiv 1710.04806): prototypes that can be decoded and seen.

    z = f(x), one code an input;   D_ij = |z_i - p_j|^2 (no root);   logit_c = sum_j D_ij W_jc (no bias)
    E  = mean cross-entropy                     R  = mean over cases of the squared error of g(z), summed over pixels
    R1 = mean_j min over the batch of D_ij      R2 = mean_i min_j D_ij
    loss = 20 E + R + R1 + R2; Adam 0.002, batches of 250, 1500 epochs, everything at once, nothing projected;
    every batch elastically deformed (sigma 4, alpha 20), and the deformed picture is what g has to give back
    starts: p and W uniform in [0, 1); the convolutions normal with deviation 0.01

The sign of the house: evidence is -D and the head's weight is -W, so a larger weight means "near this prototype speaks
for the class". A constant added to all classes of one prototype changes no probability and no step of training, so the
weights of each are kept at mean 0: the logits are the paper's up to a number that all classes share. Prototypes belong
to no class: what one stands for is the class with the largest weight (``LinearEvidence.favoured``).

The network and its decoder are ``encoders.ConvAutoencoder``; batch size and deformation are in the recipe "paper". R1
is a statistic of the batch, so small batches draw prototypes to few cases. R is a sum over pixels, and its weight is
for 28 x 28.

Departs from the paper: after training, the nearest training case of each prototype is recorded for the explanation; the
prototype is not moved onto it. One pixel of padding on every side (see the encoder). Any other encoder works too, ours:
its tokens are averaged to one feature vector, two layers make the code, and two others decode it to the feature vector,
held fixed as a target. Such prototypes decode to features, not to pictures, and their picture is the nearest case's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from protolearn.core.bank import PrototypeBank
from protolearn.core.decoders import make_coding
from protolearn.core.encoder import Encoder
from protolearn.core.heads import LinearEvidence
from protolearn.core.measures import squared_l2
from protolearn.core.method import Initialise, Method, Phase, Project, Recipe, Train, TrainingTokens, register
from protolearn.core.model import PrototypeModel
from protolearn.core.settings import above, at_least, rates_of
from protolearn.core.similarities import Negative
from protolearn.core.starts import start_pool
from protolearn.errors import UsageError
from protolearn.objectives.classification import cross_entropy
from protolearn.objectives.coverage import data_near_prototypes, prototypes_near_data
from protolearn.objectives.reconstruction import squared_error_sum
from protolearn.structures import Output

PAPER = Recipe(
    about="the paper's network, batches and elastic deformation, for small grey pictures",
    encoder={"encoder": "autoencoder"},
    augment={"flip": 0.0, "rotation": 0.0, "shear": 0.0, "skew": 0.0, "elastic": 20.0, "elastic_sigma": 4.0},
    options={"batch_size": 250},
)
FROZEN = Recipe(
    about="a frozen pretrained encoder and few pictures: seconds without an accelerator",
    method={"encoder_rate": None, "axes": 256, "start": "k_means", "prototypes": 30, "epochs": 100},
    encoder={"layer": "final"},
    options={"batch_size": 64},
)


@register(
    "prototype-autoencoder",
    area="whole",
    paper="Li, Liu, Chen, Rudin, AAAI 2018, arXiv 1710.04806",
    verified="formulas against numbers from the authors' code; published accuracies unchecked",
)
@dataclass(frozen=True)
class PrototypeAutoencoder(Method):
    """Settings of the prototype autoencoder with the paper's defaults for MNIST.

    ``dim`` is the width of the code where the encoder has no decoder of its own (``ConvAutoencoder`` has one and says
    its width). ``axes`` puts such an encoder's features on principal axes first, and ``start`` the prototypes on
    k-means centres of the codes; neither is the paper's. ``encoder_rate=None`` keeps the encoder frozen.

    Examples
    --------
    >>> PrototypeAutoencoder(prototypes=5).settings()["classification_weight"]
    20.0
    """

    recipes = {"paper": PAPER, "frozen": FROZEN}

    prototypes: int = 15
    dim: int = 40
    axes: int | None = None
    start: Literal["uniform", "k_means"] = "uniform"
    classification_weight: float = 20.0
    reconstruction_weight: float = 1.0
    r1_weight: float = 1.0
    r2_weight: float = 1.0
    epochs: int = 1500
    rate: float = 0.002
    encoder_rate: float | None = 0.002

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "prototypes", "dim", "axes")
        at_least(self, 0, "epochs")
        above(self, 0, "rate", "encoder_rate")

    def build(self, encoder: Encoder, classes: int, seed: int = 0) -> PrototypeModel:
        """Return the untrained model."""
        draw = torch.Generator().manual_seed(seed)
        neck, decoder, dim = make_coding(encoder, self.dim, axes=self.axes, seed=seed)
        if decoder.pictures and self.encoder_rate is None:
            raise UsageError(
                "prototype-autoencoder: encoder_rate must be a number for an autoencoder, which learns with its decoder"
            )
        vectors = torch.rand(self.prototypes, dim, generator=draw)
        bank = PrototypeBank(vectors, torch.zeros(self.prototypes, classes))
        head = LinearEvidence(-torch.rand(classes, self.prototypes, generator=draw), centred=True)
        return PrototypeModel(encoder, neck, bank, squared_l2, head, similarity=Negative(), decoder=decoder)

    def initialise(self, model: PrototypeModel, batches: TrainingTokens, seed: int) -> None:
        """Fit the principal axes; then put prototypes on the k-means centres of the codes."""
        start_pool(model, batches, seed, prototypes=self.start)

    def objective(self, out: Output, labels: Tensor) -> dict[str, Tensor]:
        """Return the four terms."""
        assert out.distances is not None and out.reconstruction is not None, "build made it so"
        nothing = out.logits.new_zeros(())
        return {
            "classification": cross_entropy(out.logits, labels),
            "reconstruction": (
                nothing if out.original is None else squared_error_sum(out.reconstruction, out.original)
            ),
            "r1": prototypes_near_data(out.distances),
            "r2": data_near_prototypes(out.distances),
        }

    def weights(self) -> dict[str, float]:
        """Return the coefficients."""
        return {
            "classification": self.classification_weight,
            "reconstruction": self.reconstruction_weight,
            "r1": self.r1_weight,
            "r2": self.r2_weight,
        }

    def phases(self) -> list[Phase]:
        """Return the one stage, and the search for the cases nearest to the prototypes."""
        rest = dict.fromkeys(("neck", "prototypes", "head", "decoder"), self.rate)
        rates = rates_of(encoder=self.encoder_rate, **rest)
        start: list[Phase] = [] if self.axes is None and self.start == "uniform" else [Initialise()]
        return [*start, Train("joint", self.epochs, rates), Project("nearest_case", rule="any", move=False)]
