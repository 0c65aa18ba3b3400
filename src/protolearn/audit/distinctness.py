"""Do prototypes say different things? Angles and correlations between them, and equal profiles of importance.

P prototypes, D width, C classes. A prototype without a direction (length 0, evidence that never changes) is told apart
from nothing and is left out by its caller.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from protolearn.core.matching import chunk_rows
from protolearn.errors import UsageError


@dataclass(frozen=True, eq=False)
class Likeness:
    """Cosines between n prototypes, the diagonal left out.

    Attributes
    ----------
    mean, largest : Tensor
        ``(n,)`` float64 with all others; NaN for a prototype that is alone.
    twin : Tensor
        ``(n,)`` int64 which other is the likest, the first of equals; -1 for one that is alone.
    within, across : (float, float) or None
        Mean and largest over pairs that share a class, and over pairs of owned prototypes that share none; None where
        there is no such pair.
    pairs_within, pairs_across : int
        How many pairs those are.
    """

    mean: Tensor
    largest: Tensor
    twin: Tensor
    within: tuple[float, float] | None
    across: tuple[float, float] | None
    pairs_within: int
    pairs_across: int


def likeness(units: Tensor, ownership: Tensor) -> Likeness:
    """Compare every prototype with every other, a chunk of the table at a time.

    Parameters
    ----------
    units : Tensor
        ``(n, D)`` rows of length 1.
    ownership : Tensor
        ``(n, C)`` weights of membership.

    Examples
    --------
    >>> found = likeness(torch.eye(3)[[0, 0, 1]].double(), torch.eye(2)[[0, 0, 1]])
    >>> found.within, found.across, found.twin.tolist()
    ((1.0, 1.0), (0.0, 0.0), [1, 0, 0])
    """
    count = len(units)
    member = (ownership.detach().cpu() > 0).float()
    owned = member.any(1) if member.shape[1] else torch.zeros(count, dtype=torch.bool)
    total, largest = torch.zeros(count, dtype=torch.float64), torch.full((count,), float("nan"), dtype=torch.float64)
    twin = torch.full((count,), -1, dtype=torch.long)
    sums, tops, pairs = [0.0, 0.0], [float("-inf")] * 2, [0, 0]
    rows = chunk_rows(32 * count)
    for start in range(0, count if count > 1 else 0, rows):
        part = slice(start, start + rows)
        table = units[part] @ units.T
        here = torch.arange(len(table))
        table[here, start + here] = 0.0
        total[part] = table.sum(1)
        table[here, start + here] = float("-inf")
        best = table.max(1)
        largest[part], twin[part] = best.values, best.indices
        together = member[part] @ member.T > 0
        apart = owned[part].unsqueeze(1) & owned & ~together
        together[here, start + here] = False
        for k, chosen in enumerate((together, apart)):
            values = table[chosen]
            if len(values):
                sums[k] += float(values.sum())
                tops[k] = max(tops[k], float(values.max()))
                pairs[k] += len(values)
    found = [None if n == 0 else (s / n, top) for s, top, n in zip(sums, tops, pairs, strict=True)]
    mean = total / (count - 1) if count > 1 else torch.full((count,), float("nan"), dtype=torch.float64)
    return Likeness(mean, largest, twin, found[0], found[1], pairs[0] // 2, pairs[1] // 2)


def mean_over_pairs(units: Tensor, weights: Tensor) -> Tensor:
    """Return ``(R,)`` mean cosine over pairs of different prototypes, each counted as often as its weight says.

    Parameters
    ----------
    units : Tensor
        ``(n, D)`` rows of length 1.
    weights : Tensor
        ``(R, n)``, as a bootstrap draws them.

    Examples
    --------
    >>> mean_over_pairs(torch.eye(2)[[0, 0, 1]].double(), torch.ones(1, 3, dtype=torch.float64))
    tensor([0.3333], dtype=torch.float64)
    """
    itself = weights.square().sum(1)
    pairs = weights.sum(1).square() - itself
    # NaN where a draw holds one prototype only
    return ((weights @ units).square().sum(1) - itself) / pairs.where(pairs > 0, float("nan"))


def mean_squared_distance(vectors: Tensor) -> float | None:
    """Return the mean of ``|p - q|^2`` over all ordered pairs, a prototype with itself included; None without any.

    Source: what ProtoPNet's training logs. It is twice the mean squared distance to the centre.

    Examples
    --------
    >>> mean_squared_distance(torch.tensor([[0.0], [2.0]]))
    2.0
    """
    rows = vectors.detach().cpu().double()
    return 2.0 * float((rows - rows.mean(0)).square().sum(1).mean()) if len(rows) else None


def orthogonality(units: Tensor, member: Tensor) -> tuple[Tensor, Tensor]:
    """Return how far the prototypes of each class are from orthogonal: ``|P_c P_c^T - I|``, entries added up.

    Source: the orthogonality term of EvalProtoPNet and ST-ProtoPNet, whose prototypes have length 1.

    Parameters
    ----------
    units : Tensor
        ``(P, D)`` rows of length 1.
    member : Tensor
        ``(P, C)`` bool.

    Returns
    -------
    per_class, per_prototype : Tensor
        ``(C,)`` and ``(P,)``: the sum over the class's table, and each row's part of it, over all its classes.

    Examples
    --------
    >>> per_class, _ = orthogonality(torch.eye(3)[[0, 1, 2, 2]].double(), torch.eye(2)[[0, 0, 1, 1]] > 0)
    >>> per_class.tolist()
    [0.0, 2.0]
    """
    each = torch.zeros(len(units), dtype=torch.float64)
    per_class = torch.zeros(member.shape[1], dtype=torch.float64)
    for c, inside in enumerate(member.T):
        rows = inside.nonzero().squeeze(1)
        for part in rows.split(chunk_rows(8 * max(1, len(rows)))):
            table = (units[part] @ units[rows].T - (part.unsqueeze(1) == rows).double()).abs()
            each[part] += table.sum(1)
            per_class[c] += table.sum()
    return per_class, each


def equal_profiles(importance: Tensor, tolerance: float = 0.05) -> tuple[Tensor, Tensor]:
    """Return pairs of prototypes for which the same visual characteristics matter as much, the most equal first.

    Each characteristic is divided by its mean size over prototypes, because alterations differ in strength; the gap of
    a pair is the largest difference over characteristics. Equal profiles with near vectors or maps are duplicates;
    equal profiles alone say that two prototypes look at the same kind of thing. The rule is ours: the source compares
    by eye.

    Parameters
    ----------
    importance : Tensor
        ``(P, M)`` importance of M characteristics, as the global importances of ``explain.characteristics``.
    tolerance : float
        Largest gap, in units of the usual importance.

    Returns
    -------
    pairs, gaps : Tensor
        ``(n, 2)`` int64, the lower row first, and ``(n,)``.

    Examples
    --------
    >>> equal_profiles(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.01]]))[0].tolist()
    [[0, 2]]
    """
    if importance.ndim != 2 or tolerance < 0:
        raise UsageError(f"importance must be (P, M), got {tuple(importance.shape)}, and tolerance at least 0")
    table = importance.detach().cpu().double()
    usual = table.abs().mean(0) if len(table) else table.sum(0)
    table = table / torch.where(usual > 0, usual, 1.0)
    found, gaps = [torch.zeros(0, 2, dtype=torch.long)], [torch.zeros(0, dtype=torch.float64)]
    rows = chunk_rows(8 * max(1, table.numel()))
    for start in range(0, len(table) if table.shape[1] else 0, rows):
        gap = (table[start : start + rows].unsqueeze(1) - table).abs().amax(2)
        pair = (gap <= tolerance).nonzero()
        kept = pair[:, 1] > pair[:, 0] + start
        pair = pair[kept]
        gaps.append(gap[pair[:, 0], pair[:, 1]])
        found.append(pair + torch.tensor([start, 0]))
    values = torch.cat(gaps)
    order = values.argsort(stable=True)
    return torch.cat(found)[order], values[order]
