"""Prototypes that say the same, or nothing: one token twice, near-equal vectors, never used."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from protolearn.core.bank import PrototypeBank
from protolearn.core.matching import chunk_rows
from protolearn.core.measures import Distance, Measure


@dataclass(frozen=True)
class NearPair:
    """Two prototypes closer than is worth having two; ``value`` in the model's measure, ``usual`` the median pair."""

    left: int
    right: int
    value: float
    usual: float
    same_owner: bool


def same_source(bank: PrototypeBank) -> list[list[int]]:
    """Return groups of prototype ids that stand on one token of one case; being nearest to it is not standing on it.

    Examples
    --------
    >>> same_source(PrototypeBank(torch.eye(2), torch.eye(2)))
    []
    """
    groups: dict[tuple[str, int], list[int]] = {}
    for key, source, usable in zip(bank.ids.tolist(), bank.sources, bank.usable.tolist(), strict=True):
        if source is not None and source.moved and usable:
            groups.setdefault((source.content, source.position), []).append(key)
    return [group for group in groups.values() if len(group) > 1]


@torch.no_grad()
def near_pairs(bank: PrototypeBank, measure: Measure, share: float = 0.02, most: int = 200) -> list[NearPair]:
    """Return pairs of prototypes that the measure hardly tells apart, nearest first.

    For a distance: below ``share`` of the median distance between two prototypes. For a similarity: above the two
    prototypes' similarity to themselves less ``share`` of the gap down to the median pair.

    Parameters
    ----------
    bank : PrototypeBank
        Usable prototypes are compared.
    measure : Measure
        The model's own.
    share : float
        How near is too near.
    most : int
        At most so many pairs.
    """
    usable = bank.usable.nonzero().squeeze(1)
    if len(usable) < 2 or bank.drawn:
        return []
    vectors = bank.vectors.detach().float()[usable]
    ids, owners = bank.ids[usable].tolist(), bank.owner()[usable].tolist()
    own = measure.paired(vectors, vectors)
    sample = vectors[torch.linspace(0, len(vectors) - 1, min(len(vectors), 1000)).long()]
    table = measure.pairwise(sample, sample)
    off = table[~torch.eye(len(sample), dtype=torch.bool, device=table.device)]
    usual = float(off.median())
    found: list[tuple[float, int, int]] = []
    rows = chunk_rows(4 * len(vectors))
    for start in range(0, len(vectors), rows):
        part = measure.pairwise(vectors[start : start + rows], vectors)
        left, right = torch.nonzero(_too_near(part, own, start, usual, measure, share), as_tuple=True)
        left = left + start
        once = left < right
        left, right = left[once], right[once]
        exact = measure.paired(vectors[left], vectors[right])
        found += list(zip(exact.tolist(), left.tolist(), right.tolist(), strict=True))
    found.sort(key=lambda pair: pair[0] if isinstance(measure, Distance) else -pair[0])
    return [
        NearPair(ids[a], ids[b], value, usual, owners[a] == owners[b] and owners[a] >= 0)
        for value, a, b in found[:most]
    ]


def _too_near(part: Tensor, own: Tensor, start: int, usual: float, measure: Measure, share: float) -> Tensor:
    if isinstance(measure, Distance):
        return part <= share * usual
    self_similarity = torch.minimum(own[start : start + len(part)].unsqueeze(1), own.unsqueeze(0))
    return part >= self_similarity - share * (self_similarity - usual).clamp_min(0.0)


class Use:
    """How a model uses its prototypes, collected over batches.

    Attributes
    ----------
    cases : int
        Seen so far.
    mean, highest : Tensor
        ``(P,)`` evidence, mean and maximum over cases.
    leading, among : Tensor
        ``(P,)`` in how many cases the prototype's contribution to the predicted logit was the largest in absolute
        value, and among the five largest.
    """

    def __init__(self, count: int, top: int = 5) -> None:
        self.top = top
        self.cases = 0
        self._sum = torch.zeros(count, dtype=torch.float64)
        self.highest = torch.full((count,), float("-inf"))
        self.lowest = torch.full((count,), float("inf"))
        self.leading = torch.zeros(count, dtype=torch.long)
        self.among = torch.zeros(count, dtype=torch.long)

    def update(self, evidence: Tensor, contribution: Tensor, usable: Tensor) -> None:
        """Take in a batch: evidence and contributions to the predicted logit, both ``(B, P)``; ``usable (P,)``."""
        evidence, size = evidence.detach().cpu(), contribution.detach().abs().cpu()
        size = size.masked_fill(~usable.cpu(), -1.0)
        self.cases += len(evidence)
        self._sum += evidence.double().sum(0)
        self.highest = torch.maximum(self.highest, evidence.float().amax(0))
        self.lowest = torch.minimum(self.lowest, evidence.float().amin(0))
        best = size.topk(min(self.top, size.shape[1]), dim=1)
        taken = best.indices[best.values > 0]
        self.among += torch.bincount(taken, minlength=size.shape[1])
        first = best.indices[:, 0][best.values[:, 0] > 0]
        self.leading += torch.bincount(first, minlength=size.shape[1])

    @property
    def mean(self) -> Tensor:
        """``(P,)`` mean evidence."""
        return (self._sum / max(self.cases, 1)).float()

    def dead(self, bank: PrototypeBank, weight: Tensor | None = None) -> dict[int, str]:
        """Return prototype ids that bring nothing, and why.

        ``weight`` is the head's ``(C, P)`` table, where it has one.
        """
        reasons: dict[int, str] = {}
        for row, key in enumerate(bank.ids.tolist()):
            if not bool(bank.active[row]):
                reasons[key] = "inactive: it brings no evidence"
            elif bool(bank.banned[row]):
                reasons[key] = "banned by a person"
            elif weight is not None and float(weight.detach()[:, row].abs().max()) < 1e-6:
                reasons[key] = "no class gives it any weight"
            elif self.cases > 1 and float(self.highest[row]) - float(self.lowest[row]) < 1e-6:
                reasons[key] = "its evidence is the same in every case"
            elif self.cases and int(self.among[row]) == 0:
                reasons[key] = f"never among the {self.top} largest contributions to a prediction"
        return reasons
