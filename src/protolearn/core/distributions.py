"""Prototypes that are distributions: a bank's vectors say where, a law says how each one scatters about its vector.

The maths on plain tensors is in :mod:`~protolearn.core.gaussians`; the modules here hold what is learned. P prototypes,
D width, N codes, S samples. Every sample is reparameterised: it is a function of vectors, law and noise, and gradients
flow through it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from protolearn.core.gaussians import (
    FLOOR,
    class_moments,
    diagonal_log_density,
    factor_of,
    full_log_density,
    gaussian_samples,
    softplus_inverse,
)  # fmt: skip
from protolearn.core.heads import resize_to
from protolearn.core.updates import k_means

LawKind = Literal["diagonal", "full", "mixture"]


class PrototypeLaw(nn.Module, ABC):
    """How prototypes scatter about their vectors, which a bank holds."""

    rows: tuple[str, ...]
    """Names of the parameters, each with one entry a prototype."""

    @abstractmethod
    def sample(self, vectors: Tensor, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Return ``(S, P, D)``: ``count`` draws of every prototype; from torch's global generator by default."""

    @abstractmethod
    def log_prob(self, vectors: Tensor, codes: Tensor) -> Tensor:
        """Return ``(N, P)`` log densities of codes ``(N, D)``."""

    @abstractmethod
    def covariance(self) -> Tensor:
        """Return ``(P, D, D)``, about each prototype's own mean."""

    @abstractmethod
    def fit(self, row: int, codes: Tensor, generator: torch.Generator, floor: float = 0.0) -> Tensor:
        """Fit one prototype to codes ``(N, D)``, N > 0, and return the vector that goes with it.

        ``floor`` is the smallest variance along an axis, as a share of their mean: few codes, or codes that never vary
        in some direction, would make a law that nothing else is likely under.
        """

    @abstractmethod
    def scale_by(self, factor: float) -> None:
        """Multiply every covariance."""

    def mode(self, vectors: Tensor) -> Tensor:
        """Return ``(P, D)``: what stands for each prototype when nothing is drawn."""
        return vectors

    @torch.no_grad()
    def keep(self, rows: Tensor) -> None:
        """Keep only these prototypes."""
        for name in self.rows:
            old = getattr(self, name)
            setattr(self, name, nn.Parameter(old.detach()[rows].clone(), requires_grad=old.requires_grad))

    @torch.no_grad()
    def grow(self, count: int) -> None:
        """Add prototypes that scatter as those there are do on average."""
        for name in self.rows:
            old = getattr(self, name)
            added = old.detach().mean(0, keepdim=True).expand(count, *old.shape[1:])
            setattr(self, name, nn.Parameter(torch.cat([old.detach(), added]), requires_grad=old.requires_grad))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        resize_to(self, state_dict, prefix, self.rows)
        super()._load_from_state_dict(state_dict, prefix, *args)


class DiagonalLaw(PrototypeLaw):
    """A normal with one standard deviation an axis, ``softplus(raw)`` plus a floor.

    Attributes
    ----------
    raw : Parameter
        ``(P, D)``.

    Examples
    --------
    >>> law = DiagonalLaw(softplus_inverse(torch.full((3, 2), 0.5)))
    >>> law.sample(torch.zeros(3, 2), 7, torch.Generator().manual_seed(0)).shape
    torch.Size([7, 3, 2])
    """

    rows = ("raw",)

    def __init__(self, raw: Tensor) -> None:
        super().__init__()
        self.raw = nn.Parameter(raw.clone())

    def deviations(self) -> Tensor:
        """Return ``(P, D)`` standard deviations."""
        return F.softplus(self.raw) + FLOOR

    def sample(self, vectors: Tensor, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Return ``vectors + deviations * noise``."""
        return vectors + self.deviations() * _noise(vectors, (count, *vectors.shape), generator)

    def log_prob(self, vectors: Tensor, codes: Tensor) -> Tensor:
        """Return log densities."""
        return diagonal_log_density(codes, vectors, self.deviations())

    def covariance(self) -> Tensor:
        """Return diagonal matrices."""
        return torch.diag_embed(self.deviations().square())

    @torch.no_grad()
    def fit(self, row: int, codes: Tensor, generator: torch.Generator, floor: float = 0.0) -> Tensor:
        """Take the codes' standard deviations (not their variances) and return their mean."""
        variances = codes.double().var(0, correction=0)
        deviations = variances.clamp_min(floor * float(variances.mean())).sqrt().to(codes.dtype)
        self.raw[row] = softplus_inverse((deviations - FLOOR).clamp_min(FLOOR))
        return codes.mean(0)

    @torch.no_grad()
    def scale_by(self, factor: float) -> None:
        """Multiply the deviations by the root of the factor."""
        self.raw.copy_(softplus_inverse((self.deviations() * math.sqrt(factor) - FLOOR).clamp_min(FLOOR)))


class FullLaw(PrototypeLaw):
    """A normal with any covariance ``L L^T``; the diagonal of ``L`` is a softplus plus a floor.

    Attributes
    ----------
    raw : Parameter
        ``(P, D, D)``; what lies above the diagonal is not used.

    Examples
    --------
    >>> law = FullLaw(FullLaw.raw_of(torch.tensor([[[2.0, 0.0], [1.0, 3.0]]])))
    >>> law.covariance().detach().round(decimals=3)
    tensor([[[ 4.,  2.],
             [ 2., 10.]]])
    """

    rows = ("raw",)

    def __init__(self, raw: Tensor) -> None:
        super().__init__()
        self.raw = nn.Parameter(raw.clone())

    @staticmethod
    def raw_of(factors: Tensor) -> Tensor:
        """Return the ``raw`` whose factors are these ``(..., D, D)``, applied once."""
        diagonal = (factors.diagonal(dim1=-2, dim2=-1) - FLOOR).clamp_min(FLOOR)
        return factors.tril(-1) + torch.diag_embed(softplus_inverse(diagonal))

    @staticmethod
    def factors_of(raw: Tensor) -> Tensor:
        """Return the Cholesky factors that ``raw`` stands for."""
        return raw.tril(-1) + torch.diag_embed(F.softplus(raw.diagonal(dim1=-2, dim2=-1)) + FLOOR)

    def factors(self) -> Tensor:
        """Return ``(P, D, D)`` Cholesky factors."""
        return self.factors_of(self.raw)

    def sample(self, vectors: Tensor, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Return ``vectors + L noise``."""
        return gaussian_samples(vectors, self.factors(), _noise(vectors, (count, *vectors.shape), generator))

    def log_prob(self, vectors: Tensor, codes: Tensor) -> Tensor:
        """Return log densities."""
        return full_log_density(codes, vectors, self.factors())

    def covariance(self) -> Tensor:
        """Return ``L L^T``."""
        factors = self.factors()
        return factors @ factors.transpose(1, 2)

    @torch.no_grad()
    def fit(self, row: int, codes: Tensor, generator: torch.Generator, floor: float = 0.0) -> Tensor:
        """Take the codes' population covariance and return their mean."""
        moments = class_moments(codes, torch.zeros(len(codes), dtype=torch.long, device=codes.device), 1)
        self.raw[row] = self.raw_of(factor_of(moments.covariances[0], floor))
        return moments.means[0]

    @torch.no_grad()
    def scale_by(self, factor: float) -> None:
        """Multiply the factors by the root."""
        self.raw.copy_(self.raw_of(self.factors() * math.sqrt(factor)))


class MixtureLaw(PrototypeLaw):
    """A mixture of two normals with any covariance; a prototype's vector is the mean of the heavier one.

    The names of the two are exchangeable, so that calling the heavier one the first costs nothing: its share is
    ``(1 + sigmoid(tilt)) / 2``. The mode is taken to be its mean; the density's very peak may lie beside it. A draw
    first chooses the component, and that choice has no gradient: shares learn from the density alone.

    Attributes
    ----------
    raw : Parameter
        ``(P, 2, D, D)``, each as in :class:`FullLaw`.
    offset : Parameter
        ``(P, D)``: from the first mean to the second.
    tilt : Parameter
        ``(P,)``.
    """

    rows = ("raw", "offset", "tilt")

    def __init__(self, raw: Tensor, offset: Tensor, tilt: Tensor) -> None:
        super().__init__()
        self.raw, self.offset, self.tilt = (nn.Parameter(t.clone()) for t in (raw, offset, tilt))

    def shares(self) -> Tensor:
        """Return ``(P, 2)``: how heavy the two are."""
        first = 0.5 + 0.5 * self.tilt.sigmoid()
        return torch.stack([first, 1 - first], dim=1)

    def sample(self, vectors: Tensor, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw a component for each, then from it."""
        shape = (count, *vectors.shape)
        second = _uniform(vectors, shape[:2], generator) > self.shares()[:, 0]
        noise, factors = _noise(vectors, shape, generator), FullLaw.factors_of(self.raw)
        one = gaussian_samples(vectors, factors[:, 0], noise)
        other = gaussian_samples(vectors + self.offset, factors[:, 1], noise)
        return torch.where(second.unsqueeze(-1), other, one)

    def log_prob(self, vectors: Tensor, codes: Tensor) -> Tensor:
        """Return log densities."""
        factors, log_shares = FullLaw.factors_of(self.raw), self.shares().log()
        first = full_log_density(codes, vectors, factors[:, 0]) + log_shares[:, 0]
        return torch.logaddexp(first, full_log_density(codes, vectors + self.offset, factors[:, 1]) + log_shares[:, 1])

    def covariance(self) -> Tensor:
        """Return the covariance of the mixture, within and between the two."""
        factors, shares = FullLaw.factors_of(self.raw), self.shares()
        within = (factors @ factors.transpose(-1, -2) * shares[..., None, None]).sum(1)
        between = self.offset.unsqueeze(2) * self.offset.unsqueeze(1)
        return within + (shares[:, 0] * shares[:, 1])[:, None, None] * between

    @torch.no_grad()
    def fit(self, row: int, codes: Tensor, generator: torch.Generator, floor: float = 0.0) -> Tensor:
        """Part the codes by 2-means and take each part's moments; one part twice where there is nothing to part."""
        parts = torch.zeros(len(codes), dtype=torch.long, device=codes.device)
        if len(codes) > 1:
            parts = torch.cdist(codes, k_means(codes, 2, generator=generator).centres).argmin(1)
        if int((parts == 1).sum()) * 2 > len(codes):
            parts = 1 - parts
        moments = class_moments(codes, parts, 2)
        second = int(int(moments.counts[1]) > 0)
        share = float(moments.counts[0]) / len(codes) if second else 0.5
        self.raw[row] = torch.stack([FullLaw.raw_of(factor_of(moments.covariances[i], floor)) for i in (0, second)])
        self.offset[row] = moments.means[second] - moments.means[0]
        self.tilt[row] = float(torch.logit(torch.tensor(2 * share - 1), eps=1e-6))
        return moments.means[0]

    @torch.no_grad()
    def scale_by(self, factor: float) -> None:
        """Multiply factors and offset by the root."""
        self.raw.copy_(FullLaw.raw_of(FullLaw.factors_of(self.raw) * math.sqrt(factor)))
        self.offset.mul_(math.sqrt(factor))


def make_law(
    kind: LawKind, count: int, dim: int, *, prior_scale: float = 1.0, generator: torch.Generator | None = None
) -> PrototypeLaw:
    """Return a law before any fit: axes independent, ``raw ~ N(prior_scale / 5, prior_scale / 10)``.

    Examples
    --------
    >>> make_law("mixture", 3, 4, generator=torch.Generator().manual_seed(0)).covariance().shape
    torch.Size([3, 4, 4])
    """
    mean, deviation = prior_scale / 5, prior_scale / 10
    draw: Callable[..., Tensor] = lambda *size: mean + deviation * torch.randn(*size, generator=generator)  # noqa: E731
    if kind == "diagonal":
        return DiagonalLaw(draw(count, dim))
    if kind == "full":
        return FullLaw(torch.diag_embed(draw(count, dim)))
    if kind == "mixture":
        offset = deviation * torch.randn(count, dim, generator=generator)
        return MixtureLaw(torch.diag_embed(draw(count, 2, dim)), offset, torch.zeros(count))
    raise ValueError(f"a law is diagonal, full or mixture, got {kind!r}")


def _noise(like: Tensor, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    # drawn on the generator's own device, so that one seed gives one sample everywhere
    device = like.device if generator is None else generator.device
    return torch.randn(shape, generator=generator, device=device, dtype=like.dtype).to(like.device)


def _uniform(like: Tensor, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    device = like.device if generator is None else generator.device
    return torch.rand(shape, generator=generator, device=device, dtype=like.dtype).to(like.device)
