"""The benchmarks run, on tiny sizes; what they find is not judged here."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    env = {
        name: value
        for name, value in os.environ.items()
        if name not in ("CABRNET_PYTHON", "METRIC_LEARNING_PYTHON", "PROTOTORCH_PYTHON", "PYTORCH_OOD_PYTHON")
    }
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=env)


@pytest.mark.slow
def test_every_question_is_answered(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    results = ROOT / "benchmarks" / "results.json"
    before = results.read_bytes() if results.exists() else None
    done = run("--quick", "--threads", "1", "--json", str(path))
    assert done.returncode == 0, done.stderr
    found = json.loads(path.read_text(encoding="utf-8"))
    for name, question in found.items():
        assert question["rows"], name
        assert question["quick"] and question["versions"]["torch"] and "1 threads" in question["machine"]
        for row in question["rows"]:
            if row["value"] is None:
                assert row["note"].startswith("not measured: "), row
            else:
                assert math.isfinite(row["value"]), row
        assert question["title"] in done.stdout
    assert len(found) == 13
    assert (results.read_bytes() if results.exists() else None) == before, "a quick run must not replace the results"


def test_unknown_question_is_refused() -> None:
    done = run("speed")
    assert done.returncode == 2
    assert "no question is called 'speed'" in done.stderr and "last_layer" in done.stderr
