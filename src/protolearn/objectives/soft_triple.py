"""Several prototypes a group, and a vector that should lie near one of its own group's: contrast with a margin.

N vectors ``(N, D)``, P prototypes ``(P, D)``, G groups (classes, concepts); ``membership (P,)`` says the group of each
prototype.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def shares(similarities: Tensor, membership: Tensor, groups: int, sharpness: float) -> Tensor:
    """Return how much each prototype answers for its group: a softmax over the group's members.

    Parameters
    ----------
    similarities : Tensor
        ``(N, P)``; -inf for a prototype that does not count.
    membership : Tensor
        ``(P,)`` int64 in 0 to ``groups`` - 1; -1 = of no group.
    groups : int
        G.
    sharpness : float
        Of the softmax: 0 shares equally, large gives all to the nearest.

    Returns
    -------
    Tensor
        ``(N, P)``; the shares of a group sum to 1, those of a group without a usable member are 0.

    Examples
    --------
    >>> shares(torch.tensor([[0.5, 0.5, 9.0]]), torch.tensor([0, 0, 1]), 2, sharpness=10.0)
    tensor([[0.5000, 0.5000, 1.0000]])
    """
    if not sharpness >= 0:
        raise ValueError(f"sharpness must not be negative, got {sharpness}")
    inside = F.one_hot(membership + 1, groups + 1)[:, 1:].bool()  # (P, G)
    member = inside.any(1) & ~torch.isneginf(similarities)
    level = torch.where(member, sharpness * similarities.masked_fill(~member, 0.0), float("-inf"))
    index = membership.clamp_min(0).expand_as(level)
    empty = level.new_full((len(level), groups), float("-inf"))
    top = empty.scatter_reduce(1, index, level.detach(), "amax")
    top = top.masked_fill(torch.isneginf(top), 0.0)  # a group without members
    weight = torch.where(member, (level - top.gather(1, index)).exp(), 0.0)
    total = torch.zeros_like(empty).scatter_add(1, index, weight)
    return weight / total.gather(1, index).clamp_min(torch.finfo(total.dtype).tiny)


def group_similarity(similarities: Tensor, membership: Tensor, groups: int, sharpness: float) -> Tensor:
    """Return ``(N, G)``: the mean similarity to a group's prototypes, weighted by :func:`shares`.

    -inf for a group that has no usable member.

    Examples
    --------
    >>> group_similarity(torch.tensor([[1.0, 0.0, 0.5]]), torch.tensor([0, 0, 1]), 2, sharpness=0.0)
    tensor([[0.5000, 0.5000]])
    """
    part = shares(similarities, membership, groups, sharpness)
    index = membership.clamp_min(0).expand_as(part)
    known = similarities.masked_fill(torch.isneginf(similarities), 0.0)  # 0 times -inf would be nan
    mean = part.new_zeros(len(part), groups).scatter_add(1, index, part * known)
    present = part.new_zeros(len(part), groups).scatter_add(1, index, part.detach()) > 0
    return mean.masked_fill(~present, float("-inf"))


def soft_triple(
    vectors: Tensor,
    prototypes: Tensor,
    membership: Tensor,
    targets: Tensor,
    groups: int,
    *,
    sharpness: float,
    scale: float,
    margin: float,
    usable: Tensor | None = None,
) -> Tensor:
    """Return the mean over vectors of the margin contrast of their own group with the others.

    ``-log(exp(scale (s_own - margin)) / (exp(scale (s_own - margin)) + sum over others exp(scale s)))`` with ``s`` the
    :func:`group_similarity` of cosines.

    Source: SoftTriple (Qian et al., 2019) without its regulariser.

    Parameters
    ----------
    vectors, prototypes : Tensor
        ``(N, D)`` and ``(P, D)``; only their directions count.
    membership : Tensor
        ``(P,)`` group of each prototype, -1 = none.
    targets : Tensor
        ``(N,)`` group of each vector; -1 leaves it out.
    groups : int
        G.
    sharpness, scale, margin : float
        As above.
    usable : Tensor, optional
        ``(P,)`` bool.

    Returns
    -------
    Tensor
        A scalar; 0 where no vector counts. A vector whose own group has no usable prototype does not count.

    Examples
    --------
    >>> far, near = torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]])
    >>> how = dict(groups=2, sharpness=10.0, scale=10.0, margin=0.1)
    >>> args = torch.eye(2), torch.tensor([0, 1]), torch.tensor([0])
    >>> bool(soft_triple(near, *args, **how) < soft_triple(far, *args, **how))
    True
    """
    cosines = F.normalize(vectors, dim=-1) @ F.normalize(prototypes, dim=-1).T
    if usable is not None:
        cosines = cosines.masked_fill(~usable, float("-inf"))
    similar = group_similarity(cosines, membership, groups, sharpness)
    own = F.one_hot(targets + 1, groups + 1)[:, 1:].bool()
    counted = (own & ~torch.isneginf(similar)).any(1)
    levels = (scale * (similar - margin * own.to(similar)))[counted]
    if len(levels) == 0:
        return vectors.sum() * 0.0
    return F.cross_entropy(levels, targets[counted])
