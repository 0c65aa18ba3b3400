"""Timing things in turn, so that a machine that is slow for a while is slow for all of them; and what a row holds."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.peers.process import Peer

SHORTEST = 0.05
"""A candidate quicker than this many seconds is called several times for one reading."""


class Seconds(float):
    """What a candidate returns when it has timed itself, e.g. to leave out its own warm-up."""


Candidate = Callable[[], object]


@dataclass(frozen=True)
class Plan:
    """How much to do, and with whom."""

    quick: bool
    threads: int
    peer: Peer | None = None
    why_no_peer: str = "not asked for"

    def rounds(self, full: int) -> int:
        """Return how often every candidate is timed."""
        return 1 if self.quick else full


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes
    ----------
    what, against : str
        What was measured, and what it is divided by.
    value : float or None
        The ratio (or what ``unit`` says), median over rounds; None = not measured, ``note`` says why.
    low, high : float or None
        Quarter and three quarters of the rounds.
    at_most, at_least : float or None
        The target.
    note : str
        Sizes, and what a reader must know.
    """

    what: str
    against: str
    value: float | None
    low: float | None = None
    high: float | None = None
    at_most: float | None = None
    at_least: float | None = None
    unit: str = "x"
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the target was met; None without a value or a target."""
        if self.value is None or (self.at_most is None and self.at_least is None):
            return None
        return (self.at_most is None or self.value <= self.at_most) and (
            self.at_least is None or self.value >= self.at_least
        )

    @property
    def target(self) -> str:
        """The target in words."""
        if self.at_most is not None:
            return f"<= {self.at_most:g} {self.unit}"
        return "" if self.at_least is None else f">= {self.at_least:g} {self.unit}"


@dataclass(frozen=True)
class Times:
    """Seconds of each candidate, round by round."""

    seconds: Mapping[str, list[float]] = field(default_factory=dict)

    def ratio(
        self, name: str, base: str, *, what: str, against: str, invert: bool = False, scale: float = 1.0, **more: Any
    ) -> Row:
        """Return the row of one candidate over another: both of the same round, then the median of the rounds.

        ``invert`` gives how many times quicker ``name`` is than ``base``. ``scale`` multiplies the ratio, where one of
        the two did a part of the work only.
        """
        top, bottom = (base, name) if invert else (name, base)
        ratios = sorted(scale * a / b for a, b in zip(self.seconds[top], self.seconds[bottom], strict=True))
        return Row(what, against, median(ratios), _quantile(ratios, 0.25), _quantile(ratios, 0.75), **more)

    def best(self, name: str) -> float:
        """Return the least seconds."""
        return min(self.seconds[name])


def in_turn(candidates: Mapping[str, Candidate], rounds: int, warm: int = 1) -> Times:
    """Time every candidate once a round, the order turning from round to round, after ``warm`` calls of each.

    Candidates quicker than ``SHORTEST`` are called several times a reading; those that are not warmed up, once.
    """
    number = {}
    for name, call in candidates.items():
        taken = min([_timed(call, 1) for _ in range(warm)], default=math.inf)
        number[name] = max(1, math.ceil(SHORTEST / max(taken, 1e-9)))
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    names = list(candidates)
    for k in range(rounds):
        for name in names[k % len(names) :] + names[: k % len(names)]:
            seconds[name].append(_timed(candidates[name], number[name]))
    return Times(seconds)


def _timed(call: Candidate, number: int) -> float:
    gc.collect()
    gc.disable()
    try:
        start = time.perf_counter()
        for _ in range(number):
            found = call()
        taken = (time.perf_counter() - start) / number
    finally:
        gc.enable()
    return float(found) if isinstance(found, Seconds) else taken


def _quantile(ordered: list[float], share: float) -> float:
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)
