"""The Hugging Face mixin against a hub that is a folder: nothing leaves this machine."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError

from protolearn.core.model import PrototypeModel
from protolearn.data import Cases, digits
from protolearn.encoders import SmallEncoder
from protolearn.errors import ModelFileError
from protolearn.interop import hub
from protolearn.interop.hub import HubModel
from protolearn.methods.parts.protopnet import ProtoPNet
from protolearn.training.project import project


@pytest.fixture(scope="module")
def cases() -> Cases:
    return digits("train").subset(range(0, 400, 10))


@pytest.fixture(scope="module")
def model(cases: Cases) -> PrototypeModel:
    method = ProtoPNet(prototypes_per_class=1, dim=8)
    made = method.build(SmallEncoder(dim=8), 10, 0).eval()
    made.method, made.classes = method, cases.classes
    project(made, cases.with_transform(made.encoder.preprocess))
    return made


@pytest.fixture
def fake_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub that keeps repositories as folders, and serves them as a download cache does: through links."""
    root = tmp_path / "hub"

    def create_repo(self: Any, repo_id: str, **_: Any) -> Any:
        (root / repo_id).mkdir(parents=True, exist_ok=True)
        return type("Repo", (), {"repo_id": repo_id})()

    def upload_folder(self: Any, *, repo_id: str, folder_path: str, **_: Any) -> str:
        shutil.copytree(folder_path, root / repo_id, dirs_exist_ok=True)
        return f"https://hub/{repo_id}"

    def snapshot_download(repo_id: str, **_: Any) -> str:
        if not (root / repo_id).is_dir():
            raise LocalEntryNotFoundError(f"no {repo_id}")
        cache = tmp_path / "cache" / repo_id
        for file in (root / repo_id).rglob("*"):
            if file.is_file():
                link = cache / file.relative_to(root / repo_id)
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(file)
        return str(cache)

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create_repo)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload_folder)
    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    return root


def same(left: PrototypeModel, right: PrototypeModel) -> bool:
    x = torch.rand(2, 3, 32, 32)
    return torch.equal(left(x).logits, right(x).logits) and left.bank.sources == right.bank.sources


def test_save_and_load_a_folder(model: PrototypeModel, cases: Cases, tmp_path: Path) -> None:
    HubModel(model, cases).save_pretrained(tmp_path / "m")
    assert (tmp_path / "m" / "cases" / "00000.png").is_file()
    assert "library_name: protolearn" in (tmp_path / "m" / "README.md").read_text()  # ours, not the mixin's template
    assert same(HubModel.from_pretrained(tmp_path / "m").model, model)
    HubModel(model).save_pretrained(tmp_path / "m")  # saving again replaces
    assert not (tmp_path / "m" / "cases").exists()


def test_push_and_pull(model: PrototypeModel, cases: Cases, fake_hub: Path) -> None:
    assert HubModel(model, cases).push_to_hub("me/digits") == "https://hub/me/digits"
    names = {path.name for path in (fake_hub / "me" / "digits").iterdir()}
    assert {"model.safetensors", "config.yaml", "prototypes.csv", "README.md", "cases"} <= names
    back = HubModel.from_pretrained("me/digits")
    assert same(back.model, model)
    x = torch.rand(1, 3, 32, 32)
    assert torch.equal(back(x).logits, model(x).logits)


def test_what_is_not_there_is_said_in_one_line(fake_hub: Path) -> None:
    with pytest.raises(ModelFileError, match="cannot be had from the Hub") as caught:
        HubModel.from_pretrained("me/nothing")
    assert "\n" not in str(caught.value)


def test_a_hostile_repository_is_refused(model: PrototypeModel, fake_hub: Path) -> None:
    HubModel(model).push_to_hub("me/evil")
    config = fake_hub / "me" / "evil" / "config.yaml"
    config.write_text(config.read_text().replace("encoder: small", "encoder: !!python/name:os.system"))
    with pytest.raises(ModelFileError, match="not allowed"):
        HubModel.from_pretrained("me/evil")
