"""Hinge terms on scores that are no logits: the right class must lead, by a margin or within a radius."""

from __future__ import annotations

import torch
from torch import Tensor


def margin_loss(scores: Tensor, labels: Tensor, margin: float = 0.025, weights: Tensor | None = None) -> Tensor:
    """Return the mean over labelled cases of ``relu(best other score - own score + margin)``; 0 where there is none.

    ``weights`` ``(B,)``, where given, say how much each case counts in the mean.

    Source: generalised-LVQ style hinge in Saralajew et al., AAAI 2025, for scores in [0, 1]. With one class: 0.

    Examples
    --------
    >>> margin_loss(torch.tensor([[0.75, 0.25], [0.5, 0.5]]), torch.tensor([0, 1]), margin=0.25)
    tensor(0.1250)
    """
    labelled = labels >= 0
    own = torch.nn.functional.one_hot(labels.clamp_min(0), scores.shape[1]).bool()
    right = scores.gather(1, labels.clamp_min(0).unsqueeze(1)).squeeze(1)
    wrong = scores.masked_fill(own, float("-inf")).amax(1)
    return _mean((wrong - right + margin).clamp_min(0.0), labelled, weights)


def robust_margin(radii: Tensor, labels: Tensor, target: float, weights: Tensor | None = None) -> Tensor:
    """Return the mean over labelled cases of ``relu(target - radius)``: certified radii ``(B,)`` below it cost.

    A radius of inf (nothing can change the decision) costs nothing; a negative one says that another class leads.

    Examples
    --------
    >>> robust_margin(torch.tensor([0.5, 2.0, float("inf"), 0.0]), torch.tensor([0, 1, 0, -1]), target=1.0)
    tensor(0.1667)
    """
    return _mean((target - radii).clamp_min(0.0), labels >= 0, weights)


def _mean(costs: Tensor, counted: Tensor, weights: Tensor | None) -> Tensor:
    costs = costs.where(counted, costs.new_zeros(()))
    if weights is None:
        return costs.sum() / counted.sum().clamp_min(1)
    share = weights.to(costs) * counted
    return (costs * share).sum() / share.sum().clamp_min(torch.finfo(costs.dtype).tiny)
