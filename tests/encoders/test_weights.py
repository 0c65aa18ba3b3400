"""Weights from a file or the hub: exact or refused, and nothing is ever executed."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors.torch import save_file

from protolearn.encoders import ImageEncoder
from protolearn.errors import ModelFileError, ProtolearnError, UsageError

NAME = "test_resnet"


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(9)
    return {name: tensor.clone() for name, tensor in timm.create_model(NAME).state_dict().items()}


def build(path: Path | str) -> ImageEncoder:
    return ImageEncoder(NAME, weights=path, size=64)


def refused(path: Path | str) -> str:
    with pytest.raises(ModelFileError) as caught:
        build(path)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_file_that_fits(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    save_file(state, tmp_path / "fits.safetensors")
    encoder = build(tmp_path / "fits.safetensors")
    assert encoder.fingerprint() == ImageEncoder(NAME, size=64, seed=9).fingerprint()


def test_half_precision_and_missing_step_counters_are_fine(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    half = {name: t.half() for name, t in state.items() if not name.endswith("num_batches_tracked")}
    save_file(half, tmp_path / "half.safetensors")
    encoder = build(tmp_path / "half.safetensors")
    assert encoder.net.layer1[0].conv1.weight.dtype == torch.float32


def test_every_misfit_is_named(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    wrong = {**state, "layer9.weight": torch.zeros(1), "bn1.weight": torch.zeros(7)}
    del wrong["layer1.0.conv1.weight"]
    save_file(wrong, tmp_path / "wrong.safetensors")
    message = refused(tmp_path / "wrong.safetensors")
    assert "1 missing (layer1.0.conv1.weight)" in message
    assert "1 unexpected (layer9.weight)" in message
    assert "bn1.weight is 7 in the file" in message


def test_another_network(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    save_file(state, tmp_path / "resnet.safetensors")
    with pytest.raises(ModelFileError, match=r"does not fit timm's convnext_atto: \d+ missing"):
        ImageEncoder("convnext_atto", weights=tmp_path / "resnet.safetensors", size=64)


def test_integers_in_the_place_of_weights(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    save_file({**state, "bn1.weight": state["bn1.weight"].to(torch.int8)}, tmp_path / "quantised.safetensors")
    assert "int8" in refused(tmp_path / "quantised.safetensors")


@pytest.mark.parametrize("kept", [0, 5, 200, -100])
def test_truncated(tmp_path: Path, state: dict[str, torch.Tensor], kept: int) -> None:
    path = tmp_path / "cut.safetensors"
    save_file(state, path)
    path.write_bytes(path.read_bytes()[:kept])
    assert "copy it again" in refused(path)


def test_something_else_with_the_right_name(tmp_path: Path) -> None:
    path = tmp_path / "story.safetensors"
    path.write_text("once upon a time " * 100)
    assert "not a whole safetensors file" in refused(path)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".ckpt", ".safetensors"])
def test_a_pickle_is_refused_unopened(tmp_path: Path, suffix: str) -> None:
    class Boom:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "executed",))  # type: ignore[return-value]

    path = tmp_path / f"weights{suffix}"
    torch.save({"a": Boom()}, path)
    message = refused(path)
    assert "pickle" in message
    assert "save_file" in message
    assert not (tmp_path / "executed").exists()


def test_a_missing_file_suggests_its_neighbours(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    save_file(state, tmp_path / "resnet.safetensors")
    assert "did you mean 'resnet.safetensors'" in refused(tmp_path / "resnet1.safetensors")
    assert '"hub"' in refused("imagenet")
    assert "is not a file" in refused(tmp_path)


# the hub


def test_no_network_names_the_remedies(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("Cannot find the file\nin the cache")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    with pytest.raises(ProtolearnError, match=r"connect to the network once .* weights=PATH .* weights=None") as caught:
        ImageEncoder("resnet18", weights="hub", size=64)
    assert "\n" not in str(caught.value)
    assert "resnet18" in str(caught.value)


def test_a_pickle_on_the_hub_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: object, **__: object) -> str:
        raise EntryNotFoundError("404")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", absent)
    with pytest.raises(ProtolearnError, match=r"has no model.safetensors, and a pickle is never opened"):
        ImageEncoder("resnet18", weights="hub", size=64)


def test_hub_weights_are_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, state: dict[str, torch.Tensor]
) -> None:
    asked = []

    def download(repository: str, filename: str, **_: object) -> str:
        asked.append((repository, filename))
        save_file(state, tmp_path / filename)
        return str(tmp_path / filename)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    encoder = ImageEncoder(NAME, weights="hub", size=64)
    assert asked == [("timm/test_resnet.r160_in1k", "model.safetensors")]
    assert encoder.fingerprint() == ImageEncoder(NAME, size=64, seed=9).fingerprint()
    assert encoder.origin == "Hugging Face Hub: timm/test_resnet.r160_in1k"


def test_networks_without_pretrained_weights() -> None:
    name = next(n for n in timm.list_models("resnet*") if not timm.is_model_pretrained(n))
    with pytest.raises(UsageError, match="no pretrained weights"):
        ImageEncoder(name, weights="hub", size=64)
