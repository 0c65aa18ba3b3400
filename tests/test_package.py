"""The package as a person meets it: version, public names, and what importing it costs."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import protolearn

HEAVY = ("torch", "lightning", "torchvision", "timm", "sklearn", "numpy", "PIL", "jsonargparse")


def python(code: str) -> str:
    """Run code in a fresh interpreter and return what it printed."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def processor_seconds(code: str, tries: int) -> float:
    """Return the least processor time of several fresh interpreters: waiting for a busy machine is not counted."""

    def spent() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    times = []
    for _ in range(tries):
        before = spent()
        python(code)
        times.append(spent() - before)
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


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["nonsense"], ["--version"]], ids=" ".join)
def test_telling_loads_neither_torch_nor_lightning(words: list[str]) -> None:
    code = command_line(words) + "code = main()\n"
    printed = python(code + f"print('heavy:', code, [m for m in {HEAVY!r} if m in sys.modules])")
    assert printed.strip().endswith(f"heavy: {2 if words == ['nonsense'] else 0} []")


def test_import_costs_little_beside_torch() -> None:
    """Under 0.3 s beyond `import torch`."""
    code = "import time, torch; start = time.process_time(); import protolearn; print(time.process_time() - start)"
    assert min(float(python(code)) for _ in range(2)) < 0.3


def test_help_costs_little() -> None:
    """Under 0.7 s beyond `python -c pass`; on a slow machine, under half of `import torch`."""
    nothing = processor_seconds("pass", tries=3)
    help_text = processor_seconds(command_line(["--help"]) + "main()", tries=3) - nothing
    assert help_text < 0.7 or help_text < 0.5 * (processor_seconds("import torch", tries=2) - nothing)


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
