"""Data sets of other libraries as cases: any torch ``Dataset`` and Hugging Face ``datasets`` objects."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from protolearn.data.arrays import numbered
from protolearn.data.cases import Cases, Transform
from protolearn.data.labels import encode
from protolearn.data.pictures import eight_bit, read_picture, to_rgb
from protolearn.errors import DataError, UsageError, nearest_names

IMAGE_COLUMNS = ("image", "img", "picture", "pixel_values")
LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "target")


class WrappedCases(Cases):
    """Cases fetched by a function of the row; see :func:`wrap` and :func:`hugging_face`."""

    def __init__(self, fetch: Callable[[int], Any], *, bits: int | None = None, **fields: Any) -> None:
        super().__init__(**fields)
        self.bits = bits
        self._fetch = fetch

    def _read(self, row: int) -> Image.Image:
        return as_picture(self._fetch(row), f"{self.name}/{row}", self.bits)


class _First:
    """The picture of a torch data set's item (its label is known already)."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __call__(self, row: int) -> Any:
        item = self.dataset[row]
        return item[0] if isinstance(item, (tuple, list)) else item


class _Cell:
    """One column of a Hugging Face data set's row."""

    def __init__(self, dataset: Any, column: str) -> None:
        self.dataset, self.column = dataset, column

    def __call__(self, row: int) -> Any:
        return self.dataset[row][self.column]


def wrap(
    dataset: Any,
    *,
    classes: Sequence[str] | None = None,
    name: str | None = None,
    labelled: bool = True,
    transform: Transform | None = None,
    seed: int = 0,
    bits: int | None = None,
) -> WrappedCases:
    """Return any torch ``Dataset`` of (picture, label) as cases.

    Parameters
    ----------
    dataset : Dataset
        Its pictures must be PIL pictures, arrays or tensors that are not normalised. Labels are taken from ``targets``
        or ``labels`` where it has them, else every item is read once. Ids are its own ``ids`` if it offers some, else
        ``name/000017`` for its item 17: its place in the DATASET, whatever a loader does. A ``torch.utils.data.Subset``
        keeps the ids of what it was taken from.
    classes : sequence of str, optional
        Names by number; by default the data set's own ``classes``.
    name : str, optional
        By default the class of the data set.
    labelled : bool
        False for a data set of pictures alone.
    transform, seed, bits
        See :class:`~protolearn.data.cases.Cases`.
    """
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise DataError(
            f"{type(dataset).__name__} has no length or no items: expected a map-style data set, not a stream"
        )
    source, rows = _unwrapped(dataset)
    name = name or type(source).__name__
    own = getattr(source, "ids", None)
    ids = numbered(name, len(source)) if own is None else [str(case) for case in own]
    if len(ids) != len(source):
        raise DataError(f"{name} offers {len(ids)} ids for {len(source)} items: expected one an item")
    codes, names = _labels(source, rows, classes or getattr(source, "classes", None), name, labelled)
    return WrappedCases(
        _Rows(_First(source), rows), bits=bits, name=name, ids=[ids[row] for row in rows], labels=codes, classes=names,
        transform=transform, seed=seed,
    )  # fmt: skip


class _Rows:
    """A fetch by position in a selection of rows."""

    def __init__(self, fetch: Callable[[int], Any], rows: Sequence[int]) -> None:
        self.fetch, self.rows = fetch, rows

    def __call__(self, row: int) -> Any:
        return self.fetch(self.rows[row])


def _unwrapped(dataset: Any) -> tuple[Any, list[int]]:
    rows = list(range(len(dataset)))
    while isinstance(dataset, torch.utils.data.Subset):
        rows = [operator.index(dataset.indices[row]) for row in rows]
        dataset = dataset.dataset
    return dataset, rows


def _labels(
    source: Any, rows: list[int], classes: Sequence[str] | None, name: str, labelled: bool
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return labels of some rows; where the data set tells all of its labels, they decide what its classes are."""
    if not labelled:
        return np.full(len(rows), -1, dtype=np.int64), tuple(classes or ())
    for attribute in ("targets", "labels", "_labels"):
        values = getattr(source, attribute, None)
        if values is not None and hasattr(values, "__len__") and len(values) == len(source):
            codes, names = encode([_scalar(value, name) for value in values], classes, name)
            return codes[rows], names
    found = []
    for row in rows:
        item = source[row]
        if not isinstance(item, (tuple, list)) or len(item) < 2:
            raise DataError(
                f"{name} item {row} is a {type(item).__name__}: expected (picture, label), or say labelled=False"
            )
        found.append(_scalar(item[1], name))
    return encode(found, classes, name)


def _scalar(value: Any, name: str) -> Any:
    if isinstance(value, str) or value is None:
        return value
    array = np.asarray(value)
    if array.size != 1:
        raise DataError(
            f"{name}: a label has shape {array.shape}; expected one class a picture (several labels are not handled)"
        )
    return array.reshape(()).item()


def as_picture(value: Any, name: str, bits: int | None = None) -> Image.Image:
    """Return what a data set calls a picture (PIL, array, tensor, bytes, Hugging Face's dict) as upright 8-bit RGB."""
    if isinstance(value, Image.Image):
        from PIL import ImageOps

        return to_rgb(ImageOps.exif_transpose(value), name=name, bits=bits)
    if isinstance(value, dict) and ("bytes" in value or "path" in value):
        return read_picture(value.get("bytes") or value.get("path") or b"", name=name, bits=bits)
    if isinstance(value, (bytes, bytearray)):
        return read_picture(bytes(value), name=name, bits=bits)
    if isinstance(value, (torch.Tensor, np.ndarray, list)):
        array = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
        if (
            array.ndim == 3
            and array.shape[0] in (1, 3)
            and (isinstance(value, torch.Tensor) or array.shape[2] not in (1, 3))
        ):
            array = array.transpose(1, 2, 0)
        if array.ndim == 3 and array.shape[2] == 1:
            array = array[..., 0]
        if array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3):
            return Image.fromarray(np.ascontiguousarray(eight_bit(array, name=name, bits=bits))).convert("RGB")
        raise DataError(f"{name} has shape {array.shape}: expected (H, W), (H, W, 1 or 3) or (1 or 3, H, W)")
    raise DataError(f"{name} is a {type(value).__name__}: expected a PIL picture, an array or a tensor")


def is_hugging_face(dataset: Any) -> bool:
    """Say whether an object looks like a Hugging Face ``Dataset``."""
    return hasattr(dataset, "column_names") and hasattr(dataset, "features") and hasattr(dataset, "__getitem__")


def hugging_face(
    dataset: Any,
    *,
    image: str | None = None,
    label: str | None = None,
    classes: Sequence[str] | None = None,
    name: str | None = None,
    labelled: bool = True,
    transform: Transform | None = None,
    seed: int = 0,
    bits: int | None = None,
) -> WrappedCases:
    """Return a Hugging Face ``datasets.Dataset`` as cases.

    Parameters
    ----------
    dataset : datasets.Dataset
        One part, as ``load_dataset(..., split="train")`` gives.
    image, label : str, optional
        Its columns; by default the usual names. Class names come from its ``ClassLabel`` feature.
    classes, name, labelled, transform, seed, bits
        See :func:`wrap`. Ids are its column ``id`` where that is unique, else ``name/000017`` for row 17 of the object
        as given: shuffling or filtering the object first changes them.
    """
    columns = list(dataset.column_names)
    features = dataset.features
    typed = [column for column in columns if type(features.get(column)).__name__ == "Image"]
    image = _column(image, [*IMAGE_COLUMNS, *typed], columns, "pictures")
    name = name or _own_name(dataset)
    codes, names = np.full(len(dataset), -1, dtype=np.int64), tuple(classes or ())
    if labelled:
        label = _column(label, LABEL_COLUMNS, columns, "labels")
        known = classes or getattr(features.get(label), "names", None)
        codes, names = encode([_scalar(value, name) for value in dataset[label]], known, name)
    ids = numbered(name, len(dataset))
    if "id" in columns:
        own = [str(value) for value in dataset["id"]]
        ids = own if len(set(own)) == len(own) else ids
    return WrappedCases(
        _Cell(dataset, image),
        bits=bits,
        name=name,
        ids=ids,
        labels=codes,
        classes=names,
        transform=transform,
        seed=seed,
    )


def _own_name(dataset: Any) -> str:
    name = getattr(getattr(dataset, "info", None), "dataset_name", None) or "dataset"
    split = getattr(dataset, "split", None)
    return f"{name}/{split}" if split else str(name)


def _column(stated: str | None, usual: Iterable[str], columns: list[str], what: str) -> str:
    if stated is not None:
        if stated not in columns:
            raise UsageError(f"there is no column {stated!r}; {nearest_names(stated, columns)}")
        return stated
    for name in usual:
        if name in columns:
            return name
    raise DataError(f"no column looks like {what} among {', '.join(columns)}: say which with image= and label=")


def is_parts(dataset: Any) -> bool:
    """Say whether an object looks like a Hugging Face ``DatasetDict``: named parts."""
    return isinstance(dataset, Mapping) and bool(dataset) and all(is_hugging_face(part) for part in dataset.values())
