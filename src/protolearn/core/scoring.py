"""A scoring sheet: a few points for each prototype found, none against, and no points at all means "I don't know".

Source: PIP-Net (Nauta et al., CVPR 2023). Non-negative weights without bias, made sparse by a normalisation that
rewards few large scores and by a small step towards 0 after each update.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from protolearn.core.heads import Head, nothing_scores, resize_to


def squash(scores: Tensor, power: float = 2.0) -> Tensor:
    """Return ``log(1 + score^power)``: what a softmax sees in training, so that many small scores gain little.

    Scores are never negative.

    Examples
    --------
    >>> squash(torch.tensor([0.0, 3.0])).tolist()
    [0.0, 2.3025851249694824]
    """
    return (scores**power).log1p()


class ScoringSheet(Head):
    """``score_c = sum over p of relu(w_cp) s_p``: the evidence found, times points that are never negative.

    Scores are the logits; :meth:`probabilities` is the softmax of their :func:`squash`, as in training.

    Parameters
    ----------
    raw : Tensor
        ``(C, P)``.
    power : float
        Of :func:`squash`.
    shrink : float
        What every weight loses after an optimiser step that trains the head, down to 0.
    clip : float
        In eval mode evidence below this counts as 0.

    Examples
    --------
    >>> sheet = ScoringSheet(torch.tensor([[2.0, -1.0], [0.0, 1.0]]))
    >>> sheet(torch.tensor([[0.5, 1.0]]))
    tensor([[1., 1.]], grad_fn=<MmBackward0>)
    """

    linear: ClassVar[bool] = True
    score_name: ClassVar[str] = "score"

    def __init__(self, raw: Tensor, *, power: float = 2.0, shrink: float = 1e-3, clip: float = 0.0) -> None:
        super().__init__()
        if raw.ndim != 2:
            raise ValueError(f"raw weights must be (C, P), got {tuple(raw.shape)}")
        self.raw = nn.Parameter(raw.clone())
        self.power, self.shrink, self.clip = power, shrink, clip

    @classmethod
    def start(
        cls, classes: int, count: int, *, generator: torch.Generator | None = None, **options: float
    ) -> ScoringSheet:
        """Start with about one point for everything: normal with mean 1 and standard deviation 0.1."""
        return cls(1.0 + 0.1 * torch.randn(classes, count, generator=generator), **options)

    @property
    def weight(self) -> Tensor:
        """``(C, P)``, at least 0."""
        return self.raw.relu()

    def weighed(self, evidence: Tensor) -> Tensor:
        """Return the evidence as it is weighed: in eval mode what lies below ``clip`` is 0."""
        return evidence if self.training or self.clip <= 0 else evidence.where(~(evidence < self.clip), 0.0)

    def forward(self, evidence: Tensor) -> Tensor:
        """Return scores ``(B, C)``, at least 0."""
        return nn.functional.linear(self.weighed(evidence), self.weight)

    def contributions(self, evidence: Tensor) -> Tensor:
        """Return evidence times weight, ``(B, C, P)``."""
        return self.weighed(evidence).unsqueeze(1) * self.weight

    def offset(self) -> Tensor:
        """Return zeros."""
        return self.raw.new_zeros(len(self.raw))

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the softmax over classes of the squashed scores."""
        return squash(logits, self.power).softmax(-1)

    def abstains(self, logits: Tensor) -> Tensor:
        """Return where no class scores anything: "I don't know"."""
        return nothing_scores(logits)

    @torch.no_grad()
    def constrain(self) -> None:
        """Take a little from every weight, never below 0; only where the head is being trained."""
        if self.training:
            self.raw.sub_(self.shrink).clamp_min_(0.0)

    @torch.no_grad()
    def silence(self, gone: Tensor) -> None:
        """Set the weights of some prototypes ``(P,)`` bool to 0 for every class."""
        self.raw.masked_fill_(gone, 0.0)

    @torch.no_grad()
    def absorb(self, row: int, twins: Tensor) -> bool:
        """Add the points of the twins to those of the one that stays."""
        self.raw[:, row] = self.weight[:, row] + self.weight[:, twins].sum(1)
        self.raw[:, twins] = 0.0
        return True

    def keep(self, rows: Tensor) -> None:
        """Keep only these columns."""
        self.raw = nn.Parameter(self.raw.detach()[:, rows].clone(), requires_grad=self.raw.requires_grad)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        resize_to(self, state_dict, prefix, ("raw",))
        super()._load_from_state_dict(state_dict, prefix, *args)
