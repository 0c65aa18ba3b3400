"""Labels as people write them, turned into class indices and names."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from protolearn.errors import DataError, nearest_names


def encode(
    values: Sequence[object] | np.ndarray, classes: Sequence[str] | None, where: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Turn labels into int64 indices and class names.

    Parameters
    ----------
    values : sequence
        Whole numbers or text. -1, None and ``""`` mean unlabelled.
    classes : sequence of str or None
        With names given, numbers are indices into them and text must be among them. Without, the classes are the values
        that occur, in increasing order (text that is all whole numbers is ordered as numbers).
    where : str
        For messages.

    Examples
    --------
    >>> encode(["cat", "ant", "", "cat"], None, "here")
    (array([ 1,  0, -1,  1]), ('ant', 'cat'))
    >>> encode([3, 10, 3], None, "here")
    (array([0, 1, 0]), ('3', '10'))
    """
    array = np.asarray(values)
    if array.ndim != 1:
        raise DataError(
            f"{where}: expected one label a picture (several are not handled), got labels of shape {array.shape}"
        )
    if (array.size and array.dtype.kind in "fc") or array.dtype == np.bool_:
        raise DataError(f"{where}: labels must be whole numbers or text, got {array.dtype}")
    if array.dtype.kind in "ui":
        return _encode_numbers(array.astype(np.int64), classes, where)
    texts = ["" if value is None else str(value) for value in array.tolist()]
    names = _ordered({text for text in texts if text}) if classes is None else tuple(map(str, classes))
    place = {name: index for index, name in enumerate(names)}
    unknown = [text for text in dict.fromkeys(texts) if text and text not in place]
    if unknown:
        raise DataError(f"{where}: label {unknown[0]!r} is not a known class; {nearest_names(unknown[0], names)}")
    return np.array([place[text] if text else -1 for text in texts], dtype=np.int64), names


def _encode_numbers(
    numbers: np.ndarray, classes: Sequence[str] | None, where: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    if numbers.size and numbers.min() < -1:
        raise DataError(f"{where}: labels must not be below -1 (unlabelled), got {numbers.min()}")
    if classes is not None:
        if numbers.size and numbers.max() >= len(classes):
            raise DataError(f"{where}: label {numbers.max()} has no name: {len(classes)} classes are numbered from 0")
        return numbers, tuple(map(str, classes))
    present = np.unique(numbers[numbers >= 0])
    indices = np.where(numbers >= 0, np.searchsorted(present, numbers), -1)
    return indices.astype(np.int64), tuple(str(value) for value in present)


def _ordered(names: set[str]) -> tuple[str, ...]:
    if all(re.fullmatch(r"-?\d+", name) for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))
