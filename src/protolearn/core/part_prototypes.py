"""What models of class-owned parts share: how they are put together, started from data, and scheduled."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from protolearn.core.bank import PrototypeBank
from protolearn.core.encoder import Encoder
from protolearn.core.heads import LinearEvidence
from protolearn.core.measures import squared_l2
from protolearn.core.method import Initialise, Phase, Project, Train
from protolearn.core.model import PrototypeModel
from protolearn.core.necks import NeckKind, make_neck
from protolearn.core.similarities import LogRatio, Negative
from protolearn.core.starts import fit_axes, real_values
from protolearn.core.updates import k_means
from protolearn.errors import UsageError
from protolearn.structures import Tokens


def part_model(
    encoder: Encoder,
    classes: int,
    *,
    prototypes_per_class: int,
    dim: int,
    neck: NeckKind = "regular",
    axes: int = 256,
    eps: float = 1e-4,
    similarity: Literal["log", "linear"] = "log",
    seed: int = 0,
) -> PrototypeModel:
    """Return a model whose logits are weighed similarities of each class's own parts.

    Source: ProtoPNet (Chen et al., 2019): squared distance, ``log((d + 1) / (d + eps))`` or ``-d``, a last layer that
    starts at 1 for the own class and -0.5 for the others, without bias.
    """
    if similarity not in ("log", "linear"):
        raise UsageError(f"similarity must be log or linear, got {similarity!r}")
    draw = torch.Generator().manual_seed(seed)
    layers = make_neck(neck, encoder.dim, dim, axes=axes, generator=draw)
    bank = PrototypeBank.per_class(classes, prototypes_per_class, dim, generator=draw)
    head = LinearEvidence.from_ownership(bank.ownership, own=1.0, other=-0.5)
    near = LogRatio(eps) if similarity == "log" else Negative()
    return PrototypeModel(encoder, layers, bank, squared_l2, head, similarity=near)


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
    fit_axes(model, batches)
    if prototypes == "uniform":
        return
    draw, owner = torch.Generator().manual_seed(seed), model.bank.owner()
    for label in range(model.bank.classes):
        own = torch.cat([real_values(model.embed(tokens.part(labels == label))) for tokens, labels in batches])
        own = nn.functional.normalize(own, dim=1) if directions else own
        rows = (owner == label).nonzero().squeeze(1)
        if len(own) >= len(rows):
            model.bank.vectors[rows] = k_means(own, len(rows), generator=draw).centres
    model.bank.constrain()


def interrupted_by_projection(
    warm: Train,
    joint: Train,
    last_layer: Train,
    project_at: Sequence[int],
    *,
    last: Literal["each", "final"] = "each",
    initialise: bool = False,
) -> list[Phase]:
    """Return warm epochs, then joint ones up to each of ``project_at``, where a projection and the last layer follow.

    Parameters
    ----------
    warm, joint, last_layer : Train
        The three kinds of training; the epochs of ``joint`` are set here.
    project_at : sequence of int
        Rising numbers of epochs of ``warm`` and ``joint`` together.
    last : {"each", "final"}
        Whether the last layer is trained after every projection or after the last one.
    initialise : bool
        Begin with a start from data.

    Examples
    --------
    >>> rates = {"prototypes": 1e-3}
    >>> phases = interrupted_by_projection(Train("warm", 5, rates), Train("joint", 1, rates),
    ...                                    Train("last_layer", 20, {"head": 1e-4}), (10, 30), last="final")
    >>> [(phase.name, getattr(phase, "epochs", None)) for phase in phases]
    [('warm', 5), ('joint', 5), ('projection', None), ('joint', 20), ('projection', None), ('last_layer', 20)]
    """
    plan: list[Phase] = [Initialise()] if initialise else []
    plan += [warm]
    done = warm.epochs
    for epoch in project_at:
        if epoch > done:
            plan.append(dataclasses.replace(joint, epochs=epoch - done))
            done = epoch
        plan += [Project()]
        if last == "each" or epoch == project_at[-1]:
            plan += [last_layer]
    return plan
