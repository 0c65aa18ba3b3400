"""A model on disk: a folder a person can read and a stranger can send.

    model.safetensors   every weight, and the source of every prototype
    config.yaml         format version, method settings, encoder, class names, facts about data and training
    prototypes.csv      one row a prototype: owner, weight, the case and place it came from
    cases/*.png         those cases, with the place marked, and the place alone
    metrics.json        scores, training history, projections
    README.md           the model card

Nothing in it is executed when it is loaded: plain data with limits, checked against each other before use. A folder is
written beside its target and renamed, so the old one stays until the new one is complete.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save as to_safetensors

import protolearn
from protolearn.core.model import PrototypeModel
from protolearn.data import Cases
from protolearn.errors import ModelFileError, UsageError, nearest_names
from protolearn.training.cards import PICTURES, check_table, draw_cases, model_card, prototype_table
from protolearn.training.rebuild import build, fill, read_shapes
from protolearn.training.untrusted import read_json, read_text, read_yaml

FORMAT_VERSION = 1
WEIGHTS, CONFIG, TABLE, METRICS, CARD = (
    "model.safetensors", "config.yaml", "prototypes.csv", "metrics.json", "README.md",
)  # fmt: skip
OWN = (WEIGHTS, CONFIG, TABLE, PICTURES, METRICS, CARD)

_KEYS = {"format_version", "protolearn", "method", "encoder", "classes", "metadata"}
_IN_METRICS = {"metrics": "scores", "history": "history", "projections": "projections"}  # metadata key -> metrics.json
_NAME_LIMIT = 1000


def save(
    model: PrototypeModel,
    folder: str | Path,
    cases: Cases | None = None,
    *,
    metrics: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a model as a folder.

    Parameters
    ----------
    model : PrototypeModel
        Built by a registered method, so that its settings can rebuild it.
    folder : path
        Where; its parents are made. Files in it that are no part of the format stay.
    cases : Cases, optional
        The training data, for the pictures in ``cases/``; a prototype is drawn only from the very picture it was made
        from (same id and same content).
    metrics : mapping, optional
        Scores for ``metrics.json`` and the model card; those in ``model.metadata["metrics"]`` by default.
    overwrite : bool
        Replace a model that is already there. The old one stays until the new one is complete.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    UsageError
        If there is something in the way, or the model was built by hand.
    ModelFileError
        If the disk is full or refuses; what was there before is intact.

    Examples
    --------
    >>> save(model, "birds", cases=train)  # doctest: +SKIP
    PosixPath('birds')
    """
    target = Path(os.path.abspath(folder))
    check_target(target, overwrite)
    if model.method is None:
        raise UsageError("this model was put together by hand: only a model that a method built can be saved")
    if not model.encoder.rebuilds:
        raise UsageError(
            f"{type(model.encoder).__name__} was handed a network, which a folder cannot make again: name the network "
            "(encoders.NamedNetwork), or keep model.state_dict() and make the model as before"
        )
    metadata: dict[str, Any] = plain(model.metadata)
    metadata.pop("scorer", None)
    if metrics is not None:
        metadata["metrics"] = plain(metrics)
    config = {
        "format_version": FORMAT_VERSION,
        "protolearn": protolearn.__version__,
        "method": plain(model.method.settings()),
        "encoder": plain(model.encoder.spec()),
        "classes": list(model.classes),
        "metadata": {key: value for key, value in metadata.items() if key not in _IN_METRICS},
    }
    _check_config(target / CONFIG, config)
    numbers = {name: metadata[key] for key, name in _IN_METRICS.items() if key in metadata}
    if model.scorer is not None:
        config["metadata"]["scorer"] = plain(model.scorer.spec())
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.new-", dir=target.parent))
    except OSError as error:
        raise _cannot_write(target, error) from error
    try:
        _write(temporary / WEIGHTS, to_safetensors(tensors, metadata={"format": "pt"}))
        _write(temporary / CONFIG, _yaml(config).encode())
        _write(temporary / TABLE, prototype_table(model).encode())
        _write(temporary / METRICS, (json.dumps(numbers, indent=1, allow_nan=False) + "\n").encode())
        drawn = draw_cases(model, cases, temporary / PICTURES) if cases is not None else {}
        _write(temporary / CARD, model_card(model, {**metadata}, drawn, had_cases=cases is not None).encode())
        _keep_others(target, temporary)
        _sync(temporary)
        os.chmod(temporary, 0o777 & ~_umask())
        _swap(temporary, target)
    except OSError as error:
        raise _cannot_write(target, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def load(folder: str | Path, device: str | torch.device = "cpu", *, links: bool = False) -> PrototypeModel:
    """Read a model folder, in eval mode.

    Parameters
    ----------
    folder : path
        What :func:`save` wrote, of this format version or an older one.
    device : str
        Where to put it.
    links : bool
        Accept symbolic links inside the folder, as a download cache has them.

    Raises
    ------
    ModelFileError
        If a file is missing, truncated, from a newer version, disagrees with another, or holds what no model does. The
        message names the file.

    Examples
    --------
    >>> load("no such folder")
    Traceback (most recent call last):
        ...
    protolearn.errors.ModelFileError: no such folder is not a model folder: there is no such folder
    """
    where = Path(folder)
    _check_folder(where)
    config = read_config(where, links=links)
    shapes = read_shapes(where / WEIGHTS, links=links)
    model = build(where / CONFIG, config, shapes)
    fill(model, where / WEIGHTS, shapes)
    model.classes = tuple(config["classes"])
    model.metadata = {key: value for key, value in config["metadata"].items() if key != "scorer"}
    numbers = _read_metrics(where / METRICS, links=links)
    model.metadata.update({key: numbers[name] for key, name in _IN_METRICS.items() if name in numbers})
    if (where / TABLE).exists():
        check_table(model, read_text(where / TABLE, limit=256 * 2**20, links=links), where / TABLE)
    return model.to(device).eval()


def read_config(folder: Path, *, links: bool = False) -> dict[str, Any]:
    """Return a folder's settings, checked and brought to the current format version; no weights are read."""
    path = folder / CONFIG
    config = read_yaml(path, links=links)
    version = config.get("format_version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 0:
        raise ModelFileError(f"{path}: no format_version (a whole number from 0): not a model folder of protolearn")
    if version > FORMAT_VERSION:
        written = (
            f" (written by protolearn {config['protolearn']})" if isinstance(config.get("protolearn"), str) else ""
        )
        raise ModelFileError(
            f"{path} has format version {version}{written[:60]}, this protolearn reads up to {FORMAT_VERSION}: "
            "pip install --upgrade protolearn"
        )
    try:
        while version < FORMAT_VERSION:
            config = MIGRATIONS[version](config)
            version = config["format_version"]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelFileError(f"{path}: not a whole folder of format version {version} ({error!r})") from error
    _check_config(path, config)
    return config


def _from_version_0(config: dict[str, Any]) -> dict[str, Any]:
    """Version 0 (development, before 0.1.0) called the classes ``labels`` and spread facts over the top level."""
    kept = dict(config)
    facts = {key: kept.pop(key) for key in ("data", "seed", "date", "versions") if key in kept}
    kept["classes"] = [str(name) for name in kept.pop("labels")]
    return {"protolearn": "0.0.0", **kept, "format_version": 1, "metadata": facts}


MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {0: _from_version_0}
"""How settings of each older version become those of the next."""


def _check_config(path: Path, config: dict[str, Any]) -> None:
    for key in config:
        if key not in _KEYS:
            raise ModelFileError(f"{path}: unknown key {str(key)[:80]!r}: {nearest_names(str(key)[:80], _KEYS)}")
    for key in sorted(_KEYS - set(config)):
        raise ModelFileError(f"{path}: the key {key!r} is missing: the file is truncated or was edited")
    for key, kind in (("protolearn", str), ("method", dict), ("encoder", dict), ("classes", list), ("metadata", dict)):
        if not isinstance(config[key], kind):
            raise ModelFileError(f"{path}: {key!r} must be a {kind.__name__}, got {type(config[key]).__name__}")
    names = config["classes"]
    if not names or not all(isinstance(name, str) and 0 < len(name) <= _NAME_LIMIT for name in names):
        raise ModelFileError(f"{path}: classes must be a list of names of 1 to {_NAME_LIMIT} characters, in quotes")
    if len(set(names)) != len(names):
        raise ModelFileError(f"{path}: a class name occurs twice")


def _read_metrics(path: Path, *, links: bool) -> dict[str, Any]:
    if not path.exists():
        return {}
    numbers = read_json(path, links=links)
    for key in numbers:
        if key not in _IN_METRICS.values():
            raise ModelFileError(f"{path}: unknown key {key[:80]!r}: {nearest_names(key[:80], _IN_METRICS.values())}")
    for key, kind in (("scores", dict), ("history", list), ("projections", list)):
        if not isinstance(numbers.get(key, kind()), kind):
            raise ModelFileError(f"{path}: {key!r} must be a {kind.__name__}, got {type(numbers[key]).__name__}")
    return numbers


def plain(value: Any) -> Any:
    """Return a value as JSON has it: lists for tuples, numbers for scalars, null for NaN, text for the rest.

    Examples
    --------
    >>> plain({"a": (1, float("nan")), 2: torch.tensor(1.5)})
    {'a': [1, None], '2': 1.5}
    """
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(entry) for entry in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_text(self, data: str) -> yaml.Node:
        return self.represent_scalar("tag:yaml.org,2002:str", data, style='"' if len(data) > 500 else None)


_Dumper.add_representer(str, _Dumper.represent_text)


def _yaml(value: Any) -> str:
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def check_target(target: Path, overwrite: bool) -> None:
    """Refuse a place where a model cannot or must not be written; say so before a long training, not after it."""
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise UsageError(f"{target} is not a folder: choose another name for the model")
    present = [name for name in OWN if (target / name).exists()]
    if not present:
        return
    if WEIGHTS not in present and CONFIG not in present:
        raise UsageError(f"{target} holds {present[0]} but no model: it would be replaced; choose another folder")
    if not overwrite:
        raise UsageError(
            f"{target} already holds a model: choose another folder, or overwrite it (overwrite=True, --overwrite)"
        )


def _check_folder(where: Path) -> None:
    if where.is_dir():
        return
    left = sorted(where.parent.glob(f".{where.name}.old-*")) if where.parent.is_dir() and where.name else []
    if left:
        raise ModelFileError(
            f"{where} is gone, but an interrupted save kept the model before it: rename {left[-1]} to it"
        )
    kind = "a file, not a folder" if where.exists() else "there is no such folder"
    raise ModelFileError(f"{where} is not a model folder: {kind}")


def _write(path: Path, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _keep_others(target: Path, temporary: Path) -> None:
    """Take over what else lies in the folder that is about to be replaced: settings, logs, notes."""
    if not target.is_dir():
        return
    for entry in sorted(target.iterdir()):
        there = temporary / entry.name
        if entry.name in OWN:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.copytree(entry, there, symlinks=True, copy_function=_link)
        else:
            _link(str(entry), str(there))


def _link(source: str, target: str, *, follow_symlinks: bool = False) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except (OSError, NotImplementedError):
        shutil.copy2(source, target, follow_symlinks=False)


def _sync(folder: Path) -> None:
    """Have the system write the folder's entries; files were synced when written."""
    if os.name != "posix":
        return
    for place in (folder / PICTURES, folder):
        if place.is_dir():
            descriptor = os.open(place, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def _swap(temporary: Path, target: Path) -> None:
    """Put the new folder in place of the old one, which is removed last."""
    if not target.exists():
        os.rename(temporary, target)
        _sync(target.parent)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old-", dir=target.parent))
    os.rename(target, old)  # replaces the empty folder
    try:
        os.rename(temporary, target)
    except OSError:
        os.rename(old, target)
        raise
    _sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _cannot_write(target: Path, error: OSError) -> ModelFileError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        reason = "the disk is full: free some space or choose another folder"
    else:
        reason = f"{error.strerror or error}: choose another folder"
    return ModelFileError(f"{target}: cannot save the model, {reason}; what was there before is intact")
