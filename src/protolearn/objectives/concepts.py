"""Terms on named concepts: several of K may be present in a case, and some may be unknown."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def concept_cross_entropy(logits: Tensor, concepts: Tensor) -> Tensor:
    """Return the mean binary cross-entropy over the known concepts of all cases; 0 where none is known.

    Parameters
    ----------
    logits : Tensor
        ``(B, K)``.
    concepts : Tensor
        ``(B, K)``: 1 present, 0 absent (or a share between); negative or NaN = unknown, and left out.

    Examples
    --------
    >>> import torch
    >>> concept_cross_entropy(torch.zeros(1, 3), torch.tensor([[1.0, 0.0, -1.0]])).item() == torch.tensor(2.0).log()
    tensor(True)
    """
    if logits.shape != concepts.shape:
        raise ValueError(f"logits {tuple(logits.shape)} and concepts {tuple(concepts.shape)} do not fit")
    known = concepts >= 0  # NaN compares false
    wanted = concepts.masked_fill(~known, 0.0).to(logits)
    each = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    return each.where(known, each.new_zeros(())).sum() / known.sum().clamp_min(1)
