"""Naive Bayes head (Zheng et al., ICML 2023, arXiv 2302.02334): classes as Gaussians on frozen features, in one pass.

    mu_c class mean, pi_c = N_c / N, v = sum_c pi_c (variance of class c) + smoothing: one variance vector for all
    score_c = log pi_c - 1/2 sum_d (x_d - mu_cd)^2 / v_d;   posterior = softmax over classes
    a linear layer in disguise: w_c = mu_c / v, b_c = log pi_c - 1/2 sum_d mu_cd^2 / v_d
    phases: statistics of the training cases, batch by batch; nothing is learned by gradient

In the path of this library: the neck divides by the root of v, so that the squared distance to a class mean is the
Mahalanobis distance; the head weighs it by -1/2 and adds the log prior. Contributions sum to the score.

Departs from the paper: smoothing is a share of the largest variance, as in scikit-learn (the authors add 1e-9 as it is,
so that a constant feature decides everything); counts are kept for each class, so that a batch may lack some; features
are not scaled to [0, 1], which changes no score (but see smoothing); without any variance (one case a class) v = 1.
The source of a prototype is the case nearest to the class mean; the mean itself is no case.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from protolearn.core.bank import PrototypeBank
from protolearn.core.encoder import Encoder
from protolearn.core.gathering import Pooled, Scaled, summarise
from protolearn.core.heads import FixedEvidence
from protolearn.core.measures import squared_l2
from protolearn.core.method import Initialise, Method, Phase, Project, Recipe, TrainingTokens, register
from protolearn.core.model import PrototypeModel
from protolearn.core.settings import at_least
from protolearn.core.similarities import Negative
from protolearn.core.statistics import ClassStatistics
from protolearn.errors import TrainingError
from protolearn.objectives.classification import cross_entropy
from protolearn.structures import Output

NEVER = -1e30
"""Log prior of a class without cases: finite, and below every score."""

FROZEN = Recipe(
    about="a frozen encoder with features that are often 0 (behind a ReLU): more smoothing",
    method={"smoothing": 0.1},
)


@register(
    "naive-bayes-head",
    area="heads",
    paper="Zheng et al., ICML 2023, arXiv 2302.02334",
    verified="fit, merge and scores against numbers from the authors' code; published accuracies unverified",
)
@dataclass(frozen=True)
class NaiveBayesHead(Method):
    """Settings: ``smoothing`` is added to the variances, as a share of the largest one unless ``relative`` is False.

    Examples
    --------
    >>> [phase.name for phase in NaiveBayesHead().phases()]
    ['initialise', 'projection']
    """

    recipes = {"frozen": FROZEN}

    smoothing: float = 1e-9
    relative: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 0, "smoothing")

    def build(self, encoder: Encoder, classes: int, seed: int = 0) -> PrototypeModel:
        """Return the model before it has seen a case: random means, unit variance, even priors."""
        draw = torch.Generator().manual_seed(seed)
        bank = PrototypeBank.per_class(classes, 1, encoder.dim, generator=draw, learned=False)
        head = FixedEvidence(torch.eye(classes), torch.zeros(classes))
        neck = Pooled(Scaled(encoder.dim))
        return PrototypeModel(encoder, neck, bank, squared_l2, head, similarity=Negative(0.5))

    @torch.no_grad()
    def initialise(self, model: PrototypeModel, batches: TrainingTokens, seed: int) -> None:
        """Fit means, variance and priors in one pass."""
        bank, head, neck = model.bank, model.head, model.neck
        assert isinstance(head, FixedEvidence) and head.bias is not None and isinstance(neck, Pooled)
        assert isinstance(neck.layers, Scaled)
        statistics = ClassStatistics(bank.classes, len(neck.layers.scale), bank.vectors.device)
        for tokens, labels in batches:
            statistics.update(summarise(tokens), labels)
        try:
            gaussian = statistics.shared_gaussian(self.smoothing, relative=self.relative)
        except ValueError as error:
            raise TrainingError(f"naive-bayes-head: {error}") from error
        centre = gaussian.log_prior.exp() @ gaussian.means
        scale = gaussian.variance.clamp_min(torch.finfo(torch.float32).tiny).sqrt()
        neck.layers.centre.copy_(centre)
        neck.layers.scale.copy_(scale)
        bank.vectors.copy_((gaussian.means - centre) / scale)
        bank.counts.copy_(statistics.moments.counts)
        bank.active.copy_(gaussian.seen)
        head.bias.copy_(gaussian.log_prior.clamp_min(NEVER))

    def objective(self, out: Output, labels: Tensor) -> dict[str, Tensor]:
        """Return the cross-entropy of the posterior, to look at: no phase lowers it."""
        return {"cross_entropy": cross_entropy(out.logits, labels)}

    def weights(self) -> dict[str, float]:
        """Return the coefficients."""
        return {"cross_entropy": 1.0}

    def phases(self) -> list[Phase]:
        """Return one pass for the statistics, and one to find the case nearest to each mean."""
        return [Initialise(), Project(move=False)]
