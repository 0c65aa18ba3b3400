"""Contrast within a batch: rows of one group together, all others apart; in memory that does not grow with the square.

With labels as groups it is the supervised contrastive loss, with one group for the views of each case NT-Xent (InfoNCE
within a batch), over prototypes a contrast of classes. N rows, D width.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_BYTES = 8 * 2**20
"""How large a table of pairs may be; a few of its size exist at a time."""

Alone = Literal["left_out", "itself"]


def group_contrast(
    vectors: Tensor,
    groups: Tensor,
    temperature: float,
    *,
    against: Literal["all", "others"] = "all",
    alone: Alone = "left_out",
    anchors: Tensor | None = None,
    budget: int | None = None,
) -> Tensor:
    """Return the mean over rows of ``logsumexp of s_ia over a  -  mean of s_ip over p``, ``s = vectors vectors' / T``.

    ``p`` runs over the other rows of the group of ``i``, ``a`` over all other rows, or over those of other groups.

    Source: Khosla et al., NeurIPS 2020 (the sum outside the logarithm); with one positive a row it is the loss of Chen
    et al., ICML 2020.

    Parameters
    ----------
    vectors : Tensor
        ``(N, D)``, compared as they are: of unit length, where cosines are meant.
    groups : Tensor
        ``(N,)`` int64; rows of group -1 take no part at all.
    temperature : float
        T.
    against : {"all", "others"}
        What is pushed away. ``others`` leaves the row's own group out of the logarithm; a row without any other group
        is then left out of the mean.
    alone : {"left_out", "itself"}
        A row that is the only one of its group is no anchor; or it is its own positive, which adds a constant
        (``s_ii``) and pushes it from all others.
    anchors : Tensor, optional
        ``(N,)`` bool: rows whose terms are added up. What a split of the rows gives adds up to the whole, so that
        processes can share the work.
    budget : int, optional
        Bytes of a table of pairs; rows are taken in blocks that fit.

    Returns
    -------
    Tensor
        A scalar; 0 where no row is an anchor. The gradient is worked out on the way, block by block, where it is asked
        for; there is no second derivative.

    Notes
    -----
    A block takes three matrix products. Peak memory is a few blocks and twice ``vectors``.

    Examples
    --------
    >>> views = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    >>> round(group_contrast(views, torch.tensor([0, 1, 0, 1]), 1.0).item(), 4)  # log(e + 2) - 1
    0.5514
    """
    if vectors.ndim != 2 or groups.shape != vectors.shape[:1]:
        raise ValueError(f"expected (N, D) and (N,), got {tuple(vectors.shape)} and {tuple(groups.shape)}")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    if anchors is not None and (anchors.shape != groups.shape or anchors.dtype != torch.bool):
        raise ValueError(f"anchors must be bool {tuple(groups.shape)}, got {anchors.dtype} {tuple(anchors.shape)}")
    vectors = vectors.to(torch.promote_types(vectors.dtype, torch.float32))
    real = groups >= 0
    rows = vectors[real]
    _, named, sizes = torch.unique(groups[real], return_inverse=True, return_counts=True)
    positives = sizes[named] - 1
    counted = positives > 0 if alone == "left_out" else positives >= 0
    most = len(named) - 1 if against == "others" else len(named)
    counted = counted & (sizes[named] <= most) & (len(named) > 1)
    mine = counted if anchors is None else counted & anchors[real]
    task = _Task(
        named, positives, torch.nonzero(mine).squeeze(1), 1.0 / temperature, against == "others",
        CHUNK_BYTES if budget is None else budget,
    )  # fmt: skip
    total: Tensor = _Contrast.apply(rows, task)
    mean: Tensor = total / counted.sum().clamp_min(1)
    return mean


class _Task(NamedTuple):
    groups: Tensor
    """``(N,)`` from 0."""
    positives: Tensor
    """``(N,)`` how many other rows a row's group has."""
    anchors: Tensor
    """Row numbers."""
    scale: float
    others: bool
    budget: int


class _Contrast(torch.autograd.Function):
    """The sum over anchors, with its gradient."""

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, task: _Task) -> Tensor:
        gradient = torch.zeros_like(vectors) if ctx.needs_input_grad[0] else None
        total = vectors.new_zeros(())
        for block in torch.split(task.anchors, max(1, task.budget // max(1, vectors.element_size() * len(vectors)))):
            total += _block(vectors, block, task, gradient)
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.saved_tensors[0] * gradients[0], None


def _block(vectors: Tensor, block: Tensor, task: _Task, gradient: Tensor | None) -> Tensor:
    """Return the sum of the terms of some anchors, and add their gradient by all vectors."""
    part = vectors[block]
    scores = torch.mm(part, vectors.T).mul_(task.scale)
    same = task.groups[block].unsqueeze(1) == task.groups
    places = torch.arange(len(block), device=block.device)
    itself = scores[places, block]
    same[places, block] = False
    many = task.positives[block].to(scores)
    alone = many == 0
    drawn = torch.where(same, scores, 0.0).sum(1) / many.clamp_min(1) + itself * alone
    scores[places, block] = float("-inf")
    if task.others:
        scores.masked_fill_(same, float("-inf"))
    levels = torch.logsumexp(scores, 1)
    if gradient is not None:
        pull = scores.sub_(levels.unsqueeze(1)).exp_()
        pull.sub_(same / many.clamp_min(1).unsqueeze(1)).mul_(task.scale)
        gradient.index_add_(0, block, pull @ vectors)
        gradient.addmm_(pull.T, part)
    return (levels - drawn).sum()
