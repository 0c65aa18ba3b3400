"""The plain loop of learning vector quantisation over arrays: no graph, one handful of tensor steps a batch.

The rules are the ones the pages train by (``objectives.quantisation``, ``core.metrics``), with the derivatives written
out: for ``g = x - w`` of the two winners of a case and ``a`` the slope of the cost by their distance,

    by w:       -2 a L g                 L = 1, diag(l) or Omega^T Omega
    by l:       sum of a g^2             (relevances)
    by Omega:   sum of 2 a (Omega g) g^T (matrix)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from protolearn.core.metrics import on_simplex, unit_trace
from protolearn.objectives.quantisation import Transfer, quantisation_slopes


class Adam:
    """Adam on one tensor, in place (Kingma and Ba, 2015); PyTorch's own costs more than the arithmetic here."""

    def __init__(self, values: Tensor, rate: float) -> None:
        self.values, self.rate = values, rate
        self.first, self.second, self.steps = torch.zeros_like(values), torch.zeros_like(values), 0

    def step(self, gradient: Tensor, factor: float = 1.0) -> None:
        """Move against the gradient, at ``factor`` times the rate."""
        self.steps += 1
        self.first.lerp_(gradient, 0.1)
        self.second.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        bound = self.second.sqrt().div_(math.sqrt(1.0 - 0.999**self.steps)).add_(1e-8)
        self.values.addcdiv_(self.first, bound, value=-self.rate * factor / (1.0 - 0.9**self.steps))


@dataclass
class State:
    """What is learned: prototypes ``(C * K, D)`` class after class, which of them exist, and the metric."""

    vectors: Tensor
    active: Tensor
    classes: int
    relevances: Tensor | None = None
    omega: Tensor | None = None

    @property
    def owner(self) -> Tensor:
        """The class of each prototype."""
        count = len(self.vectors) // self.classes
        return torch.arange(self.classes).repeat_interleave(count)

    def bent(self, values: Tensor) -> Tensor:
        """Return values as they are compared: after the metric."""
        if self.omega is not None:
            return values @ self.omega.T
        return values if self.relevances is None else values * self.relevances.sqrt()


class Descent:
    """Steps of GLVQ, GRLVQ or GMLVQ on a state.

    Parameters
    ----------
    state : State
        Changed in place.
    transfer, sharpness
        Of ``objectives.quantisation``.
    rate, metric_rate : float
        Of prototypes, and of relevances or matrix.
    """

    def __init__(self, state: State, *, transfer: Transfer, sharpness: float, rate: float, metric_rate: float) -> None:
        self.state, self.transfer, self.sharpness = state, transfer, sharpness
        self.by_vectors = Adam(state.vectors, rate)
        self.metric = state.relevances if state.omega is None else state.omega
        self.by_metric = None if self.metric is None else Adam(self.metric, metric_rate)
        self.absent = None
        if not bool(state.active.all()):
            self.absent = torch.zeros_like(state.vectors[:, 0]).masked_fill_(~state.active, torch.inf)

    def step(self, x: Tensor, y: Tensor, weight: Tensor | None, factor: float) -> None:
        """Learn from one batch ``(B, D)`` with class indices ``(B, 1)`` and weights ``(B,)`` that sum to 1."""
        by_vectors, by_metric = self.gradients(x, y, weight)
        self.by_vectors.step(by_vectors, factor)
        if by_metric is not None:
            assert self.metric is not None and self.by_metric is not None
            self.by_metric.step(by_metric, factor)
            self.metric.copy_(on_simplex(self.metric) if self.state.omega is None else unit_trace(self.metric))

    def gradients(self, x: Tensor, y: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Return the gradient of the mean cost by the prototypes, and by relevances or matrix."""
        state = self.state
        vectors, classes = state.vectors, state.classes
        bent = state.bent(vectors)
        norms = torch.linalg.vecdot(bent, bent)
        if self.absent is not None:
            norms += self.absent
        # |x|^2 is the same for all prototypes of a case: it changes no winner
        table = torch.addmm(norms, state.bent(x), bent.T, alpha=-2.0)
        count = len(vectors) // classes
        if count == 1:
            own = y
            table.scatter_(1, y, torch.inf)
            other = table.argmin(1, keepdim=True)
        else:
            best, at = table.view(len(x), classes, count).min(2)
            own = y * count + at.gather(1, y)
            best.scatter_(1, y, torch.inf)
            nearest = best.argmin(1, keepdim=True)
            other = nearest * count + at.gather(1, nearest)
        rows = torch.cat([own, other]).squeeze(1)
        gaps = torch.cat([x, x]).sub_(vectors.index_select(0, rows))
        projected = state.bent(gaps)
        distances = torch.linalg.vecdot(projected, projected).view(2, -1)
        slopes = quantisation_slopes(distances[0], distances[1], self.transfer, self.sharpness)
        share = torch.cat([slopes.own, slopes.other]).view(2, -1)
        share = (share * weight if weight is not None else share.div_(len(x))).view(-1, 1)
        by_metric = None
        if state.omega is not None:
            pulled = projected * share
            by_metric = 2.0 * (pulled.T @ gaps)
            pulled = pulled @ state.omega
        elif state.relevances is not None:
            pulled = gaps * share
            by_metric = (pulled * gaps).sum(0)
            pulled *= state.relevances
        else:
            pulled = gaps * share
        return torch.zeros_like(vectors).index_add_(0, rows, pulled, alpha=-2.0), by_metric

    def epoch(
        self, x: Tensor, y: Tensor, weight: Tensor | None, batch: int, factor: float, generator: torch.Generator
    ) -> None:
        """Go once over all cases, in an order drawn by the generator."""
        for cases, labels, w in batches(x, y, weight, batch, generator):
            self.step(cases, labels, None if w is None else w / w.sum(), factor)


def batches(
    x: Tensor, y: Tensor, weight: Tensor | None, size: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """Yield cases, labels and weights once, in an order drawn by the generator; as they are if one batch holds all."""
    if len(x) > size:
        order = torch.randperm(len(x), generator=generator)
        x, y = x.index_select(0, order), y.index_select(0, order)
        weight = None if weight is None else weight[order]
    for start in range(0, len(x), size):
        part = slice(start, start + size)
        yield x[part], y[part], None if weight is None else weight[part]


def falling(epoch: int, epochs: int) -> float:
    """Return the share of the rate at an epoch: half a cosine, from 1 down to nearly 0."""
    return 0.5 * (1.0 + math.cos(math.pi * epoch / epochs))
