"""Metrics of detection: laws, hand counts, conventions that differ, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from protolearn.audit.ood import (
    Convention,
    _auroc,
    _fpr,
    auroc_by_class,
    detect,
    false_positive_rate,
    threshold_area,
)
from protolearn.core.scorer import make_scorer
from protolearn.errors import UsageError

rows = st.lists(st.integers(-5, 5), min_size=1, max_size=30).map(lambda values: np.array(values, dtype=np.float64))
conventions = [Convention(p, r) for p in ("known", "foreign") for r in ("roc", "percentile")]  # type: ignore[arg-type]


def normal(count: int, mean: float, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, 1.0, count)


def test_what_is_far_apart_and_what_is_the_same() -> None:
    apart = detect(normal(300, 6.0, 0), normal(300, 0.0, 1))
    assert apart.auroc > 0.999 and apart.fpr < 0.01 and apart.detection_error < 0.01 and apart.aupr_foreign > 0.999
    same = detect(normal(4000, 0.0, 0), normal(4000, 0.0, 1))
    assert same.auroc == pytest.approx(0.5, abs=0.02)
    assert same.fpr == pytest.approx(0.95, abs=0.02)
    assert same.aupr_known == pytest.approx(0.5, abs=0.03)
    assert same.autc == pytest.approx(0.5, abs=0.02)


@given(rows, rows)
def test_area_is_the_share_of_pairs_in_order(known: np.ndarray, foreign: np.ndarray) -> None:
    found = detect(known, foreign)
    pairs = (known[:, None] > foreign).mean() + 0.5 * (known[:, None] == foreign).mean()
    assert found.auroc == pytest.approx(pairs)
    thresholds = np.append(np.unique(np.concatenate([known, foreign])), math.inf)
    both = [((known < t).mean() + (foreign >= t).mean()) / 2 for t in thresholds]
    every = [((known < t).sum() + (foreign >= t).sum()) / (len(known) + len(foreign)) for t in thresholds]
    assert found.detection_error == pytest.approx(min(both))
    assert found.error_rate == pytest.approx(min(every))


@given(rows, rows, st.sampled_from([0.5, 0.8, 0.95, 1.0]))
def test_false_positives_by_hand(known: np.ndarray, foreign: np.ndarray, rate: float) -> None:
    reached = [t for t in known if (known >= t).mean() >= rate - 1e-12]
    wanted = float((foreign >= max(reached)).mean())
    assert false_positive_rate(known, foreign, Convention(rate=rate)) == pytest.approx(wanted)
    within = [t for t in foreign if (foreign <= t).mean() >= rate - 1e-12]
    wanted = float((known <= min(within)).mean())
    assert false_positive_rate(known, foreign, Convention("foreign", rate=rate)) == pytest.approx(wanted)


@given(rows, rows)
def test_only_the_order_counts(known: np.ndarray, foreign: np.ndarray) -> None:
    one, other = detect(known, foreign), detect(np.exp(known / 3), np.exp(foreign / 3))
    for name in ("auroc", "aupr_known", "aupr_foreign", "fpr", "detection_error", "error_rate"):
        assert getattr(one, name) == pytest.approx(getattr(other, name))


@given(rows, rows)
def test_the_positive_class_is_a_change_of_sides(known: np.ndarray, foreign: np.ndarray) -> None:
    one, turned = detect(known, foreign), detect(-foreign, -known)
    assert one.auroc == pytest.approx(turned.auroc)
    assert one.aupr_known == pytest.approx(turned.aupr_foreign)
    assert one.detection_error == pytest.approx(turned.detection_error)
    for rule in ("roc", "percentile"):
        here = false_positive_rate(known, foreign, Convention("foreign", rule))  # type: ignore[arg-type]
        assert here == pytest.approx(false_positive_rate(-foreign, -known, Convention("known", rule)))  # type: ignore[arg-type]


def test_conventions_differ_where_kinds_are_skewed() -> None:
    known = np.concatenate([np.linspace(0.5, 1.0, 95), np.linspace(-3.0, -2.0, 5)])
    foreign = np.linspace(-1.0, 0.4, 100)
    assert false_positive_rate(known, foreign) == 0.0  # the five bad known cases are those given up
    assert false_positive_rate(known, foreign, Convention("foreign")) == pytest.approx(0.05)
    small = np.array([1.0, 2.0, 3.0]), np.array([1.05, 0.0])
    assert false_positive_rate(*small, Convention(rule="roc")) == 0.5
    assert false_positive_rate(*small, Convention(rule="percentile")) == 0.0


def test_a_score_that_says_the_same_of_all() -> None:
    found = detect(np.ones(20), np.ones(10))
    assert (found.auroc, found.fpr, found.detection_error, found.autc) == (0.5, 1.0, 0.5, 0.5)
    assert false_positive_rate(np.ones(20), np.ones(10), Convention(rule="percentile")) == 0.0  # as the page warns


@pytest.mark.parametrize("count", [1, 19, 20, 37, 100])
def test_it_is_what_a_calibrated_score_accepts(count: int) -> None:
    known, foreign = normal(count, 1.0, count), normal(50, 0.0, 3)
    score = make_scorer("msp").calibrate(torch.from_numpy(known), 0.95)
    accepted = score.novelty(torch.from_numpy(foreign)).known
    assert accepted is not None
    assert false_positive_rate(known, foreign) == pytest.approx(float(accepted.double().mean()))


def test_infinite_confidences_have_a_place() -> None:
    found = detect(np.array([1.0, math.inf]), np.array([-math.inf, 0.5]))
    assert found.auroc == 1.0 and found.fpr == 0.0 and math.isnan(found.autc)


def test_area_over_thresholds_is_the_integral() -> None:
    known, foreign = normal(200, 1.0, 0), normal(300, 0.0, 1)
    low, high = min(known.min(), foreign.min()), max(known.max(), foreign.max())
    at = np.linspace(low, high, 20_001)
    errors = [((known < t).mean() + (foreign >= t).mean()) / 2 for t in at]
    assert threshold_area(known, foreign) == pytest.approx(float(np.trapezoid(errors, at) / (high - low)), abs=1e-4)


@given(rows, rows, st.sampled_from([0.6, 0.95, 1.0]))
def test_what_is_resampled_is_what_is_reported(known: np.ndarray, foreign: np.ndarray, rate: float) -> None:
    """Each case counted once gives the figure itself; each counted as often as drawn gives that of the drawn cases."""
    one, other = torch.ones(1, len(known)), torch.ones(1, len(foreign))
    inside, outside = np.sort(known), np.sort(foreign)
    found = detect(known, foreign, convention=Convention(rate=rate))
    assert float(_auroc(inside, outside, one, other)) == pytest.approx(found.auroc, abs=1e-6)
    assert float(_fpr(inside, outside, one, other, rate)) == pytest.approx(found.fpr, abs=1e-6)
    draw = np.random.default_rng(len(known))
    first, second = draw.integers(len(known), size=len(known)), draw.integers(len(foreign), size=len(foreign))
    drawn = detect(inside[first], outside[second], convention=Convention(rate=rate))
    weights = [torch.bincount(torch.from_numpy(each), minlength=size).double().unsqueeze(0)
               for each, size in ((first, len(known)), (second, len(foreign)))]  # fmt: skip
    assert float(_auroc(inside, outside, *weights)) == pytest.approx(drawn.auroc)
    assert float(_fpr(inside, outside, *weights, rate)) == pytest.approx(drawn.fpr)


def test_intervals_hold_the_figure_repeat_and_shrink() -> None:
    def found(count: int, seed: int = 0, **more: object) -> dict[str, tuple[float, float]]:
        generator = torch.Generator().manual_seed(seed)
        return dict(detect(normal(count, 1.0, 0), normal(count, 0.0, 1), generator=generator, **more).intervals)  # type: ignore[arg-type]

    few, many = found(50), found(2000)
    assert few == found(50) and few != found(50, 1)
    for name in ("auroc", "fpr"):
        low, high = few[name]
        assert low < getattr(detect(normal(50, 1.0, 0), normal(50, 0.0, 1)), name) < high
        assert many[name][1] - many[name][0] < (high - low) / 3
    area = 0.7602  # of two normal distributions one standard deviation apart
    assert many["auroc"][0] < area < many["auroc"][1]
    turned = found(50, convention=Convention("foreign"))
    assert turned["fpr"] != few["fpr"] and turned["auroc"] == few["auroc"]
    assert "fpr" not in found(50, convention=Convention(rule="percentile"))
    assert found(1) == {}


def test_areas_of_classes_average_to_the_whole() -> None:
    known, foreign = normal(100, 1.0, 0), normal(40, 0.0, 1)
    labels = np.arange(100) % 3
    found, whole = auroc_by_class(known, foreign, labels), detect(known, foreign).auroc
    assert sum(found[c] * (labels == c).mean() for c in range(3)) == pytest.approx(whole)
    for c in range(3):
        assert found[c] == pytest.approx(detect(known[labels == c], foreign).auroc)
    kinds = np.where(np.arange(40) < 10, 7, -1)
    assert auroc_by_class(known, foreign, kinds, of="foreign") == {7: pytest.approx(detect(known, foreign[:10]).auroc)}


def test_words_say_which_convention() -> None:
    assert len({how.words for how in conventions}) == 4
    assert "known positive" in Convention().words and "FPR80" in Convention(rate=0.8).words


@pytest.mark.parametrize("how", conventions)
def test_what_cannot_be_compared(how: Convention) -> None:
    for known, foreign in (([], [1.0]), ([1.0], []), ([[1.0]], [1.0])):
        with pytest.raises(UsageError, match="at least one each"):
            detect(np.array(known), np.array(foreign), convention=how)
    for known, foreign in (([math.nan], [1.0]), ([1.0], [math.nan])):
        with pytest.raises(UsageError, match="NaN"):
            detect(np.array(known), np.array(foreign), convention=how)
    with pytest.raises(UsageError, match="labels of the known"):
        auroc_by_class(np.ones(2), np.ones(2), [0])
    with pytest.raises(UsageError, match="did you mean 'foreign'"):
        Convention("foregin")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="rate must lie"):
        Convention(rate=0.0)
