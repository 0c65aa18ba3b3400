"""Pictures inside a zip file, read in place and never unpacked, with an ``index.csv`` inside or beside it."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from protolearn.data.annotations import Annotation
from protolearn.data.cases import Cases, Transform
from protolearn.data.layout import is_picture, read_layout, stable_id
from protolearn.data.manifest import read_listing
from protolearn.data.pictures import read_picture
from protolearn.data.tables import parse_csv, read_table
from protolearn.errors import DataError

LARGEST_MEMBER = 1 << 30
INDEX = "index.csv"


class ArchiveCases(Cases):
    """Cases that are members of a zip file; every process opens it for itself."""

    def __init__(self, path: Path, members: tuple[str, ...], *, bits: int | None = None, **fields: Any) -> None:
        super().__init__(**fields)
        self.path = path
        self.bits = bits
        self._members = members
        self._opened: tuple[int, zipfile.ZipFile] | None = None

    def _read(self, row: int) -> Image.Image:
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = (os.getpid(), _open(self.path))
        member = self._members[row]
        return read_picture(_content(self._opened[1], member, self.path), name=f"{self.path}/{member}", bits=self.bits)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}


def archive(
    path: str | Path,
    split: str | None = None,
    *,
    index: str | Path | None = None,
    columns: Mapping[str, str] | None = None,
    labelled: bool = True,
    transform: Transform | None = None,
    seed: int = 0,
    bits: int | None = None,
) -> ArchiveCases:
    """Read pictures from a zip file.

    Parameters
    ----------
    path : path
        The ``.zip`` file.
    split : str, optional
        One part; everything by default.
    index : path, optional
        A manifest whose paths are members; by default ``index.csv`` inside the archive, or else beside it. Without any,
        classes and parts are read off the members' folders as :func:`~protolearn.data.folder.folder` does.
    columns : mapping, optional
        See :func:`~protolearn.data.manifest.manifest`.
    labelled, transform, seed, bits
        See :func:`~protolearn.data.folder.folder`.

    Returns
    -------
    ArchiveCases
        A case's id is its ``id`` in the manifest, or else its member name.
    """
    path = Path(path)
    with _open(path) as opened:
        members = [info.filename for info in opened.infolist() if not info.is_dir()]
        beside = path.parent / INDEX if index is None else Path(index)
        if index is None and INDEX in members:
            table = parse_csv(_content(opened, INDEX, path), f"{path}/{INDEX}")
        elif index is not None or beside.is_file():
            table = read_table(beside)
        else:
            table = None
    annotations: dict[str, Annotation] = {}
    if table is None:
        layout = read_layout(sorted(filter(is_picture, members)), str(path), labelled=labelled)
        paths, ids = layout.paths, [stable_id(member) for member in layout.paths]
        fields: dict[str, Any] = {"labels": layout.labels, "classes": layout.classes, "splits": layout.splits}
    else:
        listing = read_listing(table, columns=columns)
        paths, ids, annotations = tuple(listing.paths), listing.ids, listing.annotations
        known = set(members)
        missing = [(number, p) for (number, _), p in zip(table.rows, paths, strict=True) if p not in known]
        if missing:
            raise DataError(
                f"{table.where} row {missing[0][0]}: {missing[0][1]} is not in {path} ({len(missing)} of "
                f"{len(paths)} are "
                "missing): is it the index of another archive?"
            )
        fields = {
            "labels": listing.labels, "classes": listing.classes, "splits": listing.splits, "groups": listing.groups,
        }  # fmt: skip
    cases = ArchiveCases(
        path,
        paths,
        bits=bits,
        name=path.stem,
        ids=ids,
        annotations=annotations,
        transform=transform,
        seed=seed,
        **fields,
    )
    return cases if split is None else cases.split(split)


def _open(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist: expected a .zip file of pictures") from error
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is not a readable zip file ({error}): copy it again from its origin") from error


def _content(opened: zipfile.ZipFile, member: str, path: Path) -> bytes:
    try:
        info = opened.getinfo(member)
        if info.file_size > LARGEST_MEMBER:
            raise DataError(
                f"{path}/{member} unpacks to {info.file_size:,} bytes, the limit is {LARGEST_MEMBER:,}: unzip it "
                "yourself"
            )
        return opened.read(info)
    except KeyError as error:
        raise DataError(f"{path} no longer holds {member}: was the archive replaced?") from error
    except RuntimeError as error:
        raise DataError(f"{path}/{member} is encrypted: unzip it yourself") from error
    except (OSError, zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError) as error:
        raise DataError(f"{path}/{member} is damaged ({error}): copy the archive again from its origin") from error
