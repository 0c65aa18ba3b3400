"""Prototypes that follow the cases softly assigned to them: one step of balanced assignment and moving average.

The assignment is balanced over all prototypes, whatever their class, so that none runs dry; of it a case keeps the few
largest shares among the prototypes it may belong to. N cases, P prototypes, D width; all vectors of unit length.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from protolearn.core.assignment import sinkhorn, top_k_weights
from protolearn.core.updates import moving_average, share_sums


class SoftMove(NamedTuple):
    """What one batch did to the prototypes."""

    vectors: Tensor
    """``(P, D)`` unit rows after the step, on the graph of the cases; a row that no case has a share of stays."""
    balanced: Tensor
    """``(N, P)`` the balanced assignment to the moved prototypes, over all of them; 0 for cases that take no part."""
    kept: Tensor
    """``(N, P)`` bool: the shares that were kept when the prototypes moved."""

    def shares(self) -> Tensor:
        """Return ``(N, P)``: the assignment to the moved prototypes among the kept ones; rows sum to 1 or are 0."""
        return _scaled(self.balanced * self.kept, 1)


def soft_move(
    vectors: Tensor,
    values: Tensor,
    allowed: Tensor,
    *,
    k: int,
    momentum: float,
    epsilon: float = 0.05,
    iterations: int = 3,
) -> SoftMove:
    """Move prototypes a little towards the weighted means of the cases assigned to them.

    ``A`` = the k largest of each row of the balanced assignment, where allowed; ``W`` = A with rows, then columns, that
    sum to 1; ``p <- unit(m p + (1 - m) W' z)``; then the cases are assigned anew.

    Source: PALM (Lu et al., ICLR 2024).

    Parameters
    ----------
    vectors : Tensor
        ``(P, D)`` unit rows.
    values : Tensor
        ``(N, D)`` unit rows. The moved prototypes depend on them with a gradient; the assignments do not.
    allowed : Tensor
        ``(N, P)`` bool; a case without any takes no part.
    k : int
        Shares of a case that are kept; 0 = all.
    momentum : float
        m, in [0, 1].
    epsilon, iterations
        Of :func:`~protolearn.core.assignment.sinkhorn`.

    Examples
    --------
    >>> turned = soft_move(torch.eye(2), torch.tensor([[0.6, 0.8]]), torch.tensor([[True, False]]), k=1, momentum=0.5)
    >>> turned.vectors, turned.shares()
    (tensor([[0.8944, 0.4472],
            [0.0000, 1.0000]]), tensor([[1., 0.]]))
    """
    if values.ndim != 2 or vectors.ndim != 2 or allowed.shape != (len(values), len(vectors)):
        raise ValueError(
            f"expected vectors (P, D), values (N, D) and allowed (N, P), got {tuple(vectors.shape)}, "
            f"{tuple(values.shape)} and {tuple(allowed.shape)}"
        )
    dtype = torch.promote_types(torch.promote_types(vectors.dtype, values.dtype), torch.float32)
    before, values = vectors.detach().to(dtype), values.to(dtype)
    seen = allowed.any(1)

    def assigned(prototypes: Tensor) -> Tensor:
        scores = values.detach() @ prototypes.detach().T
        safe = epsilon >= 0.03  # products of unit vectors are 2 apart at most: their exponentials fit
        part = seen if not bool(seen.all()) else None
        return sinkhorn(scores, epsilon=epsilon, iterations=iterations, mask=part, log_domain=not safe)

    own = assigned(before) * allowed
    own = own if k == 0 else top_k_weights(own, k)
    weights = _scaled(_scaled(own, 1), 0)
    sums, totals = share_sums(values, weights)
    after = moving_average(before, sums, momentum, totals > 0, normalise=True)
    return SoftMove(after, assigned(after), own > 0)


def _scaled(weights: Tensor, dim: int) -> Tensor:
    """Return weights that sum to 1 along ``dim``, or are 0."""
    total = weights.sum(dim, keepdim=True)
    return weights / total.where(total > 0, 1.0)
