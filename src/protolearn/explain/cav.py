"""Concept activation vectors: the direction in a model's activations that tells examples of a concept from others.

N examples, q numbers in one activation. Source: Kim et al., ICML 2018 (arXiv 1711.11279); the test that uses them is
:mod:`protolearn.explain.tcav`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from protolearn.core.model import PrototypeModel
from protolearn.errors import DataError, UsageError, look_up
from protolearn.explain.gradients import asking
from protolearn.explain.passes import device_of
from protolearn.structures import Output

ENCODER = "encoder"
POOLS = ("flatten", "mean")
SEPARATORS = ("sgd", "logistic")


@dataclass(frozen=True, eq=False)
class Cav:
    """A direction and how well it separates.

    Attributes
    ----------
    vector : ndarray
        ``(q,)`` of unit length, towards the concept, in the units of the activations.
    accuracy : float
        On examples that were held out, as many of either side; 0.5 is chance.
    """

    vector: np.ndarray
    accuracy: float


@dataclass(frozen=True)
class Layer:
    """Where activations are read.

    Attributes
    ----------
    at : str
        "encoder" for its tokens before the neck, or the name of any module that gives one tensor, as in
        ``model.named_modules()``.
    pool : {"flatten", "mean"}
        All numbers of an activation as they lie, or their mean over places. Places are the positions of tokens
        ``(B, S, D)``, or rows and columns of a map ``(B, C, H, W)``. With the mean, a step along a direction moves
        every place alike.
    """

    at: str = ENCODER
    pool: str = "flatten"

    def __post_init__(self) -> None:
        if self.pool not in POOLS:
            raise UsageError(f"pool is 'flatten' or 'mean', got {self.pool!r}")

    def open(self, model: PrototypeModel, inputs: Tensor) -> tuple[Tensor, Output, Tensor | None]:
        """Run inputs and return the activations as the leaf of a graph, the output made of them, and the mask.

        Call it within :func:`~protolearn.explain.gradients.asking`; nothing before the layer is differentiated.
        """
        if self.at == ENCODER:
            with torch.no_grad():
                tokens = model.encode(inputs)
            leaf = tokens.values.detach().requires_grad_(True)
            return leaf, model.run(tokens.replace(values=leaf.clone()), inputs), tokens.mask
        module = look_up("module of the model", self.at, dict(model.named_modules()))
        caught: list[Tensor] = []

        def swap(_: nn.Module, __: Any, made: Any) -> Tensor:
            if not isinstance(made, Tensor):
                raise UsageError(f"module {self.at!r} gives a {type(made).__name__}, not one tensor: name another")
            caught.append(made.detach().requires_grad_(True))
            return caught[-1].clone()  # what follows may work in place, which a leaf forbids

        handle = module.register_forward_hook(swap)
        try:
            output = model(inputs)
        finally:
            handle.remove()
        if len(caught) != 1:
            raise UsageError(f"module {self.at!r} runs {len(caught)} times for an input; name one that runs once")
        return caught[0], output, None

    def pooled(self, values: Tensor, mask: Tensor | None, *, total: bool = False) -> Tensor:
        """Return ``(B, q)``; with ``total`` the sum over places in place of the mean, as gradients need it."""
        if mask is not None:
            values = values.masked_fill(~mask.unsqueeze(-1), 0.0)
        if self.pool == "flatten" or values.ndim == 2:
            return values.flatten(1)
        summed = values.sum(1) if values.ndim == 3 else values.flatten(2).sum(2)
        if total:
            return summed
        places = values[0, ..., 0].numel() if values.ndim == 3 else values[0, 0].numel()
        return summed / (places if mask is None else mask.sum(1, keepdim=True).clamp_min(1))


def activations(model: PrototypeModel, inputs: Tensor, layer: Layer, *, batch_size: int = 64) -> np.ndarray:
    """Return ``(N, q)`` activations of inputs at a layer.

    Raises
    ------
    DataError
        If one is not finite.

    Examples
    --------
    >>> from protolearn.encoders import SmallEncoder
    >>> from protolearn.methods import get_method
    >>> model = get_method("protopnet")(prototypes_per_class=1, dim=8).build(SmallEncoder(16, size=16), 3)
    >>> activations(model, torch.rand(2, 3, 16, 16), Layer(pool="mean")).shape
    (2, 16)
    """
    found = []
    with asking(model):
        for part in inputs.to(device_of(model)).split(batch_size):
            leaf, _, mask = layer.open(model, part)
            found.append(layer.pooled(leaf.detach(), mask).float().cpu().numpy())
    whole = np.concatenate(found) if found else np.zeros((0, 0), np.float32)
    bad = np.flatnonzero(~np.isfinite(whole).all(1))
    if len(bad):
        raise DataError(f"the activation of input {int(bad[0])} at {layer.at!r} is not finite")
    return whole


def gradients(
    model: PrototypeModel, inputs: Tensor, what: str, rows: Tensor, layer: Layer, *, batch_size: int = 64
) -> Iterator[Tensor]:
    """Yield ``(b, q)``: the gradient of a logit, or of a prototype's similarity, with respect to a layer.

    Parameters
    ----------
    model : PrototypeModel
        Left as it is.
    inputs : Tensor
        ``(N, ...)``.
    what : {"logit", "similarity"}
        What is differentiated.
    rows : Tensor
        ``(N,)`` int64: class, or row of the bank.
    layer : Layer
        Where.
    batch_size : int
        Inputs at a time.

    Raises
    ------
    UsageError
        If the number does not depend on the layer by anything that has a gradient.
    """
    with asking(model):
        for part, own in zip(inputs.to(device_of(model)).split(batch_size), rows.split(batch_size), strict=True):
            leaf, output, mask = layer.open(model, part)
            table = output.similarities if what == "similarity" else output.logits
            value = table.gather(1, own.view(-1, 1)).sum()
            slope = torch.autograd.grad(value, leaf, allow_unused=True)[0] if value.requires_grad else None
            if slope is None:
                raise UsageError(f"the {what} does not depend on {layer.at!r}: there is no derivative to take")
            yield layer.pooled(slope, mask, total=True)


def separate(
    values: np.ndarray,
    labels: np.ndarray,
    *,
    separator: str = "sgd",
    alpha: float = 0.01,
    held_out: float = 1 / 3,
    seed: int = 0,
) -> Cav:
    """Fit a linear separator and return its normal and its accuracy on examples that were held out.

    Activations are centred and scaled by one number, so that a layer's scale does not change how strongly the separator
    is regularised.

    Parameters
    ----------
    values : ndarray
        ``(N, q)``.
    labels : ndarray
        ``(N,)`` bool: whether a row shows the concept; as many do as don't.
    separator : {"sgd", "logistic"}
        Hinge loss by stochastic gradient descent, or logistic regression.
    alpha : float
        Strength of the L2 penalty, a mean loss beside ``alpha |w|^2 / 2``.
    held_out : float
        Share of either side that is kept for the accuracy.
    seed : int
        Of the split and the descent.

    Examples
    --------
    >>> draw = np.random.default_rng(0)
    >>> values = draw.normal(size=(80, 5))
    >>> labels = np.arange(80) < 40
    >>> values[:40, 2] += 8.0
    >>> found = separate(values, labels)
    >>> found.accuracy, int(found.vector.argmax()), round(float(np.linalg.norm(found.vector)), 6)
    (1.0, 2, 1.0)
    """
    if separator not in SEPARATORS:
        raise UsageError(f"a separator is one of {', '.join(SEPARATORS)}, got {separator!r}")
    sides = [np.flatnonzero(labels), np.flatnonzero(~labels)]
    count = len(sides[0])
    kept = max(1, round(held_out * count))
    if count != len(sides[1]) or count - kept < 2:
        raise DataError(f"a separator needs as many examples of either side, 3 at least, got {[len(s) for s in sides]}")
    order = np.random.default_rng(seed).permutation(count)
    test = np.concatenate([side[order[:kept]] for side in sides])
    train = np.sort(np.concatenate([side[order[kept:]] for side in sides]))
    middle = values[train].mean(0)
    scale = float(np.sqrt(np.square(values[train] - middle).sum(1).mean()))
    if not scale > 0:
        raise DataError("the activations of all examples are the same: nothing separates them")
    shown = (values - middle) / scale
    model = _linear(separator, alpha, len(train), seed).fit(shown[train], labels[train])
    normal = np.asarray(model.coef_[0], dtype=np.float64)
    long = float(np.linalg.norm(normal))
    return Cav(normal / long if long > 0 else normal, float(model.score(shown[test], labels[test])))


def _linear(separator: str, alpha: float, count: int, seed: int) -> Any:
    from sklearn.linear_model import LogisticRegression, SGDClassifier

    if separator == "sgd":
        return SGDClassifier(loss="hinge", alpha=alpha, random_state=seed, max_iter=1000, tol=1e-3)
    return LogisticRegression(C=1.0 / (alpha * count), max_iter=1000)
