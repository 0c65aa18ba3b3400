"""What a person changed in an explanation, as a record: it can be undone, kept in a file, and applied again.

What the edits do to a prediction is in :mod:`~protolearn.explain.interact`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from protolearn.errors import DataError, UsageError, nearest_names
from protolearn.explain.passes import whole_file
from protolearn.structures import Box

ACTIONS = ("reject", "accept", "negative", "positive")
Who = str | int | None
"""A concept by name, a prototype by id, or None for all prototypes."""


@dataclass(frozen=True)
class Edit:
    """One thing a person did.

    Attributes
    ----------
    action : {"reject", "accept", "negative", "positive"}
        ``accept`` takes back an earlier rejection of the same concept or prototype.
    who : str, int or None
        A concept by name or a prototype by id; for boxes also None: all.
    box : Box, optional
        For ``negative`` and ``positive``, in pixels of the original picture.
    """

    action: Literal["reject", "accept", "negative", "positive"]
    who: Who = None
    box: Box | None = None

    def __post_init__(self) -> None:
        if self.action not in ACTIONS:
            raise UsageError(f"an edit cannot {self.action!r}: {nearest_names(str(self.action), ACTIONS)}")
        if isinstance(self.who, bool) or not isinstance(self.who, str | int | None):
            raise UsageError(f"an edit is about a concept's name, a prototype's id or None, got {self.who!r}")
        if self.action in ("reject", "accept"):
            if self.who is None or self.box is not None:
                raise UsageError(f"to {self.action}, name a concept or a prototype, and draw no box")
            return
        if self.box is None:
            raise UsageError(f"a {self.action} edit needs a box (x0, y0, x1, y1)")
        box = Box(*map(float, self.box))
        if not (box.x0 < box.x1 and box.y0 < box.y1):
            raise UsageError(f"box {tuple(box)} is empty: expected x0 < x1 and y0 < y1")
        object.__setattr__(self, "box", box)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {"action": self.action, "who": self.who, "box": None if self.box is None else list(self.box)}


@dataclass(frozen=True)
class Interaction:
    """What a person did to one case, in order, and what it means.

    Attributes
    ----------
    edits : tuple of Edit
        Later ones add to earlier ones.
    outside : float
        What is left of a similarity outside positive boxes, 0 to 1.
    absent : {"zero", "mean"}
        Evidence of a prototype that is rejected or has no place left.
    case : str, optional
        Id of the case it was made for.

    Examples
    --------
    >>> done = Interaction().reject("spot").negative((0, 0, 8, 8)).accept("spot")
    >>> done.rejected, len(done.edits)
    ((), 3)
    >>> Interaction.from_json(done.to_json()) == done
    True
    """

    edits: tuple[Edit, ...] = ()
    outside: float = 0.0
    absent: Literal["zero", "mean"] = "zero"
    case: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.outside <= 1:
            raise UsageError(f"outside must lie between 0 and 1, got {self.outside}")
        if self.absent not in ("zero", "mean"):
            raise UsageError(f"absent must be zero or mean, got {self.absent!r}")

    def reject(self, who: str | int) -> Interaction:
        """Return this and the rejection of a concept or prototype."""
        return self._with(Edit("reject", who))

    def accept(self, who: str | int) -> Interaction:
        """Return this with a rejection taken back."""
        return self._with(Edit("accept", who))

    def negative(self, box: Sequence[float], who: Who = None) -> Interaction:
        """Return this and a part of the picture where nothing, or not this concept, may be found."""
        return self._with(Edit("negative", who, Box(*box)))

    def positive(self, box: Sequence[float], who: Who = None) -> Interaction:
        """Return this and a part of the picture where to look."""
        return self._with(Edit("positive", who, Box(*box)))

    def undo(self) -> Interaction:
        """Return this without the last edit."""
        return replace(self, edits=self.edits[:-1])

    def _with(self, edit: Edit) -> Interaction:
        return replace(self, edits=(*self.edits, edit))

    @property
    def rejected(self) -> tuple[str | int, ...]:
        """What is rejected after all edits."""
        left: dict[str | int, None] = {}
        for edit in self.edits:
            if edit.action == "reject" and edit.who is not None:
                left[edit.who] = None
            elif edit.action == "accept" and edit.who is not None:
                left.pop(edit.who, None)
        return tuple(left)

    def boxes(self, action: Literal["negative", "positive"]) -> tuple[Edit, ...]:
        """Return the edits that draw such boxes."""
        return tuple(edit for edit in self.edits if edit.action == action)

    def to_json(self) -> str:
        """Return one JSON object: the log of the edits, to be replayed."""
        plain = {
            "format": 1,
            "case": self.case,
            "outside": self.outside,
            "absent": self.absent,
            "edits": [edit.to_dict() for edit in self.edits],
        }
        return json.dumps(plain, allow_nan=False, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Interaction:
        """Read what :meth:`to_json` wrote.

        Raises
        ------
        DataError
            If it is no log of edits.
        """
        try:
            plain = json.loads(text)
            if plain["format"] != 1:
                raise DataError(f"a log of edits of format {plain['format']!r}: this version reads format 1")
            edits = tuple(
                Edit(e["action"], e["who"], None if e["box"] is None else Box(*map(float, e["box"])))
                for e in plain["edits"]
            )
            return cls(edits, float(plain["outside"]), plain["absent"], plain["case"])
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"this is no log of edits ({error!r})") from error

    def save(self, path: str | Path) -> Path:
        """Write the log of the edits."""
        with whole_file(path, "the edits") as temporary:
            temporary.write_text(self.to_json() + "\n", encoding="utf-8")
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> Interaction:
        """Read a log of edits."""
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path} cannot be read ({error})") from error


def write_log(path: str | Path, interactions: Sequence[Interaction]) -> Path:
    """Write the edits of several cases, one JSON object a line."""
    for interaction in interactions:
        if interaction.case is None:
            raise UsageError("a log of several cases needs the case of each interaction")
    with whole_file(path, "the edits") as temporary, open(temporary, "w", encoding="utf-8") as file:
        for interaction in interactions:
            file.write(json.dumps(json.loads(interaction.to_json()), allow_nan=False) + "\n")
    return Path(path)


def read_log(path: str | Path) -> dict[str, Interaction]:
    """Read what :func:`write_log` wrote, by case id: hand it to :func:`interact` to replay it."""

    def lines() -> Iterator[str]:
        try:
            yield from Path(path).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path} cannot be read ({error})") from error

    found: dict[str, Interaction] = {}
    for number, line in enumerate(lines(), start=1):
        if not line.strip():
            continue
        interaction = Interaction.from_json(line)
        if interaction.case is None or interaction.case in found:
            raise DataError(f"{path} line {number}: expected one interaction a case, with its id")
        found[interaction.case] = interaction
    return found
