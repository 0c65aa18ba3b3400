"""The nouns that travel between the rooms: batches, tokens, outputs, sources, explanations.

B batch, S positions of one input, D embedding width, P prototypes, C classes.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from protolearn.core.bank import PrototypeBank
    from protolearn.core.heads import Head
    from protolearn.core.similarities import ToSimilarity


class Batch(NamedTuple):
    """What a loader yields: inputs, labels ``(B,)`` int64 (-1 = unlabelled) and the stable case ids."""

    inputs: Tensor
    labels: Tensor
    ids: Sequence[str]


class Box(NamedTuple):
    """A rectangle in pixels, ``x1`` and ``y1`` exclusive."""

    x0: float
    y0: float
    x1: float
    y1: float


@dataclass(frozen=True)
class Tokens:
    """An input as the set of things a prototype is compared with.

    Attributes
    ----------
    values : Tensor
        ``(B, S, D)``.
    mask : Tensor or None
        ``(B, S)`` bool, True where a position is real.
    grid : tuple of int or None
        How the positions are laid out, row-major: ``(H, W)``, ``(T,)`` or None for a set.
    summary : Tensor or None
        ``(B, D')`` one vector for the whole input, where the encoder has one.
    input_size : tuple of int or None
        Extent of the encoder's input along the axes of ``grid``, in pixels or samples.
    window : int
        Cells along each axis that one token summarises, an odd number; 1 unless neighbours were averaged.
    extras : mapping of str to Tensor
        What else the encoder made, ``(B, ...)`` each, such as an early map; not kept in a cache of frozen tokens.

    Examples
    --------
    >>> tokens = Tokens(torch.zeros(1, 4, 8), grid=(2, 2), input_size=(32, 32))
    >>> tokens.region(3)
    Box(x0=16.0, y0=16.0, x1=32.0, y1=32.0)
    """

    values: Tensor
    mask: Tensor | None = None
    grid: tuple[int, ...] | None = None
    summary: Tensor | None = None
    input_size: tuple[int, ...] | None = None
    window: int = 1
    extras: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.window < 1 or self.window % 2 == 0:
            raise ValueError(f"window must be an odd number of cells, got {self.window}")
        if self.values.ndim != 3:
            raise ValueError(f"tokens must be (B, S, D), got {tuple(self.values.shape)}")
        if self.mask is not None and self.mask.shape != self.values.shape[:2]:
            raise ValueError(f"mask must be (B, S) = {tuple(self.values.shape[:2])}, got {tuple(self.mask.shape)}")
        if self.mask is not None and self.mask.dtype != torch.bool:
            raise ValueError(f"mask must be bool (True = real), got {self.mask.dtype}")
        if self.grid is not None and _product(self.grid) != self.values.shape[1]:
            raise ValueError(f"grid {self.grid} does not lay out {self.values.shape[1]} positions")

    def replace(self, **changes: Any) -> Tokens:
        """Return a copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def part(self, cases: Tensor | slice) -> Tokens:
        """Return the tokens of some cases of the batch."""
        return self.replace(
            values=self.values[cases],
            mask=None if self.mask is None else self.mask[cases],
            summary=None if self.summary is None else self.summary[cases],
            extras={name: tensor[cases] for name, tensor in self.extras.items()},
        )

    def region(self, position: int) -> Box | None:
        """Return the place of a token in input pixels, or None where positions have no place.

        That is its cell, its share of the input (input size / grid), or the ``window`` of cells that it stands for; the
        receptive field may be larger.
        """
        if self.grid is None or self.input_size is None:
            return None
        row, column = (0, position) if len(self.grid) == 1 else divmod(position, self.grid[1])
        y0, y1 = self._span(row, 0) if len(self.grid) == 2 else (0.0, 1.0)
        x0, x1 = self._span(column, -1)
        return Box(x0, y0, x1, y1)

    def _span(self, cell: int, axis: int) -> tuple[float, float]:
        assert self.grid is not None
        assert self.input_size is not None
        step, reach = self.input_size[axis] / self.grid[axis], self.window // 2
        return max(0, cell - reach) * step, min(self.grid[axis], cell + reach + 1) * step


def _product(sizes: tuple[int, ...]) -> int:
    total = 1
    for size in sizes:
        total *= size
    return total


@dataclass(frozen=True)
class Source:
    """The real case behind a prototype, precise enough to be recomputed.

    Attributes
    ----------
    case : str
        Stable id of the case.
    content : str
        SHA-256 of the decoded case, so that a renamed or altered file is noticed.
    position : int
        Index of the token in that case.
    region : Box or None
        The token's cell in pixels of the original picture.
    distance : float
        How far the prototype was from this token before it was moved onto it, in the model's own measure.
    encoder : str
        Fingerprint of encoder and neck at the time.
    label : int or None
        Class index of the case.
    moved : bool
        True: the prototype became this token. False: it stayed where it was, and this is the nearest one;
        ``distance`` is then how near, in the model's own measure.
    """

    case: str
    content: str
    position: int
    region: Box | None
    distance: float
    encoder: str
    label: int | None = None
    moved: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        plain = dataclasses.asdict(self)
        plain["region"] = None if self.region is None else list(self.region)
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Source:
        """Build from :meth:`to_dict`'s output; unknown or missing fields raise ``ValueError``."""
        names = {f.name for f in dataclasses.fields(cls)}
        if set(plain) - names or names - {"label", "moved"} - set(plain):
            raise ValueError(f"a source has the fields {sorted(names)}, got {sorted(plain)}")
        region = plain["region"]
        return cls(**{**plain, "region": None if region is None else Box(*map(float, region))})


@dataclass(frozen=True)
class Output:
    """Every intermediate of the path from tokens to logits; objectives and explanations read it.

    Attributes
    ----------
    tokens : Tokens or None
        After the neck, as compared; None where scores were cached and the tokens were not.
    distances : Tensor or None
        ``(B, P)`` pooled distance; None where the measure is a similarity. Inactive prototypes: +inf.
    similarities : Tensor
        ``(B, P)`` pooled similarity. Inactive prototypes: -inf.
    positions : Tensor
        ``(B, P)`` int64: where the pooled value was found.
    evidence : Tensor
        ``(B, P)`` what the head weighs; 0 for inactive prototypes.
    logits : Tensor
        ``(B, C)``.
    bank, head
        The modules that made it, for terms on prototypes and weights.
    branches : mapping
        Outputs of the single banks where a model has several.
    inputs : Tensor or None
        What the encoder was given; None where its tokens were cached.
    encoded : Tokens or None
        Before the neck; None where only something made of them was cached.
    table : Tensor or None
        ``(B, S, P)`` similarities at every position, where pooling needed them (every pooling but the maximum).
    average : Tensor or None
        ``(B, P)`` mean over positions of the measure, where the head reads it. Inactive prototypes: farthest.
    reconstruction : Tensor or None
        What the model's decoder made of the embedded tokens.
    original : Tensor or None
        What it ought to have made of them; None where that is not at hand.
    targets : mapping of str to Tensor
        What is known of the cases beside their class, ``(B, ...)`` each; for objectives.
    paired : bool
        The second half of the batch shows the cases of the first half again, in another view.
    similarity : callable or None
        What made similarities of distances, for terms on its own parameters.
    cases : tuple of str
        Stable ids of the cases, where an objective may need them (a case must not vote for itself); else empty.
    scheduled : mapping of str to float
        Numbers of the phase that change from epoch to epoch, for objectives; empty outside training.
    counted : frozenset of str or None
        Terms whose coefficient is not 0; others may be left out where what they need is not at hand. None = all.
    chosen : Tensor or None
        ``(N, 2)`` int64 pairs of a row of this batch and a row of the bank that a step is about, in a phase that goes
        through such pairs.
    """

    tokens: Tokens | None
    distances: Tensor | None
    similarities: Tensor
    positions: Tensor
    evidence: Tensor
    logits: Tensor
    bank: PrototypeBank
    head: Head
    branches: Mapping[str, Output] = field(default_factory=dict)
    inputs: Tensor | None = None
    encoded: Tokens | None = None
    table: Tensor | None = None
    average: Tensor | None = None
    reconstruction: Tensor | None = None
    original: Tensor | None = None
    targets: Mapping[str, Tensor] = field(default_factory=dict)
    paired: bool = False
    similarity: ToSimilarity | None = None
    cases: tuple[str, ...] = ()
    counted: frozenset[str] | None = None
    scheduled: Mapping[str, float] = field(default_factory=dict)
    chosen: Tensor | None = None

    def replace(self, **changes: Any) -> Output:
        """Return a copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def part(self, cases: Tensor | slice) -> Output:
        """Return the output of some cases of the batch, without ``chosen``, whose pairs are of the whole batch."""
        changes: dict[str, Any] = {"chosen": None}
        for entry in dataclasses.fields(self):
            value = getattr(self, entry.name)
            if entry.name in ("scheduled", *changes):
                continue  # numbers of the phase, not of its cases
            if isinstance(value, Tensor):
                changes[entry.name] = value[cases]
            elif isinstance(value, tuple) and value:
                chosen = torch.arange(len(value))[cases.cpu() if isinstance(cases, Tensor) else cases]
                changes[entry.name] = tuple(value[i] for i in chosen.tolist())
            elif isinstance(value, Tokens | Output):
                changes[entry.name] = value.part(cases)
            elif isinstance(value, Mapping):
                changes[entry.name] = {
                    name: each.part(cases) if isinstance(each, Output) else each[cases] for name, each in value.items()
                }
        return self.replace(**changes)


@dataclass(frozen=True)
class LedgerRow:
    """One prototype's part in one logit. ``contribution`` is evidence times weight.

    Where a head adds up otherwise, ``parts`` says by name what the contribution is made of, or ``quotient`` is true,
    and ``weight`` is only contribution divided by evidence.
    """

    prototype: int
    similarity: float
    evidence: float
    weight: float
    contribution: float
    distance: float | None
    position: int
    region: Box | None
    owner: int | None
    source: Source | None
    parts: Mapping[str, float] = field(default_factory=dict)
    quotient: bool = False


@dataclass(frozen=True)
class Explanation:
    """Why one case got one logit: rows in order of absolute contribution; their sum plus ``bias`` is the logit.

    ``rows`` holds every active prototype, so that the sum can be checked; ``top(n)`` gives the ones to show.
    ``abstains`` says that nothing spoke for any class: ``predicted`` is then no answer. ``score_name`` says what the
    "logit" is, where the head's scores are none. Where the model has a novelty score, ``confidence`` is what it says of
    the case, and ``known`` whether that reaches its threshold (None where none is set).
    """

    case: str
    target: int
    predicted: int
    label: int | None
    logit: float
    bias: float
    probability: float
    rows: tuple[LedgerRow, ...]
    abstains: bool = False
    score_name: str = "logit"
    confidence: float | None = None
    known: bool | None = None

    @property
    def unknown(self) -> bool:
        """Whether ``predicted`` is no answer: nothing spoke for any class, or nothing like the case is known."""
        return self.abstains or self.known is False

    @property
    def total(self) -> float:
        """Sum of contributions and bias, equal to ``logit`` up to rounding."""
        return self.bias + sum(row.contribution for row in self.rows)

    def top(self, most: int) -> tuple[LedgerRow, ...]:
        """Return the rows with the largest absolute contributions."""
        return self.rows[:most]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "rows"}
        plain["rows"] = []
        for row in self.rows:
            entry = {f.name: getattr(row, f.name) for f in dataclasses.fields(row)}
            entry["similarity"] = row.similarity if math.isfinite(row.similarity) else None  # it could not match
            entry["region"] = None if row.region is None else list(row.region)
            entry["parts"] = dict(row.parts)
            entry["source"] = None if row.source is None else row.source.to_dict()
            plain["rows"].append(entry)
        return plain

    def to_json(self) -> str:
        """Return one JSON object."""
        return json.dumps(self.to_dict(), allow_nan=False)
