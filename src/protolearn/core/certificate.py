"""How far an input may move before a head of radial basis functions could change its mind: a proven radius.

The head scores ``p_c = sum over k of (R+_ck - R-_ck) d_k + sum over k of R-_ck`` with
``d_k = exp(-t_k^2 / sigma_k)`` and ``t_k`` the Euclidean distance to component k. A move of length ``e`` changes no
``t_k`` by more than ``e``, so what speaks for class c against c' falls at worst to::

    g(e) = sum over a_k > 0 of a_k exp(-(t_k + e)^2 / sigma_k)
         - sum over a_k < 0 of |a_k| exp(-max(t_k - e, 0)^2 / sigma_k) + B
    a = (R+_c - R-_c) - (R+_c' - R-_c'),   B = sum of R-_c - sum of R-_c'

``g`` falls with ``e``; below its root no move makes c' beat c. The radius is one in the space where the distances are
taken: that is the input itself only where nothing comes before the comparison. Where a component looks for its nearest
position, ``t_k`` is the smallest distance, and the bound holds for a move of all positions together.

Derived for this library, and checked against attacks in its tests; the paper's own theorem (Saralajew et al., AAAI
2025, arXiv 2412.15499) was not at hand. All sums are taken as logarithms, because far from every component they
underflow although the radius is finite.

A prediction is made of scores that were rounded. Where they are all but equal, rounding decides, and no move can be
ruled out. :func:`certified_radius` therefore asks for a lead that rounding cannot make up for: each of the K products
and sums of a score is off by at most ``eps`` of it, scores by at most ``(K + 4) eps`` of what they could be.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from protolearn.core.reasoning import Reasoning
from protolearn.core.similarities import RadialBasis
from protolearn.errors import UsageError
from protolearn.structures import Output

_NOTHING = -1e30
"""Stands for log 0: finite, so that gradients of what is left out are 0 and not nan."""

_CHUNK = 2**20  # entries (inputs x rivals x components) that bisection holds at a time


class _Pairs(NamedTuple):
    """A class and each rival: logarithms of ``|a_k|`` by sign ``(B, C, K)``, and of ``|B|`` by sign ``(B, C)``."""

    rises: Tensor
    falls: Tensor
    ahead: Tensor
    behind: Tensor

    @property
    def safe(self) -> Tensor:
        """``(B, C)``: nothing can ever speak for the rival. By signs: the sums underflow although they are not 0."""
        return (self.falls <= _NOTHING).all(-1) & (self.behind <= _NOTHING)


def radius_by_bisection(
    distances: Tensor,
    sigma: Tensor,
    shares: Tensor,
    target: Tensor,
    *,
    steps: int = 64,
    rounding: torch.finfo | None = None,
) -> Tensor:
    """Return ``(B, C)`` the radius within which class ``target`` is not beaten by each other class.

    Parameters
    ----------
    distances : Tensor
        ``(B, K)`` Euclidean distances, not squared; inf where a component can never be found.
    sigma : Tensor
        ``(K,)`` widths: ``d = exp(-t^2 / sigma)``.
    shares : Tensor
        ``(2, C, K)`` weights of presence and of absence.
    target : Tensor
        ``(B,)`` the class to keep, mostly the predicted one.
    steps : int
        Halvings; what is returned is the certified end of the last interval.
    rounding : torch.finfo, optional
        Of the numbers that predictions are compared in: the lead must then be larger than their rounding. By default
        scores are taken as exact.

    Returns
    -------
    Tensor
        ``(B, C)``, float64, without gradient. 0 where the rival wins already, or is too near to tell; inf where it
        never can, and for the target itself. The smallest of a row is the certified radius of that input.

    Raises
    ------
    ValueError
        If shapes do not fit or a width is not positive.

    Examples
    --------
    >>> shares = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]]])  # each class has one component
    >>> at = torch.tensor([[0.0, 2.0]])  # on the first, two away from the second: half way is one away
    >>> radius_by_bisection(at, torch.ones(2), shares, torch.tensor([0]))
    tensor([[inf, 1.]], dtype=torch.float64)
    """
    _check(distances, sigma, shares, target)
    with torch.no_grad():
        rows = max(1, _CHUNK // (shares.shape[1] * shares.shape[2]))
        parts = zip(torch.split(distances.double(), rows), torch.split(target, rows), strict=True)
        found = [_bisect(t, sigma.double(), shares.double(), own, steps, rounding) for t, own in parts]
    return torch.cat(found) if found else distances.new_zeros(0, shares.shape[1], dtype=torch.float64)


def _bisect(
    t: Tensor, sigma: Tensor, shares: Tensor, target: Tensor, steps: int, rounding: torch.finfo | None
) -> Tensor:
    t, pairs = _without_absent(t, _pairs(shares, target))
    shrink, swell, extra, safe = 0.0, 0.0, torch.full_like(pairs.ahead, _NOTHING), pairs.safe
    if rounding is not None:
        count, base = shares.shape[2], shares[1].sum(1)
        off = (count + 4) * rounding.eps
        shrink, swell = math.log1p(-min(off, 1.0 - 1e-9)), math.log1p(off)
        extra = _log(off * (base[target].unsqueeze(1) + base) + count * rounding.tiny)
        safe = safe & (pairs.ahead + shrink >= extra)  # a lead that is never lost may get lost in rounding, far away

    def holds(radius: Tensor) -> Tensor:
        away, near = t.unsqueeze(1) + radius.unsqueeze(-1), t.unsqueeze(1) - radius.unsqueeze(-1)
        gain = (pairs.rises - away.square() / sigma).logsumexp(-1).logaddexp(pairs.ahead) + shrink
        loss = (pairs.falls - near.clamp_min(0.0).square() / sigma).logsumexp(-1).logaddexp(pairs.behind) + swell
        return gain >= loss.logaddexp(extra)

    low = torch.zeros_like(pairs.ahead)
    wins = holds(low) & ~safe
    high = low + t.amax(1, keepdim=True) + sigma.amax().sqrt()
    for _ in range(steps):  # widen until the bound fails
        still = holds(high) & wins
        if not bool(still.any()):
            break
        low, high = torch.where(still, high, low), torch.where(still, 2.0 * high, high)
    for _ in range(steps):
        middle = (low + high) / 2.0
        good = holds(middle) & wins
        low, high = torch.where(good, middle, low), torch.where(good, high, middle)
    return low.masked_fill(safe, torch.inf).scatter(1, target.unsqueeze(1), torch.inf)


def certified_radius(out: Output) -> Tensor:
    """Return ``(B,)`` how far each input may move, where distances are taken, with its prediction proven to stay.

    For outputs of a ``Reasoning`` head over radial basis functions of squared L2 distances. Rounding of the scores is
    allowed for: where classes are as good as tied the radius is 0; rounding of the distances themselves is not. Without
    gradient, float64, inf where nothing can change the prediction.

    Raises
    ------
    UsageError
        If the output was made by anything else: there is no certificate then.
    """
    head, similar = out.head, out.similarity
    if not isinstance(head, Reasoning) or not isinstance(similar, RadialBasis) or out.distances is None or head.clip:
        raise UsageError("a certified radius needs reasoning over radial basis functions, without clipped detections")
    with torch.no_grad():
        distances = out.distances.double().sqrt()
        shares, limits = head.shares(out.bank.usable), torch.finfo(out.logits.dtype)
        return radius_by_bisection(distances, similar.width, shares, out.logits.argmax(1), rounding=limits).amin(1)


def radius_closed_form(distances: Tensor, sigma: Tensor, shares: Tensor, target: Tensor) -> Tensor:
    """Return ``(B, C)`` a smaller radius without search, differentiable, for training.

    ``sqrt(m^2 + s log T) - m`` with ``T = (B + sqrt(B^2 + 4 N P)) / (2 N)``: ``P`` and ``N`` are what the components
    say for and against now, ``m`` is the largest distance and ``s`` the smallest width.

    Where the rival wins already it is negative, and minus the rival's own radius, so that a loss can pull from there.
    inf where the rival can never win, and for the target itself. Parameters as in :func:`radius_by_bisection`.

    Examples
    --------
    >>> shares = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]]])
    >>> at = torch.tensor([[0.0, 2.0], [2.0, 0.0]])
    >>> [round(r, 4) for r in radius_closed_form(at, torch.ones(2), shares, torch.tensor([0, 0]))[:, 1].tolist()]
    [0.4495, -0.4495]
    """
    _check(distances, sigma, shares, target)
    t, pairs = _without_absent(distances, _pairs(shares, target))
    exponent = (t.square() / sigma).unsqueeze(1)
    gain, loss = (pairs.rises - exponent).logsumexp(-1), (pairs.falls - exponent).logsumexp(-1)  # log P, log N
    size = torch.maximum(pairs.ahead, pairs.behind)  # log |B|
    # log of (|B| + sqrt(B^2 + 4 N P)) / 2
    half = size.logaddexp(0.5 * (2.0 * size).logaddexp(math.log(4.0) + gain + loss)) - math.log(2.0)
    log_t = torch.where(pairs.ahead > pairs.behind, half - loss, gain - half)
    square, m = sigma.amin() * log_t, t.amax(1, keepdim=True)
    root = (m.square() + square.abs()).clamp_min(torch.finfo(m.dtype).tiny).sqrt()
    radius = square / (m + root)  # sqrt(m^2 + square) - m without cancellation, and odd in square
    return radius.masked_fill(pairs.safe, torch.inf).scatter(1, target.unsqueeze(1), torch.inf)


def _pairs(shares: Tensor, target: Tensor) -> _Pairs:
    present, absent = shares
    slope, base = present - absent, absent.sum(1)
    a = slope[target].unsqueeze(1) - slope
    b = base[target].unsqueeze(1) - base
    return _Pairs(_log(a), _log(-a), _log(b), _log(-b))


def _log(values: Tensor) -> Tensor:
    """Return the logarithm of what is positive, ``_NOTHING`` elsewhere."""
    positive = values > 0
    return torch.where(positive, values, 1.0).log().masked_fill(~positive, _NOTHING)


def _without_absent(t: Tensor, pairs: _Pairs) -> tuple[Tensor, _Pairs]:
    """Leave out of each input the components that it cannot have."""
    absent = torch.isinf(t)
    hide = absent.unsqueeze(1)
    kept = pairs._replace(rises=pairs.rises.masked_fill(hide, _NOTHING), falls=pairs.falls.masked_fill(hide, _NOTHING))
    return t.masked_fill(absent, 0.0), kept


def _check(distances: Tensor, sigma: Tensor, shares: Tensor, target: Tensor) -> None:
    if shares.ndim != 3 or len(shares) != 2:
        raise ValueError(f"shares must be (2, C, K), got {tuple(shares.shape)}")
    classes, count = shares.shape[1:]
    if distances.ndim != 2 or distances.shape[1] != count or sigma.shape != (count,):
        got = f"{tuple(distances.shape)} and {tuple(sigma.shape)}"
        raise ValueError(f"distances must be (B, {count}) and sigma ({count},), got {got}")
    if target.shape != distances.shape[:1] or bool(((target < 0) | (target >= classes)).any()):
        raise ValueError(f"target must be ({len(distances)},) class indices below {classes}")
    if not bool((sigma > 0).all()):
        raise ValueError("every width must be positive")
