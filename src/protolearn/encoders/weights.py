"""Weights of a timm network from a file or the hub: safetensors only, because opening a pickle can run code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from protolearn.errors import ModelFileError, ProtolearnError, UsageError, nearest_names

PICKLED = (".pth", ".pt", ".bin", ".pkl", ".pickle", ".ckpt", ".tar")


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file.

    Raises
    ------
    ModelFileError
        If the file is missing, a pickle, or not a whole safetensors file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(path)
    if path.suffix.lower() in PICKLED:
        raise ModelFileError(_refusal(path))
    if not path.is_file():
        names = [p.name for p in path.parent.glob("*.safetensors")] if path.parent.is_dir() else []
        hint = f": {nearest_names(path.name, names)}" if names else ""
        raise ModelFileError(f'weights are None (random), "hub" or a .safetensors file, and {path} is not a file{hint}')
    try:
        with path.open("rb") as file:
            start = file.read(2)
        if not start:
            raise ModelFileError(f"{path} is empty (0 bytes): copy it again from its origin")
        if start == b"PK" or start[:1] == b"\x80":
            raise ModelFileError(_refusal(path))
        state: dict[str, Tensor] = load_file(path)
    except SafetensorError as error:
        raise ModelFileError(
            f"{path} is not a whole safetensors file ({_first_line(error)}): it is truncated or something else; copy "
            "it again from its origin"
        ) from error
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror or _first_line(error)}") from error
    return state


def load_strictly(
    model: nn.Module, state: Mapping[str, Tensor], where: str, network: str, library: str = "timm"
) -> None:
    """Load weights that must fit name by name and shape by shape.

    Raises
    ------
    ModelFileError
        Naming what is missing, unexpected or of another shape.
    """
    wanted = model.state_dict()
    given = dict(state)
    for name, tensor in wanted.items():
        if name.endswith("num_batches_tracked"):
            given.setdefault(name, tensor)  # some files leave this counter out; nothing reads it
    missing = [name for name in wanted if name not in given]
    unexpected = [name for name in given if name not in wanted]
    misfit = [
        f"{name} is {_kind(given[name])} in the file, {_kind(tensor)} in the network"
        for name, tensor in wanted.items()
        if name in given
        and (given[name].shape != tensor.shape or given[name].is_floating_point() != tensor.is_floating_point())
    ]
    faults = [
        f"{len(found)} {what} ({', '.join(found[:3])}{', ...' if len(found) > 3 else ''})"
        for what, found in (("missing", missing), ("unexpected", unexpected), ("of another shape or type", misfit))
        if found
    ]
    if faults:
        raise ModelFileError(
            f"{where} does not fit {library}'s {network}: {'; '.join(faults)}. Is it another network, or one built "
            "with other model_args?"
        )
    model.load_state_dict(given, strict=True)


def classes_in(state: Mapping[str, Tensor], cfg: Mapping[str, Any]) -> int:
    """Return how many classes the classifier in a file has; 0 when it has none."""
    names = cfg.get("classifier") or ()
    for name in (names,) if isinstance(names, str) else names:
        if f"{name}.weight" in state:
            return int(state[f"{name}.weight"].shape[0])
    return 0


def hub_file(name: str, cfg: Mapping[str, Any]) -> Path:
    """Return the safetensors file of a timm network from the Hugging Face Hub, downloaded when it is not there yet.

    Raises
    ------
    UsageError
        If timm has no pretrained weights of this name.
    ProtolearnError
        If the file cannot be had: no network, or only a pickle there.
    """
    import timm

    if not cfg.get("hf_hub_id"):
        tags = timm.list_pretrained(f"{name.split('.')[0]}*")
        hint = f"; pretrained relatives: {', '.join(tags[:5])}" if tags else ""
        raise UsageError(
            f"timm has no pretrained weights for {name}{hint}; or give weights=None or a .safetensors file"
        )
    remedy = (
        "connect to the network once (the file is kept), or give weights=PATH of a .safetensors file, or weights=None "
        "to start from random weights"
    )
    filename = cfg.get("hf_hub_filename") or "model.safetensors"
    if not filename.endswith(".safetensors"):
        filename = filename.replace("pytorch_model", "model").rsplit(".", 1)[0] + ".safetensors"
    repository, _, revision = str(cfg["hf_hub_id"]).partition("@")
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        try:
            return Path(hf_hub_download(repository, filename, revision=revision or None))
        except EntryNotFoundError as error:
            if isinstance(error, LocalEntryNotFoundError):
                raise
            raise ProtolearnError(
                f"{repository} on the Hugging Face Hub has no {filename}, and a pickle is never opened because it can "
                "run code: choose another network, or convert the weights and give weights=PATH"
            ) from error
    except ProtolearnError:
        raise
    except Exception as error:  # offline mode, no route, proxies and gated files fail in many ways; one remedy
        raise ProtolearnError(f"no weights of {name} from the Hugging Face Hub ({_short(error)}): {remedy}") from error


def _refusal(path: Path) -> str:
    return (
        f"{path} is a pickle, which can run code when it is opened: convert it where you trust it, with "
        "safetensors.torch.save_file(torch.load(FILE, weights_only=True), 'weights.safetensors')"
    )


def _kind(tensor: Tensor) -> str:
    shape = "x".join(map(str, tensor.shape)) or "a number"
    return shape if tensor.is_floating_point() or tensor.dtype == torch.int64 else f"{shape} {tensor.dtype}"


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__


def _short(error: BaseException) -> str:
    line = _first_line(error)
    return f"{type(error).__name__}: {line if len(line) <= 120 else line[:117] + '...'}"
