"""Contrast of cases with prototypes, each prototype with a temperature of its own: loose clusters pull less hard.

N cases, B of a batch, P prototypes, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def density_temperatures(
    values: Tensor, centres: Tensor, rows: Tensor, temperature: float = 1.0, *, smooth: float = 10.0
) -> Tensor:
    """Return ``(P,)`` temperatures: loose and small clusters get larger ones, and their mean is ``temperature``.

    ``d_k = mean over its cases of |x - c_k| / log(n_k + smooth)``; a cluster of one case or none takes the largest
    ``d``; then all are clipped to their 10th and 90th percentile and divided by their mean.

    Source: prototypical contrastive learning (Li et al., ICLR 2021), as GPC (Zhao et al., ICCV 2023) has it.

    Parameters
    ----------
    values, centres : Tensor
        ``(N, D)`` and ``(P, D)``.
    rows : Tensor
        ``(N,)`` int64 cluster of each case, -1 = none.
    temperature : float
        Above 0.
    smooth : float
        Above 1, so that the logarithm of a small cluster stays above 0.

    Notes
    -----
    Where no cluster of two cases has any spread, all temperatures are ``temperature``.

    Examples
    --------
    >>> x = torch.tensor([[0.0], [2.0], [9.0], [9.2]])
    >>> found = density_temperatures(x, torch.tensor([[1.0], [9.1]]), torch.tensor([0, 0, 1, 1]))
    >>> bool(found[0] > found[1]), round(found.mean().item(), 4)
    (True, 1.0)
    """
    if rows.shape != values.shape[:1] or centres.ndim != 2 or centres.shape[1:] != values.shape[1:]:
        raise ValueError(
            f"expected cases (N, D), centres (P, D) and clusters (N,), got {tuple(values.shape)}, "
            f"{tuple(centres.shape)} and {tuple(rows.shape)}"
        )
    if not temperature > 0 or not smooth > 1:
        raise ValueError(f"temperature must be above 0 and smooth above 1, got {temperature} and {smooth}")
    kept = rows >= 0
    values, rows = values[kept], rows[kept]
    gaps = torch.linalg.vector_norm(values - centres[rows], dim=1)
    sizes = torch.bincount(rows, minlength=len(centres))
    means = gaps.new_zeros(len(centres)).index_add_(0, rows, gaps) / sizes.clamp_min(1)
    spread = torch.where(sizes > 1, means / (sizes + smooth).log(), 0.0)
    most = spread.max()
    if not float(most) > 0:
        return torch.full_like(spread, temperature)
    spread = torch.where(sizes > 1, spread, most)
    low, high = torch.quantile(spread, spread.new_tensor([0.1, 0.9]))
    spread = spread.clamp(low, high)
    return temperature * spread / spread.mean()


def prototype_contrast(vectors: Tensor, prototypes: Tensor, rows: Tensor, temperatures: Tensor | float) -> Tensor:
    """Return the mean cross-entropy of each case's own prototype under ``softmax(x . c_k / t_k)``.

    Source: GPC, ``L_pcl``, of one view; with two views of as many cases, rows stacked, this is the mean of both.

    Parameters
    ----------
    vectors, prototypes : Tensor
        ``(B, D)`` and ``(P, D)``, both scaled to unit length here. Prototypes are held fixed.
    rows : Tensor
        ``(B,)`` int64; -1 = takes no part. 0 where none takes part.
    temperatures : Tensor or float
        ``(P,)``, above 0.

    Examples
    --------
    >>> prototype_contrast(torch.eye(2), torch.eye(2), torch.tensor([0, 1]), 0.05).item() < 1e-6
    True
    """
    if vectors.ndim != 2 or rows.shape != vectors.shape[:1]:
        raise ValueError(f"expected vectors (B, D) and rows (B,), got {tuple(vectors.shape)} and {tuple(rows.shape)}")
    scores = F.normalize(vectors, dim=1) @ F.normalize(prototypes.detach(), dim=1).T / temperatures
    return F.cross_entropy(scores, rows, ignore_index=-1, reduction="sum") / (rows >= 0).sum().clamp_min(1)
