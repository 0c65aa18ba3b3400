"""Prototypes in words: planted models whose right words are known, the checks, the files."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from tests.explain.test_characteristics import SIDE, Seen
from torch import nn

from protolearn.core.bank import PrototypeBank
from protolearn.core.heads import LinearEvidence
from protolearn.core.measures import squared_l2
from protolearn.core.model import PrototypeModel
from protolearn.core.similarities import LogRatio
from protolearn.data import digits, features
from protolearn.encoders import SmallEncoder
from protolearn.errors import UsageError
from protolearn.explain import report
from protolearn.explain.characteristics import Global
from protolearn.explain.described import Characteristics, _alike, characterise, generalisation
from protolearn.explain.described_page import characteristics_html, save_characteristics
from protolearn.explain.draw import Painter
from protolearn.explain.passes import PictureList
from protolearn.explain.sections.characteristics import characteristics
from protolearn.explain.wording import NOTHING, hue_word, sentence
from protolearn.methods import get_method
from protolearn.structures import Box, Source

NAMES = ("hue", "contrast", "shape")


def pictures(count: int = 7) -> PictureList:
    """Red pictures, none red alike, with a band of upright grey bars that no wave brings to the top."""
    made = []
    for k in range(count):
        values = np.full((SIDE, SIDE, 3), (220 + 5 * k, 60 + k, 60 + k), np.uint8)
        values[16:24, :] = np.where(np.arange(SIDE) % 4 < 2, 60, 200)[None, :, None]
        made.append(Image.fromarray(values))
    return PictureList(made, [f"p{k}" for k in range(count)])


def planted() -> PrototypeModel:
    """Prototype 0 is the red patch, prototype 1 the upright bars, both of p0."""
    encoder = Seen()
    shown = encoder(encoder.preprocess(pictures().picture(0))[None]).values[0]
    bank = PrototypeBank(torch.stack([shown[0], shown[9]]), torch.eye(2))
    head = LinearEvidence.from_ownership(bank.ownership)
    model = PrototypeModel(encoder, nn.Identity(), bank, squared_l2, head, similarity=LogRatio()).eval()
    model.classes = ("red", "bars")
    source = Source("p0", "0" * 64, 0, Box(0, 0, 8, 8), 0.0, "encoder", 0)
    bank.sources = [source, replace(source, position=9, region=Box(8, 16, 16, 24), label=1)]
    return model


@pytest.fixture(scope="module")
def found() -> Characteristics:
    """A prototype of red and one of bars, and two pictures asked about."""
    return characterise(planted(), pictures(), pictures(4), [pictures(2)], names=("hue", "saturation", "shape"))


def test_a_red_patch_is_matched_for_its_red_hue_and_bars_for_their_outline(found: Characteristics) -> None:
    assert found.words(0).startswith("matched for its red hue (2.0 times the usual fall), not for its ")
    assert "outline (0.0)" in found.words(0)
    assert found.words(1).startswith("matched for its outline (2.0 times the usual fall), not for its ")
    assert found.colours == {0: "red"}, "grey bars have no colour"
    assert [match.row.prototype for match in found.matches if match.index == 0] == [0, 1]
    red = next(match for match in found.matches if match.row.prototype == 0)
    assert red.words.startswith("matched for its hue (")
    assert (red.case, red.phi.shape) == ("p0", (3,))


def test_rows_and_json_hold_the_figures(found: Characteristics) -> None:
    row = found.rows()[1]
    assert (row["prototype"], row["class"], row["words"]) == (1, "bars", found.words(1))
    assert row["shape"] == found.train.importance[1, 2]
    assert row["shape_relative"] == pytest.approx(row["shape"] / np.abs(found.train.importance[:, 2]).mean())
    assert found.test is not None and row["shape_test"] == found.test.importance[1, 2]
    told = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert told["facts"]["cases"] == 6 and told["facts"]["test_cases"] == 4
    assert [each["name"] for each in told["generalises"]] == ["hue", "saturation", "shape"]
    assert len(told["matches"]) == 4


def test_generalisation_is_that_of_scipy_and_says_none_where_there_is_nothing_to_test() -> None:
    draw = np.random.default_rng(3)
    first, second = draw.normal(size=(40, 2)), draw.normal(0.8, 2.0, size=(25, 2))[:, :2]
    second = np.concatenate([second, draw.exponential(size=(15, 2))])
    first[:, 1] = second[:, 1] = 0.0
    keys = tuple(range(40))
    one, none = generalisation(Global(("a", "b"), keys, first, 5), Global(("a", "b"), keys, second, 5))
    wanted = stats.ttest_ind(first[:, 0], second[:, 0], equal_var=False)
    assert (one.t, one.p) == (pytest.approx(wanted.statistic), pytest.approx(wanted.pvalue))
    assert one.normal_train == pytest.approx(stats.shapiro(first[:, 0]).pvalue)
    assert one.normal_test == pytest.approx(stats.shapiro(second[:, 0]).pvalue)
    assert one.correlation == pytest.approx(np.corrcoef(first[:, 0], second[:, 0])[0, 1])
    assert (none.normal_train, none.normal_test, none.t, none.p, none.correlation) == (None,) * 5
    (short,) = generalisation(Global(("a",), (1, 2), first[:2, :1], 5), Global(("a",), (1, 2), second[:2, :1], 5))
    assert short.normal_train is None and short.p is not None
    with pytest.raises(UsageError, match="same characteristics"):
        generalisation(Global(("a",), keys, first[:, :1], 5), Global(("b",), keys, second[:, :1], 5))


def test_duplicates_react_alike_and_are_called_so_only_if_their_vectors_say_it() -> None:
    model = planted()
    model.bank.grow(model.bank.vectors[[0]], model.bank.ownership[[0]], [None])
    model.head.weight = torch.nn.Parameter(torch.cat([model.head.weight, model.head.weight[:, :1]], 1).detach())
    (pair,) = characterise(model, pictures(), names=("hue", "shape")).alike
    assert (pair.left, pair.right, pair.gap, pair.same_class, pair.duplicates) == (0, 2, 0.0, True, True)
    profiles = Global(("hue", "shape"), (0, 1, 2), np.array([[1.0, 0.1], [1.0, 0.1], [0.0, 5.0]]), 3)
    (pair,) = _alike(model, profiles, [0, 1, 2])
    assert (pair.left, pair.right, pair.same_class, pair.duplicates) == (0, 1, False, False), "alike, not the same"


def test_words_by_hand() -> None:
    usual = np.array([1.0, 2.0, 0.0, 1.0])
    names = ("hue", "shape", "texture", "contrast")
    assert sentence(names, np.array([1.0, 2.0, 0.0, 1.0]), usual) == NOTHING
    assert (
        sentence(names, np.array([4.0, 8.0, 0.0, 4.0]), usual)
        == "moved by every alteration alike (4.0 times the usual fall)"
    )
    assert sentence(names, np.array([0.1, 0.2, 0.0, 0.1]), usual).startswith(
        "hardly moved by any alteration (0.1 times"
    )
    assert sentence(names, np.array([6.0, 2.0, 0.0, 0.5]), usual, "blue") == (
        "matched for its blue hue (6.0 times the usual fall), not for its contrast (0.5)"
    )
    assert sentence(names, np.array([1.0, 2.0, 9.0, -0.4]), usual) == (
        "matched for no characteristic above the others; more alike when its contrast (−0.4) is altered"
    ), "a rise is no indifference"
    assert sentence(names, np.array([1.0, 2.0, 9.0, -0.1]), usual).endswith("not for its contrast (−0.1)")
    assert sentence(("hue",), np.array([3.0]), np.array([1.0])) == "matched for its hue (3.0 times the usual fall)"
    assert sentence(names, usual, None) == "no other prototype to compare its falls with"
    assert sentence(names, usual, np.zeros(4)) == NOTHING


@pytest.mark.parametrize(
    ("colour", "word"),
    [((200, 20, 20), "red"), ((20, 160, 40), "green"), ((130, 70, 20), "brown"), ((250, 140, 10), "orange"),
     ((30, 60, 220), "blue"), ((240, 60, 160), "pink"), ((128, 128, 128), None), ((0, 0, 0), None)],
)  # fmt: skip
def test_colours_have_names(colour: tuple[int, int, int], word: str | None) -> None:
    picture = Image.new("RGB", (10, 10), (20, 220, 220))
    picture.paste(colour, (2, 2, 6, 6))
    assert hue_word(picture, Box(2, 2, 6, 6)) == word
    assert hue_word(picture, Box(2.4, 2.4, 2.5, 2.5)) == word, "less than a pixel is that pixel"
    assert hue_word(picture, Box(20, 20, 30, 30)) == "turquoise", "outside is the nearest pixel"


def test_many_colours_have_no_name() -> None:
    picture = Image.new("RGB", (10, 10), (220, 20, 20))
    picture.paste((20, 20, 220), (0, 0, 5, 10))
    assert hue_word(picture) is None


def test_draws_notes_and_refusals() -> None:
    model = get_method("protopnet")(prototypes_per_class=1, dim=8).build(SmallEncoder(), 10, seed=0).eval()
    one, two = (characterise(model, digits("train"), names=NAMES, most=6, seed=s) for s in (0, 0))
    assert np.array_equal(one.train.importance, two.train.importance)
    assert not np.array_equal(
        one.train.importance, characterise(model, digits("train"), names=NAMES, most=6, seed=1).train.importance
    )
    assert one.facts["of"] == 1438 and one.facts["cases"] == 6
    assert one.told == (False, True, True)
    assert [note for note in one.notes if note.startswith("Altering hue changed no similarity")]
    assert [note for note in one.notes if "8 x 8 pixels" in note]
    assert one.generalises == () and "Not checked on other pictures" in characteristics(one)
    assert '<th scope="col" class="n">hue' not in characteristics(one), "a column of zeros is left out"
    with pytest.raises(UsageError, match="at least 1"):
        characterise(model, digits("train"), most=0)
    with pytest.raises(UsageError, match="holds features"):
        characterise(model, features(np.zeros((2, 3), np.float32), ["a", "b"]))
    model.bank.ban(range(1, 10))
    alone = characterise(model, digits("train"), names=NAMES, most=3)
    assert alone.usual is None and "One prototype alone" in alone.notes[0]
    assert alone.words(0) == "no other prototype to compare its falls with"
    model.bank.ban([0])
    empty = characterise(model, digits("train"), names=NAMES, most=3)
    assert empty.rows() == [] and "No prototype is in use" in characteristics(empty)
    with pytest.raises(UsageError, match="nor any other"):
        empty.words(0)


def test_pictures_that_prototypes_come_from_are_left_out_of_a_draw_and_noted_in_the_whole() -> None:
    train, model = digits("train").subset(range(12)), planted_on_digits()
    some = characterise(model, train, names=("shape",), most=100)
    assert (some.facts["cases"], some.facts["sources_left_out"], some.facts["of"]) == (10, 2, 12)
    whole = characterise(model, train, names=("shape",), most=None)
    assert (whole.facts["cases"], whole.facts["sources_left_out"]) == (12, 0)
    assert whole.notes[0].startswith("Among the altered pictures are those that prototypes come from")
    assert not some.notes[0].startswith("Among")
    assert whole.train.importance.min() > some.train.importance.max(), "an exact match falls far"
    both = characterise(model, train.subset([3, 5]), names=("shape",), most=100)
    assert both.facts["cases"] == 2, "nothing else to alter"
    assert both.notes[0].startswith("Among")


def planted_on_digits() -> PrototypeModel:
    """Two prototypes that are tokens of the cases 3 and 5."""
    model = get_method("protopnet")(prototypes_per_class=1, dim=64).build(SmallEncoder(), 2, seed=0).eval()
    model.neck = nn.Identity()
    model.classes, train = ("a", "b"), digits("train")
    inputs = torch.stack([model.encoder.preprocess(train.picture(i)) for i in (3, 5)])
    with torch.no_grad():
        model.bank.vectors[:] = model.encode(inputs).values[:, 5]
    model.bank.sources = [Source(train.ids[i], train.content(i), 5, None, 0.0, "encoder", None) for i in (3, 5)]
    return model


def test_files(found: Characteristics, tmp_path: Path) -> None:
    html = save_characteristics(found, tmp_path / "why.html").read_text(encoding="utf-8")
    assert "Matched for its hue" in html and "The same on other pictures?" in html and "<script" not in html
    drawn = characteristics_html(found, Painter(planted(), pictures()), [pictures().picture(i) for i in range(2)])
    assert drawn.count("<img") >= 4
    with pytest.raises(ValueError, match="3 pictures for the matches of 2"):
        characteristics_html(found, Painter(planted(), pictures()), [pictures().picture(0)] * 3)
    save_characteristics(found, tmp_path / "m.csv")
    save_characteristics(replace(found, matches=()), tmp_path / "p.csv")
    matches, prototypes = (list(csv.DictReader((tmp_path / f"{name}.csv").open())) for name in "mp")
    assert [row["case"] for row in matches] == ["p0", "p0", "p1", "p1"]
    assert [row["prototype"] for row in prototypes] == ["0", "1"]
    assert json.loads(save_characteristics(found, tmp_path / "why.json").read_text()) == found.to_dict()
    with pytest.raises(UsageError, match=r"\.html, \.json, \.csv"):
        save_characteristics(found, tmp_path / "why.txt")


def test_names_from_data_are_escaped(found: Characteristics) -> None:
    evil = "<script>alert(1)</script>"
    told = replace(
        found, owners=(evil, evil), matches=tuple(replace(m, case=evil, predicted=evil) for m in found.matches)
    )
    assert "<script" not in characteristics_html(told)


def test_the_report_has_the_section_and_words_on_cards(tmp_path: Path) -> None:
    model = get_method("protopnet")(prototypes_per_class=1, dim=8).build(SmallEncoder(), 10, seed=0).eval()
    model.classes = digits("train").classes
    train = digits("train").subset(range(30))
    described = characterise(model, train, names=("contrast", "brightness", "shape"), most=10)
    html = report(model, train, None, tmp_path / "r.html", described=described, quiet=True).read_text(encoding="utf-8")
    assert 'href="#characteristics"' in html and '<a href="#p3">Prototype 3</a>' in html
    said = [described.words(key) for key in described.train.prototypes]
    spoken = [words for words in said if words != NOTHING]
    assert spoken, "some prototype stands out"
    assert all(f"{words[:1].upper() + words[1:]}.</p>" in html for words in spoken)
    assert "What prototypes look at" not in report(model, train, None, tmp_path / "s.html", quiet=True).read_text(
        encoding="utf-8"
    )
