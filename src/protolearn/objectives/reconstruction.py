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


def _error(reconstruction: Tensor, original: Tensor) -> Tensor:
    if reconstruction.shape != original.shape:
        raise ValueError(f"a reconstruction {tuple(reconstruction.shape)} of an original {tuple(original.shape)}")
    return (reconstruction - original).square()
