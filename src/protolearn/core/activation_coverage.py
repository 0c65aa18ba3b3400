"""Neuron activation coverage (NAC): how often each neuron was seen, on known cases, in the state it is in now.

A neuron's state is ``sigmoid(alpha * o * g)``: o its output, g the gradient by it of the cross-entropy between the
prediction and the uniform distribution. Known cases fill a histogram of states for each neuron; a case whose neurons
are in well filled bins is known, and neurons in empty bins are why it is not. No labels are read, nothing is trained.

Source: Liu et al., ICLR 2024, their code. B batch, N neurons of a layer, M bin edges, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from protolearn.core.modes import evaluating
from protolearn.core.scorer import Scorer, View, scorer
from protolearn.core.taps import POOLINGS, Tapped, pool, tapping
from protolearn.errors import UsageError, look_up
from protolearn.structures import Output

_FINEST = 1000.0
_MOST_BINS = 100_000


def coverage_edges(count: int) -> Tensor:
    """Return ``(M,)`` float64 edges of bins of states: finest around 0.5, where most neurons are, widest at 0 and 1.

    The last bin lies beyond 1 and is always empty, as in the authors' code. ``count`` is an even number.

    Examples
    --------
    >>> coverage_edges(6)
    tensor([0.0000, 0.4042, 0.5000, 0.5958, 1.0100, 1.2000], dtype=torch.float64)
    """
    if count < 4 or count % 2 or count > _MOST_BINS:
        raise UsageError(f"bins must be an even number from 4 to {_MOST_BINS}, got {count}")
    steps = torch.linspace(1, math.sqrt(_FINEST), count // 2, dtype=torch.float64)
    left = steps.log() / math.log(_FINEST)
    right = (1 - left).flip(0)
    right[-1] += 0.01
    return torch.cat([left[:-1], right, right.new_tensor([1.2])])


def uniform_gradients(logits: Tensor, layers: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    """Return the gradient by the output of each layer of ``-(1/C) sum_c log softmax(logits)_c``, summed over the batch.

    In evaluation mode cases do not influence each other, so each row is that of its case alone. None for a layer that
    the logits do not depend on.

    Parameters
    ----------
    logits : Tensor
        ``(B, C)``, made of the layers with gradients recorded.
    layers : sequence of Tensor
        ``(B, ...)`` each.
    """
    loss = -logits.log_softmax(-1).mean(-1).sum()
    if not loss.requires_grad:
        return (None,) * len(layers)
    return torch.autograd.grad(loss, list(layers), allow_unused=True)


def activation_state(outputs: Tensor, gradients: Tensor, alpha: float) -> Tensor:
    """Return ``(B, N)`` float64 states in 0 to 1 of outputs and gradients ``(B, N)``.

    Examples
    --------
    >>> activation_state(torch.tensor([[2.0]]), torch.tensor([[0.0]]), 100.0)
    tensor([[0.5000]], dtype=torch.float64)
    """
    state: Tensor = torch.sigmoid(alpha * outputs.double() * gradients.double())
    return state


def bins_of(state: Tensor, edges: Tensor) -> Tensor:
    """Return ``(B, N)`` int64: the bin ``m`` with ``edge[m] <= state < edge[m + 1]``."""
    return (torch.bucketize(state.contiguous(), edges, right=True) - 1).clamp(0, len(edges) - 2)


def count_states(state: Tensor, edges: Tensor) -> Tensor:
    """Return ``(M - 1, N)`` int64: how many of the cases have each neuron in each bin.

    Examples
    --------
    >>> count_states(torch.tensor([[0.1], [0.5], [0.9]]).double(), coverage_edges(6)).flatten().tolist()
    [1, 0, 1, 1, 0]
    """
    neurons = state.shape[1]
    flat = bins_of(state, edges) * neurons + torch.arange(neurons, device=state.device)
    return torch.bincount(flat.flatten(), minlength=(len(edges) - 1) * neurons).view(-1, neurons)


def filled(counts: Tensor, saturation: float) -> Tensor:
    """Return ``(M - 1, N)`` float64: how full each bin is, 1 from ``saturation`` cases on."""
    if not saturation > 0:
        raise UsageError(f"saturation must be above 0, got {saturation}")
    return (counts.double() / saturation).clamp_max(1.0)


def coverage_confidence(state: Tensor, full: Tensor, edges: Tensor) -> Tensor:
    """Return ``(B,)``: how full, on the mean over neurons, the bins are that the states fall in.

    Examples
    --------
    >>> edges = coverage_edges(6)
    >>> full = filled(count_states(torch.tensor([[0.1], [0.5]]).double(), edges), 1)
    >>> coverage_confidence(torch.tensor([[0.2], [0.9]]).double(), full, edges).tolist()
    [1.0, 0.0]
    """
    found = full.gather(0, bins_of(state, edges))
    return found.masked_fill(state.isnan(), float("nan")).mean(1)


def mean_coverage(full: Tensor) -> float:
    """Return NAC-ME: the mean over neurons of how full all their bins are, divided by the number of edges.

    Edges are one more than bins, so that it stays below 1, as in the authors' code.

    Examples
    --------
    >>> mean_coverage(torch.ones(5, 3))
    0.8333333333333334
    """
    return float((full.double().sum(0) / (len(full) + 1)).mean())


@scorer("nac", source="Liu et al., ICLR 2024 (NAC-UE)")
class ActivationCoverage(Scorer):
    """How well known cases cover the states that a case's neurons are in, on the mean over neurons and layers.

    It depends strongly on ``alpha``, ``bins`` and ``saturation``, which the paper searches for each layer on foreign
    cases set aside for that; the defaults are its values for the last layer of a small network, not searched. It runs
    the model once more, in evaluation mode so that cases do not influence each other, and differentiates it.

    Parameters
    ----------
    layers : sequence of str
        Dotted names of modules of the model; what the encoder puts out by default.
    alpha, bins, saturation : number or sequence
        Steepness of the sigmoid, number of bin edges (even), cases from which on a bin counts as full; one for all
        layers or one each.
    pooling : {"sum", "mean", "first"}
        Over the places of a map or the tokens, of output and gradient alike.
    most : int
        Known cases it is built from, as many of each class as there are; 0 takes all.
    features : str
        Not read.
    """

    needs_grad = reads_inputs = fits_inputs = True
    settings_names = ("layers", "alpha", "bins", "saturation", "pooling", "most")

    def __init__(
        self,
        *,
        layers: Sequence[str] = ("encoder",),
        alpha: float | Sequence[float] = 100.0,
        bins: int | Sequence[int] = 50,
        saturation: float | Sequence[float] = 50,
        pooling: str = "sum",
        most: int = 1000,
        features: str = "encoded",
    ) -> None:
        super().__init__(features=features)
        if isinstance(layers, str) or not layers or len(set(layers)) < len(layers):
            raise UsageError(f"layers must be different names of modules, at least one, got {layers!r}")
        look_up("pooling", pooling, dict.fromkeys(POOLINGS))
        if most < 0:
            raise UsageError(f"most must be at least 0 (0 = all), got {most}")
        self.layers, self.pooling, self.most = list(layers), pooling, most
        self.alpha, self.bins, self.saturation = (
            list(value) if isinstance(value, Sequence) else value for value in (alpha, bins, saturation)
        )
        for name in ("alpha", "bins", "saturation"):
            each = self._each(name)
            if len(each) != len(layers) or not all(value > 0 and math.isfinite(value) for value in each):
                raise UsageError(f"{name} must be above 0, one number or one for each of {len(layers)} layers: {each}")
        for k, count in enumerate(self._each("bins")):
            self.register_buffer(f"edges_{k}", coverage_edges(int(count)), persistent=False)
            self.register_buffer(f"counts_{k}", torch.zeros(0, 0, dtype=torch.int64))

    def fit(self, view: View, labels: Tensor) -> ActivationCoverage:
        """Refuse: it learns from inputs."""
        raise UsageError("nac learns from inputs: fit it with fit_inputs, or with tasks.ood.fit_novelty")

    def chosen(self, labels: Tensor) -> Tensor:
        """Return the positions of known cases to build from: class by class, spread evenly over each."""
        return balanced(labels, self.most)

    def fit_inputs(self, model: nn.Module, batches: Iterable[Tensor]) -> ActivationCoverage:
        """Count the states of known cases, batch by batch.

        Raises
        ------
        UsageError
            If there are none, or the logits do not depend on a layer (of one class there is nothing to tell).
        """
        totals: list[Tensor | None] = [None] * len(self.layers)
        moved = torch.zeros(len(self.layers), dtype=torch.bool)
        for inputs in batches:
            for k, (state, still) in enumerate(self.states(model, inputs)):
                counted = count_states(state, self._edges(k).to(state.device))
                before = totals[k]
                totals[k] = counted if before is None else before + counted
                moved[k] |= not still
        for k, total in enumerate(totals):
            if total is None:
                raise UsageError("no case was seen: there is nothing to score")
            if not moved[k]:
                raise UsageError(
                    f"the scores of this model do not depend on {self.layers[k]!r}: a neuron's state needs several "
                    "classes and a layer that the prediction is made of"
                )
            setattr(self, f"counts_{k}", total)
        return self

    def states(self, model: nn.Module, inputs: Tensor) -> list[tuple[Tensor, bool]]:
        """Return for each layer the states ``(B, N)``, and whether no gradient reached it.

        Raises
        ------
        UsageError
            If a layer does not exist or takes no part in a pass.
        """
        with torch.inference_mode(False), evaluating(model):
            given = inputs.clone() if inputs.is_inference() else inputs
            with tapping(model, self.layers, gradients=True) as seen:
                out = model(given)
                logits = getattr(out, "logits", out)
                missing = [path for path in self.layers if path not in seen]
                if missing:
                    raise UsageError(f"the module {missing[0]!r} takes no part in a pass of this model")
                tapped = [seen[path] for path in self.layers]
                gradients = uniform_gradients(logits, [each.values for each in tapped])
        found = zip(tapped, gradients, self._each("alpha"), strict=True)
        return [self._state(each, gradient, alpha) for each, gradient, alpha in found]

    def _state(self, tapped: Tapped, gradient: Tensor | None, alpha: float) -> tuple[Tensor, bool]:
        outputs = pool(tapped.values.detach(), self.pooling, tapped.mask)
        if gradient is None:
            return activation_state(outputs, torch.zeros_like(outputs), alpha), True
        pooled = pool(gradient.detach(), self.pooling, tapped.mask)
        return activation_state(outputs, pooled, alpha), not bool(pooled.any())

    def score(self, view: View) -> Tensor:
        """Refuse: it reads inputs."""
        raise UsageError("nac reads inputs: ask model.novelty(inputs)")

    def score_inputs(self, model: nn.Module, inputs: Any) -> Tensor:
        """Return confidences of inputs, or of an output that still holds them."""
        given = inputs.inputs if isinstance(inputs, Output) else inputs
        if given is None:
            raise UsageError("nac differentiates the model: ask about inputs")
        parts = [
            coverage_confidence(state, self.filled(k).to(state.device), self._edges(k).to(state.device))
            for k, (state, _) in enumerate(self.states(model, given))
        ]
        return torch.stack(parts).mean(0).float()

    def filled(self, layer: int = 0) -> Tensor:
        """Return ``(M - 1, N)``: how full the bins of one layer are."""
        counts: Tensor = getattr(self, f"counts_{layer}")
        if len(counts) != len(self._edges(layer)) - 1:
            raise UsageError("this novelty score was not fitted: call fit_inputs with known cases first")
        return filled(counts, self._each("saturation")[layer])

    def coverage(self) -> float:
        """Return NAC-ME, the mean over layers: a score of the model, by which the paper ranks models."""
        return sum(mean_coverage(self.filled(k)) for k in range(len(self.layers))) / len(self.layers)

    def _edges(self, layer: int) -> Tensor:
        edges: Tensor = getattr(self, f"edges_{layer}")
        return edges

    def _each(self, name: str) -> list[float]:
        value = getattr(self, name)
        return value if isinstance(value, list) else [value] * len(self.layers)


def balanced(labels: Tensor, most: int) -> Tensor:
    """Return positions of at most ``most`` cases, as evenly over the classes as these allow; 0 takes all.

    Within a class they are spread evenly; unlabelled cases (-1) count as a class.

    Examples
    --------
    >>> balanced(torch.tensor([0, 0, 0, 0, 1, 1]), 4).tolist()
    [0, 3, 4, 5]
    """
    if not most or len(labels) <= most:
        return torch.arange(len(labels), device=labels.device)
    groups = [(labels == c).nonzero().squeeze(1) for c in torch.unique(labels)]
    sizes = torch.tensor([len(group) for group in groups])
    each = 0
    while int(sizes.clamp_max(each + 1).sum()) <= most:
        each += 1
    if not each:  # more classes than cases wanted
        return torch.linspace(0, len(labels) - 1, most, device=labels.device).round().long()
    kept = [group[torch.linspace(0, len(group) - 1, min(each, len(group))).round().long()] for group in groups]
    return torch.cat(kept).sort().values
