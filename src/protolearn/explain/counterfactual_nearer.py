"""How much more alike to a prototype of another class an input would have to be for that class to be predicted.

Exact for heads that are linear in their evidence, with all other evidence as it is; see
:mod:`~protolearn.explain.counterfactual`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from protolearn.core.flips import change_needed
from protolearn.core.matching import chunk_rows
from protolearn.core.measures import Distance
from protolearn.core.model import PrototypeModel
from protolearn.core.pooling import max_pool
from protolearn.core.similarities import PerPrototype
from protolearn.explain.regions import Cells
from protolearn.structures import Box, Output, Source


@dataclass(frozen=True)
class Nearer:
    """One prototype of the other class, and how much more alike the case would have to be to it.

    Attributes
    ----------
    prototype : int
        Its id.
    source : Source or None
        The training case it comes from.
    similarity, evidence : float
        What it found in this case, and what the head weighs of it.
    distance : float or None
        The same as a distance, where the model measures one.
    region : Box or None
        Where, in pixels of the original picture.
    change : float or None
        Least rise of its evidence beyond which the other class is predicted. None: no rise does it, the head is not
        linear, or it does not count so little evidence at all.
    needed_distance : float or None
        The distance at which it would bring so much; None where the model measures none, or not even 0 would do.
    reachable : bool or None
        Whether any input can bring so much evidence of it; None where that is not known (or ``change`` is None).
    """

    prototype: int
    source: Source | None
    similarity: float
    evidence: float
    distance: float | None
    region: Box | None
    change: float | None
    needed_distance: float | None
    reachable: bool | None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        plain = dict(vars(self))
        plain["source"] = None if self.source is None else self.source.to_dict()
        return plain


def nearer_prototypes(
    model: PrototypeModel, out: Output, targets: Tensor, sizes: Sequence[tuple[int, int] | None], most: int
) -> list[tuple[Nearer, ...]]:
    """Return for each case up to ``most`` usable prototypes of a class ``(B,)``, the nearest first.

    Prototypes of a class are those it owns. Where prototypes belong to nobody, they are those whose weight is larger
    for the class than on average over classes. The model must be in eval mode; ``sizes`` are those of the pictures.
    """
    assert out.tokens is not None, "a whole pass keeps the tokens"
    bank, head, count = model.bank, model.head, min(most, len(model.bank))
    weights = head.per_unit(len(bank), bank.usable)
    best = out.similarities.masked_fill(~_members(model, weights, targets), float("-inf")).topk(count, dim=1)
    rows, real = best.indices, torch.isfinite(best.values)
    evidence = head.weighed(out.evidence).gather(1, rows).double()
    change = torch.full_like(evidence, float("nan"))
    if head.linear and weights is not None and count:
        chunk = chunk_rows(48 * weights.shape[0] * count)
        for i in range(0, len(rows), chunk):
            part = slice(i, i + chunk)
            change[part] = change_needed(out.logits[part], weights.T[rows[part]].transpose(1, 2), targets[part])
    needed = evidence + change
    change = torch.where(head.weighed(needed) == needed, change, float("nan"))  # too little to be counted at all
    distance, reachable = _where_reached(model, out, rows, evidence + change)
    cells = Cells(out.tokens, getattr(model.encoder, "preprocess", None))
    away = torch.full_like(evidence, float("nan")) if out.distances is None else out.distances.gather(1, rows).double()
    columns = (rows, best.values.double(), evidence, away, change, distance, reachable, out.positions.gather(1, rows))
    listed = [column.cpu().tolist() for column in columns]
    keys, there = bank.ids.tolist(), real.tolist()
    told = []
    for b in range(len(rows)):
        found = [tuple(column[b][k] for column in listed) for k in range(count) if there[b][k]]
        told.append(
            tuple(
                Nearer(
                    prototype=keys[row],
                    source=bank.sources[row],
                    similarity=similarity,
                    evidence=brought,
                    distance=_known(now),
                    region=cells.box(position, sizes[b]),
                    change=_known(more),
                    needed_distance=_known(then),
                    reachable=None if can < 0 else bool(can),
                )
                for row, similarity, brought, now, more, then, can, position in found
            )
        )
    return told


def _members(model: PrototypeModel, weights: Tensor | None, targets: Tensor) -> Tensor:
    owned = model.bank.owned_by(targets)
    if weights is None:
        return owned
    nobodys = model.bank.usable & (model.bank.ownership.sum(1) == 0)
    return owned | ((weights > weights.mean(0))[targets] & nobodys)


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _where_reached(model: PrototypeModel, out: Output, rows: Tensor, needed: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``(B, K)`` the distance at which prototypes bring so much evidence, and whether they can.

    The distance is NaN where it is not known or not even 0 would do; the second is 1, 0, or -1 where it is not known.
    """
    far, can = torch.full_like(needed, float("nan")), torch.full_like(rows, -1)
    asked = ~needed.isnan()
    if model.pooling is not max_pool or model.across is not None or not bool(asked.any()):
        return far, can
    if not isinstance(model.measure, Distance):
        if model.measure.name == "cosine":
            can = torch.where(asked, (needed <= 1.0).long(), can)
        return far, can
    assert out.distances is not None, "a distance was measured"
    chosen, wanted = rows[asked], needed[asked]
    similarity = model.similarity.of(chosen) if isinstance(model.similarity, PerPrototype) else model.similarity
    low, high = torch.zeros_like(wanted), out.distances.gather(1, rows)[asked].double()
    within = similarity(low) >= wanted
    for _ in range(80):  # the similarity falls with distance, so halving finds where it is what is wanted
        middle = (low + high) / 2
        enough = similarity(middle) >= wanted
        low, high = torch.where(enough, middle, low), torch.where(enough, high, middle)
    far[asked] = torch.where(within, low, float("nan"))
    can[asked] = within.long()
    return far, can
