"""Any model as a novelty score sees it: features, logits and, where there is one, the linear classifier between them.

A model of the library is seen through :class:`ModelViews`, any other network through :class:`NetworkViews`, and what
tells known from foreign works on both.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from protolearn.core.model import PrototypeModel
from protolearn.core.scorer import Novelty, Scorer, View, view_of
from protolearn.core.taps import Tapped, module_at, pool, tapping
from protolearn.errors import UsageError
from protolearn.structures import Output


class Views(ABC):
    """A model that novelty scores can be fitted to and asked about.

    Attributes
    ----------
    module : Module
        The model itself.
    name : str
        For tables.
    classes : tuple of str
        Names, in the order of the logits.
    preprocess : object or None
        From a picture to an input; None where cases enter as they are.
    scorer : Scorer or None
        How it tells what it has not seen before.
    """

    module: nn.Module
    name: str
    classes: tuple[str, ...]
    preprocess: Any
    scorer: Scorer | None

    @abstractmethod
    def run(self, inputs: Tensor) -> Any:
        """Return whatever one forward pass makes of a batch; the other methods read it."""

    @abstractmethod
    def logits(self, ran: Any) -> Tensor:
        """Return ``(B, C)``."""

    def probabilities(self, ran: Any) -> Tensor:
        """Return ``(B, C)``: the softmax of the logits, unless the model has its own."""
        return self.logits(ran).double().softmax(-1)

    @abstractmethod
    def view(self, ran: Any, features: str = "encoded") -> View:
        """Return what a score may read of a pass."""

    @abstractmethod
    def confidence(self, scorer: Scorer, ran: Any, inputs: Tensor) -> Tensor:
        """Return ``(B,)``: what a score says of a pass, and of the inputs it was made of."""

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        held = [*self.module.parameters(), *self.module.buffers()]
        return held[0].device if held else torch.device("cpu")


class ModelViews(Views):
    """A model of the library. Its novelty score is the model's own."""

    def __init__(self, model: PrototypeModel) -> None:
        self.model = self.module = model
        self.name = "a prototype model" if model.method is None else type(model.method).__name__
        self.classes = tuple(model.classes)
        self.preprocess = getattr(model.encoder, "preprocess", None)

    @property
    def scorer(self) -> Scorer | None:
        """How it tells what it has not seen before."""
        return self.model.scorer

    @scorer.setter
    def scorer(self, scorer: Scorer | None) -> None:
        self.model.scorer = scorer

    def run(self, inputs: Tensor) -> Output:
        """Return the whole path."""
        out: Output = self.model(inputs)
        return out

    def logits(self, ran: Output) -> Tensor:
        """Return ``(B, C)``."""
        return ran.logits

    def probabilities(self, ran: Output) -> Tensor:
        """Return ``(B, C)``, as the head has them."""
        found: Tensor = ran.head.probabilities(ran.logits.double())
        return found

    def view(self, ran: Output, features: str = "encoded") -> View:
        """Return features before or after the neck, logits and evidence."""
        return view_of(ran, features)

    def confidence(self, scorer: Scorer, ran: Output, inputs: Tensor) -> Tensor:
        """Return ``(B,)``."""
        if scorer.reads_inputs:
            return scorer.score_inputs(self.model, ran).detach()
        return scorer.score(self.view(ran, scorer.features))


class NetworkViews(Views):
    """Any other network: the output of one of its modules are the features.

    Parameters
    ----------
    network : Module
        From inputs to logits ``(B, C)``, or to an object that holds them as ``logits``.
    features : str, optional
        Dotted name of the module whose output is the features; a map or a row of tokens is averaged over its places.
        What enters ``classifier`` by default.
    classifier : str, optional
        Dotted name of the linear layer that makes the logits of the features, for scores that read its weight (ViM,
        ReAct, ASH).
    classes : sequence of str, optional
        Names; numbers by default.
    preprocess : callable, optional
        From a picture to an input; None where cases enter as they are.
    name : str
        For tables.

    Raises
    ------
    UsageError
        If neither module is named, one does not exist, or the classifier is not linear.

    Examples
    --------
    >>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    >>> views = NetworkViews(network, classifier="2")
    >>> view = views.view(views.run(torch.ones(5, 4)))
    >>> view.features.shape, view.logits.shape, view.weight.shape
    (torch.Size([5, 8]), torch.Size([5, 3]), torch.Size([3, 8]))
    """

    def __init__(
        self,
        network: nn.Module,
        features: str | None = None,
        classifier: str | None = None,
        *,
        classes: Sequence[str] | None = None,
        preprocess: Any = None,
        name: str = "a network",
    ) -> None:
        self.module, self.preprocess, self.name, self.scorer = network, preprocess, name, None
        self.features, self.classifier = features, None
        if features is not None:
            module_at(network, features)
        if classifier is not None:
            found = module_at(network, classifier)
            if not isinstance(found, nn.Linear):
                raise UsageError(f"the classifier {classifier!r} must be a linear layer, got {type(found).__name__}")
            self.classifier = found
        elif features is None:
            raise UsageError("name the module whose output is the features, or the linear classifier they enter")
        if classes is None and self.classifier is None:
            raise UsageError("name the classes, or the linear classifier that says how many there are")
        count = self.classifier.out_features if self.classifier is not None else 0
        self.classes = tuple(map(str, range(count) if classes is None else classes))

    def run(self, inputs: Tensor) -> View:
        """Return features and logits."""
        entered: list[Tensor] = []
        watched = None
        if self.features is None and self.classifier is not None:
            watched = self.classifier.register_forward_pre_hook(lambda _, given: entered.append(given[0]))
        try:
            with tapping(self.module, [] if self.features is None else [self.features]) as seen:
                out = self.module(inputs)
        finally:
            if watched is not None:
                watched.remove()
        logits = getattr(out, "logits", out)
        tapped = seen.get(self.features) if self.features is not None else Tapped(entered[0]) if entered else None
        if tapped is None:
            raise UsageError(
                f"the module of the features, {self.features or 'the classifier'}, takes no part in a pass"
            )
        if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[1] != len(self.classes):
            shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise UsageError(f"the network must put out logits (B, {len(self.classes)}), got {shape}")
        return self._view(pool(tapped.values, "mean", tapped.mask).detach(), logits.detach())

    def _view(self, features: Tensor, logits: Tensor) -> View:
        if self.classifier is None:
            return View(features, logits)
        weight, bias = self.classifier.weight, self.classifier.bias
        bias = weight.new_zeros(len(weight)) if bias is None else bias
        if weight.shape[1] != features.shape[1] or not _close(nn.functional.linear(features, weight, bias), logits):
            raise UsageError(
                "the classifier does not make the logits of these features: leave out the module of the features, or "
                "the classifier"
            )
        return View(features, logits, None, weight.detach(), bias.detach())

    def logits(self, ran: View) -> Tensor:
        """Return ``(B, C)``."""
        return ran.logits

    def view(self, ran: View, features: str = "encoded") -> View:
        """Return features, logits and the classifier; there is no neck, so "embedded" is refused."""
        if features != "encoded":
            raise UsageError("a network without prototypes has no embedded features: use 'encoded'")
        return ran

    def confidence(self, scorer: Scorer, ran: View, inputs: Tensor) -> Tensor:
        """Return ``(B,)``."""
        if scorer.needs_grad:
            return scorer.score_inputs(self.module, inputs).detach()
        return scorer.score(self.view(ran, scorer.features))

    @torch.no_grad()
    def novelty(self, inputs: Tensor) -> Novelty:
        """Return how much inputs are like what the network knows, and whether it knows them.

        Raises
        ------
        UsageError
            If there is no novelty score yet.
        """
        if self.scorer is None:
            raise UsageError("this network cannot tell what it has not seen: fit a novelty score first")
        return self.scorer.novelty(self.confidence(self.scorer, self.run(inputs), inputs))


def _close(made: Tensor, wanted: Tensor) -> bool:
    """Return whether two tables are the same up to rounding in half precision."""
    return float((made - wanted).detach().abs().sum()) <= 1e-2 * float(wanted.detach().abs().sum())


def views_of(model: Any) -> Views:
    """Return a model as novelty scores see it; views stay what they are.

    Raises
    ------
    UsageError
        If it is neither a model of the library nor views of a network.
    """
    if isinstance(model, Views):
        return model
    if isinstance(model, PrototypeModel):
        return ModelViews(model)
    raise UsageError(
        f"a novelty score needs a PrototypeModel, got {type(model).__name__}: wrap another network in "
        "protolearn.core.views.NetworkViews"
    )
