"""What models of class-owned parts share: how they are put together, started from data, and scheduled."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import torch

from protolearn.core.bank import PrototypeBank
from protolearn.core.encoder import Encoder
from protolearn.core.heads import LinearEvidence
from protolearn.core.measures import squared_l2
from protolearn.core.method import Coefficients, Initialise, Method, Phase, Project, Train, TrainingTokens
from protolearn.core.model import PrototypeModel
from protolearn.core.necks import NeckKind, make_neck
from protolearn.core.settings import at_least, rates_of, rising_epochs
from protolearn.core.similarities import LogRatio, Negative
from protolearn.core.starts import start_from_tokens


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


class PartMethod(Method):
    """A method whose classes own parts: warm epochs, joint ones with projections between them, the last layer alone.

    What is named here are settings that a page declares with its paper's values. Model and loss are the page's.
    """

    prototypes_per_class: int
    dim: int
    neck: NeckKind
    axes: int
    start: Literal["uniform", "k_means"]
    warm_epochs: int
    project_at: tuple[int, ...]
    last_layer: Literal["each", "final"]
    last_layer_epochs: int
    encoder_rate: float | None
    neck_rate: float
    prototype_rate: float
    head_rate: float
    weight_decay: float

    def __post_init__(self) -> None:
        """Refuse impossible settings."""
        super().__post_init__()
        at_least(self, 1, "prototypes_per_class", "dim")
        rising_epochs(self, "project_at")

    def initialise(self, model: PrototypeModel, batches: TrainingTokens, seed: int) -> None:
        """Fit the principal axes; then put each class's prototypes on the k-means centres of its own tokens."""
        start_from_tokens(model, batches, seed, prototypes=self.start)

    def warm_joint_last(
        self, *, weights: Coefficients | tuple[Coefficients, ...] | None = None, **joint: Any
    ) -> list[Phase]:
        """Return the schedule: warm with the encoder frozen, then joint up to each of ``project_at``.

        Parameters
        ----------
        weights : mapping, or tuple of mappings, optional
            Of every training, see :class:`~protolearn.core.method.Train`.
        **joint
            More of the joint training: how its rates fall, and so on.
        """
        rates = {"neck": self.neck_rate, "prototypes": self.prototype_rate}
        decay = {"encoder": self.weight_decay, "neck": self.weight_decay}
        joint_rates = rates_of(encoder=self.encoder_rate, **rates)
        return interrupted_by_projection(
            Train("warm", self.warm_epochs, rates, decay, weights=weights),
            Train("joint", 1, joint_rates, decay, weights=weights, **joint),
            Train("last_layer", self.last_layer_epochs, {"head": self.head_rate}, weights=weights),
            self.project_at,
            last=self.last_layer,
            initialise=self.neck == "principal" or self.start != "uniform",
        )


def part_model(
    method: PartMethod,
    encoder: Encoder,
    classes: int,
    seed: int,
    *,
    eps: float,
    similarity: Literal["log", "linear"] = "log",
) -> PrototypeModel:
    """Return a model whose logits are weighed similarities of each class's own parts.

    Source: ProtoPNet (Chen et al., 2019): squared distance, ``log((d + 1) / (d + eps))`` or ``-d``, a last layer that
    starts at 1 for the own class and -0.5 for the others, without bias.
    """
    draw = torch.Generator().manual_seed(seed)
    neck = make_neck(method.neck, encoder.dim, method.dim, axes=method.axes, generator=draw)
    bank = PrototypeBank.per_class(classes, method.prototypes_per_class, method.dim, generator=draw)
    head = LinearEvidence.from_ownership(bank.ownership, own=1.0, other=-0.5)
    return PrototypeModel(
        encoder, neck, bank, squared_l2, head, similarity=LogRatio(eps) if similarity == "log" else Negative()
    )
