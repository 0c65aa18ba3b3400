"""Several data sets with the same classes seen as one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from PIL import Image

from protolearn.data.annotations import Annotation
from protolearn.data.cases import Cases
from protolearn.errors import DataError


class JoinedCases(Cases):
    """See :func:`join`."""

    def __init__(self, parts: Sequence[Cases], name: str, splits: Sequence[str] | None) -> None:
        groups = [part.groups for part in parts]
        super().__init__(
            name=name,
            ids=[case for part in parts for case in part.ids],
            labels=np.concatenate([part.labels for part in parts]),
            classes=parts[0].classes,
            groups=None if None in groups else [group for of_part in groups for group in of_part or ()],
            splits=splits,
            transform=parts[0].transform,
            seed=parts[0].seed,
        )
        self._parts = tuple(parts)
        self._starts = np.cumsum([0, *map(len, parts)])
        self.annotations = _Annotations(parts)
        shared = set.intersection(*(set(part.targets) for part in parts))
        self.targets = {what: np.concatenate([part.targets[what] for part in parts]) for what in sorted(shared)}

    def _read(self, row: int) -> Image.Image:
        part = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self._parts[part].picture(row - int(self._starts[part]))


class _Annotations(Mapping[str, Annotation]):
    """The parts' annotations, by case id, read when asked for."""

    def __init__(self, parts: Sequence[Cases]) -> None:
        self._owners = {case: part.annotations for part in parts for case in part.ids if case in part.annotations}

    def __getitem__(self, case: str) -> Annotation:
        return self._owners[case][case]

    def __iter__(self) -> Iterator[str]:
        return iter(self._owners)

    def __len__(self) -> int:
        return len(self._owners)


def join(parts: Sequence[Cases], *, name: str | None = None, splits: Sequence[str] | None = None) -> JoinedCases:
    """Return data sets as one; classes are matched by name, ids must differ.

    Parameters
    ----------
    parts : sequence of Cases
        At least one; the first gives transform and seed.
    name : str, optional
        By default the names of the parts.
    splits : sequence of str, optional
        One name a part; by default the parts' own.
    """
    if not parts:
        raise DataError("nothing to join: expected at least one data set")
    classes = tuple(dict.fromkeys(name for part in parts for name in part.classes))
    alike = [part.with_classes(classes) for part in parts]
    if splits is not None:
        each: list[str] | None = [split for split, part in zip(splits, parts, strict=True) for _ in part.ids]
    elif any(part.splits is not None for part in parts):
        each = [split for part in parts for split in part.splits or ("",) * len(part)]
    else:
        each = None
    return JoinedCases(alike, name or " + ".join(part.name for part in parts), each)
