"""What several commands do: print, read a model and its data, choose a device."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protolearn.errors import UsageError

if TYPE_CHECKING:
    from PIL import Image

    from protolearn.core.model import PrototypeModel
    from protolearn.data import Cases
    from protolearn.structures import Source


def say(text: str, quiet: bool = False) -> None:
    """Print a line of result or remark."""
    if not quiet:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


def say_json(value: Any) -> None:
    """Print one JSON document."""
    from protolearn.training.folder import plain

    say(json.dumps(plain(value), indent=2, allow_nan=False))


def csv_text(names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def the_model(folder: str, device: str = "auto") -> PrototypeModel:
    """Return a model, where it should run."""
    from protolearn.training.folder import load
    from protolearn.training.options import choose_device

    return load(folder, choose_device(device))


def parts(model: PrototypeModel, data: str, test: str | None = None) -> tuple[Cases, Cases | None]:
    """Return training and test cases as they were at training: own parts, or the split that the model records."""
    from protolearn.data import load_cases, train_test

    cases = load_cases(data, classes=model.classes)
    other = None if test is None else load_cases(test, classes=model.classes)
    if "train" in cases.split_names:
        held = next((name for name in ("test", "val") if name in cases.split_names), None)
        return cases.split("train"), other if other is not None or held is None else cases.split(held)
    split = (model.metadata.get("data") or {}).get("split")
    if other is None and isinstance(split, dict) and isinstance(split.get("test_share"), float):
        return train_test(cases, split["test_share"], int(split.get("seed", 0)))
    return cases, other


def pictures_of(specs: Sequence[str]) -> list[Cases]:
    """Return the pictures that paths name, without labels."""
    from protolearn.data import load_cases

    return [load_cases(spec, labelled=False) for spec in specs]


def source_pictures(folder: str, data: str | None) -> Callable[[Source], Image.Image | None]:
    """Return a function from a source to its picture: kept in the model's folder, or in the training data."""
    from protolearn.data import load_cases
    from protolearn.errors import DataError
    from protolearn.training.cards import kept_picture

    cases = None if data is None else load_cases(data)

    def find(source: Source) -> Image.Image | None:
        kept = kept_picture(Path(folder), source)
        if kept is not None or cases is None:
            return kept
        try:
            place = cases.index(source.case)
            return cases.picture(place) if cases.content(place) == source.content else None
        except DataError:
            return None

    return find


def with_marks(train: Cases, test: Cases | None, tables: list[str]) -> tuple[Cases, Cases | None]:
    """Return both parts with the boxes and key points of tables or the masks of a folder, where there are some."""
    from protolearn.data import MaskFolder, read_marks
    from protolearn.data.annotations import checked_annotations

    folders = [table for table in tables if Path(table).is_dir()]
    if folders and len(tables) > 1:
        raise UsageError("give one folder of masks or several tables, not both")
    every = [part for part in (train, test) if part is not None]
    ids = [case for part in every for case in part.ids]
    marks = MaskFolder(folders[0], ids) if folders else checked_annotations(read_marks(*tables), ids)
    found = [part.with_annotations(marks) if any(case in marks for case in part.ids) else part for part in every]
    return found[0], found[1] if len(found) > 1 else None


def listed(names: str) -> list[str]:
    """Return the names in a text, with commas between them."""
    return [name.strip() for name in names.split(",") if name.strip()]


def check_positive(name: str, value: int) -> None:
    """Refuse a number below 1."""
    if value < 1:
        raise UsageError(f"--{name} must be at least 1, got {value}")
