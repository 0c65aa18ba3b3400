"""Who may import whom, read from the source with ast: docs/architecture.md says why."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "protolearn"

# A room -> the rooms it may use beside itself. `errors` and `structures` stand below every room.
MAY_USE: dict[str, set[str]] = {
    "errors": set(),
    "structures": {"errors"},
    "core": {"errors", "structures"},
    "objectives": {"errors", "structures"},
    "data": {"errors", "structures"},
    "encoders": {"errors", "structures", "core", "data"},
    "explain": {"errors", "structures", "core", "audit"},
    "audit": {"errors", "structures", "core"},
    "methods": {"errors", "structures", "core", "objectives", "encoders", "explain"},
    "training": {"errors", "structures", "core", "data", "encoders", "methods"},
    "tasks": {"errors", "structures", "core", "data", "encoders", "training", "audit", "explain"},
}
# A room -> rooms it may name in annotations only, where nothing is imported at run time.
MAY_NAME: dict[str, set[str]] = {"structures": {"core"}}  # an Output holds the bank and head that made it
OUTER = {"interop", "app", "cli"}  # may use every room; no room may use them
PYTORCH_ONLY = ("core", "objectives", "structures", "errors")


@dataclass(frozen=True)
class Import:
    """One import statement: where it stands and what it brings."""

    file: Path
    line: int
    module: str  # absolute dotted name
    name: str  # the name taken from it, or ""
    at_import: bool  # runs when the file is imported, not inside a function
    runs: bool = True  # False in a block for the type checker only

    @property
    def here(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line}"

    @property
    def room(self) -> str | None:
        """Return the room of protolearn this import reaches, or None for other packages."""
        parts = f"{self.module}.{self.name}".split(".") if self.module == "protolearn" else self.module.split(".")
        room = parts[1] if parts[0] == "protolearn" and len(parts) > 1 else ""
        return room if room and not room.startswith("__") else None  # the package itself holds only its version


def room_of(file: Path) -> str:
    return file.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports_of(file: Path) -> Iterator[Import]:
    package = ("protolearn", *file.relative_to(SOURCE).parent.parts)

    def walk(node: ast.AST, at_import: bool, runs: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(file, child.lineno, alias.name, "", at_import, runs)
            elif isinstance(child, ast.ImportFrom):
                above = package[: len(package) - child.level + 1] if child.level else ()
                module = ".".join((*above, *([child.module] if child.module else [])))
                for alias in child.names:
                    yield Import(file, child.lineno, module, alias.name, at_import, runs)
            else:
                later = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                checker = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)
                yield from walk(child, at_import and not later and not checker, runs and not checker)

    yield from walk(ast.parse(file.read_text(encoding="utf-8")), True, True)


FILES = sorted(file for file in SOURCE.rglob("*.py") if file != SOURCE / "__init__.py")
IMPORTS = [found for file in FILES for found in imports_of(file)]


def names(imports: list[Import]) -> list[str]:
    return [f"{i.here} imports {i.module}{'.' + i.name if i.name else ''}" for i in imports]


def test_every_room_has_a_rule() -> None:
    assert {room_of(file) for file in FILES} <= {*MAY_USE, *OUTER, "__main__"}


@pytest.mark.parametrize("room", sorted(MAY_USE))
def test_rooms_use_only_the_rooms_below_them(room: str) -> None:
    allowed = MAY_USE[room] | {room}
    named = allowed | MAY_NAME.get(room, set())
    mine = [i for i in IMPORTS if room_of(i.file) == room and i.room is not None]
    wrong = [i for i in mine if i.room not in (allowed if i.runs else named)]
    assert not names(wrong)


def test_nobody_imports_the_outer_rooms() -> None:
    wrong = [i for i in IMPORTS if i.room in {"app", "cli"} and room_of(i.file) not in {i.room, "__main__", "cli"}]
    wrong += [i for i in IMPORTS if i.room == "interop" and room_of(i.file) not in OUTER]
    assert not names(wrong)


def test_core_and_objectives_need_pytorch_and_nothing_else() -> None:
    allowed = {"torch", "protolearn", *sys.stdlib_module_names}
    wrong = [i for i in IMPORTS if room_of(i.file) in PYTORCH_ONLY and i.module.split(".")[0] not in allowed]
    assert not names(wrong)


def test_a_method_never_imports_a_sibling() -> None:
    files = {f for f in FILES if room_of(f) == "methods" and f.name != "__init__.py"}
    assert not names([i for i in IMPORTS if i.file in files and i.room == "methods"])


def test_no_room_reaches_for_private_names_of_another() -> None:
    wrong = [
        i
        for i in IMPORTS
        if i.room not in {None, room_of(i.file)}
        and any(part.startswith("_") and not part.startswith("__") for part in (*i.module.split("."), i.name))
    ]
    assert not names(wrong)


def test_the_plain_install_is_enough_to_import_every_module() -> None:
    """Optional packages are imported inside the function that needs them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    plain = {re.split(r"[\[<>=!~; ]", wanted)[0].lower() for wanted in project["dependencies"]}
    module_names = {"scikit-learn": "sklearn", "pyyaml": "yaml", "pillow": "PIL", "tensorboardx": "tensorboardX"}
    allowed = {module_names.get(name, name) for name in plain} | {"protolearn", *sys.stdlib_module_names}
    wrong = [i for i in IMPORTS if i.at_import and i.module.split(".")[0] not in allowed]
    assert not names(wrong)


def test_no_pickle_anywhere() -> None:
    unsafe = {"pickle", "cloudpickle", "dill", "shelve", "marshal", "joblib"}
    wrong = [i for i in IMPORTS if i.module.split(".")[0] in unsafe]
    assert not names(wrong)


@cache
def code_of(file: Path) -> str:
    """Return a file's code without comments and docstrings, which may cite a paper as the source of a formula."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = [*node.body[1:], ast.Pass()]
    return ast.unparse(tree)


@pytest.mark.parametrize("room", ["core", "objectives", "training", "explain"])
def test_no_flag_per_paper(room: str) -> None:
    """The parts know no method by name; a paper hands in functions and parts instead."""
    methods = {f.stem for f in FILES if room_of(f) == "methods" and f.name != "__init__.py"}
    found = [
        f"{file.relative_to(ROOT)} mentions {name}"
        for file in FILES
        if room_of(file) == room
        for name in methods
        if re.search(rf"\b{name}\b", code_of(file), re.IGNORECASE)
    ]
    assert not found


def test_the_checker_sees_every_kind_of_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rules above are only as good as the reading of the source."""
    file = tmp_path / "explain" / "page.py"
    file.parent.mkdir()
    file.write_text(
        "import torch\n"
        "from protolearn import cli\n"
        "from ..core import bank\n"
        "from . import regions\n"
        "if TYPE_CHECKING:\n    from protolearn.app import web\n"
        "def late():\n    import gradio\n"
    )
    monkeypatch.setitem(globals(), "SOURCE", tmp_path)
    seen = list(imports_of(file))
    assert [(i.module, i.name, i.room, i.at_import, i.runs) for i in seen] == [
        ("torch", "", None, True, True),
        ("protolearn", "cli", "cli", True, True),
        ("protolearn.core", "bank", "core", True, True),
        ("protolearn.explain", "regions", "explain", True, True),
        ("protolearn.app", "web", "app", False, False),
        ("gradio", "", None, False, True),
    ]
