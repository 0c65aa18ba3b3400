"""A frozen vision transformer that is asked questions: learned prompts travel through its blocks beside the patches.

The prompts are the prototypes of a bank and not weights of the encoder, so its tokens depend on the bank and cannot be
cached. What a prompt looks at is the attention of its row in the last block.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from protolearn.core.bank import PrototypeBank
from protolearn.core.encoder import Encoder
from protolearn.encoders.image import ImageEncoder
from protolearn.errors import UsageError
from protolearn.structures import Tokens


class PromptedEncoder(Encoder):
    """Run prompts through the blocks of a timm vision transformer, whose own weights stay as they are.

    Parameters
    ----------
    inner : ImageEncoder
        Of one layer of a plain vision transformer; the blocks after that layer are not used.
    deep : bool
        True: every block has prompts of its own, put before its tokens and taken off behind it, except behind the last.
        False: one set enters the first block and stays.
    dropout : float
        Of the entries of prompts, while they are trained.
    drop_path : float
        How often the last block's branches are left out for a case, while prompts are trained; less in earlier blocks.

    Attributes
    ----------
    depth : int
        How many sets of prompts a bank must hold: its vectors are ``(P, depth * dim)``.
    patch : (int, int)
        Size of a patch in pixels.

    Raises
    ------
    UsageError
        If the encoder is no vision transformer of timm, or joins or smooths layers.

    Examples
    --------
    >>> small = ImageEncoder("vit_tiny_patch16_224", size=32, model_args={"depth": 2, "embed_dim": 12, "num_heads": 2})
    >>> encoder = PromptedEncoder(small)
    >>> bank = PrototypeBank(torch.rand(5, encoder.depth * encoder.dim), torch.eye(5))
    >>> tokens = encoder(torch.zeros(1, 3, 32, 32), bank)
    >>> tokens.values.shape, tokens.extras["prompts"].shape, tokens.extras["attention"].shape
    (torch.Size([1, 4, 12]), torch.Size([1, 5, 12]), torch.Size([1, 2, 5, 4]))
    """

    reads_bank = True

    def __init__(self, inner: Encoder, *, deep: bool = True, dropout: float = 0.0, drop_path: float = 0.0) -> None:
        super().__init__()
        reason = _unfit(inner)
        if reason is not None or not isinstance(inner, ImageEncoder):
            raise UsageError(f"prompts need a vision transformer of timm (encoder: image, name: vit_...), and {reason}")
        for name, value in (("dropout", dropout), ("drop_path", drop_path)):
            if not 0 <= value < 1:
                raise UsageError(f"{name} must lie in [0, 1), got {value}")
        self.inner = inner
        self.preprocess, self.dim = inner.preprocess, inner.dim
        self.deep, self.dropout = deep, dropout
        blocks = len(inner.net.blocks)
        self.depth = blocks if deep else 1
        self.patch: tuple[int, int] = tuple(inner.net.patch_embed.patch_size)
        self._drops: list[float] = torch.linspace(0, drop_path, blocks).tolist()

    def forward(  # type: ignore[override]  # what reads_bank says
        self, inputs: Tensor, bank: PrototypeBank, blurred: Tensor | None = None
    ) -> Tokens:
        """Return the patches, with ``extras``: the prompts at the end and what they attend to.

        Parameters
        ----------
        inputs : Tensor
            ``(B, 3, H, W)``.
        bank : PrototypeBank
            Its vectors are the prompts; its mode decides on dropout.
        blurred : Tensor, optional
            ``(P, heads)`` bool: where the attention logits of a prompt in the last block are set to 0, so that it
            attends to everything alike.

        Returns
        -------
        Tokens
            ``values (B, S, D)`` patches after the final norm; ``extras``: ``prompts (B, P, D)`` likewise, and
            ``attention (B, heads, P, S)``, the shares of a softmax over all tokens that fall on patches.
        """
        net, training = self.inner.net, bank.training
        if inputs.ndim != 4 or inputs.shape[1] != 3:
            raise UsageError(f"pictures must be (B, 3, H, W), got {tuple(inputs.shape)}")
        count = len(bank)
        sets = bank.vectors.view(count, self.depth, self.dim)
        x = net.norm_pre(net.patch_drop(net._pos_embed(net.patch_embed(inputs))))
        last = len(net.blocks) - 1
        for index, block in enumerate(net.blocks):
            if self.deep or index == 0:
                prompts = sets[:, index].expand(len(x), -1, -1)
                x = torch.cat([nn.functional.dropout(prompts, self.dropout, training), x], 1)
            drop = self._drops[index] if training else 0.0
            if index == last:
                x, shares = _attend(block, x, count, drop, blurred)
            else:
                x = x + _dropped(block.ls1(block.attn(block.norm1(x))), drop)
                x = x + _dropped(block.ls2(block.mlp(block.norm2(x))), drop)
                x = x[:, count:] if self.deep else x
        x = net.norm(x)
        first = count + int(net.num_prefix_tokens)
        grid = tuple(net.patch_embed.dynamic_feat_size(tuple(inputs.shape[-2:])))
        return Tokens(
            x[:, first:],
            grid=grid,
            input_size=(inputs.shape[-2], inputs.shape[-1]),
            summary=x[:, count] if net.cls_token is not None else None,
            extras={"prompts": x[:, :count], "attention": shares[..., first:]},
        )

    def tunable(self) -> list[nn.Parameter]:
        """Return nothing: the transformer is frozen whatever a phase says."""
        return []

    def train(self, mode: bool = True) -> PromptedEncoder:
        """Stay in eval mode."""
        super().train(False)
        return self

    def spec(self) -> dict[str, Any]:
        """Return the settings of the transformer inside: a method wraps it again."""
        return self.inner.spec()


def _unfit(encoder: Encoder) -> str | None:
    """Say why an encoder cannot take prompts, None if it can."""
    if not isinstance(encoder, ImageEncoder):
        return f"this is a {type(encoder).__name__}"
    from timm.models.vision_transformer import Attention, Block, VisionTransformer

    net = encoder.net
    if type(net) is not VisionTransformer:
        return f"{encoder.name} is none"
    if any(type(block) is not Block or type(block.attn) is not Attention for block in net.blocks):
        return f"the blocks of {encoder.name} are of another kind"
    if isinstance(encoder.layer, tuple) and len(encoder.layer) > 1:
        return "this one joins several layers"
    return None if encoder.smooth == 1 else "this one smooths its tokens"


def _attend(block: Any, x: Tensor, count: int, drop: float, blurred: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return what a block makes of tokens, and the attention ``(B, heads, count, S)`` of the first ``count``."""
    attn, y = block.attn, block.norm1(x)
    b, s, _ = y.shape
    q, k, v = attn.qkv(y).reshape(b, s, 3, attn.num_heads, attn.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
    logits = (attn.q_norm(q) * attn.scale) @ attn.k_norm(k).transpose(-2, -1)
    if blurred is not None:
        even = torch.zeros(attn.num_heads, s, 1, dtype=torch.bool, device=x.device)
        even[:, :count, 0] = blurred.T.to(x.device)
        logits = logits.masked_fill(even, 0.0)
    shares = logits.softmax(-1)
    mixed = attn.norm((shares @ v).transpose(1, 2).reshape(b, s, -1))
    if attn.gate is not None:
        mixed = mixed * attn.gate(y).sigmoid()
    x = x + _dropped(block.ls1(attn.proj(mixed)), drop)
    return x + _dropped(block.ls2(block.mlp(block.norm2(x))), drop), shares[:, :, :count]


def _dropped(branch: Tensor, drop: float) -> Tensor:
    """Return a branch with the cases left out that a draw chooses, the others made larger to match."""
    if drop == 0.0:
        return branch
    kept = torch.rand(len(branch), 1, 1, device=branch.device) >= drop
    return branch * kept / (1.0 - drop)


def mean_attention(tokens: Tokens) -> Tensor:
    """Return ``(B, S, P)``: the share of each prompt's attention that falls on each patch, averaged over heads."""
    return tokens.extras["attention"].mean(1).transpose(1, 2)
