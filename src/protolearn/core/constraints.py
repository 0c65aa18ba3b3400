"""Where prototypes may lie, beyond ``bank.unit_norm``: constraints that depend on a bank's groups."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from protolearn.core.bank import PrototypeBank


def within_part(vectors: Tensor, groups: Tensor, parts: int) -> Tensor:
    """Return rows ``(P, D)`` that are 0 outside part ``groups[p]`` of ``parts`` equal ones, and of length 1.

    Tokens with several representations side by side can so be compared with prototypes of each, in one bank.

    Examples
    --------
    >>> import torch
    >>> within_part(torch.tensor([[3.0, 4.0, 5.0, 12.0]]), torch.tensor([0]), 2)
    tensor([[0.6000, 0.8000, 0.0000, 0.0000]])
    """
    blocks = vectors.reshape(*vectors.shape[:-1], parts, -1)
    mine = F.one_hot(groups, parts).unsqueeze(-1).to(vectors.dtype)
    return F.normalize((blocks * mine).flatten(-2), dim=-1)


@dataclass(eq=False)
class WithinPart:
    """Hold each prototype of a bank in the part of a token that its group names, at length 1."""

    bank: PrototypeBank
    parts: int

    def __call__(self, vectors: Tensor) -> Tensor:
        """Return the vectors as they may be."""
        assert self.bank.groups is not None, "the groups say which part is whose"
        return within_part(vectors, self.bank.groups, self.parts)
