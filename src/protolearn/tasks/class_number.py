"""How many classes are among these cases? Clusterings of every likely number, judged by what is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from protolearn.audit.discovered import ClassNumber
from protolearn.audit.discovery import discovery_score
from protolearn.core.discovery import Move, consensus, seeded_k_means
from protolearn.core.updates import k_means
from protolearn.encoders.search import nearest_centres
from protolearn.errors import UsageError

Criterion = Literal["accuracy", "hidden_classes", "silhouette", "consensus"]
CRITERIA: dict[str, str] = {
    "accuracy": "k-means of all cases; accuracy of the clusters on the labelled ones (Vaze et al., 2022)",
    "hidden_classes": "semi-supervised k-means with half of the known classes hidden, each half in turn; accuracy on "
    "the cases of the hidden classes",
    "silhouette": "k-means of the unlabelled cases; mean silhouette (Rousseeuw, 1987; as Troisemaine et al., 2024)",
    "consensus": "k-means of the unlabelled cases; how far clusters and known classes agree on each other (Li et al., "
    "2021)",
}
FEW = 16
"""So many numbers are tried first, evenly spread; then those about the best one."""
SILHOUETTES = 5000
"""A silhouette is the mean over so many cases at most: it takes the distances of all pairs."""


def estimate_classes(
    values: Tensor,
    labels: Tensor,
    *,
    generator: torch.Generator,
    criterion: Criterion = "accuracy",
    low: int | None = None,
    high: int | None = None,
    restarts: int = 5,
    apart: bool = False,
) -> ClassNumber:
    """Return the number of classes, old and new, for which a criterion is largest.

    The criterion is noisy in the number, so a coarse grid comes first, then a bounded search about its best point; no
    number is tried twice, and of equal values the smaller number wins.

    Parameters
    ----------
    values, labels : Tensor
        ``(N, D)`` features and ``(N,)`` labels, -1 = unlabelled.
    generator : torch.Generator
        Of the draws.
    criterion : str
        See ``CRITERIA``. All but ``silhouette`` need labelled cases, ``hidden_classes`` of two classes or more.
    low, high : int, optional
        Where to search; by default from the known classes (2 at least) to the larger of 30 and four times as many.
    restarts : int
        Runs of k-means for each number.
    apart : bool
        Unlabelled cases are of new classes only: clusters of them are added to the known classes.

    Raises
    ------
    UsageError
        If a criterion lacks labelled cases, or the bounds cannot be.

    Examples
    --------
    >>> draw = torch.Generator().manual_seed(0)
    >>> centres = 9 * torch.randn(6, 4, generator=draw)
    >>> truth = torch.arange(6).repeat_interleave(20)
    >>> values = centres[truth] + torch.randn(120, 4, generator=draw)
    >>> labels = torch.where((truth < 3) & (torch.arange(120) % 2 == 0), truth, -1)
    >>> estimate_classes(values, labels, generator=draw, criterion="silhouette", high=12).count
    6
    """
    if criterion not in get_args(Criterion):
        raise UsageError(f"criterion must be {', '.join(CRITERIA)}, got {criterion!r}")
    known = torch.unique(labels[labels >= 0])
    free = int((labels < 0).sum())
    if not free:
        raise UsageError("there is no unlabelled case: all classes are known")
    needed = {"silhouette": 0, "hidden_classes": 2}.get(criterion, 1)
    if len(known) < needed:
        raise UsageError(
            f"the criterion {criterion} needs labelled cases of {needed} classes at least, got {len(known)}: use "
            "'silhouette', which needs none"
        )
    if apart and criterion in ("accuracy", "consensus"):
        raise UsageError(
            f"where unlabelled cases are of new classes only, {criterion} says nothing about them: use 'silhouette'"
        )
    beside = len(known) if apart and criterion == "silhouette" else 0
    fewest = max(2, len(known) + apart) + (beside and 1)  # no class fewer than are known
    low = fewest if low is None else low
    most = len(values) - 1 if criterion in ("accuracy", "hidden_classes") else free - 1 + beside
    high = min(max(30, 4 * len(known)), most) if high is None else high
    if not max(2, beside + 2) <= low <= high <= most:
        raise UsageError(
            f"the number of classes must be searched between {max(2, beside + 2)} and {most} here, got {low} to {high}"
        )
    judge = _Judge(values, labels, known, criterion, restarts, generator, beside, apart)
    curve = search(judge, low, high)
    best = max(curve, key=lambda k: (curve[k], -k))
    notes = []
    if low < high and (best == high or best == low > fewest):
        notes.append(f"the estimate {best} lies at the end of what was searched ({low} to {high}): search farther")
    if criterion == "silhouette" and free > SILHOUETTES:
        notes.append(f"silhouettes are means over {SILHOUETTES} of {free} unlabelled cases, drawn once")
    return ClassNumber(best, CRITERIA[criterion], dict(sorted(curve.items())), low, high, tuple(notes))


def search(judge: Callable[[int], float], low: int, high: int, few: int = FEW) -> dict[int, float]:
    """Return the values that a coarse grid and a bounded search about its best point have tried, by number.

    Examples
    --------
    >>> tried = search(lambda k: -abs(k - 37), 2, 100)
    >>> max(tried, key=tried.get), len(tried) < 30
    (37, True)
    """
    from scipy.optimize import minimize_scalar

    known: dict[int, float] = {}

    def value(k: float) -> float:
        number = min(max(round(k), low), high)
        if number not in known:
            known[number] = judge(number)
        return -known[number]

    grid = sorted({round(k) for k in np.linspace(low, high, min(few, high - low + 1))})
    for k in grid:
        value(k)
    place = max(range(len(grid)), key=lambda i: (known[grid[i]], -i))
    left, right = grid[max(0, place - 2)], grid[min(len(grid) - 1, place + 2)]
    if right - left > few:
        minimize_scalar(value, bounds=(left, right), method="bounded", options={"xatol": 0.5, "maxiter": 2 * few})
        best = max(known, key=lambda k: (known[k], -k))
        left, right = max(low, best - 2), min(high, best + 2)
    for k in range(left, right + 1):
        value(k)
    return known


class _Judge:
    """Gives a number of classes its value."""

    def __init__(
        self,
        values: Tensor,
        labels: Tensor,
        known: Tensor,
        criterion: str,
        restarts: int,
        generator: torch.Generator,
        beside: int,
        apart: bool,
    ) -> None:
        self.values, self.labels, self.known, self.criterion = values, labels, known, criterion
        self.beside, self.apart = beside, apart
        self.how: dict[str, Any] = {"generator": generator, "restarts": restarts, "assign": nearest_centres}
        drawn = torch.randperm(len(known), generator=generator)
        self.halves = [known[half] for half in drawn.tensor_split(2)]
        free = values[labels < 0]
        self.sample = torch.randperm(len(free), generator=generator)[:SILHOUETTES]

    def __call__(self, count: int) -> float:
        """Return the value of the criterion."""
        return float(getattr(self, f"_{self.criterion}")(count))

    def _accuracy(self, count: int) -> float:
        rows = k_means(self.values, count, **self.how).rows
        return self._right(rows, self.labels)

    def _hidden_classes(self, count: int) -> float:
        found = []
        for hidden in self.halves:
            away = torch.isin(self.labels, hidden)
            labels = self.labels.masked_fill(away, -1)
            move: Move = "apart" if self.apart else "all"
            rows = seeded_k_means(self.values, labels, count, move=move, **self.how).rows
            found.append(self._right(rows, torch.where(away, self.labels, -1)))
        return sum(found) / len(found)

    def _silhouette(self, count: int) -> float:
        from sklearn.metrics import silhouette_score

        free = self.values[self.labels < 0]
        rows = k_means(free, count - self.beside, **self.how).rows[self.sample]
        different = len(torch.unique(rows))
        if not 2 <= different < len(rows):
            return -1.0
        return float(silhouette_score(free[self.sample].numpy(), rows.numpy()))

    def _consensus(self, count: int) -> float:
        own, free = self.labels >= 0, self.values[self.labels < 0]
        rows = k_means(free, count, **self.how).rows
        return float(consensus(self.values[own], self.labels[own], free, rows, count).mean())

    def _right(self, rows: Tensor, labels: Tensor) -> float:
        right = discovery_score(rows, labels, ()).all
        return 0.0 if right is None else right
