"""Cases that already are numbers: one vector each, or several tokens each, from an encoder run elsewhere or a table."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from protolearn.data.arrays import numbered
from protolearn.data.cases import Cases
from protolearn.data.labels import encode
from protolearn.errors import DataError
from protolearn.structures import Batch


class FeatureCases(Cases):
    """Cases that are rows of an array of features; see :func:`features`."""

    pictured = False

    def __init__(self, values: np.ndarray, **fields: Any) -> None:
        super().__init__(**fields)
        self._values = values

    def _read(self, row: int) -> Image.Image:
        raise DataError(
            f"{self.name} holds features, not pictures: case {self.ids[0]!r} and the others cannot be shown"
        )

    def content(self, i: int) -> str:
        """Return the SHA-256 of the case's numbers and shape."""
        row = int(self._rows[i])
        if row not in self._hashes:
            values = np.ascontiguousarray(self._values[row], dtype=np.float32)
            self._hashes[row] = hashlib.sha256(f"{values.shape}".encode() + values.tobytes()).hexdigest()
        return self._hashes[row]

    def __getitem__(self, i: int) -> Batch:
        """Return one sample, uncollated: float32 ``(D,)`` or ``(S, D)``, label, id."""
        values = torch.from_numpy(np.array(self._values[int(self._rows[i])], dtype=np.float32))
        return Batch(values, int(self.labels[i]), self.ids[i])  # type: ignore[arg-type]


def features(
    values: np.ndarray | torch.Tensor,
    labels: Sequence[Any] | np.ndarray | torch.Tensor | None = None,
    *,
    classes: Sequence[str] | None = None,
    name: str = "features",
    ids: Sequence[str] | None = None,
    groups: Sequence[str] | None = None,
    splits: Sequence[str] | None = None,
) -> FeatureCases:
    """Return an array of features and its labels as cases.

    Parameters
    ----------
    values : array
        ``(N, D)`` or ``(N, S, D)``, finite numbers. A memory map stays one.
    labels : sequence, optional
        Whole numbers or text; none = unlabelled.
    classes, name, ids, groups, splits
        As for :func:`~protolearn.data.arrays.arrays`.

    Raises
    ------
    DataError
        If the shape does not fit or a number is not finite.

    Examples
    --------
    >>> cases = features(np.eye(3), ["a", "b", "a"])
    >>> cases[1].inputs, cases.classes[cases[1].labels], cases.ids[1]
    (tensor([0., 1., 0.]), 'b', 'features/000001')
    """
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().numpy()
    if values.ndim not in (2, 3) or values.dtype.kind not in "fiub" or 0 in values.shape[1:]:
        raise DataError(f"{name}: features must be numbers (N, D) or (N, S, D), got {values.dtype} {values.shape}")
    for start in range(0, len(values), 4096):
        part = values[start : start + 4096]
        if part.dtype.kind == "f" and not np.isfinite(part).all():
            row = start + int(np.flatnonzero(~np.isfinite(part).reshape(len(part), -1).all(1))[0])
            raise DataError(f"{name}: row {row} holds NaN or infinity: impute or leave it out")
    plain = [-1] * len(values) if labels is None else labels.tolist() if hasattr(labels, "tolist") else labels
    codes, names = encode(plain, classes, name)
    return FeatureCases(
        values,
        name=name,
        ids=numbered(name, len(values)) if ids is None else ids,
        labels=codes,
        classes=names,
        groups=groups,
        splits=splits,
    )
