"""What settings of a method may be, with one message for each kind of check: ``slug: name must ..., got ...``.

A setting that is None passes where its type allows None: it then means that something is not used, or not trained.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from protolearn.errors import UsageError

if TYPE_CHECKING:
    from protolearn.core.method import Method


def require(method: Method, holds: bool, name: str, wanted: str) -> None:
    """Refuse the setting ``name`` unless ``holds``; ``wanted`` goes on from "name must".

    Examples
    --------
    >>> from protolearn.methods import get_method
    >>> require(get_method("protopnet")(), False, "dim", "be even")
    Traceback (most recent call last):
        ...
    protolearn.errors.UsageError: protopnet: dim must be even, got 128
    """
    if not holds:
        raise UsageError(f"{method.slug}: {name} must {wanted}, got {getattr(method, name)!r}")


def at_least(method: Method, least: float, *names: str) -> None:
    """Refuse settings below ``least``, and NaN."""
    _each(method, names, lambda value: value >= least, f"be at least {least}")


def above(method: Method, bound: float, *names: str) -> None:
    """Refuse settings that are not above ``bound``."""
    _each(method, names, lambda value: value > bound, f"be above {bound}")


def within(method: Method, interval: str, *names: str) -> None:
    """Refuse settings outside an interval, written as in ``"[0, 1)"``: a round bracket leaves the end out.

    Examples
    --------
    >>> from protolearn.methods import get_method
    >>> within(get_method("protopnet")(), "[0, 1)", "weight_decay", "gamma")
    """
    low, high = (float(end) for end in interval[1:-1].split(","))

    def inside(value: Any) -> bool:
        above_low = value >= low if interval[0] == "[" else value > low
        return bool(above_low and (value <= high if interval[-1] == "]" else value < high))

    _each(method, names, inside, f"be in {interval}")


def rising_epochs(method: Method, name: str) -> None:
    """Refuse a setting that is not a list of epochs, each later than the one before it."""
    epochs = getattr(method, name)
    right = bool(epochs) and list(epochs) == sorted(set(epochs)) and epochs[0] >= 1
    require(method, right, name, "be rising epoch numbers from 1")


def one_of_its_choices(method: Method) -> None:
    """Refuse every setting whose type lists its values (``Literal``) and that has another one."""
    for name, hint in _hints(type(method)).items():
        choices = _choices(hint)
        value = getattr(method, name)
        if choices and not any(type(value) is type(choice) and value == choice for choice in choices):
            said = [str(choice) for choice in choices]
            require(method, False, name, f"be {' or '.join(said) if len(said) < 4 else 'one of ' + ', '.join(said)}")


def rates_of(**groups: float | None) -> dict[str, float]:
    """Return the learning rates of a phase without the groups whose rate is None: those stay frozen.

    Examples
    --------
    >>> rates_of(encoder=None, neck=1e-3)
    {'neck': 0.001}
    """
    return {name: rate for name, rate in groups.items() if rate is not None}


def _each(method: Method, names: tuple[str, ...], holds: Callable[[Any], bool], wanted: str) -> None:
    for name in names:
        value = getattr(method, name)
        unused = value is None and _fits_none(_hints(type(method)).get(name))
        require(method, unused or (value is not None and bool(holds(value))), name, wanted)


@functools.cache
def _hints(cls: type[Method]) -> dict[str, Any]:
    """Return the types of the settings; none where a class was made in a place whose names cannot be found again."""
    try:
        hints = typing.get_type_hints(cls)
    except NameError:
        return {}
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _choices(hint: Any) -> tuple[Any, ...]:
    if typing.get_origin(hint) is Literal:
        return typing.get_args(hint)
    if not _is_union(hint):
        return ()
    found = [(None,) if part is type(None) else _choices(part) for part in typing.get_args(hint)]
    return tuple(choice for part in found for choice in part) if all(found) else ()


def _fits_none(hint: Any) -> bool:
    return _is_union(hint) and type(None) in typing.get_args(hint)


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)
