"""The contract of an audit metric: what it needs, what it adds up over batches, and what it says at the end."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from protolearn.audit.look import Look
from protolearn.audit.marks import Marks
from protolearn.audit.subject import Subject
from protolearn.errors import UsageError, look_up

NEEDS: dict[str, str] = {
    "maps": "similarity at each place of a picture",
    "labels": "labelled cases",
    "points": "key points in the pictures (a CUB folder, or a table id,part,x,y,visible)",
    "objects": "object masks or boxes in the pictures",
    "weights": "a head that gives each prototype a weight",
    "vectors": "prototypes that are vectors",
    "train": "the training cases (train=; DATA on the command line)",
    "outside": "cases of none of the model's classes (outside=, --outside)",
    "shifted": "the same cases under shift, in the same order (shifted=, --shifted)",
    "twin": "a second model, trained with another seed (twin=, --twin)",
}
"""What a metric may need, and how a person gives it."""

PASSES = ("cases", "train", "outside", "shifted")
"""Parts of the data that a metric may be shown, in this order."""


@dataclass(frozen=True)
class About:
    """What is to be known of a metric before it runs.

    Attributes
    ----------
    name : str
        As in calls and files.
    title : str
        For people.
    variant : str
        The exact form, in one sentence: thresholds, sizes, units.
    source : str
        Paper or code it is taken from; "ours" where it is an addition.
    better : {"higher", "lower", ""}
        Which way is good; empty where neither is.
    unit : str
        Of the value: "0-100", "0-1", "prototypes", "nats" ...
    needs : tuple of str
        Keys of ``NEEDS``; without one of them the metric refuses.
    instead : tuple of str
        Metrics that need no annotation and can stand in for it.
    passes : tuple of str
        Parts of the data it is shown; "train?" means the training cases where they are given, else the audited ones.
    noise : bool
        Whether it reads the cases under noise too.
    costly : bool
        Whether it asks the model about many altered inputs; left out by ``metrics="quick"``.
    """

    name: str
    title: str
    variant: str
    source: str
    better: str = ""
    unit: str = ""
    needs: tuple[str, ...] = ()
    instead: tuple[str, ...] = ()
    passes: tuple[str, ...] = ("cases",)
    noise: bool = False
    costly: bool = False


@dataclass(frozen=True, eq=False)
class Seen:
    """A batch as a metric sees it.

    Attributes
    ----------
    part : str
        One of ``PASSES``.
    indices : Tensor
        ``(B,)`` int64 positions in that part of the data.
    inputs : Tensor
        As the model takes them.
    labels : Tensor
        ``(B,)`` int64, -1 = unlabelled.
    look : Look
        What the model put out.
    marks : Marks
        What people marked.
    noisy : tuple of Look
        The same cases under noise, one look for each draw; empty where no metric asked for it.
    ids : tuple of str
        Of the cases; empty where nobody gave them names.
    """

    part: str
    indices: Tensor
    inputs: Tensor
    labels: Tensor
    look: Look
    marks: Marks
    noisy: tuple[Look, ...] = ()
    ids: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Setting:
    """What is the same for every batch of an audit.

    Attributes
    ----------
    subject : Subject
        The model.
    counts : mapping of str to int
        Cases in each part of the data that is given.
    parts : tuple of str
        Names of the key points, of all parts of the data.
    generator : Generator
        For every draw of the metric; its own, so that leaving out one metric changes no other.
    twin : Subject or None
        The second model.
    draws : int
        Of noise.
    """

    subject: Subject
    counts: Mapping[str, int]
    parts: tuple[str, ...]
    generator: torch.Generator
    twin: Subject | None = None
    draws: int = 1


@dataclass(frozen=True, eq=False)
class Score:
    """What a metric says.

    Attributes
    ----------
    value : float or None
        The figure; None where there was nothing to judge by, and ``notes`` say why.
    per_prototype, per_case : Tensor or None
        ``(P,)`` and ``(N,)`` float64, NaN where a prototype or case was not judged.
    over_prototypes, over_cases : (float, float) or None
        95 % bootstrap intervals of the value, resampling prototypes or cases.
    counts : mapping of str to int
        What the figure stands on: prototypes judged, never active, parts never visible, cases without an object ...
    extras : mapping
        Further figures by name: plain JSON types.
    notes : tuple of str
        What a reader must know, in sentences.
    """

    value: float | None
    per_prototype: Tensor | None = None
    per_case: Tensor | None = None
    over_prototypes: tuple[float, float] | None = None
    over_cases: tuple[float, float] | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    extras: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class Metric(ABC):
    """A metric with its settings. One instance serves one audit: ``start``, ``update`` a batch at a time, ``result``.

    A subclass is a dataclass whose fields are its settings, with a class attribute ``about``.
    """

    about: ClassVar[About]
    setting: Setting

    def start(self, setting: Setting) -> None:
        """Get ready for a subject; subclasses make their tables here and call this first."""
        self.setting = setting

    def update(self, seen: Seen) -> None:  # noqa: B027  a metric of the prototypes alone is shown no case
        """Take in a batch; nothing by default, for metrics of the prototypes alone."""

    @abstractmethod
    def result(self) -> Score:
        """Return what was found."""


M = TypeVar("M", bound=type[Metric])
METRICS: dict[str, type[Metric]] = {}
"""Every metric by name; filled by :mod:`protolearn.audit.metrics`."""


def metric(about: About) -> Callable[[M], M]:
    """Register a class as the metric of this name."""

    def add(cls: M) -> M:
        if about.name in METRICS:
            raise UsageError(f"two metrics are called {about.name!r}")
        unknown = [need for need in about.needs if need not in NEEDS]
        if unknown:
            raise UsageError(f"metric {about.name} needs {unknown[0]!r}, which nobody can give")
        cls.about = about
        METRICS[about.name] = cls
        return cls

    return add


def make_metric(name: str, **settings: Any) -> Metric:
    """Return a metric by name, with settings in place of its defaults.

    Raises
    ------
    UsageError
        If there is no such metric or setting; the nearest names are suggested.

    Examples
    --------
    >>> make_metric("consistency", threshold=0.5).threshold
    0.5
    """
    import protolearn.audit.metrics  # noqa: F401  its modules register themselves

    cls = look_up("metric", name, METRICS)
    known = getattr(cls, "__dataclass_fields__", {})
    for key in settings:
        look_up(f"setting of {name}", key, known)
    return cls(**settings)
