"""The layers between encoder and prototypes, acting on each token by itself: ``(..., D_in) -> (..., D)``.

Necks that make tokens of tokens instead have ``on_tokens``: :class:`Finer` here, and those of
:mod:`~protolearn.core.gathering` and :mod:`~protolearn.core.concepts`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from protolearn.core.maps import enlarge
from protolearn.structures import Tokens

NeckKind = Literal["regular", "bottleneck", "tanh", "linear", "single", "principal", "identity"]


def make_neck(
    kind: NeckKind, dim_in: int, dim: int, *, axes: int = 256, generator: torch.Generator | None = None
) -> nn.Sequential:
    """Return add-on layers; a linear layer over tokens is a 1x1 convolution over a map.

    Parameters
    ----------
    kind : {"regular", "bottleneck", "tanh", "linear", "single", "principal", "identity"}
        ``regular``: linear, ReLU, linear, sigmoid. ``tanh``: linear, tanh, linear, tanh. ``linear``: two linear layers
        and no activation. ``single``: one linear layer and a sigmoid. ``bottleneck``: the width is halved until it
        reaches ``dim``, two layers a step, then a sigmoid. ``principal``: a fixed projection on principal axes
        (:class:`PrincipalAxes`, to be fitted to tokens), then one linear layer that starts as half the identity.
        ``identity``: none, and ``dim`` must equal ``dim_in``.
    dim_in, dim : int
        Widths.
    axes : int
        Of ``principal``, at most ``dim_in``.
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
    if kind == "principal":
        reduced = PrincipalAxes(dim_in, min(axes, dim_in))
        layer = nn.Linear(reduced.axes.shape[1], dim)
        nn.init.zeros_(layer.bias)
        with torch.no_grad():
            layer.weight.copy_(0.5 * torch.eye(*layer.weight.shape))
        return nn.Sequential(reduced, layer)
    if kind in ("linear", "tanh"):
        first, second = _linear(dim_in, dim, generator), _linear(dim, dim, generator)
        return nn.Sequential(first, second) if kind == "linear" else nn.Sequential(first, nn.Tanh(), second, nn.Tanh())
    if kind == "single":
        return one_layer(dim_in, dim, generator=generator)
    widths = [(dim_in, dim), (dim, dim)] if kind == "regular" else _halving(dim_in, dim)
    layers: list[nn.Module] = []
    for source, target in widths:
        layers += [_linear(source, target, generator), nn.ReLU()]
    layers.pop()
    return nn.Sequential(*layers, nn.Sigmoid())


def one_layer(
    dim_in: int, dim: int, *, bias: bool = True, xavier: bool = False, generator: torch.Generator | None = None
) -> nn.Sequential:
    """Return one linear layer and a sigmoid.

    Parameters
    ----------
    dim_in, dim : int
        Widths.
    bias : bool
        Whether the layer has one; it starts at 0.
    xavier : bool
        Start from Xavier's normal distribution in place of Kaiming's by fan-out.
    generator : torch.Generator, optional
        Source of the initial weights.

    Examples
    --------
    >>> one_layer(4, 2)(torch.zeros(1, 3, 4)).unique()
    tensor([0.5000], grad_fn=<Unique2Backward0>)
    """
    layer = nn.Linear(dim_in, dim, bias=bias)
    if xavier:
        nn.init.xavier_normal_(layer.weight, generator=generator)
    else:
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu", generator=generator)
    if bias:
        nn.init.zeros_(layer.bias)
    return nn.Sequential(layer, nn.Sigmoid())


def uniform_linear(dim_in: int, dim: int, *, bias: bool = True, generator: torch.Generator | None = None) -> nn.Linear:
    """Return a linear layer that starts as PyTorch's own do, uniform within ``1 / sqrt(dim_in)``, from a generator.

    Examples
    --------
    >>> bool(uniform_linear(16, 3).weight.abs().max() <= 0.25)
    True
    """
    layer, bound = nn.Linear(dim_in, dim, bias=bias), dim_in**-0.5
    for values in layer.parameters():
        nn.init.uniform_(values, -bound, bound, generator=generator)
    return layer


def gelu_layers(widths: Sequence[int], *, generator: torch.Generator | None = None) -> nn.Sequential:
    """Return linear layers of these widths, GELU between them: the projection of many contrastive methods.

    Weights start normal with deviation 0.02, cut at 2, and biases at 0.

    Examples
    --------
    >>> gelu_layers((8, 16, 4))(torch.zeros(3, 8)).shape
    torch.Size([3, 4])
    """
    layers: list[nn.Module] = []
    for dim_in, dim in pairwise(widths):
        layer = nn.Linear(dim_in, dim)
        nn.init.trunc_normal_(layer.weight, std=0.02, generator=generator)
        nn.init.zeros_(layer.bias)
        layers += [layer, nn.GELU()]
    return nn.Sequential(*layers[:-1])


def identity_linear(dim: int) -> nn.Linear:
    """Return a linear layer that starts by changing nothing.

    Examples
    --------
    >>> identity_linear(2)(torch.tensor([1.0, 2.0]))
    tensor([1., 2.], grad_fn=<ViewBackward0>)
    """
    layer = nn.Linear(dim, dim)
    nn.init.eye_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


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


class SideBySide(nn.Module):
    """Several necks that see the same token; what they make of it lies side by side along the width.

    Examples
    --------
    >>> SideBySide(nn.Linear(8, 3), nn.Linear(8, 3))(torch.zeros(2, 49, 8)).shape
    torch.Size([2, 49, 6])
    """

    def __init__(self, *necks: nn.Module) -> None:
        super().__init__()
        self.necks = nn.ModuleList(necks)

    def forward(self, values: Tensor) -> Tensor:
        """Return ``(..., sum of widths)`` for ``(..., D_in)``."""
        return torch.cat([neck(values) for neck in self.necks], -1)


class Finer(nn.Module):
    """A neck whose tokens are laid out on a grid ``factor`` times finer, interpolated; see :func:`enlarge`.

    For a neck that is linear, enlarging before it gives the same tokens and costs more. Tokens without a grid keep
    their layout.
    """

    def __init__(self, neck: nn.Module, factor: int) -> None:
        super().__init__()
        self.neck, self.factor = neck, factor

    def forward(self, values: Tensor) -> Tensor:
        """Return the neck's values, on the layout they came with."""
        made: Tensor = self.neck(values)
        return made

    def on_tokens(self, tokens: Tokens) -> Tokens:
        """Return the neck's tokens on the finer grid."""
        return enlarge(tokens.replace(values=self(tokens.values)), self.factor)


class PrincipalAxes(nn.Module):
    """Centre tokens, project them on the axes of largest variance, and scale the result to unit mean squared norm.

    The axes are measured once and then fixed (buffers): without :meth:`fit` they are the first coordinates.
    """

    mean: Tensor
    axes: Tensor
    scale: Tensor

    def __init__(self, dim_in: int, axes: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim_in))
        self.register_buffer("axes", torch.eye(dim_in, axes))
        self.register_buffer("scale", torch.ones(()))

    def forward(self, values: Tensor) -> Tensor:
        """Return ``(..., axes)`` for ``(..., D_in)``."""
        return (values - self.mean) @ self.axes / self.scale

    @property
    def fitted(self) -> bool:
        """Whether :meth:`fit` has been called (or the tokens were on the first coordinates all along)."""
        return bool(self.mean.any())

    def undo(self, values: Tensor) -> Tensor:
        """Return ``(..., D_in)`` for ``(..., axes)``: what lies off the axes is the mean's."""
        return (values * self.scale) @ self.axes.T + self.mean

    @torch.no_grad()
    def fit(self, batches: Iterable[Tokens]) -> None:
        """Measure mean, axes and scale in one pass over tokens; memory does not grow with their number.

        Raises
        ------
        ValueError
            If there is no token, or they are all the same.
        """
        dim = len(self.mean)
        total = torch.zeros(dim, dtype=torch.float64, device=self.mean.device)
        products = torch.zeros(dim, dim, dtype=torch.float64, device=self.mean.device)
        count = 0
        for tokens in batches:
            rows = (tokens.values if tokens.mask is None else tokens.values[tokens.mask]).reshape(-1, dim)
            total += rows.sum(0, dtype=torch.float64)
            products += (rows.T @ rows).double()
            count += len(rows)
        if count == 0:
            raise ValueError("principal axes need at least one token")
        mean = total / count
        covariance = products / count - torch.outer(mean, mean)
        variances, vectors = torch.linalg.eigh(covariance)
        kept = self.axes.shape[1]
        chosen = vectors.flip(1)[:, :kept]
        chosen = chosen * chosen.gather(0, chosen.abs().argmax(0, keepdim=True)).sign()  # eigenvectors have no sign
        spread = variances.flip(0)[:kept].clamp_min(0).sum()
        if not float(spread) > 0:
            raise ValueError("all tokens are the same: there are no axes of variance")
        self.mean.copy_(mean)
        self.axes.copy_(chosen)
        self.scale.copy_(spread.sqrt())
