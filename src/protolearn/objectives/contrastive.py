"""Contrastive terms: a vector is told apart from all others of its batch by what it belongs with.

Vectors ``(N, D)`` are scaled to unit length here. The tables are whole, ``(N, N)``.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def info_nce(first: Tensor, second: Tensor, temperature: float = 1.0) -> Tensor:
    """Return InfoNCE over two views ``(B, D)`` of the same cases: each vector has to find its other view.

    The mean over 2B vectors of the cross-entropy of the other view among all vectors but itself (NT-Xent). 0 without
    a case.

    Source: SimCLR (Chen et al., 2020).

    Examples
    --------
    >>> views = torch.eye(2)
    >>> info_nce(views, views, temperature=0.1).item() < 1e-3
    True
    """
    if first.ndim != 2 or first.shape != second.shape:
        raise ValueError(f"two views must be (B, D) alike, got {tuple(first.shape)} and {tuple(second.shape)}")
    count = len(first)
    if count == 0:
        return (first.sum() + second.sum()) * 0.0
    scores = _scores(torch.cat([first, second]), temperature)
    other = torch.arange(2 * count, device=scores.device).roll(count)
    return F.cross_entropy(scores, other)


def supervised_contrastive(vectors: Tensor, labels: Tensor, temperature: float = 0.07) -> Tensor:
    """Return the supervised contrastive term: a vector is drawn to all others of its label.

    For a vector i, with the others of its label P(i): ``- mean over p in P(i) of log softmax over a != i of
    (x_i . x_a / temperature)`` at p; then the mean over vectors that have such others, 0 where none has. Views of one
    case are rows of one label. Rows labelled -1 take no part.

    Source: Khosla et al., NeurIPS 2020, ``L_out`` (without its constant factor).

    Parameters
    ----------
    vectors, labels : Tensor
        ``(N, D)`` and ``(N,)``.
    temperature : float
        Above 0.

    Examples
    --------
    >>> x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> supervised_contrastive(x, torch.tensor([0, 0, 1])).item() < 1e-3
    True
    >>> supervised_contrastive(x, torch.tensor([0, 1, 2])).item()
    0.0
    """
    if vectors.ndim != 2 or labels.shape != vectors.shape[:1]:
        raise ValueError(f"expected vectors (N, D) and labels (N,), got {tuple(vectors.shape)}, {tuple(labels.shape)}")
    vectors, labels = vectors[labels >= 0], labels[labels >= 0]
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    same = (labels.unsqueeze(1) == labels) & ~itself
    found = same.any(1)
    if not bool(found.any()):
        return vectors.sum() * 0.0
    logs = _scores(vectors, temperature).log_softmax(1).masked_fill(itself, 0.0)
    each = -(logs * same).sum(1) / same.sum(1).clamp_min(1)
    return each[found].mean()


def _scores(vectors: Tensor, temperature: float) -> Tensor:
    """Return cosines over the temperature, a vector with itself left out."""
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    unit = F.normalize(vectors, dim=1)
    itself = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    return (unit @ unit.T / temperature).masked_fill(itself, float("-inf"))
