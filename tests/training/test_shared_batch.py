"""Terms and rules that compare the cases of a batch give, on several processes, what they give on one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from protolearn.core.together import is_shared, shared_batch, summed, together

HERE = Path(__file__).parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


def run(job: str, out: Path, *arguments: str, processes: int = 1) -> dict[str, Tensor]:
    before = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes))
    command = [sys.executable, *(before if processes > 1 else ()), str(HERE / job), str(out), *arguments]
    done = subprocess.run(command, env=ENVIRONMENT, stderr=subprocess.PIPE, timeout=600, check=False)
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    return load_file(out)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_a_contrast_has_the_value_and_the_gradient_of_one_process(tmp_path: Path, processes: int) -> None:
    """Of two, uneven parts; with a third process that got a case only to have one."""
    alone = run("contrast_job.py", tmp_path / "alone")
    parts = run("contrast_job.py", tmp_path / "parts", processes=processes)
    for name, value in alone.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-10, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("labelled", ["yes", "no"])
def test_a_training_with_a_rule_on_the_whole_batch_ends_with_the_model_of_one_process(
    tmp_path: Path, labelled: str
) -> None:
    """All shares of a case are kept there: which is the k-th largest turns on the last digit of a sum."""
    alone = run("mixture_job.py", tmp_path / "alone", labelled)
    parts = run("mixture_job.py", tmp_path / "parts", labelled, processes=2)
    assert alone.keys() == parts.keys()
    for name, value in alone.items():
        if not name.endswith("_extra_state"):
            torch.testing.assert_close(parts[name], value, rtol=1e-4, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_a_single_process_shares_with_nobody() -> None:
    rows = torch.arange(3.0, requires_grad=True)
    with shared_batch():
        assert not is_shared()
        every, mine = together(rows)
        assert every is rows
        assert mine.all()
        assert summed(rows) is rows
