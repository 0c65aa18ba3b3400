"""From evidence ``(B, P)`` to logits ``(B, C)``, with a ledger that adds up: bias + sum of contributions = logit."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn


class Head(nn.Module, ABC):
    """What every head offers, so that explanation, report and audit need no code of their own for it."""

    @abstractmethod
    def forward(self, evidence: Tensor) -> Tensor:
        """Return logits ``(B, C)`` for evidence ``(B, P)``."""

    @abstractmethod
    def contributions(self, evidence: Tensor) -> Tensor:
        """Return ``(B, C, P)``: what each prototype adds to each logit."""

    @abstractmethod
    def offset(self) -> Tensor:
        """Return ``(C,)``: the part of each logit that no prototype brings."""

    @abstractmethod
    def keep(self, rows: Tensor) -> None:
        """Keep only these prototypes (row indices of the bank)."""


class LinearEvidence(Head):
    """``logits = evidence @ weight.T + bias``.

    Attributes
    ----------
    weight : Parameter
        ``(C, P)``.
    bias : Parameter or None
        ``(C,)``.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        if weight.ndim != 2:
            raise ValueError(f"weight must be (C, P), got {tuple(weight.shape)}")
        self.weight = nn.Parameter(weight.clone())
        self.bias = None if bias is None else nn.Parameter(bias.clone())

    @classmethod
    def from_ownership(cls, ownership: Tensor, own: float = 1.0, other: float = -0.5) -> LinearEvidence:
        """Start with ``own`` where a class owns a prototype and ``other`` where it does not.

        Examples
        --------
        >>> LinearEvidence.from_ownership(torch.eye(2)).weight.tolist()
        [[1.0, -0.5], [-0.5, 1.0]]
        """
        return cls(torch.where(ownership.T > 0, own, other))

    def forward(self, evidence: Tensor) -> Tensor:
        """Return logits ``(B, C)``."""
        return nn.functional.linear(evidence, self.weight, self.bias)

    def contributions(self, evidence: Tensor) -> Tensor:
        """Return evidence times weight, ``(B, C, P)``."""
        return evidence.unsqueeze(1) * self.weight

    def offset(self) -> Tensor:
        """Return the bias, or zeros."""
        return self.weight.new_zeros(self.weight.shape[0]) if self.bias is None else self.bias

    def keep(self, rows: Tensor) -> None:
        """Keep only these columns of the weight."""
        self.weight = nn.Parameter(self.weight.detach()[:, rows].clone(), requires_grad=self.weight.requires_grad)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        resize_to(self, state_dict, prefix, ("weight",))
        super()._load_from_state_dict(state_dict, prefix, *args)


def resize_to(module: nn.Module, state: dict[str, Any], prefix: str, names: tuple[str, ...]) -> None:
    """Give parameters and buffers the size they have in a state dict (a bank may have grown or been pruned)."""
    for name in names:
        saved, current = state.get(prefix + name), getattr(module, name)
        if saved is None or current is None or saved.shape == current.shape or saved.ndim != current.ndim:
            continue
        empty = current.detach().new_empty(saved.shape)
        replacement = nn.Parameter(empty, requires_grad=current.requires_grad)
        setattr(module, name, replacement if isinstance(current, nn.Parameter) else empty)
