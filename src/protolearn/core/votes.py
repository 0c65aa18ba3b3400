"""Prediction by the cases themselves: every stored case votes for its class, near ones with more weight.

B queries, P stored cases, C classes. Scores ``(B, P)`` rise with nearness; weights ``(B, P)`` are what a softmax over
the allowed cases makes of them; probabilities are the weights added up by class, so a vote is its own explanation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from protolearn.core.bank import PrototypeBank
from protolearn.core.heads import Head, nothing_scores
from protolearn.core.neighbours import largest

if TYPE_CHECKING:
    from protolearn.structures import Output


def vote_weights(
    scores: Tensor, allowed: Tensor | None = None, *, k: int | None = None, groups: Tensor | None = None
) -> Tensor:
    """Return the weight of every case in every vote, ``(B, P)``.

    Parameters
    ----------
    scores : Tensor
        ``(B, P)``; -inf counts as not allowed.
    allowed : Tensor, optional
        ``(P,)`` or ``(B, P)`` bool.
    k : int, optional
        Only the k cases with the largest scores vote; the lower row wins a tie.
    groups : Tensor, optional
        ``(P,)`` int64: each group (environment) votes by itself, and the mean over groups that have a vote counts.

    Returns
    -------
    Tensor
        Rows sum to 1; a query for which no case is allowed has zeros.

    Examples
    --------
    >>> vote_weights(torch.tensor([[0.0, 0.0, -9e9]]), torch.tensor([True, True, True]))
    tensor([[0.5000, 0.5000, 0.0000]])
    """
    allowed = torch.isneginf(scores).logical_not() if allowed is None else ~torch.isneginf(scores) & allowed
    if groups is not None:
        names = sorted(set(groups.tolist()))
        return mean_of_groups([vote_weights(scores, allowed & (groups == g), k=k) for g in names])
    if k is not None and k < scores.shape[1]:
        allowed = allowed & largest(scores.masked_fill(~allowed, float("-inf")), k)
    some = allowed.any(1, keepdim=True)
    weights = scores.masked_fill(~allowed, float("-inf")).masked_fill(~some, 0.0).softmax(1)
    return weights.masked_fill(~allowed, 0.0)


def mean_of_groups(parts: list[Tensor]) -> Tensor:
    """Return the mean over groups of the weights ``(B, P)`` of each: a group in which nobody votes does not count."""
    voting = torch.stack([part.detach().sum(1) > 0 for part in parts]).sum(0).clamp_min(1)
    return torch.stack(parts).sum(0) / voting.unsqueeze(1)


def vote(weights: Tensor, ownership: Tensor) -> Tensor:
    """Return ``(B, C)``: the weights ``(B, P)`` added up by the class of each case, ``(P, C)`` one-hot.

    Examples
    --------
    >>> vote(torch.tensor([[0.5, 0.3, 0.2]]), torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]))
    tensor([[0.7000, 0.3000]])
    """
    return weights @ ownership.to(weights)


def balance(ownership: Tensor, allowed: Tensor | None = None) -> Tensor:
    """Return what to add to the scores so that a class has the same say however many cases it has: ``-log n_c``.

    Parameters
    ----------
    ownership : Tensor
        ``(P, C)``.
    allowed : Tensor, optional
        ``(P,)`` or ``(B, P)`` bool: the cases that are counted.

    Examples
    --------
    >>> balance(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])).exp()
    tensor([0.5000, 0.5000, 1.0000])
    """
    owned = (ownership > 0).float()
    counted = owned.sum(0) if allowed is None else allowed.float() @ owned
    return -(counted.clamp_min(1.0) @ owned.T).clamp_min(1.0).log()


def _shares(probabilities: Tensor) -> Tensor:
    """Return rows that sum to 1; where nobody voted, all classes are alike."""
    total = probabilities.sum(-1, keepdim=True)
    even = torch.full_like(probabilities, 1.0 / probabilities.shape[-1])
    return torch.where(total > 0, probabilities / total.clamp_min(torch.finfo(total.dtype).tiny), even)


class Votes(Head):
    """The cases in the bank vote: a softmax over their similarities, added up by class. The scores are probabilities.

    Parameters
    ----------
    bank : PrototypeBank
        Of the model; who owns a prototype is read there.
    k : int, optional
        Only the k most similar vote.
    scale : float
        Factor of the similarities before the softmax.
    learn_scale : bool
        The factor is ``exp`` of a parameter.
    balanced : bool
        A class has the same say however many cases it has.
    by_group : bool
        Each group of the bank (an environment) votes by itself, and the mean counts.

    Examples
    --------
    >>> bank = PrototypeBank(torch.zeros(3, 1), torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]))
    >>> Votes(bank)(torch.zeros(1, 3))
    tensor([[0.3333, 0.6667]])
    """

    score_name: ClassVar[str] = "probability"

    reads: ClassVar[tuple[str, ...]] = ("similarities",)

    def __init__(
        self,
        bank: PrototypeBank,
        *,
        k: int | None = None,
        scale: float = 1.0,
        learn_scale: bool = False,
        balanced: bool = False,
        by_group: bool = False,
    ) -> None:
        super().__init__()
        if not scale > 0:
            raise ValueError(f"scale must be positive, got {scale}")
        self._bank = (bank,)  # in a tuple, so that it is not registered twice
        self.k, self.balanced, self.by_group, self.fixed_scale = k, balanced, by_group, scale
        self.log_scale = nn.Parameter(torch.tensor(float(scale)).log()) if learn_scale else None

    @property
    def bank(self) -> PrototypeBank:
        """The cases."""
        return self._bank[0]

    def voters(self) -> Tensor:
        """Return ``(P,)`` bool: rows of the bank that are cases and may vote."""
        return self.bank.usable

    def scaled(self, similarities: Tensor) -> Tensor:
        """Return similarities times the scale."""
        if self.log_scale is None:
            return similarities if self.fixed_scale == 1.0 else similarities * self.fixed_scale
        return similarities * self.log_scale.exp()

    def weigh(self, similarities: Tensor, allowed: Tensor | None = None) -> Tensor:
        """Return the weight of each case ``(B, P)`` in each vote.

        Those who vote are chosen by nearness first; the balance then counts the cases a class has, within the group
        where groups vote by themselves, and without those that may not vote.
        """
        usable = self.bank.usable if allowed is None else self.bank.usable & allowed
        scores = self.scaled(similarities)
        may = ~torch.isneginf(scores) & usable
        if not self.by_group or self.bank.groups is None:
            return self._weigh(scores, may)
        groups = self.bank.groups
        return mean_of_groups([self._weigh(scores, may & (groups == g)) for g in sorted(set(groups.tolist()))])

    def _weigh(self, scores: Tensor, may: Tensor) -> Tensor:
        voters = may if self.k is None else may & largest(scores.masked_fill(~may, float("-inf")), self.k)
        if self.balanced:
            scores = scores + balance(self.bank.ownership, may)
        return vote_weights(scores, voters)

    def forward(self, evidence: Tensor) -> Tensor:
        """Return probabilities ``(B, C)`` for similarities ``(B, P)``."""
        return vote(self.weigh(evidence), self.bank.ownership)

    def contributions(self, evidence: Tensor) -> Tensor:
        """Return ``(B, C, P)``: the weight of each case, on its own class."""
        return self.weigh(evidence).unsqueeze(1) * self.bank.ownership.T.to(evidence)

    def read(self, out: Output) -> Tensor:
        """Return probabilities ``(B, C)``; zeros where no case may vote."""
        return vote(self.weigh(out.similarities), self.bank.ownership)

    def ledger(self, out: Output) -> Tensor:
        """Return ``(B, C, P)``: the weight of each case, on its own class."""
        return self.contributions(out.similarities)

    def offset(self) -> Tensor:
        """Return zeros: all of it comes from cases."""
        return self.bank.ownership.new_zeros(self.bank.classes)

    def keep(self, rows: Tensor) -> None:
        """Do nothing: the bank holds what there is to know of a case."""

    def abstains(self, logits: Tensor) -> Tensor:
        """Return where nobody voted."""
        return nothing_scores(logits)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the scores themselves; all classes alike where nobody voted."""
        return _shares(logits)


class MixedVotes(Votes):
    """Neighbours and a linear classifier: ``coefficient * p_neighbours + (1 - coefficient) * p_classifier``.

    Rows of the bank in group 0 stand for the classifier, one a class, and bring its part; those in group 1 are cases.
    The classifier reads the tokens' summary: the features as they came.

    Parameters
    ----------
    bank : PrototypeBank
        With groups.
    dim : int
        Width of the summary.
    k : int
        Neighbours.
    scale : float
        One over the temperature.
    coefficient : float
        Share of the neighbours; where there is none, the classifier decides alone.
    """

    reads: ClassVar[tuple[str, ...]] = ("similarities", "tokens")

    def __init__(self, bank: PrototypeBank, dim: int, *, k: int, scale: float = 1.0, coefficient: float = 0.1) -> None:
        super().__init__(bank, k=k, scale=scale)
        self.coefficient = coefficient
        self.classifier = nn.Linear(dim, bank.classes)

    def voters(self) -> Tensor:
        """Return ``(P,)`` bool: rows of the bank that are cases and may vote."""
        assert self.bank.groups is not None, "rows of the classifier are told from cases by group"
        return self.bank.usable & (self.bank.groups == 1)

    def classify(self, out: Output) -> Tensor:
        """Return the logits of the linear classifier, ``(B, C)``."""
        if out.tokens is None or out.tokens.summary is None:
            raise ValueError("this head reads the summary of the tokens, and there is none")
        logits: Tensor = self.classifier(out.tokens.summary)
        return logits

    def _each(self, out: Output) -> Tensor:
        """Return ``(B, P)``: the share of each neighbour, and of each class by the classifier; they sum to 1."""
        assert self.bank.groups is not None, "rows of the classifier are told from cases by group"
        cases = self.bank.groups == 1
        weights = self.weigh(out.similarities, cases) * self.coefficient
        rest = 1 - weights.sum(1, keepdim=True).detach()
        model = (self.classify(out).softmax(1) * rest) @ self.bank.ownership.T.to(weights)
        return torch.where(cases, weights, model).masked_fill(~self.bank.usable, 0.0)

    def forward(self, evidence: Tensor) -> Tensor:
        """Refuse: similarities are not all that this head reads."""
        raise TypeError("this head reads tokens as well as similarities: use read(out)")

    def contributions(self, evidence: Tensor) -> Tensor:
        """Refuse: similarities are not all that this head reads."""
        raise TypeError("this head reads tokens as well as similarities: use ledger(out)")

    def read(self, out: Output) -> Tensor:
        """Return the mixed probabilities ``(B, C)``."""
        return vote(self._each(out), self.bank.ownership)

    def ledger(self, out: Output) -> Tensor:
        """Return ``(B, C, P)``: what each case and each row of the classifier adds."""
        each = self._each(out)
        return each.unsqueeze(1) * self.bank.ownership.T.to(each)
