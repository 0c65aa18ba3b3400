"""Necks that gather the tokens of an input into one vector, and fixed or learned maps of such vectors."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from protolearn.structures import Tokens


class Gathering(nn.Module, ABC):
    """A neck that reads all tokens of an input at once and may give others in their place, such as one for all."""

    @abstractmethod
    def on_tokens(self, tokens: Tokens) -> Tokens:
        """Return what prototypes are compared with, for the encoder's tokens."""

    def forward(self, values: Tensor) -> Tensor:
        """Return the values of :meth:`on_tokens` for bare values ``(B, S, D)``."""
        return self.on_tokens(Tokens(values)).values


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


def summarise(tokens: Tokens) -> Tensor:
    """Return one vector an input ``(B, D)``: the encoder's summary, or else the mean over real positions.

    An input without a real position has the mean 0.

    Examples
    --------
    >>> summarise(Tokens(torch.tensor([[[1.0], [3.0], [9.0]]]), mask=torch.tensor([[True, True, False]])))
    tensor([[2.]])
    """
    if tokens.summary is not None:
        return tokens.summary
    return whole_input(tokens).values[:, 0]


class WholeInput(Gathering):
    """One token for the whole input: the mean of its tokens, then layers.

    Examples
    --------
    >>> WholeInput(nn.Linear(4, 2)).on_tokens(Tokens(torch.zeros(3, 49, 4))).values.shape
    torch.Size([3, 1, 2])
    """

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def gather(self, tokens: Tokens) -> Tokens:
        """Return the one token before the layers."""
        return whole_input(tokens)

    def on_tokens(self, tokens: Tokens) -> Tokens:
        """Return ``(B, 1, D)``."""
        whole = self.gather(tokens)
        return whole.replace(values=self.layers(whole.values))


class Pooled(WholeInput):
    """As :class:`WholeInput`, of the encoder's summary where it gives one; see :func:`summarise`.

    The result keeps the vector before the layers as its summary; it has no place, as it is the whole input.

    Examples
    --------
    >>> Pooled(nn.Identity()).on_tokens(Tokens(torch.rand(2, 5, 3), grid=(5,))).values.shape
    torch.Size([2, 1, 3])
    """

    def gather(self, tokens: Tokens) -> Tokens:
        """Return the one token before the layers."""
        whole = summarise(tokens)
        return Tokens(whole.unsqueeze(1), summary=whole)


class Beside(Gathering):
    """Keep beside what prototypes are compared with another map of it, for terms that compare inputs with each other.

    Contrastive terms are commonly put on such a projection, which prediction then does without. It is kept in the
    tokens' extras as ``projection``, ``(B, E)``.

    Parameters
    ----------
    inner : WholeInput
        Gives one token an input.
    side : Module
        ``(B, D) -> (B, E)``.

    Examples
    --------
    >>> neck = Beside(Pooled(nn.Identity()), nn.Linear(4, 2))
    >>> tokens = neck.on_tokens(Tokens(torch.zeros(3, 49, 4)))
    >>> tokens.values.shape, tokens.extras["projection"].shape
    (torch.Size([3, 1, 4]), torch.Size([3, 2]))
    """

    def __init__(self, inner: WholeInput, side: nn.Module) -> None:
        super().__init__()
        self.inner, self.side = inner, side

    def on_tokens(self, tokens: Tokens) -> Tokens:
        """Return the inner neck's token, with the projection of it in extras."""
        whole = self.inner.on_tokens(tokens)
        return whole.replace(extras={**whole.extras, "projection": self.side(whole.values[:, 0])})


class DrawnCode(Gathering):
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


class Scaled(nn.Module):
    """Take a fixed centre off every coordinate and divide by a fixed scale; 0 and 1 at first.

    A squared distance then counts in units of that scale; the centre keeps the numbers small.

    Examples
    --------
    >>> Scaled(2)(torch.tensor([1.0, 2.0]))
    tensor([1., 2.])
    """

    centre: Tensor
    scale: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))

    def forward(self, values: Tensor) -> Tensor:
        """Return ``(..., D)``."""
        return (values - self.centre) / self.scale


def centred_unit(values: Tensor, mean: Tensor) -> Tensor:
    """Return values less a mean, scaled to unit length."""
    return nn.functional.normalize(values - mean, dim=-1)


class CentredUnit(nn.Module):
    """Take a fixed mean off, 0 at first, and scale to unit length."""

    mean: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))

    def forward(self, values: Tensor) -> Tensor:
        """Return ``(..., D)``."""
        return centred_unit(values, self.mean)


class UnitLength(nn.Module):
    """Scale each vector to unit length; a vector of zeros stays one.

    Examples
    --------
    >>> UnitLength()(torch.tensor([3.0, 4.0]))
    tensor([0.6000, 0.8000])
    """

    def forward(self, values: Tensor) -> Tensor:
        """Return ``(..., D)``."""
        return nn.functional.normalize(values, dim=-1)


class DiagonalMap(nn.Module):
    """Multiply each coordinate by ``sqrt(exp(a) + floor)``, ``a`` learned from 0: Mahalanobis, diagonal matrix."""

    def __init__(self, dim: int, floor: float = 1e-6, limit: float = 10.0) -> None:
        super().__init__()
        self.log = nn.Parameter(torch.zeros(dim))
        self.floor, self.limit = floor, limit

    def forward(self, values: Tensor) -> Tensor:
        """Return ``(..., D)``."""
        return values * (self.log.clamp(-self.limit, self.limit).exp() + self.floor).sqrt()


class TriangularMap(nn.Module):
    """Multiply by a lower triangle L with positive diagonal, learned from 0.1 I: Mahalanobis with ``L L'``."""

    def __init__(self, dim: int, start: float = 0.1, floor: float = 1e-6) -> None:
        super().__init__()
        self.free = nn.Parameter(start * torch.eye(dim))
        self.floor = floor

    def forward(self, values: Tensor) -> Tensor:
        """Return ``(..., D)``."""
        triangle = torch.tril(self.free, -1) + torch.diag(self.free.diagonal().clamp_min(self.floor))
        return values @ triangle
