"""The contract of a paper: how its model is built, what it minimises, in which phases; and the list of papers.

A method is a frozen dataclass of settings with the paper's defaults. What a phase trains is named by groups:
``encoder``, ``neck``, ``prototypes``, ``head``, and ``decoder`` where there is one.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeVar

import torch
from torch import Tensor

from protolearn.core.encoder import Encoder
from protolearn.core.settings import one_of_its_choices
from protolearn.errors import UsageError, look_up, nearest_names
from protolearn.structures import Output, Source, Tokens

if TYPE_CHECKING:
    from protolearn.core.model import PrototypeModel

GROUPS = ("encoder", "neck", "prototypes", "head", "decoder")


@dataclass(frozen=True)
class Phase:
    """One stage of training."""

    name: str


@dataclass(frozen=True)
class Ramp:
    """A number that goes in a straight line: ``start`` before the first epoch of a phase, ``stop`` in its last.

    With ``over``, it has ``start`` in the first epoch and ``stop`` in epoch number ``over`` and from then on.

    Examples
    --------
    >>> [Ramp(0.0, 1.0).at(epoch, 4) for epoch in (0, 3)]
    [0.25, 1.0]
    >>> [Ramp(0.0, 1.0, over=3).at(epoch, 9) for epoch in (0, 1, 2, 8)]
    [0.0, 0.5, 1.0, 1.0]
    """

    start: float
    stop: float
    over: int | None = None

    def at(self, epoch: int, epochs: int) -> float:
        """Return the value in an epoch, counted from 0, of so many."""
        done, length = (epoch + 1, epochs) if self.over is None else (epoch, self.over - 1)
        return self.start + (self.stop - self.start) * min(1.0, done / max(length, 1))


Coefficients = Mapping[str, float | Ramp]


@dataclass(frozen=True)
class Train(Phase):
    """Gradient steps.

    Phases that share a ``name`` are one training run with interruptions: they keep optimiser and schedule.

    Attributes
    ----------
    epochs : int
        Passes over the training set.
    rates : mapping
        Learning rate of each group that is trained; every other group is frozen and in eval mode.
    decay : mapping
        Weight decay of a group, 0 where not named.
    step, gamma : int, float
        The rates are multiplied by ``gamma`` every ``step`` epochs of this run; 0 = never. The schedule is stepped
        before an epoch, so the first fall comes with the run's epoch number ``step``, counted from 1.
    milestones : tuple of int
        The rates are multiplied by ``gamma`` after so many epochs of this run, each time.
    cosine : bool
        The rates fall along half a cosine over this phase's epochs, to ``floor`` times what they were.
    floor : float
        See ``cosine``.
    restart : mapping
        Epochs after which the cosine of a group begins anew, time after time; those not named have one cosine.
    warmup : int
        Epochs in which the rates rise to their value in a straight line; the cosine begins after them.
    overlap : bool
        The cosine counts from the first epoch instead, and the warm-up hides its beginning.
    per : {"epoch", "step"}
        How often warm-up and cosine move the rates.
    optimizer : {"adam", "adamw", "sgd"}
        Whose update rule.
    momentum, nesterov : float, bool
        Of ``sgd``.
    weights : mapping, or tuple of mappings, optional
        Coefficients of the terms in place of ``Method.weights()``; a term that is not named counts nothing. Several
        mappings take turns, batch by batch. A coefficient may be a :class:`Ramp`.
    pairs : bool, "same_places" or "same_view"
        Every case comes in two views drawn independently: a batch holds all first views, then all second ones, and the
        labels twice. ``same_places``: the two differ in colours alone, so that a position is the same place in both;
        cached tokens know no such pairs, and there augmentation must leave places where they are. ``same_view``: the
        same view twice, which needs no augmentation; what differs is what the network draws (dropout).
    scheduled : mapping of str to Ramp
        Numbers that an objective reads as ``Output.scheduled``, and that change from epoch to epoch.
    balanced : bool
        A batch is drawn with replacement, a labelled case and an unlabelled one equally likely; an epoch has as many
        draws as there are cases, in whole batches.
    freeze_batch_norm : bool
        Keep batch-norm statistics fixed although the weights are trained.
    chosen : bool
        An epoch goes through the pairs of case and prototype that the last :class:`Choose` drew up, each once and in
        batches of so many pairs, in place of every case once. ``Output.chosen`` says which pairs a step is about.
    """

    epochs: int = 1
    rates: Mapping[str, float] = field(default_factory=dict)
    decay: Mapping[str, float] = field(default_factory=dict)
    step: int = 0
    gamma: float = 0.1
    freeze_batch_norm: bool = False
    milestones: tuple[int, ...] = ()
    cosine: bool = False
    floor: float = 0.0
    restart: Mapping[str, int] = field(default_factory=dict)
    warmup: int = 0
    overlap: bool = False
    per: Literal["epoch", "step"] = "epoch"
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    momentum: float = 0.9
    nesterov: bool = False
    weights: Coefficients | tuple[Coefficients, ...] | None = None
    pairs: bool | Literal["same_places", "same_view"] = False
    scheduled: Mapping[str, Ramp] = field(default_factory=dict)
    balanced: bool = False
    chosen: bool = False

    def __post_init__(self) -> None:
        if self.chosen and (self.pairs or self.balanced or "encoder" in self.rates):
            raise UsageError(
                f"phase {self.name!r} goes through chosen pairs: no two views there, no balance, nor the encoder"
            )
        for group in (*self.rates, *self.decay, *self.restart):
            if group not in GROUPS:
                raise UsageError(f"phase {self.name!r} names the group {group!r}: {nearest_names(group, GROUPS)}")
        if self.epochs < 0 or self.step < 0 or not self.rates:
            raise UsageError(f"phase {self.name!r} needs epochs >= 0, step >= 0 and at least one group with a rate")
        if any(period < 1 for period in self.restart.values()):
            raise UsageError(f"phase {self.name!r} needs restart periods of at least 1, got {dict(self.restart)}")
        if self.warmup < 0 or not 0 <= self.floor <= 1 or self.optimizer not in ("adam", "adamw", "sgd"):
            raise UsageError(
                f"phase {self.name!r} needs warmup >= 0, floor from 0 to 1 and the optimizer adam, adamw or sgd"
            )

    def factor(self, done: float, unit: float = 1.0, group: str = "") -> float:
        """Return what a group's rate is multiplied by after ``done`` epochs of this run; the next is ``unit`` away."""
        whole = int(done)
        factor = self.gamma ** ((whole + 1) // self.step) if self.step else 1.0
        factor *= self.gamma ** sum(whole >= milestone for milestone in self.milestones)
        if done < self.warmup:
            return factor * (done + unit) / self.warmup
        if self.cosine:
            length = self.restart.get(group)
            hidden = 0 if self.overlap else self.warmup
            past = done - hidden
            along = past % length / length if length else min(1.0, past / max(self.epochs - hidden, 1))
            factor *= self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * along))
        return factor

    def numbers(self, epoch: int) -> dict[str, float]:
        """Return the scheduled numbers in one epoch, counted from 0."""
        return {name: ramp.at(epoch, self.epochs) for name, ramp in self.scheduled.items()}

    def coefficients(self, default: Mapping[str, float], epoch: int, step: int) -> dict[str, float]:
        """Return the coefficient of each term in one step of one epoch, both counted from 0."""
        if self.weights is None:
            return dict(default)
        turn = self.weights[step % len(self.weights)] if isinstance(self.weights, tuple) else self.weights
        named = {name: w.at(epoch, self.epochs) if isinstance(w, Ramp) else w for name, w in turn.items()}
        unknown = sorted(set(named) - set(default))
        if unknown:
            raise UsageError(
                f"phase {self.name!r} weighs the term {unknown[0]!r}: {nearest_names(unknown[0], default)}"
            )
        return {name: named.get(name, 0.0) for name in default}

    def mean_coefficients(self, default: Mapping[str, float], epoch: int) -> dict[str, float]:
        """Return the coefficients of an epoch: where several mappings take turns, their mean."""
        turns = len(self.weights) if isinstance(self.weights, tuple) else 1
        each = [self.coefficients(default, epoch, step) for step in range(turns)]
        return {name: sum(turn[name] for turn in each) / turns for name in default}


@dataclass(frozen=True)
class Project(Phase):
    """Move every prototype onto the nearest training token that the rule allows.

    ``rule``: ``own_class`` (tokens of cases whose label owns the prototype), ``any``, or ``group`` (own class, and at
    most one prototype of a class per group, such as a patient). ``distinct`` forbids two prototypes on one token.
    With ``move=False`` prototypes stay where they are, and only the nearest token is recorded as their source.
    """

    name: str = "projection"
    rule: Literal["own_class", "any", "group"] = "own_class"
    distinct: bool = False
    move: bool = True


@dataclass(frozen=True)
class Prune(Phase):
    """Remove a prototype when fewer than ``minimum`` of its ``k`` nearest training tokens carry its class."""

    name: str = "prune"
    k: int = 6
    minimum: int = 3


@dataclass(frozen=True)
class Initialise(Phase):
    """Start neck and prototypes from the training tokens, by the method's own ``initialise``."""

    name: str = "initialise"


@dataclass(frozen=True)
class Choose(Phase):
    """Draw up the pairs of training case and prototype that the next ``Train`` phases with ``chosen`` go through.

    By the method's own ``choose``, with the model as it is then; ``count`` is how many cases of each prototype.
    """

    name: str = "choose"
    count: int = 1


@dataclass(frozen=True)
class Revise(Phase):
    """Change what bank and head are made of, by the method's own ``revise``, without data: cut a tree, settle slots."""

    name: str = "revise"


@dataclass(frozen=True)
class Recipe:
    """Settings that go together, beside a paper's own defaults: of the method, the encoder, augmentation and ``fit``.

    ``about`` says when to take it and what was measured with it.
    """

    about: str
    method: Mapping[str, Any] = field(default_factory=dict)
    encoder: Mapping[str, Any] = field(default_factory=dict)
    augment: Mapping[str, Any] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


class TrainingTokens(Protocol):
    """The un-augmented training cases as a method starts from them: ``(tokens before the neck, labels)``, in order."""

    def __iter__(self) -> Iterator[tuple[Tokens, Tensor]]:
        """Yield batches; as often as one likes."""
        ...

    @property
    def targets(self) -> Mapping[str, Any]:
        """What is known of the cases beside their class: one row a case, in order."""
        ...

    def sources(self, cases: Sequence[int], positions: Sequence[int] | None = None) -> list[Source]:
        """Return the sources of tokens that become prototypes as they are; cases are numbered in order."""
        ...


@dataclass(frozen=True)
class Method(ABC):
    """A paper. Subclasses are frozen dataclasses and register themselves.

    The verbs every trained model answers (predict, explain, project, save) work from what ``build`` composed; a method
    overrides none of them.
    """

    slug: ClassVar[str]
    area: ClassVar[str]
    paper: ClassVar[str]
    verified: ClassVar[str]
    recipes: ClassVar[Mapping[str, Recipe]] = {}

    @property
    def reads_labels(self) -> bool:
        """Whether training needs cases with labels."""
        return True

    def __post_init__(self) -> None:
        """Refuse impossible settings: here a value that its setting's type does not list; a page adds its own."""
        one_of_its_choices(self)

    @abstractmethod
    def build(self, encoder: Encoder, classes: int, seed: int = 0) -> PrototypeModel:
        """Return the untrained model for this many classes; ``seed`` is the source of its initial weights."""

    @abstractmethod
    def objective(self, out: Output, labels: Tensor) -> dict[str, Tensor]:
        """Return the terms by name, unweighted, each a scalar."""

    @abstractmethod
    def weights(self) -> dict[str, float]:
        """Return the coefficient of each term of :meth:`objective`."""

    @abstractmethod
    def phases(self) -> list[Phase]:
        """Return the schedule."""

    def initialise(self, model: PrototypeModel, batches: TrainingTokens, seed: int) -> None:
        """Start neck and prototypes from un-augmented training tokens (before the neck) and labels.

        ``batches`` may be gone through several times. Bank and head may be given another size.
        """
        raise NotImplementedError(f"{self.slug} has no initialisation from data")

    def choose(self, model: PrototypeModel, batches: TrainingTokens, phase: Choose) -> Tensor:
        """Return ``(N, 2)`` int64, the pairs of a phase :class:`Choose`: number of a training case, row of the bank.

        ``batches`` are un-augmented training tokens before the neck, cases numbered in order.
        """
        raise NotImplementedError(f"{self.slug} chooses no cases")

    def revise(self, model: PrototypeModel, name: str) -> None:
        """Change bank and head between phases, in the phase :class:`Revise` of this name; called without gradients."""
        raise NotImplementedError(f"{self.slug} has nothing to revise")

    def prepare(
        self, inputs: Tensor, labels: Tensor, targets: Mapping[str, Tensor], generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Mapping[str, Tensor]]:
        """Return what the network is shown in training in place of a batch: by default the batch itself.

        Rows may be added, such as transformed copies, with label -1 where a row is not to be classified; labels and
        targets must then have as many. Called in phases that go through the network, not where tokens are cached.
        ``generator`` (on the CPU) is seeded for the step.
        """
        return inputs, labels, targets

    def after_step(self, model: PrototypeModel, out: Output, labels: Tensor, steps: int) -> None:
        """Move by rule what no gradient moves, after a step on a batch; ``steps`` is how many an epoch has.

        Called without gradients, before the constraints of bank and head are applied. On several processes ``out``
        holds the rows of all of them, without inputs, and with tokens only where there is one a case; padding has the
        label -1, and tokens of zeros.
        """
        return

    def group_names(self, classes: Sequence[str]) -> tuple[str, ...]:
        """Return what the groups of the bank are called (concepts, scales, branches), in order; empty = by number."""
        return ()

    def loss(self, terms: Mapping[str, Tensor], weights: Mapping[str, float] | None = None) -> Tensor:
        """Return the weighted sum of the terms; one whose coefficient is 0 is left out."""
        weights = self.weights() if weights is None else weights
        weighed = [weights[name] * term for name, term in terms.items() if weights[name] != 0]
        return torch.stack(weighed).sum() if weighed else next(iter(terms.values())) * 0.0

    def settings(self) -> dict[str, Any]:
        """Return the settings as plain JSON types, with ``method`` for the name."""
        return {"method": self.slug, **dataclasses.asdict(self)}


M = TypeVar("M", bound=type[Method])
_METHODS: dict[str, type[Method]] = {}


def register(slug: str, *, area: str, paper: str, verified: str) -> Callable[[M], M]:
    """Enter a method under a name; ``verified`` says against what its numbers were checked, or "unverified"."""

    def enter(cls: M) -> M:
        if slug in _METHODS and _METHODS[slug].__qualname__ != cls.__qualname__:
            raise ValueError(f"two methods are called {slug!r}")
        cls.slug, cls.area, cls.paper, cls.verified = slug, area, paper, verified
        _METHODS[slug] = cls
        return cls

    return enter


def registered() -> dict[str, type[Method]]:
    """Return the methods whose pages have been imported (``protolearn.methods`` imports them all)."""
    return dict(sorted(_METHODS.items()))


def make_method(settings: Mapping[str, Any]) -> Method:
    """Return a method from settings as :meth:`Method.settings` gives them.

    Raises
    ------
    UsageError
        If the name or a setting is unknown; the nearest names are suggested.
    """
    values = dict(settings)
    slug = str(values.pop("method", ""))
    cls = look_up("method", slug, _METHODS)
    names = [f.name for f in dataclasses.fields(cls)]
    for name in values:
        if name not in names:
            raise UsageError(f"{slug} has no setting {name!r}: {nearest_names(name, names)}")
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
