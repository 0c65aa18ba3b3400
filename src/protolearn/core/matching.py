"""Where in an input each prototype matches best: the hot path, in chunks of bounded memory.

Positions are found by a chunked matrix product and a reduction, without keeping the (B, S, P) table. Gradients flow
through the matched positions only (that is what max pooling does), so the backward pass touches B*P pairs, not B*S*P.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from protolearn.core.measures import Measure

CHUNK_BYTES = 16 * 2**20
"""Size of the largest temporary table, in bytes."""


def chunk_rows(row_bytes: int, budget: int | None = None) -> int:
    """Return how many rows of ``row_bytes`` fit in the memory budget, at least one."""
    return max(1, (CHUNK_BYTES if budget is None else budget) // max(1, row_bytes))


def best_match(
    values: Tensor,
    prototypes: Tensor,
    measure: Measure,
    mask: Tensor | None = None,
    *,
    exact: bool = False,
    budget: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Return each prototype's nearest position in each input, and the value there.

    Parameters
    ----------
    values : Tensor
        ``(B, S, D)`` tokens.
    prototypes : Tensor
        ``(P, D)``, or ``(B, P, D)`` when every input has its own.
    measure : Measure
        What is near.
    mask : Tensor, optional
        ``(B, S)`` bool; a False position never wins.
    exact : bool
        Settle near-ties between positions with unrounded comparisons, so that a prototype that equals a token finds
        that very token (projection needs it; training does not).
    budget : int, optional
        Bytes of the largest temporary, 16 MiB by default.

    Returns
    -------
    best : Tensor
        ``(B, P)`` in float32 or better; differentiable in tokens and prototypes. Where an input has no real
        position: the measure's ``farthest``, without gradient.
    positions : Tensor
        ``(B, P)`` int64; the first position wins a tie.

    Raises
    ------
    ValueError
        If the shapes do not fit, or S is 0.

    Examples
    --------
    >>> from protolearn.core.measures import squared_l2
    >>> tokens = torch.tensor([[[0.0, 0.0], [1.0, 1.0]]])
    >>> best_match(tokens, torch.tensor([[1.0, 2.0]]), squared_l2)
    (tensor([[1.]]), tensor([[1]]))
    """
    _check(values, prototypes, mask)
    dtype = torch.promote_types(values.dtype, torch.float32)
    with torch.autocast(values.device.type, enabled=False):
        best, positions = _Match.apply(
            values.to(dtype), prototypes.to(dtype), measure, mask, exact, budget or CHUNK_BYTES
        )
    return best, positions


def all_matches(
    values: Tensor, prototypes: Tensor, measure: Measure, mask: Tensor | None = None, *, exact: bool = True
) -> Tensor:
    """Return the whole table ``(B, S, P)`` of values, for maps and for poolings that need every position.

    Masked positions get the measure's ``farthest``. ``exact`` recomputes the entries that lost digits to cancellation,
    where no gradient is asked for.
    """
    _check(values, prototypes, mask)
    dtype = torch.promote_types(values.dtype, torch.float32)
    values, prototypes = values.to(dtype), prototypes.to(dtype)
    with torch.autocast(values.device.type, enabled=False):
        table = measure.pairwise(values, prototypes)
        if exact and not table.requires_grad:
            each = prototypes if prototypes.ndim == 3 else prototypes.expand(values.shape[0], -1, -1)
            norms = values.square().sum(-1).unsqueeze(-1), each.square().sum(-1).unsqueeze(1)
            b, s, p = torch.nonzero(measure.doubtful(table, *norms), as_tuple=True)
            rows = chunk_rows(8 * values.shape[-1])
            for i in range(0, len(b), rows):
                at = b[i : i + rows], s[i : i + rows], p[i : i + rows]
                table[at] = measure.paired(values[at[0], at[1]], each[at[0], at[2]])
    return table if mask is None else table.masked_fill(~mask.unsqueeze(-1), measure.farthest)


def _check(values: Tensor, prototypes: Tensor, mask: Tensor | None) -> None:
    if values.ndim != 3 or values.shape[1] == 0:
        raise ValueError(f"tokens must be (B, S, D) with at least one position, got {tuple(values.shape)}")
    if prototypes.ndim not in (2, 3) or prototypes.shape[-1] != values.shape[-1]:
        raise ValueError(f"prototypes must be (P, {values.shape[-1]}) or (B, P, D), got {tuple(prototypes.shape)}")
    if prototypes.ndim == 3 and prototypes.shape[0] != values.shape[0]:
        raise ValueError(f"{prototypes.shape[0]} sets of prototypes for {values.shape[0]} inputs")
    if mask is not None and (mask.shape != values.shape[:2] or mask.dtype != torch.bool):
        raise ValueError(f"mask must be bool {tuple(values.shape[:2])}, got {mask.dtype} {tuple(mask.shape)}")


class _Match(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        prototypes: Tensor,
        measure: Measure,
        mask: Tensor | None,
        exact: bool,
        budget: int,
    ) -> tuple[Tensor, Tensor]:
        batch, steps, _ = values.shape
        count = prototypes.shape[-2]
        best = values.new_empty(batch, count)
        positions = torch.empty(batch, count, dtype=torch.long, device=values.device)
        columns = min(count, chunk_rows(4 * steps, budget))
        rows = chunk_rows(4 * steps * columns, budget)
        for i in range(0, batch, rows):
            x = values[i : i + rows]
            hidden = None if mask is None else ~mask[i : i + rows].unsqueeze(-1)
            for j in range(0, count, columns):
                p = prototypes[..., j : j + columns, :]
                p = p if p.ndim == 2 else p[i : i + rows]
                flat = p.ndim == 2  # one matrix product over all positions of the chunk
                table = measure.pairwise(x.flatten(0, 1), p).view(*x.shape[:2], -1) if flat else measure.pairwise(x, p)
                if hidden is not None:
                    table.masked_fill_(hidden, measure.farthest)
                if exact:
                    _settle(table, x, p, measure)
                found = measure.nearest(table, dim=1)
                best[i : i + rows, j : j + columns], positions[i : i + rows, j : j + columns] = found
        _refine(best, positions, values, prototypes, measure, mask, budget)
        ctx.save_for_backward(values, prototypes, positions, torch.isfinite(best))
        ctx.measure, ctx.budget = measure, budget
        ctx.mark_non_differentiable(positions)
        return best, positions

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
        values, prototypes, positions, real = ctx.saved_tensors
        need_x, need_p = ctx.needs_input_grad[:2]
        grad = grads[0].masked_fill(~real, 0.0)
        grad_x = torch.zeros_like(values) if need_x else None
        grad_p = torch.zeros_like(prototypes) if need_p else None
        batch, count = positions.shape
        rows = chunk_rows(8 * count * values.shape[-1], ctx.budget)
        for i in range(0, batch, rows):
            at = positions[i : i + rows].unsqueeze(-1).expand(-1, -1, values.shape[-1])
            p = prototypes[i : i + rows] if prototypes.ndim == 3 else prototypes
            with torch.enable_grad():
                x = torch.gather(values[i : i + rows], 1, at).requires_grad_()
                p = p.detach().requires_grad_()
                paired = ctx.measure.paired(x, p)
                # a case that needs neither is impossible here: autograd would not have called backward
                wrt = [t for t, needed in ((x, need_x), (p, need_p)) if needed]
                parts = list(torch.autograd.grad(paired, wrt, grad[i : i + rows]))
            if grad_x is not None:
                grad_x[i : i + rows].scatter_add_(1, at, parts.pop(0))
            if grad_p is not None and prototypes.ndim == 3:
                grad_p[i : i + rows] = parts.pop(0)
            elif grad_p is not None:
                grad_p += parts.pop(0)
        return grad_x, grad_p, None, None, None, None


def _refine(
    best: Tensor,
    positions: Tensor,
    values: Tensor,
    prototypes: Tensor,
    measure: Measure,
    mask: Tensor | None,
    budget: int,
) -> None:
    """Recompute in place the pooled values that lost digits to cancellation (equal vectors then differ by exactly 0)."""
    x_norm = torch.gather(values.square().sum(-1), 1, positions)
    p_norm = prototypes.square().sum(-1)
    b, p = torch.nonzero(measure.doubtful(best, x_norm, p_norm), as_tuple=True)
    rows = chunk_rows(12 * values.shape[-1], budget)
    for i in range(0, len(b), rows):
        at_b, at_p = b[i : i + rows], p[i : i + rows]
        chosen = prototypes[at_p] if prototypes.ndim == 2 else prototypes[at_b, at_p]
        best[at_b, at_p] = measure.paired(values[at_b, positions[at_b, at_p]], chosen)


def _settle(table: Tensor, x: Tensor, p: Tensor, measure: Measure) -> None:
    """Recompute in place every entry that rounding could have kept from being the nearest of its column."""
    p = p.expand(x.shape[0], -1, -1) if p.ndim == 2 else p
    scale = x.square().sum(-1).unsqueeze(-1) + p.square().sum(-1).unsqueeze(1)
    band = 16 * torch.finfo(table.dtype).eps * scale
    nearest = measure.nearest(table, dim=1)[0].unsqueeze(1)
    b, s, j = torch.nonzero(((table - nearest).abs() <= band) & torch.isfinite(table), as_tuple=True)
    rows = chunk_rows(12 * x.shape[-1])
    for i in range(0, len(b), rows):
        at = b[i : i + rows], s[i : i + rows], j[i : i + rows]
        table[at] = measure.paired(x[at[0], at[1]], p[at[0], at[2]])
