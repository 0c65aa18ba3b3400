"""From checked settings and a file of weights to a model, trusting neither."""

from __future__ import annotations

import dataclasses
import math
import os
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from protolearn.core.method import Method, make_method, registered
from protolearn.core.model import PrototypeModel
from protolearn.core.scorer import Scorer, make_scorer
from protolearn.errors import ModelFileError, ProtolearnError, UsageError, look_up
from protolearn.training.untrusted import bounded_allocation, check_file

_NAME_LIMIT = 1000
_SCORER = "scorer."
_ROWS = ("vectors", "ownership", "spread", "counts", "active", "banned", "ids", "groups")  # one a prototype


@dataclasses.dataclass(frozen=True)
class Shape:
    """Size and type of a tensor in a file."""

    size: tuple[int, ...]
    dtype: str


def build(path: Path, config: dict[str, Any], shapes: dict[str, Shape]) -> PrototypeModel:
    """Return the model that checked settings describe, with random weights.

    ``shapes`` of the weights beside the settings bound what may be allocated: settings that claim a billion prototypes
    fail before memory is asked for them.
    """
    from protolearn import methods as _pages  # noqa: F401  fills the registry
    from protolearn.encoders import make_encoder

    method = _read_method(path, config["method"])
    _check_encoder(path, config["encoder"])
    held = sum(math.prod(shape.size) for shape in shapes.values())
    try:
        with torch.random.fork_rng(devices=[]), bounded_allocation(8 * held + 2**26, str(path)):
            encoder = make_encoder(config["encoder"])
            model = method.build(encoder, len(config["classes"]))
    except ModelFileError:
        raise
    except ProtolearnError as error:
        raise ModelFileError(f"{path}: {error}") from error
    except (Exception, RecursionError) as error:
        raise ModelFileError(
            f"{path}: cannot rebuild the model ({type(error).__name__}: {_one_line(error)})"
        ) from error
    model.method = method
    model.scorer = _read_scorer(path, config["metadata"].get("scorer"), shapes)
    return model


def method_called(slug: str) -> type[Method]:
    """Return a method's class by name, for rooms that do not know the pages.

    Raises
    ------
    UsageError
        If there is none; the nearest names are suggested.

    Examples
    --------
    >>> method_called("protopnet").area
    'parts'
    """
    from protolearn import methods as _pages  # noqa: F401  fills the registry

    return look_up("method", slug, registered())


def _read_scorer(path: Path, spec: Any, shapes: dict[str, Shape]) -> Scorer | None:
    """Return the novelty score that metadata describe; its size comes from the weights."""
    held = any(name.startswith(_SCORER) for name in shapes)
    if spec is None and not held:
        return None
    try:
        if not isinstance(spec, dict) or not held:
            raise UsageError("the novelty score's settings and its weights do not belong together")
        return make_scorer(spec)
    except (ProtolearnError, TypeError, ValueError) as error:
        raise ModelFileError(f"{path}: {_one_line(error)}") from error


def _read_method(path: Path, settings: dict[str, Any]) -> Method:
    try:
        slug = settings.get("method")
        if isinstance(slug, str) and slug in registered():
            check_types(registered()[slug], {key: value for key, value in settings.items() if key != "method"})
        return make_method(settings)
    except (ProtolearnError, TypeError, ValueError) as error:
        raise ModelFileError(f"{path}: {_one_line(error)}") from error


def check_types(cls: type[Method], settings: Mapping[str, Any]) -> None:
    """Check the type of each known setting of a method.

    Raises
    ------
    UsageError
        If a value is not of its setting's type, or a number is not finite.
    """
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if field.name in settings and not _fits(settings[field.name], hints[field.name]):
            shown = repr(settings[field.name])
            raise UsageError(
                f"{cls.slug}: {field.name} must be {field.type}, got {shown if len(shown) < 60 else shown[:60] + '...'}"
            )


def _fits(value: Any, hint: Any) -> bool:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in inner)
    if origin is Literal:
        return any(type(value) is type(option) and value == option for option in inner)
    if origin in (tuple, list):
        if not isinstance(value, tuple | list):
            return False
        if origin is tuple and (len(inner) != 2 or inner[1] is not Ellipsis):
            return len(value) == len(inner) and all(map(_fits, value, inner))
        return all(_fits(entry, inner[0]) for entry in value) if inner else True
    if hint is type(None):
        return value is None
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, hint) if isinstance(hint, type) else True


def _check_encoder(path: Path, spec: dict[str, Any]) -> None:
    """Refuse what would make building an encoder read or fetch anything."""
    pending: list[tuple[str, Any]] = [("encoder", spec)]
    while pending:
        name, value = pending.pop()
        if isinstance(value, dict):
            pending += [(str(key), entry) for key, entry in value.items()]
        elif isinstance(value, list):
            pending += [(name, entry) for entry in value]
        elif isinstance(value, str):
            if len(value) > _NAME_LIMIT:
                raise ModelFileError(f"{path}: the encoder's {name!r} is {len(value):,} characters long")
            if name in ("weights", "checkpoint_path", "pretrained_cfg"):
                raise ModelFileError(
                    f"{path}: the encoder asks for {name} {value!r}: weights come from model.safetensors alone"
                )
            if ":" in value or ".." in value or os.path.isabs(value):
                raise ModelFileError(f"{path}: the encoder's {name} {value!r} points outside this folder: refused")
        elif value is True and name == "pretrained":
            raise ModelFileError(
                f"{path}: the encoder asks for pretrained weights: weights come from model.safetensors alone"
            )


def read_shapes(path: Path, *, links: bool) -> dict[str, Shape]:
    """Return what tensors a file claims to hold, and have its length checked, without reading them."""
    check_file(path, links=links)
    try:
        with safe_open(path, framework="pt") as file:
            found = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {name: Shape(tuple(part.get_shape()), str(part.get_dtype())) for name, part in found.items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelFileError(
            f"{path} is not a whole safetensors file ({_one_line(error)}): truncated, or another kind of file"
        ) from error


_DTYPES = {
    torch.float32: "F32", torch.float64: "F64", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


def fill(model: PrototypeModel, path: Path, shapes: dict[str, Shape]) -> None:
    """Put the weights of a file into a model, after checking that they are what it needs."""
    expected = model.state_dict()
    built = len(model.bank)
    count = shapes["bank.ownership"].size[0] if shapes.get("bank.ownership", Shape((), "")).size else built
    for name in expected:
        if name not in shapes:
            raise ModelFileError(f"{path} lacks {name!r} ({len(expected)} tensors expected, {len(shapes)} found)")
    for name, shape in shapes.items():
        if name not in expected:
            raise ModelFileError(f"{path} holds {name[:80]!r}, which this model has no place for")
        wanted = expected[name]
        if shape.dtype != _DTYPES.get(wanted.dtype):
            raise ModelFileError(f"{path}: {name!r} has the type {shape.dtype}, expected {_DTYPES.get(wanted.dtype)}")
        if name.endswith("_extra_state") or (name.startswith(_SCORER) and len(shape.size) == wanted.ndim):
            continue
        row = name.removeprefix("bank.") in _ROWS and name.startswith("bank.")
        # rows of the bank come first; elsewhere any axis of that length may be the prototypes
        resized = tuple(
            count if step == built and (axis == 0 or not row) else step for axis, step in enumerate(wanted.shape)
        )
        if name.removeprefix("head.") in model.head.sized_apart and len(shape.size) == wanted.ndim:
            continue
        # and not every such axis need be: classes and prototypes may be equally many
        fits = len(shape.size) == wanted.ndim and all(
            got == step or (not row and step == built and got == count)
            for got, step in zip(shape.size, resized if row else wanted.shape, strict=True)
        )
        if not fits:
            raise ModelFileError(f"{path}: {name!r} has the shape {shape.size}, expected {resized}")
    if count < 1:
        raise ModelFileError(f"{path}: no prototype is left in this model")
    try:
        tensors = load_file(path)
        for name, tensor in tensors.items():
            unset = name in (f"{_SCORER}threshold", f"{_SCORER}rate") and bool(tensor.isnan().all())
            if tensor.is_floating_point() and not unset and not bool(torch.isfinite(tensor).all()):
                raise ModelFileError(f"{path}: {name!r} holds NaN or infinite numbers")
        model.load_state_dict(tensors, strict=True)
    except ModelFileError:
        raise
    except (SafetensorError, OSError, RuntimeError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise ModelFileError(f"{path}: the weights do not fit the model ({_one_line(error)})") from error
    _check_bank(model, path)


def _check_bank(model: PrototypeModel, path: Path) -> None:
    bank = model.bank
    ids = bank.ids.tolist()
    if len(set(ids)) != len(ids) or min(ids) < 0 or max(ids) >= int(bank.next_id):
        raise ModelFileError(f"{path}: prototype ids are not unique numbers from 0 to {int(bank.next_id) - 1}")
    if bool((bank.ownership < 0).any()) or bool((bank.counts < 0).any()):
        raise ModelFileError(f"{path}: a prototype has a negative ownership or count")
    for key, source in zip(ids, bank.sources, strict=True):
        if source is None:
            continue
        numbers = (source.distance, *(source.region or ()))
        if not (
            isinstance(source.case, str)
            and len(source.case) <= 4096
            and all(isinstance(text, str) and len(text) <= 128 for text in (source.content, source.encoder))
            and isinstance(source.position, int)
            and source.position >= 0
            and all(isinstance(number, int | float) and math.isfinite(number) for number in numbers)
            and (source.label is None or isinstance(source.label, int))
            and isinstance(source.moved, bool)
        ):
            raise ModelFileError(f"{path}: the source of prototype {key} is not a case, a place and a distance")
    try:
        per_unit = model.head.per_unit(len(bank))
        given = len(model.head.offset()) if per_unit is None else len(per_unit)
    except (RuntimeError, IndexError, ValueError) as error:
        raise ModelFileError(f"{path}: the head does not fit {len(bank)} prototypes ({_one_line(error)})") from error
    if given != bank.classes or bank.classes != len(model.classes):
        raise ModelFileError(f"{path}: the head gives {given} logits for {len(model.classes)} classes")


def _one_line(error: BaseException) -> str:
    lines = " ".join(str(error).split())
    return lines if len(lines) <= 300 else lines[:297] + "..."
