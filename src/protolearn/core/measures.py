"""Comparing tokens with prototypes: distances (small = near) and similarities (large = near).

A measure has two forms of the same number: ``pairwise`` for all pairs, by one matrix product, and ``paired`` for
matched rows, exact and differentiable. The first finds, the second settles values near zero. ``product`` says how the
matrix product makes the number; matching on the hot path uses it to leave out what changes no winner.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from protolearn.errors import look_up

Compare = Callable[[Tensor, Tensor], Tensor]
Factor = Callable[[Tensor], tuple[Tensor, Tensor | None]]


@dataclass(frozen=True)
class Product:
    """A comparison as a product: ``scale * y @ q.T + a + b`` with ``y, a = token(x)`` and ``q, b = prototype(p)``.

    Attributes
    ----------
    token, prototype : callable
        ``(..., D) -> (..., D), (...)``; None for the second where nothing is added.
    scale : float
        Factor of the product.

    For a distance, ``a`` and ``b`` must be what cancels when the two are near (squared norms).
    """

    token: Factor
    prototype: Factor
    scale: float = 1.0

    def table(self, x: Tensor, p: Tensor) -> Tensor:
        """Return ``(..., N, P)`` for ``(..., N, D)`` and ``(..., P, D)``, in one new tensor where ``p`` is 2-D."""
        (y, a), (q, b) = self.token(x), self.prototype(p)
        if p.ndim == 2:
            table = y.flatten(0, -2) @ q.T if x.ndim > 2 else y @ q.T
            table = table.view(*x.shape[:-1], -1)
        else:
            table = y @ q.transpose(-1, -2)
        if self.scale != 1.0:
            table *= self.scale
        if a is not None:
            table += a.unsqueeze(-1)
        if b is not None:
            table += b.unsqueeze(-2)
        return table


@dataclass(frozen=True)
class Measure(ABC):
    """A named comparison of vectors.

    Attributes
    ----------
    name : str
        How the measure is written in settings.
    pairwise : callable
        ``(..., N, D), (..., P, D) -> (..., N, P)``.
    paired : callable
        ``(..., D), (..., D) -> (...)``.
    product : Product, optional
        How ``pairwise`` is made of a matrix product; without it everything works, slower.
    """

    name: str
    pairwise: Compare
    paired: Compare
    product: Product | None = None

    @property
    @abstractmethod
    def farthest(self) -> float:
        """The value of something that can never match."""

    @abstractmethod
    def nearest(self, values: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        """Return the nearest value along ``dim`` and its index; the first one wins a tie."""

    @abstractmethod
    def nearer(self, left: Tensor, right: Tensor) -> Tensor:
        """Return where ``left`` is strictly nearer than ``right``."""

    @abstractmethod
    def doubtful(self, values: Tensor, x_norm: Tensor, p_norm: Tensor) -> Tensor:
        """Return where cancellation in ``pairwise`` makes a value worth recomputing with ``paired``.

        ``x_norm`` and ``p_norm`` are squared norms that broadcast with ``values``.
        """


@dataclass(frozen=True)
class Distance(Measure):
    """A measure that falls with nearness and is never negative."""

    @property
    def farthest(self) -> float:
        """Plus infinity."""
        return float("inf")

    def nearest(self, values: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        """Return the minimum and its first index."""
        found = values.min(dim=dim)
        return found.values, found.indices

    def nearer(self, left: Tensor, right: Tensor) -> Tensor:
        """Return ``left < right``."""
        return left < right

    def doubtful(self, values: Tensor, x_norm: Tensor, p_norm: Tensor) -> Tensor:
        """Return where less than two decimal digits of the squared norms are left after subtraction."""
        return values < 1e-2 * (x_norm + p_norm)


@dataclass(frozen=True)
class Similarity(Measure):
    """A measure that rises with nearness."""

    @property
    def farthest(self) -> float:
        """Minus infinity."""
        return float("-inf")

    def nearest(self, values: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        """Return the maximum and its first index."""
        found = values.max(dim=dim)
        return found.values, found.indices

    def nearer(self, left: Tensor, right: Tensor) -> Tensor:
        """Return ``left > right``."""
        return left > right

    def doubtful(self, values: Tensor, x_norm: Tensor, p_norm: Tensor) -> Tensor:
        """Return nowhere: products of unit vectors do not cancel."""
        return torch.zeros_like(values, dtype=torch.bool)


def _as_is(x: Tensor) -> tuple[Tensor, None]:
    return x, None


def _unit(x: Tensor) -> tuple[Tensor, None]:
    return F.normalize(x, dim=-1), None


def _with_norm(x: Tensor) -> tuple[Tensor, Tensor]:
    return x, squared_norm(x)


def squared_norm(x: Tensor) -> Tensor:
    """Return ``(...)`` squared lengths of ``(..., D)``, without a table of squares.

    Examples
    --------
    >>> squared_norm(torch.tensor([3.0, 4.0]))
    tensor(25.)
    """
    norm: Tensor = torch.linalg.vector_norm(x, dim=-1)
    return norm.square()


_SQUARED_L2 = Product(_with_norm, _with_norm, -2.0)  # |x|^2 - 2 x.p + |p|^2
_COSINE = Product(_unit, _unit)
_DOT = Product(_as_is, _as_is)
_PROJECTION = Product(_as_is, _unit)


def _pairwise_squared_l2(x: Tensor, p: Tensor) -> Tensor:
    return _SQUARED_L2.table(x, p).clamp_min_(0.0)  # the clamp removes rounding below zero


def _paired_squared_l2(x: Tensor, p: Tensor) -> Tensor:
    return (x - p).square().sum(-1)


def _paired_cosine(x: Tensor, p: Tensor) -> Tensor:
    return (F.normalize(x, dim=-1) * F.normalize(p, dim=-1)).sum(-1)


def _paired_dot(x: Tensor, p: Tensor) -> Tensor:
    return (x * p).sum(-1)


def _paired_projection(x: Tensor, p: Tensor) -> Tensor:
    return (x * F.normalize(p, dim=-1)).sum(-1)


squared_l2 = Distance("squared_l2", _pairwise_squared_l2, _paired_squared_l2, _SQUARED_L2)
cosine = Similarity("cosine", _COSINE.table, _paired_cosine, _COSINE)
dot = Similarity("dot", _DOT.table, _paired_dot, _DOT)
projection_length = Similarity("projection_length", _PROJECTION.table, _paired_projection, _PROJECTION)


def cosine_in_parts(parts: int) -> Similarity:
    """Return the sum of cosines with each of several equal parts of a token, for prototypes that lie in one part.

    A token is ``parts`` vectors side by side, each brought to unit length by itself; a prototype, brought to unit
    length as a whole, is zero outside its part, so the value is its cosine with that part of the token.

    Examples
    --------
    >>> token, prototype = torch.tensor([3.0, 0.0, 0.0, 5.0]), torch.tensor([0.0, 0.0, 0.0, 2.0])
    >>> cosine_in_parts(2).paired(token, prototype)
    tensor(1.)
    """
    if parts < 1:
        raise ValueError(f"a token has at least one part, got {parts}")

    def each(x: Tensor) -> tuple[Tensor, None]:
        return F.normalize(x.reshape(*x.shape[:-1], parts, x.shape[-1] // parts), dim=-1).flatten(-2), None

    def paired(x: Tensor, p: Tensor) -> Tensor:
        return (each(x)[0] * F.normalize(p, dim=-1)).sum(-1)

    product = Product(each, _unit)
    return Similarity(f"cosine_in_{parts}_parts", product.table, paired, product)


MEASURES: dict[str, Measure] = {m.name: m for m in (squared_l2, cosine, dot, projection_length)}


def get_measure(name: str) -> Measure:
    """Return a measure by name.

    Raises
    ------
    UsageError
        If there is none; the nearest names are suggested.

    Examples
    --------
    >>> get_measure("squared_l2").paired(torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0]))
    tensor(25.)
    """
    return look_up("measure", name, MEASURES)
