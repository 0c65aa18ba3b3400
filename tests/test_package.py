"""The package as a person meets it: version, public names, and what importing it costs."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import subprocess
import sys
import time
from pathlib import Path

import pytest

import protolearn

HEAVY = ("torch", "lightning", "torchvision", "timm", "sklearn", "numpy", "PIL", "jsonargparse")


def python(code: str) -> str:
    """Run code in a fresh interpreter and return what it printed."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def seconds(code: str, tries: int) -> float:
    """Return the best of several fresh interpreters: the least disturbed one."""
    times = []
    for _ in range(tries):
        start = time.perf_counter()
        python(code)
        times.append(time.perf_counter() - start)
    return min(times)


def command_line(arguments: list[str]) -> str:
    return f"import sys; sys.argv = ['protolearn', *{arguments!r}]\nfrom protolearn.cli import main\n"


def test_version_is_the_installed_one() -> None:
    assert protolearn.__version__ == importlib.metadata.version("protolearn")


def test_typed_marker_is_shipped() -> None:
    assert (Path(protolearn.__file__).parent / "py.typed").is_file()


def test_import_loads_nothing_heavy() -> None:
    loaded = python(f"import sys, protolearn; print([m for m in {HEAVY!r} if m in sys.modules])")
    assert loaded.strip() == "[]"


def test_help_loads_neither_torch_nor_lightning() -> None:
    code = (
        command_line(["--help"])
        + "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\n"
        + "print('heavy:', [m for m in ('torch', 'lightning', 'torchvision', 'timm') if m in sys.modules])\n"
    )
    printed = python(code)
    assert printed.strip().endswith("heavy: []")
    assert "train" in printed


def test_import_costs_little_beside_torch() -> None:
    """Under 0.3 s beyond `import torch`, or a fifth of it where the machine is slow."""
    torch_alone = seconds("import torch", tries=3)
    both = seconds("import torch, protolearn", tries=3)
    assert both - torch_alone < max(0.3, 0.2 * torch_alone)


def test_help_costs_little_beside_torch() -> None:
    """Under 0.7 s beyond `python -c pass`, or half of `import torch` where the machine is slow."""
    nothing = seconds("pass", tries=3)
    torch_alone = seconds("import torch", tries=2) - nothing
    ask = command_line(["--help"]) + "try:\n    main()\nexcept SystemExit:\n    pass\n"
    help_text = seconds(ask, tries=3) - nothing
    assert help_text < max(0.7, 0.5 * torch_alone)


def test_public_names_agree_with_each_other() -> None:
    """The table, __all__ and the block for type checkers list the same names from the same modules."""
    table = protolearn._PUBLIC
    assert sorted(protolearn.__all__) == sorted([*table, "__version__"])
    tree = ast.parse(Path(protolearn.__file__).read_text(encoding="utf-8"))
    block = next(n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING")
    typed = {alias.name: n.module for n in block.body if isinstance(n, ast.ImportFrom) for alias in n.names}
    assert typed == table
    assert set(table) <= set(dir(protolearn))


@pytest.mark.parametrize("name", sorted(protolearn._PUBLIC))
def test_public_name_resolves_and_is_no_module(name: str) -> None:
    """A function must not hide behind a room of the same name: importing the room would replace it."""
    assert importlib.util.find_spec(f"protolearn.{name}") is None
    assert callable(getattr(protolearn, name))


def test_unknown_name_says_what_is_near() -> None:
    with pytest.raises(AttributeError, match="did you mean 'ProtoPNet'"):
        _ = protolearn.ProtoPnet
