"""What every data set of pictures offers: stable ids, labels, pictures, content hashes and samples.

A case's id, hash and augmentation draw depend on the case alone, never on the loader, its workers or its order, so a
prototype can say for good which picture it came from.
"""

from __future__ import annotations

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from protolearn.data.annotations import Annotation, checked_annotations
from protolearn.data.pictures import content_hash
from protolearn.errors import DataError, UsageError, nearest_names
from protolearn.structures import Batch


class Transform(Protocol):
    """A picture in, a float tensor ``(3, H, W)`` out; random only through the generator."""

    def __call__(self, picture: Image.Image, generator: torch.Generator | None = None) -> Tensor:
        """Return the input; without a generator, draw nothing."""
        ...


class Cases(Dataset[Batch], ABC):
    """Pictures with stable ids, as a torch ``Dataset`` whose samples collate into a ``Batch``.

    A kind of storage subclasses it and implements ``_read``; everything else is here. Derived data sets (``subset``,
    ``with_transform`` ...) are cheap views; the pictures are read when asked for.

    Parameters
    ----------
    name : str
        What messages and reports call the data.
    ids : sequence of str
        One a case, stable and unique.
    labels : sequence of int
        Index into ``classes``; -1 = unlabelled.
    classes : sequence of str
        Names, in the order of the indices.
    groups : sequence of str, optional
        What must stay on one side of a split (patient, slide, photographer).
    splits : sequence of str, optional
        Which part each case belongs to by its origin, ``""`` where it says nothing.
    annotations : mapping of str to Annotation, optional
        By case id; may read lazily.
    targets : mapping of str to array, optional
        What is known of the cases beside their class, for objectives: by name, one float row a case, such as
        ``concepts (N, K)``.
    transform : Transform, optional
        Applied by ``__getitem__``; without one a sample is the picture itself as floats from 0 to 1.
    seed : int
        Seeds augmentation together with the epoch and the case id.

    Attributes
    ----------
    labels : ndarray
        int64, read-only.
    """

    ids: tuple[str, ...]
    labels: np.ndarray
    classes: tuple[str, ...]
    groups: tuple[str, ...] | None
    splits: tuple[str, ...] | None
    pictured: bool = True  # False where a case is numbers and ``picture`` has nothing to return

    def __init__(
        self,
        *,
        name: str,
        ids: Sequence[str],
        labels: Sequence[int] | np.ndarray,
        classes: Sequence[str],
        groups: Sequence[str] | None = None,
        splits: Sequence[str] | None = None,
        annotations: Mapping[str, Annotation] | None = None,
        targets: Mapping[str, np.ndarray] | None = None,
        transform: Transform | None = None,
        seed: int = 0,
    ) -> None:
        self.name = name
        self.ids = tuple(map(str, ids))
        self.labels = _checked_labels(labels, len(self.ids), classes, name)
        self.classes = tuple(map(str, classes))
        self.groups = _one_each(groups, len(self.ids), "groups", name)
        self.splits = _one_each(splits, len(self.ids), "splits", name)
        self.annotations: Mapping[str, Annotation] = {} if annotations is None else annotations
        self.targets: Mapping[str, np.ndarray] = _checked_targets(targets or {}, len(self.ids), name)
        self.transform = transform
        self.seed = seed
        _refuse_repeats(self.ids, "case id", name)
        _refuse_repeats(self.classes, "class", name)
        self._rows = np.arange(len(self.ids))
        self._hashes: dict[int, str] = {}
        self._sizes: dict[int, tuple[int, int]] = {}
        self._places: dict[str, int] | None = None
        self._epoch = _shared(0)

    @abstractmethod
    def _read(self, row: int) -> Image.Image:
        """Return the picture stored at a row of the underlying storage, upright 8-bit RGB."""

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        grouped = f", {len(set(self.groups))} groups" if self.groups is not None else ""
        return f"{type(self).__name__}({self.name!r}, {len(self)} cases, {len(self.classes)} classes{grouped})"

    def picture(self, i: int) -> Image.Image:
        """Return case ``i`` as an upright 8-bit RGB picture, untransformed."""
        return self._read(int(self._rows[i]))

    def content(self, i: int) -> str:
        """Return the SHA-256 of the decoded picture (size and RGB pixels), remembered after the first time."""
        row = int(self._rows[i])
        if row not in self._hashes:
            picture = self._read(row)
            self._hashes[row], self._sizes[row] = content_hash(picture), picture.size
        return self._hashes[row]

    def size(self, i: int) -> tuple[int, int]:
        """Return width and height of the picture, remembered from when its content was hashed."""
        row = int(self._rows[i])
        if row not in self._sizes:
            self._sizes[row] = self._read(row).size
        return self._sizes[row]

    def fingerprint(self) -> str:
        """Return one SHA-256 over ids, pictures and labels in order; reads every picture the first time."""
        digest = hashlib.sha256("\n".join(self.classes).encode())
        for i, (case, label) in enumerate(zip(self.ids, self.labels.tolist(), strict=True)):
            digest.update(f"\n{case}\t{label}\t{self.content(i)}".encode())
        return digest.hexdigest()

    def annotation(self, i: int) -> Annotation | None:
        """Return what is marked in case ``i``, in pixels of the original picture."""
        return self.annotations.get(self.ids[i])

    def index(self, case: str) -> int:
        """Return the position of a case id."""
        if self._places is None:
            self._places = {known: i for i, known in enumerate(self.ids)}
        if case not in self._places:
            raise DataError(f"{self.name} has no case {case!r}; {nearest_names(case, self._near(case))}")
        return self._places[case]

    def _near(self, case: str) -> list[str]:
        """Return ids worth comparing with a mistyped one, without comparing with millions."""
        ending = case.rsplit("/", 1)[-1]
        return [known for known in self.ids if known.endswith(ending)] or list(self.ids[:2000])

    def __getitem__(self, i: int) -> Batch:
        """Return one sample: a :class:`Batch` of a single, uncollated case (tensor, int, str)."""
        return Batch(self._transformed(i)[0], int(self.labels[i]), self.ids[i])  # type: ignore[arg-type]

    def annotated(self, i: int) -> tuple[Tensor, Annotation | None]:
        """Return the input of ``__getitem__`` with its annotation in pixels of that input: geometry travels along."""
        annotation = self.annotation(i)
        if annotation is None:
            return self._transformed(i)[0], None
        return self._transformed(i, annotation)

    def _transformed(self, i: int, annotation: Annotation | None = None) -> tuple[Tensor, Annotation | None]:
        picture = self.picture(i)
        if self.transform is None:
            return as_tensor(picture), annotation
        generator = torch.Generator()
        generator.manual_seed(view_seed(self.seed, self.epoch, self.ids[i]))
        if annotation is None:
            values = self.transform(picture, generator)
        elif hasattr(self.transform, "with_annotation"):
            values, annotation = self.transform.with_annotation(picture, annotation, generator)
        else:
            raise UsageError(
                f"{type(self.transform).__name__} does not carry annotations: use Preprocess or Augmented, or give the "
                "transform a method with_annotation(picture, annotation, generator)"
            )
        if not isinstance(values, Tensor) or values.ndim != 3 or not values.is_floating_point():
            shown = f"{values.dtype} {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
            raise UsageError(f"a transform must return a float tensor (3, H, W), got {shown} from {self.transform!r}")
        return values, annotation

    @property
    def epoch(self) -> int:
        """The epoch or view number that seeds augmentation."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Choose the augmentation draws; reaches worker processes that are already running."""
        self._epoch.fill_(epoch)

    @property
    def split_names(self) -> tuple[str, ...]:
        """The parts the data came in, in order of appearance; empty when it came in one piece."""
        return tuple(dict.fromkeys(split for split in self.splits or () if split))

    def counts(self) -> dict[str, int]:
        """Return how many cases each class has."""
        numbers = np.bincount(self.labels[self.labels >= 0], minlength=len(self.classes)).tolist()
        return dict(zip(self.classes, numbers, strict=True))

    def with_transform(self, transform: Transform | None) -> Self:
        """Return the same cases under another transform."""
        return self._derive(transform=transform)

    def with_seed(self, seed: int) -> Self:
        """Return the same cases with other augmentation draws."""
        return self._derive(seed=seed)

    def with_annotations(self, annotations: Mapping[str, Annotation]) -> Self:
        """Return the same cases with these annotations, by case id."""
        return self._derive(annotations=checked_annotations(annotations, self.ids))

    def with_targets(self, targets: Mapping[str, np.ndarray]) -> Self:
        """Return the same cases with these targets, one row a case in the order of ``ids``.

        Examples
        --------
        >>> from protolearn.data import digits
        >>> digits("test").subset([0, 1]).with_targets({"loops": np.array([[0.0], [1.0]])}).targets["loops"].shape
        (2, 1)
        """
        return self._derive(targets=_checked_targets(targets, len(self), self.name))

    def targets_digest(self) -> str:
        """Return one SHA-256 over the targets; empty where there are none."""
        if not self.targets:
            return ""
        digest = hashlib.sha256()
        for name, rows in sorted(self.targets.items()):
            digest.update(f"\n{name}\t{rows.shape}\n".encode() + rows.tobytes())
        return digest.hexdigest()

    def with_classes(self, classes: Sequence[str], *, strict: bool = True) -> Self:
        """Return the same cases with labels that index ``classes``, matched by name.

        Needed when training and test data come from different places: index 2 of one folder is not index 2 of another.
        A case of another class is refused; without ``strict`` it becomes unlabelled.
        """
        names = tuple(map(str, classes))
        _refuse_repeats(names, "class", self.name)
        used = {self.classes[label] for label in np.unique(self.labels[self.labels >= 0])}
        unknown = [name for name in self.classes if name in used and name not in names]
        if unknown and strict:
            raise DataError(
                f"{self.name} holds the class {unknown[0]!r}, which is not among the {len(names)} known ones "
                "(unseen in "
                f"training?); {nearest_names(unknown[0], names)}"
            )
        place = {name: index for index, name in enumerate(names)}
        table = np.array([place.get(name, -1) for name in self.classes] + [-1], dtype=np.int64)
        return self._derive(classes=names, labels=_frozen(table[self.labels]))

    def subset(self, indices: Sequence[int] | np.ndarray) -> Self:
        """Return the cases at these positions, in this order, or where a boolean mask of all cases is true."""
        chosen = np.asarray(indices)
        if chosen.dtype == np.bool_:
            if chosen.shape != (len(self),):
                raise UsageError(f"a mask over {self.name} must have {len(self)} entries, got shape {chosen.shape}")
            chosen = np.flatnonzero(chosen)
        chosen = chosen.astype(np.int64, casting="same_kind") if chosen.size else np.zeros(0, dtype=np.int64)
        if chosen.size and (chosen.min() < 0 or chosen.max() >= len(self)):
            raise UsageError(
                f"{self.name} has the cases 0 to {len(self) - 1}, asked for {chosen.min()} to {chosen.max()}"
            )
        ids = tuple(self.ids[i] for i in chosen.tolist())
        _refuse_repeats(ids, "case id", f"a subset of {self.name}")
        return self._derive(
            ids=ids,
            labels=_frozen(self.labels[chosen]),
            groups=None if self.groups is None else tuple(self.groups[i] for i in chosen.tolist()),
            splits=None if self.splits is None else tuple(self.splits[i] for i in chosen.tolist()),
            targets={name: rows[chosen] for name, rows in self.targets.items()},
            _rows=self._rows[chosen],
            _places=None,
        )

    def split(self, name: str) -> Self:
        """Return the part of this name, e.g. ``"train"``."""
        if name not in self.split_names:
            raise DataError(
                f"{self.name} has no part {name!r}; "
                + (
                    nearest_names(name, self.split_names)
                    if self.split_names
                    else "it came in one piece: split it yourself"
                )
            )
        part = self.subset([i for i, split in enumerate(self.splits or ()) if split == name])
        part.name = f"{self.name} ({name})"
        return part

    def _derive(self, **changes: Any) -> Self:
        other = copy.copy(self)
        other.__dict__.update(changes)
        other._epoch = _shared(self.epoch)
        return other


def as_tensor(picture: Image.Image) -> Tensor:
    """Return an RGB picture as a float tensor ``(3, H, W)`` from 0 to 1."""
    pixels = torch.from_numpy(np.array(picture, dtype=np.uint8))
    return pixels.permute(2, 0, 1).to(torch.float32, memory_format=torch.contiguous_format).div_(255.0)


def view_seed(seed: int, epoch: int, case: str) -> int:
    """Return the seed of one view of one case: a hash, so that nothing else can shift it.

    Examples
    --------
    >>> view_seed(0, 1, "cat/7.png") == view_seed(0, 1, "cat/7.png") != view_seed(0, 2, "cat/7.png")
    True
    """
    digest = hashlib.blake2b(f"{seed}/{epoch}/{case}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def _shared(value: int) -> Tensor:
    """Return a number that worker processes see change."""
    return torch.tensor(value, dtype=torch.int64).share_memory_()


def _frozen(labels: np.ndarray) -> np.ndarray:
    labels.setflags(write=False)
    return labels


def _checked_labels(labels: Sequence[int] | np.ndarray, count: int, classes: Sequence[str], name: str) -> np.ndarray:
    array = np.asarray(labels)
    if array.shape != (count,):
        raise DataError(f"{name} has {count} cases and labels of shape {array.shape}: expected one label a case")
    if array.size and array.dtype.kind not in "ui":
        raise DataError(f"{name}: labels must be whole numbers, got {array.dtype}")
    array = array.astype(np.int64)  # a copy: later changes outside do not reach in
    if array.size and (array.min() < -1 or array.max() >= len(classes)):
        raise DataError(
            f"{name} has {len(classes)} classes, so labels lie in 0 to {len(classes) - 1} (-1 = unlabelled); got "
            f"{array.min()} to {array.max()}"
        )
    return _frozen(array)


def _checked_targets(targets: Mapping[str, np.ndarray], count: int, name: str) -> dict[str, np.ndarray]:
    checked = {}
    for what, rows in targets.items():
        values = np.ascontiguousarray(rows, dtype=np.float32)
        if values.ndim == 0 or len(values) != count:
            raise DataError(
                f"{name} has {count} cases and targets {what!r} of shape {values.shape}: expected a row each"
            )
        if not np.isfinite(values).all():
            raise DataError(f"{name}: the targets {what!r} hold NaN or infinity")
        checked[what] = values
    return checked


def _one_each(values: Sequence[str] | None, count: int, what: str, name: str) -> tuple[str, ...] | None:
    if values is None:
        return None
    if len(values) != count:
        raise DataError(f"{name} has {count} cases and {len(values)} {what}: expected one a case")
    return tuple(map(str, values))


def _refuse_repeats(values: tuple[str, ...], what: str, name: str) -> None:
    if len(set(values)) == len(values):
        return
    seen: set[str] = set()
    twice = next(value for value in values if value in seen or seen.add(value))  # type: ignore[func-returns-value]
    raise DataError(f"{name}: the {what} {twice!r} occurs more than once; each must be unique")
