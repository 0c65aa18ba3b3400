"""Terms on how prototypes lie among themselves: within a class, and between classes.

All take vectors ``(P, D)`` and ``owner`` ``(P,)`` int64, the class of each; rows with owner -1 (of no class, of
several, or left out by the caller) do not take part. Classes may have different numbers of prototypes, and none.
"""

from __future__ import annotations

import torch
from torch import Tensor


def class_gram_orthogonality(vectors: Tensor, owner: Tensor) -> Tensor:
    """Return ``sum over classes of |P_c P_c^T - I|``, entrywise: 0 when the prototypes of a class are orthonormal.

    Source: ST-ProtoPNet (Wang et al., 2023) and EvalProtoPNet (Huang et al., 2023). It is a plain sum over classes, so
    its weight relative to a mean over cases grows with their number.

    Examples
    --------
    >>> class_gram_orthogonality(torch.eye(4), torch.tensor([0, 0, 1, 1])).item()
    0.0
    >>> class_gram_orthogonality(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 0])).item()
    2.0
    """
    blocks, real = _by_class(vectors, owner)
    gram = blocks @ blocks.transpose(1, 2)
    gap = (gram - torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)).abs()
    return gap.where(real.unsqueeze(1) & real.unsqueeze(2), gap.new_zeros(())).sum()


def largest_between_classes(vectors: Tensor, owner: Tensor) -> Tensor:
    """Return the mean over pairs of classes of the largest inner product between their prototypes.

    Source: ST-ProtoPNet, the discrimination term of its trivial branch: minimised, it drives classes apart. 0 where
    fewer than two classes have a prototype.

    Examples
    --------
    >>> largest_between_classes(torch.tensor([[1.0], [3.0], [2.0]]), torch.tensor([0, 0, 1]))
    tensor(6.)
    """
    return _extreme(vectors, owner, largest=True)


def smallest_between_classes(vectors: Tensor, owner: Tensor) -> Tensor:
    """Return the mean over pairs of classes of the smallest inner product between their prototypes.

    Source: ST-ProtoPNet, the closeness term of its support branch without its sign: to be enlarged, so its weight is
    negative, and classes come together. 0 where fewer than two classes have a prototype.

    Examples
    --------
    >>> smallest_between_classes(torch.tensor([[1.0], [3.0], [2.0]]), torch.tensor([0, 0, 1]))
    tensor(2.)
    """
    return _extreme(vectors, owner, largest=False)


def _extreme(vectors: Tensor, owner: Tensor, *, largest: bool) -> Tensor:
    blocks, real = _by_class(vectors, owner)
    classes, most, _ = blocks.shape
    if classes < 2:
        return vectors.sum() * 0.0
    rows = blocks.flatten(0, 1)
    there = real.flatten()
    table = (rows @ rows.T).masked_fill(~(there.unsqueeze(1) & there), float("-inf" if largest else "inf"))
    table = table.view(classes, most, classes, most)
    found = table.amax((1, 3)) if largest else table.amin((1, 3))  # (C, C), symmetric
    other = ~torch.eye(classes, dtype=torch.bool, device=found.device)
    return found[other].mean()


def _by_class(vectors: Tensor, owner: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``(C', K', D)`` prototypes of the classes that have any, and ``(C', K')`` bool: which are no padding."""
    if vectors.ndim != 2 or owner.shape != vectors.shape[:1]:
        raise ValueError(f"vectors (P, D) and owner (P,) do not fit: {tuple(vectors.shape)} and {tuple(owner.shape)}")
    counts = torch.bincount(owner[owner >= 0])
    counts = counts[counts > 0]
    most = int(counts.max()) if len(counts) else 0
    real = torch.arange(most, device=owner.device) < counts.unsqueeze(1)
    order = owner.argsort(stable=True)[int((owner < 0).sum()) :]  # class after class, without those of no class
    places = torch.zeros_like(real, dtype=torch.long)
    places[real] = order
    return vectors[places], real
