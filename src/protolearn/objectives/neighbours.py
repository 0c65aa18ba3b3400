"""Terms on the neighbours of a case within its batch."""

from __future__ import annotations

import torch
from torch import Tensor


def nearest_class_share(vectors: Tensor, labels: Tensor) -> Tensor:
    """Return the mean over cases of ``d_own / (d_own + d_other)``: the nearest of the own class against that of others.

    ``d`` are distances (not squared) within the batch; 0.5 where both lie equally far, 0 where the own class is on the
    spot. A case without a label, without another of its class, or without one of another class does not count.

    Source: the idea of scoring inter-class nearest neighbours (ICNN); the form is ours.

    Parameters
    ----------
    vectors : Tensor
        ``(B, D)``.
    labels : Tensor
        ``(B,)``, -1 = unlabelled.

    Examples
    --------
    >>> line = torch.tensor([[0.0], [1.0], [4.0], [5.0]])
    >>> round(nearest_class_share(line, torch.tensor([0, 0, 1, 1])).item(), 4)
    0.225
    """
    if vectors.ndim != 2 or labels.shape != vectors.shape[:1]:
        raise ValueError(f"expected (B, D) and (B,), got {tuple(vectors.shape)} and {tuple(labels.shape)}")
    squared = (vectors.unsqueeze(1) - vectors.unsqueeze(0)).square().sum(-1)
    known = labels >= 0
    pair = known.unsqueeze(1) & known.unsqueeze(0) & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    same = labels.unsqueeze(1) == labels.unsqueeze(0)
    own = squared.masked_fill(~(pair & same), float("inf")).amin(1)
    other = squared.masked_fill(~(pair & ~same), float("inf")).amin(1)
    counted = ~(own.isinf() | other.isinf())  # nan counts: it must surface
    tiny = torch.finfo(vectors.dtype).tiny  # the root has no slope at 0
    near, far = own[counted].clamp_min(tiny).sqrt(), other[counted].clamp_min(tiny).sqrt()
    return (near / (near + far)).sum() / counted.sum().clamp_min(1)
