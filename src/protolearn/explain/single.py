"""One explained prediction as a file: a picture, a page or JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from protolearn.core.model import PrototypeModel
from protolearn.errors import UsageError
from protolearn.explain.decode import decodes_pictures
from protolearn.explain.draw import Painter, SourcePictures, explanation_picture, verdict, weighed
from protolearn.explain.explain import contrast, explanation_dict
from protolearn.explain.page import explained_prediction, how_to_read, page, write_text
from protolearn.explain.passes import CaseList, picture_of, pictured, whole_file
from protolearn.structures import Explanation


def save_explanation(
    model: PrototypeModel,
    cases: CaseList,
    index: int,
    path: str | Path,
    *,
    sources: SourcePictures | None = None,
    most: int = 5,
    region: str = "cell",
) -> Path:
    """Write the explanation of one picture, with the runner-up: ``.png``, ``.html`` or ``.json`` by the file's suffix.

    Parameters
    ----------
    model, cases, index
        Which case of which data set (``PictureList`` for a picture that is in none).
    path : path
        The file.
    sources : Cases or callable, optional
        The training cases, or a function from a ``Source`` to its picture; without it prototypes have no picture.
    most : int
        Rows shown.
    region : {"cell", "percentile"}
        What is outlined in pictures: the compared place, or the hottest five percent's bounding rectangle.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in (".png", ".html", ".json"):
        raise UsageError(f"an explanation is written as .png, .html or .json, got {path.name!r}")
    if suffix == ".png" and not pictured(cases):
        raise UsageError("features cannot be drawn: write their explanation as .html or .json")
    explanation, runner_up = contrast(model, cases, [index])[0]
    if suffix == ".json":
        return write_text(path, explanation_json(model, explanation, runner_up))
    painter = Painter(model, sources, region=region)
    if suffix == ".html":
        picture = picture_of(cases, index)
        return write_text(path, explanation_html(painter, picture, explanation, runner_up, most=most))
    drawn = explanation_picture(painter, cases.picture(index), explanation, runner_up, most=most)
    with whole_file(path, "the picture") as temporary:
        drawn.save(temporary, "PNG")
    return path


def explanation_html(
    painter: Painter, picture: Any, explanation: Explanation, runner_up: Explanation | None = None, *, most: int = 5
) -> str:
    """Return one explained prediction as a whole HTML page; ``picture`` is None where the case has none."""
    names = painter.model.classes
    title = f"{verdict(explanation, names)}: {explanation.case}"
    told = explained_prediction(painter, picture, explanation, runner_up, most=most)
    reading = how_to_read(picture is not None, decoded=decodes_pictures(painter.model), weighted=weighed(explanation))
    top = f"<h1>Why this prediction?</h1>{reading}"
    body = f"<header><div>{top}</div></header><main>{told}</main>"
    return page(title, body)


def explanation_json(
    model: PrototypeModel, explanation: Explanation, runner_up: Explanation | None = None, *, most: int | None = None
) -> str:
    """Return one explained prediction as JSON: the explanation, with that of the ``runner_up``."""
    plain = explanation_dict(explanation, model, most)
    plain["runner_up"] = None if runner_up is None else explanation_dict(runner_up, model, most)
    return json.dumps(plain, allow_nan=False, indent=2) + "\n"
