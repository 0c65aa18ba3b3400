"""From distance to similarity: falling functions of a distance, so that near means large."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from protolearn.core.gaussians import softplus_inverse
from protolearn.core.heads import resize_to
from protolearn.errors import UsageError


@dataclass(frozen=True)
class LogRatio:
    """``log((d + 1) / (d + eps))``: ProtoPNet's similarity, ``log(1 / eps)`` at distance 0.

    Examples
    --------
    >>> import torch
    >>> round(LogRatio()(torch.tensor(0.0)).item(), 4)
    9.2103
    """

    eps: float = 1e-4

    def __post_init__(self) -> None:
        if not 0 < self.eps < 1:
            raise UsageError(f"eps must lie between 0 and 1, got {self.eps}")

    def __call__(self, distance: Tensor) -> Tensor:
        """Return the similarity; 0 at infinite distance."""
        # the quotient is written so that an infinite distance gives log(1) = 0 and not nan
        return ((1.0 - self.eps) / (distance + self.eps)).log1p()


@dataclass(frozen=True)
class Negative:
    """``-scale * d``."""

    scale: float = 1.0

    def __call__(self, distance: Tensor) -> Tensor:
        """Return the similarity."""
        return -distance if self.scale == 1.0 else -self.scale * distance


@dataclass(frozen=True)
class NegativeRoot:
    """``-sqrt(factor * d)``: minus Euclid's distance where ``d`` is its square; no gradient at 0.

    With factor 2 and ``d = 1 - cos`` it is minus the distance of unit vectors.

    Examples
    --------
    >>> import torch
    >>> NegativeRoot()(torch.tensor([4.0, 0.0]))
    tensor([-2., -0.])
    """

    factor: float = 1.0

    def __call__(self, distance: Tensor) -> Tensor:
        """Return the similarity."""
        return -(self.factor * distance).clamp_min(1e-30).sqrt().where(distance > 0, distance)


@dataclass(frozen=True)
class NegativeLog:
    """``-power * log(d + eps)``: a softmax over it weighs prototypes by ``d ** -power``.

    Examples
    --------
    >>> import torch
    >>> NegativeLog(power=2.0, eps=0.0)(torch.tensor([1.0, 2.0])).softmax(0)
    tensor([0.8000, 0.2000])
    """

    power: float = 1.0
    eps: float = 1e-4

    def __post_init__(self) -> None:
        if not self.power > 0 or self.eps < 0:
            raise UsageError(f"power must be positive and eps not negative, got {self.power} and {self.eps}")

    def __call__(self, distance: Tensor) -> Tensor:
        """Return the similarity."""
        return -self.power * (distance + self.eps).log()


@dataclass(frozen=True)
class Exponential:
    """``exp(-d / scale)``: the radial basis function when ``d`` is a squared distance; in [0, 1]."""

    scale: float = 1.0

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise UsageError(f"scale must be positive, got {self.scale}")

    def __call__(self, distance: Tensor) -> Tensor:
        """Return the similarity."""
        return (-distance / self.scale).exp()


@dataclass(frozen=True)
class ExponentialRoot:
    """``exp(-sqrt(d + eps))``: ``exp(-length)`` when ``d`` is a squared length; in [0, 1].

    ``eps`` keeps the gradient of the root finite where ``d`` is 0.

    Examples
    --------
    >>> import torch
    >>> round(ExponentialRoot()(torch.tensor(4.0)).item(), 4)
    0.1353
    """

    eps: float = 1e-14

    def __post_init__(self) -> None:
        if not self.eps > 0:
            raise UsageError(f"eps must be positive, got {self.eps}")

    def __call__(self, distance: Tensor) -> Tensor:
        """Return the similarity."""
        return (-(distance + self.eps).sqrt()).exp()


@dataclass(frozen=True)
class Inverse:
    """``scale / (scale + d)``: 1 at distance 0, 1/2 at ``scale``, 0 at infinity, and never 0 before.

    For two prototypes ``(s_1 - s_2) / (s_1 + s_2) = (d_2 - d_1) / (d_1 + d_2 + 2 scale)``: shares of such similarities
    are relative distances, at any size of the distances.

    Examples
    --------
    >>> import torch
    >>> Inverse(2.0)(torch.tensor([0.0, 2.0, float("inf")])).tolist()
    [1.0, 0.5, 0.0]
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise UsageError(f"scale must be positive, got {self.scale}")

    def __call__(self, distance: Tensor) -> Tensor:
        """Return the similarity."""
        return self.scale / (self.scale + distance)


@dataclass(frozen=True)
class Identity:
    """The value itself, for measures that are similarities already."""

    def __call__(self, similarity: Tensor) -> Tensor:
        """Return the similarity."""
        return similarity


@dataclass(frozen=True)
class Relu:
    """``max(s, 0)``: a similarity that cannot speak against."""

    def __call__(self, similarity: Tensor) -> Tensor:
        """Return the similarity."""
        return similarity.clamp_min(0.0)


class PerPrototype(nn.Module, ABC):
    """A similarity with a state of its own for each prototype, kept beside the bank: trained, pruned, saved with it."""

    @abstractmethod
    def forward(self, distance: Tensor) -> Tensor:
        """Return similarities ``(..., P)`` for distances ``(..., P)``."""

    @abstractmethod
    def of(self, rows: Tensor) -> ToSimilarity:
        """Return the similarity of some rows of the bank."""

    @abstractmethod
    def keep(self, rows: Tensor) -> None:
        """Keep only these rows."""


class RadialBasis(PerPrototype):
    """``exp(-d / sigma_p)`` with a learned width for each prototype, kept positive by a softplus.

    Source: Saralajew et al., AAAI 2025 (arXiv 2412.15499): how surely a component is detected, ``d`` squared L2.

    Parameters
    ----------
    width : Tensor
        ``(P,)`` positive widths to start from.

    Examples
    --------
    >>> RadialBasis(torch.tensor([1.0, 4.0]))(torch.tensor([0.0, 4.0])).tolist()
    [1.0, 0.3678794503211975]
    """

    def __init__(self, width: Tensor) -> None:
        super().__init__()
        if width.ndim != 1 or not bool((width > 0).all()):
            raise ValueError(f"widths must be (P,) and positive, got {tuple(width.shape)}")
        self.raw = nn.Parameter(torch.empty_like(width))
        self.reset(width)

    @torch.no_grad()
    def reset(self, width: Tensor) -> None:
        """Set the widths."""
        self.raw.copy_(softplus_inverse(width))

    @property
    def width(self) -> Tensor:
        """``(P,)``, positive."""
        return nn.functional.softplus(self.raw).clamp_min(torch.finfo(self.raw.dtype).tiny)

    def forward(self, distance: Tensor) -> Tensor:
        """Return the similarity, in [0, 1]; 0 at infinite distance, without gradient."""
        return _bump(distance, self.width)

    def of(self, rows: Tensor) -> ToSimilarity:
        """Return the similarity of some rows of the bank, with their present widths."""
        width = self.width[rows]
        return lambda distance: _bump(distance, width)

    def keep(self, rows: Tensor) -> None:
        """Keep only these rows."""
        self.raw = nn.Parameter(self.raw.detach()[rows].clone(), requires_grad=self.raw.requires_grad)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        resize_to(self, state_dict, prefix, ("raw",))
        super()._load_from_state_dict(state_dict, prefix, *args)


def _bump(distance: Tensor, width: Tensor) -> Tensor:
    nowhere = torch.isposinf(distance)  # infinity times 0 would be the gradient of the width
    return (-distance.masked_fill(nowhere, 0.0) / width).exp().masked_fill(nowhere, 0.0)


ToSimilarity = Callable[[Tensor], Tensor]
