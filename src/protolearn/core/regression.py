"""Weights of a head in closed form: least squares on evidence, and how sure its scores are."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot


class Readout(NamedTuple):
    """Weights ``(C, P)`` and bias ``(C,)`` of a linear head."""

    weight: Tensor
    bias: Tensor


@torch.no_grad()
def least_squares(
    evidence: Tensor, labels: Tensor, classes: int, *, ridge: float = 0.0, weights: Tensor | None = None
) -> Readout:
    """Return the linear readout whose scores are nearest to 1 for the own class and 0 for others, over all cases.

    ``mean of |evidence W^T + b - target|^2 + ridge |W|^2`` is least; the bias is free. Scores sum to 1 over classes.

    Source: output weights of radial basis function networks by linear least squares (Broomhead and Lowe, 1988).

    Parameters
    ----------
    evidence : Tensor
        ``(N, P)``.
    labels : Tensor
        ``(N,)`` int64; cases with -1 are left out.
    classes : int
        C.
    ridge : float
        Not negative; 0 takes the solution of least norm where there are several.
    weights : Tensor, optional
        ``(N,)`` not negative.

    Examples
    --------
    >>> readout = least_squares(torch.eye(2), torch.tensor([0, 1]), 2)
    >>> (torch.eye(2) @ readout.weight.T + readout.bias).round(decimals=4).abs()
    tensor([[1., 0.],
            [0., 1.]])
    """
    if ridge < 0:
        raise ValueError(f"ridge must not be negative, got {ridge}")
    known = labels >= 0
    h, y = evidence[known].double(), labels[known]
    w = torch.ones_like(h[:, 0]) if weights is None else weights[known].double()
    total = w.sum()
    if not float(total) > 0:
        raise ValueError("least squares need at least one labelled case that carries weight")
    w = w / total
    t = one_hot(y, classes).double()
    mean, share = w @ h, w @ t
    h, t = h - mean, t - share
    left = h.T @ (w.unsqueeze(1) * h)
    right = h.T @ (w.unsqueeze(1) * t)
    values, axes = torch.linalg.eigh(left)
    kept = values > 1e-12 * values[-1].clamp_min(torch.finfo(torch.float64).tiny)
    inverse = torch.where(kept, 1.0 / (values.clamp_min(0.0) + ridge).where(kept, 1.0), 0.0)
    weight = (axes * inverse) @ (axes.T @ right)
    return Readout(weight.T.to(evidence), (share - mean @ weight).to(evidence))


@torch.no_grad()
def sureness(scores: Tensor, labels: Tensor, weights: Tensor | None = None, *, rounds: int = 50) -> float:
    """Return the factor f for which ``softmax(f * scores)`` fits the labels best: one number, by Newton's method.

    A case counts for its label and, as Platt (1999) does it, a little for each of the others, as if each class had been
    seen twice more by chance: so the factor stays finite where all cases are right. 1 where all scores are the same.
    Chance is counted in cases, so weights that sum to less than the number of cases with weight (shares that sum to 1,
    say) are scaled up to it; whole weights are repetitions and stay as they are.

    Parameters
    ----------
    scores : Tensor
        ``(N, C)``.
    labels : Tensor
        ``(N,)`` int64; cases with -1 are left out.
    weights : Tensor, optional
        ``(N,)``.
    rounds : int
        Most steps.

    Examples
    --------
    >>> round(sureness(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1])), 4)
    0.6931
    """
    known = labels >= 0
    s, count = scores[known].double(), scores.shape[1]
    w = torch.ones_like(s[:, 0]) if weights is None else weights[known].double()
    w = w * max(1.0, float((w > 0).sum()) / max(float(w.sum()), torch.finfo(torch.float64).tiny))
    share = 2.0 / (float(w.sum()) + 2.0 * count)
    target = one_hot(labels[known], count).double() * (1.0 - count * share) + share
    wanted, factor = (target * s).sum(1), 0.0
    for _ in range(rounds):
        p = (factor * s).softmax(1)
        mean = (p * s).sum(1)
        slope = float(w @ (mean - wanted))
        bend = float(w @ (p * (s - mean.unsqueeze(1)).square()).sum(1))
        if bend <= 0:
            break
        # upwards a full step may go too far where the softmax is flat: at most to twice and one
        factor, before = max(1e-3, min(factor - slope / bend, 2.0 * factor + 1.0)), factor
        if abs(factor - before) <= 1e-13 * factor:
            break
    return factor or 1.0
