from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from protolearn.core.heads import LinearEvidence
from protolearn.core.model import PrototypeModel
from protolearn.errors import DataError, ModelFileError, UsageError
from protolearn.explain import report
from protolearn.explain.charts import line_chart, reliability_chart, ticks
from protolearn.explain.page import short, text

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>'
VOID = {"meta", "link", "img", "br", "wbr", "hr", "input"}


class Reader(HTMLParser):
    """Reads a page strictly: every tag closed, in order; notes what it holds and asks for."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: dict[str, int] = {}
        self.asked: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.alts: list[str | None] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == [], self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] = self.tags.get(tag, 0) + 1
        names = dict(attrs)
        assert not [name for name in names if name.startswith("on")], attrs
        for name in ("src", "href", "srcset", "data", "action", "poster"):
            if names.get(name):
                self.asked.append(str(names[name]))
        if names.get("id"):
            self.ids.append(str(names["id"]))
        if tag == "a":
            self.links.append(str(names.get("href")))
        if tag == "img":
            self.alts.append(names.get("alt"))
        if tag not in VOID and not (
            tag in ("line", "rect", "circle", "polyline") and self.get_starttag_text().endswith("/>")
        ):  # type: ignore[union-attr]
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] = self.tags.get(tag, 0) + 1

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def read(path: Path) -> tuple[Reader, str]:
    page = path.read_text(encoding="utf-8")
    found = Reader(page)
    outside = [a for a in found.asked if not a.startswith(("data:", "#"))]
    assert outside == []
    assert "script" not in found.tags
    assert not re.search(r"url\(|@import", page)
    assert all(found.alts)
    assert len(set(found.ids)) == len(found.ids)
    assert {link[1:] for link in found.links} <= set(found.ids)
    for word in ("nan", "NaN", "None", "inf", "Traceback"):
        assert not re.search(rf"\b{word}\b", " ".join(found.words[1:])), word
    return found, page


def test_a_report_tells_everything_and_asks_for_nothing(model: PrototypeModel, parts: Any, tmp_path: Path) -> None:
    path = report(model, *parts, tmp_path / "new" / "r.html", quiet=True)
    found, page = read(path)
    assert path == tmp_path / "new" / "r.html"
    assert list(path.parent.iterdir()) == [path]
    for words in ("How to read it", "The data", "Training", "How good it is", "Prototypes", "Worth a look",
                  "cannot tell",
                  "Surely right", "Surely wrong", "Wilson", "Projections", "receptive field", "Runner-up",
                  "same training token"):  # fmt: skip
        assert words in page, words
    assert {f"p{k}" for k in range(len(model.bank))} <= set(found.ids)
    assert found.tags["h1"] == 1
    assert found.tags["img"] > 30 * 7
    assert path.stat().st_size < 3e6


def test_hostile_names_stay_names(model: PrototypeModel, parts: Any, tmp_path: Path) -> None:
    train, test = (part.subset(range(120)) for part in parts)
    for part in (train, test):
        part.classes = (HOSTILE, *part.classes[1:])
        part.ids = [f"{i}/{HOSTILE}\u202e" for i in part.ids]
        part.name = HOSTILE
    model.classes = train.classes
    model.bank.sources = [
        None if s is None else dataclasses.replace(s, case=f"{s.case}/{HOSTILE}\u202e") for s in model.bank.sources
    ]
    model.metadata = {
        "warnings": [HOSTILE], "seed": HOSTILE, "versions": {HOSTILE: HOSTILE}, "date": HOSTILE,
        "options": {HOSTILE: 1},
        "data": {"name": HOSTILE, "split": HOSTILE, "digest": HOSTILE, "cases": 3},
        "history": [{"phase": HOSTILE, HOSTILE: 1.0, "loss": float("nan")}], "projections": [{"moved": HOSTILE}],
    }  # fmt: skip
    _, page = read(report(model, train, test, tmp_path / "r.html", quiet=True))
    assert "<script" not in page
    assert "onerror=alert(2)>" not in page
    assert "\u202e" not in page
    assert "&lt;script&gt;" in page


def test_scores_on_training_cases_are_called_that(model: PrototypeModel, parts: Any, tmp_path: Path) -> None:
    _, page = read(report(model, parts[0], None, tmp_path / "a.html", quiet=True))
    assert "which the model has seen" in page
    _, page = read(report(model, parts[0], parts[1].subset([]), tmp_path / "b.html", quiet=True))
    assert "which the model has seen" in page


def test_a_report_without_training_cases_shows_what_it_can(model: PrototypeModel, parts: Any, tmp_path: Path) -> None:
    _, page = read(report(model, None, parts[1], tmp_path / "a.html", quiet=True))
    assert "its training case is not at hand" in page


def test_unlabelled_cases_are_explained_but_not_scored(model: PrototypeModel, parts: Any, tmp_path: Path) -> None:
    test = parts[1].subset(range(10))
    test.labels = np.full(10, -1)
    _, page = read(report(model, None, test, tmp_path / "a.html", quiet=True))
    assert "No labelled case was given" in page
    assert "Some predictions" in page


def test_one_class_and_one_prototype(parts: Any, tmp_path: Path, make: Any) -> None:
    train = parts[0]
    ones = train.subset(np.flatnonzero(train.labels == 1)[:20])
    ones.classes, ones.labels = ("one",), np.zeros(20, np.int64)
    single = make(ones, per_class=1)
    _, page = read(report(single, ones, ones, tmp_path / "a.html", quiet=True))
    assert "one class" in page
    assert "Runner-up" not in page


def test_prototypes_to_worry_about_are_named(model: PrototypeModel, parts: Any, tmp_path: Path) -> None:
    bank = model.bank
    bank.sources[2] = bank.sources[1]
    with torch.no_grad():
        bank.vectors[2] = bank.vectors[1]
        model.head.weight[:, 7] = 0.0
    bank.sources[9] = None
    bank.active[11] = False
    bank.ban([12])
    _, page = read(report(model, *parts, tmp_path / "a.html", quiet=True))
    for words in ("stands on the same token as prototype 2", "no class gives it any weight",
                  "No training case behind it",
                  "inactive: it brings no evidence", "banned by a person"):  # fmt: skip
        assert words in page, words


def test_many_prototypes_are_not_all_shown(model: PrototypeModel, parts: Any, tmp_path: Path) -> None:
    found, page = read(report(model, *parts, tmp_path / "a.html", most=12, quiet=True))
    assert len([i for i in found.ids if re.fullmatch(r"p\d+", i)]) == 12
    assert "12 of 30 prototypes are shown" in page
    found, _ = read(report(model, *parts, tmp_path / "b.html", most=0, examples=0, quiet=True))
    assert not [i for i in found.ids if re.fullmatch(r"p\d+", i)]


def test_a_bare_model_has_a_report(model: PrototypeModel, parts: Any, tmp_path: Path) -> None:
    model.metadata = {}
    _, page = read(report(model, *parts, tmp_path / "a.html", quiet=True))
    assert "no record of its training" in page


def test_what_cannot_be_reported_is_said(model: PrototypeModel, parts: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs cases"):
        report(model, None, None, tmp_path / "a.html")
    other = parts[1].subset(range(5))
    other.classes = tuple("abcdefghij")
    with pytest.raises(DataError, match="not trained on"):
        report(model, parts[0], other, tmp_path / "a.html", quiet=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelFileError, match="cannot write"):
        report(model, parts[0], parts[1], tmp_path / "file" / "a.html", quiet=True)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_perfect_model_and_many_classes(parts: Any, tmp_path: Path, make: Any) -> None:
    train = parts[0].subset(range(100))
    train.classes = tuple(f"class {k}" for k in range(30))
    train.labels = np.arange(100) % 30
    wide = make(train, per_class=1)
    wide.head = LinearEvidence(torch.eye(30) * 1e6)
    _, page = read(report(wide, train, train, tmp_path / "a.html", quiet=True))
    assert "rows true, columns predicted" in page


def test_charts_take_gaps_and_constants() -> None:
    chart = line_chart("Loss", {"training": [1.0, None, float("nan"), 0.5, 0.4]}, phases=["a"] * 2 + ["b"] * 3)
    assert "nan" not in chart
    assert chart.count("<polyline") == 2
    assert line_chart("Flat", {"x": [3.0]}).startswith("<figure")
    assert line_chart("Nothing", {"x": [None]}) == ""
    assert reliability_chart([]) == ""
    assert ticks(0, 97)[-1] <= 97
    assert ticks(1.0, float("inf")) == [1.0]


def test_text_is_safe() -> None:
    assert text('<a href="x">\x00\u202e') == "&lt;a href=&quot;x&quot;&gt;??"
    assert short("a_b", 10) == "a_<wbr>b"
    assert "<script>" not in short("<script>" * 30, 20)


def test_training_cases_given_as_test_cases_are_no_test(model: PrototypeModel, parts: Any, tmp_path: Path) -> None:
    train = parts[0]
    alone = report(model, train, path=tmp_path / "alone.html", quiet=True).read_text(encoding="utf-8")
    twice = report(model, train, train, path=tmp_path / "twice.html", quiet=True).read_text(encoding="utf-8")
    assert alone == twice
