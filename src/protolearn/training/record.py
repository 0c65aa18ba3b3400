"""What a training writes down: history, warnings, checkpoints, logs."""

from __future__ import annotations

import csv
import io
import os
import shutil
import time
import warnings
from pathlib import Path
from typing import Any

from protolearn.core.method import Phase
from protolearn.core.model import PrototypeModel
from protolearn.training import distributed
from protolearn.training.checkpoint import NAME, Progress, clear_checkpoint, load_checkpoint, save_checkpoint

CHECKPOINT_SECONDS = 10.0
"""How much work a kill may cost, at most one epoch more."""


class TrainingWarning(UserWarning):
    """Something about data or prototypes that a person should look at."""


class Record:
    """The memory of a training, in a directory where there is one; only the first process writes.

    Parameters
    ----------
    directory : Path or None
        For checkpoint, ``history.csv`` and TensorBoard files.
    digest : str
        Of all that decides the training: a checkpoint of another one is refused.
    tensorboard : bool
        Write TensorBoard files too.
    """

    def __init__(self, directory: Path | None, digest: str, *, tensorboard: bool) -> None:
        self.directory, self.digest, self.tensorboard = directory, digest, tensorboard
        self.progress = Progress()
        self._saved = time.monotonic()
        self._logger: Any = None
        self._logged = 0

    def resume(self, model: PrototypeModel, phases: list[Phase], *, anew: bool) -> None:
        """Put the model where the checkpoint says, if there is one; ``anew`` forgets it first."""
        if self.directory is None:
            return
        if anew and distributed.rank() == 0:
            clear_checkpoint(self.directory)
        distributed.barrier()
        self.progress = load_checkpoint(self.directory, model, self.digest, phases) or self.progress

    def kept(self) -> str:
        """Return in words what a training that fails now leaves behind."""
        if self.directory is None:
            return "no directory was given, so nothing is kept"
        if not (self.directory / NAME).exists():
            return "nothing had been saved yet"
        return f"the last good state is in {self.directory}"

    def warn(self, text: str) -> None:
        """Tell a person, and remember."""
        self.progress.warnings.append(text)
        if distributed.rank() == 0:
            warnings.warn(text, TrainingWarning, stacklevel=2)

    def save(self, model: PrototypeModel, *, force: bool = False) -> None:
        """Write everything, if it is time or must be."""
        if self.directory is None or distributed.rank() > 0:
            return
        if force or time.monotonic() - self._saved >= CHECKPOINT_SECONDS:
            save_checkpoint(self.directory, model, self.progress, self.digest)
            write_history(self.directory / "history.csv", self.progress.history)
            if self.tensorboard:
                self._log(self.directory / "tensorboard")
            self._saved = time.monotonic()

    def _log(self, folder: Path) -> None:
        """Bring the TensorBoard files up to the history; a resumed training writes them anew."""
        if self._logger is None:
            from lightning.pytorch.loggers import TensorBoardLogger

            shutil.rmtree(folder, ignore_errors=True)
            self._logger = TensorBoardLogger(folder.parent, name=folder.name, version="")
        for step in range(self._logged, len(self.progress.history)):
            row = self.progress.history[step]
            numbers = {name: value for name, value in row.items() if isinstance(value, float)}
            self._logger.log_metrics({f"{row['phase']}/{name}": value for name, value in numbers.items()}, step)
        self._logged = len(self.progress.history)
        self._logger.save()


def write_history(path: Path, history: list[dict[str, Any]]) -> None:
    """Write the history as CSV, whole, under a temporary name first."""
    names = list(dict.fromkeys(name for row in history for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="")
    writer.writeheader()
    writer.writerows(history)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text.getvalue(), encoding="utf-8")
    os.replace(temporary, path)
