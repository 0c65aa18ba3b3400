"""Statistics of classes over a stream of batches: counts, means, variances. Parts made apart can be merged."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from protolearn.core.updates import Moments, group_moments, merge_moments


class SharedGaussian(NamedTuple):
    """Gaussian classes, one variance vector: means ``(C, D)``, variance ``(D,)``, log prior ``(C,)``, seen ``(C,)``.

    The log prior of a class that was never seen is -inf, and its mean is 0 and means nothing.
    """

    means: Tensor
    variance: Tensor
    log_prior: Tensor
    seen: Tensor


class ClassStatistics:
    """Count, mean and variance of every class, one batch after the other, in double precision.

    However the cases are split, the result is the same up to rounding; a batch may lack classes, and a class that was
    never seen has count 0.

    Examples
    --------
    >>> one, two = ClassStatistics(2, 1), ClassStatistics(2, 1)
    >>> _ = one.update(torch.tensor([[1.0], [5.0]]), torch.tensor([0, 1]))
    >>> _ = two.update(torch.tensor([[3.0], [9.0]]), torch.tensor([0, -1]))
    >>> both = one.merge(two).moments
    >>> both.means.flatten().tolist(), both.variances.flatten().tolist(), both.counts.tolist()
    ([2.0, 5.0], [1.0, 0.0], [2.0, 1.0])
    """

    def __init__(self, classes: int, dim: int, device: torch.device | str = "cpu") -> None:
        if classes < 1 or dim < 1:
            raise ValueError(f"classes and dim must be at least 1, got {classes}, {dim}")
        zeros = torch.zeros(classes, dim, dtype=torch.float64, device=device)
        self.moments = Moments(zeros, zeros.clone(), torch.zeros(classes, dtype=torch.float64, device=device))

    @torch.no_grad()
    def update(self, values: Tensor, labels: Tensor) -> ClassStatistics:
        """Take in ``(N, D)`` values with labels ``(N,)``; label -1 is left out. Returns itself.

        Raises
        ------
        ValueError
            If a value is not finite.
        """
        known = labels >= 0
        values, labels = values[known].double(), labels[known]
        if not bool(torch.isfinite(values).all()):
            raise ValueError("statistics take finite values only: look for NaN in the inputs")
        if len(values):
            self.moments = merge_moments(self.moments, group_moments(values, labels, len(self.moments.counts)))
        return self

    def merge(self, other: ClassStatistics) -> ClassStatistics:
        """Take in what another one has seen. Returns itself."""
        if self.moments.means.shape != other.moments.means.shape:
            raise ValueError(
                f"cannot merge statistics of {tuple(other.moments.means.shape)} (classes, width) into "
                f"{tuple(self.moments.means.shape)}"
            )
        self.moments = merge_moments(self.moments, other.moments)
        return self

    def shared_gaussian(self, smoothing: float = 1e-9, *, relative: bool = False) -> SharedGaussian:
        """Return Gaussian classes that share one variance: the mean of the class variances, weighted by counts.

        Parameters
        ----------
        smoothing : float
            Added to every variance.
        relative : bool
            ``smoothing`` is a share of the largest variance.

        Raises
        ------
        ValueError
            If no case was seen.

        Notes
        -----
        Where no coordinate varies within its class (one case a class, or the same one again), but for what merging
        batches rounds, the variance is 1 everywhere.
        """
        means, variances, counts = self.moments
        total = counts.sum()
        if not float(total) > 0:
            raise ValueError("no labelled case was seen: there are no statistics")
        prior = counts / total
        variance = (prior.unsqueeze(1) * variances).sum(0)
        most = variance.max()
        rounding = 1e4 * torch.finfo(torch.float64).eps * means.abs().max()
        if not float(most) > float(rounding) ** 2:
            variance = torch.ones_like(variance)
        else:
            variance = variance + (smoothing * most if relative else smoothing)
        return SharedGaussian(means, variance, prior.log(), counts > 0)


def linear_form(gaussian: SharedGaussian) -> tuple[Tensor, Tensor]:
    """Return weight ``(C, D)`` and bias ``(C,)`` of the linear layer that ranks classes as the Gaussians do.

    ``score_c(x) = w_c . x + b_c - x' S x / 2`` with a last part that is the same for all classes.

    Examples
    --------
    >>> values, labels = torch.tensor([[0.0], [2.0], [4.0], [6.0]]), torch.tensor([0, 0, 1, 1])
    >>> statistics = ClassStatistics(2, 1).update(values, labels)
    >>> weight, bias = linear_form(statistics.shared_gaussian(0.0))
    >>> weight.flatten().tolist(), [round(b, 4) for b in bias.tolist()]
    ([1.0, 5.0], [-1.1931, -13.1931])
    """
    weight = gaussian.means / gaussian.variance
    return weight, gaussian.log_prior - 0.5 * (gaussian.means * weight).sum(1)
