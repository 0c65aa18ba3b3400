"""The layers between encoder and prototypes, acting on each token by itself: ``(..., D_in) -> (..., D)``."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

NeckKind = Literal["regular", "bottleneck", "linear", "identity"]


def make_neck(
    kind: NeckKind, dim_in: int, dim: int, *, sigmoid: bool = True, generator: torch.Generator | None = None
) -> nn.Sequential:
    """Return add-on layers; a linear layer over tokens is a 1x1 convolution over a map.

    Parameters
    ----------
    kind : {"regular", "bottleneck", "linear", "identity"}
        ``regular``: linear, ReLU, linear, sigmoid. ``bottleneck``: the width is halved until it reaches ``dim``, two
        layers a step. ``linear``: one layer. ``identity``: none, and ``dim`` must equal ``dim_in``.
    dim_in, dim : int
        Widths.
    sigmoid : bool
        End ``regular`` and ``bottleneck`` in a sigmoid.
    generator : torch.Generator, optional
        Source of the initial weights: Kaiming normal by fan-out, zero bias.

    Examples
    --------
    >>> make_neck("regular", 32, 8)(torch.zeros(2, 49, 32)).shape
    torch.Size([2, 49, 8])
    """
    if kind == "identity":
        if dim_in != dim:
            raise ValueError(f"an identity neck keeps the width {dim_in}, got {dim}")
        return nn.Sequential()
    if kind == "linear":
        return nn.Sequential(_linear(dim_in, dim, generator))
    widths = [(dim_in, dim), (dim, dim)] if kind == "regular" else _halving(dim_in, dim)
    layers: list[nn.Module] = []
    for source, target in widths:
        layers += [_linear(source, target, generator), nn.ReLU()]
    layers.pop()
    return nn.Sequential(*layers, nn.Sigmoid()) if sigmoid else nn.Sequential(*layers)


def _halving(dim_in: int, dim: int) -> list[tuple[int, int]]:
    steps: list[tuple[int, int]] = []
    current = dim_in
    while current > dim or not steps:
        target = max(dim, current // 2)
        steps += [(current, target), (target, target)]
        current = target
    return steps


def _linear(dim_in: int, dim: int, generator: torch.Generator | None) -> nn.Linear:
    layer = nn.Linear(dim_in, dim)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu", generator=generator)
    nn.init.zeros_(layer.bias)
    return layer


class Standardise(nn.Module):
    """Subtract a mean and divide by a scale, both measured once on training tokens."""

    mean: Tensor
    scale: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))

    def forward(self, values: Tensor) -> Tensor:
        """Return standardised values of the same shape."""
        return (values - self.mean) / self.scale
