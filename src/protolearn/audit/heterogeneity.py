"""Do the prototypes of a class say one thing: how far apart they are, and whether they go with the same outside labels.

The question and the test are those of :mod:`protolearn.audit.association`, whose caveat holds here too: the exact forms
are not verified against the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from protolearn.audit.association_result import Association
from protolearn.errors import UsageError


def intra_class_distance(vectors: Tensor, ownership: Tensor, usable: Tensor | None = None) -> Tensor:
    """Return ``(C,)`` float64: the mean of ``1 - cosine`` over pairs of prototypes of a class; NaN below two.

    Parameters
    ----------
    vectors : Tensor
        ``(P, D)``; a vector of zeros has cosine 0 with every other.
    ownership : Tensor
        ``(P, C)``; a shared prototype counts in each of its classes.
    usable : Tensor, optional
        ``(P,)`` bool: prototypes that count; all by default.

    Examples
    --------
    >>> vectors = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [2.0, 0.0]])
    >>> intra_class_distance(vectors, torch.tensor([[1, 0], [1, 0], [0, 1], [0, 1]])).tolist()
    [1.0, 0.0]
    """
    if vectors.ndim != 2 or ownership.ndim != 2 or len(vectors) != len(ownership):
        raise UsageError(
            f"expected vectors (P, D) and ownership (P, C), got {tuple(vectors.shape)} and {tuple(ownership.shape)}"
        )
    unit = torch.nn.functional.normalize(vectors.detach().double(), dim=1)
    member = (ownership > 0).to(unit)
    if usable is not None:
        member = member * usable.to(unit).unsqueeze(1)
    # the cosines of all pairs of a class sum to the squared length of its sum, less those with itself
    sums = member.T @ unit
    count = member.sum(0)
    pairs = sums.square().sum(1) - member.T @ unit.square().sum(1)
    distance = 1.0 - pairs / (count * (count - 1))
    return torch.where(count > 1, distance.clamp(0.0, 2.0), float("nan"))


@dataclass(frozen=True)
class Heterogeneity:
    """Classes whose prototypes differ in what they go with, compared with classes whose prototypes agree.

    Attributes
    ----------
    distance : dict of str to float
        Mean ``1 - cosine`` between the prototypes of each class that was compared.
    mixed, uniform : tuple of str
        Classes in which, for at least one outside label, some prototypes are significant and others are not; classes
        in which that never happens, because all are or none is.
    silent : tuple of str
        Those of ``uniform`` in which no prototype is significant for anything.
    statistic, p : float or None
        Mann and Whitney's U of the mixed classes' distances over the uniform ones', and its two-sided p-value; None
        where there is no class on one side.
    effect : float or None
        Chance that a mixed class has the larger distance of two drawn at random, ties counted half.
    note : str
        Why there is no test; empty where there is one.
    """

    distance: dict[str, float]
    mixed: tuple[str, ...]
    uniform: tuple[str, ...]
    silent: tuple[str, ...]
    statistic: float | None
    p: float | None
    effect: float | None
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in vars(self).items()}


def heterogeneity(
    rows: Sequence[Association], distance: Tensor, classes: Sequence[str], family: str = "prototype"
) -> Heterogeneity:
    """Compare the spread of classes with mixed and with uniform significance.

    Parameters
    ----------
    rows : sequence of Association
        Of prototypes, with their owner. Tests that are not estimable say nothing and are left out.
    distance : Tensor
        ``(C,)`` from :func:`intra_class_distance`; a class where it is NaN is left out.
    classes : sequence of str
        Names, in that order.
    family : str
        Which rows are those of prototypes.

    Examples
    --------
    >>> row = lambda p, s: Association("prototype", str(p), "cat", "", "sick", 9, 3, 2.0, (1.0, 3.0), 0.1, 0.1, s)
    >>> heterogeneity([row(0, True), row(1, False)], torch.tensor([0.4]), ["cat"]).mixed
    ('cat',)
    """
    said: dict[str, dict[str, list[bool]]] = {}
    for row in rows:
        if row.family == family and row.p is not None:
            said.setdefault(row.owner, {}).setdefault(row.label, []).append(row.significant)
    known = {name: float(value) for name, value in zip(classes, distance.tolist(), strict=True)}
    known = {name: value for name, value in known.items() if not np.isnan(value) and name in said}
    compared = {name: [each for each in said[name].values() if len(each) > 1] for name in known}
    mixed = tuple(name for name in known if any(any(each) and not all(each) for each in compared[name]))
    uniform = tuple(name for name in known if compared[name] and name not in mixed)
    silent = tuple(name for name in uniform if not any(any(each) for each in said[name].values()))
    told = {name: known[name] for name in (*mixed, *uniform)}
    if not mixed or not uniform:
        side = "mixed" if not mixed else "uniform"
        note = f"no class is {side} in significance (of {len(told)} with two or more prototypes): nothing to compare"
        return Heterogeneity(told, mixed, uniform, silent, None, None, None, note)
    from scipy.stats import mannwhitneyu

    found = mannwhitneyu([known[name] for name in mixed], [known[name] for name in uniform], alternative="two-sided")
    statistic = float(found.statistic)
    effect = statistic / (len(mixed) * len(uniform))
    return Heterogeneity(told, mixed, uniform, silent, statistic, float(found.pvalue), effect)
