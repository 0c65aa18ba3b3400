"""What a bag's prediction owes to some of its instances: take them out, put them elsewhere, keep them alone.

    necessity(R)   = f(X)_c - f(X without R)_c
    sufficiency(E) = f(X0 and E)_c - f(X0)_c      for instances E put into a bag X0 of another class
    keep only(R)   = f(X_R)_c

Source: Kaczmarzyk et al., HIPPO (2024, arXiv 2409.03080). Effects are told in probabilities and, where the model gives
logits, in logits too: a saturated probability hardly moves.

A model whose score depends on the number of instances (a sum, position encodings) answers to the changed size as well
as to the content: keep the size by :meth:`Bag.replace` there. An instance is taken out of what the model is given; if
instances were encoded together before, the others still hold traces of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from protolearn.errors import UsageError
from protolearn.explain.bag_scorers import BagScorer, BagScores, check_bag

Rows = Sequence[int] | Tensor


@dataclass(frozen=True, eq=False)
class Bag:
    """A bag, and where each of its instances comes from, however often it has been edited.

    Attributes
    ----------
    values : Tensor
        ``(n, d)``.
    name : str
        Of this bag.
    bags : tuple of str
        Names of the bags that instances come from.
    of, index : Tensor
        ``(n,)`` int64: which of ``bags`` each instance comes from, and which of its instances it was.
    edits : tuple of str
        What was done, in order.

    Examples
    --------
    >>> slide = Bag.of_values(torch.rand(4, 2), "slide 1")
    >>> other = Bag.of_values(torch.rand(3, 2), "slide 2")
    >>> edited = slide.drop([0, 2]).insert(other.keep([1]))
    >>> edited.origins(), edited.edits
    ([('slide 1', 1), ('slide 1', 3), ('slide 2', 1)], ('dropped 2 of 4', 'inserted 1 from slide 2'))
    """

    values: Tensor
    name: str
    bags: tuple[str, ...]
    of: Tensor
    index: Tensor
    edits: tuple[str, ...] = ()

    @classmethod
    def of_values(cls, values: Tensor, name: str = "bag") -> Bag:
        """Return a bag that has not been edited."""
        check_bag(values)
        return cls(values, name, (name,), torch.zeros(len(values), dtype=torch.long), torch.arange(len(values)))

    def __len__(self) -> int:
        return len(self.values)

    def origins(self) -> list[tuple[str, int]]:
        """Return the bag each instance comes from and which instance of it it was."""
        return [(self.bags[b], i) for b, i in zip(self.of.tolist(), self.index.tolist(), strict=True)]

    def rows(self, chosen: Rows) -> Tensor:
        """Return positions as int64.

        Raises
        ------
        UsageError
            If a position does not exist or is named twice, or there is none.
        """
        found = torch.as_tensor(chosen).detach().cpu()
        if found.dtype == torch.bool or found.is_floating_point() or found.ndim != 1 or len(found) == 0:
            raise UsageError(f"name instances by position, at least one; got {chosen!r}")
        if int(found.min()) < 0 or int(found.max()) >= len(self):
            raise UsageError(
                f"{self.name} has the instances 0 to {len(self) - 1}, asked for {found.min()} to {found.max()}"
            )
        if len(found.unique()) != len(found):
            raise UsageError(f"an instance of {self.name} is named twice")
        return found.long()

    def drop(self, chosen: Rows) -> Bag:
        """Return the bag without some instances; one at least must stay."""
        gone = self.rows(chosen)
        if len(gone) == len(self):
            raise UsageError(f"nothing would be left of {self.name}: a bag has at least one instance")
        left = torch.ones(len(self), dtype=torch.bool)
        left[gone] = False
        return self._taken(left.nonzero().squeeze(1), f"dropped {len(gone)} of {len(self)}")

    def keep(self, chosen: Rows) -> Bag:
        """Return the bag with these instances alone, in this order."""
        return self._taken(self.rows(chosen), f"kept {len(torch.as_tensor(chosen))} of {len(self)}")

    def insert(self, other: Bag) -> Bag:
        """Return the bag with the instances of another one behind its own."""
        return self._joined(other, f"inserted {len(other)} from {', '.join(other.sources())}")

    def replace(self, chosen: Rows, other: Bag, generator: torch.Generator | None = None) -> Bag:
        """Return the bag with some instances put in place of others, so that it keeps its size.

        Parameters
        ----------
        chosen : sequence of int
            What goes.
        other : Bag
            What comes: one for each that goes, in order; or any number with a ``generator`` to draw them by, without
            repetition as long as there are enough.
        generator : Generator, optional
            Of the draw.
        """
        gone = self.rows(chosen)
        if generator is not None:
            rounds = -(-len(gone) // len(other))
            order = torch.cat([torch.randperm(len(other), generator=generator) for _ in range(rounds)])[: len(gone)]
            other = other._taken(order, f"drew {len(gone)} of {len(other)}")
        elif len(other) != len(gone):
            raise UsageError(
                f"{len(gone)} instances go and {len(other)} come: name as many, or draw them with a generator"
            )
        joined = self._joined(other, f"replaced {len(gone)} of {len(self)} by some from {', '.join(other.sources())}")
        order = torch.arange(len(self))
        order[gone] = len(self) + torch.arange(len(gone))
        return joined._taken(order, None)

    def sources(self) -> tuple[str, ...]:
        """Return the names of the bags that instances come from."""
        return tuple(self.bags[b] for b in self.of.unique().tolist())

    def _taken(self, rows: Tensor, edit: str | None) -> Bag:
        edits = self.edits if edit is None else (*self.edits, edit)
        values = self.values[rows.to(self.values.device)]
        return Bag(values, self.name, self.bags, self.of[rows], self.index[rows], edits)

    def _joined(self, other: Bag, edit: str) -> Bag:
        if other.values.shape[1] != self.values.shape[1]:
            raise UsageError(
                f"{other.name} has instances of {other.values.shape[1]} numbers, {self.name} of {self.values.shape[1]}"
            )
        names = tuple(dict.fromkeys((*self.bags, *other.bags)))
        place = torch.tensor([names.index(name) for name in other.bags])
        return Bag(
            torch.cat([self.values, other.values.to(self.values)]),
            self.name,
            names,
            torch.cat([self.of, place[other.of]]),
            torch.cat([self.index, other.index]),
            (*self.edits, edit),
        )


@dataclass(frozen=True, eq=False)
class Effect:
    """What an edit did to the scores of a bag.

    Attributes
    ----------
    kind : {"necessity", "sufficiency", "keep only", "exchange"}
        See the module; ``exchange`` is the necessity of what was replaced at the same size.
    target : int
        The class that is asked about.
    before, after : BagScores
        ``(C,)`` of the bag and of the edited bag.
    edited : Bag
        With the origin of every instance.
    """

    kind: Literal["necessity", "sufficiency", "keep only", "exchange"]
    target: int
    before: BagScores
    after: BagScores
    edited: Bag

    @property
    def value(self) -> float:
        """The effect in probability: a fall for necessity and exchange, a rise for sufficiency, what is left alone."""
        return self._in("probability")

    @property
    def logit_value(self) -> float | None:
        """The same in logits; None where the model gives none."""
        return None if self.before.logits is None else self._in("logit")

    @property
    def flipped(self) -> bool:
        """Whether another class is predicted afterwards."""
        return self.before.decision() != self.after.decision()

    def _in(self, on: Literal["probability", "logit"]) -> float:
        before, after = float(self.before.of(self.target, on)), float(self.after.of(self.target, on))
        return {"sufficiency": after - before, "keep only": after}.get(self.kind, before - after)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        logits = {
            name: None if scores.logits is None else scores.logits.tolist()
            for name, scores in (("before", self.before), ("after", self.after))
        }
        return {
            "kind": self.kind,
            "bag": self.edited.name,
            "target": self.target,
            "effect": self.value,
            "logit_effect": self.logit_value,
            "flipped": self.flipped,
            "before": {"probabilities": self.before.probabilities.tolist(), "logits": logits["before"]},
            "after": {"probabilities": self.after.probabilities.tolist(), "logits": logits["after"]},
            "instances": len(self.edited),
            "edits": list(self.edited.edits),
        }


def necessity(scorer: BagScorer, bag: Bag, chosen: Rows, target: int) -> Effect:
    """Take instances out and say how far the score of a class falls.

    Examples
    --------
    >>> from protolearn.explain.bag_scorers import BagFunction
    >>> most = BagFunction(lambda bag: bag.amax(0), gives="probabilities")
    >>> bag = Bag.of_values(torch.tensor([[0.1, 0.3], [0.9, 0.2], [0.2, 0.3]]))
    >>> effect = necessity(most, bag, [1], target=0)
    >>> round(effect.value, 3), effect.flipped
    (0.7, True)
    """
    return _effect("necessity", scorer, bag, bag.drop(chosen), target)


def sufficiency(scorer: BagScorer, bag: Bag, extra: Bag, target: int) -> Effect:
    """Put instances into a bag (of another class) and say how far the score of a class rises."""
    return _effect("sufficiency", scorer, bag, bag.insert(extra), target)


def keep_only(scorer: BagScorer, bag: Bag, chosen: Rows, target: int) -> Effect:
    """Keep some instances alone and say what score of a class is left."""
    return _effect("keep only", scorer, bag, bag.keep(chosen), target)


def exchange(
    scorer: BagScorer, bag: Bag, chosen: Rows, other: Bag, target: int, generator: torch.Generator | None = None
) -> Effect:
    """Put other instances in place of some, at the same size, and say how far the score of a class falls."""
    return _effect("exchange", scorer, bag, bag.replace(chosen, other, generator), target)


def _effect(kind: Any, scorer: BagScorer, bag: Bag, edited: Bag, target: int) -> Effect:
    before = steady(scorer, bag.values)
    check_target(before, target)
    return Effect(kind, target, before, scorer(edited.values), edited)


def check_target(scores: BagScores, target: int) -> None:
    """Refuse a class that the scores do not have."""
    classes = scores.probabilities.shape[-1]
    if not 0 <= target < classes:
        raise UsageError(f"there is no class {target}: the model scores the classes 0 to {classes - 1}")


def steady(scorer: BagScorer, values: Tensor) -> BagScores:
    """Return the scores of a bag, asked for twice.

    Raises
    ------
    UsageError
        If the answers differ: a model with dropout at work would be credited with effects of its own noise.
    """
    first, again = scorer(values), scorer(values)
    pairs = [(first.probabilities, again.probabilities)]
    if first.logits is not None and again.logits is not None:
        pairs.append((first.logits, again.logits))
    if not all(torch.allclose(one, other, rtol=1e-5, atol=1e-6) for one, other in pairs):
        raise UsageError("the model gives two answers to one bag: put it into eval mode (dropout off)")
    return first
