"""The tokens of a frozen encoder, made once: in memory, or on disk and found again by what they were made from."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import sys
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from protolearn.core.encoder import Encoder
from protolearn.core.modes import evaluating
from protolearn.errors import DataError, ProtolearnError, TrainingError, UsageError
from protolearn.structures import Tokens

if TYPE_CHECKING:
    from protolearn.data.cases import Cases

FORMAT = 1
PATIENCE = 3.0  # seconds without a progress bar
STALE = 86400.0  # seconds after which another process's unfinished folder is rubbish


@dataclass(frozen=True)
class TokenCache:
    """Tokens of every case, in one or several views.

    Attributes
    ----------
    arrays : dict of str to ndarray
        ``values (V, N, S, D)``, and where the encoder gives them ``summary (V, N, D')`` and ``mask (V, N, S)``;
        memory-mapped when the cache lives on disk.
    ids : tuple of str
        In the order of the cases.
    labels : ndarray
        ``(N,)`` int64, -1 = unlabelled.
    grid, input_size : tuple of int or None
        As in :class:`~protolearn.structures.Tokens`.
    folder : Path or None
        Where it lives.
    built : bool
        The encoder was run for it; False when it was found on disk.
    """

    arrays: dict[str, np.ndarray]
    ids: tuple[str, ...]
    labels: np.ndarray
    grid: tuple[int, ...] | None
    input_size: tuple[int, ...] | None
    window: int = 1
    folder: Path | None = None
    built: bool = True

    def __len__(self) -> int:
        """Return the number of cases."""
        return len(self.ids)

    @property
    def views(self) -> int:
        """How many versions of each case there are; version 0 is the un-augmented one."""
        return int(self.arrays["values"].shape[0])

    @property
    def positions(self) -> int:
        """Tokens of one case."""
        return int(self.arrays["values"].shape[2])

    @property
    def dim(self) -> int:
        """Width of a token."""
        return int(self.arrays["values"].shape[3])

    def tokens(self, indices: Any = None, view: int | np.ndarray = 0) -> Tokens:
        """Return the tokens of some cases (positions as a slice, list, array or tensor), or of all, in float32.

        ``view`` is the version of all of them, or an array with one for each. The tensors are copies: changing them
        leaves the cache alone.
        """
        if np.size(view) and not (np.min(view) >= 0 and np.max(view) < self.views):
            raise UsageError(f"the cache holds the views 0 to {self.views - 1}, asked for {view}")
        if isinstance(indices, Tensor):
            indices = indices.cpu().numpy()
        rows = slice(None) if indices is None else indices if isinstance(indices, slice) else np.asarray(indices)
        if isinstance(rows, slice) and isinstance(view, np.ndarray):
            rows = np.arange(len(self))[rows]
        if isinstance(rows, np.ndarray) and rows.size == 0:
            rows = rows.astype(np.int64)

        def take(name: str, dtype: Any) -> Tensor | None:
            if name not in self.arrays:
                return None
            kept = self.arrays[name]
            chosen = kept[view, rows] if isinstance(view, np.ndarray) else kept[view][rows]
            return torch.from_numpy(np.array(chosen, dtype=dtype, order="C"))

        values = take("values", np.float32)
        assert values is not None
        return Tokens(
            values, take("mask", np.bool_), self.grid, take("summary", np.float32), self.input_size, self.window
        )


def token_cache(
    encoder: Encoder,
    cases: Cases,
    directory: str | Path | None = None,
    *,
    views: int = 1,
    batch_size: int = 64,
    workers: int = 0,
    device: str | torch.device = "cpu",
    dtype: str = "float32",
    quiet: bool = False,
) -> TokenCache:
    """Run an encoder over cases once, in eval mode and without gradients, and keep its tokens.

    Version 0 of a case is what the encoder's own ``preprocess`` makes of it; version ``k`` is the augmenting transform
    of ``cases`` at epoch ``k``. On disk a cache is found again under the SHA-256 of all that decides its content:
    pictures, ids, labels, transforms, seed, the encoder's settings and weights, views and ``dtype``. Several processes
    may ask for the same one at the same time; a cache that was not finished is never seen, and a damaged or truncated
    one is built again.

    Parameters
    ----------
    encoder : Encoder
        Moved to ``device`` for the run and back, with every mode as it was.
    cases : Cases
        For several views, under an augmenting transform whose ``preprocess`` is the encoder's.
    directory : path, optional
        Keep the tokens here, memory-mapped; in memory otherwise.
    views : int
        Versions of each case.
    batch_size, workers
        Of the loader; neither changes the result.
    device : str or device
        Where the encoder runs.
    dtype : {"float32", "float16"}
        How tokens are kept; float16 halves the space and is checked for overflow.
    quiet : bool
        No progress bar.

    Raises
    ------
    UsageError
        If the transform cannot give the views, or cannot be named in a key.
    DataError
        If there are no cases, or their inputs differ in size.
    TrainingError
        If the encoder gives NaN or infinite tokens; the case is named.
    ProtolearnError
        If the disk is full or cannot be written; nothing half-made stays behind.

    Examples
    --------
    >>> from PIL import Image
    >>> from protolearn.data.cases import Cases
    >>> from protolearn.encoders import SmallEncoder
    >>> class Plain(Cases):
    ...     def _read(self, row):
    ...         return Image.new("RGB", (8, 8), (row * 90, 0, 0))
    >>> cases = Plain(name="reds", ids=["a", "b"], labels=[0, 1], classes=["dark", "light"])
    >>> cache = token_cache(SmallEncoder(dim=16), cases)
    >>> cache.tokens([1]).values.shape
    torch.Size([1, 64, 16])
    """
    if len(cases) == 0:
        raise DataError(f"{cases.name} has no cases: there is nothing to encode")
    if views < 1 or batch_size < 1 or workers < 0:
        raise UsageError(
            f"views and batch_size must be at least 1 and workers at least 0, got {views}, {batch_size}, {workers}"
        )
    kind = str(dtype).removeprefix("torch.")
    if kind not in ("float32", "float16"):
        raise UsageError(f"tokens are kept as float32 or float16, got {dtype!r}")
    plan = _Plan(
        encoder, _versions(encoder, cases, views), views, batch_size, workers, torch.device(device), kind, quiet
    )
    if directory is None:
        memory = _Memory(plan)
        plan.run(memory.write)
        return TokenCache(memory.arrays, cases.ids, cases.labels, plan.grid, plan.input_size, plan.window)
    return _on_disk(plan, cases, Path(directory).expanduser())


def _versions(encoder: Encoder, cases: Cases, views: int) -> tuple[Cases, Cases]:
    """Return the cases for version 0 and for the others; views of the caller's, whose epoch is left alone."""
    plain = cases.with_transform(cases.transform if encoder.preprocess is None else encoder.preprocess)
    if views == 1:
        return plain, plain
    transform = cases.transform
    if transform is None or type(transform) is type(encoder.preprocess):
        raise UsageError(
            f"{views} views of {cases.name} would all be the same: give the cases an augmenting transform, such as "
            "cases.with_transform(Augmented(encoder.preprocess))"
        )
    prepared = getattr(transform, "preprocess", encoder.preprocess)
    if prepared != encoder.preprocess:
        raise UsageError(
            f"the transform of {cases.name} prepares pictures otherwise than the encoder: expected "
            f"{encoder.preprocess}, got {prepared}"
        )
    return plain, cases.with_transform(transform)


class _Plan:
    """One pass of an encoder over all versions, batch by batch, in order."""

    def __init__(
        self,
        encoder: Encoder,
        versions: tuple[Cases, Cases],
        views: int,
        batch_size: int,
        workers: int,
        device: torch.device,
        dtype: str,
        quiet: bool,
    ) -> None:
        self.encoder, self.versions, self.views = encoder, versions, views
        self.batch_size, self.workers, self.device = batch_size, workers, device
        self.dtype, self.quiet = np.dtype(dtype), quiet
        self.count = len(versions[0])
        self.grid: tuple[int, ...] | None = None
        self.input_size: tuple[int, ...] | None = None
        self.window = 1

    def key(self) -> str:
        """Return the SHA-256 of all that decides the tokens."""
        plain, augmented = self.versions
        facts = {
            "format": FORMAT,
            "data": plain.fingerprint(),
            "transforms": [_settings(plain.transform)] + ([_settings(augmented.transform)] if self.views > 1 else []),
            "seed": plain.seed if self.views > 1 else None,
            "encoder": self.encoder.fingerprint(),
            "views": self.views,
            "dtype": self.dtype.name,
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def run(self, write: Callable[[int, int, dict[str, np.ndarray]], None]) -> None:
        """Hand ``write`` the arrays of each batch with its view and first row; rows come in order, views too."""
        shapes: dict[str, tuple[int, ...]] | None = None
        total = self.views * -(-self.count // self.batch_size)
        with _frozen(self.encoder, self.device), _progress(total, self.quiet) as step:
            for view in range(self.views):
                cases = self.versions[min(view, 1)]
                cases.set_epoch(view)
                row = 0
                for inputs, _, ids in DataLoader(cases, self.batch_size, num_workers=self.workers):
                    with torch.inference_mode():
                        tokens = self.encoder(inputs.to(self.device))
                    arrays = self._arrays(tokens, ids)
                    found = {name: array.shape[1:] for name, array in arrays.items()}
                    if shapes is not None and found != shapes:
                        raise DataError(
                            f"{cases.name}: inputs differ in size, so their tokens cannot be cached together: {shapes} "
                            f"before, {found} from case {ids[0]!r} on"
                        )
                    shapes = found
                    self.grid, self.input_size, self.window = tokens.grid, tokens.input_size, tokens.window
                    write(view, row, arrays)
                    row += len(ids)
                    step()

    def _arrays(self, tokens: Tokens, ids: list[str]) -> dict[str, np.ndarray]:
        given = {"values": tokens.values, "summary": tokens.summary, "mask": tokens.mask}
        arrays = {}
        for name, tensor in given.items():
            if tensor is None:
                continue
            if name == "mask":
                arrays[name] = tensor.cpu().numpy()
                continue
            kept = tensor.to("cpu", torch.float16 if self.dtype == np.float16 else torch.float32).contiguous()
            wrong = ~torch.isfinite(kept).flatten(1).all(1)
            if wrong.any():
                case = ids[int(wrong.nonzero()[0])]
                hint = "keep float32" if self.dtype == np.float16 else "check the encoder's weights and the picture"
                raise TrainingError(f"the encoder gives NaN or infinite tokens for case {case!r}: {hint}")
            arrays[name] = kept.numpy()
        return arrays


class _Memory:
    """Arrays in memory, made when the first batch tells their shapes."""

    def __init__(self, plan: _Plan) -> None:
        self.plan = plan
        self.arrays: dict[str, np.ndarray] = {}

    def write(self, view: int, row: int, arrays: dict[str, np.ndarray]) -> None:
        for name, array in arrays.items():
            if name not in self.arrays:
                self.arrays[name] = np.empty((self.plan.views, self.plan.count, *array.shape[1:]), array.dtype)
            self.arrays[name][view, row : row + len(array)] = array


class _Files:
    """One ``.npy`` file an array, written from front to back: a full disk is then an error and not a crash."""

    def __init__(self, plan: _Plan, folder: Path) -> None:
        self.plan, self.folder = plan, folder
        self.files: dict[str, BinaryIO] = {}

    def write(self, view: int, row: int, arrays: dict[str, np.ndarray]) -> None:
        if not self.files:
            self._start(arrays)
        for name, array in arrays.items():
            self.files[name].write(np.ascontiguousarray(array).data)

    def _start(self, arrays: dict[str, np.ndarray]) -> None:
        needed = sum(array[0].nbytes for array in arrays.values()) * self.plan.views * self.plan.count
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise OSError(errno.ENOSPC, f"{_size(needed)} needed, {_size(free)} free")
        for name, array in arrays.items():
            # closed by `finish`, or by `close` when something fails before
            file = (self.folder / f"{name}.npy").open("wb")
            self.files[name] = file
            shape = (self.plan.views, self.plan.count, *array.shape[1:])
            header = {"descr": array.dtype.str, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)

    def finish(self, key: str) -> None:
        """Make everything durable; the description is written last, so that a folder with one is whole."""
        sizes = {name: file.tell() for name, file in self.files.items()}
        for file in self.files.values():
            file.flush()
            os.fsync(file.fileno())
        self.close()
        about = {
            "format": FORMAT,
            "key": key,
            "grid": self.plan.grid,
            "input_size": self.plan.input_size,
            "window": self.plan.window,
            "bytes": sizes,
        }
        with (self.folder / "about.json").open("w", encoding="utf-8") as page:
            json.dump(about, page, indent=1)
            page.flush()
            os.fsync(page.fileno())

    def close(self) -> None:
        for file in self.files.values():
            with contextlib.suppress(OSError):
                file.close()


def _on_disk(plan: _Plan, cases: Cases, directory: Path) -> TokenCache:
    key = plan.key()
    folder = directory / f"tokens-{key[:32]}"
    found = _open(folder, key, cases)
    if found is not None:
        return found
    if folder.exists():
        warnings.warn(f"the token cache {folder} is incomplete or damaged: it is built again", stacklevel=3)
    fresh = directory / f".tokens-{key[:32]}-{uuid.uuid4().hex}.tmp"
    files = _Files(plan, fresh)

    def write(view: int, row: int, arrays: dict[str, np.ndarray]) -> None:
        with _writing(directory):  # not around the run: a picture that cannot be read is another matter
            files.write(view, row, arrays)

    try:
        with _writing(directory):
            directory.mkdir(parents=True, exist_ok=True)
            _sweep(directory)
            fresh.mkdir()
        plan.run(write)
        with _writing(directory):
            files.finish(key)
            return _publish(fresh, folder, key, cases)
    finally:
        files.close()
        shutil.rmtree(fresh, ignore_errors=True)


def _open(folder: Path, key: str, cases: Cases, *, built: bool = False) -> TokenCache | None:
    """Return the cache in a folder if it is whole and the one asked for."""
    try:
        about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
        if about["format"] != FORMAT or about["key"] != key or "values" not in about["bytes"]:
            return None
        arrays = {}
        for name, size in about["bytes"].items():
            path = folder / f"{name}.npy"
            if name not in ("values", "summary", "mask") or path.stat().st_size != size:
                return None
            arrays[name] = np.load(path, mmap_mode="r", allow_pickle=False)
            if arrays[name].shape[1] != len(cases):
                return None
        grid, input_size = (None if about[name] is None else tuple(about[name]) for name in ("grid", "input_size"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        return None
    return TokenCache(arrays, cases.ids, cases.labels, grid, input_size, int(about["window"]), folder, built)


def _publish(fresh: Path, folder: Path, key: str, cases: Cases) -> TokenCache:
    """Give a finished cache its name; where another process was faster, its equal one is used."""
    for _ in range(10):
        with contextlib.suppress(OSError):
            os.rename(fresh, folder)
        found = _open(folder, key, cases, built=True)
        if found is not None:
            return found
        if not fresh.exists():
            break
        with contextlib.suppress(FileNotFoundError):  # a damaged one stands in the way
            aside = folder.with_name(f".{folder.name}-{uuid.uuid4().hex}.tmp")
            os.rename(folder, aside)
            shutil.rmtree(aside, ignore_errors=True)
    raise OSError(errno.EIO, "the finished cache could not be given its name")


def _sweep(directory: Path) -> None:
    """Remove what processes that were killed long ago left unfinished."""
    for rubbish in directory.glob(".tokens-*.tmp"):
        with contextlib.suppress(OSError):
            newest = max(path.stat().st_mtime for path in (rubbish, *rubbish.iterdir()))
            if time.time() - newest > STALE:
                shutil.rmtree(rubbish, ignore_errors=True)


@contextlib.contextmanager
def _writing(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _cannot_write(directory, error) from error


def _cannot_write(directory: Path, error: OSError) -> ProtolearnError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ProtolearnError(
            f"the disk is full: the token cache does not fit in {directory} ({error.strerror}); free some space, "
            'choose another directory, fewer views or dtype="float16", or directory=None to keep it in memory'
        )
    return ProtolearnError(
        f"the token cache cannot be written in {directory} ({error.strerror or error}): choose another directory, or "
        "directory=None to keep it in memory"
    )


def _settings(transform: Any) -> Any:
    if transform is None:
        return None
    if not hasattr(transform, "to_dict"):
        raise UsageError(
            f"{transform!r} has no to_dict(), so a cache on disk could not notice when it changes: add one, or use "
            "directory=None"
        )
    return {"type": type(transform).__name__, **transform.to_dict()}


@contextlib.contextmanager
def _frozen(encoder: Encoder, device: torch.device) -> Iterator[None]:
    """Put an encoder in eval mode on a device, and everything back afterwards."""
    homes = {tensor.device for tensor in (*encoder.parameters(), *encoder.buffers())}
    with evaluating(encoder):
        try:
            encoder.to(device)
            yield
        finally:
            if len(homes) == 1:
                encoder.to(homes.pop())


@contextlib.contextmanager
def _progress(total: int, quiet: bool) -> Iterator[Callable[[], None]]:
    """Yield a function to call after each of ``total`` steps; a bar appears on a terminal once it takes long."""
    if quiet or not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("encoding"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    task = bar.add_task("", total=total)
    started = time.monotonic()
    shown = False

    def step() -> None:
        nonlocal shown
        bar.advance(task)
        if not shown and time.monotonic() - started > PATIENCE:
            bar.start()
            shown = True

    try:
        yield step
    finally:
        if shown:
            bar.stop()


def _size(number: int) -> str:
    return f"{number / 2**20:,.0f} MB"
