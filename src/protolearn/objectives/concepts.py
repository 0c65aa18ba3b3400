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


def softmax_attention(values: Tensor, scores: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return ``(B, K, D)``: the mean of the tokens of a case, weighted for each concept by a softmax of its scores.

    Parameters
    ----------
    values : Tensor
        ``(B, S, D)``.
    scores : Tensor
        ``(B, S, K)``: how much each position speaks for each concept.
    mask : Tensor, optional
        ``(B, S)`` bool, True = real. A case without a real position gives zeros.

    Examples
    --------
    >>> import torch
    >>> softmax_attention(torch.tensor([[[1.0], [3.0]]]), torch.tensor([[[0.0], [0.0]]]))
    tensor([[[2.]]])
    """
    if values.shape[:2] != scores.shape[:2]:
        raise ValueError(f"tokens {tuple(values.shape)} and scores {tuple(scores.shape)} do not fit")
    if mask is not None:
        real = mask.unsqueeze(-1)
        scores = scores.masked_fill(~real, float("-inf")).masked_fill(~mask.any(1)[:, None, None], 0.0)
        values = values.masked_fill(~real, 0.0)
    return scores.softmax(1).transpose(1, 2) @ values
