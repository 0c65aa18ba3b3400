"""Comparing tokens with prototypes: distances (small = near) and similarities (large = near).

A measure has two forms of the same number: ``pairwise`` for all pairs, by one matrix product, and ``paired`` for
matched rows, exact and differentiable. The first finds, the second is what gradients and near-zero values come from.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from protolearn.errors import UsageError, nearest_names

Compare = Callable[[Tensor, Tensor], Tensor]


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
    """

    name: str
    pairwise: Compare
    paired: Compare

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


def _expanded_squared_l2(x: Tensor, p: Tensor) -> Tensor:
    # |x|^2 - 2 x.p + |p|^2 as one product with the norms folded in; the clamp removes rounding below zero
    p_norm = p.square().sum(-1)
    if x.ndim == 2 and p.ndim == 2:
        values = torch.addmm(p_norm, x, p.T, alpha=-2.0)
    else:
        values = p_norm.unsqueeze(-2) - 2.0 * (x @ p.transpose(-1, -2))
    return values.add_(x.square().sum(-1, keepdim=True)).clamp_min_(0.0)


def _paired_squared_l2(x: Tensor, p: Tensor) -> Tensor:
    return (x - p).square().sum(-1)


def _pairwise_cosine(x: Tensor, p: Tensor) -> Tensor:
    return F.normalize(x, dim=-1) @ F.normalize(p, dim=-1).transpose(-1, -2)


def _paired_cosine(x: Tensor, p: Tensor) -> Tensor:
    return (F.normalize(x, dim=-1) * F.normalize(p, dim=-1)).sum(-1)


def _pairwise_dot(x: Tensor, p: Tensor) -> Tensor:
    return x @ p.transpose(-1, -2)


def _paired_dot(x: Tensor, p: Tensor) -> Tensor:
    return (x * p).sum(-1)


def _pairwise_projection(x: Tensor, p: Tensor) -> Tensor:
    return x @ F.normalize(p, dim=-1).transpose(-1, -2)


def _paired_projection(x: Tensor, p: Tensor) -> Tensor:
    return (x * F.normalize(p, dim=-1)).sum(-1)


squared_l2 = Distance("squared_l2", _expanded_squared_l2, _paired_squared_l2)
cosine = Similarity("cosine", _pairwise_cosine, _paired_cosine)
dot = Similarity("dot", _pairwise_dot, _paired_dot)
projection_length = Similarity("projection_length", _pairwise_projection, _paired_projection)

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
    if name not in MEASURES:
        raise UsageError(f"no measure is called {name!r}: {nearest_names(name, MEASURES)}")
    return MEASURES[name]
