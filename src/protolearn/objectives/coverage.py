"""Terms that keep prototypes and data near each other, without asking for labels.

Both take ``(B, P)``: squared distances, or anything else that falls with nearness (a negative log density). Infinity
marks what cannot match (an inactive prototype, an input without a real position) and is left out of the mean; where
nothing is left the term is 0.
"""

from __future__ import annotations

from torch import Tensor


def prototypes_near_data(distances: Tensor) -> Tensor:
    """Return the mean over prototypes of the distance to the nearest case of the batch.

    Source: the prototype autoencoder (Li et al., 2018), ``R1``. A statistic of the batch: in a small one a prototype
    is drawn to whatever happens to be there.

    Examples
    --------
    >>> import torch
    >>> prototypes_near_data(torch.tensor([[1.0, 9.0], [4.0, 3.0]]))
    tensor(2.)
    """
    return _mean_of_finite(distances.amin(0)) if len(distances) else distances.sum()


def data_near_prototypes(distances: Tensor) -> Tensor:
    """Return the mean over cases of the distance to the nearest prototype.

    Source: the prototype autoencoder (Li et al., 2018), ``R2``.

    Examples
    --------
    >>> import torch
    >>> data_near_prototypes(torch.tensor([[1.0, 9.0], [4.0, 3.0]]))
    tensor(2.)
    """
    return _mean_of_finite(distances.amin(1)) if distances.shape[1] else distances.sum()


def _mean_of_finite(nearest: Tensor) -> Tensor:
    real = ~nearest.isinf()  # nan counts: it must surface
    return nearest.where(real, nearest.new_zeros(())).sum() / real.sum().clamp_min(1)
