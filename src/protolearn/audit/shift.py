"""What a shift of the data does to prototypes: activations beside clean ones, and evidence beside the true class.

Source: the metrics of ProtoTTA (DeepRCL, 2026). N cases, P prototypes, C classes. All work in double precision.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from protolearn.audit.correlation import row_correlation, row_cosine
from protolearn.errors import UsageError


def activation_consistency(clean: Tensor, other: Tensor) -> Tensor:
    """Return PAC ``(N,)``: the cosine between the activations of a case as it was and as it is now.

    1 where they are equal up to a positive factor. NaN where no prototype is active in one of the two.

    Parameters
    ----------
    clean, other : Tensor
        ``(N, P)``: the same cases in the same order.

    Examples
    --------
    >>> round(activation_consistency(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 6.0]])).item(), 6)
    1.0
    """
    return row_cosine(*_same_cases(clean, other))


def activation_distance_share(clean: Tensor, other: Tensor) -> Tensor:
    """Return ``(N,)``: 1 less the distance between the activations as a share of the clean ones' length, at least 0.

    Examples
    --------
    >>> activation_distance_share(torch.tensor([[3.0, 4.0]]), torch.tensor([[3.0, 3.0]])).item()
    0.8...
    """
    one, two = _same_cases(clean, other)
    return (1.0 - (two - one).norm(dim=1) / (one.norm(dim=1) + 1e-8)).clamp(0.0, 1.0)


def among_top(scores: Tensor, k: int) -> Tensor:
    """Return how much of each prototype is among the k highest of its case, ``(N, P)`` in 0 to 1.

    Prototypes that tie for the last places share them evenly, so that the order of prototypes decides nothing.

    Examples
    --------
    >>> among_top(torch.tensor([[5.0, 1.0, 3.0, 1.0]]), 3).tolist()
    [[1.0, 0.5, 1.0, 0.5]]
    """
    if k < 1:
        raise UsageError(f"top_k must be at least 1, got {k}")
    table = scores.detach().cpu().double()
    if k >= table.shape[1]:
        return torch.ones_like(table)
    last = table.topk(k, dim=1).values[:, -1:]
    above, level = table > last, table == last
    places = k - above.sum(1, keepdim=True)
    return above.double() + level * (places.double() / level.sum(1, keepdim=True).clamp_min(1))


def class_alignment(scores: Tensor, own: Tensor, top_k: int = 10) -> Tensor:
    """Return PCA ``(N,)``: the part of a softmax over the highest activations that lies on the true class's prototypes.

    Parameters
    ----------
    scores : Tensor
        ``(N, P)`` activations.
    own : Tensor
        ``(N, P)`` bool: prototypes of the true class.
    top_k : int
        How many activations count.

    Examples
    --------
    >>> class_alignment(torch.zeros(1, 4), torch.tensor([[True, False, False, False]])).item()
    0.25
    """
    return (_soft_top(scores, top_k) * own.cpu()).sum(1)


def top_share(scores: Tensor, own: Tensor, top_k: int = 10) -> Tensor:
    """Return ``(N,)``: the share of the highest activations that belong to the true class.

    Examples
    --------
    >>> top_share(torch.tensor([[3.0, 2.0, 1.0]]), torch.tensor([[True, False, False]]), 2).item()
    0.5
    """
    top = among_top(scores, top_k)
    return (top * own.cpu()).sum(1) / top.sum(1)


def weighted_alignment(scores: Tensor, sizes: Tensor, own: Tensor, top_k: int = 10) -> Tensor:
    """Return PCA-W ``(N,)``: the true class's part of the highest activations, each times the size of its weight.

    0 where the whole is not positive (the authors' code stops there with an error).

    Parameters
    ----------
    scores : Tensor
        ``(N, P)`` activations.
    sizes : Tensor
        ``(N, P)`` absolute weight of each prototype for the case's true class.
    own, top_k
        As for :func:`class_alignment`.

    Examples
    --------
    >>> own = torch.tensor([[True, False]])
    >>> weighted_alignment(torch.tensor([[1.0, 1.0]]), torch.tensor([[3.0, 1.0]]), own).item()
    0.75
    """
    part = among_top(scores, top_k) * scores.detach().cpu().double() * sizes.detach().cpu().double()
    whole = part.sum(1)
    some = whole > 0
    return torch.where(some, (part * own.cpu()).sum(1) / whole.where(some, 1.0), 0.0)


def shared_alignment(scores: Tensor, weights: Tensor, top_k: int = 10) -> Tensor:
    """Return ``(N,)`` the same for prototypes that no class owns: what speaks for the true class, of all that speaks.

    A softmax over the highest activations times the true class's weights; the positive part over the absolute sum. NaN
    where the true class gives none of them a weight.

    Parameters
    ----------
    scores, weights : Tensor
        ``(N, P)`` activations, and weights for the case's true class.
    top_k : int
        How many activations count.

    Examples
    --------
    >>> shared_alignment(torch.zeros(1, 2), torch.tensor([[3.0, -1.0]])).item()
    0.75
    """
    part = _soft_top(scores, top_k) * weights.detach().cpu().double()
    whole = part.abs().sum(1)
    return part.clamp_min(0.0).sum(1) / whole.where(whole > 0, float("nan"))


def contribution_change(clean: Tensor, other: Tensor, sizes: Tensor, own: Tensor) -> Tensor:
    """Return ``(N,)``: by which share the evidence of the true class's prototypes changed; NaN where there was none.

    Evidence is the sum of activation times absolute weight. The authors' code says 0 where there was none.

    Examples
    --------
    >>> own, ones = torch.tensor([[True, False]]), torch.ones(1, 2)
    >>> contribution_change(torch.tensor([[2.0, 9.0]]), torch.tensor([[1.0, 0.0]]), ones, own).item()
    -0.5
    """
    one, two = _same_cases(clean, other)
    counted = sizes.detach().cpu().double() * own.cpu()
    before, after = (one * counted).sum(1), (two * counted).sum(1)
    return (after - before) / before.where(before > 0, float("nan"))


@dataclass(frozen=True, eq=False)
class ShiftAgreement:
    """How far the answers under shift are the answers without.

    Attributes
    ----------
    same : Tensor
        ``(N,)`` bool: the same class is predicted.
    logit_cosine : Tensor
        ``(N,)``; NaN where all logits of a case are 0.
    before, after : Tensor
        ``(N,)`` confidence, the probability of the class predicted.
    confidence_correlation : float or None
        Pearson, over cases; None where one side is all equal.
    """

    same: Tensor
    logit_cosine: Tensor
    before: Tensor
    after: Tensor
    confidence_correlation: float | None

    @property
    def confidence_gap(self) -> Tensor:
        """``(N,)`` absolute change of the confidence."""
        return (self.after - self.before).abs()


def shift_agreement(
    clean_logits: Tensor, other_logits: Tensor, clean_probabilities: Tensor, other_probabilities: Tensor
) -> ShiftAgreement:
    """Compare answers to the same cases, all ``(N, C)``.

    Examples
    --------
    >>> logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    >>> found = shift_agreement(logits, logits.flip(0), logits.softmax(1), logits.flip(0).softmax(1))
    >>> found.same.tolist(), round(found.confidence_correlation, 6)
    ([False, False], -1.0)
    """
    one, two = _same_cases(clean_logits, other_logits)
    confident = [p.detach().cpu().double().amax(1) for p in (clean_probabilities, other_probabilities)]
    correlation = float(row_correlation(confident[0].unsqueeze(0), confident[1].unsqueeze(0)))
    return ShiftAgreement(
        one.argmax(1) == two.argmax(1),
        activation_consistency(one, two),
        confident[0],
        confident[1],
        None if correlation != correlation else correlation,
    )


def _soft_top(scores: Tensor, k: int) -> Tensor:
    table = scores.detach().cpu().double()
    raised = among_top(table, k) * (table - table.amax(1, keepdim=True)).exp()
    return raised / raised.sum(1, keepdim=True)


def _same_cases(one: Tensor, two: Tensor) -> tuple[Tensor, Tensor]:
    if one.shape != two.shape or one.ndim != 2:
        raise UsageError(f"two tables of the same cases are compared: got {tuple(one.shape)} and {tuple(two.shape)}")
    return one.detach().cpu().double(), two.detach().cpu().double()
