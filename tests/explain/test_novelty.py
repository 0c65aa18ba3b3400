"""The pages about what a model has not seen: charts with a threshold, foreign cases beside what they are closest to."""

from __future__ import annotations

import csv
import json
import math
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.explain.test_report import HOSTILE, read

from protolearn.audit.ood_result import OODResult
from protolearn.core.model import PrototypeModel
from protolearn.explain import report
from protolearn.explain.draw import Painter, verdict
from protolearn.explain.explain import explain, explanation_dict
from protolearn.explain.novelty_charts import confidence_chart
from protolearn.explain.novelty_page import novelty_html, save_novelty_folder
from protolearn.explain.passes import PictureList
from protolearn.explain.sections.novelty import novelty
from protolearn.tasks.ood import evaluate_ood, fit_novelty


def noise(count: int, name: str = "noise") -> PictureList:
    draw = np.random.default_rng(0)
    pictures = [Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)) for _ in range(count)]
    return PictureList(pictures, [f"digits/{i:04d}" for i in range(count)], name=name)  # ids that known cases have too


@pytest.fixture
def found(model: PrototypeModel, parts: Any) -> OODResult:
    fit_novelty(model, parts[0], "mahalanobis")
    return evaluate_ood(
        model,
        parts[1],
        far={"noise": noise(12)},
        scores=["mahalanobis", "energy"],
        train=parts[0],
        draws=20,
        examples=2,
    )


def points(chart: str) -> list[list[tuple[float, float]]]:
    lines = re.findall(r'polyline points="([^"]+)"', chart)
    return [[(float(x), float(y)) for x, y in (pair.split(",") for pair in line.split())] for line in lines]


def test_a_chart_shows_shares_and_the_threshold() -> None:
    draw = np.random.default_rng(0)
    chart = confidence_chart("energy", {"known": draw.normal(2, 1, 400), "far": draw.normal(-1, 1, 100)}, 0.5)
    ET.fromstring(chart)
    assert len(points(chart)) == 2 and "threshold" in chart
    base = max(y for line in points(chart) for _, y in line)
    for line in points(chart):  # each line holds all of its cases: heights over bins add up to the same
        assert line[0][0] == points(chart)[0][0][0]
    heights = [sum(base - y for _, y in line[::2]) for line in points(chart)]
    assert heights[0] == pytest.approx(heights[1], rel=0.02)


@pytest.mark.parametrize(
    "parts",
    [{"known": [1.0]}, {"known": [1.0, 1.0], "far": [1.0]}, {"known": [0.0, 1.0], "far": [-1e9, 0.5]},
     {"known": [0.0, 1.0], "far": [-math.inf, -math.inf]}, {"known": [0.0, 1.0], "far": []}],
)  # fmt: skip
@pytest.mark.parametrize("threshold", [None, 0.5, -4.0, 1e4])
def test_edges_of_charts(parts: dict[str, list[float]], threshold: float | None) -> None:
    chart = confidence_chart("<b>", parts, threshold)
    ET.fromstring(chart)
    assert "nan" not in chart and "inf" not in chart and "<b>" not in chart
    xs = [x for line in points(chart) for x, _ in line]
    assert min(xs) >= 40 and max(xs) <= 360
    assert ("beyond the scale" in chart) == any(v < -1e3 for v in parts.get("far", []))


def test_nothing_is_no_chart() -> None:
    assert confidence_chart("energy", {}) == "" == confidence_chart("energy", {"known": [math.nan]})


def test_the_report_has_a_section(model: PrototypeModel, parts: Any, found: OODResult, tmp_path: Path) -> None:
    whole, text = read(report(model, *parts, tmp_path / "r.html", novelty=found, quiet=True))
    for words in ("Known and foreign", "Most foreign", "Most taken for known", "Closest I know", "threshold",
                  "FPR95, known positive", "Does not know", "kept out of the fit"):  # fmt: skip
        assert words in text, words
    assert "novelty" in whole.ids
    without, text = read(report(model, *parts, tmp_path / "plain.html", quiet=True))
    assert "novelty" not in without.ids and "Most foreign" not in text


def test_what_is_closest_is_most_similar(model: PrototypeModel, parts: Any, found: OODResult) -> None:
    section = novelty(found, Painter(model, parts[0]))
    shown = [int(key) for key in re.findall(r"where prototype (\d+) matched", section)]
    for k, example in enumerate(found.examples):
        assert example.explanation is not None
        best = sorted(example.explanation.rows, key=lambda row: -row.similarity)[:2]
        assert shown[4 * k : 4 * k + 4 : 2] == [row.prototype for row in best]  # two pictures each


def test_a_foreign_case_is_not_mistaken_for_a_known_one_of_its_name(
    model: PrototypeModel, parts: Any, found: OODResult
) -> None:
    """Ids of different sets may be the same; what is drawn is of the case itself."""
    painter = Painter(model, parts[0])
    fresh = novelty(found, painter)
    case = next(e for e in found.examples if e.explanation is not None)
    assert case.explanation is not None
    other = Painter(model, parts[0])
    other.case_view(parts[1].picture(0), case.case, case.explanation.rows[0])  # a known case of that very id
    assert novelty(found, other) == fresh


def test_the_page_alone_and_its_files(found: OODResult, tmp_path: Path) -> None:
    files = save_novelty_folder(found, tmp_path / "novelty")
    assert [path.name for path in files] == ["novelty.html", "novelty.json", "sets.csv", "classes.csv", "cases.csv"]
    read(files[0])
    assert (
        json.loads(files[1].read_text())["scores"]["energy"]["sets"]["noise"]["auroc"] == found["energy", "noise"].auroc
    )
    rows = list(csv.DictReader(files[2].open()))
    assert float(rows[0]["auroc"]) == found["mahalanobis", "noise"].auroc and rows[1]["set"] == "far (mean)"
    cases = list(csv.DictReader(files[4].open()))
    assert len(cases) == 150 + 12 and {row["part"] for row in cases} == {"known", "noise"}


def test_hostile_names_stay_text(model: PrototypeModel, parts: Any, found: OODResult, tmp_path: Path) -> None:
    named = evaluate_ood(model, parts[1], far={HOSTILE: noise(3, HOSTILE)}, draws=0)
    whole, text = read(report(model, *parts, tmp_path / "r.html", novelty=named, quiet=True))
    assert "alert(1)" in text and "script" not in whole.tags
    assert "<script" not in novelty_html(replace(named, notes=(HOSTILE,)))


def test_an_explanation_says_that_nothing_like_it_is_known(model: PrototypeModel, parts: Any) -> None:
    known, foreign = explain(model, parts[1], [0])[0], explain(model, noise(1), [0])[0]
    assert (known.confidence, known.known, known.unknown) == (None, None, False)
    fit_novelty(model, parts[0], "mahalanobis")
    known, foreign = explain(model, parts[1], [0])[0], explain(model, noise(1), [0])[0]
    assert known.known and not known.unknown and verdict(known, model.classes).startswith("Looks like")
    assert foreign.known is False and foreign.unknown and verdict(foreign, model.classes) == "Does not know"
    assert foreign.confidence is not None and known.confidence is not None and foreign.confidence < known.confidence
    plain = explanation_dict(foreign, model)
    assert plain["known"] is False and plain["confidence"] == foreign.confidence
    assert abs(foreign.total - foreign.logit) < 1e-3  # the sum is that of the closest class all the same


def test_a_model_in_training_mode_is_asked_in_evaluation_mode(model: PrototypeModel, parts: Any) -> None:
    fit_novelty(model, parts[0], "nac")
    before = explain(model, parts[1], [0])[0].confidence
    model.train()
    assert explain(model, parts[1], [0])[0].confidence == before
    assert model.training
