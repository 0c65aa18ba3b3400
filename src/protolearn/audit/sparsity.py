"""How much a person has to read: prototypes used at all, prototypes in one decision, and decisions not taken."""

from __future__ import annotations

import torch
from torch import Tensor

from protolearn.core.heads import nothing_scores
from protolearn.core.matching import chunk_rows
from protolearn.core.model import PrototypeModel
from protolearn.structures import Output


@torch.no_grad()
def local_size(out: Output, least: float = 1e-3) -> Tensor:
    """Return ``(B,)`` how many prototypes move the predicted score of each case by more than ``least``.

    Source: the local explanation size of PIP-Net (Nauta et al., CVPR 2023), for any head with a ledger.
    """
    predicted = out.logits.argmax(1)
    counts = []
    rows = chunk_rows(4 * out.logits.shape[1] * out.evidence.shape[1])
    for start in range(0, len(predicted), rows):
        part = slice(start, start + rows)
        table = out.head.ledger(out.part(part))
        each = torch.arange(len(table), device=table.device)
        counts.append((table[each, predicted[part]].abs() > least).sum(1))
    return torch.cat(counts) if counts else predicted


@torch.no_grad()
def global_size(model: PrototypeModel, least: float = 1e-3) -> int | None:
    """Return how many usable prototypes have a weight beyond ``least`` for some class.

    None for a head whose contributions are not a weight times the evidence.
    """
    weights = model.head.per_unit(len(model.bank), model.bank.usable)
    return None if weights is None else int(((weights.abs() > least).any(0) & model.bank.usable).sum())


def abstains(scores: Tensor | Output, least: float = 0.0) -> Tensor:
    """Return ``(B,)`` where no class scores more than ``least``: "I don't know", rather than a guess.

    Of an output it is what its head says, by which a head whose scores do not start at 0 never abstains; with ``least``
    above 0, and for bare scores, the caller knows that they start at 0 with nothing found (points, agreements). NaN is
    no score.

    Examples
    --------
    >>> abstains(torch.tensor([[0.0, 0.0], [0.0, 0.2]])).tolist()
    [True, False]
    """
    if isinstance(scores, Output):
        return nothing_scores(scores.logits, least) if least > 0 else scores.head.abstains(scores.logits)
    return nothing_scores(scores, least)
