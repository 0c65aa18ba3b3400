"""INP-Former: prototypes of normality drawn from the picture itself, and a decoder that may mix only those.

Source: Exploring Intrinsic Normal Prototypes within a Single Image for Universal Anomaly Detection (Luo et al., 2025).
What cannot be rebuilt from the picture's own prototypes is foreign. B batch, N patches, D width, M prototypes, G groups
of layers (2), L layers.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from protolearn.core.anomaly_maps import cosine_gap


def coherence(tokens: Tensor, prototypes: Tensor) -> tuple[Tensor, Tensor]:
    """Return each token's smallest ``1 - cosine`` to the prototypes of its own picture, and which that is.

    The coherence loss is the mean of the first.

    Parameters
    ----------
    tokens : Tensor
        ``(B, N, D)``.
    prototypes : Tensor
        ``(B, M, D)``.

    Returns
    -------
    distances, prototypes : Tensor
        ``(B, N)`` each.

    Examples
    --------
    >>> coherence(torch.tensor([[[1.0, 0.0], [0.0, 3.0]]]), torch.eye(2).unsqueeze(0))[1]
    tensor([[0, 1]])
    """
    table = 1 - F.normalize(tokens, dim=-1) @ F.normalize(prototypes, dim=-1).transpose(1, 2)
    found = table.min(2)
    return found.values, found.indices


def soft_mining_loss(wanted: Tensor, decoded: Tensor, gamma: float = 3.0, eps: float = 1e-12) -> Tensor:
    """Return the reconstruction loss whose gradient leans on the tokens that are rebuilt worst.

    The value is the mean over groups and pictures of ``1 - cosine`` of the whole flattened maps, whatever ``gamma``.
    The gradient that reaches the token of one place is multiplied by ``(d / mean d) ** gamma``, where ``d`` is the
    token's own ``1 - cosine`` and the mean runs over all pictures and places of the group.

    Parameters
    ----------
    wanted, decoded : Tensor
        ``(G, B, N, D)``; no gradient flows to ``wanted``.
    gamma : float
        0 = the plain loss.
    eps : float
        Least mean, so that a perfect reconstruction has a finite gradient.

    Examples
    --------
    >>> one = torch.tensor([[[[1.0, 0.0], [0.0, 1.0]]]])
    >>> soft_mining_loss(one, one.flip(-1))
    tensor(1.)
    """
    if wanted.shape != decoded.shape or wanted.ndim != 4:
        raise ValueError(f"both maps must be (G, B, N, D), got {tuple(wanted.shape)} and {tuple(decoded.shape)}")
    wanted = wanted.detach()
    with torch.no_grad():
        gaps = cosine_gap(wanted, decoded).clamp_min(0.0)  # rounding
        factor = (gaps / gaps.mean((1, 2), keepdim=True).clamp_min(eps)).pow(gamma).unsqueeze(-1)
    mined: Tensor = _Scaled.apply(decoded, factor)
    return cosine_gap(wanted.flatten(2), mined.flatten(2)).mean()


class _Scaled(torch.autograd.Function):
    """The input itself, whose gradient is multiplied."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, values: Tensor, factor: Tensor) -> Tensor:
        ctx.save_for_backward(factor)
        return values.view_as(values)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, incoming: Tensor) -> tuple[Tensor, None]:
        (factor,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return incoming * factor, None


class _Attending(nn.Module):
    """What extractor and decoder share: one layer norm for who asks and who is asked, heads, and a small network."""

    def __init__(self, dim: int, heads: int, ratio: float) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"{heads} heads cannot share a width of {dim}")
        self.heads = heads
        self.norm = nn.LayerNorm(dim, eps=1e-8)
        self.query, self.key_value, self.out = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        self.norm_after = nn.LayerNorm(dim, eps=1e-8)
        self.mlp = feed_forward(dim, ratio)

    def asked(self, asking: Tensor, asked: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, ``(B, heads, tokens, D / heads)`` each."""
        q = self.query(self.norm(asking))
        k, v = self.key_value(self.norm(asked)).chunk(2, -1)
        split = tuple(x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (q, k, v))
        return split[0], split[1], split[2]

    def joined(self, heads: Tensor) -> Tensor:
        """Return what the heads found, joined and projected."""
        out: Tensor = self.out(heads.transpose(1, 2).flatten(2))
        return out

    def refined(self, values: Tensor) -> Tensor:
        """Return values with the small network's answer added."""
        added: Tensor = self.mlp(self.norm_after(values))
        return values + added


def feed_forward(dim: int, ratio: float = 4.0) -> nn.Sequential:
    """Return two linear layers with a GELU between, ``ratio`` times as wide inside."""
    inner = int(dim * ratio)
    return nn.Sequential(nn.Linear(dim, inner), nn.GELU(), nn.Linear(inner, dim))


class PrototypeExtractor(_Attending):
    """Intrinsic normal prototypes: learned tokens ask the patches of a picture by cross-attention.

    Parameters
    ----------
    dim, heads : int
        Width, and how many heads share it.
    ratio : float
        How much wider the small network is inside.

    Examples
    --------
    >>> PrototypeExtractor(8, 2)(torch.randn(3, 8), torch.randn(2, 5, 8)).shape
    torch.Size([2, 3, 8])
    """

    def __init__(self, dim: int, heads: int, ratio: float = 4.0) -> None:
        super().__init__(dim, heads, ratio)

    def forward(self, asking: Tensor, tokens: Tensor) -> Tensor:
        """Return prototypes ``(B, M, D)`` of patches ``(B, N, D)``, asked by learned tokens ``(M, D)``."""
        asking = asking.expand(len(tokens), -1, -1)
        attended = F.scaled_dot_product_attention(*self.asked(asking, tokens))
        return self.refined(asking + self.joined(attended))


class PrototypeDecoder(_Attending):
    """A block whose output is a mixture of the picture's prototypes, with weights that are not negative.

    There is no way around the attention: what a token was enters through its query only, so that a foreign token cannot
    be handed through.

    Parameters
    ----------
    dim, heads, ratio
        As for :class:`PrototypeExtractor`.

    Examples
    --------
    >>> PrototypeDecoder(8, 2)(torch.randn(2, 5, 8), torch.randn(2, 3, 8)).shape
    torch.Size([2, 5, 8])
    """

    def __init__(self, dim: int, heads: int, ratio: float = 4.0) -> None:
        super().__init__(dim, heads, ratio)
        self.scale = nn.Parameter(torch.ones(heads))

    def weights(self, tokens: Tensor, prototypes: Tensor) -> Tensor:
        """Return ``(B, heads, N, M)``: how much of each prototype a token gets; not normalised."""
        return self._mixed(tokens, prototypes)[0]

    def forward(self, tokens: Tensor, prototypes: Tensor) -> Tensor:
        """Return ``(B, N, D)``."""
        weights, values = self._mixed(tokens, prototypes)
        return self.refined(self.joined(weights @ values))

    def _mixed(self, tokens: Tensor, prototypes: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = self.asked(tokens, prototypes)
        cosines = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(2, 3)
        return F.relu(self.scale.view(-1, 1, 1) * cosines), v


class Rebuilt(NamedTuple):
    """What INP-Former makes of some pictures."""

    tokens: Tensor
    """``(B, N, D)``: the mean over layers, of which the prototypes are."""
    prototypes: Tensor
    """``(B, M, D)``."""
    groups: Tensor
    """``(G, B, N, D)``: layer groups as rebuilt."""


class InpFormer(nn.Module):
    """Everything that INP-Former trains: learned tokens, extractor, bottleneck and decoder.

    Parameters
    ----------
    dim, heads : int
        Width of the frozen transformer's tokens, and its heads.
    layers : int
        How many layers are rebuilt, an even number; as many decoder blocks.
    prototypes : int
        M.
    generator : torch.Generator, optional
        Draws the weights: linear ones from a normal law of standard deviation 0.01 cut at three of them, learned tokens
        from the standard normal law.

    Examples
    --------
    >>> rebuilt = InpFormer(8, 2, layers=2, prototypes=3)(torch.randn(2, 4, 5, 8))
    >>> rebuilt.prototypes.shape, rebuilt.groups.shape
    (torch.Size([4, 3, 8]), torch.Size([2, 4, 5, 8]))
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        layers: int = 8,
        prototypes: int = 6,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if layers < 2 or layers % 2:
            raise ValueError(f"layers are rebuilt in two groups of the same size: an even number, got {layers}")
        if prototypes < 1:
            raise ValueError(f"there must be at least one prototype, got {prototypes}")
        self.learned = nn.Parameter(torch.randn(prototypes, dim, generator=generator))
        self.extractor = PrototypeExtractor(dim, heads)
        self.bottleneck = feed_forward(dim)
        self.decoder = nn.ModuleList(PrototypeDecoder(dim, heads) for _ in range(layers))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.01, a=-0.03, b=0.03, generator=generator)
                nn.init.zeros_(module.bias)

    def forward(self, groups: Tensor) -> Rebuilt:
        """Return what is rebuilt from the means of both groups of layers ``(G, B, N, D)``."""
        tokens = groups.mean(0)
        prototypes = self.extractor(self.learned, tokens)
        values, each = self.bottleneck(tokens), []
        for block in self.decoder:
            values = block(values, prototypes)
            each.append(values)
        deepest_first = torch.stack(each[::-1])  # the last block rebuilds the first layer
        return Rebuilt(tokens, prototypes, deepest_first.view(2, -1, *values.shape).mean(1))

    def loss(self, groups: Tensor, *, gamma: float = 3.0, coherence_weight: float = 0.2) -> Tensor:
        """Return the training loss: soft mining plus the weighed coherence of the prototypes."""
        rebuilt = self(groups)
        near = coherence(rebuilt.tokens, rebuilt.prototypes)[0].mean()
        return soft_mining_loss(groups, rebuilt.groups, gamma) + coherence_weight * near


def layer_groups(maps: list[Tensor]) -> Tensor:
    """Return ``(2, B, N, D)``: the means of the first and the second half of layers ``(B, D, h, w)``.

    Examples
    --------
    >>> layer_groups([torch.zeros(1, 3, 2, 2), torch.ones(1, 3, 2, 2)]).mean((1, 2, 3))
    tensor([0., 1.])
    """
    if len(maps) < 2 or len(maps) % 2 or len({tuple(one.shape) for one in maps}) > 1:
        raise ValueError("groups are made of an even number of layers with maps of one shape")
    stacked = torch.stack(maps).flatten(3).transpose(2, 3)
    return stacked.view(2, -1, *stacked.shape[1:]).mean(1)
