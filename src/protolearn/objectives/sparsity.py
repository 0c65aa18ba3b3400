"""Terms that keep weights few."""

from __future__ import annotations

from torch import Tensor


def other_class_l1(weight: Tensor, ownership: Tensor) -> Tensor:
    """Return the sum of absolute weights between a class ``(C, P)`` and prototypes it does not own ``(P, C)``.

    Source: ProtoPNet's last-layer term: a plain sum, not a mean.

    Examples
    --------
    >>> import torch
    >>> other_class_l1(torch.tensor([[1.0, -0.5], [-0.5, 1.0]]), torch.eye(2))
    tensor(1.)
    """
    return weight.abs().masked_fill(ownership.T > 0, 0.0).sum()
