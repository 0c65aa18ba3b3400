"""A corrected prediction as a file: what it says is what was computed, and boxes lie where they were drawn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from protolearn.core.model import PrototypeModel
from protolearn.errors import UsageError
from protolearn.explain.corrected import in_words, save_corrected, with_boxes
from protolearn.explain.edits import Interaction
from protolearn.explain.interact import interact


def edits_of(model: PrototypeModel, cases: Any) -> Interaction:
    """Reject all prototypes of the predicted class, and forbid a corner."""
    before = interact(model, cases, Interaction(), [0])[0].before
    made = Interaction().negative((0, 0, 4, 4)).positive((4, 2, 8, 8), int(model.bank.ids[-1]))
    for key, owner in zip(model.bank.ids.tolist(), model.bank.owner().tolist(), strict=True):
        made = made.reject(key) if owner == before.predicted else made
    return made


def test_the_files_say_what_was_computed(model: PrototypeModel, parts: Any, tmp_path: Path) -> None:
    train, test = parts
    edits = edits_of(model, test)
    done = interact(model, test, edits, [0])[0]
    assert done.changed
    told = json.loads(save_corrected(model, test, 0, edits, tmp_path / "c.json").read_text())
    assert told["logits"][1] == pytest.approx(done.logits_after.tolist())
    assert told["logits"][0] == pytest.approx(done.logits_before.tolist())
    assert told["predicted"] == [model.classes[e.predicted] for e in (done.before, done.after)]
    assert told["changed"] is True and told["without"] == list(done.without)
    assert Interaction.from_json(json.dumps(told["edits"])) == edits
    html = save_corrected(model, test, 0, edits, tmp_path / "c.html", sources=train).read_text()
    assert f"Before: Looks like {told['predicted'][0]}. After: Looks like {told['predicted'][1]}" in html
    assert "nothing may be found in (0, 0) to (4, 4)" in html and "the picture with the boxes drawn" in html
    assert "<script" not in html
    with Image.open(save_corrected(model, test, 0, edits, tmp_path / "c.png", sources=train)) as drawn:
        assert drawn.width == 1360 and drawn.height > 1000
    nothing = save_corrected(model, test, 0, Interaction(), tmp_path / "n.html").read_text()
    assert "before as after" in nothing and "<li>nothing</li>" in nothing
    with pytest.raises(UsageError, match=r"\.png, \.html, \.json"):
        save_corrected(model, test, 0, edits, tmp_path / "c.txt")


def test_boxes_are_drawn_where_they_lie_whatever_the_size() -> None:
    for side in (8, 500):
        shown = np.asarray(
            with_boxes(Image.new("RGB", (side, side)), Interaction().negative((0, 0, side / 2, side / 2)))
        )
        lit = (shown.max(2) > 100).nonzero()
        assert len(lit[0]), "a box is there"
        assert max(lit[0].max(), lit[1].max()) <= len(shown) / 2 + 6
        assert not np.asarray(with_boxes(Image.new("RGB", (side, side)), Interaction())).any()


def test_edits_in_words_cannot_make_a_page(model: PrototypeModel, parts: Any) -> None:
    made = Interaction().reject(3).accept(3).positive((1, 2, 3.5, 4)).reject("<b>")
    assert in_words(made)[1:3] == ["accepted again prototype 3", "look in (1, 2) to (3.5, 4)"]
    with pytest.raises(UsageError):
        save_corrected(model, parts[1], 0, made, "never.html")
