"""Terms on slots that choose from a shared pool of prototypes."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def slot_orthogonality(slots: Tensor) -> Tensor:
    """Return the mean over slots ``(C, P, K)`` of the summed cosines with the other slots of the class.

    Source: ProtoPool (Rymarczyk et al., 2022): slots of a class shall choose different prototypes. The formula is
    written for the distributions; the released code takes the scores behind them, where the term can fall below 0.

    Examples
    --------
    >>> import torch
    >>> slot_orthogonality(torch.tensor([[[1.0, 1.0], [0.0, 0.0]]])), slot_orthogonality(torch.eye(2).unsqueeze(0))
    (tensor(1.), tensor(0.))
    """
    unit = F.normalize(slots, dim=1)
    cosines = unit.transpose(1, 2) @ unit
    return (cosines.sum() - cosines.diagonal(dim1=1, dim2=2).sum()) / (slots.shape[0] * slots.shape[2])
