"""What an audit of bags asks of a model: scores of a bag, and of the bag without each of its instances.

A bag is a set of instances ``(n, d)``; C classes. A model enters as a function (:class:`BagFunction`), or in two parts
with its pooling named (:class:`PooledBags`): then leaving out each instance costs one pass in place of n. The model is
asked, never changed: without gradients, and a module in eval mode.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import nullcontext
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from protolearn.core.leave_one_out import attention_without_each, mean_without_each
from protolearn.core.matching import chunk_rows
from protolearn.core.model import PrototypeModel
from protolearn.core.modes import evaluating
from protolearn.errors import DataError, UsageError

Map = Callable[[Tensor], Tensor]


class BagScores(NamedTuple):
    """Scores of one bag ``(C,)`` or of several ``(n, C)``.

    Logits are None where the model gives probabilities alone. Where a probability is near 0 or 1 it hides an effect
    that the logits show.
    """

    probabilities: Tensor
    logits: Tensor | None

    def of(self, target: int, on: Literal["probability", "logit"] = "probability") -> Tensor:
        """Return the score of one class."""
        table = self.logits if on == "logit" else self.probabilities
        if table is None:
            raise UsageError("this model gives no logits: ask about probabilities, or hand in a function to logits")
        return table[..., target]

    def decision(self) -> int:
        """Return the predicted class of one bag, the first of equals; of a single score, whether it reaches a half."""
        if len(self.probabilities) == 1:
            return int(self.probabilities[0] >= 0.5)
        return int(self.probabilities.argmax())

    def row(self, i: int) -> BagScores:
        """Return the scores of one bag of several."""
        return BagScores(self.probabilities[i], None if self.logits is None else self.logits[i])


class BagScorer(ABC):
    """Scores bags."""

    @abstractmethod
    def __call__(self, values: Tensor) -> BagScores:
        """Return the scores ``(C,)`` of a bag ``(n, d)``."""

    @abstractmethod
    def without_each(self, values: Tensor, constant: Tensor | None = None) -> BagScores:
        """Return the scores ``(n, C)`` of a bag of two or more instances without each of them.

        ``constant`` ``(m, d)`` are further instances that are always there.
        """


class BagFunction(BagScorer):
    """Any function of a bag.

    Parameters
    ----------
    function : callable
        From a bag ``(n, d)`` to ``(C,)``, or from bags ``(b, n, d)`` to ``(b, C)``; any number of instances. A module
        is put into eval mode while it is asked; anything else must be without dropout by itself.
    gives : {"logits", "probabilities"}
        What it returns.
    batched : bool
        It takes several bags of one size at once.
    probabilities : callable, optional
        From logits to probabilities; a softmax by default.

    Examples
    --------
    >>> mean = BagFunction(lambda bag: torch.stack([bag.mean(), -bag.mean()]), gives="logits")
    >>> bag = torch.tensor([[1.0], [2.0], [6.0]])
    >>> mean(bag).logits.tolist(), mean.without_each(bag).logits[:, 0].tolist()
    ([3.0, -3.0], [4.0, 3.5, 1.5])
    """

    def __init__(
        self,
        function: Map,
        *,
        gives: Literal["logits", "probabilities"],
        batched: bool = False,
        probabilities: Map | None = None,
    ) -> None:
        if gives not in ("logits", "probabilities"):
            raise UsageError(f"a function of bags gives logits or probabilities, got {gives!r}")
        self.function, self.gives, self.batched = function, gives, batched
        self.to_probabilities: Map = _softmax if probabilities is None else probabilities

    def __call__(self, values: Tensor) -> BagScores:
        """Return the scores ``(C,)`` of a bag ``(n, d)``."""
        check_bag(values)
        return self._asked(values.unsqueeze(0)).row(0)

    def without_each(self, values: Tensor, constant: Tensor | None = None) -> BagScores:
        """Return the scores ``(n, C)`` of a bag without each instance: n passes, several at a time where it can."""
        whole, count = _joined(values, constant)
        size = len(whole) - 1
        if size < 1:
            raise UsageError("a bag of one instance cannot lose it")
        rows = chunk_rows(values.element_size() * size * values.shape[1]) if self.batched else 1
        places = torch.arange(size, device=values.device)
        made = []
        for start in range(0, count, rows):
            gone = torch.arange(start, min(start + rows, count), device=values.device).unsqueeze(1)
            made.append(self._asked(whole[places + (places >= gone).long()]))
        logits = None if self.gives == "probabilities" else torch.cat([_there(part.logits) for part in made])
        return BagScores(torch.cat([part.probabilities for part in made]), logits)

    @torch.no_grad()
    def _asked(self, bags: Tensor) -> BagScores:
        asked = evaluating(self.function) if isinstance(self.function, nn.Module) else nullcontext()
        with asked:
            found = self.function(bags) if self.batched else torch.stack([self.function(bag) for bag in bags])
        if found.ndim != 2 or len(found) != len(bags):
            wanted = f"({len(bags)}, C) for {len(bags)} bags" if self.batched else "(C,) for a bag"
            raise UsageError(f"the function must return {wanted}, got {tuple(found.shape)[0 if self.batched else 1 :]}")
        return _checked(found, self.to_probabilities) if self.gives == "logits" else _checked_probabilities(found)


class PooledBags(BagScorer):
    """A model that embeds each instance by itself, takes a weighted mean, and scores it; leave-one-out in closed form.

        h_i = embed(x_i);  z = sum over i of softmax(attention(h))_i h_i, or the mean of h;  logits = head(z)

    Parameters
    ----------
    embed : callable
        ``(n, d) -> (n, D)``, each instance by itself.
    head : callable
        ``(b, D) -> (b, C)`` logits.
    attention : callable, optional
        ``(n, D) -> (n,)`` or ``(n, 1)``, before the softmax; None = the mean.
    probabilities : callable, optional
        From logits to probabilities; a softmax by default.

    Examples
    --------
    >>> model = PooledBags(nn.Identity(), nn.Linear(2, 3), attention=nn.Linear(2, 1))
    >>> model.without_each(torch.rand(5, 2)).probabilities.shape
    torch.Size([5, 3])
    """

    def __init__(
        self, embed: Map, head: Map, *, attention: Map | None = None, probabilities: Map | None = None
    ) -> None:
        self.embed, self.head, self.attention = embed, head, attention
        self.to_probabilities: Map = _softmax if probabilities is None else probabilities
        self._modules = nn.ModuleList(part for part in (embed, head, attention) if isinstance(part, nn.Module))

    @torch.no_grad()
    def __call__(self, values: Tensor) -> BagScores:
        """Return the scores ``(C,)`` of a bag ``(n, d)``."""
        check_bag(values)
        with evaluating(self._modules):
            h, a = self._embedded(values)
            pooled = h.mean(0) if a is None else a.softmax(0) @ h
            return _checked(self.head(pooled.unsqueeze(0)), self.to_probabilities).row(0)

    @torch.no_grad()
    def without_each(self, values: Tensor, constant: Tensor | None = None) -> BagScores:
        """Return the scores ``(n, C)`` of a bag without each instance, embedded and pooled once."""
        whole, count = _joined(values, constant)
        if len(whole) < 2:
            raise UsageError("a bag of one instance cannot lose it")
        with evaluating(self._modules):
            h, a = self._embedded(whole)
            pooled = mean_without_each(h) if a is None else attention_without_each(h, a)
            return _checked(self.head(pooled[:count]), self.to_probabilities)

    @torch.no_grad()
    def weights(self, values: Tensor) -> Tensor:
        """Return ``(n,)``: the share of each instance in the pooled vector."""
        check_bag(values)
        with evaluating(self._modules):
            a = self._embedded(values)[1]
        return values.new_full((len(values),), 1.0 / len(values)) if a is None else a.softmax(0)

    def _embedded(self, values: Tensor) -> tuple[Tensor, Tensor | None]:
        h = self.embed(values)
        a = None if self.attention is None else self.attention(h)
        if a is not None and a.numel() != len(values):
            raise UsageError(f"attention must be one number an instance, got {tuple(a.shape)} for {len(values)}")
        return h, None if a is None else a.reshape(-1)


def model_of_bags(model: PrototypeModel) -> BagFunction:
    """Return a model of the library, whose inputs are bags ``(B, n, d)``, as what this module asks.

    Examples
    --------
    >>> from protolearn.encoders import FeatureEncoder
    >>> from protolearn.methods import get_method
    >>> model = get_method("protopnet")(prototypes_per_class=2, dim=4).build(FeatureEncoder(3), 2)
    >>> model_of_bags(model)(torch.rand(7, 3)).logits.shape
    torch.Size([2])
    """

    def logits(bags: Tensor) -> Tensor:
        with evaluating(model):
            found: Tensor = model(bags).logits
        return found

    return BagFunction(logits, gives="logits", batched=True, probabilities=model.head.probabilities)


def check_bag(values: Tensor) -> None:
    """Refuse what is no bag of numbers.

    Raises
    ------
    UsageError
        If the shape is not ``(n, d)`` with n of 1 or more.
    DataError
        If an instance is not finite.
    """
    if values.ndim != 2 or len(values) == 0:
        raise UsageError(f"a bag is (n, d) with at least one instance, got {tuple(values.shape)}")
    if not bool(torch.isfinite(values).all()):
        row = int((~torch.isfinite(values)).any(1).nonzero()[0])
        raise DataError(f"instance {row} of the bag holds NaN or infinity: leave it out")


def _joined(values: Tensor, constant: Tensor | None) -> tuple[Tensor, int]:
    check_bag(values)
    if constant is None or len(constant) == 0:
        return values, len(values)
    check_bag(constant)
    if constant.shape[1] != values.shape[1]:
        raise UsageError(f"constant instances must be {values.shape[1]} wide like the others, got {constant.shape[1]}")
    return torch.cat([values, constant.to(values)]), len(values)


def _softmax(logits: Tensor) -> Tensor:
    return logits.softmax(-1)


def _checked(logits: Tensor, to_probabilities: Map) -> BagScores:
    if logits.ndim != 2:
        raise UsageError(f"logits must be (b, C), got {tuple(logits.shape)}")
    if not bool(torch.isfinite(logits).all()):
        raise DataError("the model's score of a bag is not finite: what an edit changes cannot be told")
    return BagScores(to_probabilities(logits.double()), logits.double())


def _checked_probabilities(found: Tensor) -> BagScores:
    found = found.double()
    if not bool(((found >= 0) & (found <= 1)).all()):
        raise DataError("the function's scores do not lie in 0 to 1: say gives='logits', or what makes them NaN")
    return BagScores(found, None)


def _there(logits: Tensor | None) -> Tensor:
    assert logits is not None
    return logits
