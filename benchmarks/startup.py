"""What does it cost to ask for help, and to import?"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measure import Candidate, Plan, Row, Times, in_turn

TITLE = "Start-up"


def run(plan: Plan) -> Iterator[Row]:
    """Time fresh interpreters."""

    def python(code: str) -> Candidate:
        return lambda: subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)

    script = Path(sys.executable).with_name("protolearn")
    ours = [str(script), "--help"] if script.exists() else [sys.executable, "-m", "protolearn", "--help"]
    calls: dict[str, Candidate] = {
        "help": lambda: subprocess.run(ours, check=True, capture_output=True),
        "pass": python("pass"),
        "torch": python("import torch"),
        "both": python("import torch, protolearn"),
    }
    times = in_turn(calls, plan.rounds(9))
    if plan.peer is None:
        yield Row("cabrnet --help", "protolearn --help", None, at_least=10.0, note=f"not measured: {plan.why_no_peer}")
    else:
        theirs = [str(plan.peer.python.with_name("cabrnet")), "--help"]
        duel = in_turn(
            {"help": calls["help"], "peer": lambda: subprocess.run(theirs, check=False, capture_output=True)},
            plan.rounds(3),
        )
        yield duel.ratio(
            "help",
            "peer",
            what="cabrnet --help",
            against="protolearn --help",
            invert=True,
            at_least=10.0,
            note=f"{duel.best('peer'):.1f} s and {duel.best('help'):.2f} s here",
        )
    yield beyond(times, "help", "pass", "protolearn --help beyond python -c pass", "0.7 s is the promise")
    yield beyond(times, "both", "torch", "import protolearn beyond import torch", "0.3 s is the promise")


def beyond(times: Times, name: str, base: str, what: str, promise: str) -> Row:
    """Return how much longer one takes than another, as a share of what importing torch takes."""
    extra = times.best(name) - times.best(base)
    torch = times.best("torch") - times.best("pass")
    limit = {"help": 0.5, "both": 0.2}[name]
    return Row(
        what,
        "import torch beyond python -c pass",
        extra / torch,
        at_most=limit,
        note=f"best of {len(times.seconds[name])}; {extra:+.2f} s here, {promise}; import torch {torch:.2f} s",
    )
