"""What it takes to flip a decision whose scores are a ledger: more of one prototype, or some prototypes fewer.

Both answers are exact for heads that are linear in their evidence (``Head.linear``). B cases, C classes, P prototypes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


def change_needed(logits: Tensor, weights: Tensor, targets: Tensor) -> Tensor:
    """Return how much more evidence of one prototype puts a class ahead of all others, everything else as it is.

    With delta more of prototype p the scores are ``logit_c + delta w_cp``; the target is ahead of class c from
    ``(logit_c - logit_t) / (w_tp - w_cp)`` on where its weight is larger, and up to there where it is smaller.

    Parameters
    ----------
    logits : Tensor
        ``(B, C)``.
    weights : Tensor
        ``(B, C, K)`` weights of K prototypes for each case.
    targets : Tensor
        ``(B,)`` int64.

    Returns
    -------
    Tensor
        ``(B, K)`` in double precision, at least 0: beyond it the target is ahead, at it there is a tie. NaN where no
        amount does it: the target gains no more than the class that leads, or another class overtakes first.

    Examples
    --------
    >>> scores, weights = torch.tensor([[2.0, 1.0]]), torch.tensor([[[0.0, 1.0], [0.5, 1.0]]])
    >>> change_needed(scores, weights, torch.tensor([1]))
    tensor([[2., nan]], dtype=torch.float64)
    """
    logits, weights = logits.double(), weights.double()
    at = targets.view(-1, 1, 1).expand(-1, 1, weights.shape[2])
    slope = weights.gather(1, at) - weights  # (B, C, K)
    gap = (logits - logits.gather(1, targets.unsqueeze(1))).unsqueeze(2).expand_as(slope)
    own = torch.zeros_like(slope, dtype=torch.bool).scatter(1, at, True)
    from_here = torch.where(slope > 0, gap / slope, float("-inf")).amax(1).clamp_min(0.0)
    up_to = torch.where(slope < 0, gap / slope, float("inf")).amin(1)
    never = ((slope == 0) & (gap >= 0) & ~own).any(1)
    return torch.where((from_here < up_to) & ~never, from_here, float("nan"))


class SmallestSet(NamedTuple):
    """The fewest prototypes without which another class is ahead of the predicted one.

    ``order`` ``(B, P)`` lists prototypes by how much more they speak for the predicted class than for the ``rival``
    ``(B,)``; the first ``size`` ``(B,)`` of them are the set. Size -1: no set does it.
    """

    order: Tensor
    size: Tensor
    rival: Tensor


def smallest_removal(ledger: Tensor, logits: Tensor, predicted: Tensor, rivals: Tensor | None = None) -> SmallestSet:
    """Return the smallest set of prototypes whose contributions, taken away, put another class ahead.

    For one rival the best order is by the difference of contributions, the largest first, and its shortest sufficient
    beginning is the smallest set of all; the rival with the smallest is named, of equals the one put furthest ahead.

    Parameters
    ----------
    ledger : Tensor
        ``(B, C, P)`` contributions, 0 for prototypes out of use.
    logits : Tensor
        ``(B, C)``.
    predicted : Tensor
        ``(B,)`` int64.
    rivals : Tensor, optional
        ``(B, C)`` bool: classes that may take over; all others by default.

    Examples
    --------
    >>> ledger = torch.tensor([[[3.0, 1.0, 2.0], [0.0, 2.0, 1.0]]])
    >>> found = smallest_removal(ledger, ledger.sum(2), torch.tensor([0]))
    >>> found.order[0, : found.size[0]].tolist(), found.rival.tolist()
    ([0, 2], [1])
    """
    ledger, logits = ledger.double(), logits.double()
    classes, prototypes = ledger.shape[1:]
    others = torch.arange(classes, device=ledger.device) != predicted.unsqueeze(1)
    rivals = others if rivals is None else others & rivals
    own = ledger.gather(1, predicted.view(-1, 1, 1).expand(-1, 1, prototypes))
    gain = own - ledger  # what taking a prototype away brings the rival, (B, C, P)
    ahead = logits.gather(1, predicted.unsqueeze(1)) - logits  # (B, C)
    ranked = gain.sort(dim=2, descending=True, stable=True)
    lead = ranked.values.cumsum(2) - ahead.unsqueeze(2)
    enough = (lead > 0) & (ranked.values > 0) & rivals.unsqueeze(2)
    if prototypes == 0:
        none = torch.full_like(predicted, -1)
        return SmallestSet(ranked.indices[:, 0], none, none)
    first = torch.where(enough.any(2), enough.to(torch.uint8).argmax(2), prototypes)  # (B, C)
    slack = lead.gather(2, first.clamp_max(prototypes - 1).unsqueeze(2)).squeeze(2)
    fewest = first.amin(1, keepdim=True)
    rival = slack.masked_fill(first != fewest, float("-inf")).argmax(1)
    order = ranked.indices.gather(1, rival.view(-1, 1, 1).expand(-1, 1, prototypes)).squeeze(1)
    size = torch.where(fewest.squeeze(1) < prototypes, fewest.squeeze(1) + 1, -1)
    return SmallestSet(order, size, torch.where(size > 0, rival, -1))
