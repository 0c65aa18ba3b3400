"""How sure a model may be that it knows an input at all: the contract of a novelty score, and its threshold.

Everywhere in the library a score is a **confidence: higher = more like what is known**. What is below a threshold, set
on held-out known cases, is "unknown". B batch, D width of the features, C classes, P prototypes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from protolearn.errors import UsageError, look_up

if TYPE_CHECKING:
    from protolearn.structures import Output, Tokens

FEATURES = ("encoded", "embedded")
"""Before the neck, or after it: where prototypes are compared."""


@dataclass(frozen=True, eq=False)
class View:
    """What a score may read of a batch.

    Attributes
    ----------
    features : Tensor
        ``(B, D)``: one vector a case.
    logits : Tensor
        ``(B, C)``.
    evidence : Tensor or None
        ``(B, P)`` similarities to the prototypes, where the model has some.
    weight, bias : Tensor or None
        ``(C, D)`` and ``(C,)`` of a classifier that is linear in the features.
    """

    features: Tensor
    logits: Tensor
    evidence: Tensor | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None

    def __post_init__(self) -> None:
        if self.features.ndim != 2 or self.logits.ndim != 2 or len(self.features) != len(self.logits):
            raise UsageError(
                f"a view holds features (B, D) and logits (B, C), got {tuple(self.features.shape)} and "
                f"{tuple(self.logits.shape)}"
            )

    def __len__(self) -> int:
        return len(self.features)

    def part(self, cases: Tensor | slice) -> View:
        """Return some cases."""
        evidence = None if self.evidence is None else self.evidence[cases]
        return View(self.features[cases], self.logits[cases], evidence, self.weight, self.bias)


def joined(views: list[View]) -> View:
    """Return the views of several batches as one."""
    if not views:
        raise UsageError("no case was seen: there is nothing to score")
    whole = [view.evidence for view in views]
    evidence = None if any(e is None for e in whole) else torch.cat([e for e in whole if e is not None])
    features, logits = torch.cat([v.features for v in views]), torch.cat([v.logits for v in views])
    return View(features, logits, evidence, views[0].weight, views[0].bias)


def view_of(out: Output, features: str = "encoded") -> View:
    """Return what a score may read of an output: the encoder's vector of each case, or the mean of its tokens.

    Parameters
    ----------
    out : Output
        Of a whole pass.
    features : {"encoded", "embedded"}
        Tokens before the neck or after it.
    """
    if features not in FEATURES:
        raise UsageError(f"features are {' or '.join(FEATURES)}, got {features!r}")
    tokens = out.encoded if features == "encoded" else out.tokens
    if tokens is None:
        raise UsageError("this output does not hold the tokens it was made of: run the model on inputs")
    return View(pooled(tokens), out.logits, out.evidence)


def pooled(tokens: Tokens) -> Tensor:
    """Return one vector a case ``(B, D)``: the encoder's own summary, else the mean over real positions.

    Examples
    --------
    >>> from protolearn.structures import Tokens
    >>> values = torch.tensor([[[1.0], [3.0], [9.0]]])
    >>> pooled(Tokens(values, mask=torch.tensor([[True, True, False]])))
    tensor([[2.]])
    """
    if tokens.summary is not None:
        return tokens.summary
    if tokens.mask is None:
        return tokens.values.mean(1)
    real = tokens.mask.unsqueeze(-1)
    return tokens.values.masked_fill(~real, 0.0).sum(1) / real.sum(1).clamp_min(1)


class Novelty(NamedTuple):
    """What a model says of how well it knows some inputs."""

    confidence: Tensor
    """``(B,)``, higher = more like what is known."""
    known: Tensor | None
    """``(B,)`` bool; None where no threshold was set. A confidence that is not a number is unknown."""


@torch.no_grad()
def threshold_at(confidence: Tensor, rate: float = 0.95) -> float:
    """Return the confidence that ``rate`` of held-out known cases reach; at least that share, by construction.

    Raises
    ------
    UsageError
        If there is no confidence, or one is not a number.

    Examples
    --------
    >>> threshold_at(torch.tensor([1.0, 4.0, 2.0, 3.0]), 0.75)
    2.0
    """
    if not 0 < rate <= 1:
        raise UsageError(f"rate is the share of known cases to accept, above 0 and at most 1, got {rate}")
    if confidence.ndim != 1 or not len(confidence) or bool(confidence.isnan().any()):
        raise UsageError("a threshold is set on a row of at least one known case, none of them NaN")
    order = confidence.detach().double().sort(descending=True).values
    return float(order[cases_for(rate, len(order)) - 1])


def cases_for(rate: float, count: int) -> int:
    """Return the smallest number of ``count`` cases that is this share of them, at least 1.

    Examples
    --------
    >>> cases_for(0.95, 20), cases_for(0.95, 21), cases_for(0.07, 100)
    (19, 20, 7)
    """
    return max(1, -int(-(rate * count - 1e-9) // 1))


class Scorer(nn.Module, ABC):
    """A novelty score: fitted on known cases, calibrated on held-out known cases, saved with the model.

    A subclass is registered with :func:`scorer`; its settings are the arguments of its constructor, kept as attributes
    of the same names, and everything it learns is a buffer.

    Attributes
    ----------
    name : str
        As in calls and files.
    source : str
        Paper.
    features : str
        Which features it reads, "encoded" or "embedded".
    needs_grad : bool
        Whether it differentiates the model when it scores.
    reads_inputs : bool
        Whether it runs the model itself; it is then asked with ``score_inputs``.
    fits_inputs : bool
        Whether it runs the model itself to learn; it is then fitted with ``fit_inputs``.
    threshold : Tensor
        Scalar; NaN until it is set.
    """

    name: ClassVar[str] = ""
    source: ClassVar[str] = ""
    needs_grad: ClassVar[bool] = False
    reads_inputs: ClassVar[bool] = False
    fits_inputs: ClassVar[bool] = False
    settings_names: ClassVar[tuple[str, ...]] = ()
    features: str
    threshold: Tensor
    rate: Tensor

    def __init__(self, *, features: str = "encoded") -> None:
        super().__init__()
        if features not in FEATURES:
            raise UsageError(f"features are {' or '.join(FEATURES)}, got {features!r}")
        self.features = features
        self.register_buffer("threshold", torch.tensor(float("nan"), dtype=torch.float64))
        self.register_buffer("rate", torch.tensor(float("nan"), dtype=torch.float64))

    def fit(self, view: View, labels: Tensor) -> Scorer:
        """Learn from known cases, all at once; ``labels`` ``(N,)``, -1 = unlabelled. Nothing to learn by default."""
        return self

    def chosen(self, labels: Tensor) -> Tensor:
        """Return the positions of the known cases that :meth:`fit_inputs` is to be shown; all by default."""
        return torch.arange(len(labels), device=labels.device)

    def fit_inputs(self, model: nn.Module, batches: Iterable[Tensor]) -> Scorer:
        """Learn from inputs, batch by batch, for scores that run the model themselves."""
        raise UsageError(f"the novelty score {self.name} learns from outputs: call fit")

    @abstractmethod
    def score(self, view: View) -> Tensor:
        """Return confidences ``(B,)``."""

    def score_inputs(self, model: Any, inputs: Any) -> Tensor:
        """Return confidences of inputs, for scores that differentiate the model."""
        raise UsageError(f"the novelty score {self.name} reads an output, not inputs")

    @torch.no_grad()
    def calibrate(self, confidence: Tensor, rate: float = 0.95) -> Scorer:
        """Set the threshold that ``rate`` of held-out known cases reach; at least that share, by construction.

        Raises
        ------
        UsageError
            If there is no confidence, or one is not a number.
        """
        self.threshold.fill_(threshold_at(confidence, rate))
        self.rate.fill_(rate)
        return self

    def novelty(self, confidence: Tensor) -> Novelty:
        """Return confidences with the verdict of the threshold, where one is set."""
        if bool(self.threshold.isnan()):
            return Novelty(confidence, None)
        return Novelty(confidence, confidence.double() >= self.threshold.to(confidence.device))

    def spec(self) -> dict[str, Any]:
        """Return name and settings as plain JSON types: what :func:`make_scorer` takes."""
        return {
            "name": self.name,
            "features": self.features,
            **{key: getattr(self, key) for key in self.settings_names},
        }

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Take buffers of any size: what was learned says how large it is."""
        for name, held in list(self.named_buffers(recurse=False)):
            new = state_dict.get(prefix + name)
            if isinstance(new, Tensor) and new.shape != held.shape:
                setattr(self, name, held.new_zeros(new.shape))
        super()._load_from_state_dict(state_dict, prefix, *args)


S = TypeVar("S", bound=type[Scorer])
SCORERS: dict[str, type[Scorer]] = {}
"""Every novelty score by name."""


def scorer(name: str, *, source: str) -> Callable[[S], S]:
    """Register a class as the score of this name."""

    def add(cls: S) -> S:
        if name in SCORERS:
            raise UsageError(f"two novelty scores are called {name!r}")
        cls.name, cls.source = name, source
        SCORERS[name] = cls
        return cls

    return add


def make_scorer(spec: str | Mapping[str, Any]) -> Scorer:
    """Return a score by name, or by name and settings as :meth:`Scorer.spec` gives them.

    Raises
    ------
    UsageError
        If there is no such score or setting; the nearest names are suggested.

    Examples
    --------
    >>> make_scorer("msp").spec()
    {'name': 'msp', 'features': 'encoded'}
    """
    import protolearn.core.activation_coverage
    import protolearn.core.clipped_scores
    import protolearn.core.feature_scores
    import protolearn.core.scores  # noqa: F401  their classes register themselves

    plain = {"name": spec} if isinstance(spec, str) else dict(spec)
    cls = look_up("novelty score", str(plain.pop("name", "")), SCORERS)
    for key in plain:
        look_up(f"setting of {cls.name}", str(key), dict.fromkeys((*cls.settings_names, "features")))
    return cls(**plain)
