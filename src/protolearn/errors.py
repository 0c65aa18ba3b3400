"""Errors that say what went wrong, where, and what to do next, each in one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")


class ProtolearnError(ValueError):
    """Any failure the library can explain; the command line prints it as one line and exits with ``exit_code``."""

    exit_code = 1


class UsageError(ProtolearnError):
    """A name, setting or argument that cannot be right, whatever the data."""

    exit_code = 2


class DataError(ProtolearnError):
    """A picture, table or data set that cannot be used as it is."""


class ModelFileError(ProtolearnError):
    """A model folder or file that is missing, truncated, hostile or from another version."""


class TrainingError(ProtolearnError):
    """Training that cannot go on; the message names the term, the phase and the checkpoint that was kept."""


class MissingExtra(ProtolearnError):
    """An optional dependency that is not installed; the message names the extra that brings it."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs {package}, which is not installed: pip install 'protolearn[{extra}]'")


def nearest_names(word: str, names: Iterable[str], most: int = 3) -> str:
    """Return a hint with the names closest to a mistyped word, or the whole list when nothing is close.

    Examples
    --------
    >>> nearest_names("protopet", ["protopnet", "glvq"])
    "did you mean 'protopnet'?"
    >>> nearest_names("zzz", ["protopnet", "glvq"])
    "choose from 'glvq', 'protopnet'"
    """
    known = sorted(set(names))
    close = difflib.get_close_matches(word, known, n=most, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(repr(name) for name in close) + "?"
    return "choose from " + ", ".join(repr(name) for name in known[:40])


def look_up(kind: str, name: str, table: Mapping[str, T]) -> T:
    """Return what a table holds under a name.

    Raises
    ------
    UsageError
        If it holds nothing there; the nearest names are suggested.

    Examples
    --------
    >>> look_up("number", "two", {"one": 1, "two": 2})
    2
    """
    if name not in table:
        raise UsageError(f"no {kind} is called {name!r}: {nearest_names(name, table)}")
    return table[name]
