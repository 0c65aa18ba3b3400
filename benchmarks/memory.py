"""How much memory a call takes at its peak, in a fresh process.

The process makes the inputs, runs the call once on tiny ones so that kernels are loaded, notes its resident memory,
sets the system's record of the peak back (``/proc/self/clear_refs``), runs the call, and reads the record (``VmHWM``).
Freed memory goes back to the system at once (``MALLOC_*``), so that nothing hides in what an earlier step left behind.
Results count as extra. Where the record cannot be set back, the growth of ``ru_maxrss`` is taken instead.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def extra_megabytes(case: str, **arguments: Any) -> float:
    """Return the extra peak of ``case``, the ``module:function`` that makes the inputs and returns the call.

    The function returns two calls: one on tiny inputs, and the one that is measured.
    """
    order = json.dumps([case, arguments])
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    done = subprocess.run(
        [sys.executable, "-c", "from benchmarks.memory import report; report()", order],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=env,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{case}: {done.stderr[-2000:]}")
    return float(done.stdout.strip().splitlines()[-1])


def report() -> None:
    """Measure what the command line names and print megabytes (of 10**6 bytes)."""
    case, arguments = json.loads(sys.argv[1])
    module, _, name = case.partition(":")
    tiny, call = getattr(import_module(module), name)(**arguments)
    tiny()
    gc.collect()
    cleared = _clear()
    before = _status("VmRSS") if cleared else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    kept = call()
    after = _status("VmHWM") if cleared else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    del kept
    print((after - before) * 1024 / 1e6)


def _clear() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {name}")
