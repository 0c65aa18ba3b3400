"""From evidence ``(B, P)`` to logits ``(B, C)``, with a ledger that adds up: bias + sum of contributions = logit.

Most heads read the evidence alone. One that needs more of the path (distances, tokens, the table of all positions) says
so in ``reads`` and overrides ``read`` and ``ledger``. A head whose scores are probabilities already returns them in
place of logits, so that its ledger sums to a probability, and overrides ``probabilities``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from protolearn.errors import UsageError

if TYPE_CHECKING:
    from protolearn.structures import Output


class Head(nn.Module, ABC):
    """What every head offers, so that explanation, report and audit need no code of their own for it.

    Attributes
    ----------
    reads : tuple of str
        Fields of ``Output`` that the logits are made of.
    score_name : str
        What its scores are called in an explanation: "logit", "probability" where they are some, "score" else.
    sized_apart : tuple of str
        Parameters and buffers whose size follows neither from the settings nor from the number of prototypes, such as
        the leaves of a pruned tree; a saved state says it.
    linear : bool
        Logits are the offset plus weighed evidence times :meth:`per_unit`, and a prototype that is taken out of use
        takes its own contribution along and nothing else.
    """

    sized_apart: ClassVar[tuple[str, ...]] = ()
    score_name: ClassVar[str] = "logit"
    reads: ClassVar[tuple[str, ...]] = ("evidence",)
    linear: ClassVar[bool] = False

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

    def take_class(self, ownership: Tensor) -> None:
        """Take up one more class, the last, with prototypes of its own, the last rows; other scores stay the same.

        Parameters
        ----------
        ownership : Tensor
            ``(P, C)`` of the bank after it has grown.

        Raises
        ------
        UsageError
            If this kind of head cannot.
        """
        raise UsageError(
            f"a {type(self).__name__} cannot take up a class without another training: train the model anew with the "
            "new class"
        )

    @torch.no_grad()
    def absorb(self, row: int, twins: Tensor) -> bool:
        """Let one prototype speak for its twins too, which bring the very same evidence and are about to go.

        ``row`` and ``twins`` are rows of the bank. Returns whether no score changes; where a head cannot do that, it
        changes nothing and returns False.
        """
        return False

    def read(self, out: Output) -> Tensor:
        """Return logits ``(B, C)`` for the path so far (its own ``logits`` are not filled in yet)."""
        logits: Tensor = self(out.evidence)
        return logits

    def ledger(self, out: Output) -> Tensor:
        """Return ``(B, C, P)``: what each prototype adds to each logit of an output."""
        return self.contributions(out.evidence)

    def weighed(self, evidence: Tensor) -> Tensor:
        """Return evidence as contributions are made of it: as it is, unless the head leaves out what is too small."""
        return evidence

    def parts(self, out: Output) -> Mapping[str, Tensor]:
        """Return named tables ``(B, C, P)`` that sum to the ledger, where that is no weight times evidence."""
        return {}

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return ``(B, C)`` probabilities for what :meth:`read` returned: a softmax, unless they are some already."""
        return logits.softmax(-1)

    def abstains(self, logits: Tensor) -> Tensor:
        """Return ``(B,)`` bool: nothing speaks for any class, so that the largest score is no answer. Never, here."""
        return torch.zeros_like(logits[..., 0], dtype=torch.bool)

    def per_unit(self, count: int, usable: Tensor | None = None) -> Tensor | None:
        """Return ``(C, P)``: what one unit of each prototype's evidence adds; None where that is not all it reads.

        ``usable`` ``(P,)`` bool says which prototypes speak, where what one adds depends on who else does.
        """
        if self.reads != ("evidence",):
            return None
        return self.contributions(self.offset().new_ones(1, count))[0]

    @torch.no_grad()
    def constrain(self) -> None:
        """Bring the weights back to where they may be, after a step of the optimiser."""


def nothing_scores(scores: Tensor, least: float = 0.0) -> Tensor:
    """Return ``(B,)`` bool: no class scores more than ``least``; NaN is no score. For scores that start at 0.

    Examples
    --------
    >>> nothing_scores(torch.tensor([[0.0, 0.0], [0.0, 0.2]])).tolist()
    [True, False]
    """
    return ~(scores > least).any(-1)


class WeighedEvidence(Head):
    """``logits = evidence @ weight.T + bias``, the weights ``(C, P)`` learned or not."""

    linear = True
    weight: Tensor
    bias: nn.Parameter | None

    def forward(self, evidence: Tensor) -> Tensor:
        """Return logits ``(B, C)``."""
        return nn.functional.linear(evidence, self.weight, self.bias)

    def contributions(self, evidence: Tensor) -> Tensor:
        """Return evidence times weight, ``(B, C, P)``."""
        return evidence.unsqueeze(1) * self.weight

    @torch.no_grad()
    def absorb(self, row: int, twins: Tensor) -> bool:
        """Add the weights of the twins to that of the one that stays."""
        move_columns(self.weight, row, twins)
        return True

    def offset(self) -> Tensor:
        """Return the bias, or zeros."""
        return self.weight.new_zeros(self.weight.shape[0]) if self.bias is None else self.bias

    @torch.no_grad()
    def take_class(self, ownership: Tensor) -> None:
        """Give the new class what others have on the average; its prototypes count nothing for them.

        Its own prototypes share evenly what those of another class weigh together, on the average; another's prototype
        weighs what it does for classes that do not own it, on the average; a bias is the mean of the others.
        """
        classes, held = self.weight.shape
        owned = ownership[:held, :classes].T > 0
        if not bool(owned.any()):
            raise UsageError("no class of this head owns a prototype: there is no measure for those of a new class")
        row = self.weight.masked_fill(owned, 0.0).sum(0) / (~owned).sum(0).clamp_min(1)
        count = len(ownership) - held
        column = self.weight.new_zeros(classes + 1, count)
        column[-1] = self.weight[owned].sum() / (owned.any(1).sum() * max(count, 1))
        grown = torch.cat([torch.cat([self.weight, row.unsqueeze(0)]), column], 1)
        if isinstance(self.weight, nn.Parameter):
            self.weight = nn.Parameter(grown, requires_grad=self.weight.requires_grad)
        else:
            self.weight = grown
        if self.bias is not None:
            bias = torch.cat([self.bias, self.bias.mean().unsqueeze(0)])
            self.bias = nn.Parameter(bias, requires_grad=self.bias.requires_grad)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        resize_to(self, state_dict, prefix, ("weight",))
        super()._load_from_state_dict(state_dict, prefix, *args)


class LinearEvidence(WeighedEvidence):
    """``logits = evidence @ weight.T + bias``.

    Parameters
    ----------
    weight : Tensor
        ``(C, P)``.
    bias : Tensor, optional
        ``(C,)``.
    centred : bool
        Keep the weights of each prototype at mean 0 over classes. It changes no probability, since a number added to
        all classes of one prototype never does, and it makes a contribution say what it is: for or against a class
        compared with the others.

    Attributes
    ----------
    weight, bias : Parameter
        As above.

    Examples
    --------
    >>> LinearEvidence(torch.tensor([[3.0], [1.0]]), centred=True).weight.tolist()
    [[1.0], [-1.0]]
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None, *, centred: bool = False) -> None:
        super().__init__()
        if weight.ndim != 2:
            raise ValueError(f"weight must be (C, P), got {tuple(weight.shape)}")
        self.weight = nn.Parameter(weight.clone())
        self.bias = None if bias is None else nn.Parameter(bias.clone())
        self.centred = centred
        self.constrain()

    @torch.no_grad()
    def constrain(self) -> None:
        """Centre the weights, where they are to be."""
        if self.centred:
            self.weight.sub_(self.weight.mean(0))

    @classmethod
    def from_ownership(cls, ownership: Tensor, own: float = 1.0, other: float = -0.5) -> LinearEvidence:
        """Start with ``own`` where a class owns a prototype and ``other`` where it does not.

        Examples
        --------
        >>> LinearEvidence.from_ownership(torch.eye(2)).weight.tolist()
        [[1.0, -0.5], [-0.5, 1.0]]
        """
        return cls(torch.where(ownership.T > 0, own, other))

    def favoured(self) -> Tensor:
        """Return ``(P,)``: the class each prototype speaks for most, whatever class owns it.

        Examples
        --------
        >>> LinearEvidence(torch.tensor([[1.0, -2.0], [0.5, -1.0]])).favoured()
        tensor([0, 1])
        """
        return self.weight.argmax(0)

    def keep(self, rows: Tensor) -> None:
        """Keep only these columns of the weight."""
        self.weight = nn.Parameter(self.weight.detach()[:, rows].clone(), requires_grad=self.weight.requires_grad)


class ClassSoftmaxEvidence(Head):
    """Each class weighs its own prototypes by a softmax: no evidence from others, none against.

    ``logit_c = sum over its K_c prototypes of K_c * softmax(weight)_p * evidence_p``; the weights of a class are
    positive and sum to ``K_c``.

    Source: EvalProtoPNet (Huang et al., 2023), score aggregation.

    Attributes
    ----------
    weight : Parameter
        ``(P,)`` before the softmax, 1 at the start: all prototypes of a class count the same.

    Examples
    --------
    >>> head = ClassSoftmaxEvidence(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
    >>> head(torch.tensor([[1.0, 3.0, 5.0]]))
    tensor([[4., 5.]], grad_fn=<MmBackward0>)
    """

    linear = True
    owned: Tensor

    def __init__(self, ownership: Tensor) -> None:
        super().__init__()
        if ownership.ndim != 2:
            raise ValueError(f"ownership must be (P, C), got {tuple(ownership.shape)}")
        self.weight = nn.Parameter(torch.ones(len(ownership), device=ownership.device))
        self.register_buffer("owned", ownership > 0)

    def mixing(self) -> Tensor:
        """Return ``(C, P)`` what each prototype counts in each class: 0 where the class does not own it."""
        owned = self.owned.T
        # the lowest number instead of -inf: a class without prototypes gives an even softmax, which is then cut to 0
        low = self.weight.masked_fill(~owned, torch.finfo(self.weight.dtype).min)
        return low.softmax(1).masked_fill(~owned, 0.0) * owned.sum(1, keepdim=True)

    def forward(self, evidence: Tensor) -> Tensor:
        """Return logits ``(B, C)``."""
        return evidence @ self.mixing().T

    def contributions(self, evidence: Tensor) -> Tensor:
        """Return evidence times weight, ``(B, C, P)``."""
        return evidence.unsqueeze(1) * self.mixing()

    def offset(self) -> Tensor:
        """Return zeros: there is no bias."""
        return self.weight.new_zeros(self.owned.shape[1])

    def keep(self, rows: Tensor) -> None:
        """Keep only these prototypes; the weights of a class still sum to the number it keeps."""
        self.weight = nn.Parameter(self.weight.detach()[rows].clone(), requires_grad=self.weight.requires_grad)
        self.owned = self.owned[rows]

    @torch.no_grad()
    def take_class(self, ownership: Tensor) -> None:
        """Let all prototypes of the new class count the same."""
        ones = self.weight.new_ones(len(ownership) - len(self.weight))
        self.weight = nn.Parameter(torch.cat([self.weight, ones]), requires_grad=self.weight.requires_grad)
        self.owned = ownership > 0

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        resize_to(self, state_dict, prefix, ("weight", "owned"))
        super()._load_from_state_dict(state_dict, prefix, *args)


class FixedEvidence(WeighedEvidence):
    """As :class:`LinearEvidence`, with weights that are part of the design and never learned; the bias may be.

    Parameters
    ----------
    weight : Tensor
        ``(C, P)``; kept as a buffer.
    bias : Tensor, optional
        ``(C,)``; a parameter.

    Examples
    --------
    >>> FixedEvidence(torch.eye(2), torch.tensor([0.0, 1.0]))(torch.tensor([[3.0, 4.0]]))
    tensor([[3., 5.]], grad_fn=<AddmmBackward0>)
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        if weight.ndim != 2:
            raise ValueError(f"weight must be (C, P), got {tuple(weight.shape)}")
        self.register_buffer("weight", weight.clone())
        self.bias = None if bias is None else nn.Parameter(bias.clone())

    def keep(self, rows: Tensor) -> None:
        """Keep only these columns of the weight."""
        self.weight = self.weight[:, rows].clone()


class NearestOfClass(Head):
    """The score of a class is the evidence of its nearest prototype alone; the winner takes all.

    Evidence must not be negative: a class that has no usable prototype scores 0, the least.

    Parameters
    ----------
    owner : Tensor
        ``(P,)`` int64, the class of each prototype; -1 for one of no class.
    classes : int
        C.
    power : float
        Probabilities are shares of the scores raised to it: 1 = of the scores, larger = surer.

    Examples
    --------
    >>> head = NearestOfClass(torch.tensor([0, 0, 1]), classes=2)
    >>> evidence = torch.tensor([[0.2, 0.6, 0.4]])
    >>> head(evidence), head.contributions(evidence)[0, 0]
    (tensor([[0.6000, 0.4000]]), tensor([0.0000, 0.6000, 0.0000]))
    """

    score_name: ClassVar[str] = "score"

    owner: Tensor

    def __init__(self, owner: Tensor, classes: int, power: float = 1.0) -> None:
        super().__init__()
        if not power > 0:
            raise ValueError(f"power must be positive, got {power}")
        if owner.ndim != 1 or bool(((owner < -1) | (owner >= classes)).any()):
            raise ValueError(f"owner must be (P,) class indices below {classes}, or -1")
        self.classes, self.power = classes, power
        self.register_buffer("owner", owner.long().clone())

    def forward(self, evidence: Tensor) -> Tensor:
        """Return the largest evidence of each class, ``(B, C)``."""
        return self._best(evidence, evidence.new_zeros(len(evidence), self.classes + 1))[:, :-1]

    def _best(self, values: Tensor, start: Tensor, reduce: str = "amax") -> Tensor:
        columns = torch.where(self.owner < 0, self.classes, self.owner)  # what no class owns goes into a last column
        return start.scatter_reduce(1, columns.expand_as(values), values, reduce)

    def contributions(self, evidence: Tensor) -> Tensor:
        """Return ``(B, C, P)``: the evidence of each class's winner, the first of equal ones; 0 for all others."""
        best, count = self(evidence), evidence.shape[1]
        rows = torch.arange(count, device=evidence.device)
        owned = self.owner.clamp_min(0)
        wins = (evidence == best[:, owned]) & (self.owner >= 0)
        none = rows.new_full((len(evidence), self.classes + 1), count)
        first = self._best(torch.where(wins, rows, count), none, "amin")[:, :-1]
        table = evidence.new_zeros(len(evidence), self.classes, count + 1)
        return table.scatter(2, first.unsqueeze(2), best.unsqueeze(2))[..., :-1]

    def offset(self) -> Tensor:
        """Return zeros."""
        return torch.zeros(self.classes, device=self.owner.device)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return each class's share of ``score ** power``; equal shares where all scores are 0."""
        logs = logits.clamp_min(0.0).log()
        logs = logs.where((logits > 0).any(-1, keepdim=True), 0.0)
        return (self.power * logs).softmax(-1)

    def per_unit(self, count: int, usable: Tensor | None = None) -> Tensor | None:
        """Return ``(C, P)``: a unit of evidence adds one to the own class, where it wins."""
        return torch.nn.functional.one_hot(self.owner + 1, self.classes + 1)[:, 1:].T.float()

    def absorb(self, row: int, twins: Tensor) -> bool:
        """Return whether all are of one class: of equal ones the first wins, and the score is the same with fewer."""
        return bool((self.owner[twins] == self.owner[row]).all())

    def keep(self, rows: Tensor) -> None:
        """Keep only these prototypes."""
        self.owner = self.owner[rows]

    def take_class(self, ownership: Tensor) -> None:
        """Score the new class by the nearest of its prototypes, as all others."""
        fresh = self.owner.new_full((len(ownership) - len(self.owner),), self.classes)
        self.owner, self.classes = torch.cat([self.owner, fresh]), self.classes + 1

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        resize_to(self, state_dict, prefix, ("owner",))
        super()._load_from_state_dict(state_dict, prefix, *args)


def move_columns(table: Tensor, row: int, twins: Tensor) -> None:
    """Add some columns of a table ``(..., P)`` to one of them, in place, and set them to 0."""
    table[..., row] += table[..., twins].sum(-1)
    table[..., twins] = 0.0


def resize_to(module: nn.Module, state: dict[str, Any], prefix: str, names: tuple[str, ...]) -> None:
    """Give parameters and buffers the size they have in a state dict (a bank may have grown or been pruned)."""
    for name in names:
        saved, current = state.get(prefix + name), getattr(module, name)
        if saved is None or current is None or saved.shape == current.shape or saved.ndim != current.ndim:
            continue
        empty = current.detach().new_empty(saved.shape)
        replacement = nn.Parameter(empty, requires_grad=current.requires_grad)
        setattr(module, name, replacement if isinstance(current, nn.Parameter) else empty)
