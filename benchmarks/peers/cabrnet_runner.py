"""Runs inside an environment with cabrnet: reads orders as JSON lines, answers with seconds.

Only CaBRNet's public interface is used: ``CaBRNet.build_from_config``, ``OptimizerManager.build_from_config``,
``train_epoch`` and ``SimilarityVisualizer``. What a call spends where is read off the loaders: ``train_epoch`` goes
once over the training set, once over the projection set, then over the training set for each last-layer epoch.
"""

from __future__ import annotations

import json
import os
import sys
import time
from functools import cache

answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # whatever a library prints goes to the log

import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from torch.utils.data import DataLoader, Dataset  # noqa: E402
from torchvision.transforms import Compose, Normalize, ToTensor  # noqa: E402

CLASSES, PER_CLASS, DIM = 10, 10, 128
TRANSFORM = Compose([ToTensor(), Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])


class Pictures(Dataset):
    """The same pictures as ours, decoded from memory."""

    def __init__(self, path: str) -> None:
        self.pixels = np.load(path)

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return TRANSFORM(Image.fromarray(self.pixels[i])), i % CLASSES


class Stamped(DataLoader):
    """Notes when each pass over it begins."""

    passes: list = []

    def __iter__(self):
        self.passes.append(time.perf_counter())
        return super().__iter__()


def build():
    """Return the model of the same size as ours."""
    from cabrnet.archs.generic.model import CaBRNet

    convolution = {"type": "Conv2d", "params": {"out_channels": DIM, "kernel_size": 1}}
    add_on = {
        "init_mode": "PROTOPNET",
        "conv1": convolution,
        "relu1": {"type": "ReLU"},
        "conv2": {"type": "Conv2d", "params": {"out_channels": DIM, "kernel_size": 1}},
        "sigmoid1": {"type": "Sigmoid"},
    }
    torch.manual_seed(0)
    return CaBRNet.build_from_config(
        {
            "extractor": {
                "backbone": {"arch": "resnet18", "weights": "None"},
                "convnet": {"source_layer": "layer4", "add_on": add_on},
            },
            "classifier": {
                "module": "cabrnet.archs.protopnet.decision",
                "name": "ProtoPNetClassifier",
                "params": {"num_classes": CLASSES, "num_proto_per_class": PER_CLASS, "num_features": DIM},
            },
            "similarity": {"name": "ProtoPNetSimilarity"},
            "top_arch": {"module": "cabrnet.archs.protopnet.model", "name": "ProtoPNet"},
        }
    )


def train(pictures: str, batch: int, epochs: int) -> dict:
    """Return the seconds of an epoch, a projection and the last-layer epochs."""
    from cabrnet.core.utils.optimizers import OptimizerManager

    model = build()
    model.register_training_params(
        {"auxiliary_info": {"projection_config": {"start_epoch": 0, "frequency": 1, "num_ft_epochs": epochs}}}
    )
    manager = OptimizerManager.build_from_config(
        {
            "num_epochs": 1,
            "param_groups": {
                "backbone": "extractor.convnet",
                "add_on": "extractor.add_on",
                "prototypes": "classifier.prototypes",
                "last_layer": "classifier.last_layer",
            },
            "optimizers": {
                "joint_optimizer": {
                    "type": "Adam",
                    "groups": {
                        "backbone": {"lr": 1e-4, "weight_decay": 1e-3},
                        "add_on": {"lr": 3e-3, "weight_decay": 1e-3},
                        "prototypes": {"lr": 3e-3},
                    },
                },
                "last_layer_optimizer": {"type": "Adam", "groups": {"last_layer": {"lr": 1e-4}}},
            },
            "periods": {"joint": {"num_epochs": 1, "optimizers": "joint_optimizer", "freeze": "last_layer"}},
        },
        model,
    )
    data = Pictures(pictures)
    Stamped.passes = []
    loaders = {
        "train_set": Stamped(data, batch_size=batch, shuffle=True),
        "projection_set": Stamped(data, batch_size=batch),
    }
    model.train_epoch(loaders, manager, device="cpu", epoch_idx=0)
    end = time.perf_counter()
    passes = Stamped.passes
    if len(passes) != 2 + epochs:
        raise RuntimeError(f"expected {2 + epochs} passes over the data, saw {len(passes)}")
    return {"epoch": passes[1] - passes[0], "projection": passes[2] - passes[1], "last_layer": end - passes[2]}


@cache
def explainer():
    """Return a model and its visualiser by upsampling."""
    from cabrnet.core.visualization.visualizer import SimilarityVisualizer

    model = build().eval()
    config = {"attribution": {"type": "cubic_upsampling"}, "view": {"type": "heatmap"}}
    return model, SimilarityVisualizer.build_from_config(config, model)


def maps(size: int, prototypes: int) -> float:
    """Return the seconds of the enlarged maps of some prototypes for one picture."""
    _, visualizer = explainer()
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8))
    inputs = TRANSFORM(picture).unsqueeze(0)
    start = time.perf_counter()
    for k in range(prototypes):
        visualizer.get_attribution(img=picture, img_tensor=inputs, proto_idx=k, device="cpu")
    return time.perf_counter() - start


def start(threads: int) -> dict:
    """Import everything and return versions."""
    from importlib.metadata import version

    torch.set_num_threads(threads)
    build()
    return {name: version(name) for name in ("cabrnet", "torch", "torchvision")}


if __name__ == "__main__":
    for line in sys.stdin:
        order, arguments = json.loads(line)
        found = {"start": start, "train": train, "maps": maps}[order](**arguments)
        answers.write(json.dumps(found) + "\n")
        answers.flush()
