"""A released CIFAR-10 network as other people's networks are: no model of the library, seen through an adapter."""

from __future__ import annotations

import csv
import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from protolearn.core.views import NetworkViews
from protolearn.data import arrays

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Block(nn.Module):
    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.stride, self.more = stride, (width - before) // 2

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)), inplace=True)))
        short = x if self.stride == 1 else F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.more, self.more))
        return F.relu(out + short, inplace=True)


class CifarNet(nn.Module):
    """Three stages of three blocks, shortcuts without weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        widths = (16, 16, 32, 64)
        for k in (1, 2, 3):
            blocks = [Block(widths[k - 1] if b == 0 else widths[k], widths[k], 2 if k > 1 and b == 0 else 1)
                      for b in range(3)]  # fmt: skip
            setattr(self, f"layer{k}", nn.Sequential(*blocks))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def shown(picture: Image.Image) -> Tensor:
    """Return a picture as the network takes it."""
    small = np.array(picture.convert("RGB").resize((32, 32), Image.Resampling.BILINEAR), np.float32) / 255
    return torch.from_numpy((small - np.float32(MEAN)) / np.float32(STD)).permute(2, 0, 1).contiguous()


def cifar_views(folder: Path) -> NetworkViews:
    """Return the network of the shared data, seen at the input of its classifier."""
    network = CifarNet()
    weights = load_file(folder / "backbones/resnet20_cifar10.safetensors")
    lacking, other = network.load_state_dict({k: v.float() for k, v in weights.items()}, strict=False)
    assert not other and all(name.endswith("num_batches_tracked") for name in lacking)
    names = np.load(folder / "cifar10/cifar10.npz")["classes"].tolist()
    return NetworkViews(network.eval(), classifier="linear", classes=names, preprocess=shown, name="ResNet-20")


def cifar(folder: Path, part: str, each: int) -> Any:
    """Return so many CIFAR-10 cases of each class."""
    with np.load(folder / "cifar10/cifar10.npz") as z:
        x, y, names = z[f"x_{part}"], z[f"y_{part}"], z["classes"].tolist()
    chosen = np.concatenate([np.flatnonzero(y == c)[:each] for c in range(10)])
    return arrays(x[chosen], y[chosen].tolist(), classes=names, name=f"cifar10 {part}")


def textures(folder: Path, most: int) -> Any:
    """Return texture pictures, which are nothing like CIFAR-10."""
    with np.load(folder / "textures6/textures6.npz") as z:
        x, y, names = z["x_test"], z["y_test"], z["classes"].tolist()
    return arrays(x[:most], y[:most].tolist(), classes=names, name="textures6")


def tiny(folder: Path, most: int) -> Any:
    """Return test pictures of Tiny-ImageNet, whose classes are other kinds of things of the same sort."""
    with open(folder / "tinyimagenet100/index.csv", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test"]
    rows = [rows[i] for i in np.linspace(0, len(rows) - 1, most).round().astype(int)]
    with zipfile.ZipFile(folder / "tinyimagenet100/tinyimagenet100.zip") as archive:
        pictures = [np.array(Image.open(io.BytesIO(archive.read(row["file"]))).convert("RGB")) for row in rows]
    return arrays(np.stack(pictures), [row["name"] for row in rows], name="tinyimagenet")
