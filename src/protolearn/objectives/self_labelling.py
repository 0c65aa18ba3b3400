"""Terms by which predictions on unlabelled cases teach themselves: targets, their cross-entropy, and against collapse.

Logits are ``(B, K)`` over K prototypes or classes, before any temperature.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


@torch.no_grad()
def adaptive_targets(logits: Tensor, hard: float, temperature: float = 0.05) -> Tensor:
    """Return pseudo-labels ``(B, K)``: the surest cases get a single class, the others the sharpened prediction itself.

    How sure a case is is the ratio of its two largest probabilities. ``int(hard * B)`` cases get a one-hot target, of
    equally sure ones the first.

    Source: ProtoGCD (Ma et al., 2025), dual-level adaptive pseudo-labels.

    Parameters
    ----------
    logits : Tensor
        ``(B, K)``.
    hard : float
        From 0 (none is hard) to 1 (all are).
    temperature : float
        Of the sharpened prediction.

    Examples
    --------
    >>> adaptive_targets(torch.tensor([[1.0, 0.0], [0.1, 0.0]]), 0.5, 1.0)
    tensor([[1.0000, 0.0000],
            [0.5250, 0.4750]])
    """
    if not 0 <= hard <= 1 or not temperature > 0:
        raise ValueError(f"hard must lie between 0 and 1 and temperature be positive, got {hard} and {temperature}")
    soft = (logits / temperature).softmax(1)
    if logits.shape[1] < 2:
        return soft
    top = soft.topk(2, dim=1).values
    sure = top[:, 0] / (top[:, 1] + 1e-6)
    chosen = sure.argsort(descending=True, stable=True)[: int(hard * len(logits))]
    targets = soft.clone()
    targets[chosen] = F.one_hot(soft[chosen].argmax(1), logits.shape[1]).to(soft)
    return targets


def cross_view(first: Tensor, second: Tensor, hard: float, *, student: float = 0.1, teacher: float = 0.05) -> Tensor:
    """Return how far each view's prediction is from the pseudo-labels of the other: cross-entropy, both ways, the mean.

    The targets carry no gradient. 0 without a case.

    Source: ProtoGCD (Ma et al., 2025), ``L_dapl``.

    Parameters
    ----------
    first, second : Tensor
        ``(B, K)`` logits of two views.
    hard : float
        Share of hard pseudo-labels in each view, see :func:`adaptive_targets`.
    student, teacher : float
        Temperatures of prediction and pseudo-label.

    Examples
    --------
    >>> sure = torch.tensor([[1.0, -1.0]])
    >>> cross_view(sure, sure, 1.0).item() < 1e-6
    True
    """
    if first.ndim != 2 or first.shape != second.shape:
        raise ValueError(f"two views must be (B, K) alike, got {tuple(first.shape)} and {tuple(second.shape)}")
    if len(first) == 0:
        return (first.sum() + second.sum()) * 0.0

    def one_way(predicted: Tensor, teaching: Tensor) -> Tensor:
        targets = adaptive_targets(teaching, hard, teacher)
        return -(targets * (predicted / student).log_softmax(1)).sum(1).mean()

    return (one_way(first, second) + one_way(second, first)) / 2


def uneven_use(logits: Tensor, temperature: float = 0.1) -> Tensor:
    """Return ``log K - H(mean prediction)``: 0 where all K are predicted equally often, ``log K`` where only one is.

    Minimised, it keeps predictions from collapsing onto a few. It takes classes to be of equal size. 0 without a case.

    Examples
    --------
    >>> uneven_use(torch.eye(3)).abs().item() < 1e-6
    True
    """
    if len(logits) == 0:
        return logits.sum() * 0.0
    logs = (logits / temperature).log_softmax(1)
    mean = torch.logsumexp(logs, 0) - math.log(len(logits))  # of a share that is 0 the logarithm is still finite
    return math.log(logits.shape[1]) + (mean.exp() * mean).sum()


def crowding(vectors: Tensor, temperature: float = 0.1) -> Tensor:
    """Return how close unit vectors ``(K, D)`` lie: the mean over k of ``log mean over j != k of exp(cos / T)``.

    Minimised, it drives prototypes apart, the closest ones most. 0 where there is only one.

    Source: ProtoGCD (Ma et al., 2025), ``L_sep``; the form is that of dispersion in hyperspherical embeddings.

    Examples
    --------
    >>> crowding(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), 1.0).item()
    -1.0
    """
    if len(vectors) < 2:
        return vectors.sum() * 0.0
    unit = F.normalize(vectors, dim=1)
    itself = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    table = (unit @ unit.T / temperature).masked_fill(itself, float("-inf"))
    return (torch.logsumexp(table, 1) - math.log(len(unit) - 1)).mean()
