"""A novelty score put into a model's folder without touching what else is in it."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors

from protolearn.core.model import PrototypeModel
from protolearn.errors import UsageError
from protolearn.training.folder import (
    CONFIG,
    WEIGHTS,
    _cannot_write,
    _check_folder,
    _link,
    _swap,
    _sync,
    _umask,
    _write,
    _yaml,
    plain,
    read_config,
)
from protolearn.training.rebuild import read_shapes

_SCORER = "scorer."


def save_scorer(model: PrototypeModel, folder: str | Path) -> Path:
    """Write a model's novelty score, or that it has none, into the folder the model was loaded from.

    Weights, pictures, scores and notes stay as they are; the old folder is in place until the new one is complete.

    Parameters
    ----------
    model : PrototypeModel
        The model of that folder, with its ``scorer``.
    folder : path
        What ``save`` wrote.

    Raises
    ------
    UsageError
        If the folder holds another model.
    ModelFileError
        If it holds none, or cannot be written.

    Examples
    --------
    >>> save_scorer(model, "birds")  # doctest: +SKIP
    PosixPath('birds')
    """
    target = Path(os.path.abspath(folder))
    _check_folder(target)
    config = read_config(target)
    read_shapes(target / WEIGHTS, links=False)  # refuses what is no file of weights
    held = {name: values for name, values in load_file(target / WEIGHTS).items() if not name.startswith(_SCORER)}
    state = {name: values.detach().cpu().contiguous() for name, values in model.state_dict().items()}
    mine = {name: values for name, values in state.items() if not name.startswith(_SCORER)}
    if held.keys() != mine.keys() or any(not _same(held[name], mine[name]) for name in held):
        raise UsageError(f"{target} holds another model than the one this novelty score was fitted to: save it whole")
    metadata = {key: value for key, value in config["metadata"].items() if key not in ("scorer", "novelty")}
    if model.scorer is not None:
        metadata["scorer"] = plain(model.scorer.spec())
    if "novelty" in model.metadata:
        metadata["novelty"] = plain(model.metadata["novelty"])
    try:
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.new-", dir=target.parent))
    except OSError as error:
        raise _cannot_write(target, error) from error
    try:
        shutil.copytree(
            target, temporary, symlinks=True, copy_function=_link, dirs_exist_ok=True,
            ignore=lambda place, names: {WEIGHTS, CONFIG} & set(names) if Path(place) == target else set(),
        )  # fmt: skip
        _write(temporary / WEIGHTS, to_safetensors(state, metadata={"format": "pt"}))
        _write(temporary / CONFIG, _yaml({**config, "metadata": metadata}).encode())
        _sync(temporary)
        os.chmod(temporary, 0o777 & ~_umask())
        _swap(temporary, target)
    except (OSError, shutil.Error) as error:
        raise _cannot_write(target, error if isinstance(error, OSError) else OSError(str(error))) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
