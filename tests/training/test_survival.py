"""Trainings that are killed, and trainings on two processes, end like one that ran through."""

from __future__ import annotations

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
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


def start(*arguments: str, before: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, *before, str(JOB), *arguments], env=ENVIRONMENT, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen[bytes]) -> None:
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors.decode()[-3000:]


def sources(path: Path) -> list[tuple[str, int]]:
    state = load_file(path)
    bank = PrototypeBank(torch.zeros(1, 1), torch.ones(1, 1))
    part = {name.removeprefix("bank."): tensor for name, tensor in state.items() if name.startswith("bank.")}
    bank.load_state_dict(part)
    return [(source.case, source.position) for source in bank.sources if source is not None]


@pytest.mark.slow
@pytest.mark.parametrize("encoder_rate", ["0", "1e-3"], ids=["frozen", "trained"])
def test_killed_training_ends_with_the_same_weights(tmp_path: Path, encoder_rate: str) -> None:
    whole, resumed, directory = tmp_path / "whole.safetensors", tmp_path / "resumed.safetensors", tmp_path / "run"
    finish(start(str(whole), "-", encoder_rate, "6"))
    kills, patience = 0, 0.0
    while not resumed.exists():
        process = start(str(resumed), str(directory), encoder_rate, "6")
        try:
            # wait for the checkpoint to change (or not at all, the first time), then kill a little later each time
            before = os.stat(directory / "checkpoint.safetensors").st_mtime_ns if kills else 0
            limit = time.monotonic() + 120
            while process.poll() is None and time.monotonic() < limit:
                path = directory / "checkpoint.safetensors"
                if kills < 4 and path.exists() and path.stat().st_mtime_ns != before:
                    time.sleep(patience)
                    process.send_signal(signal.SIGKILL)
                    break
                time.sleep(0.002)
        finally:
            if kills >= 4:
                finish(process)
            else:
                process.communicate(timeout=600)
        kills += 1
        patience += 0.013
        assert kills < 8
    assert kills >= 3, "the training was too short to be killed"
    first, second = load_file(whole), load_file(resumed)
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


@pytest.mark.slow
def test_two_processes_give_the_prototypes_of_one(tmp_path: Path) -> None:
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    finish(start(str(one), "-", "1e-3", "4"))
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    finish(start(str(two), str(tmp_path / "run"), "1e-3", "4", before=torchrun))
    first, second = load_file(one), load_file(two)
    torch.testing.assert_close(first["bank.vectors"], second["bank.vectors"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(first["head.weight"], second["head.weight"], rtol=1e-4, atol=1e-5)
    assert sources(one) == sources(two)
