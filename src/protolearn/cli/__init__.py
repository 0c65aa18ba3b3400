"""The command line. Nothing heavy is imported before a command that needs it runs, so help is quick."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from typing import Any

from protolearn.cli.options import COMMANDS, command_parser, top_parser
from protolearn.errors import ProtolearnError, UsageError, nearest_names

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted.

    Examples
    --------
    >>> main(["--version"])
    protolearn ...
    0
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    interrupted: list[int] = []
    with _noting_interrupts(interrupted), _one_line_warnings(debug, "--quiet" in arguments):
        try:
            return _run(arguments)
        except SystemExit as stop:  # help was printed, or a library handled an interrupt by leaving
            return _interrupted(arguments) if interrupted else int(stop.code or 0)
        except KeyboardInterrupt:
            return _interrupted(arguments)
        except BrokenPipeError:  # the reader of our output has seen enough
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141
        except Exception as error:
            if interrupted:
                return _interrupted(arguments)
            if debug:
                raise
            return _told(error)


def _run(arguments: list[str]) -> int:
    name = next((word for word in arguments if not word.startswith("-")), None)
    if name is None:
        top_parser().parse_args([word for word in arguments if word not in ("--debug", "--quiet", "--json")])
        top_parser().print_help()
        return 2 if arguments else 0
    if arguments[0] != name:
        raise UsageError(f"{arguments[0]} stands before the command: protolearn {name} {arguments[0]} ...")
    if name not in COMMANDS:
        raise UsageError(f"no command is called {name!r}: {nearest_names(name, COMMANDS)}; see protolearn --help")
    rest = arguments[arguments.index(name) + 1 :]
    # help comes from a light parser; what train takes beside it depends on the method, so it parses by itself
    if name == "train" and not {"-h", "--help"} & set(rest):
        settings: Any = rest
    else:
        settings = command_parser(name).parse_args(rest)
    run: Callable[[Any], int] = getattr(import_module(f"protolearn.cli.{COMMANDS[name].module}"), f"run_{name}")
    return run(settings)


def _told(error: Exception) -> int:
    code = 1
    if isinstance(error, ProtolearnError):
        text, code = str(error), error.exit_code
    elif isinstance(error, argparse.ArgumentError):
        text, code = str(error), 2
    elif isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    elif isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        text = "out of memory: use a smaller --batch-size, smaller pictures, or another device"
    else:
        text = f"{type(error).__name__}: {error} (unexpected: run again with --debug and report what it prints)"
    _complain("error", text)
    return code


def _complain(kind: str, text: str) -> None:
    sys.stdout.flush()
    sys.stderr.write(f"protolearn: {kind}: {' '.join(text.split())}\n")
    sys.stderr.flush()


def _interrupted(arguments: list[str]) -> int:
    resume = "; the same command goes on from the last checkpoint" if arguments[:1] == ["train"] else ""
    sys.stdout.flush()
    sys.stderr.write(f"protolearn: interrupted{resume}\n")
    return 130


@contextlib.contextmanager
def _noting_interrupts(noted: list[int]) -> Iterator[None]:
    """Remember an interrupt even if a library turns it into something else on the way."""

    def note(number: int, _: Any) -> None:
        noted.append(number)
        raise KeyboardInterrupt

    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if ours:
        try:
            signal.signal(signal.SIGINT, note)
        except ValueError:  # not the main thread: signals are somebody else's
            ours = False
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def _one_line_warnings(debug: bool, quiet: bool) -> Iterator[None]:
    """Show this package's warnings as one line each, and nobody else's."""
    if debug:
        yield
        return

    def show(message: Warning | str, category: type[Warning], filename: str, *_: Any, **__: Any) -> None:
        if not quiet and (category.__module__.startswith("protolearn") or "protolearn" in filename.split(os.sep)):
            _complain("warning", str(message))

    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.showwarning = show
        yield
