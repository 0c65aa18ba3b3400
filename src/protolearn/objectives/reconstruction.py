"""Terms on what a decoder makes of an embedded input.

``reconstruction`` and ``original`` have one shape ``(B, ...)``; the first axis is cases, all others are what is
summed or averaged (pixels, features).
"""

from __future__ import annotations

from torch import Tensor


def squared_error_sum(reconstruction: Tensor, original: Tensor) -> Tensor:
    """Return the mean over cases of the squared error summed over pixels.

    Source: the prototype autoencoder (Li et al., 2018), ``R``. It grows with the size of the picture, so its weight is
    for one size.

    Examples
    --------
    >>> import torch
    >>> squared_error_sum(torch.ones(2, 3), torch.zeros(2, 3))
    tensor(3.)
    """
    return _error(reconstruction, original).sum() / max(1, len(original))


def squared_error_mean(reconstruction: Tensor, original: Tensor) -> Tensor:
    """Return the squared error averaged over cases and pixels.

    Source: Prob-PSENN (Vadillo et al., 2024).

    Examples
    --------
    >>> import torch
    >>> squared_error_mean(torch.ones(2, 3), torch.zeros(2, 3))
    tensor(1.)
    """
    return _error(reconstruction, original).sum() / max(1, original.numel())


def two_part_error(
    mean: Tensor, log_variance: Tensor, original: Tensor, *, fit: float = 1.0, spread: float = 1.0
) -> Tensor:
    """Return of each case the mean over columns of ``fit * (x - m)^2 / s^2 + spread * log s^2``, ``(B,)``.

    With both weights 1 it is, up to a constant, twice the negative log density of a Gaussian with a variance for every
    column; with ``spread=0`` and variances of 1 the mean squared error.

    Source: adjustable probabilistic reconstruction error (Tan et al., arXiv 2304.00709), ``alpha`` and ``beta``. Not
    verified: neither the paper's formula nor its code was at hand, this is the best-known form.

    Parameters
    ----------
    mean, log_variance, original : Tensor
        ``(B, D)``; log variances count as between -10 and 10, as a column without noise drives them to minus infinity.
    fit, spread : float
        alpha and beta.

    Examples
    --------
    >>> import torch
    >>> two_part_error(torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([[1.0, 3.0]]), spread=0.0)
    tensor([5.])
    """
    logs = log_variance.clamp(-10.0, 10.0)
    return (fit * _error(mean, original) * (-logs).exp() + spread * logs).mean(1)


def _error(reconstruction: Tensor, original: Tensor) -> Tensor:
    if reconstruction.shape != original.shape:
        raise ValueError(f"a reconstruction {tuple(reconstruction.shape)} of an original {tuple(original.shape)}")
    return (reconstruction - original).square()
