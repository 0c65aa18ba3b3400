"""How much a person has to read: prototypes used at all, prototypes in one decision, and decisions not taken."""

from __future__ import annotations

import torch
from torch import Tensor

from protolearn.core.heads import nothing_scores
from protolearn.core.matching import chunk_rows
from protolearn.core.model import PrototypeModel
from protolearn.errors import UsageError
from protolearn.structures import Output

LEAST = 1e-3
"""What counts as something, where weights and scores lie in 0 to 1."""


def beyond(values: Tensor, least: float = LEAST, *, relative: float | None = None) -> Tensor:
    """Return, in the shape of ``values (B, ...)``, where they exceed a threshold.

    Parameters
    ----------
    values : Tensor
        ``(B, ...)``, one row a case.
    least : float
        The threshold, in the unit of the values.
    relative : float, optional
        A share of the largest magnitude of the same case, in place of ``least``: the same for scores of every scale.

    Raises
    ------
    UsageError
        If a threshold is negative or the share is above 1.

    Examples
    --------
    >>> beyond(torch.tensor([[0.5, 0.0005, -2.0]])).tolist()
    [[True, False, False]]
    >>> beyond(torch.tensor([[40.0, 1.0, 9.0]]), relative=0.1).tolist()
    [[True, False, True]]
    """
    if not least >= 0 or (relative is not None and not 0 <= relative <= 1):
        raise UsageError(f"a threshold must be at least 0 and a share lie in 0 to 1, got {least} and {relative}")
    if relative is None:
        return values > least
    top = values.abs().flatten(1).amax(1) if values[0:1].numel() else values.new_zeros(len(values))
    return values > relative * top.view(-1, *[1] * (values.ndim - 1))


@torch.no_grad()
def local_size(out: Output, least: float = LEAST) -> Tensor:
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
        counts.append(beyond(table[each, predicted[part]].abs(), least).sum(1))
    return torch.cat(counts) if counts else predicted


def with_weight(weights: Tensor, usable: Tensor, least: float = LEAST) -> Tensor:
    """Return ``(P,)`` bool: usable prototypes with a weight beyond ``least``, for or against some class.

    Parameters
    ----------
    weights : Tensor
        ``(C, P)``.
    usable : Tensor
        ``(P,)`` bool.
    """
    return (weights.abs() > least).any(0) & usable


@torch.no_grad()
def global_size(model: PrototypeModel, least: float = LEAST) -> int | None:
    """Return how many usable prototypes have a weight beyond ``least`` for some class.

    None for a head whose contributions are not a weight times the evidence.
    """
    weights = model.head.per_unit(len(model.bank), model.bank.usable)
    return None if weights is None else int(with_weight(weights, model.bank.usable, least).sum())


def sparsity_ratio(weights: Tensor, least: float = LEAST) -> float | None:
    """Return the share of weights ``(C, P)`` that do not speak for a class: not above ``least``; None without weights.

    A weight below 0 counts as absent, as in PIP-Net, whose weights are never negative.

    Source: PIP-Net (Nauta et al., CVPR 2023): ``(numel W - nonzero of relu(W - least)) / numel W``.

    Examples
    --------
    >>> sparsity_ratio(torch.tensor([[1.0, 0.0], [1e-4, -2.0]]))
    0.75
    """
    return float((weights <= least).double().mean()) if weights.numel() else None


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
