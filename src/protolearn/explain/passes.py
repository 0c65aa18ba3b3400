"""One pass of a model over cases: pictures read once, shown as the encoder wants them, without touching the model."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from protolearn.core.model import PrototypeModel
from protolearn.core.modes import evaluating
from protolearn.core.scorer import Novelty
from protolearn.errors import DataError, ModelFileError, UsageError, nearest_names
from protolearn.structures import Output

T = TypeVar("T")


class CaseList(Protocol):
    """What explaining needs of a data set; every ``Cases`` of the library offers it."""

    @property
    def ids(self) -> Sequence[str]:
        """Stable and unique."""

    @property
    def labels(self) -> np.ndarray:
        """``(N,)`` int64 indices into ``classes``; -1 = unlabelled."""

    @property
    def classes(self) -> Sequence[str]:
        """Names."""

    def __len__(self) -> int: ...

    def picture(self, i: int, /) -> Image.Image:
        """Return a case as an upright RGB picture."""


@dataclass(frozen=True, eq=False)
class PictureList:
    """Pictures in memory as cases: for explaining something that is in no data set.

    Examples
    --------
    >>> cases = PictureList([Image.new("RGB", (8, 8))], ["mine"])
    >>> len(cases), cases.ids, cases.labels.tolist()
    (1, ['mine'], [-1])
    """

    pictures: Sequence[Image.Image]
    ids: Sequence[str]
    classes: Sequence[str] = ()
    name: str = "pictures"

    @property
    def labels(self) -> np.ndarray:
        """-1 for every picture: nothing is known."""
        return np.full(len(self.pictures), -1, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.pictures)

    def picture(self, i: int) -> Image.Image:
        """Return one picture."""
        return self.pictures[i].convert("RGB")


def pictured(cases: CaseList) -> bool:
    """Say whether cases have pictures; features have none."""
    return bool(getattr(cases, "pictured", hasattr(cases, "picture")))


def picture_of(cases: CaseList, i: int) -> Image.Image | None:
    """Return the picture of a case, None where cases have none."""
    return cases.picture(i) if pictured(cases) else None


class Seen(NamedTuple):
    """A batch as it went through the model."""

    indices: list[int]
    """Positions in the data set."""
    labels: Tensor
    """``(B,)`` in the model's classes, -1 = unlabelled, on the model's device."""
    sizes: list[tuple[int, int] | None]
    """``(width, height)`` of the original pictures, None where cases have none."""
    output: Output


def run_over(
    model: PrototypeModel,
    cases: CaseList,
    indices: Sequence[int] | None = None,
    *,
    batch_size: int = 64,
    device: str | torch.device | None = None,
    workers: int = 0,
    strict_labels: bool = False,
    run: Callable[[Tensor], Output] | None = None,
) -> Iterator[Seen]:
    """Run cases through a model in eval mode, without gradients, and leave the model as it was.

    The picture enters by the encoder's own ``preprocess``, whatever transform the cases carry, so that nothing
    augmented is explained; cases without pictures enter as they are.

    Parameters
    ----------
    model, cases
        What to run over what.
    indices : sequence of int, optional
        Which cases; all by default.
    batch_size : int
        Cases at a time.
    device : str or device, optional
        Where to run; where the model is by default. The model is moved there and stays.
    workers : int
        Processes that read pictures.
    strict_labels : bool
        Refuse cases of a class the model does not know, instead of treating them as unlabelled.
    run : callable, optional
        What makes an output of inputs; the model by default. ``encoders.search.retrieval_for(model)`` gives one that
        looks for the nearest of very many stored cases, and None where that is of no use.
    """
    where = device_of(model) if device is None else torch.device(device)
    model.to(where)
    labels = labels_for(model, cases, strict=strict_labels)
    shown = inputs_over(
        cases, getattr(model.encoder, "preprocess", None), indices, batch_size=batch_size, workers=workers
    )
    for places, inputs, sizes in shown:
        with evaluating(model), torch.no_grad():
            output: Output = (run or model)(inputs.to(where))
        yield Seen(places, torch.from_numpy(labels[places]).to(where), sizes, output)


class Shown(NamedTuple):
    """A batch as a model is to be shown it."""

    indices: list[int]
    """Positions in the data set."""
    inputs: Tensor
    """Stacked."""
    sizes: list[tuple[int, int] | None]
    """``(width, height)`` of the original pictures, None where cases have none."""


def inputs_over(
    cases: CaseList,
    preprocess: Any,
    indices: Sequence[int] | None = None,
    *,
    batch_size: int = 64,
    workers: int = 0,
) -> Iterator[Shown]:
    """Yield cases in batches as an encoder with this ``preprocess`` takes them, each picture read once."""
    if batch_size < 1:
        raise UsageError(f"batch_size must be at least 1, got {batch_size}")
    chosen = list(range(len(cases))) if indices is None else [int(i) for i in indices]
    wrong = [i for i in chosen if not 0 <= i < len(cases)]
    if wrong:
        raise UsageError(f"there is no case {wrong[0]}: the data hold the cases 0 to {len(cases) - 1}")
    views = _Views(cases, preprocess, chosen)
    # a loader draws seeds for its workers: from its own generator, so that looking draws nothing from the global one
    draw = torch.Generator().manual_seed(0)
    loader: DataLoader[Any] = DataLoader(views, batch_size, collate_fn=_collate, num_workers=workers, generator=draw)
    yield from loader


class _Views(Dataset[Any]):
    def __init__(self, cases: CaseList, preprocess: Any, chosen: Sequence[int]) -> None:
        self.cases, self.preprocess, self.chosen = cases, preprocess, chosen

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, k: int) -> tuple[int, Tensor, tuple[int, int] | None]:
        i = self.chosen[k]
        if self.preprocess is not None and hasattr(self.cases, "picture"):
            picture = self.cases.picture(i)  # cases that hold none say so: this model reads pictures
            return i, self.preprocess(picture), picture.size
        shown = picture_of(self.cases, i)
        sample = self.cases[i]  # type: ignore[index]
        return i, sample[0], None if shown is None else shown.size


def _collate(samples: list[tuple[int, Tensor, tuple[int, int] | None]]) -> Shown:
    places, inputs, sizes = zip(*samples, strict=True)
    return Shown(list(places), torch.stack(inputs), list(sizes))


def device_of(model: PrototypeModel) -> torch.device:
    """Return where a model is."""
    return model.bank.vectors.device


class Classifier(Protocol):
    """Anything that names its classes."""

    @property
    def classes(self) -> Sequence[str]:
        """Names, in the order of its scores."""


def labels_for(model: Classifier, cases: CaseList, *, strict: bool = False) -> np.ndarray:
    """Return the labels of cases as indices of the model's classes, matched by name; -1 = unlabelled.

    Raises
    ------
    DataError
        If ``strict`` and a labelled case has a class the model does not know.
    """
    names, known = [str(c) for c in cases.classes], {name: k for k, name in enumerate(model.classes)}
    labels = np.asarray(cases.labels, dtype=np.int64)
    used = sorted(set(labels[labels >= 0].tolist()))
    unknown = [names[k] for k in used if names[k] not in known]
    if unknown and strict:
        raise DataError(
            f"{getattr(cases, 'name', 'the data')} holds the class {unknown[0]!r}, which the model was not trained on; "
            + nearest_names(unknown[0], known)
        )
    table = np.array([known.get(name, -1) for name in names] + [-1], dtype=np.int64)
    return table[labels]


def novelty_of(model: PrototypeModel, output: Output) -> Novelty | None:
    """Return what the model's novelty score says of an output; None where the model has none."""
    if model.scorer is None:
        return None
    with evaluating(model), torch.no_grad():
        found = model.novelty(output)
    return Novelty(found.confidence.cpu(), None if found.known is None else found.known.cpu())


def track(items: Iterable[T], total: int, words: str, *, quiet: bool = False, patience: float = 2.0) -> Iterator[T]:
    """Yield items, with a progress bar on stderr once it has taken ``patience`` seconds.

    An item counts as many steps as it has indices (a batch), or one.
    """
    if quiet or not sys.stderr.isatty():
        yield from items
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    task, start, shown = bar.add_task(words, total=total), time.monotonic(), False
    try:
        for item in items:
            yield item
            bar.advance(task, len(item.indices) if isinstance(item, Seen | Shown) else 1)
            if not shown and time.monotonic() - start > patience:
                bar.start()
                shown = True
    finally:
        if shown:
            bar.stop()


@contextmanager
def whole_file(path: str | Path, what: str) -> Iterator[Path]:
    """Hand out a temporary name beside a file and rename it when all went well: the file is whole or not there.

    Raises
    ------
    ModelFileError
        If the disk is full or refuses, naming the file.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise ModelFileError(f"{path}: cannot write {what} ({error.strerror or error})") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def plain_json(value: Any) -> Any:
    """Return JSON types only: tuples become lists, and a number that is not finite becomes null."""
    if isinstance(value, Mapping):
        return {str(key): plain_json(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(entry) for entry in value]
    if isinstance(value, np.ndarray | Tensor):
        return plain_json(value.tolist())
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value
