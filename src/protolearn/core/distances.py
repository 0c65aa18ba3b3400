"""More distances between a token and a prototype, beside the products in ``measures``: sums over coordinates.

None of these is a matrix product, so a table of differences ``(N, P, D)`` would be needed; it is made in chunks of
bounded memory, forward and backward. Smooth, soft and hard variants are named as such; the plain names are the textbook
distances. Distances that differ from Euclid's by a linear map (Mahalanobis) are such maps: see :func:`mahalanobis`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from protolearn.core.matching import chunk_rows
from protolearn.core.measures import Compare, Distance, Product, squared_l2
from protolearn.errors import UsageError, look_up

_TINY = 1e-30


@dataclass(frozen=True)
class Direct(Distance):
    """A distance computed from differences, which loses no digits to cancellation near zero."""

    def doubtful(self, values: Tensor, x_norm: Tensor, p_norm: Tensor) -> Tensor:
        """Return nowhere."""
        return torch.zeros_like(values, dtype=torch.bool)


def in_chunks(paired: Compare, budget: int | None = None) -> Compare:
    """Return the table of all pairs from a comparison of matched rows, in chunks of bounded memory.

    Under gradients a chunk keeps its inputs only and is computed again on the way back.

    Examples
    --------
    >>> far = in_chunks(lambda x, p: (x - p).abs().amax(-1))
    >>> far(torch.zeros(2, 3), torch.tensor([[1.0, 0.0, -4.0]]))
    tensor([[4.],
            [4.]])
    """

    def table(x: Tensor, p: Tensor) -> Tensor:
        if p.ndim > 2:  # every input has its own prototypes
            lead = (x[..., 0, 0] + p[..., 0, 0]).shape
            xs = x.expand(*lead, *x.shape[-2:]).flatten(0, -3)
            ps = p.expand(*lead, *p.shape[-2:]).flatten(0, -3)
            return torch.stack([table(a, b) for a, b in zip(xs, ps, strict=True)]).view(*lead, x.shape[-2], -1)
        rows, count = x.reshape(-1, x.shape[-1]), len(p)
        item = 4 * x.element_size() * max(1, x.shape[-1])  # a comparison makes a few tables of differences
        columns = min(max(1, count), chunk_rows(item, budget))
        step = chunk_rows(item * columns, budget)
        graph = torch.is_grad_enabled() and (x.requires_grad or p.requires_grad)

        def block(a: Tensor, b: Tensor) -> Tensor:
            return paired(a.unsqueeze(1), b.unsqueeze(0))

        lines = []
        for i in range(0, max(1, len(rows)), step):
            parts = []
            for j in range(0, max(1, count), columns):
                a, b = rows[i : i + step], p[j : j + columns]
                parts.append(checkpoint(block, a, b, use_reentrant=False) if graph else block(a, b))
            lines.append(torch.cat(parts, 1))
        return torch.cat(lines).view(*x.shape[:-1], count)

    return table


def _direct(name: str, paired: Compare) -> Direct:
    return Direct(name, in_chunks(paired), paired)


def _root(squares: Tensor) -> Tensor:
    """Return the square root, with gradient 0 at 0 instead of infinity times 0."""
    return squares.clamp_min(_TINY).sqrt().where(squares > 0, squares)


# -- textbook -------------------------------------------------------------------------------------------------------


def _paired_l2(x: Tensor, p: Tensor) -> Tensor:
    return _root((x - p).square().sum(-1))


def _pairwise_l2(x: Tensor, p: Tensor) -> Tensor:
    return _root(squared_l2.pairwise(x, p))


@dataclass(frozen=True)
class _Root(Distance):
    """Euclid's distance by way of its square, so that doubt is about the square."""

    def doubtful(self, values: Tensor, x_norm: Tensor, p_norm: Tensor) -> Tensor:
        return values.square() < 1e-2 * (x_norm + p_norm)


def _half_unit(x: Tensor) -> tuple[Tensor, Tensor]:
    return F.normalize(x, dim=-1), x.new_full(x.shape[:-1], 0.5)


_ONE_MINUS_COSINE = Product(_half_unit, _half_unit, -1.0)  # 1/2 - cos + 1/2


def _pairwise_cosine(x: Tensor, p: Tensor) -> Tensor:
    return _ONE_MINUS_COSINE.table(x, p).clamp_min_(0.0)


def _paired_cosine(x: Tensor, p: Tensor) -> Tensor:
    y, q = F.normalize(x, dim=-1), F.normalize(p, dim=-1)
    none = 0.5 * (y == 0).all(-1) + 0.5 * (q == 0).all(-1)  # what has no direction is at 1 from everything
    return 0.5 * (y - q).square().sum(-1) + none


def _manhattan(x: Tensor, p: Tensor) -> Tensor:
    return (x - p).abs().sum(-1)


def minkowski(power: float = 1.5, eps: float = 0.0) -> Direct:
    """Return the distance ``(sum |x - p|^power)^(1/power)``; ``eps`` is added to each gap, to the sum and the root.

    Examples
    --------
    >>> minkowski(2.0).paired(torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0]))
    tensor(5.)
    """
    if not power >= 1:
        raise UsageError(f"a Minkowski distance has a power of at least 1, got {power}")

    def paired(x: Tensor, p: Tensor) -> Tensor:
        total = ((x - p).abs() + eps).pow(power).sum(-1) + eps
        return total.clamp_min(_TINY).pow(1 / power).where(total > 0, total) + eps

    return _direct("minkowski", paired)


def _chebyshev(x: Tensor, p: Tensor) -> Tensor:
    return (x - p).abs().amax(-1)


def _canberra(x: Tensor, p: Tensor) -> Tensor:
    return ((x - p).abs() / (x.abs() + p.abs()).clamp_min(1e-12)).sum(-1)  # 0 / 0 = 0


def _bray_curtis(x: Tensor, p: Tensor) -> Tensor:
    return _manhattan(x, p) / (x + p).abs().sum(-1).clamp_min(1e-12)


l2 = _Root("l2", _pairwise_l2, _paired_l2)
cosine_distance = Distance("cosine_distance", _pairwise_cosine, _paired_cosine, _ONE_MINUS_COSINE)
manhattan = _direct("manhattan", _manhattan)
chebyshev = _direct("chebyshev", _chebyshev)
canberra = _direct("canberra", _canberra)
bray_curtis = _direct("bray_curtis", _bray_curtis)


# -- variants for learning ------------------------------------------------------------------------------------------
# Source: the distance layers published with "Rethinking the Harmonic Loss via Non-Euclidean Distance Layers" (2026).


def _sharpened(x: Tensor, p: Tensor) -> Tensor:
    gaps = (x - p).abs()
    return gaps / (gaps.std(-1, keepdim=True) + 1e-8)


def _chebyshev_soft(x: Tensor, p: Tensor) -> Tensor:
    gaps = _sharpened(x, p)
    return (gaps.softmax(-1) * gaps).sum(-1)


def _chebyshev_smooth(x: Tensor, p: Tensor, alpha: float = 10.0) -> Tensor:
    return torch.logsumexp((alpha * _sharpened(x, p)).clamp(-50.0, 50.0), -1) / alpha


def _hamming_soft(x: Tensor, p: Tensor) -> Tensor:
    return (x.sigmoid() - p.sigmoid()).abs().sum(-1)


def _bits(x: Tensor) -> Tensor:
    """Return 1 where a coordinate is above one half, with the gradient of the coordinate itself."""
    return (x > 0.5).to(x.dtype) + x - x.detach()


def _hamming_hard(x: Tensor, p: Tensor) -> Tensor:
    return (_bits(x) - _bits(p)).abs().sum(-1)


def _canberra_weighted(x: Tensor, p: Tensor) -> Tensor:
    # the weights are the shares of |x| + |p|, which cancel Canberra's denominators
    return _manhattan(x, p) / (x.abs() + p.abs()).sum(-1).clamp_min(1e-8)


def _floored(total: Tensor, eps: float = 1e-3) -> Tensor:
    return (total.abs() + eps).clamp_min(10 * eps)


def _bray_curtis_signed(x: Tensor, p: Tensor) -> Tensor:
    return _manhattan(x, p) / _floored((x + p).sum(-1))


def _bray_curtis_abs(x: Tensor, p: Tensor) -> Tensor:
    return _manhattan(x, p) / _floored((x.abs() + p.abs()).sum(-1))


def _shares(x: Tensor, eps: float = 1e-3) -> Tensor:
    sizes = x.abs() + eps
    return sizes / sizes.sum(-1, keepdim=True)


def _bray_curtis_shares(x: Tensor, p: Tensor) -> Tensor:
    return _bray_curtis_abs(_shares(x), _shares(p))


DISTANCES: dict[str, Distance] = {
    measure.name: measure
    for measure in (
        squared_l2,
        l2,
        cosine_distance,
        manhattan,
        minkowski(1.5),
        chebyshev,
        _direct("chebyshev_soft", _chebyshev_soft),
        _direct("chebyshev_smooth", _chebyshev_smooth),
        _direct("hamming_soft", _hamming_soft),
        _direct("hamming_hard", _hamming_hard),
        canberra,
        _direct("canberra_weighted", _canberra_weighted),
        bray_curtis,
        _direct("bray_curtis_signed", _bray_curtis_signed),
        _direct("bray_curtis_abs", _bray_curtis_abs),
        _direct("bray_curtis_shares", _bray_curtis_shares),
    )
}


def get_distance(name: str) -> Distance:
    """Return a distance by name.

    Raises
    ------
    UsageError
        If there is none; the nearest names are suggested.

    Examples
    --------
    >>> get_distance("canberra").paired(torch.tensor([1.0, 0.0]), torch.tensor([3.0, 0.0]))
    tensor(0.5000)
    """
    return look_up("distance", name, DISTANCES)


# -- Mahalanobis: Euclid's distance after a linear map ---------------------------------------------------------------


def mahalanobis(x: Tensor, p: Tensor, matrix: Tensor, eps: float = 0.0) -> Tensor:
    """Return ``sqrt((x - p)' A (x - p) + eps)`` for all pairs, ``(..., N, P)``.

    Parameters
    ----------
    x, p : Tensor
        ``(..., N, D)`` and ``(P, D)``.
    matrix : Tensor
        A, ``(D, D)``: symmetric. If it is not positive, a negative square counts as 0.
    eps : float
        Under the root.

    Notes
    -----
    With ``A = L L'`` this is Euclid's distance between ``x L`` and ``p L``, which is how a model learns it.

    Examples
    --------
    >>> mahalanobis(torch.zeros(1, 2), torch.tensor([[3.0, 4.0]]), torch.eye(2))
    tensor([[5.]])
    """

    def paired(a: Tensor, b: Tensor) -> Tensor:
        gap = a - b
        return _root(((gap @ matrix) * gap).sum(-1).clamp_min(0.0) + eps)

    return in_chunks(paired)(x, p)


def symmetric_matrix(free: Tensor, floor: float = 1e-2, eps: float = 1e-5) -> Tensor:
    """Return the symmetric part of a free matrix plus ``floor + eps`` on the diagonal; it need not be positive."""
    return (free + free.T) / 2 + (floor + eps) * torch.eye(len(free), dtype=free.dtype, device=free.device)
