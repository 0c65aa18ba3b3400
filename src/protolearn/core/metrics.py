"""Metrics that are learned: what tokens and prototypes both go through before they are compared.

Prototypes stay in the space of the tokens, so that each can be read as a case; only the comparison is bent.

    relevances:  d(x, w) = sum over i of l_i (x_i - w_i)^2,   l_i >= 0, sum of l = 1
    matrix:      d(x, w) = |Omega (x - w)|^2,                 trace(Omega^T Omega) = 1
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from protolearn.core.measures import Factor, Measure, Product

LEAST = 1e-6
"""Smallest relevance times the number of features: the derivative of a square root stays finite, and a feature that was
thought useless can come back."""


def on_simplex(relevances: Tensor) -> Tensor:
    """Return relevances cut off below and scaled to sum 1, as GRLVQ does after each step.

    Source: GRLVQ (Hammer and Villmann, Neural Networks 2002). The cut lies at ``LEAST / D`` instead of 0.

    Examples
    --------
    >>> on_simplex(torch.tensor([3.0, 1.0, -2.0]))
    tensor([7.5000e-01, 2.5000e-01, 3.3333e-07])
    """
    kept = relevances.clamp_min(0.0)
    total = kept.sum()
    kept = kept / total if float(total) > 0 else torch.ones_like(kept) / len(kept)
    return kept.clamp_min(LEAST / len(kept))


def unit_trace(omega: Tensor) -> Tensor:
    """Return ``omega`` scaled so that ``trace(Omega^T Omega)`` is 1: distances keep their size, and cannot collapse.

    Source: GMLVQ (Schneider, Biehl and Hammer, Neural Computation 2009).

    Examples
    --------
    >>> unit_trace(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
    tensor([[0.6000, 0.0000],
            [0.0000, 0.8000]])
    """
    scaled: Tensor = omega / omega.norm().clamp_min(torch.finfo(omega.dtype).tiny)
    return scaled


class Metric(nn.Module, ABC):
    """A linear map before the comparison, with a constraint that holds after every step."""

    weight: nn.Parameter

    @abstractmethod
    def forward(self, values: Tensor) -> Tensor:
        """Return ``(..., M)`` for tokens or prototypes ``(..., D)``."""

    @abstractmethod
    def constrain(self) -> None:
        """Restore the constraint in place."""

    @abstractmethod
    def matrix(self) -> Tensor:
        """Return ``(D, D)``: ``d(x, w) = (x - w)^T matrix (x - w)``. Its diagonal says how much each feature counts."""


class Relevances(Metric):
    """One weight a feature.

    Examples
    --------
    >>> metric = Relevances(4)
    >>> metric(torch.ones(1, 4)).square().sum().item()
    1.0
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((dim,), 1.0 / dim))

    def forward(self, values: Tensor) -> Tensor:
        """Return the features, each times the root of its relevance."""
        return values * self.weight.clamp_min(0.5 * LEAST / len(self.weight)).sqrt()  # below what constrain leaves

    @torch.no_grad()
    def constrain(self) -> None:
        """Keep relevances positive, with sum 1."""
        self.weight.copy_(on_simplex(self.weight))

    def matrix(self) -> Tensor:
        """Return the relevances on a diagonal."""
        return self.weight.detach().diag()


class Omega(Metric):
    """A matrix ``(M, D)``; it starts as the first ``M`` rows of the identity, at unit trace.

    Examples
    --------
    >>> Omega(4, 1).matrix()[0]
    tensor([1., 0., 0., 0.])
    """

    def __init__(self, dim: int, rank: int | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(unit_trace(torch.eye(dim if rank is None else rank, dim)))

    def forward(self, values: Tensor) -> Tensor:
        """Return ``Omega x``."""
        return values @ self.weight.T

    @torch.no_grad()
    def constrain(self) -> None:
        """Scale to unit trace."""
        self.weight.copy_(unit_trace(self.weight))

    def matrix(self) -> Tensor:
        """Return ``Omega^T Omega``."""
        omega = self.weight.detach()
        return omega.T @ omega


def under(measure: Measure, metric: Callable[[Tensor], Tensor]) -> Measure:
    """Return the measure of what a map makes of both sides, for all that compares without training the map.

    Examples
    --------
    >>> from protolearn.core.measures import squared_l2
    >>> under(squared_l2, lambda x: 2.0 * x).paired(torch.tensor([1.0]), torch.tensor([0.0]))
    tensor(4.)
    """
    product = measure.product

    def after(factor: Factor) -> Factor:
        return lambda x: factor(metric(x))

    return dataclasses.replace(
        measure,
        pairwise=lambda x, p: measure.pairwise(metric(x), metric(p)),
        paired=lambda x, p: measure.paired(metric(x), metric(p)),
        product=None if product is None else Product(after(product.token), after(product.prototype), product.scale),
    )
