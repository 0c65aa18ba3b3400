"""Likelihood of directions under classes that are mixtures of prototypes: how near a case lies to those it belongs to.

N cases, P prototypes, C classes. Every class is a mixture of von Mises-Fisher components of one concentration 1 / T, so
that only products of unit vectors over T are left of the densities.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Reduction = Literal["mean", "sum"]


def soft_prototype_likelihood(
    similarities: Tensor, shares: Tensor, temperature: float, reduction: Reduction = "mean"
) -> Tensor:
    """Return ``logsumexp of s_ip / T over all p  -  sum of A_ip s_ip / T``, over the cases that have a share of any.

    The cross-entropy of the softmax over all prototypes with the shares as its soft target.

    Source: the released code of PALM (Lu et al., ICLR 2024).

    Parameters
    ----------
    similarities : Tensor
        ``(N, P)`` products of unit vectors.
    shares : Tensor
        ``(N, P)``; rows sum to 1, or are 0 for a case that takes no part.
    temperature : float
        T.
    reduction : {"mean", "sum"}
        Over cases.

    Examples
    --------
    >>> loss = soft_prototype_likelihood(torch.zeros(1, 4), torch.tensor([[0.5, 0.5, 0.0, 0.0]]), 0.1)
    >>> loss.exp()
    tensor(4.)
    """
    levels = _levels(similarities, shares, temperature)
    counted = (shares > 0).any(1)
    each = torch.logsumexp(levels, 1) - (shares * levels).sum(1)
    return _reduced(each, counted, reduction)


def mixture_likelihood(
    similarities: Tensor, weights: Tensor, own: Tensor, temperature: float, reduction: Reduction = "mean"
) -> Tensor:
    """Return ``-log( sum of w_ip exp(s_ip / T) over own p / the same sum over all p )``.

    Source: PALM (Lu et al., ICLR 2024), the form of the paper. :func:`weights_by_class` makes the weights.

    Parameters
    ----------
    similarities, temperature, reduction
        As for :func:`soft_prototype_likelihood`.
    weights : Tensor
        ``(N, P)`` not negative: how much of its class each prototype is, for this case.
    own : Tensor
        ``(N, P)`` bool; a case that owns no prototype with a weight takes no part.

    Examples
    --------
    >>> own = torch.tensor([[True, True, False, False]])
    >>> mixture_likelihood(torch.zeros(1, 4), torch.full((1, 4), 0.5), own, 0.1).exp()
    tensor(2.)
    """
    levels = _levels(similarities, weights, temperature)
    counted = (own & (weights > 0)).any(1)
    weighed = levels + weights.log()
    inside = weighed.masked_fill(~own, float("-inf"))
    # a case that does not count gets zeros in place of nothing but -inf, whose gradient would be NaN
    weighed, inside = (table.where(counted.unsqueeze(1), 0.0) for table in (weighed, inside))
    return _reduced(torch.logsumexp(weighed, 1) - torch.logsumexp(inside, 1), counted, reduction)


def weights_by_class(shares: Tensor, owner: Tensor, k: int) -> Tensor:
    """Return ``(N, P)``: in each class by itself the k largest shares of a case, scaled to sum to 1; the others are 0.

    Parameters
    ----------
    shares : Tensor
        ``(N, P)``, not negative.
    owner : Tensor
        ``(P,)`` int64 class of each prototype; -1 = of none, whose weight is 0.
    k : int
        At least 1.

    Examples
    --------
    >>> weights_by_class(torch.tensor([[0.3, 0.1, 0.2, 0.4]]), torch.tensor([0, 0, 1, 1]), 1)
    tensor([[1., 0., 0., 1.]])
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    classes = int(owner.max()) + 1 if len(owner) else 0
    sizes = torch.bincount(owner + 1, minlength=classes + 1)[1:]
    width = int(sizes.max()) if classes else 0
    if width == 0:
        return torch.zeros_like(shares)
    # a table (C, most of a class) of the columns of each class, the free places pointing to one column more
    order = owner.argsort(stable=True)
    order = order[owner[order] >= 0]
    named = owner[order]
    place = torch.arange(len(order), device=owner.device) - (sizes.cumsum(0) - sizes)[named]
    table = torch.full((classes, width), shares.shape[1], dtype=torch.long, device=owner.device)
    table[named, place] = order
    padded = torch.cat([shares, shares.new_zeros(len(shares), 1)], 1)
    each = padded[:, table]  # (N, C, width)
    best = each.topk(min(k, width), dim=2)
    kept = torch.zeros_like(each).scatter(2, best.indices, best.values)
    total = kept.sum(2, keepdim=True)
    kept = kept / total.where(total > 0, 1.0)
    return torch.zeros_like(padded).index_copy(1, order, kept[:, named, place])[:, :-1]


def _levels(similarities: Tensor, weights: Tensor, temperature: float) -> Tensor:
    if similarities.ndim != 2 or weights.shape != similarities.shape:
        raise ValueError(f"expected two tables (N, P), got {tuple(similarities.shape)} and {tuple(weights.shape)}")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    return similarities / temperature


def _reduced(each: Tensor, counted: Tensor, reduction: Reduction) -> Tensor:
    total = each.where(counted, 0.0).sum()
    return total if reduction == "sum" else total / counted.sum().clamp_min(1)
