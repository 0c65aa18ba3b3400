"""One door to every kind of data: ``load_cases("digits")``, a folder, a table, an archive, a name, an object."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from protolearn.data.archive import archive
from protolearn.data.arrays import arrays, digits
from protolearn.data.cases import Cases, Transform
from protolearn.data.catalogue import medmnist_cases, torchvision_cases
from protolearn.data.cub import cub
from protolearn.data.folder import folder, one_file
from protolearn.data.joined import join
from protolearn.data.layout import is_picture
from protolearn.data.manifest import manifest
from protolearn.data.wrapped import hugging_face, is_hugging_face, is_parts, wrap
from protolearn.errors import DataError, UsageError, nearest_names

TABLE_SUFFIXES = (".csv", ".tsv", ".parquet", ".pq")
CATALOGUES: dict[str, Callable[..., Cases]] = {"torchvision": torchvision_cases, "medmnist": medmnist_cases}


def load_cases(
    spec: str | Path | Any,
    split: str | None = None,
    *,
    classes: Sequence[str] | None = None,
    labelled: bool = True,
    transform: Transform | None = None,
    seed: int = 0,
    **settings: Any,
) -> Cases:
    """Return the cases a person means.

    Parameters
    ----------
    spec : str, path or object
        ``"digits"`` · a folder of class folders, or of CUB-200-2011's files · a manifest (``.csv``, ``.tsv``,
        ``.parquet``) · a ``.zip`` · one picture · ``"torchvision:CIFAR10"`` · ``"medmnist:BloodMNIST"`` · cases · a
        pair (pictures, labels) of arrays · a torch ``Dataset`` · a Hugging Face ``Dataset`` or ``DatasetDict``.
    split : str, optional
        One part; everything by default, with ``cases.split_names`` telling which parts there are.
    classes : sequence of str, optional
        Match labels by name with these (a trained model's classes).
    labelled : bool
        False for pictures without labels (folders, archives, data set objects).
    transform, seed
        See :class:`Cases`.
    **settings
        Handed to the reader: ``bits``, ``columns``, ``root``, ``allow_absolute``, ``download``, ``size``, ``image``,
        ``label`` ...

    Examples
    --------
    >>> load_cases("digits", "test")
    ArrayCases('digits (test)', 359 cases, 10 classes)
    """
    common: dict[str, Any] = {"transform": transform, "seed": seed, **settings}
    try:
        if isinstance(spec, (str, Path)):
            cases = _named(str(spec), split, labelled, common)
        else:
            cases = _object(spec, labelled, common, split)
    except TypeError as error:
        unknown = next((name for name in settings if f"'{name}'" in str(error)), None)
        if unknown is None:
            raise
        raise UsageError(
            f"{spec if isinstance(spec, (str, Path)) else type(spec).__name__} takes no setting {unknown!r}"
        ) from error
    return cases if classes is None else cases.with_classes(classes)


def _named(spec: str, split: str | None, labelled: bool, common: dict[str, Any]) -> Cases:
    path = Path(spec).expanduser()
    if spec == "digits":
        return digits(split, **common)
    catalogue, _, name = spec.partition(":")
    if name and catalogue in CATALOGUES:
        return CATALOGUES[catalogue](name, split, **common)
    if path.is_dir():
        if (path / "images.txt").is_file() and (path / "image_class_labels.txt").is_file():
            return cub(path, split, **common)
        return folder(path, split, labelled=labelled, **common)
    if path.is_file():
        suffix = path.suffix.lower()
        if suffix in TABLE_SUFFIXES:
            return manifest(path, split, **common)
        if suffix == ".zip":
            return archive(path, split, labelled=labelled, **common)
        if is_picture(path.name):
            common.pop("seed")
            return one_file(path, **common)
        raise DataError(
            f"{path} is neither a table (.csv, .parquet), a .zip nor a picture: expected one of these, or a folder"
        )
    siblings = [str(path.parent / p.name) for p in path.parent.iterdir()] if path.parent.is_dir() else []
    known = ["digits", *(f"{catalogue}:NAME" for catalogue in CATALOGUES)]
    hint = nearest_names(str(path), [*siblings, *known])
    if not hint.startswith("did"):
        hint = "expected a folder, a .csv, .parquet or .zip file, a picture, " + ", ".join(known)
    raise DataError(f"there is no data {spec!r}; {hint}")


def _object(spec: Any, labelled: bool, common: dict[str, Any], split: str | None) -> Cases:
    if isinstance(spec, Cases):
        cases: Cases = spec if common["transform"] is None else spec.with_transform(common["transform"])
    elif isinstance(spec, (tuple, list)) and len(spec) == 2 and hasattr(spec[0], "shape"):
        cases = arrays(spec[0], spec[1], **common)
    elif is_parts(spec):
        if split is not None and split not in spec:
            raise DataError(f"the data has no part {split!r}; {nearest_names(split, spec)}")
        chosen = {name: part for name, part in spec.items() if split in (None, name)}
        parts = [hugging_face(p, labelled=labelled, **{"name": _part_name(p, n), **common}) for n, p in chosen.items()]
        return join(parts, splits=list(chosen))
    elif is_hugging_face(spec):
        cases = hugging_face(spec, labelled=labelled, **common)
    elif hasattr(spec, "__getitem__") and hasattr(spec, "__len__") and not isinstance(spec, (dict, list, tuple)):
        cases = wrap(spec, labelled=labelled, **common)
    else:
        raise UsageError(
            f"a {type(spec).__name__} is no data set: expected a name, a path, cases, (pictures, labels), a torch "
            "Dataset or a "
            "Hugging Face data set"
        )
    return cases if split is None else cases.split(split)


def _part_name(part: Any, name: str) -> str:
    own = getattr(getattr(part, "info", None), "dataset_name", None) or "dataset"
    return f"{own}/{name}"
