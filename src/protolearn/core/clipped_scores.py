"""Novelty scores that alter the features and read the logits again: ReAct and ASH. Higher = more like the known.

The altered features go back through the model from its neck on, so that every head can be asked; the published forms
alter the input of a linear classifier, which is the same where the model is one.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from protolearn.core.scorer import Scorer, View, scorer
from protolearn.core.scores import energy
from protolearn.errors import UsageError
from protolearn.structures import Output

Shaping = Literal["p", "b", "s"]


def shaped(features: Tensor, percentile: float, kind: str = "s") -> Tensor:
    """Return features ``(..., D)`` of which only the largest are kept, per row.

    Parameters
    ----------
    features : Tensor
        Not negative, as after a ReLU; of signed features the published rule is applied as it stands.
    percentile : float
        Share in per cent that is set to 0; ``D - round(D * percentile / 100)`` are kept.
    kind : {"p", "b", "s"}
        What is kept: as it is; all the same, with the sum of before; or scaled by ``exp(sum before / sum after)``.

    Notes
    -----
    Source: Djurisic et al., ICLR 2023.

    Examples
    --------
    >>> shaped(torch.tensor([1.0, 2.0, 3.0, 4.0]), 50.0, "b")
    tensor([0., 0., 5., 5.])
    """
    if not 0 <= percentile < 100:
        raise UsageError(f"percentile must lie in 0 to 100, below 100, got {percentile}")
    if kind not in ("p", "b", "s"):
        raise UsageError(f"kind must be p, b or s, got {kind!r}")
    width = features.shape[-1]
    kept = max(1, width - round(width * percentile / 100))
    values, places = features.topk(kept, dim=-1)
    before = features.sum(-1, keepdim=True)
    if kind == "b":
        values = (before / kept).expand_as(values)
    elif kind == "s":
        values = values * (before / values.sum(-1, keepdim=True)).exp()
    return torch.zeros_like(features).scatter(-1, places, values)


class Altered(Scorer):
    """Energy of the logits that the model gives altered encoder tokens."""

    reads_inputs = True

    def score(self, view: View) -> Tensor:
        """Return confidences of a view with a linear classifier."""
        if view.weight is None:
            raise UsageError(f"{self.name} reads the logits again: ask model.novelty, or give the classifier's weight")
        return energy(torch.nn.functional.linear(self.alter(view.features), view.weight, view.bias))

    def score_inputs(self, model: Any, inputs: Any) -> Tensor:
        """Return confidences of inputs, or of an output that holds its encoded tokens."""
        encoded = inputs.encoded if isinstance(inputs, Output) else model.encode(inputs)
        if encoded is None:
            raise UsageError(f"{self.name} needs the encoder's tokens: ask about inputs")
        summary = None if encoded.summary is None else self.alter(encoded.summary)
        return energy(model.run(encoded.replace(values=self.alter(encoded.values), summary=summary)).logits)

    def alter(self, features: Tensor) -> Tensor:
        """Return altered features, of any leading shape."""
        raise NotImplementedError


@scorer("react", source="Sun et al., NeurIPS 2021")
class ReAct(Altered):
    """Energy after features are cut off above a percentile of the known cases' features."""

    settings_names = ("percentile",)
    limit: Tensor

    def __init__(self, *, percentile: float = 90.0, features: str = "encoded") -> None:
        super().__init__(features=features)
        if not 0 < percentile <= 100:
            raise UsageError(f"percentile must lie above 0 and at most at 100, got {percentile}")
        self.percentile = percentile
        self.register_buffer("limit", torch.tensor(float("inf")))

    def fit(self, view: View, labels: Tensor) -> ReAct:
        """Learn the limit: the percentile of all features of the known cases, linearly interpolated."""
        flat = view.features.double().flatten().sort().values
        place = self.percentile / 100 * (len(flat) - 1)
        low = int(place)
        high = min(low + 1, len(flat) - 1)
        self.limit = (flat[low] + (flat[high] - flat[low]) * (place - low)).float()
        return self

    def alter(self, features: Tensor) -> Tensor:
        """Return features cut off above the limit."""
        return features.clamp_max(float(self.limit))


@scorer("ash", source="Djurisic et al., ICLR 2023")
class ActivationShaping(Altered):
    """Energy after all but the largest features are set to 0."""

    settings_names = ("percentile", "kind")

    def __init__(self, *, percentile: float = 90.0, kind: Shaping = "s", features: str = "encoded") -> None:
        super().__init__(features=features)
        shaped(torch.ones(1), percentile, kind)  # refuses what cannot be
        self.percentile, self.kind = percentile, kind

    def alter(self, features: Tensor) -> Tensor:
        """Return shaped features."""
        return shaped(features, self.percentile, self.kind)
