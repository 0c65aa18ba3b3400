"""Terms that draw tokens and prototypes of one class together, and push those of different classes apart.

All take pooled distances ``(B, P)``, or similarities where the name says so, and masks ``(B, P)`` that say which
prototypes count for which case. A case for which no prototype counts is left out of the mean; where none is left the
term is 0.
"""

from __future__ import annotations

from torch import Tensor


def cluster(distances: Tensor, own: Tensor) -> Tensor:
    """Return the mean over cases of the distance to the nearest prototype of the own class.

    Source: ProtoPNet (Chen et al., 2019), ``Clst``. Minimised with a positive weight.

    Examples
    --------
    >>> import torch
    >>> cluster(torch.tensor([[1.0, 2.0, 9.0]]), torch.tensor([[True, True, False]]))
    tensor(1.)
    """
    return _mean_of_nearest(distances, own)


def separation(distances: Tensor, other: Tensor) -> Tensor:
    """Return the mean over cases of the distance to the nearest prototype of another class.

    Source: ProtoPNet, ``Sep`` without its sign. To be enlarged, so its weight is negative.

    Examples
    --------
    >>> import torch
    >>> separation(torch.tensor([[1.0, 2.0, 9.0]]), torch.tensor([[False, False, True]]))
    tensor(9.)
    """
    return _mean_of_nearest(distances, other)


def similarity_cluster(similarities: Tensor, own: Tensor) -> Tensor:
    """Return the mean over cases of the similarity to the most similar prototype of the own class.

    Source: ST-ProtoPNet (Wang et al., 2023), ``Clst``. To be enlarged, so its weight is negative. The maximum is taken
    with a mask, so that similarities may be negative.

    Examples
    --------
    >>> import torch
    >>> similarity_cluster(torch.tensor([[-3.0, -1.0, 9.0]]), torch.tensor([[True, True, False]]))
    tensor(-1.)
    """
    return -_mean_of_nearest(-similarities, own)


def similarity_separation(similarities: Tensor, other: Tensor) -> Tensor:
    """Return the mean over cases of the similarity to the most similar prototype of another class.

    Source: ST-ProtoPNet, ``Sep``. Minimised with a positive weight.

    Examples
    --------
    >>> import torch
    >>> similarity_separation(torch.tensor([[1.0, 2.0, 9.0]]), torch.tensor([[False, False, True]]))
    tensor(9.)
    """
    return -_mean_of_nearest(-similarities, other)


def _mean_of_nearest(distances: Tensor, counted: Tensor) -> Tensor:
    # infinity marks "cannot match"; a large finite stand-in would assume a range of distances
    nearest = distances.masked_fill(~counted, float("inf")).amin(1)
    real = ~nearest.isinf()  # nan counts: it must surface
    return nearest.where(real, nearest.new_zeros(())).sum() / real.sum().clamp_min(1)
