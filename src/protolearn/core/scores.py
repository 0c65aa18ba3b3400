"""Novelty scores that read logits or prototypes: nothing is fitted but the threshold. Higher = more like the known."""

from __future__ import annotations

import torch
from torch import Tensor

from protolearn.core.scorer import Scorer, View, scorer
from protolearn.errors import UsageError


def max_softmax(logits: Tensor) -> Tensor:
    """Return the highest softmax probability ``(B,)`` of logits ``(B, C)``.

    Source: Hendrycks and Gimpel, ICLR 2017.

    Examples
    --------
    >>> max_softmax(torch.zeros(1, 4))
    tensor([0.2500])
    """
    return logits.softmax(-1).amax(-1)


def energy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the negative free energy ``T logsumexp(logits / T)`` ``(B,)``.

    Source: Liu et al., NeurIPS 2020.

    Examples
    --------
    >>> energy(torch.zeros(1, 2)).exp()
    tensor([2.])
    """
    if not temperature > 0:
        raise UsageError(f"temperature must be above 0, got {temperature}")
    return temperature * torch.logsumexp(logits / temperature, -1)


@scorer("msp", source="Hendrycks and Gimpel, ICLR 2017")
class MaxSoftmax(Scorer):
    """The probability of the predicted class."""

    def score(self, view: View) -> Tensor:
        """Return confidences."""
        if view.logits.shape[1] < 2:
            raise UsageError("msp needs several classes: the probability of the only one is always 1; use max_logit")
        return max_softmax(view.logits)


@scorer("max_logit", source="Hendrycks et al., ICML 2022")
class MaxLogit(Scorer):
    """The highest logit."""

    def score(self, view: View) -> Tensor:
        """Return confidences."""
        return view.logits.amax(-1)


@scorer("energy", source="Liu et al., NeurIPS 2020")
class Energy(Scorer):
    """The negative free energy of the logits."""

    settings_names = ("temperature",)

    def __init__(self, *, temperature: float = 1.0, features: str = "encoded") -> None:
        super().__init__(features=features)
        if not temperature > 0:
            raise UsageError(f"temperature must be above 0, got {temperature}")
        self.temperature = temperature

    def score(self, view: View) -> Tensor:
        """Return confidences."""
        return energy(view.logits, self.temperature)


@scorer("nearest_prototype", source="ours: how similar the most similar prototype is")
class NearestPrototype(Scorer):
    """The highest similarity to any prototype, in the model's own units."""

    def score(self, view: View) -> Tensor:
        """Return confidences."""
        if view.evidence is None or not view.evidence.shape[1]:
            raise UsageError("nearest_prototype needs a model with prototypes")
        return view.evidence.amax(-1)
