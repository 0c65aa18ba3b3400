from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.explain.conftest import Strides, fit_head, make_model

from protolearn.core.model import PrototypeModel
from protolearn.explain import report
from protolearn.explain.draw import FIELD, MARK, View
from protolearn.explain.gathered import gather
from protolearn.explain.receptive import region_honesty
from protolearn.explain.sections.honesty import honesty_section
from protolearn.explain.survey import survey
from protolearn.structures import Box, Tokens


class Turned(Strides):
    """Its map is turned round, so that an outline is drawn at the other end of the picture."""

    def forward(self, inputs: torch.Tensor) -> Tokens:
        tokens = super().forward(inputs)
        return tokens.replace(values=tokens.values.flip(1))


class Rounded(Strides):
    """Gives no gradients."""

    def forward(self, inputs: torch.Tensor) -> Tokens:
        tokens = super().forward(inputs)
        return tokens.replace(values=tokens.values.detach())


def section_of(model: PrototypeModel, parts: Any) -> str:
    train, test = parts
    found = survey(model, train, test, neighbours=2, quiet=True)
    return honesty_section(gather(model, train, test, found, most=4, examples=2))


def test_the_report_shows_what_places_see(model: PrototypeModel, parts: Any, tmp_path: Any) -> None:
    page = report(model, *parts, tmp_path / "report.html", quiet=True).read_text(encoding="utf-8")
    section = page[page.index('<section id="sees"') :]
    section = section[: section.index("</section>")]
    assert '<a href="#sees">How far a place really sees</a>' in page
    assert section.count('<div class="proto sees">') == 4
    assert section.count("<img") == 8
    shares = [int(share) for share in re.findall(r"and holds (\d+) % of what the match reacts to", section)]
    assert len(shares) == 4


def test_the_section_says_what_was_measured(model: PrototypeModel, parts: Any) -> None:
    """The first card tells of the match that leads the first prediction shown."""
    train, test = parts
    found = survey(model, train, test, neighbours=2, quiet=True)
    known = gather(model, train, test, found, most=4, examples=2)
    i, explanation, _ = known.first[0]
    row = next(row for row in explanation.rows if row.contribution > 0)
    inputs = model.encoder.preprocess(test.picture(i)).unsqueeze(0)
    honesty = region_honesty(model, inputs, row.prototype, positions=[row.position])[0]
    card = honesty_section(known).split('<div class="proto sees">')[1]
    assert f"prototype {row.prototype}," in card
    inside = float(re.search(r"and holds (\d+) %", card)[1]) / 100  # type: ignore[index]
    assert inside == pytest.approx(honesty.inside, abs=0.006)


def test_outlines_that_lie_are_flagged_and_true_ones_are_not(parts: Any) -> None:
    pages = {}
    for kind in (Strides, Turned):
        model = make_model(parts[0], encoder=kind())
        fit_head(model, parts[0])
        pages[kind] = section_of(model, parts)
    assert "The outline and what the place sees disagree" in pages[Turned]
    assert "matches less than half of what the match reacts to lies inside the outline" in pages[Turned]
    shares = {kind: [int(s) for s in re.findall(r"and holds (\d+) %", page)] for kind, page in pages.items()}
    assert max(shares[Turned]) < min(shares[Strides])


def test_encoders_without_gradients_are_said_to_be_unmeasured(parts: Any) -> None:
    page = section_of(make_model(parts[0], encoder=Rounded()), parts)
    assert page.startswith('<p class="notice calm">Not measured: this model gives no gradients')


def test_nothing_is_shown_where_no_place_is_outlined(model: PrototypeModel, parts: Any) -> None:
    train, test = parts
    found = survey(model, train, test, neighbours=2, quiet=True)
    known = gather(model, train, test, found, most=4, examples=0)
    known.first.clear()  # type: ignore[attr-defined]
    known.worst.clear()  # type: ignore[attr-defined]
    assert honesty_section(known) == ""


def test_both_rectangles_are_drawn() -> None:
    picture = Image.new("RGB", (100, 80), (128, 128, 128))
    view = View(picture, Box(20, 20, 40, 40), field=Box(10, 8, 90, 72))
    shown = np.asarray(view.thumbnail(200)).astype(int)

    def near(x: int, y: int, colour: str) -> bool:
        wanted = np.array([int(colour[k : k + 2], 16) for k in (1, 3, 5)])
        block = shown[max(y - 3, 0) : y + 4, max(x - 8, 0) : x + 9].reshape(-1, 3)
        return bool((np.abs(block - wanted).sum(1) < 30).any())

    for x, y in ((60, 40), (40, 60), (80, 60), (60, 80)):  # the middles of the box's sides, twice as large
        assert near(x, y, MARK)
    for x, y in ((100, 16), (20, 80), (180, 80), (100, 144)):
        assert near(x, y, FIELD)
    plain = np.asarray(View(picture, Box(20, 20, 40, 40)).thumbnail(200))
    assert not (np.abs(plain.astype(int) - np.array([0x56, 0xB4, 0xE9])).sum(2) < 30).any()


def test_a_field_as_large_as_the_picture_frames_it() -> None:
    picture = Image.new("RGB", (60, 60), (200, 200, 200))
    shown = np.asarray(View(picture, Box(0, 0, 60, 60), field=Box(0, 0, 60, 60)).thumbnail(120)).astype(int)
    blue = np.abs(shown - np.array([0x56, 0xB4, 0xE9])).sum(2) < 30
    assert blue[:6].any() and blue[-6:].any() and blue[:, :6].any() and blue[:, -6:].any()
    assert not blue[12:-12, 12:-12].any()
