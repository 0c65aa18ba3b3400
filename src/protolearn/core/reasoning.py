"""Reasoning by components: what each class expects to be present, and what it expects to be absent.

A component (prototype) is detected with a certainty ``d`` in [0, 1]. Each class spreads one unit of attention over the
``2 P`` questions "is p there?" and "is p absent?"; its score is the share of the answers that are as expected::

    (R+, R-) = softmax of theta over all 2 P slots of a class
    score_c  = sum over p of  R+_cp d_p + R-_cp (1 - d_p),  in [0, 1]; scores of classes do not sum to 1

Source: Saralajew et al., AAAI 2025, arXiv 2412.15499. There is no third, indefinite answer: what a class expects of p
is one number ``r_cp = R+_cp / (R+_cp + R-_cp)``, and how much it cares is another, ``b_cp = R+_cp + R-_cp``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from protolearn.core.heads import Head, nothing_scores, resize_to
from protolearn.structures import Output


def reasoning(theta: Tensor, usable: Tensor | None = None) -> Tensor:
    """Return ``(2, C, P)``: how much presence (0) and absence (1) of each component count for each class.

    Parameters
    ----------
    theta : Tensor
        ``(2, C, P)`` free parameters, or ``(1, C, P)`` for classes that never reason by absence.
    usable : Tensor, optional
        ``(P,)`` bool; what is not usable gets no share, and the others share its part. Where nothing is usable: zeros.

    Examples
    --------
    >>> reasoning(torch.zeros(2, 1, 2)).flatten().tolist()
    [0.25, 0.25, 0.25, 0.25]
    """
    if theta.ndim != 3 or theta.shape[0] not in (1, 2):
        raise ValueError(f"theta must be (2, C, P), or (1, C, P) without absence, got {tuple(theta.shape)}")
    slots = theta if usable is None else theta.masked_fill(~usable, float("-inf"))
    flat = slots.transpose(0, 1).flatten(1)  # (C, 2 P): one joint softmax, or the shares of a class would not sum to 1
    if usable is not None:
        flat = flat.where(usable.any(), 0.0)
    shares = flat.softmax(1).view(theta.shape[1], len(theta), theta.shape[2]).transpose(0, 1)
    if usable is not None:
        shares = shares * usable  # all zero where nothing is usable
    return shares if len(shares) == 2 else torch.cat([shares, torch.zeros_like(shares)])


def agreement(detection: Tensor, shares: Tensor) -> Tensor:
    """Return scores ``(B, C)``, affine in detections ``(B, P)``, from the shares ``(2, C, P)`` of :func:`reasoning`.

    Examples
    --------
    >>> shares = torch.tensor([[[0.7, 0.0]], [[0.0, 0.3]]])  # expects the first, and that the second is absent
    >>> agreement(torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]), shares).flatten().tolist()
    [1.0, 0.699999988079071, 0.0]
    """
    present, absent = shares
    return nn.functional.linear(detection, present - absent, absent.sum(1))


def agreement_columns(detection: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """Return the two columns of the ledger, each ``(B, C, P)``; they are never negative and sum to the score.

    ``R+ d``: expected and found. ``R- (1 - d)``: expected absent, and absent.

    Examples
    --------
    >>> shares = torch.tensor([[[0.75, 0.0]], [[0.0, 0.25]]])
    >>> found, missed = agreement_columns(torch.tensor([[1.0, 0.0]]), shares)
    >>> found.tolist(), missed.tolist()
    ([[[0.75, 0.0]]], [[[0.0, 0.25]]])
    """
    present, absent = shares
    d = detection.unsqueeze(1)
    return present * d, absent * (1.0 - d)


class Reasoning(Head):
    """The score of a class is the share of its expectations about components that an input meets.

    Scores lie in [0, 1] where the evidence does; they are no logits, so neither softmax nor cross-entropy belongs
    behind them. A component that is banned or pruned leaves the softmax, and the others take its share.

    Parameters
    ----------
    theta : Tensor
        ``(2, C, P)``, presence then absence; ``(1, C, P)`` for a head that cannot reason by absence.

    Attributes
    ----------
    clip : float
        In eval mode detections below this count as 0; off (0) by default.

    Examples
    --------
    >>> head = Reasoning.start(classes=2, count=3, generator=torch.Generator().manual_seed(0))
    >>> d = torch.rand(5, 3)
    >>> torch.allclose(head.contributions(d).sum(2) + head.offset(), head(d))
    True
    """

    score_name: ClassVar[str] = "score"

    def __init__(self, theta: Tensor, *, clip: float = 0.0) -> None:
        super().__init__()
        reasoning(theta)  # checks the shape
        self.theta = nn.Parameter(theta.clone())
        self.clip = clip

    @classmethod
    def start(
        cls,
        classes: int,
        count: int,
        *,
        absence: bool = True,
        clip: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Reasoning:
        """Start undecided: ``theta`` normal with mean 0.6 and standard deviation 0.2, as in the authors' code."""
        return cls(0.6 - 0.2 * torch.randn(2 if absence else 1, classes, count, generator=generator), clip=clip)

    def shares(self, usable: Tensor | None = None) -> Tensor:
        """Return ``(2, C, P)``: the weight of presence and of absence."""
        return reasoning(self.theta, usable)

    def weighed(self, evidence: Tensor) -> Tensor:
        """Return the evidence as it is weighed: in eval mode what lies below ``clip`` is 0."""
        return evidence if self.training or self.clip <= 0 else evidence.where(~(evidence < self.clip), 0.0)

    def forward(self, evidence: Tensor) -> Tensor:
        """Return scores ``(B, C)``."""
        return agreement(self.weighed(evidence), self.shares())

    def read(self, out: Output) -> Tensor:
        """Return scores ``(B, C)`` over the usable components."""
        return agreement(self.weighed(out.evidence), self.shares(out.bank.usable))

    def columns(self, out: Output) -> tuple[Tensor, Tensor]:
        """Return ``(B, C, P)`` twice: expected and found; expected absent, and absent."""
        return agreement_columns(self.weighed(out.evidence), self.shares(out.bank.usable))

    def parts(self, out: Output) -> Mapping[str, Tensor]:
        """Return both columns by name."""
        found, missed = self.columns(out)
        return {"expected and found": found, "expected absent, and absent": missed}

    def ledger(self, out: Output) -> Tensor:
        """Return ``(B, C, P)``: both columns together."""
        found, missed = self.columns(out)
        return found + missed

    def contributions(self, evidence: Tensor) -> Tensor:
        """Return ``R+ d + R- (1 - d)``, ``(B, C, P)``."""
        found, missed = agreement_columns(self.weighed(evidence), self.shares())
        return found + missed

    def offset(self) -> Tensor:
        """Return zeros: every part of a score belongs to a component."""
        return self.theta.new_zeros(self.theta.shape[1])

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return each score's share in the sum over classes; all the same where every score is 0.

        Scores themselves say more: an input that no class expects scores low for all of them.
        """
        scores = logits.clamp_min(0.0)
        total = scores.sum(-1, keepdim=True)
        return torch.where(total > 0, scores / torch.where(total > 0, total, 1.0), 1.0 / logits.shape[-1])

    def abstains(self, logits: Tensor) -> Tensor:
        """Return where no class scores anything: none of what any class expects was met."""
        return nothing_scores(logits)

    def per_unit(self, count: int, usable: Tensor | None = None) -> Tensor | None:
        """Return ``R+ - R-``, ``(C, P)``: what a component found adds, beside one that is absent."""
        shares = self.shares(usable)
        return shares[0] - shares[1]

    def keep(self, rows: Tensor) -> None:
        """Keep only these components; the softmax is over what is left."""
        self.theta = nn.Parameter(self.theta.detach()[..., rows].clone(), requires_grad=self.theta.requires_grad)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        resize_to(self, state_dict, prefix, ("theta",))
        super()._load_from_state_dict(state_dict, prefix, *args)
