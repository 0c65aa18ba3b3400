"""Prob-PSENN (Vadillo, Santana, Lozano, Kwiatkowska, 2024, arXiv 2403.13740): prototypes that are distributions.

    q_k = N(mu_k, Sigma_k) over codes (Sigma diagonal, full, or a mixture of two), one prototype a class;  z = f(x)
    draw p_k^s ~ q_k, s = 1..S;   D_iks = |z_i - p_k^s|^2;   logit_isc = sum_k D_iks W_kc
    NLL = -mean over cases and draws of log softmax(logit_is)_y     (the logarithm inside the average over draws)
    REC = squared error of g(z), averaged over cases and pixels
    INT = mean_i clip(-log q_y(z_i), -1, 10000)                      R1 = mean_k min_i -log q_k(z_i)
    KL  = of the variational autoencoder, where the code is drawn    loss = NLL + 10 REC + 0 R1 + 0.05 INT (+ 0.05 KL)
    stages: autoencoder alone (REC + 0.05 KL); q_k fitted to the codes of its class; then everything together
    starts: mu ~ N(0, prior_scale^2), scales softplus of N(prior_scale / 5, prior_scale / 10); W -0.5 on the diagonal
    plus U(-1e-8, 1e-8)

The lower clip of INT takes the reward away once a density is high; without it variances collapse. Evidence is -D and
the head's weight is -W, kept at mean 0 over the classes of a prototype: no probability depends on that mean. What a
model gives out is the prediction of the modes mu_k, so that its ledger is exact and repeats. ``core.sampling`` draws:
``predictive`` for the averaged prediction (the one to score) and its uncertainty, split into aleatoric and epistemic,
``contribution_spread`` for what each contribution varies by, ``calibrate_refusal`` for a threshold on validation cases.
``explain.decode`` shows draws as pictures.

Unverified: no official code or readable paper was found. Formulas follow a description made from a stored copy of a
TensorFlow class; width 40, rate 1e-3, batches of 128 and the full covariance are read off the name of a stored run, 30
draws off a stored evaluation; epochs, draws in training and the prior's form are our choice.

Departs from that copy, on purpose: the diagonal fit takes the standard deviation, not the variance; the Cholesky factor
is made once, not twice, so that a fit has the class's covariance; a fit raises variances below ``floor`` of their mean
(with 0, codes that never vary in some direction leave INT at its upper clip, without gradient). Beyond it, ours:
several prototypes a class (INT of their equal mixture, fitted to k-means parts of the class), and any encoder, as its
mean token coded by two layers and decoded to the features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from protolearn.core.bank import PrototypeBank
from protolearn.core.decoders import make_coding
from protolearn.core.distributions import LawKind, make_law
from protolearn.core.encoder import Encoder
from protolearn.core.heads import LinearEvidence
from protolearn.core.measures import squared_l2
from protolearn.core.method import (
    GROUPS,
    Initialise,
    Method,
    Phase,
    Project,
    Ramp,
    Recipe,
    Train,
    TrainingTokens,
    register,
)
from protolearn.core.model import PrototypeModel
from protolearn.core.sampling import sampled_evidence
from protolearn.core.settings import above, at_least, require
from protolearn.core.similarities import Negative
from protolearn.core.starts import fit_axes, labelled_tokens
from protolearn.core.updates import k_means
from protolearn.errors import UsageError
from protolearn.objectives.coverage import prototypes_near_data
from protolearn.objectives.density import divergence_from_standard_normal, own_density, sampled_cross_entropy
from protolearn.objectives.reconstruction import squared_error_mean
from protolearn.structures import Output

PAPER = Recipe(
    about="the convolutional autoencoder and batches as described, for small grey pictures",
    encoder={"encoder": "autoencoder"},
    options={"batch_size": 128},
)
FROZEN = Recipe(
    about="a frozen pretrained encoder and few pictures: seconds without an accelerator",
    method={
        "encoder_rate": None, "axes": 256, "law": "diagonal", "rate": 3e-3, "autoencoder_epochs": 50, "epochs": 60,
    },
    encoder={"layer": "final"},
    options={"batch_size": 64},
)  # fmt: skip


@register(
    "prob-psenn",
    area="whole",
    paper="Vadillo, Santana, Lozano, Kwiatkowska, 2024, arXiv 2403.13740",
    verified="unverified: no authors' code was found; formulas against torch.distributions and plain loops",
)
@dataclass(frozen=True)
class ProbPSENN(Method):
    """Settings of Prob-PSENN.

    ``joint`` names the groups that are trained together in the last stage (an autoencoder's decoder learns only where
    its encoder does). ``encoder_rate=None`` keeps the encoder frozen throughout. ``dim`` is the width of the code where
    the encoder has no decoder of its own; ``axes`` puts such an encoder's features on principal axes first (ours).
    ``variational`` draws the code in training.

    Examples
    --------
    >>> ProbPSENN(law="diagonal").weights()["int"]
    0.05
    """

    recipes = {"paper": PAPER, "frozen": FROZEN}

    law: LawKind = "full"
    prototypes_per_class: int = 1
    dim: int = 40
    axes: int | None = None
    variational: bool = False
    samples: int = 10
    prior_scale: float = 1.0
    floor: float = 0.01
    nll_weight: float = 1.0
    reconstruction_weight: float = 10.0
    r1_weight: float = 0.0
    int_weight: float = 0.05
    divergence_weight: float = 0.05
    autoencoder_epochs: int = 100
    epochs: int = 100
    rate: float = 1e-3
    encoder_rate: float | None = 1e-3
    joint: tuple[str, ...] = GROUPS

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "prototypes_per_class", "dim", "samples", "axes")
        at_least(self, 0, "autoencoder_epochs", "epochs")
        above(self, 0, "rate", "encoder_rate", "prior_scale")
        require(self, bool(self.joint) and set(self.joint) <= set(GROUPS), "joint", f"name some of {', '.join(GROUPS)}")

    def build(self, encoder: Encoder, classes: int, seed: int = 0) -> PrototypeModel:
        """Return the untrained model."""
        draw = torch.Generator().manual_seed(seed)
        coding = make_coding(encoder, self.dim, axes=self.axes, drawn=self.variational, seed=seed)
        if coding.decoder.pictures and self.encoder_rate is None:
            raise UsageError(
                "prob-psenn: encoder_rate must be a number for an autoencoder, which learns with its decoder"
            )
        count = classes * self.prototypes_per_class
        ownership = torch.eye(classes).repeat_interleave(self.prototypes_per_class, dim=0)
        vectors = self.prior_scale * torch.randn(count, coding.dim, generator=draw)
        law = make_law(self.law, count, coding.dim, prior_scale=self.prior_scale, generator=draw)
        near_zero = (2 * torch.rand(classes, count, generator=draw) - 1) * 1e-8
        head = LinearEvidence(0.5 * ownership.T + near_zero, centred=True)
        bank = PrototypeBank(vectors, ownership, law=law)
        return PrototypeModel(
            encoder, coding.neck, bank, squared_l2, head, similarity=Negative(), decoder=coding.decoder
        )

    @torch.no_grad()
    def initialise(self, model: PrototypeModel, batches: TrainingTokens, seed: int) -> None:
        """Fit the principal axes, if not done; then each class's distributions to its codes."""
        fit_axes(model.neck, batches)
        bank, draw = model.bank, torch.Generator().manual_seed(seed)
        assert bank.law is not None, "build made it so"
        codes, labels = labelled_tokens(model, batches)
        for label in range(bank.classes):
            own, rows = codes[labels == label], (bank.owner() == label).nonzero().squeeze(1).tolist()
            if len(own) < len(rows):
                continue  # too few to fit: the prior stays
            parts = torch.zeros(len(own), dtype=torch.long)
            if len(rows) > 1:
                centres = k_means(own, len(rows), generator=draw).centres
                parts = torch.cdist(own, centres).argmin(1).cpu()
            for part, row in enumerate(rows):
                if bool((parts == part).any()):
                    bank.vectors[row] = bank.law.fit(row, own[(parts == part).to(own.device)], draw, self.floor)

    def objective(self, out: Output, labels: Tensor) -> dict[str, Tensor]:
        """Return the terms; prototypes are drawn from torch's global generator, which the loops seed."""
        assert out.tokens is not None and out.reconstruction is not None and out.bank.law is not None
        drawn = out.bank.law.sample(out.bank.vectors, self.samples)
        evidence = sampled_evidence(out.bank, out.tokens, drawn, squared_l2, Negative())
        density = out.bank.law.log_prob(out.bank.vectors, out.tokens.values[:, 0])
        density = density.masked_fill(~out.bank.usable, float("-inf"))
        nothing, extras = out.logits.new_zeros(()), out.tokens.extras
        terms = {
            "nll": sampled_cross_entropy(out.head(evidence), labels),
            "reconstruction": (
                nothing if out.original is None else squared_error_mean(out.reconstruction, out.original)
            ),
            "r1": prototypes_near_data(-density),
            "int": own_density(density, out.bank.owned_by(labels)),
        }
        if self.variational:
            terms["divergence"] = divergence_from_standard_normal(extras["mean"], extras["log_variance"])
        return terms

    def weights(self) -> dict[str, float]:
        """Return the coefficients."""
        weights = {
            "nll": self.nll_weight,
            "reconstruction": self.reconstruction_weight,
            "r1": self.r1_weight,
            "int": self.int_weight,
        }
        return weights | ({"divergence": self.divergence_weight} if self.variational else {})

    def phases(self) -> list[Phase]:
        """Return the autoencoder alone, the fit, everything together, and the search for the nearest cases."""
        rates = {name: self.encoder_rate if name == "encoder" else self.rate for name in GROUPS}
        first, last = (
            {name: rate for name, rate in rates.items() if name in names and rate is not None}
            for names in (("encoder", "neck", "decoder"), self.joint)
        )
        kept: dict[str, float | Ramp] = {"reconstruction": 1.0}  # 10 only beside the other terms
        if self.variational:
            kept["divergence"] = self.divergence_weight
        plan: list[Phase] = [] if self.axes is None else [Initialise("axes")]
        if self.autoencoder_epochs:
            plan += [Train("autoencoder", self.autoencoder_epochs, first, weights=kept)]
        plan += [Initialise("distributions")]
        plan += [Train("joint", self.epochs, last)]
        return [*plan, Project("nearest_case", rule="own_class", move=False)]
