"""No two pages of methods say the same thing twice: what they share belongs to `core` or `objectives`.

A run is a number of lines of code one after the other, compared as they stand and with names, strings and numbers
replaced. What counts are the lines of functions, their first lines included. What does not: blank lines, comments,
docstrings, closing brackets, and what only states values: everything outside functions (imports, settings, recipes,
the entry in the registry) and entries of a dictionary that name a constant or a setting.
"""

from __future__ import annotations

import ast
import io
import keyword
import tokenize
from itertools import combinations
from pathlib import Path

import pytest

METHODS = Path(__file__).resolve().parent.parent / "src" / "protolearn" / "methods"
MOST = 5
"""Lines in a row that two pages may share."""

PLACE = {tokenize.NAME: "name", tokenize.STRING: "text", tokenize.NUMBER: "number"}
PLACE |= {kind: "text" for kind, name in tokenize.tok_name.items() if name.startswith("FSTRING_")}
LAYOUT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def states_a_value(node: ast.expr) -> bool:
    """Whether an expression is a constant or a name, with a sign or an attribute at most."""
    if isinstance(node, ast.Attribute | ast.UnaryOp):
        return states_a_value(node.value if isinstance(node, ast.Attribute) else node.operand)
    return isinstance(node, ast.Constant | ast.Name)


def counted(source: str) -> set[int]:
    """Return the numbers of the lines that count."""
    lines: set[int] = set()
    left_out: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            lines |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
            if ast.get_docstring(node) is not None:
                left_out |= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
        elif isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and states_a_value(value) and node.lineno < key.lineno:
                    left_out.add(key.lineno)
    return lines - left_out


def shapes(source: str) -> list[tuple[int, str]]:
    """Return each line that counts: its number, and its tokens with names, strings and numbers replaced."""
    wanted, found = counted(source), dict[int, list[str]]()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.start[0] in wanted and token.type not in LAYOUT:
            plain = keyword.iskeyword(token.string) or token.type not in PLACE
            said = token.string if plain else PLACE[token.type]
            parts = found.setdefault(token.start[0], [])
            if not (said == "text" and parts and parts[-1] == "text"):
                parts.append(said)
    lines = [(number, " ".join(parts)) for number, parts in sorted(found.items())]
    return [(number, shape) for number, shape in lines if set(shape) - set(" )]},")]


def shared_runs(pages: dict[str, str], most: int = MOST) -> list[str]:
    """Return the places where two pages share more than ``most`` lines in a row."""
    runs: dict[str, dict[tuple[str, ...], int]] = {}
    for name, source in pages.items():
        lines = shapes(source)
        windows = zip(*(lines[start:] for start in range(most + 1)), strict=False)
        runs[name] = {tuple(shape for _, shape in window): window[0][0] for window in windows}
    return [
        f"{one}:{runs[one][run]} ~ {other}:{runs[other][run]}"
        for one, other in combinations(runs, 2)
        for run in runs[one]
        if run in runs[other]
    ]


def test_pages_share_no_run_of_six_lines() -> None:
    pages = {str(file.relative_to(METHODS)): file.read_text(encoding="utf-8") for file in sorted(METHODS.rglob("*.py"))}
    assert len(pages) > 15
    assert shared_runs(pages) == []


PAGE = '''
"""A page."""
from somewhere import something

RECIPE = {{"a": 1, "b": 2}}

class {cls}:
    """A method."""

    {first}: int = 1
    rate: float = 0.5

    def phases(self):
        """Return {what}."""
        # {what}
        rates = {{"neck": self.rate, "head": self.{first}}}

        plan = [Train("{what}", self.{first}, rates)]
        for epoch in range(self.{first}):
            if epoch > 3:
                plan.append(Project({number}))
        return plan, {{
            "a": self.{first},
            "b": -1.0,
        }}{end}
'''


@pytest.mark.parametrize("end", ["", "\n\n    def weights(self):\n        return {'a': 1}"])
def test_a_run_with_other_names_strings_and_numbers_is_seen(end: str) -> None:
    one = PAGE.format(cls="One", first="epochs", what="warm", number=3, end=end)
    other = PAGE.format(cls="Other", first="rounds", what="joint up to a point", number=40, end="")
    assert len(shapes(one)) == (7 if not end else 9)
    assert len(shared_runs({"one.py": one, "other.py": other})) == 2
    assert shared_runs({"one.py": one, "other.py": other}, most=7) == []


def test_what_does_not_count() -> None:
    """Settings, docstrings, dictionaries of values and what stands outside functions may be alike."""
    alike = "import a\n" * 8 + "LONG = Recipe(\n" + "    a=1,\n" * 8 + ")\n"
    alike += "class A:\n" + "".join(f"    a{i}: int = {i}\n" for i in range(8))
    alike += '    def f(self):\n        """One.\n' + "\n        Two.\n" * 8 + '        """\n'
    alike += "        return {\n" + "".join(f"            'a{i}': self.a{i},\n" for i in range(8)) + "        }\n"
    assert shared_runs({"one.py": alike, "other.py": alike}) == []
    assert len(shapes(alike)) == 2
