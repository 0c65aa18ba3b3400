"""A model with some prototypes banned, removed or given another weight, as a copy: the model itself is left as it is.

- **ban**: the prototype is out of use. Whoever depends on it answers as the head does for a prototype that the model
  does not have: cases that are left vote, components that are left share the weight.
- **remove**: the prototype is cut out of the copy. Predictions are those of a ban, but for models whose encoder or head
  counts its prototypes, or whose classes share a fixed weight among theirs.
- **reweight**: what the prototype adds to every class is multiplied by a factor. Only heads in which contributions do
  not depend on one another can say what that means (``Head.linear``); others refuse.

A prototype out of use brings the evidence 0. Where similarities are negative (minus a distance) that is more than any
match brings, so a ban then speaks for what the prototype spoke for: look at such models by their nearest prototypes.

Rejecting a prototype in one case (:mod:`~protolearn.explain.interact`) is another question: there the model has the
prototype and the case does not show it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from protolearn.core.heads import Head
from protolearn.core.model import PrototypeModel
from protolearn.errors import UsageError
from protolearn.explain.interact import chosen
from protolearn.structures import Output

Whom = str | int
"""A prototype by id, or a group (concept, scale, branch) by name."""


@dataclass(frozen=True)
class Alteration:
    """What is to be changed about a model's prototypes.

    Attributes
    ----------
    ban, remove : tuple of str or int
        Prototypes by id, groups by name.
    reweight : mapping of str or int to float
        Factors, at least 0.

    Examples
    --------
    >>> Alteration(ban=(3,), reweight={5: 0.5}).words()
    'ban 3; weight of 5 times 0.5'
    >>> Alteration().words()
    'nothing'
    """

    ban: tuple[Whom, ...] = ()
    remove: tuple[Whom, ...] = ()
    reweight: Mapping[Whom, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("ban", "remove"):
            given = getattr(self, name)
            if isinstance(given, str | int):
                raise UsageError(f"{name} takes a list of prototypes or groups, got {given!r}")
            object.__setattr__(self, name, tuple(given))
        for who, factor in self.reweight.items():
            if not (isinstance(factor, int | float) and math.isfinite(factor) and factor >= 0):
                raise UsageError(f"the weight of {who!r} is multiplied by a number of at least 0, got {factor!r}")
        for who in (*self.ban, *self.remove, *self.reweight):
            if isinstance(who, bool) or not isinstance(who, str | int):
                raise UsageError(f"name prototypes by id and groups by name, got {who!r}")

    def words(self) -> str:
        """Return it as text."""
        parts = [
            f"{verb} {', '.join(map(str, who))}" for verb, who in (("ban", self.ban), ("remove", self.remove)) if who
        ]
        parts += [f"weight of {who} times {factor:g}" for who, factor in self.reweight.items()]
        return "; ".join(parts) or "nothing"

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        factors = {str(who): factor for who, factor in self.reweight.items()}
        return {"ban": list(self.ban), "remove": list(self.remove), "reweight": factors}


def altered(model: PrototypeModel, alteration: Alteration, *, share: bool = False) -> PrototypeModel:
    """Return an altered copy of a model.

    Parameters
    ----------
    model : PrototypeModel
        Left as it is.
    alteration : Alteration
        What is other in the copy. A copy with factors explains and predicts, but is not for saving: its method cannot
        rebuild it.
    share : bool
        The copy shares encoder, neck, metric and decoder with the model, which saves memory; it must then not be
        trained.

    Raises
    ------
    UsageError
        If a prototype or group does not exist (any more), nothing would be left, or the head knows no factors.

    Examples
    --------
    >>> from protolearn.encoders import FeatureEncoder
    >>> from protolearn.methods import get_method
    >>> model = get_method("protopnet")(prototypes_per_class=2).build(FeatureEncoder(4), 2)
    >>> other = altered(model, Alteration(ban=(0, 3)))
    >>> other.bank.usable.tolist(), model.bank.usable.tolist()
    ([False, True, True, False], [True, True, True, True])
    """
    if model.bank.drawn:
        raise UsageError("the prototypes of this model belong to one input each: there is nothing to ban for all")
    banned, removed = _members(model, alteration.ban), _members(model, alteration.remove)
    factors = _factors(model, alteration.reweight)
    if bool(removed.all()):
        raise UsageError("all prototypes would be removed: ban them to see what the model says without any")
    shared = (model.encoder, model.neck, model.metric, model.decoder) if share else ()
    other = copy.deepcopy(model, {id(part): part for part in shared if part is not None})
    other.bank.banned |= banned
    if bool((factors != 1).any()):
        if not other.head.linear:
            raise UsageError(
                f"the head of this model ({type(other.head).__name__}) does not add up prototypes one by one, so that "
                "none has a weight of its own: ban prototypes instead"
            )
        other.head = ReweighedHead(other.head, factors)
    if bool(removed.any()):
        other.prune(model.bank.ids[removed])
    return other


def _members(model: PrototypeModel, whom: Iterable[Whom]) -> Tensor:
    found = torch.zeros_like(model.bank.active)
    for who in whom:
        found |= chosen(model, who)
    return found


def _factors(model: PrototypeModel, reweight: Mapping[Whom, float]) -> Tensor:
    factors = torch.ones(len(model.bank), dtype=model.head.offset().dtype, device=model.bank.ids.device)
    taken = torch.zeros_like(model.bank.active)
    for who, factor in reweight.items():
        members = chosen(model, who)
        if bool((members & taken).any()):
            twice = int(model.bank.ids[members & taken][0])
            raise UsageError(f"prototype {twice} is given a factor twice: by itself and by its group, or by two names")
        factors[members], taken = factor, taken | members
    return factors


class ReweighedHead(Head):
    """A linear head in which each prototype's contribution is multiplied by a factor.

    Parameters
    ----------
    inner : Head
        A linear one.
    factors : Tensor
        ``(P,)``.

    Examples
    --------
    >>> from protolearn.core.heads import LinearEvidence
    >>> head = ReweighedHead(LinearEvidence(torch.eye(2)), torch.tensor([0.5, 1.0]))
    >>> head(torch.tensor([[4.0, 3.0]])).tolist()
    [[2.0, 3.0]]
    """

    linear = True
    factors: Tensor

    def __init__(self, inner: Head, factors: Tensor) -> None:
        super().__init__()
        if not inner.linear:
            raise ValueError(f"{type(inner).__name__} is not linear")
        self.inner = inner
        self.score_name = inner.score_name  # type: ignore[misc]  # of the class elsewhere, of what is wrapped here
        self.register_buffer("factors", factors)

    def _weight(self) -> Tensor:
        weight = self.inner.per_unit(len(self.factors))
        assert weight is not None, "a linear head has one"
        return weight * self.factors

    def weighed(self, evidence: Tensor) -> Tensor:
        """Return evidence as the inner head weighs it."""
        return self.inner.weighed(evidence)

    def forward(self, evidence: Tensor) -> Tensor:
        """Return logits ``(B, C)``."""
        return nn.functional.linear(self.weighed(evidence), self._weight(), self.inner.offset())

    def contributions(self, evidence: Tensor) -> Tensor:
        """Return evidence times weight times factor, ``(B, C, P)``."""
        return self.weighed(evidence).unsqueeze(1) * self._weight()

    def per_unit(self, count: int, usable: Tensor | None = None) -> Tensor | None:
        """Return ``(C, P)``."""
        return self._weight()

    def offset(self) -> Tensor:
        """Return that of the inner head."""
        return self.inner.offset()

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return what the inner head makes of logits."""
        return self.inner.probabilities(logits)

    def abstains(self, logits: Tensor) -> Tensor:
        """Return where the inner head would abstain."""
        return self.inner.abstains(logits)

    def keep(self, rows: Tensor) -> None:
        """Keep only these prototypes."""
        self.inner.keep(rows)
        self.factors = self.factors[rows]


@torch.no_grad()
def answer_of(other: PrototypeModel, output: Output) -> Output:
    """Return what an altered copy makes of inputs that the model has seen; encoded anew only where it must be.

    Both must be in eval mode.
    """
    if other.encoder.reads_bank or output.tokens is None:
        if output.inputs is None:
            raise UsageError("this output was made of cached tokens: run the model on inputs")
        found: Output = other(output.inputs)
        return found
    return other.score(output.tokens)
