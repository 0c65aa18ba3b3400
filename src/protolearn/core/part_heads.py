"""Heads that read more than one number a prototype: the tokens a prototype took for its own, or what it became."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from protolearn.core.heads import Head, resize_to
from protolearn.structures import Output

Modulation = Literal["layer_norm", "elementwise", "mlp", "none"]


class PartFeatures(Head):
    """Every part has a feature, and one classifier reads the feature of each part; a logit is the mean over parts.

        v_p = mean over positions of A_p(s) z_s;   logit_c = 1/K sum over the K counted parts of w_c . m_p(v_p)

    ``A`` is the table of shares ``(B, S, P)`` that the output holds, ``z`` its tokens. Source: PDiscoFormer (Aniraj et
    al., 2024). The mean runs over all positions, so a small part has a short feature; the modulation ``m`` makes up
    for it.

    Parameters
    ----------
    counted : Tensor
        ``(P,)`` bool: the prototypes that are read; False for a background.
    classes, dim : int
        Number of logits; width of tokens.
    modulation : str
        ``layer_norm``: over all numbers of all parts together, then a factor and a shift for each; ``elementwise``: a
        factor for each; ``mlp``: a linear layer of its own for each part, then GELU; ``none``.
    dropout : float
        How often a whole part is left out for a case in training, the others made larger to match.
    generator : torch.Generator, optional
        Source of the initial weights: normal of deviation 0.02, cut at two.

    Examples
    --------
    >>> head = PartFeatures(torch.tensor([True, True, False]), classes=4, dim=8)
    >>> head.features(torch.rand(2, 5, 3), torch.rand(2, 5, 8)).shape
    torch.Size([2, 3, 8])
    """

    reads = ("table", "tokens")
    counted: Tensor

    def __init__(
        self,
        counted: Tensor,
        classes: int,
        dim: int,
        *,
        modulation: Modulation = "elementwise",
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if counted.ndim != 1 or counted.dtype != torch.bool or not bool(counted.any()):
            raise ValueError("counted must be (P,) bool with at least one True")
        self.modulation, self.dropout = modulation, dropout
        self.register_buffer("counted", counted.clone())
        self.weight = nn.Parameter(_small((classes, dim), generator))
        parts = len(counted)
        shape = (parts, dim, dim) if modulation == "mlp" else (parts, dim)
        has_factor, has_shift = modulation != "none", modulation in ("layer_norm", "mlp")
        start = _small(shape, generator) if modulation == "mlp" else torch.ones(shape)
        self.factor = nn.Parameter(start) if has_factor else None
        self.shift = nn.Parameter(torch.zeros(parts, dim)) if has_shift else None

    def features(self, table: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return ``(B, P, D)``: the mean over real positions of tokens ``(B, S, D)``, weighted by ``(B, S, P)``."""
        if mask is not None:
            table = table.masked_fill(~mask.unsqueeze(-1), 0.0)  # nobody's share of what is not there may be NaN
            values = values.masked_fill(~mask.unsqueeze(-1), 0.0)
        count = table.shape[1] if mask is None else mask.sum(1).clamp_min(1).view(-1, 1, 1)
        return table.transpose(1, 2) @ values / count

    def modulated(self, features: Tensor) -> Tensor:
        """Return ``(B, P, D)`` features, each part's made comparable with the others'."""
        if self.modulation == "elementwise":
            assert self.factor is not None
            return features * self.factor
        if self.modulation == "layer_norm":
            return F.layer_norm(features, features.shape[1:], self.factor, self.shift)
        if self.modulation == "mlp":
            assert self.factor is not None and self.shift is not None
            return F.gelu(torch.einsum("bpd,ped->bpe", features, self.factor) + self.shift)
        return features

    def of(self, out: Output) -> tuple[Tensor, Tensor]:
        """Return the features ``(B, P, D)`` of an output, and the modulated ones."""
        if out.table is None or out.tokens is None:
            raise ValueError("part features need the tokens and their shares: the model must not pool by its maximum")
        found = self.features(out.table, out.tokens.values, out.tokens.mask)
        return found, self.modulated(found)

    def read(self, out: Output) -> Tensor:
        """Return logits ``(B, C)``; in training, with whole parts left out at random."""
        found = self.of(out)[1] * self._taken(out).unsqueeze(-1)
        return F.linear(F.dropout1d(found, self.dropout, self.training).sum(1), self.weight)

    def ledger(self, out: Output) -> Tensor:
        """Return ``(B, C, P)``; nothing is left out."""
        return (self.of(out)[1] * self._taken(out).unsqueeze(-1) @ self.weight.T).transpose(1, 2)

    def _taken(self, out: Output) -> Tensor:
        """Return ``(P,)``: the share of each part in the mean."""
        return (self.counted & out.bank.usable).to(self.weight.dtype) / self.counted.sum().clamp_min(1)

    def forward(self, evidence: Tensor) -> Tensor:
        """Return zeros ``(B, C)``: how much of an input each part covers says nothing by itself."""
        return evidence.new_zeros(len(evidence), len(self.weight))

    def contributions(self, evidence: Tensor) -> Tensor:
        """Return zeros ``(B, C, P)``, see :meth:`ledger`."""
        return evidence.new_zeros(len(evidence), len(self.weight), evidence.shape[1])

    def offset(self) -> Tensor:
        """Return zeros: there is no bias."""
        return self.weight.new_zeros(len(self.weight))

    def keep(self, rows: Tensor) -> None:
        """Keep only these parts."""
        self.counted = self.counted[rows]
        for name in ("factor", "shift"):
            old = getattr(self, name)
            if old is not None:
                setattr(self, name, nn.Parameter(old.detach()[rows].clone(), requires_grad=old.requires_grad))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        resize_to(self, state_dict, prefix, ("counted", "factor", "shift"))
        super()._load_from_state_dict(state_dict, prefix, *args)


class SharedScore(Head):
    """One vector scores what every prototype became in an input; a class's logit is the score of its own prototype.

        logit_c = b + sum over the prototypes p of class c of w . x_p

    ``x`` is ``(B, P, D)`` among the tokens' ``extras``. Nothing here tells classes apart: only the prototypes do.
    Source: Prompt-CAM (Chowdhury et al., 2025).

    Parameters
    ----------
    ownership : Tensor
        ``(P, C)``.
    dim : int
        Width of what is scored.
    extra : str
        Its name among the extras.
    generator : torch.Generator, optional
        Source of the initial weights: uniform in ±1/sqrt(dim).
    """

    reads = ("tokens",)
    ownership: Tensor

    def __init__(
        self, ownership: Tensor, dim: int, *, extra: str = "prompts", generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.extra = extra
        self.register_buffer("ownership", ownership.to(torch.float32).clone())
        bound = dim**-0.5
        self.weight = nn.Parameter(torch.empty(dim).uniform_(-bound, bound, generator=generator))
        self.bias = nn.Parameter(torch.empty(()).uniform_(-bound, bound, generator=generator))

    def scores(self, out: Output) -> Tensor:
        """Return ``(B, P)``: what each prototype adds to the class it belongs to; 0 for one that may not speak."""
        if out.tokens is None or self.extra not in out.tokens.extras:
            raise ValueError(f"scores are made of the tokens' extra {self.extra!r}, which this output lacks")
        return (out.tokens.extras[self.extra] @ self.weight).masked_fill(~out.bank.usable, 0.0)

    def read(self, out: Output) -> Tensor:
        """Return logits ``(B, C)``."""
        return self.forward(self.scores(out))

    def ledger(self, out: Output) -> Tensor:
        """Return ``(B, C, P)``: a prototype's score at its own class, 0 elsewhere."""
        return self.contributions(self.scores(out))

    def forward(self, evidence: Tensor) -> Tensor:
        """Return logits ``(B, C)`` for scores ``(B, P)``."""
        return evidence @ self.ownership + self.bias

    def contributions(self, evidence: Tensor) -> Tensor:
        """Return ``(B, C, P)`` for scores ``(B, P)``."""
        return evidence.unsqueeze(1) * self.ownership.T

    def offset(self) -> Tensor:
        """Return the one bias for every class."""
        return self.bias.expand(self.ownership.shape[1])

    def keep(self, rows: Tensor) -> None:
        """Keep only these prototypes."""
        self.ownership = self.ownership[rows]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        resize_to(self, state_dict, prefix, ("ownership",))
        super()._load_from_state_dict(state_dict, prefix, *args)


def _small(shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    return nn.init.trunc_normal_(torch.empty(shape), std=0.02, a=-0.04, b=0.04, generator=generator)
