"""Rules that move prototypes without a gradient: running means, moving averages, k-means, EM, split and merge.

Pure functions on tensors; a bank or a method keeps the state. N tokens ``(N, D)``, P prototypes ``(P, D)``, hard
assignments ``(N,)`` with -1 for "none", soft ones ``(N, P)``. Nothing that was never seen is moved, and nothing that is
absent becomes a row of zeros.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from protolearn.core.assignment import mixture_log_joint, mixture_posterior, nearest
from protolearn.core.measures import squared_l2, squared_norm


def group_sums(values: Tensor, rows: Tensor, count: int, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the sum ``(P, D)`` of the tokens of each prototype and how many (or how much weight) ``(P,)``.

    Parameters
    ----------
    values : Tensor
        ``(N, D)``.
    rows : Tensor
        ``(N,)`` int64 prototype of each token; -1 = none.
    count : int
        P.
    weights : Tensor, optional
        ``(N,)``.

    Examples
    --------
    >>> group_sums(torch.tensor([[1.0], [2.0], [5.0]]), torch.tensor([1, 1, -1]), 2)
    (tensor([[0.],
            [3.]]), tensor([0., 2.]))
    """
    if values.ndim != 2 or rows.shape != values.shape[:1]:
        raise ValueError(f"expected tokens (N, D) and rows (N,), got {tuple(values.shape)} and {tuple(rows.shape)}")
    if len(rows) and (int(rows.max()) >= count or int(rows.min()) < -1):
        raise ValueError(f"rows must lie between -1 and {count - 1}, got {int(rows.min())} to {int(rows.max())}")
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    weights = values.new_ones(len(values)) if weights is None else weights.to(values)
    # tokens in the order of their prototype, the unassigned ones as group 0, which is dropped
    order = rows.argsort(stable=True)
    size = torch.bincount(rows + 1, minlength=count + 1)
    starts = size.cumsum(0) - size
    sums = F.embedding_bag(order, values, starts, mode="sum", per_sample_weights=weights[order])
    totals = weights.new_zeros(count + 1).index_add_(0, rows + 1, weights)
    return sums[1:], totals[1:]


def share_sums(values: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """Return sums ``(..., P, D)`` of tokens ``(..., N, D)`` by shares ``(..., N, P)``, and totals ``(..., P)``."""
    return shares.transpose(-1, -2) @ values, shares.sum(-2)


def running_mean(means: Tensor, counts: Tensor, sums: Tensor, totals: Tensor) -> tuple[Tensor, Tensor]:
    """Return means ``(P, D)`` and counts ``(P,)`` after more tokens, given by their sums and number.

    One pass, and however the tokens are split into batches the result is the same up to rounding. A prototype without
    any token so far keeps its vector. Two parts made apart are merged by giving one as ``means * counts, counts``.

    Examples
    --------
    >>> running_mean(torch.tensor([[1.0], [7.0]]), torch.tensor([3.0, 0.0]), torch.tensor([[5.0], [0.0]]),
    ...              torch.tensor([1.0, 0.0]))
    (tensor([[2.],
            [7.]]), tensor([4., 0.]))
    """
    after = counts + totals
    # the step form: the mean moves by a share of the gap, so a large count costs no digits
    step = (sums - totals.unsqueeze(-1) * means) / after.clamp_min(torch.finfo(after.dtype).tiny).unsqueeze(-1)
    return torch.where((after > 0).unsqueeze(-1), means + step, means), after


class Moments(NamedTuple):
    """Means ``(P, D)``, population variances ``(P, D)`` and counts ``(P,)``; counts 0 = never seen, not zero."""

    means: Tensor
    variances: Tensor
    counts: Tensor


def group_moments(values: Tensor, rows: Tensor, count: int) -> Moments:
    """Return the moments of the tokens of each prototype.

    Examples
    --------
    >>> group_moments(torch.tensor([[1.0], [3.0]]), torch.tensor([0, 0]), 1)
    Moments(means=tensor([[2.]]), variances=tensor([[1.]]), counts=tensor([2.]))
    """
    sums, totals = group_sums(values, rows, count)
    means = sums / totals.clamp_min(1.0).unsqueeze(-1)
    gaps = values.to(means) - means[rows.clamp_min(0)]
    squares, _ = group_sums(gaps.square(), rows, count)
    return Moments(means, squares / totals.clamp_min(1.0).unsqueeze(-1), totals)


def merge_moments(left: Moments, right: Moments) -> Moments:
    """Return the moments of both sets of tokens together: batches, processes or hospitals.

    Examples
    --------
    >>> one, two = (group_moments(torch.tensor([[x]]), torch.tensor([0]), 1) for x in (1.0, 3.0))
    >>> merge_moments(one, two).variances
    tensor([[1.]])
    """
    counts = left.counts + right.counts
    share = (right.counts / counts.clamp_min(torch.finfo(counts.dtype).tiny)).unsqueeze(-1)
    gap = right.means - left.means
    variances = (1 - share) * left.variances + share * right.variances + share * (1 - share) * gap.square()
    return Moments(left.means + share * gap, variances, counts)


def moving_average(
    vectors: Tensor, targets: Tensor, momentum: float, seen: Tensor | None = None, *, normalise: bool = False
) -> Tensor:
    """Return ``momentum * vectors + (1 - momentum) * targets``; rows that were not seen keep their vector.

    The graph to ``targets`` is kept; detach the result where no gradient is wanted.

    Parameters
    ----------
    vectors, targets : Tensor
        ``(P, D)``.
    momentum : float
        In [0, 1]; 0 = replace.
    seen : Tensor, optional
        ``(P,)`` bool.
    normalise : bool
        Scale the moved rows to unit length.

    Examples
    --------
    >>> moving_average(torch.tensor([[1.0], [1.0]]), torch.zeros(2, 1), 0.9, torch.tensor([True, False]))
    tensor([[0.9000],
            [1.0000]])
    """
    if not 0 <= momentum <= 1:
        raise ValueError(f"momentum must lie between 0 and 1, got {momentum}")
    moved = momentum * vectors + (1 - momentum) * targets
    moved = F.normalize(moved, dim=-1) if normalise else moved
    return moved if seen is None else torch.where(seen.unsqueeze(-1), moved, vectors)


def moving_average_in_order(
    vectors: Tensor, values: Tensor, rows: Tensor, momentum: float, *, normalise: bool = False
) -> Tensor:
    """Return what a moving average taken token by token, in the given order, leaves; normalised once at the end.

    Examples
    --------
    >>> moving_average_in_order(torch.zeros(1, 1), torch.tensor([[1.0], [0.0]]), torch.tensor([0, 0]), 0.5)
    tensor([[0.2500]])
    """
    if not 0 <= momentum <= 1:
        raise ValueError(f"momentum must lie between 0 and 1, got {momentum}")
    order = rows.argsort(stable=True)
    size = torch.bincount(rows + 1, minlength=len(vectors) + 1)
    ends = size.cumsum(0)
    later = torch.empty_like(rows)  # how many of the same prototype follow
    later[order] = ends[rows[order] + 1] - 1 - torch.arange(len(rows), device=rows.device)
    weights = (1 - momentum) * values.new_tensor(momentum).pow(later)
    sums, _ = group_sums(values, rows, len(vectors), weights)
    kept = vectors.new_tensor(momentum).pow(size[1:]).unsqueeze(-1)
    moved = kept * vectors + sums.to(vectors)
    moved = F.normalize(moved, dim=-1) if normalise else moved
    return torch.where((size[1:] > 0).unsqueeze(-1), moved, vectors)


@dataclass(frozen=True)
class Clusters:
    """What k-means found.

    Attributes
    ----------
    centres : Tensor
        ``(P, D)``.
    rows : Tensor
        ``(N,)`` int64: the centre of each token.
    counts : Tensor
        ``(P,)`` tokens of each centre.
    inertia : float
        Sum of squared distances of the tokens to their centres.
    iterations : int
        Rounds over all tokens.
    """

    centres: Tensor
    rows: Tensor
    counts: Tensor
    inertia: float
    iterations: int


Assign = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""From tokens ``(N, D)`` and centres ``(P, D)`` to the squared distance and row of each token's nearest centre."""


@torch.no_grad()
def k_means(
    values: Tensor,
    count: int,
    *,
    generator: torch.Generator,
    iterations: int = 25,
    tolerance: float = 1e-4,
    sample: int | None = None,
    start: Tensor | None = None,
    given: Tensor | None = None,
    weights: Tensor | None = None,
    first: Tensor | None = None,
    held: bool = False,
    restarts: int = 1,
    assign: Assign = nearest,
) -> Clusters:
    """Return ``count`` centres of tokens ``(N, D)``: k-means++ on a sample, Lloyd's rounds there, then on all.

    Parameters
    ----------
    values : Tensor
        ``(N, D)``.
    count : int
        P; not more than N.
    generator : torch.Generator
        On the CPU; the same seed gives the same centres.
    iterations : int
        Most rounds on the sample, and again on all tokens.
    tolerance : float
        Stop when the inertia falls by less than this share.
    sample : int, optional
        Tokens used for the start, ``max(40 * count, 10_000)`` by default.
    start : Tensor, optional
        ``(P, D)`` centres to start from instead.
    given : Tensor, optional
        ``(N,)`` int64: the centre a token belongs to whatever the distance, -1 where it is free (labelled tokens).
    weights : Tensor, optional
        ``(N,)`` not negative: how often each token counts, 1 by default. ``inertia`` is weighted, ``counts`` are not.
    first : Tensor, optional
        ``(F, D)`` centres that are known before: they are the first F, and the others are drawn far from them, among
        the free tokens.
    held : bool
        The first F stay where they are.
    restarts : int
        Runs from other draws; the one of least inertia is returned.
    assign : callable
        How the nearest centre of each token is found.

    Notes
    -----
    A centre that no token chose moves to the free token farthest from its own centre, several to several; one that is
    held stays, with a count of 0.

    Raises
    ------
    ValueError
        If there are fewer tokens than centres, or a value is not finite.

    Examples
    --------
    >>> points = torch.tensor([[0.0], [0.1], [5.0], [5.1]])
    >>> k_means(points, 2, generator=torch.Generator().manual_seed(0)).centres.sort(0).values
    tensor([[0.0500],
            [5.0500]])
    """
    if values.ndim != 2 or not 1 <= count <= len(values) + (0 if first is None else len(first)):
        raise ValueError(f"k-means of {tuple(values.shape)} tokens cannot have {count} centres")
    values = values.detach().to(torch.promote_types(values.dtype, torch.float32))
    if not values.sum().isfinite() and not values.isfinite().all():
        raise ValueError("k-means takes finite values only")
    if weights is not None:
        if weights.shape != values.shape[:1] or bool((weights < 0).any()) or not float(weights.sum()) > 0:
            raise ValueError(f"weights must be ({len(values)},), not negative and not all 0")
        weights = weights.to(values)
    if start is not None and start.shape != (count, values.shape[1]):
        raise ValueError(f"start must be {(count, values.shape[1])}, got {tuple(start.shape)}")
    if first is not None:
        if first.ndim != 2 or first.shape[1] != values.shape[1] or not len(first) <= count:
            raise ValueError(f"first must be (F, {values.shape[1]}) with F <= {count}, got {tuple(first.shape)}")
        first = first.to(values)
    rounds = _Rounds(iterations, tolerance, first if held else None, assign)
    if start is not None:
        return rounds.run(values, start.to(values), given, weights)
    size = max(40 * count, 10_000) if sample is None else max(sample, count)
    best: Clusters | None = None
    for _ in range(restarts):
        if size >= len(values):
            begin = _drawn(values, count, generator, given, weights, first)
        else:
            chosen = torch.randperm(len(values), generator=generator)[:size].sort().values.to(values.device)
            part, known = values[chosen], None if given is None else given[chosen]
            share = None if weights is None else weights[chosen]
            begin = rounds.run(part, _drawn(part, count, generator, known, share, first), known, share).centres
        found = rounds.run(values, begin, given, weights)
        best = found if best is None or found.inertia < best.inertia else best
    if best is None:
        raise ValueError(f"restarts must be at least 1, got {restarts}")
    return best


def _drawn(
    values: Tensor,
    count: int,
    generator: torch.Generator,
    given: Tensor | None,
    weights: Tensor | None,
    first: Tensor | None,
) -> Tensor:
    if first is None:
        return plus_plus(values, count, generator, weights)
    values = values if given is None else values[given < 0]
    weights = weights if weights is None or given is None else weights[given < 0]
    if count - len(first) > len(values):
        raise ValueError(f"{len(values)} free tokens cannot give {count - len(first)} further centres")
    return plus_plus(values, count, generator, weights, first)


@torch.no_grad()
def plus_plus(
    values: Tensor,
    count: int,
    generator: torch.Generator,
    weights: Tensor | None = None,
    first: Tensor | None = None,
) -> Tensor:
    """Return ``(P, D)`` tokens far from each other: each is the best of a few drawn by the squared distance.

    ``first`` ``(F, D)`` are counted as chosen already, and stand before the tokens that are drawn. Source: k-means++
    (Arthur and Vassilvitskii, 2007), its greedy form.

    Examples
    --------
    >>> line = torch.tensor([[0.0], [0.1], [9.0]])
    >>> plus_plus(line, 2, torch.Generator().manual_seed(0), first=torch.zeros(1, 1)).flatten()
    tensor([0., 9.])
    """
    tries = 2 + int(math.log(count))
    norms = squared_norm(values)
    gaps = values.new_full((len(values),), float("inf"))
    if first is not None and len(first):
        gaps = nearest(values, first)[0]
    fixed = 0 if first is None else len(first)
    chosen = torch.empty(count - fixed, dtype=torch.long, device=values.device)
    draws = torch.rand(count - fixed, tries, generator=generator, dtype=torch.float64)
    for k in range(count - fixed):
        # in proportion to the gaps; at first, and where all tokens are equal, to 1
        odds = gaps if 0 < float(gaps.sum()) < float("inf") else torch.ones_like(gaps)
        ends = (odds if weights is None else odds * weights).cpu().double().cumsum(0)
        drawn = torch.searchsorted(ends, draws[k, : 1 if k + fixed == 0 else tries] * ends[-1], right=True)
        drawn = drawn.clamp_(max=len(values) - 1).to(values.device)
        table = torch.addmm(norms, values[drawn], values.T, alpha=-2.0).add_(norms[drawn].unsqueeze(1)).clamp_min_(0.0)
        table[torch.arange(len(drawn), device=drawn.device), drawn] = 0.0
        torch.minimum(table, gaps, out=table)
        best = (table.sum(1) if weights is None else table @ weights).argmin()
        chosen[k], gaps = drawn[best], table[best]
    return values[chosen] if first is None else torch.cat([first, values[chosen]])


@dataclass(frozen=True)
class _Rounds:
    """Lloyd's rounds: how many, until when, and which first centres stay."""

    iterations: int
    tolerance: float
    held: Tensor | None
    assign: Assign

    def run(self, values: Tensor, centres: Tensor, given: Tensor | None, weights: Tensor | None) -> Clusters:
        before, done = float("inf"), 0
        count, stay = len(centres), 0 if self.held is None else len(self.held)
        while True:
            gaps, rows = self.assign(values, centres)
            free = gaps
            if given is not None:
                rows = torch.where(given >= 0, given, rows)
                fixed = squared_l2.paired(values[given >= 0], centres[given[given >= 0]])
                free = gaps.masked_fill(given >= 0, -1.0)
                gaps = gaps.masked_scatter(given >= 0, fixed)
            inertia = float((gaps if weights is None else gaps * weights).sum())
            counts = torch.bincount(rows, minlength=count)
            settled = inertia >= before * (1 - self.tolerance) and bool((counts[stay:] > 0).all())
            if settled or done == self.iterations:
                return Clusters(centres, rows, counts, inertia, done)
            sums, totals = group_sums(values, rows, count, weights)
            were = centres
            centres = sums / totals.where(totals > 0, 1.0).unsqueeze(1)
            empty = torch.nonzero(totals == 0).squeeze(1)
            if len(empty):
                far = (free if weights is None else free * weights).argsort(descending=True, stable=True)
                centres[empty] = values[far[: len(empty)]] if len(far) >= len(empty) else centres[empty]
            if self.held is not None:
                centres[:stay] = self.held
            if torch.equal(centres, were):  # nothing will move again, though a centre may have no token
                return Clusters(centres, rows, counts, inertia, done)
            before, done = inertia, done + 1


class Mixture(NamedTuple):
    """Diagonal Gaussians: means and variances ``(..., P, D)``, logs of the weights ``(..., P)``."""

    means: Tensor
    variances: Tensor
    log_weights: Tensor


class Prior(NamedTuple):
    """What a mixture is held to, as ``strength`` imagined tokens for each component.

    Means ``(P, D)``, variances ``(P, D)``; strength > 0.
    """

    means: Tensor
    variances: Tensor
    strength: float

    def start(self) -> Mixture:
        """Return the mixture before any token: the prior's means and variances, equal weights."""
        count = self.means.shape[-2]
        return Mixture(self.means, self.variances, self.means.new_full(self.means.shape[:-1], -math.log(count)))


def em_step(
    values: Tensor,
    mixture: Mixture,
    mask: Tensor | None = None,
    *,
    prior: Prior | None = None,
    floor: float = 1e-6,
) -> tuple[Mixture, Tensor]:
    """Return a mixture fitted one step better, and the posterior ``(..., N, P)`` under the one that came in.

    With a prior (strength t, means m, variances V) this is the MAP step of PANTHER (Song et al., 2024):
    ``W = sum q + t``; weights ``W / sum W``; mean ``(sum q x + t m) / W``; variance
    ``(sum q (x - mean)^2 + t (V + (m - mean)^2)) / W``. Without one it is plain EM, and a component that no token has a
    share of keeps mean and variance.

    Parameters
    ----------
    values : Tensor
        ``(..., N, D)``; leading axes are sets of tokens fitted each by itself, differentiable.
    mixture : Mixture
        Of each set, or one for all.
    mask : Tensor, optional
        ``(..., N)``.
    prior : Prior, optional
        Held to.
    floor : float
        Least variance.

    Examples
    --------
    >>> tokens = torch.tensor([[0.0], [2.0]])
    >>> fitted, posterior = em_step(tokens, Mixture(torch.zeros(1, 1), torch.ones(1, 1), torch.zeros(1)))
    >>> fitted.means, fitted.variances
    (tensor([[1.]]), tensor([[1.]]))
    """
    values = values.to(torch.promote_types(torch.promote_types(values.dtype, mixture.means.dtype), torch.float32))
    if mask is not None:
        values = values.masked_fill(~mask.unsqueeze(-1), 0.0)
    q = mixture_posterior(values, mixture.means, mixture.variances, mixture.log_weights, mask)
    # sums about the component-wise centre of what came in, so that squares of far-away tokens do not cancel
    centre = mixture.means.mean(-2, keepdim=True)
    x = values - centre
    first, total = share_sums(x, q)
    second, _ = share_sums(x.square(), q)
    if prior is not None:
        m = prior.means - centre
        total = total + prior.strength
        first = first + prior.strength * m
        second = second + prior.strength * (prior.variances + m.square())
    seen = (total > 0).unsqueeze(-1)
    safe = total.clamp_min(torch.finfo(total.dtype).tiny).unsqueeze(-1)
    mean = first / safe
    variance = (second / safe - mean.square()).clamp_min(floor)
    weights = total / total.sum(-1, keepdim=True).clamp_min(torch.finfo(total.dtype).tiny)
    means = torch.where(seen, mean + centre, mixture.means)
    any_real = total.sum(-1, keepdim=True) > 0
    logs = torch.where(any_real, weights.log(), mixture.log_weights)
    return Mixture(means, torch.where(seen, variance, mixture.variances), logs), q


def fit_mixture(
    values: Tensor,
    mixture: Mixture,
    steps: int,
    mask: Tensor | None = None,
    *,
    prior: Prior | None = None,
    floor: float = 1e-6,
) -> tuple[Mixture, Tensor]:
    """Return the mixture after some EM steps and the posterior computed before the last of them."""
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    for _ in range(steps):
        mixture, posterior = em_step(values, mixture, mask, prior=prior, floor=floor)
    return mixture, posterior


def mixture_log_likelihood(values: Tensor, mixture: Mixture, mask: Tensor | None = None) -> Tensor:
    """Return ``(...)``: the summed log density of the real tokens ``(..., N, D)``."""
    if mask is not None:
        values = values.masked_fill(~mask.unsqueeze(-1), 0.0)
    each = torch.logsumexp(mixture_log_joint(values, *mixture), -1)
    return (each if mask is None else each.masked_fill(~mask, 0.0)).sum(-1)


def merge_components(mixture: Mixture, groups: Tensor) -> Mixture:
    """Return one component for each group, with the mean and variance of its members taken together.

    Parameters
    ----------
    mixture : Mixture
        ``(P, D)``, no leading axes.
    groups : Tensor
        ``(P,)`` int64 from 0 to G - 1, each at least once.

    Examples
    --------
    >>> pair = Mixture(torch.tensor([[-1.0], [1.0]]), torch.ones(2, 1), torch.tensor([0.5, 0.5]).log())
    >>> merge_components(pair, torch.tensor([0, 0])).variances
    tensor([[2.]])
    """
    size = torch.bincount(groups)
    if groups.shape != mixture.log_weights.shape or (size == 0).any():
        raise ValueError(f"groups must name each of {len(size)} groups at least once, for every component")
    logs = mixture.log_weights
    top = logs.new_full((len(size),), float("-inf")).scatter_reduce(0, groups, logs, "amax")
    top = top.masked_fill(top.isinf(), 0.0)
    log_weights = top + logs.new_zeros(len(size)).index_add(0, groups, (logs - top[groups]).exp()).log()
    # members of a group without weight count equally
    shares = torch.where(log_weights[groups].isinf(), -size[groups].log(), logs - log_weights[groups])
    shares = shares.exp().unsqueeze(1)
    none = torch.zeros(len(size), mixture.means.shape[1], dtype=mixture.means.dtype, device=mixture.means.device)
    means = none.index_add(0, groups, shares * mixture.means)
    inner = mixture.variances + (mixture.means - means[groups]).square()
    return Mixture(means, none.index_add(0, groups, shares * inner), log_weights)


def split_components(mixture: Mixture, rows: Tensor, *, apart: float = 0.5) -> Mixture:
    """Return the mixture with some components cut in two across their widest direction; the second halves come last.

    Each half has half the weight; together they have the mean and variance of what was split.

    Parameters
    ----------
    mixture : Mixture
        ``(P, D)``, no leading axes.
    rows : Tensor
        ``(k,)`` int64.
    apart : float
        How far each half moves, in standard deviations, between 0 and 1.

    Examples
    --------
    >>> one = Mixture(torch.zeros(1, 1), torch.ones(1, 1), torch.zeros(1))
    >>> split_components(one, torch.tensor([0])).means
    tensor([[ 0.5000],
            [-0.5000]])
    """
    if not 0 < apart < 1:
        raise ValueError(f"apart must lie between 0 and 1, got {apart}")
    variances = mixture.variances[rows]
    widest = F.one_hot(variances.argmax(1), variances.shape[1]).to(variances)
    step = apart * variances.sqrt() * widest
    halves = variances * (1 - apart**2 * widest)
    means, spread, logs = (part.clone() for part in mixture)
    means[rows] += step
    spread[rows] = halves
    logs[rows] -= math.log(2.0)
    return Mixture(
        torch.cat([means, mixture.means[rows] - step]), torch.cat([spread, halves]), torch.cat([logs, logs[rows]])
    )
