"""Reading files from strangers: bounded, plain data only, nothing executed, nothing large allocated on a claim."""

from __future__ import annotations

import json
import math
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from protolearn.errors import ModelFileError

TEXT_LIMIT = 16 * 2**20
_DEPTH_LIMIT = 24
_NODE_LIMIT = 500_000
_PLAIN_LIMIT = 8192  # characters of an unquoted scalar: long ones are only good for making number parsing slow
_YAML_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def check_file(path: Path, *, links: bool = False) -> int:
    """Return the size of a regular file.

    Raises
    ------
    ModelFileError
        If it is missing, not a regular file, or a link (unless ``links``).
    """
    try:
        if path.is_symlink() and not links:
            raise ModelFileError(f"{path} is a symbolic link: a model folder holds its own files; copy the file there")
        facts = path.stat()
    except FileNotFoundError as error:
        raise ModelFileError(f"{path} is missing: the folder is incomplete; copy or save the model again") from error
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read ({error.strerror or error})") from error
    if not stat.S_ISREG(facts.st_mode):
        raise ModelFileError(f"{path} is not a regular file")
    return facts.st_size


def read_text(path: Path, limit: int = TEXT_LIMIT, *, links: bool = False) -> str:
    """Return a UTF-8 text file of at most ``limit`` bytes."""
    size = check_file(path, links=links)
    if size > limit:
        raise ModelFileError(f"{path} holds {size:,} bytes, the limit is {limit:,}")
    try:
        with open(path, "rb") as file:
            return file.read(limit).decode("utf-8")
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise ModelFileError(f"{path} is not UTF-8 text (byte {error.start})") from error


def read_yaml(path: Path, *, links: bool = False) -> dict[str, Any]:
    """Return a YAML mapping of plain data; aliases, tags, repeated keys and deep nesting are refused.

    Raises
    ------
    ModelFileError
        If it is anything else.
    """
    text = read_text(path, links=links)
    try:
        _check_events(path, text)
        value = yaml.load(text, Loader=_YAML_LOADER)  # noqa: S506  safe loader; the events were checked above
    except yaml.YAMLError as error:
        mark: Any = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ModelFileError(f"{path}{where}: not valid YAML ({problem})") from error
    except (ValueError, TypeError, RecursionError, OverflowError, MemoryError) as error:
        if isinstance(error, ModelFileError):
            raise
        raise ModelFileError(f"{path}: not plain YAML data ({type(error).__name__})") from error
    if not isinstance(value, dict):
        raise ModelFileError(f"{path}: expected a mapping at the top, got {type(value).__name__}")
    return value


def _check_events(path: Path, text: str) -> None:
    """Walk the events of the parser, which build nothing, and refuse what a settings file has no need of."""
    levels: list[_Level] = []
    event: Any
    for count, event in enumerate(yaml.parse(text, Loader=_YAML_LOADER)):
        where = f"{path}, line {event.start_mark.line + 1}"
        if count > _NODE_LIMIT:
            raise ModelFileError(f"{path} has more than {_NODE_LIMIT:,} entries: not a file we wrote")
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise ModelFileError(f"{where}: aliases and anchors are not allowed")
        if getattr(event, "tag", None) is not None:
            raise ModelFileError(f"{where}: the tag {event.tag!r} is not allowed, only plain data")
        scalar = isinstance(event, yaml.ScalarEvent)
        starts = isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent)
        if scalar and event.style in (None, "", "\0") and len(event.value) > _PLAIN_LIMIT:
            raise ModelFileError(f"{where}: an unquoted value of {len(event.value):,} characters")
        if levels and levels[-1].mapping and (scalar or starts):
            levels[-1].take(event.value if scalar else None, where)
        if starts:
            levels.append(_Level(isinstance(event, yaml.MappingStartEvent)))
            if len(levels) > _DEPTH_LIMIT:
                raise ModelFileError(f"{where}: nested more than {_DEPTH_LIMIT} deep")
        elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            levels.pop()


class _Level:
    """One open mapping or sequence: which keys it has had, and whether a key comes next."""

    def __init__(self, mapping: bool) -> None:
        self.mapping, self.keys, self.key_next = mapping, set[str](), True

    def take(self, text: str | None, where: str) -> None:
        """Note the next key or value of a mapping; ``text`` is None for a nested one."""
        if self.key_next:
            if text is None:
                raise ModelFileError(f"{where}: a key must be text")
            if text in self.keys:
                raise ModelFileError(f"{where}: the key {text[:80]!r} occurs twice")
            self.keys.add(text)
        self.key_next = not self.key_next


def read_json(path: Path, *, links: bool = False) -> dict[str, Any]:
    """Return a JSON object; NaN and infinities are refused."""
    return parse_json(read_text(path, links=links), str(path))


def parse_json(text: str, where: str) -> dict[str, Any]:
    """Return the object in a JSON text."""

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not a JSON number")

    try:
        value = json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{where}: not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise ModelFileError(f"{where}: expected a JSON object, got {type(value).__name__}")
    return value


class _AllocationGuard(TorchDispatchMode):
    """Looks at how much an operation is about to create, and stops it when that is too much.

    New tensors count together; a result computed from others counts by itself, for it is usually gone soon.
    """

    def __init__(self, budget: int, refuse: Callable[[], NoReturn]) -> None:
        super().__init__()
        self.budget, self.made, self.refuse = budget, 0, refuse

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not (func._schema.is_mutable or func.is_view):
            schema = func._schema
            named = dict(zip((argument.name for argument in schema.arguments), args, strict=False)) | kwargs
            tensors = [value for value in args if isinstance(value, Tensor)]
            size = _elements(schema.name, named, tensors)
            self.made += 0 if tensors else size
            if max(size, self.made) > self.budget:
                self.refuse()
        return func(*args, **kwargs)


def _elements(name: str, named: dict[str, Any], tensors: list[Tensor]) -> int:
    """Return how many elements a call will create, as far as its arguments say."""
    if isinstance(named.get("size"), list | tuple):
        return math.prod(int(step) for step in named["size"])
    if name == "aten::eye":
        return int(named["n"]) * int(named.get("m", named["n"]))
    if name == "aten::arange":
        return max(0, math.ceil((named["end"] - named.get("start", 0)) / named.get("step", 1)))
    if not tensors:
        return 0
    first = tensors[0]
    if name == "aten::index_select":
        return first.numel() // max(1, first.shape[named["dim"]]) * int(named["index"].numel())
    if name == "aten::repeat":
        return first.numel() * math.prod(int(step) for step in named["repeats"])
    if name == "aten::repeat_interleave":
        return int(named["output_size"]) if named.get("output_size") is not None else int(first.sum())
    if name in ("aten::mm", "aten::bmm", "aten::addmm", "aten::baddbmm"):
        left, right = tensors[-2:]
        return left.numel() // max(1, left.shape[-1]) * right.shape[-1]
    if name == "aten::convolution" and not named["transposed"]:
        sides = zip(
            first.shape[2:], tensors[1].shape[2:], named["stride"], named["padding"], named["dilation"], strict=False
        )
        steps = [(side + 2 * pad - gap * (kernel - 1) - 1) // stride + 1 for side, kernel, stride, pad, gap in sides]
        return first.shape[0] * tensors[1].shape[0] * math.prod(max(0, step) for step in steps)
    try:
        return math.prod(torch.broadcast_shapes(*(tensor.shape for tensor in tensors)))
    except RuntimeError:  # not an operation that broadcasts
        return first.numel()


@contextmanager
def bounded_allocation(budget: int, where: str) -> Iterator[None]:
    """Fail with ``ModelFileError`` before the code inside creates more than ``budget`` tensor elements."""

    def refuse() -> NoReturn:
        raise ModelFileError(f"{where} asks for more than {budget:,} numbers, far beyond the weights beside it")

    with _AllocationGuard(budget, refuse), torch.no_grad():
        yield
