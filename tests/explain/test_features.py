"""Features are explained as pictures are, by numbers alone: no place, nothing drawn, and the page says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from protolearn.core.bank import PrototypeBank
from protolearn.core.heads import LinearEvidence
from protolearn.core.measures import squared_l2
from protolearn.core.model import PrototypeModel
from protolearn.core.similarities import LogRatio
from protolearn.data.features import FeatureCases, features
from protolearn.encoders import FeatureEncoder, SmallEncoder
from protolearn.errors import DataError, UsageError
from protolearn.explain import Painter, explain, report, save_explanation, write_explanations
from protolearn.explain.draw import CHANGED, NO_PICTURE
from protolearn.explain.passes import PictureList, picture_of, pictured
from protolearn.structures import Source

CLASSES = ("calm", "wild")


def make_cases(tokens: int | None, count: int = 24) -> FeatureCases:
    draw = torch.Generator().manual_seed(3)
    shape = (count, 5) if tokens is None else (count, tokens, 5)
    labels = torch.arange(count) % 2
    values = torch.randn(shape, generator=draw) + 2.0 * labels.view(-1, *[1] * (len(shape) - 1))
    return features(values, [CLASSES[k] for k in labels.tolist()], classes=CLASSES, name="rows")


def make_model(cases: FeatureCases) -> PrototypeModel:
    """Return a model whose prototypes are the last tokens of the first six cases."""
    vectors, sources, owners = [], [], []
    for i in range(6):
        tokens = cases[i].inputs.reshape(-1, 5)
        last = len(tokens) - 1
        vectors.append(tokens[last])
        owners.append(int(cases.labels[i]))
        sources.append(Source(cases.ids[i], cases.content(i), last, None, 0.0, "encoder", owners[-1]))
    ownership = torch.eye(2)[owners]
    bank = PrototypeBank(torch.stack(vectors), ownership)
    bank.sources = list(sources)
    head = LinearEvidence.from_ownership(ownership)
    model = PrototypeModel(FeatureEncoder(5), nn.Identity(), bank, squared_l2, head, similarity=LogRatio())
    model.classes = CLASSES
    return model.eval()


@pytest.fixture(params=[None, 4], ids=["one-vector", "tokens"])
def cases(request: Any) -> FeatureCases:
    return make_cases(request.param)


@pytest.fixture
def model(cases: FeatureCases) -> PrototypeModel:
    return make_model(cases)


def test_explanations_add_up_and_have_no_place(model: PrototypeModel, cases: FeatureCases) -> None:
    found = explain(model, cases)
    assert [e.case for e in found] == list(cases.ids)
    for e in found:
        assert e.total == pytest.approx(e.logit, abs=1e-4)
        assert all(row.region is None for row in e.rows)
    own = {row.prototype: row for row in found[3].rows}[3]
    assert (own.distance, own.position) == (pytest.approx(0.0, abs=1e-5), len(cases[3].inputs.reshape(-1, 5)) - 1)


def test_they_are_written_line_by_line(model: PrototypeModel, cases: FeatureCases, tmp_path: Path) -> None:
    assert write_explanations(model, cases, tmp_path / "e.jsonl", quiet=True) == len(cases)
    lines = [json.loads(line) for line in (tmp_path / "e.jsonl").read_text().splitlines()]
    assert {row["region"] for line in lines for row in line["rows"]} == {None}


def test_a_report_says_that_there_are_no_pictures(model: PrototypeModel, cases: FeatureCases, tmp_path: Path) -> None:
    page = report(model, cases, cases, tmp_path / "r.html", quiet=True).read_text(encoding="utf-8")
    assert "not pictures" in page
    assert "<img" not in page
    for words in ("glow", "outline is", "training picture", "Source in doubt"):
        assert words not in page.split("</style>")[1], words
    assert f"token {model.bank.sources[0].position}" in page  # type: ignore[union-attr]
    assert "rows/<wbr>000003" in page


@pytest.mark.parametrize("parts", ["train", "test", "unlabelled"])
def test_a_report_of_less(parts: str, model: PrototypeModel, cases: FeatureCases, tmp_path: Path) -> None:
    blank = features(torch.stack([cases[i].inputs for i in range(4)]), classes=CLASSES, name="blank")
    train, test = {"train": (cases, None), "test": (None, cases), "unlabelled": (None, blank)}[parts]
    page = report(model, train, test, tmp_path / "r.html", quiet=True).read_text(encoding="utf-8")
    assert "not pictures" in page
    assert "<img" not in page


def test_one_explanation_is_a_page_or_json_but_no_picture(
    model: PrototypeModel, cases: FeatureCases, tmp_path: Path
) -> None:
    page = save_explanation(model, cases, 1, tmp_path / "e.html", sources=cases).read_text(encoding="utf-8")
    assert "not pictures" in page
    assert "from rows/<wbr>00000" in page
    assert json.loads(save_explanation(model, cases, 1, tmp_path / "e.json").read_text())["case"] == cases.ids[1]
    with pytest.raises(UsageError, match=r"write their explanation as \.html or \.json"):
        save_explanation(model, cases, 1, tmp_path / "e.png")


def test_why_a_source_has_no_picture(model: PrototypeModel, cases: FeatureCases) -> None:
    assert Painter(model, cases).source_picture(model.bank.sources[0]) == (None, NO_PICTURE)
    others = features(torch.zeros(24, 5), ids=cases.ids, name="rows")
    assert Painter(model, others).source_picture(model.bank.sources[0]) == (None, CHANGED)
    assert not pictured(cases)
    assert picture_of(cases, 0) is None
    assert pictured(PictureList([], []))


def test_a_model_of_pictures_refuses_features(cases: FeatureCases) -> None:
    reader = make_model(cases)
    reader.encoder = SmallEncoder()
    with pytest.raises(DataError, match="holds features, not pictures"):
        explain(reader, cases)
