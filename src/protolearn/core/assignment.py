"""Which prototype a token belongs to: the nearest, a share of each, a balanced share, a mixture's posterior.

Tables of scores or weights are ``(..., N, P)``: N tokens, P prototypes. A mask ``(..., N)`` is True where a token is
real; the weights of a masked token are 0. All of it is deterministic, and works in float32 or better.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from protolearn.core.matching import best_match
from protolearn.core.measures import Measure, Product, squared_l2
from protolearn.core.precision import full_precision


def _float(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _hide(table: Tensor, mask: Tensor | None, value: float = 0.0) -> Tensor:
    if mask is None:
        return table
    if mask.shape != table.shape[:-1] or mask.dtype != torch.bool:
        raise ValueError(f"mask must be bool {tuple(table.shape[:-1])}, got {mask.dtype} {tuple(mask.shape)}")
    return table.masked_fill(~mask.unsqueeze(-1), value)


@torch.no_grad()
def nearest(
    values: Tensor,
    prototypes: Tensor,
    measure: Measure = squared_l2,
    mask: Tensor | None = None,
    *,
    budget: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the value in the measure and the row of each token's nearest prototype, in bounded memory.

    Parameters
    ----------
    values : Tensor
        ``(..., D)`` tokens.
    prototypes : Tensor
        ``(P, D)``.
    measure : Measure
        What is near.
    mask : Tensor, optional
        ``(...)`` bool.
    budget : int, optional
        Bytes of the largest temporary.

    Returns
    -------
    best : Tensor
        ``(...)`` in float32 or better, without gradient (``measure.paired`` of the pairs has one); the measure's
        ``farthest`` for a masked token, NaN for one that is not a number.
    rows : Tensor
        ``(...)`` int64, -1 for a masked token. The first of equally near prototypes wins, up to rounding.

    Examples
    --------
    >>> nearest(torch.tensor([[0.0], [0.9]]), torch.tensor([[1.0], [0.1]]))[1].tolist()
    [1, 0]
    """
    if prototypes.ndim != 2 or prototypes.shape[-1] != values.shape[-1] or len(prototypes) == 0:
        raise ValueError(f"prototypes must be (P, {values.shape[-1]}) with P >= 1, got {tuple(prototypes.shape)}")
    shape = values.shape[:-1]
    if mask is not None:
        _hide(values, mask)  # checks the shape
    # the same search with the roles exchanged: where among the prototypes does each token match best
    best, rows = best_match(
        prototypes.unsqueeze(0), values.reshape(-1, values.shape[-1]), _exchanged(measure), budget=budget
    )
    best, rows = best.view(shape), rows.view(shape)
    if mask is not None:
        best, rows = best.masked_fill(~mask, measure.farthest), rows.masked_fill(~mask, -1)
    return best, rows


def _exchanged(measure: Measure) -> Measure:
    product = measure.product
    return dataclasses.replace(
        measure,
        pairwise=lambda p, x: measure.pairwise(x, p).transpose(-1, -2),
        paired=lambda p, x: measure.paired(x, p),
        product=None if product is None else Product(product.prototype, product.token, product.scale),
    )


def one_hot(rows: Tensor, count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return ``(..., P)`` weights of a hard assignment ``(...)``; all zero where the row is -1.

    Examples
    --------
    >>> one_hot(torch.tensor([1, -1]), 2)
    tensor([[0., 1.],
            [0., 0.]])
    """
    table = torch.zeros(*rows.shape, count, dtype=dtype, device=rows.device)
    return table.scatter_(-1, rows.clamp_min(0).unsqueeze(-1), (rows >= 0).unsqueeze(-1).to(dtype))


def softmax(scores: Tensor, temperature: float = 1.0, mask: Tensor | None = None) -> Tensor:
    """Return each token's share of every prototype, ``(..., N, P)``; rows sum to 1.

    Parameters
    ----------
    scores : Tensor
        ``(..., N, P)``, larger = nearer; -inf for a prototype that may not be used. A row of nothing but -inf has no
        share of any: its weights are 0.
    temperature : float
        The smaller, the harder.
    mask : Tensor, optional
        ``(..., N)``.

    Examples
    --------
    >>> softmax(torch.tensor([[0.0, 0.0], [9.0, -float("inf")]]), temperature=0.5)
    tensor([[0.5000, 0.5000],
            [1.0000, 0.0000]])
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    scores = _float(scores) / temperature
    return _hide(_normalise(scores, -1), mask)


def _normalise(logits: Tensor, dim: int) -> Tensor:
    """Return the softmax along ``dim``, 0 where everything along it is -inf, without NaN in the gradient."""
    none = (logits == float("-inf")).all(dim, keepdim=True)
    return logits.masked_fill(none, 0.0).softmax(dim).masked_fill(none, 0.0)


def sinkhorn(
    scores: Tensor,
    *,
    epsilon: float = 0.05,
    iterations: int = 3,
    columns: Tensor | None = None,
    mask: Tensor | None = None,
    tolerance: float = 0.0,
    log_domain: bool = True,
    rows_last: bool = True,
) -> Tensor:
    """Return a balanced assignment ``(N, P)``: every token has a share of 1, every prototype gets its due.

    The entropic transport between tokens and prototypes: ``exp(scores / epsilon)`` with columns and rows scaled in
    turn. Columns first, rows last, so that rows sum to 1 exactly and columns after enough iterations.

    Parameters
    ----------
    scores : Tensor
        ``(N, P)``, larger = nearer.
    epsilon : float
        The smaller, the harder, and the more iterations it takes.
    iterations : int
        Most rounds of one scaling of columns and one of rows.
    columns : Tensor, optional
        ``(P,)`` share of all tokens that each prototype is due, >= 0 with sum 1; equal shares by default.
    mask : Tensor, optional
        ``(N,)``; a masked token takes no part.
    tolerance : float
        Stop when every column is within this share of the total; 0 = run all iterations.
    log_domain : bool
        True: never overflows, for any ``epsilon``. False: the plain form, faster, right while
        ``(max - min score) / epsilon`` stays below about 80.
    rows_last : bool
        False: rows first and columns last, which makes the columns exact.

    Returns
    -------
    Tensor
        ``(N, P)``; ``(0, P)`` for no token. Differentiable; detach it where it is a target.

    Examples
    --------
    >>> shares = sinkhorn(torch.tensor([[1.0, 0.9], [1.0, 0.1]]), epsilon=0.1, iterations=200)
    >>> shares.sum(0).round(decimals=3), shares.argmax(1)
    (tensor([1., 1.]), tensor([1, 0]))
    """
    if scores.ndim != 2:
        raise ValueError(f"scores must be (N, P), got {tuple(scores.shape)}")
    if not epsilon > 0 or iterations < 1:
        raise ValueError(f"epsilon must be positive and iterations at least 1, got {epsilon} and {iterations}")
    scores = _float(scores)
    count = scores.shape[1]
    if columns is None:
        due = scores.new_full((count,), 1.0 / max(count, 1))
    else:
        if columns.shape != (count,) or (columns < 0).any() or abs(float(columns.sum()) - 1) > 1e-4:
            raise ValueError(f"columns must be {count} shares >= 0 that sum to 1")
        due = columns.to(scores)
    if mask is not None:
        _hide(scores, mask)  # checks the shape
        plan = sinkhorn(
            scores[mask],
            epsilon=epsilon,
            iterations=iterations,
            columns=columns,
            tolerance=tolerance,
            log_domain=log_domain,
            rows_last=rows_last,
        )
        return scores.new_zeros(scores.shape).masked_scatter(mask.unsqueeze(1).expand_as(scores), plan)
    total = len(scores)
    if total == 0 or count == 0:
        return scores.new_zeros(scores.shape)
    scale = _scale_logs if log_domain else _scale_plainly
    return scale(scores / epsilon, due * total, iterations, tolerance * total, rows_last)


def _scale_logs(logits: Tensor, due: Tensor, iterations: int, tolerance: float, rows_last: bool) -> Tensor:
    log_due = due.log()
    u, v = logits.new_zeros(len(logits)), log_due.new_zeros(len(due))
    for _ in range(iterations):
        for on_columns in (True, False) if rows_last else (False, True):
            if on_columns:
                v = _minus(log_due, torch.logsumexp(logits + u.unsqueeze(1), 0))
            else:
                u = _minus(0.0, torch.logsumexp(logits + v, 1))
        # the last scaling is a softmax, whose sums hold however large the logits are
        plan = _normalise(logits + v, 1) if rows_last else due * _normalise(logits + u.unsqueeze(1), 0)
        if tolerance > 0 and _settled(plan, due, tolerance, rows_last):
            return plan
    return plan


def _minus(due: Tensor | float, have: Tensor) -> Tensor:
    # where nothing can be transported the answer is nothing, not inf - inf
    return (due - have).masked_fill(have == float("-inf"), float("-inf"))


def _scale_plainly(logits: Tensor, due: Tensor, iterations: int, tolerance: float, rows_last: bool) -> Tensor:
    kernel = (logits - logits.detach().amax()).exp()
    u, v = kernel.new_ones(len(kernel)), kernel.new_ones(len(due))
    for _ in range(iterations):
        for on_columns in (True, False) if rows_last else (False, True):
            have = u @ kernel if on_columns else kernel @ v
            share = (due if on_columns else torch.ones_like(have)) / have.where(have > 0, 1.0)
            share = share.masked_fill(have <= 0, 0.0)
            u, v = (u, share) if on_columns else (share, v)
        if tolerance > 0:
            plan = u.unsqueeze(1) * kernel * v
            if _settled(plan, due, tolerance, rows_last):
                return plan
    return u.unsqueeze(1) * kernel * v


def _settled(plan: Tensor, due: Tensor, tolerance: float, rows_last: bool) -> bool:
    off = plan.sum(0) - due if rows_last else plan.sum(1) - 1.0
    return bool(off.abs().amax() <= tolerance)


def mixture_log_joint(values: Tensor, means: Tensor, variances: Tensor, log_weights: Tensor) -> Tensor:
    """Return ``(..., N, P)``: log of weight times density of each diagonal Gaussian at each token.

    Parameters
    ----------
    values : Tensor
        ``(..., N, D)``.
    means, variances : Tensor
        ``(..., P, D)``; variances > 0.
    log_weights : Tensor
        ``(..., P)``; -inf for a component that is not there.

    Examples
    --------
    >>> mixture_log_joint(torch.zeros(1, 2), torch.zeros(1, 2), torch.ones(1, 2), torch.zeros(1)).exp() * 2 * math.pi
    tensor([[1.0000]])
    """
    dtype = torch.promote_types(torch.promote_types(values.dtype, means.dtype), torch.float32)
    with full_precision(values.device):
        values, means, variances = values.to(dtype), means.to(dtype), variances.to(dtype)
        precision = 1.0 / variances
        # sum_d (x - m)^2 / v by two products; taken about a common centre, so that little cancels
        centre = means.mean(-2, keepdim=True)
        x, m = values - centre, means - centre
        weighted = m * precision
        gap = x.square() @ precision.transpose(-1, -2) - 2.0 * (x @ weighted.transpose(-1, -2))
        gap = (gap + (m * weighted).sum(-1).unsqueeze(-2)).clamp_min(0.0)
        constant = log_weights.to(dtype) - 0.5 * (variances.log().sum(-1) + means.shape[-1] * math.log(2.0 * math.pi))
        return constant.unsqueeze(-2) - 0.5 * gap


def mixture_posterior(
    values: Tensor, means: Tensor, variances: Tensor, log_weights: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Return each token's posterior over the components of a mixture of diagonal Gaussians, ``(..., N, P)``.

    Rows sum to 1 however far a token lies from every component; 0 for masked tokens. Shapes as in
    :func:`mixture_log_joint`, mask ``(..., N)``.

    Examples
    --------
    >>> means = torch.tensor([[-1.0], [1.0]])
    >>> mixture_posterior(torch.tensor([[0.0], [900.0]]), means, torch.ones(2, 1), torch.zeros(2))
    tensor([[0.5000, 0.5000],
            [0.0000, 1.0000]])
    """
    if mask is not None:
        values = values.masked_fill(~mask.unsqueeze(-1), 0.0)  # padding may hold anything, NaN too
    return _hide(_normalise(mixture_log_joint(values, means, variances, log_weights), -1), mask)


def top_k_weights(weights: Tensor, k: int) -> Tensor:
    """Return weights ``(..., N, P)`` with all but the ``k`` largest of each row set to 0 (the first ones of a tie).

    Rows are not scaled again. All are kept where P <= k.

    Examples
    --------
    >>> top_k_weights(torch.tensor([[0.2, 0.5, 0.3]]), 2)
    tensor([[0.0000, 0.5000, 0.3000]])
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if k >= weights.shape[-1]:
        return weights
    best = weights.detach().topk(k + 1, dim=-1)
    last, beyond = best.values[..., k - 1], best.values[..., k]
    if bool(((last == beyond) & (last != 0)).any()):  # of equal weights the first are kept; which zeros are, is all one
        order = weights.argsort(dim=-1, descending=True, stable=True)[..., :k]
    else:
        order = best.indices[..., :k]
    return weights * torch.zeros_like(weights).scatter_(-1, order, 1.0)


def mutual_neighbours(
    scores: Tensor, k: int = 1, mask: Tensor | None = None, column_mask: Tensor | None = None
) -> Tensor:
    """Return ``(N, P)`` bool: token and prototype are each among the other's ``k`` nearest.

    Parameters
    ----------
    scores : Tensor
        ``(N, P)``, larger = nearer; -inf for a pair that may not be. Ties go to the lower row and column.
    k : int
        How many neighbours count.
    mask, column_mask : Tensor, optional
        ``(N,)`` and ``(P,)`` bool: who takes part.

    Examples
    --------
    >>> mutual_neighbours(torch.tensor([[0.9, 0.8], [0.7, 0.1]])).int()
    tensor([[1, 0],
            [0, 0]], dtype=torch.int32)
    """
    if scores.ndim != 2 or k < 1:
        raise ValueError(f"scores must be (N, P) and k at least 1, got {tuple(scores.shape)} and {k}")
    hidden = _hide(scores, mask, float("-inf"))
    if column_mask is not None:
        hidden = _hide(hidden.T, column_mask, float("-inf")).T
    near = torch.ones_like(hidden, dtype=torch.bool)
    for dim in (0, 1):
        order = hidden.argsort(dim=dim, descending=True, stable=True).narrow(dim, 0, min(k, hidden.shape[dim]))
        near &= torch.zeros_like(near).scatter_(dim, order, True)
    return near & (hidden > float("-inf"))
