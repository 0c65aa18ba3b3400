"""Frozen tokens: equal to the encoder's, made once, found again only when nothing changed, never half there."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from protolearn.data.augment import Augment, Augmented
from protolearn.encoders import FeatureEncoder, ImageEncoder, SmallEncoder, token_cache
from protolearn.encoders import cache as cache_module
from protolearn.errors import DataError, ProtolearnError, TrainingError, UsageError
from protolearn.structures import Tokens

from .conftest import Noise


class Counted(SmallEncoder):
    """Counts the pictures it sees; may fail on the way."""

    def __init__(self, fail_at: int | None = None, seed: int = 0) -> None:
        super().__init__(dim=8, size=16, seed=seed)
        self.seen, self.fail_at = 0, fail_at
        self.modes: set[bool] = set()

    def forward(self, inputs: Tensor) -> Tokens:
        self.seen += len(inputs)
        self.modes.add(self.training)
        if self.fail_at is not None and self.seen >= self.fail_at:
            raise KeyboardInterrupt
        return super().forward(inputs)


def direct(encoder: nn.Module, cases: Noise, view: int = 0) -> Tensor:
    """Tokens without the cache."""
    cases = cases.with_transform(cases.transform if view else encoder.preprocess)
    cases.set_epoch(view)
    encoder.eval()
    with torch.no_grad():
        return encoder(torch.stack([cases[i].inputs for i in range(len(cases))])).values


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("batch_size", [3, 64])
def test_equal_to_the_encoder(tmp_path: Path, noise: Noise, on_disk: bool, batch_size: int) -> None:
    encoder = SmallEncoder(dim=8, size=16)
    cache = token_cache(encoder, noise, tmp_path if on_disk else None, batch_size=batch_size)
    expected = direct(encoder, noise)
    tokens = cache.tokens()
    torch.testing.assert_close(tokens.values, expected)
    assert tokens.values.dtype == torch.float32
    assert (tokens.grid, tokens.input_size) == (cache.grid, cache.input_size) == ((4, 4), (16, 16))
    assert (len(cache), cache.views, cache.positions, cache.dim) == (10, 1, 16, 8)
    assert cache.ids == noise.ids
    assert cache.labels.tolist() == noise.labels.tolist()
    assert isinstance(cache.arrays["values"], np.memmap) is on_disk
    for indices in ([7, 2], np.array([7, 2]), torch.tensor([7, 2])):
        torch.testing.assert_close(cache.tokens(indices).values, expected[[7, 2]])
    torch.testing.assert_close(cache.tokens(slice(2, 5)).values, expected[2:5])
    assert cache.tokens([]).values.shape == (0, 16, 8)
    cache.tokens().values.zero_()
    torch.testing.assert_close(cache.tokens().values, expected)


@pytest.mark.parametrize("on_disk", [False, True])
def test_views(tmp_path: Path, noise: Noise, on_disk: bool) -> None:
    encoder = SmallEncoder(dim=8, size=16)
    augmented = noise.with_transform(Augmented(encoder.preprocess, Augment()))
    augmented.set_epoch(5)
    cache = token_cache(encoder, augmented, tmp_path if on_disk else None, views=3)
    assert augmented.epoch == 5
    assert cache.views == 3
    for view in range(3):
        torch.testing.assert_close(cache.tokens(view=view).values, direct(encoder, augmented, view))
    assert not torch.equal(cache.tokens(view=1).values, cache.tokens(view=2).values)
    mixed = cache.tokens([3, 4], view=np.array([2, 0])).values
    torch.testing.assert_close(mixed[0], cache.tokens([3], view=2).values[0])
    torch.testing.assert_close(mixed[1], cache.tokens([4], view=0).values[0])
    with pytest.raises(UsageError, match="views 0 to 2"):
        cache.tokens(view=3)


def test_workers_change_nothing(noise: Noise) -> None:
    encoder = SmallEncoder(dim=8, size=16)
    augmented = noise.with_transform(Augmented(encoder.preprocess))
    alone, helped = (token_cache(encoder, augmented, views=2, batch_size=4, workers=w) for w in (0, 2))
    assert np.array_equal(alone.arrays["values"], helped.arrays["values"])


def test_summary_and_half_precision(tmp_path: Path, noise: Noise) -> None:
    encoder = ImageEncoder("vit_tiny_patch16_224", size=32)
    cache = token_cache(encoder, noise, tmp_path, dtype="float16")
    with torch.no_grad():
        expected = encoder.eval()(torch.stack([encoder.preprocess(noise.picture(i)) for i in range(10)]))
    tokens = cache.tokens()
    assert cache.arrays["values"].dtype == np.float16
    assert tokens.summary is not None
    assert tokens.values.dtype == tokens.summary.dtype == torch.float32
    torch.testing.assert_close(tokens.values, expected.values, rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(tokens.summary, expected.summary, rtol=2e-3, atol=2e-3)


def test_the_encoder_is_left_as_it_was(noise: Noise) -> None:
    encoder = Counted()
    encoder.train()
    encoder.net[1].eval()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    token_cache(encoder, noise)
    assert encoder.modes == {False}
    assert encoder.training
    assert not encoder.net[1].training
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())


def test_reused_when_nothing_changed(tmp_path: Path, noise: Noise) -> None:
    first, second = Counted(), Counted()
    made = token_cache(first, noise, tmp_path)
    found = token_cache(second, Noise(), tmp_path, batch_size=3)
    assert (first.seen, second.seen) == (10, 0)
    assert (made.built, found.built) == (True, False)
    assert made.folder == found.folder
    assert np.array_equal(made.arrays["values"], found.arrays["values"])
    assert found.grid == (4, 4)
    assert sorted(p.name for p in tmp_path.iterdir()) == [made.folder.name]


def test_rebuilt_when_anything_changed(tmp_path: Path, noise: Noise) -> None:
    token_cache(Counted(), noise, tmp_path)
    weights = Counted()
    with torch.no_grad():
        weights.net[0].weight[0, 0, 0, 0] += 1e-3
    statistics = Counted()
    statistics.net[1].running_mean[0] += 1e-3
    prepared = Counted()
    prepared.preprocess = dataclasses.replace(prepared.preprocess, interpolation="nearest")
    painted = Noise()
    painted.pictures[4, 0, 0, 0] ^= 1
    relabelled = Noise()
    relabelled.labels = 1 - relabelled.labels
    renamed = Noise(ids=[f"other/{i}" for i in range(10)])
    augmented = noise.with_transform(Augmented(Counted().preprocess))
    for encoder, cases, settings in (
        (weights, noise, {}),
        (statistics, noise, {}),
        (prepared, noise, {}),
        (Counted(), painted, {}),
        (Counted(), relabelled, {}),
        (Counted(), renamed, {}),
        (Counted(), noise.subset([1, 0, *range(2, 10)]), {}),
        (Counted(), noise, {"dtype": "float16"}),
        (Counted(), augmented, {"views": 2}),
        (Counted(), augmented, {"views": 3}),
        (Counted(), augmented.with_seed(1), {"views": 2}),
        (Counted(), noise.with_transform(Augmented(Counted().preprocess, Augment(flip=0))), {"views": 2}),
    ):
        assert token_cache(encoder, cases, tmp_path, **settings).built
        assert encoder.seen == 10 * settings.get("views", 1)
    again = Counted()
    assert not token_cache(again, augmented, tmp_path).built, "a transform that one view does not use does not count"


@pytest.mark.parametrize("damage", ["truncated", "longer", "no page", "page cut", "file gone", "other key", "header"])
def test_a_damaged_cache_is_built_again(tmp_path: Path, noise: Noise, damage: str) -> None:
    made = token_cache(Counted(), noise, tmp_path)
    expected = made.tokens().values
    folder = made.folder
    assert folder is not None
    values, page = folder / "values.npy", folder / "about.json"
    del made
    if damage == "truncated":
        os.truncate(values, values.stat().st_size - 7)
    elif damage == "longer":
        values.write_bytes(values.read_bytes() + b"x")
    elif damage == "no page":
        page.unlink()
    elif damage == "page cut":
        page.write_text(page.read_text()[:20])
    elif damage == "file gone":
        values.unlink()
    elif damage == "other key":
        page.write_text(json.dumps({**json.loads(page.read_text()), "key": "0" * 64}))
    else:
        values.write_bytes(b"\x00" * values.stat().st_size)
    encoder = Counted()
    with pytest.warns(UserWarning, match="built again"):
        cache = token_cache(encoder, noise, tmp_path)
    assert encoder.seen == 10
    torch.testing.assert_close(cache.tokens().values, expected)
    assert [p.name for p in tmp_path.iterdir()] == [folder.name]
    assert not token_cache(Counted(), noise, tmp_path).built


def test_interrupted(tmp_path: Path, noise: Noise) -> None:
    with pytest.raises(KeyboardInterrupt):
        token_cache(Counted(fail_at=7), noise, tmp_path, batch_size=3)
    assert list(tmp_path.iterdir()) == [], "nothing half-made is left"
    assert token_cache(Counted(), noise, tmp_path).built


def test_killed(tmp_path: Path, noise: Noise) -> None:
    """A process that dies without a chance to clean up leaves nothing that could be taken for a cache."""
    code = f"""
import os, sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from tests.encoders.test_cache import Counted, Noise, token_cache
class Dying(Counted):
    def forward(self, inputs):
        if self.seen >= 6:
            os._exit(9)
        return super().forward(inputs)
token_cache(Dying(), Noise(), {str(tmp_path)!r}, batch_size=3)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    left = list(tmp_path.iterdir())
    assert [p.suffix for p in left] == [".tmp"]
    encoder = Counted()
    assert token_cache(encoder, noise, tmp_path).built
    assert encoder.seen == 10
    assert left[0].exists(), "it could belong to a process that is still writing"
    for path in (*left[0].iterdir(), left[0]):
        os.utime(path, (time.time() - 2 * cache_module.STALE,) * 2)
    token_cache(Counted(seed=1), noise, tmp_path)
    assert not left[0].exists(), "old rubbish is swept"


def test_two_processes_at_once(tmp_path: Path, noise: Noise) -> None:
    """Another process finishes the same cache while this one is at work: its equal one is used."""

    class Slow(Counted):
        def forward(self, inputs: Tensor) -> Tokens:
            if self.seen == 0:
                self.other = token_cache(Counted(), noise, tmp_path)
            return super().forward(inputs)

    slow = Slow()
    cache = token_cache(slow, noise, tmp_path)
    assert slow.seen == 10
    assert cache.folder == slow.other.folder
    assert np.array_equal(cache.arrays["values"], slow.other.arrays["values"])
    assert len(list(tmp_path.iterdir())) == 1


class Full:
    """A file on a disk with room for one batch."""

    def __init__(self, file: object, room: int) -> None:
        self.file, self.room = file, room

    def __getattr__(self, name: str) -> object:
        return getattr(self.file, name)

    def write(self, data: memoryview) -> int:
        self.room -= len(bytes(data))
        if self.room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.file.write(data)  # type: ignore[attr-defined,no-any-return]


def test_disk_full_while_writing(tmp_path: Path, noise: Noise, monkeypatch: pytest.MonkeyPatch) -> None:
    start = cache_module._Files._start

    def cramped(self: cache_module._Files, arrays: dict[str, np.ndarray]) -> None:
        start(self, arrays)
        self.files = {name: Full(file, 3 * 16 * 8 * 4 + 1) for name, file in self.files.items()}  # type: ignore[misc]

    monkeypatch.setattr(cache_module._Files, "_start", cramped)
    with pytest.raises(ProtolearnError, match=r"disk is full.*free some space.*directory=None") as caught:
        token_cache(Counted(), noise, tmp_path, batch_size=3)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_too_little_space_is_noticed_before_the_work(
    tmp_path: Path, noise: Noise, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = cache_module.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(cache_module.shutil, "disk_usage", lambda _: usage._replace(free=100))
    encoder = Counted()
    with pytest.raises(ProtolearnError, match=r"disk is full.* needed, .* free"):
        token_cache(encoder, noise, tmp_path, batch_size=2)
    assert encoder.seen == 2
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_cannot_be_written(tmp_path: Path, noise: Noise) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ProtolearnError, match="cannot be written in"):
        token_cache(Counted(), noise, tmp_path / "file")


def test_impossible_views(noise: Noise) -> None:
    encoder = SmallEncoder(dim=8, size=16)
    for transform in (None, encoder.preprocess, dataclasses.replace(encoder.preprocess, interpolation="box")):
        with pytest.raises(UsageError, match="all be the same"):
            token_cache(encoder, noise.with_transform(transform), views=2)
    with pytest.raises(UsageError, match="otherwise than the encoder"):
        token_cache(encoder, noise.with_transform(Augmented()), views=2)
    with pytest.raises(UsageError, match="at least 1"):
        token_cache(encoder, noise, views=0)
    with pytest.raises(UsageError, match="float32 or float16"):
        token_cache(encoder, noise, dtype="int8")
    with pytest.raises(DataError, match="no cases"):
        token_cache(encoder, noise.subset([]))


def test_a_transform_without_a_name_cannot_be_kept_on_disk(tmp_path: Path, noise: Noise) -> None:
    encoder = SmallEncoder(dim=8, size=16)
    cases = noise.with_transform(lambda picture, generator=None: torch.rand(3, 16, 16, generator=generator))
    assert token_cache(encoder, cases, views=2).views == 2
    with pytest.raises(UsageError, match="to_dict"):
        token_cache(encoder, cases, tmp_path, views=2)


def test_nan_tokens_name_the_case(noise: Noise) -> None:
    class Broken(SmallEncoder):
        def forward(self, inputs: Tensor) -> Tokens:
            tokens = super().forward(inputs)
            tokens.values[-1] = float("nan")
            return tokens

    with pytest.raises(TrainingError, match="case 'noise/3'"):
        token_cache(Broken(dim=8, size=16), noise, batch_size=4)


def test_overflow_in_half_precision_is_noticed(noise: Noise) -> None:
    encoder = SmallEncoder(dim=8, size=16)
    with torch.no_grad():
        encoder.net[-2].weight.mul_(1e7)
    with pytest.raises(TrainingError, match="keep float32"):
        token_cache(encoder, noise, dtype="float16")
    token_cache(encoder, noise)


def test_inputs_of_several_sizes(noise: Noise) -> None:
    class Growing(FeatureEncoder):
        def forward(self, inputs: Tensor) -> Tokens:
            self.rows = getattr(self, "rows", 1) + 1
            return Tokens(torch.zeros(len(inputs), self.rows, 2))

    with pytest.raises(DataError, match="differ in size"):
        token_cache(Growing(2), noise, batch_size=5)
