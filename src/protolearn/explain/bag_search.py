"""Which instances carry a bag's prediction: greedy removal, and removal by attention against chance.

    round t: for each instance i that is left p_i = f(X_t without i)_c; one goes by the rule: the smallest p_i
    (supporting instances), the largest (opposing ones), or the smallest |p_i - f(X_t)_c| (those that do not matter)

Source: Kaczmarzyk et al., HIPPO (2024, arXiv 2409.03080). Constant instances are there in every round and never go; the
released code shows them to the model in round 0 alone, which leaves a search without them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from protolearn.errors import UsageError, look_up
from protolearn.explain.bag_edits import Bag, check_target, steady
from protolearn.explain.bag_scorers import BagScorer, BagScores
from protolearn.explain.passes import plain_json

Rule = Literal["minimise", "maximise", "smallest change"]
RULES: dict[str, int] = {"minimise": 1, "maximise": -1, "smallest change": 0}
On = Literal["probability", "logit"]


@dataclass(frozen=True, eq=False)
class Removals:
    """What a greedy search took out, one instance a round.

    Attributes
    ----------
    rule, on : str
        How instances were chosen, and by which score of the target.
    target : int
        The class.
    removals : Tensor
        ``(K,)`` int64 positions in the bag, in order.
    probabilities : Tensor
        ``(K + 1, C)``: entry k belongs to the bag without the first k removals, entry 0 to the unedited one.
    logits : Tensor or None
        The same.
    """

    rule: Rule
    on: On
    target: int
    removals: Tensor
    probabilities: Tensor
    logits: Tensor | None

    def flips_after(self) -> int | None:
        """Return after how many removals the decision first is another one; None if it never is."""
        first = BagScores(self.probabilities[0], None).decision()
        for k in range(1, len(self.probabilities)):
            if BagScores(self.probabilities[k], None).decision() != first:
                return k
        return None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return plain_json(
            {
                "rule": self.rule,
                "on": self.on,
                "target": self.target,
                "removals": self.removals,
                "probabilities": self.probabilities,
                "logits": self.logits,
                "flips_after": self.flips_after(),
            }
        )


def greedy_removal(
    scorer: BagScorer,
    bag: Bag | Tensor,
    target: int,
    *,
    rule: Rule = "minimise",
    on: On = "probability",
    rounds: int | None = None,
    constant: Bag | Tensor | None = None,
) -> Removals:
    """Take instances out of a bag one after the other, each time the one that the rule names; the first wins a tie.

    Parameters
    ----------
    scorer : BagScorer
        The model. A :class:`~protolearn.explain.bag_scorers.PooledBags` needs one pass a round, a function n.
    bag : Bag or Tensor
        ``(n, d)``; one instance stays at the end.
    target : int
        The class whose score is watched.
    rule : {"minimise", "maximise", "smallest change"}
        See the module.
    on : {"probability", "logit"}
        Which score; probabilities near 0 or 1 round small effects away.
    rounds : int, optional
        At most so many removals; n - 1 by default.
    constant : Bag or Tensor, optional
        Instances that are shown to the model in every round and cannot go.

    Examples
    --------
    >>> from protolearn.explain.bag_scorers import BagFunction
    >>> scorer = BagFunction(lambda bag: torch.cat([bag.mean(0), -bag.mean(0)]), gives="logits")
    >>> greedy_removal(scorer, torch.tensor([[1.0], [5.0], [3.0]]), target=0).removals.tolist()
    [1, 2]
    """
    sign = look_up("rule", rule, RULES)
    if on not in ("probability", "logit"):
        raise UsageError(f"a search goes by probability or logit, got {on!r}")
    values, always = _values(bag), None if constant is None else _values(constant)
    most = len(values) - 1 if rounds is None else min(rounds, len(values) - 1)
    if most < 0 or (rounds is not None and rounds < 0):
        raise UsageError(f"a search needs a bag and 0 rounds or more, got {len(values)} instances, {rounds} rounds")
    now = steady(scorer, values if always is None else torch.cat([values, always.to(values)]))
    check_target(now, target)
    left, gone, scores = torch.arange(len(values), device=values.device), [], [now]
    for _ in range(most):
        each = scorer.without_each(values[left], always)
        score = each.of(target, on)
        judged = (score - now.of(target, on)).abs() if sign == 0 else sign * score
        place = int(judged.argmin())
        now = each.row(place)
        scores.append(now)
        gone.append(int(left[place]))
        left = torch.cat([left[:place], left[place + 1 :]])
    logits = None if now.logits is None else torch.stack([s.logits for s in scores if s.logits is not None])
    probabilities = torch.stack([s.probabilities for s in scores])
    return Removals(rule, on, target, torch.tensor(gone, dtype=torch.long), probabilities, logits)


@dataclass(frozen=True, eq=False)
class ShareRemoved:
    """What became of a score when the most important share of a bag went, and when as many random ones did.

    Attributes
    ----------
    share : float
        Asked for.
    count : int
        Instances that went: the share of n rounded up, one at least; one instance at least stays.
    value, logit_value : float
        Fall of the target's probability and logit (None where there is none).
    flipped : bool
        Another class is predicted.
    random, random_logit : Tensor
        ``(R,)`` the same falls for random instances.
    random_flipped : float
        Share of the draws in which another class is predicted.
    """

    share: float
    count: int
    value: float
    logit_value: float | None
    flipped: bool
    random: Tensor
    random_logit: Tensor | None
    random_flipped: float

    @property
    def beyond_chance(self) -> float:
        """The fall less the mean fall of random removals, in probability."""
        return self.value - float(self.random.mean())

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return plain_json({**vars(self), "beyond_chance": self.beyond_chance})


def remove_most_important(
    scorer: BagScorer,
    bag: Bag | Tensor,
    importance: Tensor,
    target: int,
    *,
    shares: Sequence[float] = (0.01, 0.05, 0.1),
    draws: int = 20,
    generator: torch.Generator,
) -> tuple[ShareRemoved, ...]:
    """Take out the most important instances, by attention say, and as many at random, to see what importance is worth.

    Parameters
    ----------
    scorer, bag, target
        As for :func:`greedy_removal`.
    importance : Tensor
        ``(n,)``, large = important; attention before the softmax serves as well as after. The first wins a tie.
    shares : sequence of float
        Of the instances, above 0 and below 1.
    draws : int
        Random removals for each share.
    generator : Generator
        Of those draws.
    """
    values = _values(bag)
    if importance.shape != (len(values),) or not bool(torch.isfinite(importance).all()):
        raise UsageError(f"importance must be {len(values)} finite numbers, got {tuple(importance.shape)}")
    if draws < 1 or len(values) < 2 or not all(0 < share < 1 for share in shares):
        raise UsageError("removal needs two instances or more, one draw or more, and shares between 0 and 1")
    before = steady(scorer, values)
    check_target(before, target)
    order = importance.argsort(descending=True, stable=True).cpu()
    found = []
    for share in shares:
        count = min(max(1, math.ceil(share * len(values) - 1e-9)), len(values) - 1)
        kept = [order[count:].sort().values]
        kept += [torch.randperm(len(values), generator=generator)[count:].sort().values for _ in range(draws)]
        after = [scorer(values[rows.to(values.device)]) for rows in kept]
        falls = torch.stack([before.of(target) - one.of(target) for one in after])
        logits = None if before.logits is None else torch.stack([_fall(before, one, target) for one in after])
        flips = [one.decision() != before.decision() for one in after]
        found.append(
            ShareRemoved(
                share=share,
                count=count,
                value=float(falls[0]),
                logit_value=None if logits is None else float(logits[0]),
                flipped=flips[0],
                random=falls[1:],
                random_logit=None if logits is None else logits[1:],
                random_flipped=sum(flips[1:]) / draws,
            )
        )
    return tuple(found)


def _values(bag: Bag | Tensor) -> Tensor:
    return bag.values if isinstance(bag, Bag) else bag


def _fall(before: BagScores, after: BagScores, target: int) -> Tensor:
    return before.of(target, "logit") - after.of(target, "logit")
