"""Where a training stands, in one safetensors file: weights, optimisers, position in the plan, history.

The file is written under a temporary name and renamed, so a kill at any moment leaves the last whole one.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from protolearn.core.method import Phase, Train
from protolearn.core.model import PrototypeModel
from protolearn.errors import ModelFileError, UsageError
from protolearn.training.steps import Run, start_run

NAME = "checkpoint.safetensors"


@dataclass
class Progress:
    """How far a training is, and what it has seen."""

    phase: int = 0
    epoch: int = 0
    runs: dict[str, Run] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    projections: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    chosen: Tensor | None = None


def save_checkpoint(directory: Path, model: PrototypeModel, progress: Progress, plan: str) -> None:
    """Write the checkpoint of a run whose settings hash to ``plan``.

    Raises
    ------
    ModelFileError
        If the disk is full or refuses; the previous checkpoint is intact.
    """
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    runs: dict[str, dict[str, Any]] = {}
    for name, run in progress.runs.items():
        runs[name] = {"epochs": run.epochs, "best": repr(run.best), "waited": run.waited}
        for key, state in run.optimizer.state_dict()["state"].items():
            for part, value in state.items():
                if value is None:  # a momentum that no step has filled yet
                    continue
                tensors[f"run.{name}.{key}.{part}"] = value
    if progress.chosen is not None:
        tensors["chosen"] = progress.chosen
    facts = {
        "plan": plan,
        "phase": progress.phase,
        "epoch": progress.epoch,
        "runs": runs,
        "history": progress.history,
        "projections": progress.projections,
        "warnings": progress.warnings,
    }
    whole = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    target = directory / NAME
    temporary = directory / f".{NAME}.{os.getpid()}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        save_file(whole, temporary, metadata={"training": json.dumps(facts)})
        os.replace(temporary, target)
    except (OSError, SafetensorError) as error:
        raise ModelFileError(f"{target}: cannot write the checkpoint ({error}); the one before it is intact") from error
    finally:
        temporary.unlink(missing_ok=True)


def load_checkpoint(directory: Path, model: PrototypeModel, plan: str, phases: list[Phase]) -> Progress | None:
    """Put the model where the checkpoint says and return the progress; None where there is no checkpoint.

    Raises
    ------
    ModelFileError
        If the file is damaged.
    UsageError
        If it belongs to a training with other settings, data or seed.
    """
    path = directory / NAME
    for stale in directory.glob(f".{NAME}.*"):  # of a process that was killed while writing
        stale.unlink(missing_ok=True)
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {})["training"])
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise ModelFileError(f"{path}: not a whole checkpoint ({error}); delete it to start again") from error
    if facts["plan"] != plan:
        raise UsageError(
            f"{path} belongs to a training with other settings, data or seed: use another directory, or resume=False"
        )
    model.load_state_dict({name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")})
    progress = Progress(facts["phase"], facts["epoch"], {}, facts["history"], facts["projections"], facts["warnings"])
    progress.chosen = tensors.get("chosen")
    first = {phase.name: phase for phase in reversed(phases) if isinstance(phase, Train)}
    for name, kept in facts["runs"].items():
        run = start_run(model, first[name])
        run.epochs, run.best, run.waited = kept["epochs"], float(kept["best"]), kept["waited"]
        state: dict[int, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            if key.startswith(f"run.{name}."):
                number, part = key.removeprefix(f"run.{name}.").split(".", 1)
                state.setdefault(int(number), {})[part] = tensor
        run.optimizer.load_state_dict({**run.optimizer.state_dict(), "state": state})
        progress.runs[name] = run
    return progress


def clear_checkpoint(directory: Path) -> None:
    """Forget an earlier training."""
    (directory / NAME).unlink(missing_ok=True)
