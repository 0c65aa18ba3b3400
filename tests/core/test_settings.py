"""Checks of settings: what passes, what does not, and that every page has its choices checked."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from protolearn.core.method import Method, registered
from protolearn.core.settings import above, at_least, rates_of, require, rising_epochs, within
from protolearn.errors import UsageError
from protolearn.methods import list_methods


@dataclass(frozen=True)
class Some(Method):
    """A method with a setting of each kind."""

    count: int = 1
    share: float = 0.5
    width: int | None = None
    at: tuple[int, ...] = (2, 5)
    kind: Literal["a", "b"] = "a"
    many: Literal["a", "b", "c", "d"] | None = None
    place: Literal["here", False] = False

    slug = "some"
    build = objective = weights = phases = None  # type: ignore[assignment]


Some.__abstractmethods__ = frozenset()


@pytest.mark.parametrize(
    ("check", "right", "wrong", "message"),
    [
        (lambda m: at_least(m, 1, "count"), {"count": 1}, {"count": 0}, "some: count must be at least 1, got 0"),
        (lambda m: at_least(m, 1, "width"), {"width": None}, {"width": 0}, "some: width must be at least 1, got 0"),
        (lambda m: at_least(m, 1, "count"), {"count": 2}, {"count": None}, "some: count must be at least 1, got None"),
        (lambda m: at_least(m, 0, "share"), {"share": 0.0}, {"share": float("nan")}, "share must be at least 0"),
        (lambda m: above(m, 0, "share"), {"share": 1e-9}, {"share": 0.0}, "some: share must be above 0, got 0.0"),
        (lambda m: within(m, "[0, 1)", "share"), {"share": 0.0}, {"share": 1.0}, r"share must be in \[0, 1\)"),
        (lambda m: within(m, "(0, 1]", "share"), {"share": 1.0}, {"share": 0.0}, r"share must be in \(0, 1\]"),
        (lambda m: within(m, "[0, 1]", "share"), {"share": 1}, {"share": float("nan")}, r"share must be in \[0, 1\]"),
        (lambda m: rising_epochs(m, "at"), {"at": (1,)}, {"at": ()}, "at must be rising epoch numbers"),
        (lambda m: rising_epochs(m, "at"), {"at": (1, 9)}, {"at": (3, 3)}, r"from 1, got \(3, 3\)"),
        (lambda m: rising_epochs(m, "at"), {"at": (1, 2)}, {"at": (0, 2)}, "rising epoch numbers from 1"),
        (lambda m: require(m, m.count % 2 == 0, "count", "be even"), {"count": 2}, {"count": 3}, "be even, got 3"),
    ],
)  # fmt: skip
def test_a_check(check: Callable[[Some], None], right: dict[str, Any], wrong: dict[str, Any], message: str) -> None:
    check(Some(**right))
    with pytest.raises(UsageError, match=message):
        check(Some(**wrong))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kind": "c"}, "some: kind must be a or b, got 'c'"),
        ({"many": "e"}, "some: many must be one of a, b, c, d, None, got 'e'"),
        ({"place": 0}, "some: place must be here or False, got 0"),
    ],
)
def test_choices_are_those_of_the_type(wrong: dict[str, Any], message: str) -> None:
    Some(many=None, place="here")
    with pytest.raises(UsageError, match=message):
        Some(**wrong)


@pytest.mark.parametrize("slug", sorted(list_methods()))
def test_every_page_has_its_choices_checked(slug: str) -> None:
    cls = registered()[slug]
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if typing.get_origin(hints[field.name]) is Literal:
            with pytest.raises(UsageError, match=f"{slug}: {field.name} must be .*got 'no such choice'"):
                cls(**{field.name: "no such choice"})


def test_a_group_without_a_rate_is_left_out() -> None:
    assert rates_of(encoder=None, neck=0.1, head=0.0) == {"neck": 0.1, "head": 0.0}
    assert rates_of() == {}
