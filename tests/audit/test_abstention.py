"""Thresholds of acceptance: by construction, at their edges, and against numbers from the authors' code."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protolearn.audit.abstention import AcceptanceRule, separation
from protolearn.errors import UsageError

Reference = Callable[[str], dict[str, np.ndarray]]


def test_numbers_from_the_authors_code(reference: Reference) -> None:
    known = reference("sizes_abstention")
    rule = AcceptanceRule.calibrate(known["scores_id"], known["labels_id"])
    assert rule.per_class == pytest.approx(known["class_thresholds"], rel=1e-6)
    assert rule.overall == pytest.approx(known["overall_threshold"], rel=1e-6)
    assert rule.overall_right == pytest.approx(known["overall_threshold_right"], rel=1e-6)
    assert rule.accepts(known["scores_id"]).mean() == pytest.approx(known["id_accepted_class"])
    outside = known["scores_ood"]
    assert rule.accepts(outside).mean() == pytest.approx(known["ood_accepted_class"])
    assert rule.accepts(outside, by="overall").mean() == pytest.approx(known["ood_accepted_overall"])
    assert (outside.max(1) == 0).sum() == known["abstained"]
    assert (rule.lowered, rule.steps > 100) == ("scaled", True), "the loop of the released code is exercised"


def test_areas_from_the_authors_code(reference: Reference) -> None:
    known = reference("sizes_abstention")
    found = separation(known["confidence_inside"], known["confidence_outside"])
    assert found.auroc == pytest.approx(known["auroc"], rel=1e-6)
    assert found.aupr_inside == pytest.approx(known["aupr_inside"], rel=1e-6)
    assert found.aupr_outside == pytest.approx(known["aupr_outside"], rel=1e-6)


def by_the_loop(scores: np.ndarray, share: float) -> np.ndarray:
    """Thresholds by multiplying again and again, as released."""
    best, predicted = scores.max(1), scores.argmax(1)
    each = {c: np.percentile(best[predicted == c], 100 * (1 - share)) for c in set(predicted.tolist())}
    at = np.array([each.get(c, np.mean(list(each.values()))) for c in range(scores.shape[1])])
    enough = (best > at[predicted]).mean() >= share
    while not enough:
        at = at * 0.999
        enough = (best >= at[predicted]).mean() >= share
    return at


@pytest.mark.parametrize("seed", range(5))
def test_the_search_ends_where_the_loop_does(seed: int) -> None:
    draw = np.random.default_rng(seed)
    scores = draw.random((30 + 20 * seed, 6)) ** 2 * [1, 1, 1, 1, 1, 0.01]
    rule = AcceptanceRule.calibrate(scores)
    assert 5 in rule.never_predicted
    assert rule.per_class == pytest.approx(by_the_loop(scores, 0.95), rel=1e-9)


@given(
    st.integers(0, 10_000), st.integers(1, 60), st.integers(1, 5), st.sampled_from([0.5, 0.9, 0.95, 1.0]),
    st.sampled_from(["positive", "signed", "negative", "zeros", "ties", "huge", "tiny"]),
)  # fmt: skip
def test_enough_of_the_calibration_cases_are_accepted(seed: int, n: int, classes: int, share: float, kind: str) -> None:
    scores = np.random.default_rng(seed).normal(size=(n, classes))
    scores = {
        "positive": np.abs(scores), "signed": scores, "negative": -np.abs(scores), "huge": scores * 1e30,
        "zeros": np.where(scores > 0.5, scores, 0.0), "ties": scores.round(), "tiny": scores * 1e-300,
    }[kind]  # fmt: skip
    rule = AcceptanceRule.calibrate(scores, share=share)
    assert rule.accepts(scores).mean() >= share
    again = rule.accepts(scores[::-1]).mean()
    assert again >= share, "the same cases as outside ones are accepted as often"


def test_more_than_enough_leaves_the_quantile() -> None:
    scores = np.ones((200, 1))
    scores[:4] = 0.5
    rule = AcceptanceRule.calibrate(scores, share=0.9)
    assert (rule.lowered, rule.per_class[0]) == ("scaled", pytest.approx(0.999)), "all at the quantile: none above it"
    scores[:, 0] = np.arange(200)
    rule = AcceptanceRule.calibrate(scores, share=0.9)
    assert (rule.lowered, rule.steps, rule.per_class) == ("not", 0, (pytest.approx(19.9),))


def test_scores_below_zero_are_lowered_and_not_raised() -> None:
    draw = np.random.default_rng(0)
    scores = -draw.random((50, 3)) * 20
    rule = AcceptanceRule.calibrate(scores)
    assert rule.lowered == "shifted"
    quantiles = [np.quantile(scores.max(1)[scores.argmax(1) == c], 0.05) for c in range(3)]
    assert (np.array(rule.per_class) < quantiles).all()
    moved = AcceptanceRule.calibrate(scores - 7.0)
    assert np.array(moved.per_class) == pytest.approx(np.array(rule.per_class) - 7.0), "no scale, no origin"


def test_classes_never_predicted_get_the_mean_and_one_case_is_enough() -> None:
    scores = np.array([[4.0, 0.0, 0.0]] * 40 + [[0.0, 2.0, 0.0]] * 40)
    rule = AcceptanceRule.calibrate(scores, np.full(80, 1))
    assert rule.never_predicted == (2,)
    assert rule.per_class == pytest.approx((3.996, 1.998, 2.997))
    assert rule.overall_right == 2.0
    assert AcceptanceRule.calibrate(scores, np.full(80, -1)).overall_right is None
    assert AcceptanceRule.calibrate(scores[:1]).accepts(scores).sum() == 40


def test_a_rule_is_plain_json() -> None:
    rule = AcceptanceRule.calibrate(np.random.default_rng(0).random((50, 3)), np.zeros(50, dtype=int))
    again = AcceptanceRule.from_dict(json.loads(json.dumps(rule.to_dict())))
    assert again == rule
    scores = np.random.default_rng(1).random((20, 3))
    assert (again.accepts(scores) == rule.accepts(scores)).all()
    with pytest.raises(UsageError, match="'per_class'"):
        AcceptanceRule.from_dict({**rule.to_dict(), "per_clas": []})


def test_what_cannot_be_used_is_refused() -> None:
    scores = np.random.default_rng(0).random((50, 3))
    for wrong in (scores[:0], scores[:, :0], scores[0], np.full((2, 2), np.nan), np.array([[np.inf, 0.0]])):
        with pytest.raises(UsageError, match="calibration takes scores"):
            AcceptanceRule.calibrate(wrong)
    with pytest.raises(UsageError, match="share to accept"):
        AcceptanceRule.calibrate(scores, share=0)
    rule = AcceptanceRule.calibrate(scores)
    with pytest.raises(UsageError, match="did you mean 'overall'"):
        rule.accepts(scores, by="overal")
    with pytest.raises(UsageError, match="calibrate it with labels"):
        rule.accepts(scores, by="overall_right")
    with pytest.raises(UsageError, match=r"\(N, 3\)"):
        rule.accepts(scores[:, :2])
    low = replace(rule, per_class=(-1e9,) * 3)
    assert low.accepts(np.array([[np.nan] * 3, [0.0, 0.0, 0.0]])).tolist() == [False, True], "NaN is never accepted"
    with pytest.raises(UsageError, match="inside from outside"):
        separation(np.ones(2), np.ones(0))


def test_separation_by_chance_and_in_full() -> None:
    draw = np.random.default_rng(0)
    chance = separation(draw.random(3000), draw.random(1000))
    assert chance.auroc == pytest.approx(0.5, abs=0.03)
    assert (chance.aupr_inside, chance.aupr_outside) == (pytest.approx(0.75, abs=0.03), pytest.approx(0.25, abs=0.03))
    full = separation(np.array([2.0, 3.0]), np.array([1.0]))
    assert (full.auroc, full.aupr_inside, full.aupr_outside) == (1.0, 1.0, 1.0)
    assert separation(np.zeros(4), np.zeros(3)).auroc == 0.5, "equal scores count half"
