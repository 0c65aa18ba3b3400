"""Public data sets by name, through their own loaders: ``torchvision:CIFAR10`` and ``medmnist:BloodMNIST``."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from protolearn.data.arrays import arrays
from protolearn.data.cases import Cases, Transform
from protolearn.data.joined import join
from protolearn.data.wrapped import wrap
from protolearn.errors import DataError, MissingExtra, UsageError, nearest_names

PARTS = ("train", "val", "test")


def torchvision_names() -> tuple[str, ...]:
    """Return the torchvision data sets that can be asked for by name."""
    from torchvision import datasets

    return tuple(name for name in datasets.__all__ if not name.startswith(("Image", "Dataset", "Vision")))


def torchvision_cases(
    name: str,
    split: str | None = None,
    *,
    root: str | Path | None = None,
    download: bool = True,
    transform: Transform | None = None,
    seed: int = 0,
    **settings: Any,
) -> Cases:
    """Return a torchvision classification data set.

    Parameters
    ----------
    name : str
        A class of ``torchvision.datasets``, e.g. ``"CIFAR10"``.
    split : str, optional
        ``train``, ``val`` or ``test`` where it has them; all of them by default.
    root : path, optional
        Where torchvision keeps the files; ``~/.cache/protolearn/torchvision`` by default.
    download : bool
        Fetch what is not there, with torchvision's own checks.
    transform, seed
        See :class:`~protolearn.data.cases.Cases`.
    **settings
        Further arguments of the class.

    Returns
    -------
    Cases
        Ids are ``CIFAR10/train/000017``: item 17 of torchvision's training part.
    """
    from torchvision import datasets

    if name not in torchvision_names():
        raise UsageError(f"torchvision has no data set {name!r}; {nearest_names(name, torchvision_names())}")
    builder = getattr(datasets, name)
    accepted = inspect.signature(builder).parameters
    where = Path(root) if root is not None else Path.home() / ".cache" / "protolearn" / "torchvision"

    def load(part: str | None) -> Any:
        options: dict[str, Any] = {"root": str(where), **settings}
        if "root" not in accepted:
            options.pop("root")
        if part is not None and "train" in accepted:
            options["train"] = part == "train"
        elif part is not None:
            options["split"] = part
        if "download" not in accepted:
            return builder(**options)
        try:
            return builder(**options, download=False)
        except (RuntimeError, FileNotFoundError):
            if not download:
                raise
        where.mkdir(parents=True, exist_ok=True)
        return builder(**options, download=True)

    parts: tuple[str | None, ...] = (
        ("train", "test") if "train" in accepted else PARTS if "split" in accepted else (None,)
    )
    return _gathered(
        name, split, parts, load, lambda data, label: wrap(data, name=label, transform=transform, seed=seed)
    )


def medmnist_names() -> tuple[str, ...]:
    """Return MedMNIST's flat, single-label data sets."""
    info = _medmnist().INFO
    return tuple(sorted(i["python_class"] for i in info.values() if _usable(i)))


def medmnist_cases(
    name: str,
    split: str | None = None,
    *,
    root: str | Path | None = None,
    download: bool = True,
    size: int = 28,
    transform: Transform | None = None,
    seed: int = 0,
) -> Cases:
    """Return a MedMNIST data set of flat pictures with one class each.

    Parameters
    ----------
    name : str
        As MedMNIST writes it, e.g. ``"BloodMNIST"``.
    split : str, optional
        ``train``, ``val`` or ``test``; all of them by default.
    root : path, optional
        Where the package keeps its files; ``~/.cache/protolearn/medmnist`` by default.
    download : bool
        Fetch what is not there, with the package's own checks.
    size : {28, 64, 128, 224}
        Side of the pictures.
    transform, seed
        See :class:`~protolearn.data.cases.Cases`.

    Returns
    -------
    Cases
        Ids are ``BloodMNIST/train/000017``.
    """
    medmnist = _medmnist()
    if name not in medmnist_names():
        raise UsageError(
            f"MedMNIST has no flat single-label data set {name!r}; {nearest_names(name, medmnist_names())}"
        )
    if size not in (28, 64, 128, 224):
        raise UsageError(f"MedMNIST pictures have the sizes 28, 64, 128 and 224, got {size}")
    info = next(i for i in medmnist.INFO.values() if i["python_class"] == name)
    names = [info["label"][key] for key in sorted(info["label"], key=int)]
    where = Path(root) if root is not None else Path.home() / ".cache" / "protolearn" / "medmnist"
    where.mkdir(parents=True, exist_ok=True)

    def load(part: str | None) -> Any:
        builder = getattr(medmnist, name)
        try:
            return builder(split=part, root=str(where), size=size, download=False)
        except RuntimeError:
            if not download:
                raise
        return builder(split=part, root=str(where), size=size, download=True)

    def cases(data: Any, label: str) -> Cases:
        codes = np.asarray(data.labels).reshape(-1).astype(np.int64)
        return arrays(data.imgs, codes, classes=names, name=label, transform=transform, seed=seed)

    return _gathered(name, split, PARTS, load, cases)


def _gathered(
    name: str,
    split: str | None,
    parts: tuple[str | None, ...],
    load: Callable[[str | None], Any],
    cases: Callable[[Any, str], Cases],
) -> Cases:
    if split is not None and split not in parts:
        known = [part for part in parts if part]
        raise DataError(
            f"{name} has no part {split!r}; " + (nearest_names(split, known) if known else "it comes in one piece")
        )
    found: list[tuple[str, Cases]] = []
    refused = None
    for part in parts if split is None else (split,):
        label = name if part is None else f"{name}/{part}"
        try:
            data = load(part)
        except ValueError as error:  # torchvision's answer to a part it does not have
            refused = error
            continue
        except Exception as error:
            raise DataError(
                f"{label} could not be loaded ({_first_line(error)}): check the connection, or put the files where its "
                "loader expects them and give that folder as root"
            ) from error
        found.append((part or "", cases(data, label)))
    if not found:
        raise DataError(f"{name} has no part {split or 'of the usual names'}: {_first_line(refused)}") from refused
    if len(found) == 1 and not found[0][0]:
        return found[0][1]
    return join(
        [part for _, part in found], name=name if split is None else f"{name} ({split})", splits=[s for s, _ in found]
    )


def _medmnist() -> Any:
    try:
        import medmnist
    except ImportError as error:
        raise MissingExtra("medmnist", "images", "a MedMNIST data set") from error
    return medmnist


def _usable(info: dict[str, Any]) -> bool:
    return "multi-label" not in info["task"] and not info["python_class"].endswith("3D")


def _first_line(error: BaseException | None) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
