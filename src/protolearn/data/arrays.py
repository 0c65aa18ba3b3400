"""Pictures that already are arrays, and the embedded default: scikit-learn's real handwritten digits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from protolearn.data.cases import Cases, Transform
from protolearn.data.labels import encode
from protolearn.data.pictures import eight_bit
from protolearn.data.splits import stratified_split
from protolearn.errors import DataError


class ArrayCases(Cases):
    """Cases that are rows of one array; see :func:`arrays`."""

    def __init__(self, pictures: np.ndarray, *, bits: int | None = None, **fields: Any) -> None:
        super().__init__(**fields)
        self.bits = bits
        self._pictures = pictures

    def _read(self, row: int) -> Image.Image:
        values = eight_bit(np.asarray(self._pictures[row]), name=f"{self.name}/{row}", bits=self.bits)
        if values.shape[-1:] == (1,):
            values = values[..., 0]
        return Image.fromarray(np.ascontiguousarray(values)).convert("RGB")


def arrays(
    pictures: np.ndarray | torch.Tensor,
    labels: Sequence[Any] | np.ndarray | torch.Tensor | None = None,
    *,
    classes: Sequence[str] | None = None,
    name: str = "arrays",
    ids: Sequence[str] | None = None,
    groups: Sequence[str] | None = None,
    splits: Sequence[str] | None = None,
    transform: Transform | None = None,
    seed: int = 0,
    bits: int | None = None,
) -> ArrayCases:
    """Return an array of pictures and its labels as cases.

    Parameters
    ----------
    pictures : array
        ``(N, H, W)``, ``(N, H, W, 1 or 3)`` or ``(N, 1 or 3, H, W)``: uint8, bool, real numbers from 0 to 1, or
        uint16. A memory map stays one. Where both the second and the last size could be channels, an array has them
        last, a tensor first.
    labels : sequence, optional
        Whole numbers or text, see :func:`~protolearn.data.labels.encode`; none = unlabelled.
    classes : sequence of str, optional
        Names by number; by default the values that occur.
    name : str
        Also what ids start with.
    ids : sequence of str, optional
        By default ``name/000017`` for row 17: stable as long as the array keeps its order.
    groups, splits, transform, seed
        See :class:`~protolearn.data.cases.Cases`.
    bits : int, optional
        See :func:`~protolearn.data.pictures.eight_bit`.

    Examples
    --------
    >>> cases = arrays(np.zeros((2, 8, 8), dtype=np.uint8), ["a", "b"])
    >>> cases.ids, cases.classes
    (('arrays/000000', 'arrays/000001'), ('a', 'b'))
    """
    first = isinstance(pictures, torch.Tensor)
    values = _channels_last(
        pictures.detach().cpu().numpy() if isinstance(pictures, torch.Tensor) else pictures, first, name
    )
    if labels is None:
        codes, names = np.full(len(values), -1, dtype=np.int64), tuple(classes or ())
    else:
        plain = labels.detach().cpu().numpy() if isinstance(labels, torch.Tensor) else labels
        codes, names = encode(plain, classes, name)
    if len(codes) != len(values):
        raise DataError(f"{name}: {len(values)} pictures and {len(codes)} labels; expected one label a picture")
    if values.dtype.kind == "f" and values.size:
        low, high = float(values.min()), float(values.max())
        if not (low >= 0 and high <= 1):
            raise DataError(
                f"{name}: the pictures hold real values from {low:g} to {high:g}; expected 0 to 1 without NaN "
                "(un-normalised), "
                "or 0 to 255 as uint8"
            )
    return ArrayCases(
        values, bits=bits, name=name, ids=numbered(name, len(values)) if ids is None else ids, labels=codes,
        classes=names,
        groups=groups, splits=splits, transform=transform, seed=seed,
    )  # fmt: skip


def digits(split: str | None = None, *, transform: Transform | None = None, seed: int = 0) -> ArrayCases:
    """Return scikit-learn's 1797 real handwritten digits, 8 x 8 pixels, with a fixed stratified test part of a fifth.

    The pictures stay 8 x 8 (``Preprocess`` enlarges them), so regions are told in original pixels. Ids are
    ``digits/000017`` for row 17 of scikit-learn's array.

    Examples
    --------
    >>> digits("train").split_names, len(digits("test")), digits().picture(0).size
    (('train',), 359, (8, 8))
    """
    from sklearn.datasets import load_digits

    loaded = load_digits()
    pictures = np.rint(loaded.images * (255 / 16)).astype(np.uint8)
    splits = np.full(len(pictures), "train")
    splits[stratified_split(loaded.target, test=0.2, seed=0)[1]] = "test"
    cases = arrays(
        pictures, loaded.target, classes=[str(digit) for digit in range(10)], name="digits", splits=splits.tolist(),
        transform=transform, seed=seed,
    )  # fmt: skip
    return cases if split is None else cases.split(split)


def numbered(name: str, count: int) -> list[str]:
    """Return ``name/000000`` and so on: ids of rows that have no other."""
    return [f"{name}/{row:06d}" for row in range(count)]


def _channels_last(values: Any, first: bool, name: str) -> np.ndarray:
    array = values if isinstance(values, np.ndarray) else np.asarray(values)
    if array.dtype == object:
        raise DataError(
            f"{name}: the pictures have different sizes or are no numbers; store them as files, or at one size"
        )
    if array.ndim == 3 and min(array.shape[1:]) > 0:
        return array
    if array.ndim == 4 and min(array.shape[1:]) > 0:
        last_fits, first_fits = array.shape[3] in (1, 3), array.shape[1] in (1, 3)
        if last_fits and not (first and first_fits):
            return array
        if first_fits:
            return array.transpose(0, 2, 3, 1)
    raise DataError(
        f"{name}: pictures have shape {array.shape}; expected (N, H, W), (N, H, W, 1 or 3) or (N, 1 or 3, H, W)"
    )
