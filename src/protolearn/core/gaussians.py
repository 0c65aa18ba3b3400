"""Normal distributions on plain tensors: moments of classes, densities, factors of covariances, samples.

P distributions, D width, N codes, S samples.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

FLOOR = 1e-5
"""Smallest standard deviation along an axis of a law, and smallest diagonal entry of a Cholesky factor."""


class ClassMoments(NamedTuple):
    """Of the codes of each class."""

    means: Tensor
    """``(C, D)``; zeros for a class without codes."""
    covariances: Tensor
    """``(C, D, D)`` with divisor n; zeros for a class without codes."""
    counts: Tensor
    """``(C,)`` int64: 0 says that a class has no codes."""


def class_moments(codes: Tensor, labels: Tensor, classes: int) -> ClassMoments:
    """Return mean and population covariance of the codes ``(N, D)`` of each class; label -1 is left out.

    Examples
    --------
    >>> means, covariances, counts = class_moments(torch.tensor([[0.0], [2.0], [5.0]]), torch.tensor([0, 0, -1]), 2)
    >>> means.tolist(), covariances.tolist(), counts.tolist()
    ([[1.0], [0.0]], [[[1.0]], [[0.0]]], [2, 0])
    """
    means = codes.new_zeros(classes, codes.shape[1])
    covariances = codes.new_zeros(classes, codes.shape[1], codes.shape[1])
    counts = torch.zeros(classes, dtype=torch.long, device=codes.device)
    for label in sorted({int(label) for label in labels.tolist() if label >= 0}):
        own = codes[labels == label].double()
        centred = own - own.mean(0)
        means[label] = own.mean(0).to(codes.dtype)
        covariances[label] = (centred.T @ centred / len(own)).to(codes.dtype)
        counts[label] = len(own)
    return ClassMoments(means, covariances, counts)


def diagonal_log_density(codes: Tensor, means: Tensor, deviations: Tensor) -> Tensor:
    """Return ``(N, P)`` log densities of codes ``(N, D)`` under normals with these standard deviations ``(P, D)``.

    Examples
    --------
    >>> diagonal_log_density(torch.zeros(1, 2), torch.zeros(1, 2), torch.ones(1, 2))  # -log(2 pi)
    tensor([[-1.8379]])
    """
    scaled = (codes.unsqueeze(1) - means) / deviations
    return -0.5 * scaled.square().sum(-1) - deviations.log().sum(-1) - 0.5 * _log_two_pi(codes)


def full_log_density(codes: Tensor, means: Tensor, factors: Tensor) -> Tensor:
    """Return ``(N, P)`` log densities under normals with covariance ``L L^T``, ``L`` the ``(P, D, D)`` factors.

    Examples
    --------
    >>> full_log_density(torch.zeros(1, 2), torch.zeros(1, 2), torch.eye(2).unsqueeze(0))
    tensor([[-1.8379]])
    """
    away = (codes.unsqueeze(0) - means.unsqueeze(1)).transpose(1, 2)  # (P, D, N)
    white: Tensor = torch.linalg.solve_triangular(factors, away, upper=False)
    log_det = factors.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return (-0.5 * white.square().sum(1) - log_det.unsqueeze(1) - 0.5 * _log_two_pi(codes)).T


def _log_two_pi(codes: Tensor) -> float:
    return codes.shape[-1] * math.log(2 * math.pi)


def factor_of(covariance: Tensor, floor: float = 0.0) -> Tensor:
    """Return the lower Cholesky factor of a covariance ``(D, D)``, which may be singular.

    Variances along its axes that are below ``floor`` times their mean are raised to it, and to a millionth of the mean
    where it could not be factored otherwise (to a millionth, where the mean is zero). With a floor of 0 the factor of a
    covariance that has one is exact.

    Examples
    --------
    >>> factor_of(torch.tensor([[4.0, 0.0], [0.0, 9.0]]))
    tensor([[2., 0.],
            [0., 3.]])
    >>> bool((factor_of(torch.zeros(2, 2)).diagonal() > 0).all())
    True
    """
    exact = covariance.double()
    if not bool(torch.isfinite(exact).all()):
        raise ValueError("a covariance is not finite: look for NaN among the codes")
    mean = float(exact.diagonal().mean())
    variances, axes = torch.linalg.eigh(exact)
    least = max(floor, 1e-6) * (mean if mean > 1e-6 else 1.0)
    factor, failed = torch.linalg.cholesky_ex(exact)
    if int(failed) or float(variances[0]) < floor * mean or not bool((factor.diagonal() > 2 * FLOOR).all()):
        factor = torch.linalg.cholesky(axes * variances.clamp_min(least) @ axes.T)
    made: Tensor = factor.to(covariance.dtype)
    return made


def softplus_inverse(values: Tensor) -> Tensor:
    """Return what softplus turns into these positive values.

    Examples
    --------
    >>> torch.nn.functional.softplus(softplus_inverse(torch.tensor([0.01, 3.0])))
    tensor([0.0100, 3.0000])
    """
    return values + (-torch.expm1(-values)).log()


def gaussian_samples(means: Tensor, factors: Tensor, noise: Tensor) -> Tensor:
    """Return ``means + L noise`` ``(S, P, D)`` for standard normal noise of that shape.

    Examples
    --------
    >>> gaussian_samples(torch.zeros(1, 2), torch.tensor([[[2.0, 0.0], [1.0, 3.0]]]), torch.ones(1, 1, 2))
    tensor([[[2., 4.]]])
    """
    return means + torch.einsum("pij,spj->spi", factors, noise)
