"""The contract of a paper: how its model is built, what it minimises, in which phases; and the list of papers.

A method is a frozen dataclass of settings with the paper's defaults. What a phase trains is named by groups:
``encoder``, ``neck``, ``prototypes``, ``head``.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

from torch import Tensor

from protolearn.core.encoder import Encoder
from protolearn.errors import UsageError, nearest_names
from protolearn.structures import Output, Tokens

if TYPE_CHECKING:
    from protolearn.core.model import PrototypeModel

GROUPS = ("encoder", "neck", "prototypes", "head")


@dataclass(frozen=True)
class Phase:
    """One stage of training."""

    name: str


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
    freeze_batch_norm : bool
        Keep batch-norm statistics fixed although the weights are trained.
    """

    epochs: int = 1
    rates: Mapping[str, float] = field(default_factory=dict)
    decay: Mapping[str, float] = field(default_factory=dict)
    step: int = 0
    gamma: float = 0.1
    freeze_batch_norm: bool = False

    def __post_init__(self) -> None:
        for group in (*self.rates, *self.decay):
            if group not in GROUPS:
                raise UsageError(f"phase {self.name!r} names the group {group!r}: {nearest_names(group, GROUPS)}")
        if self.epochs < 0 or self.step < 0 or not self.rates:
            raise UsageError(f"phase {self.name!r} needs epochs >= 0, step >= 0 and at least one group with a rate")

    def factor(self, done: int) -> float:
        """Return what the rates are multiplied by after ``done`` epochs of this run."""
        return self.gamma ** ((done + 1) // self.step) if self.step else 1.0


@dataclass(frozen=True)
class Project(Phase):
    """Move every prototype onto the nearest training token that the rule allows.

    ``rule``: ``own_class`` (tokens of cases whose label owns the prototype), ``any``, or ``group`` (own class, and at
    most one prototype of a class per group, such as a patient). ``distinct`` forbids two prototypes on one token.
    """

    name: str = "projection"
    rule: Literal["own_class", "any", "group"] = "own_class"
    distinct: bool = False


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
class Recipe:
    """Settings that go together, beside a paper's own defaults: of the method, the encoder, augmentation and ``fit``.

    ``about`` says when to take it and what was measured with it.
    """

    about: str
    method: Mapping[str, Any] = field(default_factory=dict)
    encoder: Mapping[str, Any] = field(default_factory=dict)
    augment: Mapping[str, Any] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


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

    def initialise(self, model: PrototypeModel, batches: Iterable[tuple[Tokens, Tensor]], seed: int) -> None:
        """Start neck and prototypes from un-augmented training tokens (before the neck) and labels.

        ``batches`` may be gone through several times.
        """
        raise NotImplementedError(f"{self.slug} has no initialisation from data")

    def loss(self, terms: Mapping[str, Tensor]) -> Tensor:
        """Return the weighted sum of the terms."""
        weights = self.weights()
        return sum((weights[name] * term for name, term in terms.items()), start=next(iter(terms.values())) * 0.0)

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
    if slug not in _METHODS:
        raise UsageError(f"no method is called {slug!r}: {nearest_names(slug, _METHODS)}")
    cls = _METHODS[slug]
    names = [f.name for f in dataclasses.fields(cls)]
    for name in values:
        if name not in names:
            raise UsageError(f"{slug} has no setting {name!r}: {nearest_names(name, names)}")
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
