"""A pool of prototypes that classes share: every class has slots, and a slot chooses a prototype from the pool.

Source: ProtoPool (Rymarczyk et al., ECCV 2022). A slot holds a distribution over the pool, drawn by Gumbel-softmax
while it is learned, and one prototype once it is settled. It compares how near its mixture of prototypes is at best
with how near it is on average, so that what is everywhere counts for nothing (focal similarity).
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from protolearn.core.heads import Head, move_columns, resize_to
from protolearn.core.matching import chunk_rows
from protolearn.core.similarities import ToSimilarity
from protolearn.structures import Output


def choose(
    scores: Tensor, scale: float | Tensor = 1.0, *, temperature: float = 0.5, noise: Tensor | None = None
) -> Tensor:
    """Return ``(C, P, K)``: how much of each prototype a slot holds; sums to 1 over the pool.

    Parameters
    ----------
    scores : Tensor
        ``(C, P, K)``, for K slots of every class.
    scale : float
        Of the scores against the noise: the larger, the more one prototype takes all.
    temperature : float
        Of the softmax.
    noise : Tensor, optional
        Draws from Gumbel's distribution, :func:`gumbel_noise`; none when nothing is to be explored.

    Examples
    --------
    >>> choose(torch.tensor([[[0.0], [1.0]]]), 20.0).round()
    tensor([[[0.],
             [1.]]])
    """
    return ((scores * scale + (0.0 if noise is None else noise)) / temperature).softmax(1)


def gumbel_noise(like: Tensor) -> Tensor:
    """Return draws from Gumbel's distribution, by the global random state."""
    return -torch.empty_like(like).exponential_().clamp_min(torch.finfo(like.dtype).tiny).log()


def rising_scale(epoch: int, epochs: int, stop: float) -> float:
    """Return the scale of the scores in an epoch counted from 1: ``stop * sqrt(epoch / epochs)``, then ``stop``.

    Examples
    --------
    >>> rising_scale(1, 4, 100.0), rising_scale(9, 4, 100.0)
    (50.0, 100.0)
    """
    return stop * math.sqrt(min(1.0, epoch / epochs)) if epochs else stop


def focal_similarity(nearest: Tensor, average: Tensor, chosen: Tensor, similarity: ToSimilarity) -> Tensor:
    """Return ``(B, C, K)``: similarity of a slot's mixed smallest distance, minus that of its mixed mean distance.

    Parameters
    ----------
    nearest, average : Tensor
        ``(B, P)`` distance to each prototype, smallest and mean over positions.
    chosen : Tensor
        ``(C, P, K)``; distances are mixed before they become similarities.
    similarity : callable
        From distance to similarity.

    Examples
    --------
    >>> from protolearn.core.similarities import Negative
    >>> one = torch.tensor([[[1.0], [0.0]]])
    >>> focal_similarity(torch.tensor([[1.0, 9.0]]), torch.tensor([[4.0, 9.0]]), one, Negative())
    tensor([[[3.]]])
    """
    return similarity(torch.einsum("bp,cpk->bck", nearest, chosen)) - similarity(
        torch.einsum("bp,cpk->bck", average, chosen)
    )


class SlotHead(Head):
    """Logits from focal similarities of slots; what a slot adds is divided among prototypes as the slot holds them.

    While slots choose, the last layer is held (no gradient reaches it); once they are settled, only it is learned.

    Parameters
    ----------
    scores : Tensor
        ``(C, P, K)`` of the slots.
    similarity : callable
        From distance to similarity.
    epochs : int
        In which the scale of the scores rises.
    stop : float
        What it rises to.
    temperature : float
        Of the softmax.

    Attributes
    ----------
    weight : Parameter
        ``(C, C K)``, slots of a class side by side: starts at 1 for a class's own slots, 0 for others.
    settled : Tensor
        bool: every slot holds one prototype, and ``scores`` is 1 there and 0 elsewhere.
    """

    reads: ClassVar[tuple[str, ...]] = ("evidence", "distances", "average")
    sized_apart = ("scores",)
    settled: Tensor
    done: Tensor
    scale: Tensor

    def __init__(
        self, scores: Tensor, similarity: ToSimilarity, *, epochs: int = 30, stop: float = 1e3, temperature: float = 0.5
    ) -> None:
        super().__init__()
        if scores.ndim != 3:
            raise ValueError(f"scores must be (C, P, K), got {tuple(scores.shape)}")
        classes, _, slots = scores.shape
        self.scores = nn.Parameter(scores.clone())
        self.weight = nn.Parameter(torch.eye(classes).repeat_interleave(slots, 1))
        self.similarity, self.epochs, self.stop, self.temperature = similarity, epochs, stop, temperature
        self.register_buffer("settled", torch.tensor(False))
        self.register_buffer("done", torch.tensor(0))
        self.register_buffer("scale", torch.tensor(rising_scale(1, epochs, stop)))
        self._drawn: Tensor | None = None

    @classmethod
    def random(
        cls,
        classes: int,
        pool: int,
        slots: int,
        similarity: ToSimilarity,
        *,
        generator: torch.Generator | None = None,
        **options: Any,
    ) -> SlotHead:
        """Start the scores from Xavier's normal distribution."""
        scores = nn.init.xavier_normal_(torch.empty(classes, pool, slots), generator=generator)
        return cls(scores, similarity, **options)

    @property
    def own_slots(self) -> Tensor:
        """``(C K, C)`` one-hot: the class of each slot."""
        classes, _, slots = self.scores.shape
        return torch.eye(classes, device=self.scores.device).repeat_interleave(slots, 0)

    @property
    def last_layer(self) -> Tensor:
        """The weight, without gradient while slots choose."""
        return self.weight if bool(self.settled) else self.weight.detach()

    @property
    def open_scores(self) -> Tensor:
        """The scores, without gradient once slots are settled."""
        return self.scores.detach() if bool(self.settled) else self.scores

    def chosen(self) -> Tensor:
        """Return ``(C, P, K)``: what the slots hold; in training what the latest forward pass has drawn."""
        if bool(self.settled):
            return self.scores.detach()
        if self.training and self._drawn is not None:
            return self._drawn
        return choose(self.scores, self.scale, temperature=self.temperature)

    # -- the path -------------------------------------------------------------------------------------------------

    def read(self, out: Output) -> Tensor:
        """Return logits ``(B, C)``."""
        self._drawn = None
        if self.training and not bool(self.settled):
            noise = gumbel_noise(self.scores)
            self._drawn = choose(self.scores, self.scale, temperature=self.temperature, noise=noise)
        return F.linear(self._similarities(out)[0].flatten(1), self.last_layer)

    def ledger(self, out: Output) -> Tensor:
        """Return ``(B, C, P)``: weight times similarity of every slot, divided as the slot holds the prototypes."""
        similarities, share = self._similarities(out)
        flat, held = similarities.flatten(1), share.transpose(1, 2).flatten(0, 1)  # (B, C K), (C K, P)
        rows = chunk_rows(flat.element_size() * self.weight.numel())
        parts = [(self.last_layer * flat[i : i + rows].unsqueeze(1)) @ held for i in range(0, len(flat), rows)]
        return torch.cat(parts) if parts else flat.new_zeros(0, self.weight.shape[0], held.shape[1])

    def _similarities(self, out: Output) -> tuple[Tensor, Tensor]:
        """Return ``(B, C, K)``, and ``(C, P, K)`` shares of what each slot still holds.

        A slot that holds a prototype which may not be used speaks that much more quietly, of the others alone.
        """
        assert out.distances is not None and out.average is not None, "the model computes what the head reads"
        usable, chosen = out.bank.usable, self.chosen()
        gone = (~usable).to(chosen).view(1, -1, 1)
        left = (1.0 - (chosen * gone).sum(1, keepdim=True)).clamp_min(0.0)
        share = torch.where(left > 1e-6, chosen * (1.0 - gone) / left.clamp_min(1e-6), 0.0)
        nearest, average = (d.masked_fill(~usable, 0.0) for d in (out.distances, out.average))
        nothing = nearest.isinf().any(1).view(-1, 1, 1)  # an input without a real position
        similarities = focal_similarity(nearest, average, share, self.similarity)
        alive = (left > 1e-6).to(chosen) * left
        return (similarities * alive.squeeze(1)).masked_fill(nothing, 0.0), share

    def forward(self, evidence: Tensor) -> Tensor:
        """Refuse: the evidence alone does not tell how near a prototype is on average."""
        raise TypeError("slots read smallest and mean distances: use read(output)")

    def contributions(self, evidence: Tensor) -> Tensor:
        """Refuse, see :meth:`forward`."""
        raise TypeError("slots read smallest and mean distances: use ledger(output)")

    def offset(self) -> Tensor:
        """Return zeros: there is no bias."""
        return self.weight.new_zeros(self.weight.shape[0])

    # -- slots ----------------------------------------------------------------------------------------------------

    def own(self, labels: Tensor, usable: Tensor) -> Tensor:
        """Return ``(B, P)`` bool: the K prototypes that the slots of each label's class hold most of; none for -1."""
        mass = self.chosen().detach().sum(2).masked_fill(~usable, -1.0)
        order = mass.argsort(dim=1, descending=True, stable=True)[:, : self.scores.shape[2]]
        held = torch.zeros_like(mass, dtype=torch.bool).scatter_(1, order, True) & usable
        return held[labels.clamp_min(0)] & (labels >= 0).unsqueeze(1)

    @torch.no_grad()
    def advance(self, steps: int) -> None:
        """Count a step of the optimiser; the scale rises with every epoch of ``steps``."""
        self.done += 1
        if not bool(self.settled) and int(self.done) % max(steps, 1) == 0:
            epoch = int(self.done) // max(steps, 1) + 1
            self.scale.fill_(rising_scale(epoch, self.epochs, self.stop))

    @torch.no_grad()
    def settle(self) -> Tensor:
        """Let every slot keep the prototype it holds most of; return ``(P, C)`` how many slots of a class hold each."""
        if not bool(self.settled):
            best = self.scores.argmax(1)
            self.scores.copy_(F.one_hot(best, self.scores.shape[1]).transpose(1, 2))
            self.settled.fill_(True)
        return self.scores.sum(2).T

    @torch.no_grad()
    def absorb(self, row: int, twins: Tensor) -> bool:
        """Give the slots of the twins to the one that stays; only once slots are settled."""
        if not bool(self.settled):
            return False
        columns = self.scores.data.transpose(1, 2)  # (C, K, P), the same memory
        move_columns(columns, row, twins)
        return True

    def keep(self, rows: Tensor) -> None:
        """Keep only these prototypes of the pool; a settled slot whose prototype goes holds none."""
        self.scores = nn.Parameter(self.scores.detach()[:, rows].clone(), requires_grad=self.scores.requires_grad)
        self._drawn = None

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        resize_to(self, state_dict, prefix, ("scores", "weight"))
        super()._load_from_state_dict(state_dict, prefix, *args)
