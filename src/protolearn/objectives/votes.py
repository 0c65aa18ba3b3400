"""Terms for classifiers whose scores are votes of stored cases: probabilities that may be exactly 0."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def log_probabilities(probabilities: Tensor, floor: float = 1e-12) -> Tensor:
    """Return ``log(p + floor)``; a class that nobody voted for gives ``log(floor)``.

    Source: the Nadaraya-Watson head (Wang et al., 2023).

    Examples
    --------
    >>> log_probabilities(torch.tensor([1.0, 0.0])).round(decimals=2)
    tensor([  0.0000, -27.6300])
    """
    # in half precision the floor would be 0
    return (probabilities.to(torch.promote_types(probabilities.dtype, torch.float32)) + floor).log()


def vote_likelihood(probabilities: Tensor, labels: Tensor, present: Tensor, floor: float = 1e-12) -> Tensor:
    """Return the mean of ``-log(p_y + floor)`` over labelled cases whose class could be voted for.

    Parameters
    ----------
    probabilities : Tensor
        ``(B, C)``.
    labels : Tensor
        ``(B,)``, -1 = unlabelled.
    present : Tensor
        ``(B, C)`` or ``(C,)`` bool: classes with a case that may vote. Others say nothing about the network, only that
        they were not drawn.
    floor : float
        Keeps the logarithm finite.

    Examples
    --------
    >>> p, here = torch.tensor([[0.5, 0.5], [1.0, 0.0]]), torch.tensor([True, False])
    >>> vote_likelihood(p, torch.tensor([0, 1]), here).item() == torch.tensor(2.0).log().item()
    True
    """
    known = labels >= 0
    chosen = labels.clamp_min(0).unsqueeze(1)
    counted = known & present.expand(len(labels), -1).gather(1, chosen).squeeze(1)
    terms = -log_probabilities(probabilities.gather(1, chosen).squeeze(1), floor)
    return terms.where(counted, terms.new_zeros(())).sum() / counted.sum().clamp_min(1)


def hardness(probabilities: Tensor, coefficient: float, cap: float = 100.0) -> Tensor:
    """Return ``1 + coefficient * min(-log p, cap)``: how much a case counts whose neighbours give its class ``p``.

    Source: Jia et al., 2021, arXiv 2112.08459; their cap is 100.

    Examples
    --------
    >>> hardness(torch.tensor([1.0, 0.0]), 0.1, cap=10.0)
    tensor([1., 2.])
    """
    return 1 + coefficient * (-probabilities.log()).clamp_max(cap)


def focal(probabilities: Tensor, gamma: float = 2.0) -> Tensor:
    """Return ``(1 - p)^gamma``: cases that their neighbours know well count little (the same source).

    Examples
    --------
    >>> focal(torch.tensor([0.5, 1.0]))
    tensor([0.2500, 0.0000])
    """
    return (gamma * torch.log1p(-probabilities)).exp()


def weighted_cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Return the sum of cross-entropy times weight over labelled cases, divided by their number; 0 where none is.

    Examples
    --------
    >>> weighted_cross_entropy(torch.zeros(2, 2), torch.tensor([0, -1]), torch.tensor([2.0, 9.0])).item() / 2 == (
    ...     torch.tensor(2.0).log().item())
    True
    """
    each = F.cross_entropy(logits, labels, ignore_index=-1, reduction="none")
    return (each * weights).where(labels >= 0, each.new_zeros(())).sum() / (labels >= 0).sum().clamp_min(1)
