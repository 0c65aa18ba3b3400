"""Pictures as files: class folders, and the data set of files that manifests and CUB use too."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from protolearn.data.annotations import Annotation
from protolearn.data.cases import Cases, Transform
from protolearn.data.layout import find_files, read_layout, stable_id
from protolearn.data.pictures import read_picture
from protolearn.errors import DataError, nearest_names


class FileCases(Cases):
    """Cases that are files below a root; see :class:`Cases` for the other parameters.

    Parameters
    ----------
    root : path
        Where the files lie.
    paths : sequence of str
        One a case, relative to the root (or absolute).
    bits : int, optional
        See :func:`~protolearn.data.pictures.read_picture`.
    """

    def __init__(
        self,
        root: str | Path,
        paths: Sequence[str],
        *,
        name: str,
        ids: Sequence[str],
        labels: Sequence[int] | np.ndarray,
        classes: Sequence[str],
        groups: Sequence[str] | None = None,
        splits: Sequence[str] | None = None,
        annotations: Mapping[str, Annotation] | None = None,
        transform: Transform | None = None,
        seed: int = 0,
        bits: int | None = None,
    ) -> None:
        super().__init__(
            name=name, ids=ids, labels=labels, classes=classes, groups=groups, splits=splits, annotations=annotations,
            transform=transform, seed=seed,
        )  # fmt: skip
        if len(paths) != len(self.ids):
            raise DataError(f"{name} has {len(self.ids)} ids and {len(paths)} paths: expected one a case")
        self.root = Path(root)
        self.bits = bits
        self._paths = tuple(paths)

    def path(self, i: int) -> Path:
        """Return the file of case ``i``."""
        return self.root / self._paths[int(self._rows[i])]

    def _read(self, row: int) -> Image.Image:
        return read_picture(self.root / self._paths[row], bits=self.bits)


def folder(
    root: str | Path,
    split: str | None = None,
    *,
    labelled: bool = True,
    transform: Transform | None = None,
    seed: int = 0,
    bits: int | None = None,
) -> FileCases:
    """Read class folders: ``root/class/picture``, or ``root/train/class/picture`` and so on.

    Parameters
    ----------
    root : path
        The folder above the classes or parts.
    split : str, optional
        One part (``"train"``, ``"val"``, ``"test"``); everything by default, with ``splits`` telling the parts apart.
    labelled : bool
        False reads any pictures below the root, without labels.
    transform, seed, bits
        See :class:`Cases` and :func:`~protolearn.data.pictures.read_picture`.

    Returns
    -------
    FileCases
        A case's id is its path below the root, with ``/``. Classes are the folder names in alphabetical order, over all
        parts, so that a label means the same in each of them.
    """
    root = Path(root)
    if not root.is_dir():
        siblings = [p.name for p in root.parent.iterdir() if p.is_dir()] if root.parent.is_dir() else []
        hint = f" ({nearest_names(root.name, siblings)})" if siblings else ""
        raise DataError(f"{root} is not a folder: expected class folders with pictures{hint}")
    paths, folders = find_files(root)
    layout = read_layout(paths, str(root), folders=folders, labelled=labelled)
    cases = FileCases(
        root, layout.paths, name=root.resolve().name, ids=[stable_id(path) for path in layout.paths],
        labels=layout.labels, classes=layout.classes, splits=layout.splits, transform=transform, seed=seed, bits=bits,
    )  # fmt: skip
    return cases if split is None else cases.split(split)


def one_file(path: str | Path, *, transform: Transform | None = None, bits: int | None = None) -> FileCases:
    """Return a single picture as one unlabelled case whose id is the file name."""
    path = Path(os.path.abspath(path))
    return FileCases(
        path.parent, [path.name], name=path.name, ids=[stable_id(path.name)], labels=[-1], classes=(),
        transform=transform, bits=bits,
    )  # fmt: skip
