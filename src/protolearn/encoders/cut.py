"""Where a trained classifier can be cut: the last map whose mean its linear layer reads.

Found by running the network once and comparing numbers, so a cut is either exact or refused; the network's code is not
read and not changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from protolearn.errors import UsageError

Layout = Literal["NCHW", "NHWC", "NLC"]
Tail = Literal["mean", "relu", "norm"]

TOLERANCE = 1e-4
"""Largest difference from the network's own numbers, relative to the largest of them, that counts as rounding."""


@dataclass(frozen=True)
class Cut:
    """How the tokens are taken from a network, and what becomes of them before the linear layer.

    Attributes
    ----------
    at : str
        The module whose output is the map.
    linear : str
        The linear layer that makes the logits.
    layout : {"NCHW", "NHWC", "NLC"}
        Of the map.
    tail : {"mean", "relu", "norm"}
        ``mean``: the layer reads the mean of the map. ``relu``: of the map behind a ReLU. ``norm``: the mean goes
        through a layer norm first. That norm then acts on every position with the moments of the mean, which leaves
        the mean of the positions what it was.
    norm : str
        That layer norm.
    skip : int
        Tokens in front that are not averaged, such as a class token.
    """

    at: str
    linear: str
    layout: Layout
    tail: Tail = "mean"
    norm: str = ""
    skip: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self)

    def tokens(self, found: Tensor, network: nn.Module) -> Tensor:
        """Return ``(B, S, D)`` whose mean the linear layer reads, of what the module at the cut put out."""
        values = _positions(found, self.layout)[:, self.skip :]
        if self.tail == "relu":
            return values.relu()
        if self.tail == "norm":
            layer = network.get_submodule(self.norm)
            assert isinstance(layer, nn.LayerNorm)
            return normed_by_mean(values, layer)
        return values


def normed_by_mean(values: Tensor, layer: nn.LayerNorm) -> Tensor:
    """Return tokens ``(B, S, D)`` normalised with the moments of their mean, so that their mean is its layer norm.

    Source: how EPIC (Borycki et al., 2026) treats networks with a layer norm behind the pooling.

    Examples
    --------
    >>> layer, values = nn.LayerNorm(8), torch.rand(2, 5, 8)
    >>> torch.allclose(normed_by_mean(values, layer).mean(1), layer(values.mean(1)), atol=1e-5)
    True
    """
    pooled = values.mean(1, keepdim=True)
    centre = pooled.mean(-1, keepdim=True)
    scale = (pooled.var(-1, unbiased=False, keepdim=True) + layer.eps).rsqrt()
    made = (values - centre) * scale
    made = made if layer.weight is None else made * layer.weight
    return made if layer.bias is None else made + layer.bias


@torch.no_grad()
def find_cut(network: nn.Module, example: Tensor) -> Cut:
    """Return where a network in eval mode can be cut: as near to its end as there is more than one position.

    Parameters
    ----------
    network : Module
        From pictures to logits ``(B, C)``.
    example : Tensor
        ``(B, 3, H, W)`` inputs to try it on.

    Raises
    ------
    UsageError
        If its logits are not those of a linear layer, or what that layer reads is not the mean of a map (attention or
        a class token, a convolution or an activation behind the pooling): no turning of channels is exact there.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    >>> find_cut(net.eval(), torch.rand(2, 3, 8, 8))
    Cut(at='1', linear='4', layout='NCHW', tail='mean', norm='', skip=0)
    """
    name = type(network).__name__
    linear, pooled = _last_linear(network, example, name)
    dim = pooled.shape[1]
    skips = {0, int(getattr(network, "num_prefix_tokens", 0) or 0)}
    norms: list[str] = []
    found: list[tuple[str, Layout, Tensor]] = []

    def note(path: str, output: Any, inputs: tuple[Any, ...], module: nn.Module) -> None:
        found.extend((path, layout, output.clone()) for layout in _layouts(output, dim))
        if (
            isinstance(module, nn.LayerNorm)
            and output.numel() == pooled.numel()
            and agree(output.view_as(pooled), pooled)
        ):
            norms.append(path)

    with _watched(network, note):
        network(example)
    ways: list[tuple[Tail, str]] = [("mean", ""), ("relu", ""), *(("norm", path) for path in norms)]  # type: ignore[list-item]
    for tail, norm in ways:
        for path, layout, output in reversed(found):
            for skip in sorted(skips if layout == "NLC" else {0}):
                cut = Cut(path, linear, layout, tail, norm, skip)
                values = cut.tokens(output, network)
                if values.shape[1] > 1 and agree(values.mean(1), pooled):
                    return cut
    raise UsageError(
        f"{name}: what its last linear layer reads is not the mean of a map of more than one place (as it is, behind a "
        "ReLU, or through a layer norm), so prototypes cannot keep its logits exactly; if the map was 1 x 1, take a "
        "larger size"
    )


def agree(found: Tensor, wanted: Tensor) -> bool:
    """Say whether two tables are the same but for rounding."""
    return found.shape == wanted.shape and gap(found, wanted) <= TOLERANCE


def gap(found: Tensor, wanted: Tensor) -> float:
    """Return the largest difference, relative to the largest number where that is above 1.

    Examples
    --------
    >>> round(gap(torch.tensor([10.0, 2.0]), torch.tensor([10.0, 1.0])), 6)
    0.1
    """
    scale = wanted.abs().max().clamp_min(1.0)
    return float((found - wanted).abs().max() / scale)


def run_to(network: nn.Module, at: str, inputs: Tensor) -> Tensor:
    """Return what the module at a path puts out when the network is run."""
    seen: list[Tensor] = []
    hook = network.get_submodule(at).register_forward_hook(lambda _, __, output: seen.append(output.clone()))
    try:
        network(inputs)
    finally:
        hook.remove()
    return seen[-1]


def logits_of(output: Any) -> Tensor:
    """Return the logits in what a network returned: themselves, or its field ``logits``."""
    logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        kind = f"{tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        raise UsageError(f"a classifier returns logits (B, C), this network returned {kind}")
    return logits


def take_out(network: nn.Module, path: str) -> nn.Linear:
    """Put nothing in the place of a linear layer and return it."""
    parent, _, name = path.rpartition(".")
    layer = network.get_submodule(path)
    assert isinstance(layer, nn.Linear)
    setattr(network.get_submodule(parent), name, nn.Identity())
    return layer


def _last_linear(network: nn.Module, example: Tensor, name: str) -> tuple[str, Tensor]:
    """Return the linear layer whose output is the logits, and what it read ``(B, D)``."""
    seen: list[tuple[str, Tensor, Tensor]] = []

    def note(path: str, output: Any, inputs: tuple[Any, ...], module: nn.Module) -> None:
        if isinstance(module, nn.Linear) and inputs[0].ndim == 2:
            seen.append((path, inputs[0].clone(), output.clone()))

    with _watched(network, note):
        logits = logits_of(network(example))
    for path, read, output in reversed(seen):
        if output.shape == logits.shape and torch.equal(output, logits):
            return path, read
    raise UsageError(f"{name}: its logits are not what a linear layer puts out, so it cannot be cut before one")


@contextmanager
def _watched(network: nn.Module, note: Callable[[str, Any, tuple[Any, ...], nn.Module], None]) -> Iterator[None]:
    def heard(path: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        note(path, output, inputs, module)

    hooks = [m.register_forward_hook(partial(heard, path)) for path, m in network.named_modules() if path]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _layouts(output: Any, dim: int) -> list[Layout]:
    if not isinstance(output, Tensor) or not output.is_floating_point():
        return []
    if output.ndim == 4:
        return [layout for layout, axis in (("NCHW", 1), ("NHWC", 3)) if output.shape[axis] == dim]  # type: ignore[misc]
    return ["NLC"] if output.ndim == 3 and output.shape[2] == dim else []


def _positions(found: Tensor, layout: Layout) -> Tensor:
    if layout == "NCHW":
        return found.flatten(2).transpose(1, 2)
    return found.flatten(1, 2) if layout == "NHWC" else found


def sides(found: Tensor, cut: Cut, inputs: Tensor) -> tuple[int, int] | None:
    """Return rows and columns of a map; of tokens in a row, where they fill a square of a square input, else None."""
    if cut.layout != "NLC":
        rows, columns = found.shape[2:] if cut.layout == "NCHW" else found.shape[1:3]
        return int(rows), int(columns)
    side = round((found.shape[1] - cut.skip) ** 0.5)
    square = inputs.shape[-1] == inputs.shape[-2] and side * side == found.shape[1] - cut.skip
    return (side, side) if square else None
