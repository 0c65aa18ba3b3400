"""The section of clusters: what it shows, names that hold anything, no pictures, nothing found."""

from __future__ import annotations

import html.parser
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from protolearn.audit.discovered import ClassNumber, Discovery
from protolearn.data import digits, features
from protolearn.encoders import FeatureEncoder, SmallEncoder
from protolearn.explain.charts import curve_chart
from protolearn.explain.clusters_page import clusters_html, save_discovery_folder
from protolearn.explain.report import report
from protolearn.explain.sections.clusters import clusters
from protolearn.methods import get_method
from protolearn.tasks.discover import discover


class Strict(html.parser.HTMLParser):
    """Counts tags and refuses unbalanced ones."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in ("img", "br", "meta", "link", "wbr", "line", "circle", "rect", "polyline"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self.open and tag not in ("line", "circle", "rect", "polyline"):
            assert self.open.pop() == tag


def read(page: str) -> None:
    parser = Strict()
    parser.feed(page)
    assert parser.open == []


def on_numbers(name: str = "a") -> Discovery:
    draw = np.random.default_rng(0)
    truth = np.repeat(np.arange(4), 25)
    values = (5 * draw.normal(size=(4, 6))[truth] + draw.normal(size=(100, 6))).astype(np.float32)
    known = (truth < 2) & (np.arange(100) % 2 == 0)
    labelled = features(values[known], [[name, "b"][k] for k in truth[known]], name="known")
    return discover(FeatureEncoder(6), labelled, features(values[~known], name="free"), classes=4, draws=2)


def test_pictures_of_the_cases_are_shown() -> None:
    cases = digits("train").subset(range(150))
    known = cases.subset(np.flatnonzero(cases.labels[:100] < 5)).with_classes([str(k) for k in range(5)])
    free = cases.subset(range(100, 150))
    found = discover(SmallEncoder(dim=8, size=16), known, free, classes=8, draws=2)
    page = clusters_html(found, free, known)
    read(page)
    shown = sum(len(each.typical) + len(each.doubtful) + len(each.beside) for each in found.new)
    assert page.count("<img") == shown > 10
    assert 'alt="case ' in page and "Closest I know" in page
    assert clusters(found).count("<img") == 0, "without the cases, their ids"


def test_names_may_hold_anything_and_cases_need_no_pictures(tmp_path: Path) -> None:
    found = on_numbers('<script>alert("1")</script>')
    page = clusters_html(found)
    read(page)
    assert "<script" not in page and "&lt;script&gt;" in page
    files = save_discovery_folder(found, tmp_path)
    assert [path.name for path in files] == ["clusters.html", "clusters.json", "clusters.csv", "cases.csv"]
    assert all(path.stat().st_size > 100 for path in files)


def test_what_should_not_be_trusted_is_flagged() -> None:
    found = on_numbers()
    first = replace(found.new[0], stability=0.2)
    shaky = tuple(first if each.index == first.index else each for each in found.clusters)
    doubtful = Discovery(
        found.facts, found.classes, shaky, found.cases, found.rows, found.confidence, found.centres, None,
        ("something to know",),
    )  # fmt: skip
    assert "unstable: other draws find" not in clusters(found)
    assert "unstable: other draws find" in clusters(doubtful) and "Something to know." in clusters(doubtful)


def test_nothing_found_is_said() -> None:
    found = on_numbers()
    old = tuple(each if not each.new else replace(each, size=0, typical=(), doubtful=()) for each in found.clusters)
    nothing = Discovery(
        found.facts, found.classes, old, found.cases, torch.zeros_like(found.rows), found.confidence, found.centres
    )
    read(clusters(nothing))
    assert "nothing new was found" in clusters(nothing)


def test_the_curve_of_the_number() -> None:
    number = ClassNumber(7, "silhouette", {5: 0.1, 7: 0.4, 9: float("nan")}, 5, 9)
    chart = curve_chart("How many", number.curve, number.count, "classes", "value")
    assert chart.count("<circle") == 2 and "best at 7" in chart and "nan" not in chart
    for points in ({3: 0.5}, {3: 0.5, 4: 0.5}):
        assert "nan" not in curve_chart("One", points, 3, "a", "b")


def test_a_report_may_hold_them(tmp_path: Path) -> None:
    cases = digits("train").subset(range(120))
    known = cases.subset(np.flatnonzero(cases.labels[:80] < 5)).with_classes([str(k) for k in range(5)])
    free = cases.subset(range(80, 120))
    model = get_method("protopnet")(prototypes_per_class=1, dim=8).build(SmallEncoder(dim=8, size=16), 5).eval()
    found = discover(model, known, free, classes=7, draws=0)
    path = report(
        model, known, path=tmp_path / "report.html", discovered=found, unlabelled=free, examples=1, quiet=True
    )
    page = path.read_text(encoding="utf-8")
    assert 'id="clusters"' in page and "New clusters" in page
