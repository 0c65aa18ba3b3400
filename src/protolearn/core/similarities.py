"""From distance to similarity: falling functions of a distance, so that near means large."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

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
    """``-d``."""

    def __call__(self, distance: Tensor) -> Tensor:
        """Return the similarity."""
        return -distance


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


ToSimilarity = Callable[[Tensor], Tensor]
