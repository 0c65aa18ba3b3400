"""What sampled predictions say about their own doubt: how much, of which kind, and when to refuse.

All entropies are in nats.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from protolearn.errors import UsageError, nearest_names

Score = Literal["total", "aleatoric", "epistemic"]
SCORES = ("total", "aleatoric", "epistemic")


class Uncertainty(NamedTuple):
    """Each ``(B,)``; ``total = aleatoric + epistemic``."""

    total: Tensor
    aleatoric: Tensor
    epistemic: Tensor


def entropy(probabilities: Tensor) -> Tensor:
    """Return the entropy over the last axis; an impossible class adds nothing.

    Examples
    --------
    >>> entropy(torch.tensor([[1.0, 0.0], [0.5, 0.5]]))
    tensor([0.0000, 0.6931])
    """
    per_class: Tensor = torch.special.entr(probabilities)
    return per_class.sum(-1)


def decompose(probabilities: Tensor) -> Uncertainty:
    """Split the uncertainty of sampled predictions ``(B, S, C)``.

    ``total`` is the entropy of the mean prediction. ``aleatoric`` is the mean entropy of the samples: what each of them
    finds undecided. ``epistemic`` is the rest, the mutual information between prediction and sample: where the samples
    contradict each other. It is never negative but for rounding, which is removed.

    Source: Depeweg et al. (2018) and earlier; general knowledge.

    Examples
    --------
    >>> doubt = decompose(torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.5, 0.5], [0.5, 0.5]]]))
    >>> doubt.aleatoric, doubt.epistemic
    (tensor([0.0000, 0.6931]), tensor([0.6931, 0.0000]))
    """
    if probabilities.ndim != 3 or probabilities.shape[1] < 1:
        raise ValueError(f"sampled probabilities must be (B, S, C) with S >= 1, got {tuple(probabilities.shape)}")
    total, aleatoric = entropy(probabilities.mean(1)), entropy(probabilities).mean(1)
    return Uncertainty(total, aleatoric, (total - aleatoric).clamp_min(0.0))


@dataclass(frozen=True)
class Refusal:
    """When a model says "I don't know": where a score of doubt lies above a quantile of validation cases.

    Attributes
    ----------
    threshold : float
        A case with a higher score is refused.
    score : {"epistemic", "total", "aleatoric"}
        Which uncertainty.
    quantile : float
        Of the validation scores, which the threshold is.
    cases : int
        How many validation cases it rests on.
    samples : int
        Draws of the prototypes behind every score; ask with as many.

    Examples
    --------
    >>> rule = Refusal.calibrate(torch.arange(101.0), quantile=0.95)
    >>> rule.threshold, rule(torch.tensor([94.0, 96.0, float("nan")])).tolist()
    (95.0, [False, True, True])
    >>> Refusal.from_dict(rule.to_dict()) == rule
    True
    """

    threshold: float
    score: Score = "epistemic"
    quantile: float = 0.95
    cases: int = 0
    samples: int = 30

    def __post_init__(self) -> None:
        if self.score not in SCORES:
            raise UsageError(f"refusal: no score is called {self.score!r}: {nearest_names(str(self.score), SCORES)}")
        if not 0 <= self.quantile <= 1:
            raise UsageError(f"refusal: quantile must lie in 0 to 1, got {self.quantile}")
        if self.threshold != self.threshold:
            raise UsageError("refusal: threshold must be a number, got nan")

    @classmethod
    def calibrate(
        cls, scores: Tensor, quantile: float = 0.95, *, score: Score = "epistemic", samples: int = 30
    ) -> Refusal:
        """Return the rule that refuses about ``1 - quantile`` of cases like these ``(N,)`` validation scores."""
        if scores.ndim != 1 or not len(scores) or not bool(torch.isfinite(scores).all()):
            raise UsageError("refusal: calibration takes a row of at least one finite validation score")
        if not 0 <= quantile <= 1:
            raise UsageError(f"refusal: quantile must lie in 0 to 1, got {quantile}")
        at = float(torch.quantile(scores.double(), quantile))
        return cls(at, score, quantile, len(scores), samples)

    def __call__(self, scores: Tensor | Uncertainty) -> Tensor:
        """Return ``(B,)`` bool: refused. A score that is not a number is refused."""
        values: Tensor = getattr(scores, self.score) if isinstance(scores, Uncertainty) else scores
        return ~(values <= self.threshold)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types, for ``model.metadata``."""
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Refusal:
        """Build from :meth:`to_dict`'s output."""
        return cls(**plain)
