"""Learning vector quantisation: the nearest prototype of the own class must be nearer than that of any other class.

For each case ``d+`` is the distance to the nearest prototype of its own class, ``d-`` to the nearest of another::

    mu = (d+ - d-) / (d+ + d-)   in [-1, 1], negative where the nearest prototype is of the right class
    cost = mean of f(mu),        f(mu) = mu, or 1 / (1 + exp(-s mu))

Source: GLVQ (Sato and Yamada, NeurIPS 1995). :func:`quantisation` is the cost for automatic differentiation,
:func:`quantisation_slopes` the same cost with its derivatives written out, which is the learning rule of the paper.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from protolearn.structures import Output

Transfer = Literal["identity", "sigmoid"]


def relative_distance(own: Tensor, other: Tensor) -> Tensor:
    """Return ``(own - other) / (own + other)``; 0 where both are 0.

    Examples
    --------
    >>> relative_distance(torch.tensor([1.0, 0.0]), torch.tensor([3.0, 0.0]))
    tensor([-0.5000, 0.0000])
    """
    total = own + other
    return (own - other) / total.where(total != 0, 1.0)


def transferred(mu: Tensor, transfer: Transfer = "identity", sharpness: float = 1.0) -> Tensor:
    """Return ``mu`` itself, or ``1 / (1 + exp(-sharpness mu))``: then cases near the border count most.

    Examples
    --------
    >>> transferred(torch.tensor([-1.0, 0.0]), "sigmoid", 2.0)
    tensor([0.1192, 0.5000])
    """
    return mu if transfer == "identity" else (sharpness * mu).sigmoid()


def nearest_own_and_other(distances: Tensor, own: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``d+`` and ``d-``, each ``(B,)``, from distances ``(B, P)`` and masks; inf where no prototype counts."""
    inf = float("inf")
    return distances.masked_fill(~own, inf).amin(1), distances.masked_fill(~other, inf).amin(1)


def quantisation(
    distances: Tensor, own: Tensor, other: Tensor, transfer: Transfer = "identity", sharpness: float = 1.0
) -> Tensor:
    """Return the mean of ``f(mu)`` over cases that have a prototype of their own and one of another class; else 0.

    Parameters
    ----------
    distances : Tensor
        ``(B, P)``, not negative.
    own, other : Tensor
        ``(B, P)`` bool: prototypes of the case's class, and of other classes.
    transfer, sharpness
        Of :func:`transferred`.

    Examples
    --------
    >>> own = torch.tensor([[True, False, False]])
    >>> quantisation(torch.tensor([[1.0, 3.0, 9.0]]), own, ~own)
    tensor(-0.5000)
    """
    plus, minus = nearest_own_and_other(distances, own, other)
    counted = torch.isfinite(plus) & torch.isfinite(minus) | plus.isnan() | minus.isnan()  # nan must surface
    # both are replaced before the quotient: 0 times the slope at infinity would be nan
    mu = relative_distance(plus.where(counted, 1.0), minus.where(counted, 1.0))
    cost = transferred(mu, transfer, sharpness)
    return cost.where(counted, 0.0).sum() / counted.sum().clamp_min(1)


class Slopes(NamedTuple):
    """The cost of each case ``(B,)`` and its derivatives by ``d+`` and ``d-``."""

    cost: Tensor
    own: Tensor
    other: Tensor


def quantisation_of(out: Output, labels: Tensor, transfer: Transfer = "identity", sharpness: float = 1.0) -> Tensor:
    """Return :func:`quantisation` of an output with distances, for labels ``(B,)``, -1 for a case that has none."""
    assert out.distances is not None, "this cost is one of distances"
    return quantisation(out.distances, out.bank.owned_by(labels), out.bank.others(labels), transfer, sharpness)


def quantisation_slopes(own: Tensor, other: Tensor, transfer: Transfer = "identity", sharpness: float = 1.0) -> Slopes:
    """Return ``f(mu)``, ``f'(mu) 2 d- / (d+ + d-)^2`` and ``-f'(mu) 2 d+ / (d+ + d-)^2`` for ``d+``, ``d-`` ``(B,)``.

    Examples
    --------
    >>> quantisation_slopes(torch.tensor([1.0]), torch.tensor([3.0])).own
    tensor([0.3750])
    """
    total = own + other
    total = total.where(total != 0, 1.0)
    mu = (own - other) / total
    cost = transferred(mu, transfer, sharpness)
    by_mu = 2.0 / total.square()
    if transfer == "sigmoid":
        by_mu = by_mu * (sharpness * cost * (1.0 - cost))
    return Slopes(cost, by_mu * other, -by_mu * own)
