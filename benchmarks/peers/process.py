"""A peer in a process of its own that stays up and takes orders, so that it can be timed in turn with us."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent.parent
RUNNER = Path(__file__).with_name("cabrnet_runner.py")


class PeerError(RuntimeError):
    """The peer's process could not do what was asked."""


class Peer:
    """A peer's process, CaBRNet's unless another runner is given.

    Parameters
    ----------
    python : path
        Interpreter of an environment in which the peer is installed.
    threads : int
        As many as we use.
    runner : path
        The script that carries out the orders there.
    """

    def __init__(self, python: Path, threads: int, runner: Path = RUNNER) -> None:
        self.python = python
        self.folder = tempfile.TemporaryDirectory(prefix="protolearn-bench-")
        env = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        self.log = open(Path(self.folder.name) / "log", "w+", encoding="utf-8")  # noqa: SIM115  closed with the peer
        self.process = subprocess.Popen(
            [str(python), str(runner)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=env,
            cwd=self.folder.name,
        )
        self.versions: dict[str, str] = self.ask("start", threads=threads)

    def ask(self, order: str, **arguments: Any) -> Any:
        """Send an order and return the answer."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps([order, arguments]) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass
        line = self.process.stdout.readline()
        if not line:
            self.log.seek(0)
            raise PeerError(f"{self.python}: {self.log.read().strip()[-1500:]}")
        return json.loads(line)

    def train(self, size: int, count: int, batch: int, epochs: int) -> dict[str, float]:
        """Return the seconds of one epoch, of the projection and of the last-layer epochs after it."""
        from benchmarks.pictures import pixels

        path = Path(self.folder.name) / f"{count}x{size}.npy"
        if not path.exists():
            np.save(path, pixels(count, size))
        found: dict[str, float] = self.ask("train", pictures=str(path), batch=batch, epochs=epochs)
        return found

    def maps(self, size: int, prototypes: int) -> float:
        """Return the seconds of so many enlarged maps of one picture."""
        return float(self.ask("maps", size=size, prototypes=prototypes))

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()
        self.folder.cleanup()


def find_peer(given: str | None, name: str = "cabrnet", folder: str = ".venv-peers") -> tuple[Path | None, str]:
    """Return the interpreter of a peer's environment, or why there is none."""
    named = given or os.environ.get(f"{name.upper()}_PYTHON")
    if named:
        path = Path(named)
        return (path, "") if path.exists() else (None, f"there is no {path}")
    path = ROOT / folder / "bin" / "python"
    return (path, "") if path.exists() else (None, f"no environment with {name} (make bench-peers makes one)")
