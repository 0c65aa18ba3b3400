"""How well confidences and confidence maps tell anomalies from normal cases and places.

Scores come as the library gives them, **higher = more like what is normal**; the sign is turned here once, and the
anomaly is the positive class of every measure. N cases, H x W pixels.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.ndimage import label
from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_auc_score

from protolearn.errors import DataError, UsageError

LIMIT = 0.3
"""Share of normal pixels called foreign up to which regions count, as the authors of MVTec-AD do."""


@dataclass(frozen=True)
class Detection:
    """How well cases, or pixels, are told apart; a measure is None where only one kind is there.

    Attributes
    ----------
    normal, anomalous : int
        How many of each.
    auroc : float or None
        Share of pairs of an anomaly and a normal one in which the anomaly has the lower confidence; ties count half.
    ap : float or None
        Average precision, anomalies positive: a step sum, not interpolated. Chance is the share of anomalies.
    f1max : float or None
        The best F1 at any threshold; the threshold is chosen with the labels, so it is an upper bound.
    threshold : float or None
        That threshold, as a confidence: what is not above it is called an anomaly.
    """

    normal: int
    anomalous: int
    auroc: float | None = None
    ap: float | None = None
    f1max: float | None = None
    threshold: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self)


@dataclass(frozen=True)
class Localisation(Detection):
    """How well places are told apart.

    Attributes
    ----------
    aupro : float or None
        See :func:`region_overlap`; None without an anomalous region or a normal pixel.
    limit : float
        Up to which share of normal pixels.
    regions : int
        Connected regions of all masks.
    """

    aupro: float | None = None
    limit: float = LIMIT
    regions: int = 0


def score_detection(confidence: np.ndarray, anomalous: np.ndarray) -> Detection:
    """Score confidences ``(N,)`` against which cases are anomalies ``(N,)``.

    Raises
    ------
    DataError
        If a confidence is not a number.

    Examples
    --------
    >>> found = score_detection(np.array([3.0, 2.0, 1.0, 0.0]), np.array([0, 1, 0, 1]))
    >>> found.auroc, round(found.ap, 4), round(found.f1max, 4), found.threshold
    (0.75, 0.8333, 0.8, 2.0)
    """
    confidence, positive = np.asarray(confidence, dtype=np.float64).ravel(), np.asarray(anomalous, dtype=bool).ravel()
    if confidence.shape != positive.shape:
        raise UsageError(f"{len(confidence)} confidences do not go with {len(positive)} labels")
    if np.isnan(confidence).any():
        at = int(np.isnan(confidence).argmax())
        raise DataError(f"the confidence at position {at} is not a number: nothing can be ranked by it")
    counts = (int((~positive).sum()), int(positive.sum()))
    if 0 in counts:
        return Detection(*counts)
    foreign = -confidence
    precision, recall, thresholds = precision_recall_curve(positive, foreign)
    total = precision + recall
    f1 = (2 * precision * recall / np.where(total > 0, total, 1.0))[:-1]
    best = int(f1.argmax())
    return Detection(
        *counts,
        auroc=float(roc_auc_score(positive, foreign)),
        ap=float(average_precision_score(positive, foreign)),
        f1max=float(f1[best]),
        threshold=float(-thresholds[best]),
    )


def region_overlap(maps: np.ndarray, masks: np.ndarray, limit: float = LIMIT) -> float | None:
    """Return the area under the per-region overlap (AUPRO) up to a share of normal pixels, from 0 to 1.

    At a threshold, the overlap of a connected region (neighbours include diagonal ones) is the share of its pixels that
    are called foreign; the mean over all regions of all masks, large and small alike, is drawn over the share of all
    normal pixels that are called foreign, joined by straight lines at every value of the maps, and the area up to
    ``limit`` is divided by it. Exact: no grid of thresholds. A constant map gets ``limit / 2``.

    Source: The MVTec Anomaly Detection Dataset (Bergmann et al., 2021).

    Parameters
    ----------
    maps : ndarray
        ``(N, H, W)`` confidences, higher = more normal.
    masks : ndarray
        ``(N, H, W)``, true where something is anomalous.
    limit : float
        Above 0, at most 1. It changes the number: always state it.

    Examples
    --------
    >>> mask = np.zeros((1, 4, 4), dtype=bool)
    >>> mask[0, 0, 0] = True
    >>> region_overlap(-mask.astype(float), mask), round(region_overlap(np.zeros((1, 4, 4)), mask), 4)
    (1.0, 0.15)
    """
    if not 0 < limit <= 1:
        raise UsageError(f"limit must lie above 0 and at most 1, got {limit}")
    masks = np.asarray(masks, dtype=bool)
    regions, sizes = _regions(masks)
    outside = int((~masks).sum())
    if not len(sizes) or not outside:
        return None
    foreign = -np.asarray(maps, dtype=np.float64).ravel()
    order = np.argsort(-foreign, kind="stable")
    at = regions.ravel()[order]
    weight = np.append(0.0, 1.0 / (sizes * len(sizes)))  # what a pixel adds to the mean overlap
    rate, overlap = np.cumsum(at == 0) / outside, np.cumsum(weight[at])
    ends = np.append(np.flatnonzero(np.diff(foreign[order])), len(order) - 1)  # equal values fall together
    x, y = np.append(0.0, rate[ends]), np.append(0.0, overlap[ends])
    inside = x <= limit
    height = float(np.interp(limit, x, y)) if not inside.all() else float(y[-1])
    x, y = np.append(x[inside], limit), np.append(y[inside], height)
    return float(np.clip(auc(x, y) / limit, 0.0, 1.0))


def _regions(masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the number of each pixel's region, 0 = none, and the pixels of each region."""
    numbers = np.zeros(masks.shape, dtype=np.int64)
    last = 0
    for i, mask in enumerate(masks):
        found, count = label(mask, structure=np.ones((3, 3)))
        numbers[i] = np.where(found > 0, found + last, 0)
        last += count
    return numbers, np.bincount(numbers.ravel(), minlength=last + 1)[1:]


def score_localisation(maps: np.ndarray, masks: np.ndarray, limit: float = LIMIT) -> Localisation:
    """Score confidence maps against masks of what is anomalous, ``(N, H, W)`` both; normal cases have empty masks.

    All pixels of all cases are pooled, so large anomalies count for more than small ones in everything but ``aupro``.

    Examples
    --------
    >>> mask = np.zeros((1, 4, 4), dtype=bool)
    >>> mask[0, 1:3, 1:3] = True
    >>> found = score_localisation(-mask.astype(float), mask)
    >>> found.auroc, found.f1max, found.aupro, found.regions
    (1.0, 1.0, 1.0, 1)
    """
    maps, masks = np.asarray(maps), np.asarray(masks, dtype=bool)
    if maps.shape != masks.shape or maps.ndim != 3:
        raise UsageError(f"maps and masks must both be (N, H, W), got {maps.shape} and {masks.shape}")
    pixels = score_detection(maps, masks)
    overlap = region_overlap(maps, masks, limit)
    return Localisation(**asdict(pixels), aupro=overlap, limit=limit, regions=len(_regions(masks)[1]))
