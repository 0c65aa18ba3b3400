"""Where in an input each prototype matches best: the hot path, in chunks of bounded memory.

Positions are found by a chunked matrix product and a reduction, without keeping the (B, S, P) table. Gradients flow
through the matched positions only (that is what max pooling does), so the backward pass touches B*P pairs, not B*S*P.

A chunk's table is kept small enough to stay in the processor's cache between product and reduction. What a measure adds
for the prototype alone (its squared norm) changes no winner and is added after the reduction. The backward pass of a
measure that is a product sums weighted rows without copying them (``embedding_bag``).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding_bag

from protolearn.core.measures import Distance, Measure, Product, squared_l2, squared_norm
from protolearn.core.precision import full_precision

CHUNK_BYTES = 16 * 2**20
"""Size of the largest temporary table, in bytes."""

CACHE_BYTES = 2 * 2**20
"""Size of a table that a processor's cache holds between two passes over it."""

_MANY_COLUMNS = 512  # enough prototypes in one chunk that reading the tokens again for the next costs little
_FEW_STEPS = 8  # with fewer positions a plain matrix product is faster than summing matched rows


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
    among: Tensor | None = None,
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
        that very token, and values do not depend on what else is in the batch (projection needs it; training does not).
    among : Tensor, optional
        ``(B, P)`` bool: the pairs that ``exact`` is needed for, all by default; the others stay as found.
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
    if among is not None and (among.dtype != torch.bool or not exact):
        raise ValueError("among is a bool table of the pairs to be exact about, and goes with exact=True")
    dtype = torch.promote_types(values.dtype, torch.float32)
    with full_precision(values.device):
        best, positions = _Match.apply(
            values.to(dtype),
            prototypes.to(dtype),
            measure,
            mask,
            among if among is not None else exact,
            budget or CHUNK_BYTES,
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
    if mask is not None:
        values = values.masked_fill(~mask.unsqueeze(-1), 0.0)  # padding may hold anything, NaN too
    with full_precision(values.device):
        table = measure.pairwise(values, prototypes)
        if exact and isinstance(measure, Distance) and not table.requires_grad:
            p_norm = squared_norm(prototypes)
            rows = chunk_rows(4 * table.shape[1] * table.shape[2])
            for i in range(0, len(table), rows):
                part, x = table[i : i + rows], values[i : i + rows]
                p = prototypes[i : i + rows] if prototypes.ndim == 3 else prototypes
                norms = squared_norm(x).unsqueeze(-1), (p_norm[i : i + rows].unsqueeze(1) if p.ndim == 3 else p_norm)
                b, s, j = torch.nonzero(measure.doubtful(part, *norms), as_tuple=True)
                part[b, s, j] = _paired_at(measure, x, p, b, s, j, CHUNK_BYTES)
    return table if mask is None else table.masked_fill(~mask.unsqueeze(-1), measure.farthest)


def mean_match(values: Tensor, prototypes: Tensor, measure: Measure, mask: Tensor | None = None) -> Tensor:
    """Return ``(B, P)``: the mean of the measure over real positions; its ``farthest`` where there is none.

    In chunks of cases, so that no table over all positions of all cases is kept; for the squared distance without one:
    the mean is the distance to the mean token plus the tokens' own variance.

    Examples
    --------
    >>> from protolearn.core.measures import squared_l2
    >>> mean_match(torch.tensor([[[0.0], [2.0]]]), torch.tensor([[1.0], [3.0]]), squared_l2)
    tensor([[1., 5.]])
    """
    _check(values, prototypes, mask)
    dtype = torch.promote_types(values.dtype, torch.float32)
    values, prototypes = values.to(dtype), prototypes.to(dtype)
    real = values.new_ones(values.shape[:2]) if mask is None else mask.to(dtype)
    count = real.sum(1, keepdim=True)
    share = (real / count.clamp_min(1.0)).unsqueeze(2)
    if mask is not None:
        values = values.masked_fill(~mask.unsqueeze(-1), 0.0)  # padding may hold anything, NaN too
    with full_precision(values.device):
        if measure is squared_l2:
            mean = (values * share).sum(1, keepdim=True)
            variance = ((values - mean).square().sum(2, keepdim=True) * share).sum(1)
            average = squared_l2.pairwise(mean, prototypes).squeeze(1) + variance
        else:
            rows = chunk_rows(values.element_size() * values.shape[1] * prototypes.shape[-2])
            parts = []
            for i in range(0, len(values), rows):
                p = prototypes[i : i + rows] if prototypes.ndim == 3 else prototypes
                parts.append((measure.pairwise(values[i : i + rows], p) * share[i : i + rows]).sum(1))
            average = torch.cat(parts)
    return average.masked_fill(count == 0, measure.farthest)


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
        exact: bool | Tensor,
        budget: int,
    ) -> tuple[Tensor, Tensor]:
        batch, steps, dim = values.shape
        count = prototypes.shape[-2]
        best = values.new_empty(batch, count)
        positions = torch.empty(batch, count, dtype=torch.long, device=values.device)
        small = min(budget, CACHE_BYTES) if values.device.type == "cpu" else budget
        small = small if exact is False else max(1, small // 4)  # settling may list every entry of a table
        item = values.element_size()
        # as many columns as fit beside all positions; for long inputs some of both, so that each is read a few times
        columns = min(count, max(_MANY_COLUMNS, chunk_rows(item * steps, small)), chunk_rows(item * dim, budget))
        block = min(steps, chunk_rows(item * columns, small), chunk_rows(item * dim, budget))
        rows = min(batch, chunk_rows(item * block * columns, small), chunk_rows(item * block * dim, budget))
        scratch = values.new_empty(0 if measure.product is None else rows * block * columns)
        for j in range(0, count, max(columns, 1)):
            part = _Prototypes(prototypes[..., j : j + columns, :], measure)
            for i in range(0, batch, max(rows, 1)):
                here = slice(i, i + rows), slice(j, j + columns)
                p = part if prototypes.ndim == 2 else _Prototypes(prototypes[i : i + rows, j : j + columns], measure)
                for k in range(0, steps, block):
                    x = values[i : i + rows, k : k + block]
                    real = None if mask is None else mask[i : i + rows, k : k + block]
                    settle = exact[here] if isinstance(exact, Tensor) else exact
                    found, where = _nearest(x, p, measure, real, settle, budget, scratch)
                    if k == 0:
                        best[here], positions[here] = found, where
                    else:
                        wins = measure.nearer(found, best[here]) | found.isnan()
                        best[here] = found.where(wins, best[here])
                        positions[here] = (where + k).where(wins, positions[here])
        ctx.save_for_backward(values, prototypes, best, positions, mask)
        ctx.measure, ctx.budget = measure, budget
        ctx.mark_non_differentiable(positions)
        ctx.set_materialize_grads(False)  # else zeros for positions, twice the size of the result
        return best, positions

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
        incoming = grads[0]
        if incoming is None:
            return None, None, None, None, None, None
        with full_precision(incoming.device):
            return (*_gradients(ctx, incoming), None, None, None, None)


def _gradients(ctx: Any, incoming: Tensor) -> tuple[Tensor | None, Tensor | None]:
    values, prototypes, best, positions, mask = ctx.saved_tensors
    measure, budget = ctx.measure, ctx.budget
    need_x, need_p = ctx.needs_input_grad[:2]
    grad_x = torch.zeros_like(values) if need_x else None
    grad_p = torch.zeros_like(prototypes) if need_p else None
    batch, steps, dim = values.shape
    count = positions.shape[1]
    # tokens and pairs that one chunk may touch; a chunk of long inputs goes pair by pair
    rows = chunk_rows(values.element_size() * (4 * steps * dim + 16 * count), budget)
    columns = chunk_rows(8 * values.element_size() * dim, budget)
    together = measure.product is not None and values.device.type in ("cpu", "cuda")
    together = together and 4 * values.element_size() * steps * dim <= budget
    for i in range(0, batch, rows):
        part = slice(i, i + rows)
        grad = incoming[part].masked_fill(torch.isinf(best[part]), 0.0)
        x, at = values[part], positions[part]
        if mask is not None and steps <= _FEW_STEPS:  # there a product takes in every row: 0 times NaN is NaN
            x = x.masked_fill(~mask[part].unsqueeze(-1), 0.0)
        p = prototypes[part] if prototypes.ndim == 3 else prototypes
        to_x = None if grad_x is None else grad_x[part]
        to_p = None if grad_p is None else grad_p[part] if prototypes.ndim == 3 else grad_p
        single = torch.ones_like(at, dtype=torch.bool)
        if together:
            single = _close(best[part], x, p, at, measure)
            for k in range(0, count, columns):
                c = slice(k, k + columns)
                to_c = None if to_p is None else to_p[..., c, :]
                rest = grad[:, c].masked_fill(single[:, c], 0.0)
                _add_product(to_x, to_c, rest, x, p[..., c, :], at[:, c], measure.product)
        b, j = torch.nonzero(single, as_tuple=True)
        _add_pairs(to_x, to_p, grad[b, j], x, p, (b, at[b, j], j), measure, budget)
    if grad_x is not None and mask is not None:
        grad_x.masked_fill_(~mask.unsqueeze(-1), 0.0)  # 0 times whatever the padding holds
    return grad_x, grad_p


class _Prototypes:
    """A block of prototypes ``(P', D)`` or ``(B', P', D)`` and what is needed of them for every chunk of tokens."""

    def __init__(self, vectors: Tensor, measure: Measure) -> None:
        self.vectors = vectors
        self.factor, self.added = (vectors, None) if measure.product is None else measure.product.prototype(vectors)
        cancels = isinstance(measure, Distance)
        self.norms = None if not cancels else self.added if measure.product is not None else squared_norm(vectors)


def _nearest(
    x: Tensor,
    p: _Prototypes,
    measure: Measure,
    real: Tensor | None,
    exact: bool | Tensor,
    budget: int,
    scratch: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return value and position ``(B', P')`` for one chunk of tokens ``(B', S', D)``."""
    if real is not None:
        x = x.masked_fill(~real.unsqueeze(-1), 0.0)  # padding may hold anything, NaN too
    table, own = _table(x, p, measure, real, scratch)
    if x.shape[1] == 1:
        best = table[:, 0]
        at = torch.zeros_like(best, dtype=torch.long)
    elif exact is not False or measure.product is None or table.device.type != "cpu":
        best, at = measure.nearest(table, dim=1)
    else:
        best, at = _winner(table, measure)
    if p.added is not None:
        best = best.add_(p.added).clamp_min_(0.0) if isinstance(measure, Distance) else best.add_(p.added)
    if exact is not False:
        _settle(best, at, table, x, p, measure, None if exact is True else exact, budget)
    elif p.norms is not None:
        norms = squared_norm(x) if own is None else own
        if measure.doubtful(best.amin(1), norms.amax(1), p.norms.amax(-1)).any():
            b, j = torch.nonzero(measure.doubtful(best, norms.gather(1, at), p.norms), as_tuple=True)
            best[b, j] = _paired_at(measure, x, p.vectors, b, at[b, j], j, budget)
    return best, at


def _winner(table: Tensor, measure: Measure) -> tuple[Tensor, Tensor]:
    """Return value and first position ``(B', P')`` of the nearest in each column; overwrites the table.

    The same as ``measure.nearest``, by vectorised passes over a table in the cache: the winners' own positions are the
    smallest of ``position + gap to the winner * 1e30``.
    """
    falls = isinstance(measure, Distance)
    best = table.amin(1) if falls else table.amax(1)
    steps = torch.arange(table.shape[1], dtype=table.dtype, device=table.device).view(1, -1, 1)
    torch.add(steps, table.sub_(best.unsqueeze(1)), alpha=1e30 if falls else -1e30, out=table)
    # nan: no real position (inf - inf), or a value that is nan; any position does
    return best, table.amin(1).nan_to_num_(0.0).to(torch.long)


def _table(
    x: Tensor, p: _Prototypes, measure: Measure, real: Tensor | None, scratch: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Return ``(B', S', P')`` of what decides the winner, masked positions farthest; and the tokens' own part of it.

    What the prototypes add is left out where the measure is a product.
    """
    shape = *x.shape[:2], p.vectors.shape[-2]
    shared = p.vectors.ndim == 2  # one matrix product over all positions of the chunk
    if measure.product is None:
        table = measure.pairwise(x.flatten(0, 1) if shared else x, p.vectors).reshape(shape)
        return table if real is None else table.masked_fill(~real.unsqueeze(-1), measure.farthest), None
    y, a = measure.product.token(x)
    if real is not None:
        a = (x.new_zeros(x.shape[:2]) if a is None else a).masked_fill(~real, measure.farthest)
    table = scratch[: shape[0] * shape[1] * shape[2]].view(shape)
    none, scale = x.new_zeros(()), measure.product.scale
    if shared:
        torch.addmm(none, y.flatten(0, 1), p.factor.T, alpha=scale, beta=0, out=table.view(-1, shape[2]))
    else:
        torch.baddbmm(none, y, p.factor.transpose(1, 2), alpha=scale, beta=0, out=table)
    if a is not None:
        table += a.unsqueeze(-1)
    return table, a


def _settle(
    best: Tensor,
    at: Tensor,
    table: Tensor,
    x: Tensor,
    p: _Prototypes,
    measure: Measure,
    among: Tensor | None,
    budget: int,
) -> None:
    """Correct in place value and position of winners that rounding could have made; values then lack no digit.

    ``best`` must be complete. Every entry of ``table`` within the rounding noise of its column's winner is compared
    again by ``paired``, whose result does not depend on what else is in the batch.
    """
    product = measure.product
    if product is None:
        scale = x.square().sum(-1).amax(1, keepdim=True) + p.vectors.square().sum(-1)
    else:
        y, a = product.token(x)
        scale = abs(product.scale) * y.norm(dim=-1).amax(1, keepdim=True) * p.factor.norm(dim=-1)
        if a is not None:
            scale = scale + a.abs().amax(1, keepdim=True)
        if p.added is not None:
            scale = scale + p.added.abs()
    noise = (8 + x.shape[-1] ** 0.5) * torch.finfo(table.dtype).eps * scale
    winner = table.gather(1, at.unsqueeze(1))
    close = ((table - winner).abs() <= noise.unsqueeze(1)) & torch.isfinite(winner)
    needed = close.sum(1) > 1
    close &= (needed if among is None else needed & among).unsqueeze(1)
    b, s, j = torch.nonzero(close, as_tuple=True)
    if len(b):
        values = _paired_at(measure, x, p.vectors, b, s, j, budget)
        # nearest first within each column; positions come in rising order and both sorts are stable
        by_value = values.argsort(stable=True, descending=not isinstance(measure, Distance))
        column = (b * table.shape[2] + j)[by_value]
        by_column = column.argsort(stable=True)
        column = column[by_column]
        first = torch.ones_like(column, dtype=torch.bool)
        first[1:] = column[1:] != column[:-1]
        chosen = by_value[by_column][first]
        at[b[chosen], j[chosen]] = s[chosen]
    finite = torch.isfinite(best)
    b, j = torch.nonzero(finite if among is None else finite & among, as_tuple=True)
    best[b, j] = _paired_at(measure, x, p.vectors, b, at[b, j], j, budget)


def _paired_at(measure: Measure, x: Tensor, p: Tensor, b: Tensor, s: Tensor, j: Tensor, budget: int) -> Tensor:
    """Return ``(n,)`` exact values of tokens ``x[b, s]`` and prototypes ``p[j]`` (``p[b, j]`` when drawn)."""
    values = x.new_empty(len(b))
    rows = chunk_rows(4 * x.element_size() * x.shape[-1], budget)
    for i in range(0, len(b), rows):
        here = slice(i, i + rows)
        chosen = p[j[here]] if p.ndim == 2 else p[b[here], j[here]]
        values[here] = measure.paired(x[b[here], s[here]], chosen)
    return values


def _close(best: Tensor, x: Tensor, p: Tensor, at: Tensor, measure: Measure) -> Tensor:
    """Return ``(B', P')`` bool: pairs so near that their difference must be taken before anything is summed."""
    if not isinstance(measure, Distance):
        return torch.zeros_like(best, dtype=torch.bool)
    return measure.doubtful(best * 1e4, squared_norm(x).gather(1, at), squared_norm(p))


def _add_product(
    to_x: Tensor | None, to_p: Tensor | None, grad: Tensor, x: Tensor, p: Tensor, at: Tensor, product: Product
) -> None:
    """Add to the gradients of tokens and prototypes what the matched pairs bring, without copying a token per pair."""
    batch, steps = x.shape[:2]
    count = p.shape[-2]
    weight = product.scale * grad
    dense = steps <= _FEW_STEPS
    if dense:
        spread = grad.new_zeros(batch, steps, count).scatter_(1, at.unsqueeze(1), weight.unsqueeze(1))
    index = at + steps * torch.arange(batch, device=at.device).unsqueeze(1)
    with torch.enable_grad():
        x, p = x.detach().requires_grad_(), p.detach().requires_grad_()
        (y, a), (q, b) = product.token(x), product.prototype(p)
    if to_p is not None:
        tokens = y.detach().flatten(0, 1)
        if dense:
            along = spread.flatten(0, 1).T @ tokens if p.ndim == 2 else spread.transpose(1, 2) @ y.detach()
        elif p.ndim == 2:
            along = embedding_bag(index.T.contiguous(), tokens, mode="sum", per_sample_weights=weight.T.contiguous())
        else:
            along = tokens[index] * weight.unsqueeze(-1)
        to_p += _chain(p, (q, along), (b, grad.sum(0) if p.ndim == 2 else grad))
    if to_x is not None:
        vectors, flat = q.detach(), index.flatten()
        if dense:
            along = spread @ vectors
        else:
            order = flat.argsort()
            ends = torch.bincount(flat, minlength=batch * steps).cumsum(0)
            starts = torch.cat([ends.new_zeros(1), ends[:-1]])
            rows = order % count if p.ndim == 2 else order
            vectors = vectors.reshape(-1, q.shape[-1])
            along = embedding_bag(rows, vectors, starts, mode="sum", per_sample_weights=weight.flatten()[order])
        alone = grad.new_zeros(batch * steps).index_add_(0, flat, grad.flatten())
        to_x += _chain(x, (y, along.view_as(y)), (a, alone.view(batch, steps)))


def _chain(source: Tensor, *parts: tuple[Tensor | None, Tensor]) -> Tensor:
    """Return the gradient of ``source`` from the gradients of what was made of it."""
    made = [(tensor, grad) for tensor, grad in parts if tensor is not None and tensor.requires_grad]
    return torch.autograd.grad([tensor for tensor, _ in made], source, [grad for _, grad in made])[0]


def _add_pairs(
    to_x: Tensor | None,
    to_p: Tensor | None,
    grad: Tensor,
    x: Tensor,
    p: Tensor,
    pairs: tuple[Tensor, Tensor, Tensor],
    measure: Measure,
    budget: int,
) -> None:
    """Add to the gradients what single pairs (input, position, prototype) bring, by ``paired``."""
    rows = chunk_rows(8 * x.element_size() * x.shape[-1], budget)
    for i in range(0, len(grad), rows):
        b, s, j = (index[i : i + rows] for index in pairs)
        where = (j,) if p.ndim == 2 else (b, j)
        with torch.enable_grad():
            tokens, vectors = x[b, s].detach().requires_grad_(), p[where].detach().requires_grad_()
            parts = torch.autograd.grad(measure.paired(tokens, vectors), (tokens, vectors), grad[i : i + rows])
        if to_x is not None:
            to_x.index_put_((b, s), parts[0], accumulate=True)
        if to_p is not None:
            to_p.index_put_(where, parts[1], accumulate=True)
