"""How well clusters find classes: accuracy under the best one-to-one naming, for all, old and new classes; NMI and ARI.

``predicted`` ``(N,)`` is the cluster of each case, ``labels`` ``(N,)`` its true class; a case with label -1 does not
count. A class is old where cases of it were labelled in training. What there is no case of has no accuracy (None).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from protolearn.errors import UsageError

Variant = Literal["v2", "v1", "balanced"]
VARIANTS: dict[str, str] = {
    "v2": "one naming of clusters for all cases; the usual one",
    "v1": "old and new cases are named apart, so a cluster may count for an old and for a new class: never lower",
    "balanced": "the naming of v2, then the mean over classes instead of over cases",
}


@dataclass(frozen=True)
class DiscoveryScore:
    """How well clusters find classes.

    Attributes
    ----------
    all, old, new : float or None
        Accuracy from 0 to 1 over all cases, those of old classes and those of new ones.
    nmi, ari : float or None
        Normalised mutual information (arithmetic mean) and adjusted Rand index, over all cases.
    variant : str
        Which accuracy; see ``VARIANTS``.
    names : mapping of int to int
        The class each cluster is named after; clusters without a class are left out. For v1 those of new cases.
    cases, old_cases : int
        How many cases count, and how many of them are of old classes.
    """

    all: float | None
    old: float | None
    new: float | None
    nmi: float | None
    ari: float | None
    variant: str
    names: dict[int, int]
    cases: int
    old_cases: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {**asdict(self), "names": {str(cluster): name for cluster, name in self.names.items()}}


def match_clusters(predicted: Tensor | np.ndarray, labels: Tensor | np.ndarray) -> dict[int, int]:
    """Return the class that each cluster is named after, one to one, so that most cases are right (Hungarian method).

    A cluster that gets no class, as there are more clusters than classes, or none of its cases in the class it would
    get, is left out.

    Examples
    --------
    >>> match_clusters(torch.tensor([5, 5, 3, 3, 3]), torch.tensor([0, 0, 1, 1, 0]))
    {3: 1, 5: 0}
    """
    from scipy.optimize import linear_sum_assignment

    found, truth = _counted(predicted, labels)
    clusters, rows = np.unique(found, return_inverse=True)
    classes, columns = np.unique(truth, return_inverse=True)
    table = _table(rows, columns, len(clusters), len(classes))
    pairs = zip(*linear_sum_assignment(table, maximize=True), strict=True)
    return {int(clusters[i]): int(classes[j]) for i, j in pairs if table[i, j] > 0}


def discovery_score(
    predicted: Tensor | np.ndarray,
    labels: Tensor | np.ndarray,
    old: Sequence[int],
    *,
    variant: Variant = "v2",
) -> DiscoveryScore:
    """Return accuracy over all, old and new classes with NMI and ARI, as generalized category discovery reports them.

    Source: Vaze et al., CVPR 2022 (v1 and v2); the mean over classes as in the code of ProtoGCD (Ma et al., 2025).

    Parameters
    ----------
    predicted, labels : Tensor or ndarray
        ``(N,)``; label -1 = not counted.
    old : sequence of int
        Labels of the old classes.
    variant : {"v2", "v1", "balanced"}
        See ``VARIANTS``.

    Examples
    --------
    >>> found = discovery_score(torch.tensor([0, 0, 9, 9]), torch.tensor([0, 0, 1, 2]), old=[0])
    >>> found.all, found.old, found.new
    (0.75, 1.0, 0.5)
    """
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    if variant not in VARIANTS:
        raise UsageError(f"variant must be {', '.join(VARIANTS)}, got {variant!r}")
    found, truth = _counted(predicted, labels)
    if not len(found):
        return DiscoveryScore(None, None, None, None, None, variant, {}, 0, 0)
    is_old = np.isin(truth, np.asarray(list(old), dtype=np.int64))
    if variant == "v1":
        right, names = np.zeros(len(found), bool), {}
        for part in (is_old, ~is_old):
            names = match_clusters(found[part], truth[part])
            right[part] = _named(found[part], names) == truth[part]
    else:
        names = match_clusters(found, truth)
        right = _named(found, names) == truth
    if variant == "balanced":
        classes = np.unique(truth)
        right = np.array([right[truth == c].mean() for c in classes])
        each_old = np.isin(classes, np.asarray(list(old), dtype=np.int64))
    else:
        each_old = is_old
    return DiscoveryScore(
        all=_mean(right),
        old=_mean(right[each_old]),
        new=_mean(right[~each_old]),
        nmi=float(normalized_mutual_info_score(truth, found)),
        ari=float(adjusted_rand_score(truth, found)),
        variant=variant,
        names=names,
        cases=len(found),
        old_cases=int(is_old.sum()),
    )


def jaccard_stability(rows: Tensor, others: Sequence[tuple[Tensor, Tensor]], count: int) -> Tensor:
    """Return ``(P,)``: how surely each cluster is found again, as the mean Jaccard overlap with its best match.

    Values near 1 mean that other draws find the same cluster; below about 0.6 it should not be trusted (Hennig, 2007).
    NaN for a cluster that has no case in any of the draws.

    Parameters
    ----------
    rows : Tensor
        ``(N,)`` cluster of each case.
    others : sequence of (Tensor, Tensor)
        Of each draw: which cases it held (indices), and the cluster of each of these.
    count : int
        P.

    Examples
    --------
    >>> jaccard_stability(torch.tensor([0, 0, 1, 1]), [(torch.arange(4), torch.tensor([1, 1, 0, 2]))], 2)
    tensor([1.0000, 0.5000])
    """
    sums, seen = torch.zeros(count, dtype=torch.float64), torch.zeros(count)
    for cases, drawn in others:
        own = rows[cases]
        width = int(drawn.max()) + 1 if len(drawn) else 1
        both = torch.from_numpy(_table(own.numpy(), drawn.numpy(), count, width)).double()
        sizes, sizes_drawn = both.sum(1), both.sum(0)
        union = sizes.unsqueeze(1) + sizes_drawn - both
        best = (both / union.clamp_min(1)).amax(1)
        there = sizes > 0
        sums[there] += best[there]
        seen += there
    return torch.where(seen > 0, sums / seen.clamp_min(1), float("nan")).float()


def _counted(predicted: Tensor | np.ndarray, labels: Tensor | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    found, truth = (np.asarray(x.cpu() if isinstance(x, Tensor) else x) for x in (predicted, labels))
    if found.ndim != 1 or found.shape != truth.shape:
        raise UsageError(f"expected a cluster and a class for each case, got {found.shape} and {truth.shape}")
    if found.dtype.kind not in "ui" or truth.dtype.kind not in "ui":
        raise UsageError(f"clusters and classes are whole numbers, got {found.dtype} and {truth.dtype}")
    kept = truth >= 0
    return found[kept].astype(np.int64), truth[kept].astype(np.int64)


def _table(rows: np.ndarray, columns: np.ndarray, height: int, width: int) -> np.ndarray:
    table: np.ndarray = np.bincount(rows * width + columns, minlength=height * width).reshape(height, width)
    return table


def _named(found: np.ndarray, names: dict[int, int]) -> np.ndarray:
    clusters, rows = np.unique(found, return_inverse=True)
    return np.array([names.get(int(c), -1) for c in clusters], dtype=np.int64)[rows]


def _mean(right: np.ndarray) -> float | None:
    return float(right.mean()) if len(right) else None
