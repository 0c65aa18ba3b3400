"""Where training may begin: axes and prototypes taken from the training tokens themselves."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from protolearn.core.discovery import class_means, seeded_k_means
from protolearn.core.gathering import Scaled, WholeInput
from protolearn.core.measures import squared_l2
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
def fit_axes(neck: nn.Module, batches: Iterable[tuple[Tokens, Tensor]]) -> None:
    """Fit the principal axes in a neck to what it makes them of, tokens or whole inputs; once, and none is no error."""
    whole = next((module for module in neck.modules() if isinstance(module, WholeInput)), None)
    for module in neck.modules():
        if isinstance(module, PrincipalAxes) and not module.fitted:
            module.fit(tokens if whole is None else whole.gather(tokens) for tokens, _ in batches)


@torch.no_grad()
def labelled_tokens(model: PrototypeModel, batches: Iterable[tuple[Tokens, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return all embedded tokens ``(N, D)``, without padding, and ``(N,)`` the label of the case of each."""
    seen = [(model.embed(tokens), labels) for tokens, labels in batches]
    owner = [labels.unsqueeze(1).expand(tokens.values.shape[:2]) for tokens, labels in seen]
    real = [
        rows.flatten() if tokens.mask is None else rows[tokens.mask]
        for (tokens, _), rows in zip(seen, owner, strict=True)
    ]
    return torch.cat([real_values(tokens) for tokens, _ in seen]), torch.cat(real)


@torch.no_grad()
def tokens_of_class(model: PrototypeModel, batches: Iterable[tuple[Tokens, Tensor]], label: int) -> Tensor:
    """Return the embedded tokens ``(N, D)`` of the cases of one class; only those are embedded."""
    return torch.cat([real_values(model.embed(tokens.part(labels == label))) for tokens, labels in batches])


@torch.no_grad()
def start_pool(model: PrototypeModel, batches: Iterable[tuple[Tokens, Tensor]], seed: int, *, prototypes: str) -> None:
    """Fit a principal neck, if there is one; with ``k_means`` put all prototypes on centres of all tokens."""
    fit_axes(model.neck, batches)
    if prototypes == "k_means":
        pool_on_tokens(model, batches, seed)


@torch.no_grad()
def start_from_tokens(
    model: PrototypeModel,
    batches: Iterable[tuple[Tokens, Tensor]],
    seed: int,
    *,
    prototypes: Literal["uniform", "k_means"] = "k_means",
    directions: bool = False,
) -> None:
    """Fit a principal neck, if there is one; then put each class's prototypes on k-means centres of its own tokens.

    With ``uniform`` prototypes stay where they are. A class with fewer tokens than prototypes keeps its own. With
    ``directions`` tokens are brought to unit length before they are clustered.
    """
    fit_axes(model.neck, batches)
    if prototypes == "uniform":
        return
    draw, owner = torch.Generator().manual_seed(seed), model.bank.owner()
    for label in range(model.bank.classes):
        own = tokens_of_class(model, batches, label)
        own = nn.functional.normalize(own, dim=1) if directions else own
        rows = (owner == label).nonzero().squeeze(1)
        if len(own) >= len(rows):
            model.bank.vectors[rows] = k_means(own, len(rows), generator=draw).centres
    model.bank.constrain()


@torch.no_grad()
def centre_inputs(model: PrototypeModel, batches: Iterable[tuple[Tokens, Tensor]]) -> None:
    """Set the centre of a neck that has one (:class:`~protolearn.core.gathering.Scaled`) to the mean of its inputs."""
    whole = next((module for module in model.neck.modules() if isinstance(module, WholeInput)), None)
    for module in model.neck.modules():
        if isinstance(module, Scaled):
            each = [real_values(tokens if whole is None else whole.gather(tokens)) for tokens, _ in batches]
            module.centre.copy_(torch.cat(each).double().mean(0))


@torch.no_grad()
def start_beside_known(
    model: PrototypeModel, batches: Iterable[tuple[Tokens, Tensor]], seed: int, *, new: Literal["stay", "k_means"]
) -> None:
    """Put the prototype of each class that has labelled cases on the mean direction of those.

    For models with one prototype a class and one token an input. Classes without a labelled case are new: their
    prototypes stay as they were drawn, or go to the further centres of semi-supervised k-means over all cases.
    """
    values, labels = labelled_tokens(model, batches)
    values = nn.functional.normalize(values, dim=1)
    if new == "k_means":
        draw = torch.Generator().manual_seed(seed)
        found = seeded_k_means(values, labels, model.bank.classes, generator=draw)
        centres, classes = found.centres, found.classes
        taken = torch.zeros(model.bank.classes, dtype=torch.bool, device=values.device)
        taken[classes[classes >= 0]] = True
        classes = torch.where(classes >= 0, classes, -1).masked_scatter(classes < 0, (~taken).nonzero().squeeze(1))
    else:
        centres, classes = class_means(values, labels)
    rows = model.bank.ownership.argmax(0)[classes]
    model.bank.vectors[rows] = centres.to(model.bank.vectors)
    model.bank.constrain()


@torch.no_grad()
def pool_on_tokens(model: PrototypeModel, batches: Iterable[tuple[Tokens, Tensor]], seed: int) -> None:
    """Put all prototypes, whatever class they serve, on the k-means centres of all training tokens.

    Left as they are where there are fewer tokens than prototypes.
    """
    every, draw = labelled_tokens(model, batches)[0], torch.Generator().manual_seed(seed)
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

    One centre is the mean. A class with fewer different tokens than asked for gets one centre for each. The result does
    not depend on the order of the tokens, and a whole weight is as good as so many repetitions.

    Parameters
    ----------
    values, count, generator, weights, iterations
        As for :func:`~protolearn.core.updates.k_means`.

    Examples
    --------
    >>> values = torch.tensor([[0.0], [2.0], [2.0]])
    >>> class_centres(values, 1, generator=torch.Generator()).flatten()
    tensor([1.3333])
    >>> class_centres(values, 5, generator=torch.Generator()).flatten()
    tensor([0., 2.])
    """
    if count == 1:
        if weights is None:
            return values.mean(0, keepdim=True)
        return ((weights / weights.sum()).to(values) @ values).unsqueeze(0)
    # different tokens in the order of their values, each with how often it counts: draws cannot see order or repetition
    different: Tensor
    place: Tensor
    different, place = torch.unique(values, dim=0, return_inverse=True)
    often = torch.ones_like(values[:, 0]) if weights is None else weights.to(values)
    often = torch.zeros_like(different[:, 0]).index_add_(0, place, often)
    if len(different) <= count:
        return different
    return k_means(different, count, generator=generator, weights=often, iterations=iterations).centres


@torch.no_grad()
def start_on_classes(model: PrototypeModel, batches: Iterable[tuple[Tokens, Tensor]], seed: int) -> None:
    """Put each class's prototypes on the k-means centres of its own embedded tokens.

    A prototype that is left over is made inactive: its class has fewer different tokens than prototypes, or none.
    """
    draw, owner = torch.Generator().manual_seed(seed), model.bank.owner()
    for label in range(model.bank.classes):
        own = [real_values(model.embed(tokens).part(labels == label)) for tokens, labels in batches]
        rows, tokens = (owner == label).nonzero().squeeze(1), torch.cat(own)
        if len(rows) == 0:
            continue
        centres = class_centres(tokens, len(rows), generator=draw) if len(tokens) else tokens
        model.bank.vectors[rows[: len(centres)]] = centres.to(model.bank.vectors)
        model.bank.active[rows[len(centres) :]] = False


@torch.no_grad()
def neighbour_widths(centres: Tensor, count: int = 2) -> Tensor:
    """Return ``(P,)`` for each centre the mean squared distance to its nearest other centres, ``count`` of them.

    Centres that lie on each other get the mean width of all, and 1 where there is none.

    Source: widths by the nearest neighbours (Moody and Darken, 1989).

    Examples
    --------
    >>> neighbour_widths(torch.tensor([[0.0], [1.0], [3.0]]), 1)
    tensor([1., 1., 4.])
    """
    table = squared_l2.pairwise(centres, centres)
    table.fill_diagonal_(float("inf"))
    few = min(count, len(centres) - 1)
    widths = table.topk(few, largest=False).values.mean(1) if few else torch.zeros_like(centres[:, 0])
    apart = widths[widths > 0]
    return widths.where(widths > 0, apart.mean() if len(apart) else 1.0)
