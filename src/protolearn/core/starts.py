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


@torch.no_grad()
def class_centres(
    values: Tensor, count: int, *, generator: torch.Generator, weights: Tensor | None = None, iterations: int = 25
) -> Tensor:
    """Return at most ``count`` different centres ``(k, D)`` of the tokens ``(N, D)`` of one class, by k-means.

    One centre is the mean. A class with fewer tokens than asked for gets one centre for each different token.

    Parameters
    ----------
    values, count, generator, weights, iterations
        As for :func:`~protolearn.core.updates.k_means`.

    Examples
    --------
    >>> values = torch.tensor([[0.0], [2.0], [2.0]])
    >>> class_centres(values, 1, generator=torch.Generator()).flatten()
    tensor([1.3333])
    >>> class_centres(values, 5, generator=torch.Generator()).flatten().sort().values
    tensor([0., 2.])
    """
    if count > 1 and len(values) > 1:
        few = min(count, len(values))
        centres = k_means(values, few, generator=generator, weights=weights, iterations=iterations).centres
        return torch.unique(centres, dim=0) if len(values) <= 2 * count else centres
    if weights is None:
        return values.mean(0, keepdim=True)
    return ((weights / weights.sum()).to(values) @ values).unsqueeze(0)


@torch.no_grad()
def start_on_classes(model: PrototypeModel, batches: Iterable[tuple[Tokens, Tensor]], seed: int) -> None:
    """Put each class's prototypes on the k-means centres of its own embedded tokens.

    A prototype that is left over is made inactive: its class has fewer different tokens than prototypes, or none.
    """
    draw, owner = torch.Generator().manual_seed(seed), model.bank.owner()
    for label in range(model.bank.classes):
        own = [_real(model.embed(tokens), labels == label) for tokens, labels in batches]
        rows, tokens = (owner == label).nonzero().squeeze(1), torch.cat(own)
        if len(rows) == 0:
            continue
        centres = class_centres(tokens, len(rows), generator=draw) if len(tokens) else tokens
        model.bank.vectors[rows[: len(centres)]] = centres.to(model.bank.vectors)
        model.bank.active[rows[len(centres) :]] = False


def _real(tokens: Tokens, chosen: Tensor) -> Tensor:
    values = tokens.values[chosen]
    return values.flatten(0, 1) if tokens.mask is None else values[tokens.mask[chosen]]
