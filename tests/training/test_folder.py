"""A model on disk: what is written, what comes back, and what a wrong, truncated or hostile folder does (nothing)."""

from __future__ import annotations

import csv
import errno
import json
import os
import resource
import shutil
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from protolearn.core.model import PrototypeModel
from protolearn.data import Cases, arrays, digits
from protolearn.encoders import ImageEncoder, SmallEncoder
from protolearn.errors import ModelFileError, UsageError
from protolearn.methods.parts.protopnet import ProtoPNet
from protolearn.training import folder as folder_module
from protolearn.training.folder import FORMAT_VERSION, load, plain, read_config, save
from protolearn.training.project import project

METADATA: dict[str, Any] = {
    "data": {"name": "digits", "cases": 60, "classes": {"0": 6}},
    "seed": 3,
    "date": "2024-05-01",
    "history": [{"phase": "warm", "epoch": 1, "loss": 1.5}],
    "projections": [{"moved": 20, "accuracy_before": 0.5, "accuracy_after": 0.4}],
}


def make_model(cases: Cases, encoder: Any = None, **settings: Any) -> PrototypeModel:
    method = ProtoPNet(**{"prototypes_per_class": 2, "dim": 8, **settings})
    model = method.build(encoder or SmallEncoder(dim=8), len(cases.classes), 0).eval()
    model.method, model.classes, model.metadata = method, cases.classes, json.loads(json.dumps(METADATA))
    project(model, cases.with_transform(model.encoder.preprocess))
    return model


@pytest.fixture(scope="module")
def cases() -> Cases:
    return digits("train").subset(range(0, 600, 10))


@pytest.fixture(scope="module")
def model(cases: Cases) -> PrototypeModel:
    return make_model(cases)


@pytest.fixture(scope="module")
def original(model: PrototypeModel, cases: Cases, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(model, tmp_path_factory.mktemp("original") / "model", cases, metrics={"accuracy": 0.75})


@pytest.fixture
def saved(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "model"))


def edit_config(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    config = yaml.safe_load((folder / "config.yaml").read_text())
    change(config)
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))


def edit_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, folder / "model.safetensors")


def put(folder: dict[str, Any], *path: str, value: Any) -> None:
    for key in path[:-1]:
        folder = folder[key]
    folder[path[-1]] = value


# -- what is written and comes back ---------------------------------------------------------------------------------


def test_everything_comes_back(saved: Path, model: PrototypeModel, cases: Cases) -> None:
    back = load(saved)
    assert not back.training
    assert back.classes == model.classes
    assert back.method == model.method
    assert back.bank.sources == model.bank.sources
    assert back.metadata == {**METADATA, "metrics": {"accuracy": 0.75}}
    inputs = torch.stack([cases.with_transform(model.encoder.preprocess)[i].inputs for i in range(4)])
    assert torch.equal(back(inputs).logits, model(inputs).logits)
    assert back.fingerprint() == model.fingerprint()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, back.state_dict()[name]), name


def test_a_pruned_merged_banned_bank_comes_back(cases: Cases, tmp_path: Path) -> None:
    model = make_model(cases)
    model.prune([0, 7])
    model.bank.ban([3])
    back = load(save(model, tmp_path / "m", cases))
    assert back.bank.ids.tolist() == model.bank.ids.tolist()
    assert back.bank.banned.tolist() == model.bank.banned.tolist()
    assert int(back.bank.next_id) == 20


def test_a_network_of_timm_comes_back(cases: Cases, tmp_path: Path) -> None:
    model = make_model(cases, ImageEncoder("test_resnet", size=64))
    back = load(save(model, tmp_path / "m"))
    assert back.encoder.spec() == model.encoder.spec()
    x = torch.zeros(1, 3, 64, 64)
    assert torch.equal(back(x).logits, model(x).logits)


def test_saving_twice_writes_the_same_bytes(model: PrototypeModel, cases: Cases, tmp_path: Path) -> None:
    first, second = (save(model, tmp_path / name, cases) for name in "ab")
    files = sorted(p.relative_to(first) for p in first.rglob("*") if p.is_file())
    assert files
    for file in files:
        assert (first / file).read_bytes() == (second / file).read_bytes(), file


def test_loading_leaves_the_random_state_alone(saved: Path) -> None:
    before = torch.get_rng_state()
    load(saved)
    assert torch.equal(before, torch.get_rng_state())


def test_the_table_says_where_each_prototype_comes_from(saved: Path, model: PrototypeModel) -> None:
    rows = list(csv.DictReader((saved / "prototypes.csv").read_text().splitlines()))
    assert [int(row["prototype"]) for row in rows] == model.bank.ids.tolist()
    source = model.bank.sources[0]
    assert source is not None
    assert rows[0]["case"] == source.case
    assert rows[0]["content"] == source.content
    assert (rows[0]["class"], rows[0]["weight"], rows[0]["active"]) == ("0", "1", "1")
    assert source.region is not None
    assert float(rows[0]["x0"]) == pytest.approx(source.region.x0)


def test_pictures_show_case_and_place(saved: Path) -> None:
    with Image.open(saved / "cases" / "00000.png") as whole, Image.open(saved / "cases" / "00000_place.png") as place:
        assert whole.mode == place.mode == "RGB"
        assert max(whole.size) >= 100  # large enough to look at, although a digit has 8 x 8 pixels
        red = np.asarray(whole).astype(int)
        assert ((red[..., 0] > 200) & (red[..., 2] < 60)).any()  # the frame


def test_a_changed_picture_is_not_drawn(model: PrototypeModel, cases: Cases, tmp_path: Path) -> None:
    black = arrays(np.zeros((len(cases), 8, 8), np.uint8), cases.labels.tolist(), ids=cases.ids, classes=cases.classes)
    folder = save(model, tmp_path / "m", black)
    assert not (folder / "cases").exists()
    assert "No pictures" in (folder / "README.md").read_text()


def test_the_card_tells_data_scores_and_how_to_load(saved: Path) -> None:
    text = (saved / "README.md").read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert front["library_name"] == "protolearn"
    assert front["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.75
    for part in ("ProtoPNet", "| accuracy | 0.75 |", "seed: 3", "cases/00000.png", "protolearn.load(", "verify"):
        assert part in text


def test_without_data_the_card_says_so(model: PrototypeModel, tmp_path: Path) -> None:
    folder = save(model, tmp_path / "m")
    assert "saved without its data" in (folder / "README.md").read_text()
    load(folder)


def test_names_that_look_like_markup_stay_names(cases: Cases, tmp_path: Path) -> None:
    hostile = ["<script>alert(1)</script>", "| a | b |", "no", "2024-01-01", "\n# x", "a: b", "'", "null", "é", "=1+1"]
    evil = arrays(
        np.stack([np.asarray(cases.picture(i).convert("L")) for i in range(len(cases))]), cases.labels.tolist(),
        classes=hostile, ids=[f"../../{i}\r\n<b>,\"{i}" for i in range(len(cases))],
    )  # fmt: skip
    model = make_model(evil)
    folder = save(model, tmp_path / "m", evil)
    assert load(folder).classes == tuple(hostile)
    text = (folder / "README.md").read_text()
    assert "<script>" not in text
    assert "<b>" not in text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m"]


def test_long_texts_come_back(cases: Cases, tmp_path: Path) -> None:
    model = make_model(cases)
    model.metadata = {"warnings": ["pruned " + ", ".join(map(str, range(5000))), "x" * 20_000, "1:" * 9000 + "1"]}
    assert load(save(model, tmp_path / "m")).metadata == model.metadata


def test_numbers_json_cannot_hold_become_null(cases: Cases, tmp_path: Path) -> None:
    model = make_model(cases)
    model.metadata = {"history": [{"loss": float("nan"), "n": np.int64(3)}], "where": Path("x")}
    assert load(save(model, tmp_path / "m")).metadata == {"history": [{"loss": None, "n": 3}], "where": "x"}
    assert plain({"a": {1: (np.float32(0.5), torch.tensor([1, 2]))}}) == {"a": {"1": [0.5, [1, 2]]}}


# -- writing safely -------------------------------------------------------------------------------------------------


def test_a_model_is_not_replaced_unasked(saved: Path, model: PrototypeModel) -> None:
    with pytest.raises(UsageError, match="already holds a model"):
        save(model, saved)
    assert load(save(model, saved, overwrite=True)).metadata.get("metrics") is None


def test_other_files_in_the_folder_stay(saved: Path, model: PrototypeModel) -> None:
    (saved / "settings.yaml").write_text("seed: 0\n")
    (saved / "training").mkdir()
    (saved / "training" / "checkpoint").write_bytes(b"x")
    save(model, saved, overwrite=True)
    assert (saved / "settings.yaml").read_text() == "seed: 0\n"
    assert (saved / "training" / "checkpoint").read_bytes() == b"x"
    assert not (saved / "cases").exists()  # the pictures of the model before are gone


def test_a_folder_of_something_else_is_not_touched(model: PrototypeModel, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("my notes")
    with pytest.raises(UsageError, match=r"holds README\.md but no model"):
        save(model, tmp_path, overwrite=True)
    assert (tmp_path / "README.md").read_text() == "my notes"
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="not a folder"):
        save(model, tmp_path / "file")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_the_old_model(
    saved: Path, cases: Cases, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    before = {p: p.read_bytes() for p in saved.rglob("*") if p.is_file()}
    written: list[Path] = []

    def full(path: Path, content: bytes) -> None:
        if len(written) >= 2:
            raise OSError(number, os.strerror(number))
        written.append(path)
        path.write_bytes(content)

    monkeypatch.setattr(folder_module, "_write", full)
    with pytest.raises(ModelFileError, match="the disk is full: free some space"):
        save(make_model(cases), saved, cases, overwrite=True)
    assert {p: p.read_bytes() for p in saved.rglob("*") if p.is_file()} == before
    assert [p.name for p in saved.parent.iterdir()] == ["model"]


def test_a_really_full_disk(saved: Path, model: PrototypeModel) -> None:
    """The system itself refuses to write more than a few bytes."""
    import signal

    before = {p: p.read_bytes() for p in saved.rglob("*") if p.is_file()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(ModelFileError, match="cannot save the model"):
            save(model, saved, overwrite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert {p: p.read_bytes() for p in saved.rglob("*") if p.is_file()} == before
    assert [p.name for p in saved.parent.iterdir()] == ["model"]


def test_a_failed_swap_puts_the_old_model_back(
    saved: Path, model: PrototypeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename, calls = os.rename, []

    def fail_second(source: Any, target: Any) -> None:
        calls.append(source)
        if len(calls) == 2:
            raise OSError(errno.EIO, "gone")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail_second)
    with pytest.raises(ModelFileError, match="intact"):
        save(model, saved, overwrite=True)
    monkeypatch.undo()
    assert load(saved).metadata["metrics"] == {"accuracy": 0.75}
    assert [p.name for p in saved.parent.iterdir()] == ["model"]


def test_killed_between_the_renames_the_old_model_is_named(saved: Path) -> None:
    saved.rename(saved.parent / ".model.old-abc")
    with pytest.raises(ModelFileError, match=r"rename .*\.model\.old-abc to it"):
        load(saved)


def test_an_unwritable_place_is_said_in_one_line(model: PrototypeModel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelFileError, match="cannot save the model"):
        save(model, tmp_path / "file" / "below")


def test_a_model_made_by_hand_cannot_be_saved(cases: Cases, tmp_path: Path) -> None:
    model = make_model(cases)
    model.method = None
    with pytest.raises(UsageError, match="put together by hand"):
        save(model, tmp_path / "m")


# -- versions -------------------------------------------------------------------------------------------------------


def test_version_0_is_brought_up(saved: Path) -> None:
    def downgrade(config: dict[str, Any]) -> None:
        facts = config.pop("metadata")
        config.pop("protolearn")
        config.update(format_version=0, labels=config.pop("classes"), data=facts["data"], seed=facts["seed"])

    edit_config(saved, downgrade)
    (saved / "prototypes.csv").unlink()
    assert read_config(saved)["format_version"] == FORMAT_VERSION
    back = load(saved)
    assert back.classes[:2] == ("0", "1")
    assert back.metadata["seed"] == 3


def test_a_truncated_version_0_is_refused(saved: Path) -> None:
    edit_config(saved, lambda config: (config.clear(), config.update(format_version=0)))
    with pytest.raises(ModelFileError, match="not a whole folder of format version 0"):
        load(saved)


def test_a_newer_version_says_to_upgrade(saved: Path) -> None:
    edit_config(saved, lambda config: config.update(format_version=FORMAT_VERSION + 1, protolearn="9.9", new=1))
    with pytest.raises(ModelFileError, match=r"written by protolearn 9\.9.*reads up to 1: pip install --upgrade"):
        load(saved)


# -- wrong, truncated, hostile ----------------------------------------------------------------------------------------

CONFIGS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "unknown key": (lambda c: c.update(clases=1), "unknown key 'clases': did you mean 'classes'"),
    "missing key": (lambda c: c.pop("encoder"), "'encoder' is missing"),
    "no version": (lambda c: c.pop("format_version"), "no format_version"),
    "boolean version": (lambda c: c.update(format_version=True), "no format_version"),
    "text version": (lambda c: c.update(format_version="1"), "no format_version"),
    "negative version": (lambda c: c.update(format_version=-1), "no format_version"),
    "list for mapping": (lambda c: c.update(method=[1]), "'method' must be a dict"),
    "text for list": (lambda c: c.update(classes="abc"), "'classes' must be a list"),
    "number as class": (lambda c: c["classes"].__setitem__(0, 7), "list of names"),
    "class twice": (lambda c: c["classes"].__setitem__(0, "1"), "twice"),
    "no classes": (lambda c: c.update(classes=[]), "list of names"),
    "endless class name": (lambda c: c["classes"].__setitem__(0, "x" * 2000), "1 to 1000"),
    "fewer classes": (lambda c: c["classes"].pop(), "shape"),
    "unknown method": (lambda c: put(c, "method", "method", value="protopet"), "did you mean 'protopnet'"),
    "method is a path": (lambda c: put(c, "method", "method", value="os.system"), "no method is called"),
    "unknown setting": (lambda c: put(c, "method", "prototypes", value=3), "no setting 'prototypes'"),
    "text for number": (lambda c: put(c, "method", "dim", value="8"), "dim must be int"),
    "boolean for number": (lambda c: put(c, "method", "dim", value=True), "dim must be int"),
    "infinite number": (lambda c: put(c, "method", "eps", value=float("inf")), "eps must be float"),
    "unknown choice": (lambda c: put(c, "method", "neck", value="evil"), "neck must be"),
    "mapping for number": (lambda c: put(c, "method", "eps", value={"a": 1}), "eps must be float"),
    "mixed list": (lambda c: put(c, "method", "project_at", value=[1, "2"]), "project_at must be"),
    "impossible setting": (lambda c: put(c, "method", "dim", value=0), "dim must be at least 1"),
    "other width": (lambda c: put(c, "method", "dim", value=16), "shape"),
    "billion prototypes": (lambda c: put(c, "method", "prototypes_per_class", value=10**9), "more than"),
    "trillion wide": (lambda c: put(c, "method", "dim", value=10**12), "more than"),
    "huge encoder": (lambda c: put(c, "encoder", "dim", value=10**7), "more than"),
    "negative encoder": (lambda c: put(c, "encoder", "dim", value=-5), "at least 2"),
    "unknown encoder": (lambda c: put(c, "encoder", "encoder", value="smal"), "did you mean 'small'"),
    "unknown encoder setting": (lambda c: put(c, "encoder", "depth", value=3), "no setting 'depth'"),
    "encoder of wrong type": (lambda c: put(c, "encoder", "dim", value={"a": 1}), "cannot rebuild"),
    "encoder weights": (lambda c: put(c, "encoder", "weights", value="hub"), "weights come from"),
}  # fmt: skip


@pytest.mark.parametrize("case", CONFIGS)
def test_wrong_settings_are_refused(saved: Path, case: str) -> None:
    change, message = CONFIGS[case]
    edit_config(saved, change)
    with pytest.raises(ModelFileError, match=message) as caught:
        load(saved)
    assert "model/" in str(caught.value)  # the file is named
    assert "\n" not in str(caught.value)


TEXTS: dict[str, tuple[str, str]] = {
    "empty": ("", "expected a mapping"),
    "list": ("- 1\n", "expected a mapping"),
    "not yaml": ("a: [1", "line .*not valid YAML"),
    "python object": ("format_version: !!python/object/apply:os.system ['touch OWNED']\n", "tag .* not allowed"),
    "python name": ("a: !!python/name:os.system\n", "tag .* not allowed"),
    "own tag": ("a: !x 1\n", "tag '!x' is not allowed"),
    "plain tag": ("a: !!str 1\n", "tag"),
    "alias bomb": (
        "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(f"{chr(98 + i)}: &{chr(98 + i)} [{','.join([f'*{chr(97 + i)}'] * 9)}]\n"
                                                for i in range(9)), "aliases",
    ),
    "recursive alias": ("a: &a [*a]\n", "aliases"),
    "merge key": ("<<: &x {a: 1}\n", "aliases"),
    "key twice": ("format_version: 1\nformat_version: 2\n", "line 2: the key 'format_version' occurs twice"),
    "deep": ("a: " + "[" * 5000 + "]" * 5000, "nest"),
    "key is a list": ("? [1]\n: 2\n", "a key must be text"),
    "long number": ("a: " + "9" * 100_000, "unquoted value"),
    "number beyond Python's limit": ("a: " + "9" * 8_000, "not plain YAML"),
    "sexagesimal": ("a: " + "1" + ":59" * 50_000, "unquoted value"),
    "two documents": ("a: 1\n---\nb: 2\n", "not valid YAML"),
    "bad date": ("a: 2024-99-99\n", "not plain YAML|must"),
    "many entries": ("a: [" + "1," * 600_000 + "]\n", "entries"),
}  # fmt: skip


@pytest.mark.parametrize("case", TEXTS)
def test_hostile_yaml_is_refused(saved: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(saved)
    text, message = TEXTS[case]
    (saved / "config.yaml").write_text(text)
    with pytest.raises(ModelFileError, match=message) as caught:
        load(saved)
    assert "config.yaml" in str(caught.value)
    assert not (saved / "OWNED").exists()


@pytest.mark.parametrize("name", ["hf-hub:evil/model", "HF-HUB:evil/model", "hf_hub:evil/m", "local-dir:/etc", "../x"])
def test_an_encoder_from_elsewhere_is_refused_without_asking_the_network(
    saved: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "socket", lambda *_, **__: pytest.fail("the network was asked"))
    edit_config(saved, lambda c: c.update(encoder={"encoder": "image", "name": name}))
    with pytest.raises(ModelFileError, match="points outside this folder"):
        load(saved)


@pytest.mark.parametrize(
    "extra",
    [
        {"weights": "hub"}, {"weights": "/etc/passwd"}, {"model_args": {"pretrained": True}},
        {"model_args": {"checkpoint_path": "x.pth"}}, {"model_args": {"pretrained_cfg": "x"}},
        {"model_args": {"pretrained_cfg_overlay": {"file": "/etc/passwd"}}},
    ],
)  # fmt: skip
def test_an_encoder_that_would_read_weights_is_refused(
    saved: Path, extra: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "socket", lambda *_, **__: pytest.fail("the network was asked"))
    edit_config(saved, lambda c: c.update(encoder={"encoder": "image", "name": "test_resnet", **extra}))
    with pytest.raises(ModelFileError, match=r"weights come from|points outside"):
        load(saved)


def test_a_giant_network_is_not_built(saved: Path) -> None:
    """The claimed encoder has a billion weights; the file beside it has a few thousand."""
    edit_config(saved, lambda c: c.update(encoder={"encoder": "image", "name": "vit_giant_patch14_dinov2"}))
    with pytest.raises(ModelFileError, match="more than"):
        load(saved)


def test_a_giant_picture_is_not_made(saved: Path) -> None:
    spec = {"encoder": "image", "name": "test_resnet", "size": [60_000, 60_000]}
    edit_config(saved, lambda c: c.update(encoder=spec))
    with pytest.raises(ModelFileError, match="more than"):
        load(saved)


def drop(name: str) -> Callable[[dict[str, torch.Tensor]], Any]:
    return lambda tensors: tensors.pop(name)


def change(name: str, value: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[dict[str, torch.Tensor]], Any]:
    return lambda tensors: tensors.update({name: value(tensors[name])})


def poison(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.clone()
    tensor.view(-1)[0] = float("nan")
    return tensor


def sources(text: str) -> Callable[[dict[str, torch.Tensor]], Any]:
    return change("bank._extra_state", lambda _: torch.tensor(list(text.encode()), dtype=torch.uint8))


def one_source(**changes: Any) -> Callable[[dict[str, torch.Tensor]], Any]:
    def edit(tensor: torch.Tensor) -> torch.Tensor:
        entries = json.loads(bytes(tensor.tolist()))
        entries[0].update(changes)
        return torch.tensor(list(json.dumps(entries).encode()), dtype=torch.uint8)

    return change("bank._extra_state", edit)


TENSORS: dict[str, tuple[Callable[[dict[str, torch.Tensor]], Any], str]] = {
    "no vectors": (drop("bank.vectors"), "lacks 'bank.vectors'"),
    "no sources": (drop("bank._extra_state"), "lacks 'bank._extra_state'"),
    "no head": (drop("head.weight"), "lacks 'head.weight'"),
    "foreign tensor": (lambda t: t.update(evil=torch.zeros(1)), "no place for"),
    "half precision": (change("bank.vectors", lambda v: v.half()), "type F16, expected F32"),
    "whole numbers": (change("head.weight", lambda v: v.long()), "type I64"),
    "too few vectors": (change("bank.vectors", lambda v: v[:3]), "shape"),
    "too wide": (change("bank.vectors", lambda v: torch.zeros(20, 9)), "shape"),
    "flat": (change("bank.vectors", lambda v: v.flatten()), "shape"),
    "one owner less": (change("bank.ownership", lambda v: v[:, :9]), "shape"),
    "head of other size": (change("head.weight", lambda v: v[:, :7]), "shape|fit"),
    "encoder of other size": (change("encoder.net.0.weight", lambda v: v[:2]), "shape"),
    "no prototypes": (
        lambda t: t.update({k: v[:0] for k, v in t.items() if k.startswith("bank.") and len(v.shape) and len(v) == 20}),
        "no prototype is left|shape",
    ),
    "nan vectors": (change("bank.vectors", poison), "'bank.vectors' holds NaN"),
    "nan encoder": (change("encoder.net.0.weight", poison), "holds NaN"),
    "infinite head": (change("head.weight", lambda v: v / 0), "holds NaN or infinite"),
    "negative ownership": (change("bank.ownership", lambda v: -v), "negative"),
    "id twice": (change("bank.ids", lambda v: v * 0), "ids are not unique"),
    "id from the future": (change("bank.ids", lambda v: v + 100), "ids are not unique"),
    "sources not json": (sources("[nul"), "do not fit"),
    "sources too few": (sources("[null]"), "do not fit"),
    "sources no list": (sources('{"a": 1}'), "do not fit"),
    "sources deep": (sources("[" * 100_000), "do not fit"),
    "sources not text": (change("bank._extra_state", lambda v: v + 128), "do not fit"),
    "source field missing": (sources(json.dumps([{"case": "a"}] * 20)), "do not fit"),
    "source case a number": (one_source(case=7), "source of prototype 0"),
    "source position negative": (one_source(position=-1), "source of prototype 0"),
    "source position text": (one_source(position="1"), "source of prototype 0"),
    "source distance nan": (one_source(distance=float("nan")), "source of prototype 0"),
    "source region": (one_source(region=[1, 2, 3]), "do not fit"),
    "source label": (one_source(label="x"), "source of prototype 0"),
    "source endless": (one_source(content="x" * 1000), "source of prototype 0"),
}  # fmt: skip


@pytest.mark.parametrize("case", TENSORS)
def test_wrong_weights_are_refused(saved: Path, case: str) -> None:
    edit, message = TENSORS[case]
    edit_tensors(saved, edit)
    with pytest.raises(ModelFileError, match=message) as caught:
        load(saved)
    assert "model.safetensors" in str(caught.value)
    assert "\n" not in str(caught.value)


def header(length: int, text: bytes) -> bytes:
    return struct.pack("<Q", length) + text


BYTES: dict[str, bytes] = {
    "empty": b"",
    "short": b"\x01",
    "text": b"hello, I am no tensor at all",
    "pickle": b"\x80\x04\x95\x1e\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94",
    "header longer than the file": header(2**40, b"{}"),
    "header beyond memory": header(2**63 - 1, b"{}"),
    "header not json": header(4, b"nope"),
    "deep header": header(20_000, b"[" * 20_000),
    "tensor beyond the file": header(74, b'{"bank.vectors":{"dtype":"F32","shape":[99999],"data_offsets":[0,399996]}}'),
    "offsets that lie": header(65, b'{"bank.vectors":{"dtype":"F32","shape":[9],"data_offsets":[8,0]}}'),
}


@pytest.mark.parametrize("case", BYTES)
def test_files_that_are_no_weights_are_refused(saved: Path, case: str) -> None:
    (saved / "model.safetensors").write_bytes(BYTES[case])
    with pytest.raises(ModelFileError, match=r"model\.safetensors is not a whole safetensors file"):
        load(saved)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
@pytest.mark.parametrize("name", ["model.safetensors", "config.yaml", "prototypes.csv", "metrics.json"])
def test_truncated_files_are_refused(saved: Path, name: str, share: float) -> None:
    content = (saved / name).read_bytes()
    (saved / name).write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ModelFileError, match=name):
        load(saved)


@pytest.mark.parametrize("name", ["model.safetensors", "config.yaml"])
def test_a_missing_file_is_named(saved: Path, name: str) -> None:
    (saved / name).unlink()
    with pytest.raises(ModelFileError, match=f"{name} is missing"):
        load(saved)


@pytest.mark.parametrize("name", ["README.md", "metrics.json", "prototypes.csv", "cases"])
def test_files_for_people_may_be_missing(saved: Path, name: str) -> None:
    (saved / name).rename(saved.parent / "elsewhere")
    assert len(load(saved).bank) == 20


@pytest.mark.parametrize("name", ["model.safetensors", "config.yaml", "prototypes.csv", "metrics.json"])
def test_links_are_refused(saved: Path, name: str, tmp_path: Path) -> None:
    (saved / name).rename(tmp_path / "elsewhere")
    (saved / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ModelFileError, match="symbolic link"):
        load(saved)
    assert len(load(saved, links=True).bank) == 20


def test_a_pipe_does_not_hang_the_reader(saved: Path) -> None:
    (saved / "config.yaml").unlink()
    os.mkfifo(saved / "config.yaml")
    with pytest.raises(ModelFileError, match="not a regular file"):
        load(saved)


def test_a_folder_in_place_of_a_file_is_refused(saved: Path) -> None:
    (saved / "model.safetensors").unlink()
    (saved / "model.safetensors").mkdir()
    with pytest.raises(ModelFileError, match="not a regular file"):
        load(saved)


def test_oversized_text_is_refused_before_it_is_read(saved: Path) -> None:
    with open(saved / "config.yaml", "r+b") as file:
        file.truncate(2**36)  # a hole, no disk used
    with pytest.raises(ModelFileError, match="the limit is"):
        load(saved)


def test_binary_settings_are_refused(saved: Path) -> None:
    (saved / "config.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ModelFileError, match="not UTF-8"):
        load(saved)


JSONS = {
    "not json": "{", "list": "[]", "nan": '{"scores": {"accuracy": NaN}}', "infinity": '{"scores": {"a": Infinity}}',
    "deep": "[" * 200_000, "long number": '{"scores": {"a": ' + "9" * 10_000 + "}}", "unknown key": '{"score": {}}',
    "wrong type": '{"history": 3}',
}  # fmt: skip


@pytest.mark.parametrize("case", JSONS)
def test_wrong_metrics_are_refused(saved: Path, case: str) -> None:
    (saved / "metrics.json").write_text(JSONS[case])
    with pytest.raises(ModelFileError, match=r"metrics\.json"):
        load(saved)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("digits/", "other/", "not what the weights say"),
        ("prototype,", "proto,", "lacks the column"),
        ("\n0,0,1", "\n99,0,1", "lacks prototype 0"),
        ("\n0,0,1", '\n0,"0,1', "not a table|lists|not what"),
    ],
)
def test_a_table_that_tells_another_story_is_refused(saved: Path, old: str, new: str, message: str) -> None:
    """A person reads the table, so it must not name other cases than the weights do."""
    table = saved / "prototypes.csv"
    table.write_text(table.read_text().replace(old, new, 1))
    with pytest.raises(ModelFileError, match=message):
        load(saved)


def test_a_table_saved_by_a_spreadsheet_is_the_same_table(saved: Path) -> None:
    table = saved / "prototypes.csv"
    table.write_bytes(table.read_bytes().replace(b"\n", b"\r\n"))
    assert len(load(saved).bank) == 20


@pytest.mark.parametrize("name", ["nothing", "file"])
def test_what_is_no_folder_is_said(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ModelFileError, match="is not a model folder"):
        load(tmp_path / name)


def test_an_empty_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"config\.yaml is missing"):
        load(tmp_path)
