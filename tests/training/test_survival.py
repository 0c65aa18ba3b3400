"""Trainings that are killed, and trainings on two processes, end like one that ran through."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from protolearn.core.bank import PrototypeBank

JOB = Path(__file__).with_name("job.py")
TREE_JOB = Path(__file__).with_name("tree_job.py")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


def start(*arguments: str, before: tuple[str, ...] = (), job: Path = JOB) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, *before, str(job), *arguments], env=ENVIRONMENT, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen[bytes]) -> None:
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors.decode()[-3000:]


def sources(path: Path) -> list[tuple[str, int]]:
    state = load_file(path)
    bank = PrototypeBank(torch.zeros(1, 1), torch.ones(1, 1))
    part = {name.removeprefix("bank."): tensor for name, tensor in state.items() if name.startswith("bank.")}
    bank.load_state_dict(part)
    return [(source.case, source.position) for source in bank.sources if source is not None]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of a training that ran through, in one process."""
    path = tmp_path_factory.mktemp("whole") / "whole.safetensors"
    finish(start(str(path), "-"))
    return path


@pytest.mark.slow
def test_killed_training_ends_with_the_same_weights(tmp_path: Path, whole: Path) -> None:
    resumed, directory = tmp_path / "resumed.safetensors", tmp_path / "run"
    for moment in ("step:4", "write:3", "project:2", "step:9", "project:9"):
        process = start(str(resumed), str(directory), moment)
        _, errors = process.communicate(timeout=600)
        assert process.returncode == -signal.SIGKILL, (moment, errors.decode()[-2000:])
    process = start(str(resumed), str(directory))  # and once at no chosen moment
    time.sleep(6)
    process.kill()
    process.communicate(timeout=600)
    finish(start(str(resumed), str(directory)))
    first, second = load_file(whole), load_file(resumed)
    assert first.keys() == second.keys()
    assert sources(whole) == sources(resumed)
    for name in first:
        # a fresh process may round the network's output otherwise in the last digit, and what is read off it with it
        if not name.endswith("_extra_state"):
            torch.testing.assert_close(
                first[name], second[name], rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
            )
    assert [path.name for path in directory.glob(".checkpoint*")] == [], "half-written files are swept"


@pytest.mark.slow
def test_two_processes_give_the_prototypes_of_one(tmp_path: Path) -> None:
    """Up to the order in which a sum is rounded: without pruning, which turns on a single neighbour."""
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    finish(start(str(one), "-", "", "no"))
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    finish(start(str(two), str(tmp_path / "run"), "", "no", before=torchrun))
    first, second = load_file(one), load_file(two)
    assert sources(one) == sources(two)
    for name in first:
        if not name.endswith("_extra_state"):
            torch.testing.assert_close(first[name], second[name], rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_a_rule_that_moves_leaves_sees_the_cases_of_all_processes(tmp_path: Path) -> None:
    """Buffers are the first process's everywhere, so a rule fed with its shard would lose the others' cases."""
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    finish(start(str(one), job=TREE_JOB))
    finish(start(str(two), before=torchrun, job=TREE_JOB))
    alone, together = (json.loads(path.read_text()) for path in (one, two))
    assert alone["cases"] == pytest.approx(121, abs=1e-3)
    assert together["cases"] == pytest.approx(121, abs=1e-3)
    assert together["classes"] == pytest.approx(alone["classes"], abs=1e-3)
    assert alone["steps"] == together["steps"] == 7
