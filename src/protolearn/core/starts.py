"""Where training may begin: axes and prototypes taken from the training tokens themselves."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from protolearn.core.necks import PrincipalAxes
from protolearn.core.updates import k_means
from protolearn.structures import Tokens

if TYPE_CHECKING:
    from protolearn.core.model import PrototypeModel

MOST_TOKENS = 20_000
"""How many tokens are clustered at most; they are drawn evenly from all."""


def real_values(tokens: Tokens) -> Tensor:
    """Return ``(N, D)``: the values of all cases and positions, without padding."""
    return tokens.values.flatten(0, 1) if tokens.mask is None else tokens.values[tokens.mask]


@torch.no_grad()
def fit_axes(model: PrototypeModel, batches: Iterable[tuple[Tokens, Tensor]]) -> None:
    """Fit the principal axes that a neck begins with, if it does."""
    if isinstance(model.neck, nn.Sequential) and len(model.neck) and isinstance(model.neck[0], PrincipalAxes):
        model.neck[0].fit(tokens for tokens, _ in batches)


@torch.no_grad()
def pool_on_tokens(model: PrototypeModel, batches: Iterable[tuple[Tokens, Tensor]], seed: int) -> None:
    """Put all prototypes, whatever class they serve, on the k-means centres of all training tokens.

    Left as they are where there are fewer tokens than prototypes.
    """
    every, draw = (
        torch.cat([real_values(model.embed(tokens)) for tokens, _ in batches]),
        torch.Generator().manual_seed(seed),
    )
    if len(every) > MOST_TOKENS:
        every = every[torch.randperm(len(every), generator=draw)[:MOST_TOKENS].to(every.device)]
    if len(every) >= len(model.bank):
        model.bank.vectors.copy_(k_means(every, len(model.bank), generator=draw).centres)
        model.bank.constrain()
