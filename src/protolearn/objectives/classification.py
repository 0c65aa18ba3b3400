"""Terms on logits."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy over labelled cases (label >= 0); 0 where there is none.

    Examples
    --------
    >>> import torch
    >>> cross_entropy(torch.tensor([[0.0, 0.0]]), torch.tensor([1])).item() == torch.tensor(2.0).log().item()
    True
    """
    total = F.cross_entropy(logits, labels, ignore_index=-1, reduction="sum")
    return total / (labels >= 0).sum().clamp_min(1)


def negative_log_likelihood(log_probabilities: Tensor, labels: Tensor) -> Tensor:
    """Return the mean of ``-log p`` of the labels over labelled cases (label >= 0); 0 where there is none.

    Examples
    --------
    >>> import torch
    >>> negative_log_likelihood(torch.tensor([[-2.0, 0.0], [-4.0, 0.0]]), torch.tensor([0, 0]))
    tensor(3.)
    """
    total = F.nll_loss(log_probabilities, labels, ignore_index=-1, reduction="sum")
    return total / (labels >= 0).sum().clamp_min(1)
