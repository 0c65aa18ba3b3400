"""Whether the ledger's entries, and the regions that maps point at, carry the score they are said to carry.

Two questions. Do the entries add up to the score? And when a prototype's region is taken out of the picture, does the
score fall by what the entry promised? B cases, P prototypes, C classes, n pairs of a case and a prototype.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from protolearn.audit.blanking import covered, per_call
from protolearn.audit.look import Look
from protolearn.audit.subject import Subject
from protolearn.errors import UsageError


def additivity_gap(look: Look, offset: Tensor) -> Tensor:
    """Return ``(B,)``: the largest difference, over classes, between the score and offset plus sum of entries.

    Parameters
    ----------
    look : Look
        What the subject put out.
    offset : Tensor
        ``(C,)`` the part of each score that no prototype brings.

    Examples
    --------
    >>> logits = torch.tensor([[3.0, 1.0]])
    >>> look = Look(logits, logits.softmax(1), torch.ones(1, 1), None, lambda part: torch.tensor([[[2.0], [1.0]]]))
    >>> additivity_gap(look, torch.tensor([0.5, 0.0]))
    tensor([0.5000], dtype=torch.float64)
    """
    gaps = [
        (look.logits[part].double() - offset.double() - table.double().sum(2)).abs().amax(1)
        for part, table in look.ledgers()
    ]
    return torch.cat(gaps) if gaps else look.logits.new_zeros(0, dtype=torch.float64)


def leading(contributions: Tensor, able: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Return case and prototype ``(n,)`` of each case's largest contributions above 0, at most ``most`` a case.

    Parameters
    ----------
    contributions : Tensor
        ``(B, P)``.
    able : Tensor
        ``(B, P)`` bool: pairs that may be chosen.
    most : int
        At least 1.

    Examples
    --------
    >>> leading(torch.tensor([[1.0, 3.0, -2.0], [-1.0, 0.0, 5.0]]), torch.ones(2, 3) > 0, 2)
    (tensor([0, 0, 1]), tensor([1, 0, 2]))
    """
    if most < 1:
        raise UsageError(f"at least one prototype a case is looked at, got {most}")
    size = contributions.masked_fill(~able | contributions.isnan(), 0.0)
    best = size.topk(min(most, size.shape[1]), 1)
    case, rank = torch.nonzero(best.values > 0, as_tuple=True)
    return case, best.indices[case, rank]


def cell_boxes(cells: Tensor, grid: Sequence[int], size: Sequence[int], reach: int = 0) -> Tensor:
    """Return ``(n, 4)`` int64: rows y0 to y1 and columns x0 to x1, ends exclusive, of cells and their neighbours.

    Parameters
    ----------
    cells : Tensor
        ``(n, 2)`` row and column on the map.
    grid, size : sequence of int
        ``(h, w)`` cells and ``(H, W)`` pixels.
    reach : int
        Cells further in every direction, as far as the picture goes.

    Examples
    --------
    >>> cell_boxes(torch.tensor([[0, 1]]), (2, 2), (8, 8)).tolist()
    [[0, 4, 4, 8]]
    """
    sides = []
    for axis in (0, 1):
        step = size[axis] / grid[axis]
        low = ((cells[:, axis] - reach).clamp_min(0) * step).floor()
        high = ((cells[:, axis] + reach + 1).clamp_max(grid[axis]) * step).ceil()
        sides += [low, high]
    return torch.stack(sides, 1).long()


@dataclass(frozen=True, eq=False)
class Drops:
    """What regions were worth, ``(n,)`` a pair.

    Attributes
    ----------
    score : Tensor
        How far the class's score fell.
    own : Tensor
        How far the prototype's own entry in it fell.
    """

    score: Tensor
    own: Tensor


@torch.no_grad()
def region_drops(
    subject: Subject,
    inputs: Tensor,
    blank: Tensor,
    look: Look,
    targets: Tensor,
    pairs: tuple[Tensor, Tensor],
    boxes: Tensor,
    *,
    at_once: int | None = None,
) -> Drops:
    """Cover one box a pair and see how far the score and the prototype's entry fall.

    Parameters
    ----------
    subject : Subject
        The model, in evaluation.
    inputs, blank : Tensor
        ``(B, C, H, W)`` pictures, and what a covered place shows; not changed.
    look : Look
        What the subject put out for them.
    targets : Tensor
        ``(B,)`` int64 the class of each case.
    pairs : (Tensor, Tensor)
        Case and prototype ``(n,)``.
    boxes : Tensor
        ``(n, 4)``.
    at_once : int, optional
        Pictures in one call of the subject; few large ones on a processor by default.
    """
    case, prototype = pairs
    before, entries = look.logits.gather(1, targets.unsqueeze(1)).squeeze(1), look.toward(targets)
    score, own = [], []
    for i in torch.arange(len(case), device=case.device).split(per_call(inputs, at_once)):
        b, p = case[i], prototype[i]
        again = subject.look(covered(inputs[b], blank[b], boxes[i]), maps=False)
        score.append(before[b] - again.logits.gather(1, targets[b].unsqueeze(1)).squeeze(1))
        own.append(entries[b, p] - again.toward(targets[b]).gather(1, p.unsqueeze(1)).squeeze(1))
    none = before.new_zeros(0)
    return Drops(torch.cat(score) if score else none, torch.cat(own) if own else none)
