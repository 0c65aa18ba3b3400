"""The layers between encoder and prototypes, acting on each token by itself: ``(..., D_in) -> (..., D)``.

Necks with ``on_tokens`` make tokens of tokens instead: the input as a whole, and codes that are drawn.
"""

from __future__ import annotations

from collections.abc import Iterable
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


def channel_neck(dim_in: int, count: int = 0, *, generator: torch.Generator | None = None) -> nn.Sequential:
    """Return a softmax over channels, so that a channel is a prototype and a token says which one it shows.

    Source: PIP-Net (Nauta et al., CVPR 2023). With ``count`` a linear layer (Xavier uniform, zero bias) makes so many
    channels first; without it the encoder's own channels are the prototypes.

    Examples
    --------
    >>> channel_neck(32, 8)(torch.zeros(2, 49, 32)).sum(-1).unique().tolist()
    [1.0]
    """
    layers: list[nn.Module] = []
    if count:
        layer = nn.Linear(dim_in, count)
        nn.init.xavier_uniform_(layer.weight, generator=generator)
        nn.init.zeros_(layer.bias)
        layers.append(layer)
    return nn.Sequential(*layers, nn.Softmax(-1))


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


def whole_input(tokens: Tokens) -> Tokens:
    """Return one token an input, the mean over its real positions, whose place is all of it; without any it is 0.

    Examples
    --------
    >>> whole_input(Tokens(torch.tensor([[[1.0], [3.0]]]), grid=(2,))).values
    tensor([[[2.]]])
    """
    grid = None if tokens.grid is None else (1,) * len(tokens.grid)
    values = tokens.values
    if tokens.mask is None:
        mean = values.mean(1, keepdim=True)
    else:
        real = tokens.mask.unsqueeze(-1)
        mean = values.masked_fill(~real, 0.0).sum(1, keepdim=True) / real.sum(1, keepdim=True).clamp_min(1)
    return tokens.replace(values=mean, mask=None, grid=grid, window=1)


class WholeInput(nn.Module):
    """Take the input as a whole: the mean of its tokens, then some layers.

    Examples
    --------
    >>> WholeInput(nn.Linear(4, 2)).on_tokens(Tokens(torch.zeros(3, 49, 4))).values.shape
    torch.Size([3, 1, 2])
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def on_tokens(self, tokens: Tokens) -> Tokens:
        """Return one token an input."""
        whole = whole_input(tokens)
        return whole.replace(values=self.net(whole.values))


class DrawnCode(nn.Module):
    """Take half of what a neck gives for the mean of a code and half for its log variance, and draw the code.

    In eval mode the code is its mean. Both are kept in the tokens' extras, as ``mean`` and ``log_variance``. Noise
    comes from torch's global generator, which the training loops seed.

    Examples
    --------
    >>> DrawnCode(WholeInput(nn.Linear(4, 6))).eval().on_tokens(Tokens(torch.zeros(3, 49, 4))).values.shape
    torch.Size([3, 1, 3])
    """

    def __init__(self, inner: WholeInput) -> None:
        super().__init__()
        self.inner = inner

    def on_tokens(self, tokens: Tokens) -> Tokens:
        """Return tokens of half the width."""
        moments = self.inner.on_tokens(tokens)
        mean, log_variance = moments.values.chunk(2, dim=-1)
        drawn = mean + (0.5 * log_variance).exp() * torch.randn_like(mean) if self.training else mean
        extras = {**tokens.extras, "mean": mean, "log_variance": log_variance}
        return moments.replace(values=drawn, extras=extras)


def fit_axes(neck: nn.Module, batches: Iterable[Tokens]) -> None:
    """Fit the principal axes of a neck to whole inputs, given as the encoder's tokens; once, and none is no error."""
    for module in neck.modules():
        if isinstance(module, PrincipalAxes) and not module.fitted:
            module.fit(whole_input(tokens) for tokens in batches)


class ConceptNeck(nn.Module):
    """A projector, and beside it a map of scores for each of K concepts made of the same tokens.

    The maps are kept in the tokens' ``extras`` as ``concept_maps (B, S, K)``, and as ``concept_vectors (B, K, D)`` what
    the projector makes of the tokens' mean under a softmax over positions of each map. No gradient flows from the
    vectors into the maps: the maps are learned from concept labels alone.

    Parameters
    ----------
    project : Module
        ``(..., D_in) -> (..., D)``.
    maps : Module
        ``(..., D_in) -> (..., K)``.
    temperature : float
        Of the softmax: small = the places with the highest scores alone, large = everywhere alike.

    Examples
    --------
    >>> neck = ConceptNeck(nn.Linear(3, 2), nn.Linear(3, 4))
    >>> found = neck.on_tokens(Tokens(torch.zeros(1, 5, 3)))
    >>> found.values.shape, found.extras["concept_maps"].shape, found.extras["concept_vectors"].shape
    (torch.Size([1, 5, 2]), torch.Size([1, 5, 4]), torch.Size([1, 4, 2]))
    """

    def __init__(self, project: nn.Module, maps: nn.Module, temperature: float = 1.0) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        self.project, self.maps, self.temperature = project, maps, temperature

    def forward(self, values: Tensor) -> Tensor:
        """Return ``(..., D)``."""
        projected: Tensor = self.project(values)
        return projected

    def on_tokens(self, tokens: Tokens) -> Tokens:
        """Return the projected tokens with maps and vectors in ``extras``."""
        maps = self.maps(tokens.values)
        mean = softmax_attention(tokens.values, maps.detach() / self.temperature, tokens.mask)
        extras = {**tokens.extras, "concept_maps": maps, "concept_vectors": self.project(mean)}
        return tokens.replace(values=self.project(tokens.values), extras=extras)


def softmax_attention(values: Tensor, scores: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return ``(B, K, D)``: the mean of the tokens of a case, weighted K times by a softmax of scores over positions.

    Parameters
    ----------
    values : Tensor
        ``(B, S, D)``.
    scores : Tensor
        ``(B, S, K)``.
    mask : Tensor, optional
        ``(B, S)`` bool, True = real. A case without a real position gives zeros.

    Examples
    --------
    >>> softmax_attention(torch.tensor([[[1.0], [3.0]]]), torch.tensor([[[0.0], [0.0]]]))
    tensor([[[2.]]])
    """
    if values.shape[:2] != scores.shape[:2]:
        raise ValueError(f"tokens {tuple(values.shape)} and scores {tuple(scores.shape)} do not fit")
    if mask is not None:
        real = mask.unsqueeze(-1)
        scores = scores.masked_fill(~real, float("-inf")).masked_fill(~mask.any(1)[:, None, None], 0.0)
        values = values.masked_fill(~real, 0.0)
    return scores.softmax(1).transpose(1, 2) @ values
