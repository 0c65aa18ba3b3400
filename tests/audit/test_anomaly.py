"""Measures of anomaly detection against plain loops and known answers."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from scipy.ndimage import label

from protolearn.audit.anomaly import region_overlap, score_detection, score_localisation
from protolearn.errors import DataError, UsageError


def slow_overlap(maps: np.ndarray, masks: np.ndarray, limit: float) -> float:
    """Loop over every threshold and region, then integrate the straight lines up to the limit."""
    regions = []
    for i, mask in enumerate(masks):
        found, count = label(mask, structure=np.ones((3, 3)))
        regions += [(i, found == k) for k in range(1, count + 1)]
    points = [(0.0, 0.0)]
    for value in sorted(set(maps.ravel().tolist())):  # lowest confidence first
        called = maps <= value
        overlap = np.mean([called[i][region].mean() for i, region in regions])
        points.append((float(called[~masks].mean()), float(overlap)))
    area = 0.0
    for (x0, y0), (x1, y1) in pairwise(points):
        end = min(x1, limit)
        if end > x0:
            y_end = y0 + (y1 - y0) * (end - x0) / (x1 - x0)
            area += (end - x0) * (y0 + y_end) / 2
    return area / limit


@pytest.mark.parametrize("limit", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("levels", [4, 1000])
def test_region_overlap_against_a_loop(limit: float, levels: int) -> None:
    rng = np.random.default_rng(levels)
    masks = rng.random((3, 9, 8)) < 0.2
    maps = np.round((rng.random((3, 9, 8)) - 0.4 * masks) * levels) / levels
    assert region_overlap(maps, masks, limit) == pytest.approx(slow_overlap(maps, masks, limit), abs=1e-10)


def test_a_small_region_counts_as_much_as_a_large_one() -> None:
    mask = np.zeros((1, 20, 20), dtype=bool)
    mask[0, :10, :10] = True
    mask[0, 15, 15] = True
    only_large = np.zeros((1, 20, 20))
    only_large[0, :10, :10] = -1
    only_small = np.zeros((1, 20, 20))
    only_small[0, 15, 15] = -1
    assert region_overlap(only_large, mask) == pytest.approx(region_overlap(only_small, mask))
    assert (score_localisation(only_large, mask).auroc or 0) > 0.9 > (score_localisation(only_small, mask).auroc or 0)


def test_diagonal_neighbours_are_one_region() -> None:
    assert score_localisation(np.zeros((1, 3, 3)), np.eye(3, dtype=bool)[None]).regions == 1


def test_lower_confidence_is_more_anomalous() -> None:
    found = score_detection(np.array([0.9, 0.8, 0.1]), np.array([0, 0, 1]))
    assert (found.auroc, found.ap, found.f1max, found.threshold) == (1.0, 1.0, 1.0, 0.1)
    assert score_detection(np.array([0.1, 0.2, 0.9]), np.array([0, 0, 1])).auroc == 0.0


def test_best_f1_against_all_thresholds() -> None:
    rng = np.random.default_rng(0)
    bad = rng.random(60) < 0.3
    confidence = np.round(rng.normal(size=60) - bad, 1)
    best = 0.0
    for value in confidence:
        called = confidence <= value
        best = max(best, 2 * (called & bad).sum() / (called.sum() + bad.sum()))
    found = score_detection(confidence, bad)
    assert found.f1max == pytest.approx(best)
    called = confidence <= found.threshold
    assert 2 * (called & bad).sum() / (called.sum() + bad.sum()) == pytest.approx(best)


def test_one_kind_alone_is_not_judged() -> None:
    found = score_detection(np.arange(3.0), np.zeros(3))
    assert (found.normal, found.anomalous, found.auroc, found.f1max) == (3, 0, None, None)
    empty = score_detection(np.zeros(0), np.zeros(0))
    assert (empty.normal, empty.auroc) == (0, None)
    pixels = score_localisation(np.zeros((2, 3, 3)), np.zeros((2, 3, 3)))
    assert (pixels.aupro, pixels.regions) == (None, 0)
    assert region_overlap(np.zeros((1, 3, 3)), np.ones((1, 3, 3))) is None


def test_constant_scores_are_chance() -> None:
    assert score_detection(np.ones(10), np.arange(10) < 3).auroc == 0.5
    mask = np.zeros((1, 4, 4), dtype=bool)
    mask[0, 0] = True
    assert region_overlap(np.ones((1, 4, 4)), mask, 1.0) == pytest.approx(0.5)


def test_wrong_inputs() -> None:
    with pytest.raises(DataError, match="position 1 is not a number"):
        score_detection(np.array([0.0, np.nan]), np.array([0, 1]))
    with pytest.raises(UsageError, match="do not go with"):
        score_detection(np.zeros(2), np.zeros(3))
    with pytest.raises(UsageError, match=r"\(N, H, W\)"):
        score_localisation(np.zeros((2, 2)), np.zeros((2, 2)))
    with pytest.raises(UsageError, match="limit"):
        region_overlap(np.zeros((1, 2, 2)), np.zeros((1, 2, 2)), 0.0)
