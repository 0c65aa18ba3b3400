"""Fill pages with what the code itself says, so that they cannot fall behind it.

Six lines are understood, each alone on its line:

    {{ run: protolearn train --help }}    the output of a command, as a code block
    {{ include: benchmarks/README.md }}   a file of the repository, its first heading left out
    {{ methods }}                         a table of every registered method
    {{ settings: protopnet }}             a table of a method's settings and their defaults
    {{ recipes: protopnet }}              a method's recipes: settings that go together
    {{ public }}                          a table of the names that `import protolearn` offers
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.structure.files import File

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

ROOT = Path(__file__).resolve().parent.parent
LINE = re.compile(r"^\{\{ (run|include|methods|settings|recipes|public)(?:: (.+?))? \}\}$", re.MULTILINE)


def command_output(command: str) -> str:
    """Run `protolearn ...` in this environment at a width that fits a page."""
    program, *arguments = shlex.split(command)
    if program != "protolearn":
        raise ValueError(f"only protolearn is run for a page, not {program}")
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from protolearn.cli import main; sys.exit(main())", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"},
    )
    if done.returncode != 0:
        raise RuntimeError(f"`{command}` failed while building the page:\n{done.stderr}")
    return re.sub(r"^usage: -c", "usage: protolearn", done.stdout, flags=re.MULTILINE)


def fill(match: re.Match[str]) -> str:
    what, argument = match.groups()
    if what == "run":
        return f"``` {{ .text .wrap }}\n{command_output(argument).rstrip()}\n```"
    if what == "include":
        return included(Path(argument))
    if what == "public":
        return public_table()
    if what == "settings":
        return settings_table(argument)
    if what == "recipes":
        return recipe_tables(argument)
    return method_table(json.loads(command_output("protolearn methods --json")))


def included(path: Path) -> str:
    """Return a file without its heading, its links to files beside it made links from the top of the site."""
    text = re.sub(r"\A# .*\n", "", (ROOT / path).read_text(encoding="utf-8"))
    return re.sub(r"\]\((?![a-z]+:|#|/)([^)]+)\)", lambda found: f"]({(path.parent / found[1]).as_posix()})", text)


def on_files(files: Files, config: MkDocsConfig, **_: object) -> Files:
    """Add receipts and their pages to the site, so that results and benchmarks can link to them; called by mkdocs."""
    for folder in ("results", "benchmarks"):
        for path in sorted((ROOT / folder).glob("*")):
            if path.suffix in {".md", ".json", ".csv", ".png", ".svg", ".py"} and path.name != "README.md":
                files.append(File.generated(config, f"{folder}/{path.name}", abs_src_path=str(path)))
    return files


def method_table(methods: list[dict[str, str]]) -> str:
    rows = ["| method | area | paper | verified |", "|---|---|---|---|"]
    for entry in methods:
        name = entry["name"]
        page = ROOT / "docs" / "methods" / f"{name}.md"
        shown = f"[`{name}`]({name}.md)" if page.exists() else f"`{name}`"
        rows.append(f"| {shown} | {entry['area']} | {entry['paper']} | {entry['verified']} |")
    return "\n".join(rows)


def settings_table(method: str) -> str:
    from protolearn.methods import get_method

    rows = ["| setting | default |", "|---|---|"]
    rows += [f"| `{field.name}` | `{field.default!r}` |" for field in dataclasses.fields(get_method(method))]
    return "\n".join(rows)


def recipe_tables(method: str) -> str:
    from protolearn.methods import get_method

    parts = []
    for name, recipe in get_method(method).recipes.items():
        rows = [f"`--recipe {name}`: {recipe.about}.", "", "| of | setting | value |", "|---|---|---|"]
        for group in ("method", "encoder", "augment", "options"):
            rows += [f"| {group} | `{key}` | `{value!r}` |" for key, value in (getattr(recipe, group) or {}).items()]
        parts.append("\n".join(rows))
    return "\n\n".join(parts)


def public_table() -> str:
    import protolearn

    rows = ["| name | what it is |", "|---|---|"]
    for name in sorted(protolearn._PUBLIC):
        thing = getattr(protolearn, name)
        first = (inspect.getdoc(thing) or "").partition("\n")[0].replace("``", "`")
        rows.append(f"| [`{name}`][{thing.__module__}.{thing.__qualname__}] | {first} |")
    return "\n".join(rows)


ROLE = re.compile(r":(?:attr|class|exc|func|meth|mod):<code>~?([\w.]+?)</code>")


def on_page_content(html: str, **_: object) -> str:
    """Show a cross-reference of a docstring as code, by its last word; called by mkdocs."""
    return ROLE.sub(lambda found: f"<code>{found[1].rpartition('.')[2]}</code>", html)


def on_page_markdown(markdown: str, **_: object) -> str:
    """Replace the lines; called by mkdocs for every page."""
    return LINE.sub(fill, markdown)
