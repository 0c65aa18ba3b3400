"""A tree drawn and retold: any head that branches, as SVG and PNG, with and without pictures."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from protolearn.core.model import PrototypeModel
from protolearn.core.trees import TreeHead
from protolearn.errors import UsageError
from protolearn.explain.tree import compare_routings, routes
from protolearn.explain.tree_picture import save_tree, tree_scene

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def grown(model: PrototypeModel) -> PrototypeModel:
    """The hand-made model of the digits with a tree over its first seven prototypes."""
    model.prune(model.bank.ids[7:])
    head = TreeHead.complete(3, 10)
    head.leaves.copy_(5 * torch.eye(10)[[0, 1, 2, 3, 7, 7, 8, 9]])
    model.head, model.similarity = head, lambda d: torch.exp(-d / 4)
    return model


def test_the_way_is_told(grown: PrototypeModel, parts: tuple[Any, Any]) -> None:
    _, test = parts
    for routing in ("greedy", "max_leaf"):
        for route in routes(grown, test, [0, 1, 2], routing=routing):
            assert len(route.decisions) == 3
            assert route.probability == pytest.approx(np.prod([d.probability for d in route.decisions]))
            assert all(d.probability == pytest.approx(d.similarity if d.present else 1 - d.similarity)
                       for d in route.decisions)  # fmt: skip
            assert route.distribution[route.predicted] == max(route.distribution)
            assert route.decisions[0].prototype == 0, "it begins at the root"
            assert all(d.region is not None and d.source is not None for d in route.decisions)
            lines = route.told(grown.classes)
            assert lines[0].startswith("prototype 0 is")
            assert lines[-1].startswith(f"then it is {grown.classes[route.predicted]}")
            if routing == "greedy":
                assert all(d.present == (d.similarity >= 0.5) for d in route.decisions)


def test_routings_are_compared(grown: PrototypeModel, parts: tuple[Any, Any]) -> None:
    found = compare_routings(grown, parts[1])
    assert set(found.accuracy) == {"soft", "max_leaf", "greedy"}
    every = routes(grown, parts[1], routing="greedy")
    assert found.fidelity["greedy"] == pytest.approx(np.mean([r.soft == r.predicted for r in every]))
    assert found.mean_length == {"max_leaf": 3.0, "greedy": 3.0}


def test_svg_is_whole_and_shows_everything_once(grown: PrototypeModel, parts: tuple[Any, Any], tmp_path: Path) -> None:
    train, test = parts
    path = save_tree(grown, tmp_path / "tree.svg", sources=train, cases=test, index=2)
    tree = ET.fromstring(path.read_text(encoding="utf-8"))
    assert len(tree.findall(f"{SVG}image")) == 8, "seven prototypes and the case"
    curves = tree.findall(f"{SVG}path")
    assert len(curves) == 14
    assert sum("stroke-dasharray" in c.attrib for c in curves) == 7, "absent is dashed"
    assert sum(c.attrib["stroke-width"] == "4" for c in curves) == 3, "the way is bold"
    words = [w.text or "" for w in tree.findall(f"{SVG}text")]
    for leaf in ("0", "1", "2", "3", "8", "9"):
        assert leaf in words
    assert 'href="http' not in path.read_text(encoding="utf-8")


def test_words_do_not_lie_on_each_other(grown: PrototypeModel, parts: tuple[Any, Any]) -> None:
    scene = tree_scene(grown, sources=parts[0])
    corners = [(x, y, x + p.width, y + p.height) for x, y, p, _ in scene.pictures]
    for a in corners:
        assert 0 <= a[0] < a[2] <= scene.width
        assert 0 <= a[1] < a[3] <= scene.height
        assert sum(a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3] for b in corners) == 1
    heights = sorted({way.stop[1] for way in scene.ways})
    assert min(b - a for a, b in pairwise(heights)) > 0


def test_png_depth_and_cases_without_pictures(grown: PrototypeModel, parts: tuple[Any, Any], tmp_path: Path) -> None:
    train, test = parts
    whole = Image.open(save_tree(grown, tmp_path / "whole.png", sources=train))
    cut = Image.open(save_tree(grown, tmp_path / "cut.png", cases=test, index=0, routing="max_leaf", depth=1))
    assert whole.height > cut.height
    assert len(np.unique(np.asarray(whole.convert("RGB")).reshape(-1, 3), axis=0)) > 50
    said = [w.text for w in tree_scene(grown, depth=1).words]
    assert "… 3 more prototypes, 4 leaves" in said
    assert any("not at" in text or "hand" in text for text in said), "why there is no picture"


def test_names_are_escaped(grown: PrototypeModel, tmp_path: Path) -> None:
    grown.classes = ("<script>", *grown.classes[1:])
    text = save_tree(grown, tmp_path / "tree.svg").read_text(encoding="utf-8")
    assert "<script>" not in text
    ET.fromstring(text)


def test_what_cannot_be_drawn_is_refused(
    model: PrototypeModel, parts: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="no tree"):
        routes(model, parts[1], [0])
    model.prune(model.bank.ids[1:])
    model.head = TreeHead.complete(1, 10)
    with pytest.raises(UsageError, match=r"\.svg or \.png"):
        save_tree(model, tmp_path / "tree.pdf")
    with pytest.raises(UsageError, match="both cases and index"):
        save_tree(model, tmp_path / "tree.svg", index=1)
    with pytest.raises(UsageError, match="depth"):
        save_tree(model, tmp_path / "tree.svg", depth=0)
    monkeypatch.setattr("protolearn.explain.tree_picture.MOST_PIXELS", 10)
    with pytest.raises(UsageError, match=r"draw it as \.svg"):
        save_tree(model, tmp_path / "tree.png")
