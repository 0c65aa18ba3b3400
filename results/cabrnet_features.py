"""CaBRNet's own ProtoPNet training on the same frozen features; runs inside an environment that has cabrnet.

    python results/cabrnet_features.py maps.npz --seeds 0 1 2

``maps.npz`` holds ``x_train, x_test (N, D, H, W)`` and ``y_train, y_test``; ``results/methods.py --peer`` writes it and
calls this. The network of CaBRNet's model is replaced by one that hands the map on; add-on layers, classifier, loss,
optimiser groups, projection and last-layer epochs are CaBRNet's, with the defaults of its ProtoPNet (30 epochs, first 5
alike since nothing of the network moves, projection at 10, 20 and 30, 20 epochs of the last layer after each).
Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time

answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # whatever a library prints goes to the log

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

EPOCHS, PER_CLASS, DIM, BATCH = 30, 10, 128, 40


class HandOn(nn.Module):
    """In place of a network: the input already is its map."""

    def forward(self, maps: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"convnet": maps}


def build(channels: int, classes: int, seed: int):
    """Return CaBRNet's ProtoPNet over maps of so many channels."""
    from cabrnet.archs.generic.model import CaBRNet

    def add_on() -> dict:
        return {
            "init_mode": "PROTOPNET",
            "conv1": {"type": "Conv2d", "params": {"out_channels": DIM, "kernel_size": 1}},
            "relu1": {"type": "ReLU"},
            "conv2": {"type": "Conv2d", "params": {"out_channels": DIM, "kernel_size": 1}},
            "sigmoid1": {"type": "Sigmoid"},
        }

    torch.manual_seed(seed)
    model = CaBRNet.build_from_config(
        {
            "extractor": {
                "backbone": {"arch": "resnet18", "weights": "None"},
                "convnet": {"source_layer": "layer4", "add_on": add_on()},
            },
            "classifier": {
                "module": "cabrnet.archs.protopnet.decision",
                "name": "ProtoPNetClassifier",
                "params": {"num_classes": classes, "num_proto_per_class": PER_CLASS, "num_features": DIM},
            },
            "similarity": {"name": "ProtoPNetSimilarity"},
            "top_arch": {"module": "cabrnet.archs.protopnet.model", "name": "ProtoPNet"},
        }
    )
    model.extractor.convnet = HandOn()
    model.extractor.add_on = model.extractor.create_add_on(add_on(), channels)[0]
    return model


def train(arrays: dict[str, np.ndarray], seed: int) -> dict:
    """Train once; return test cases right and seconds."""
    from cabrnet.core.utils.optimizers import OptimizerManager

    model = build(arrays["x_train"].shape[1], int(arrays["y_train"].max()) + 1, seed)
    model.register_training_params(
        {"auxiliary_info": {"projection_config": {"start_epoch": 9, "frequency": 10, "num_ft_epochs": 20}}}
    )
    manager = OptimizerManager.build_from_config(
        {
            "num_epochs": EPOCHS,
            "param_groups": {
                "add_on": "extractor.add_on",
                "prototypes": "classifier.prototypes",
                "last_layer": "classifier.last_layer",
            },
            "optimizers": {
                "joint_optimizer": {
                    "type": "Adam",
                    "groups": {"add_on": {"lr": 3e-3, "weight_decay": 1e-3}, "prototypes": {"lr": 3e-3}},
                },
                "last_layer_optimizer": {"type": "Adam", "groups": {"last_layer": {"lr": 1e-4}}},
            },
            "periods": {"joint": {"num_epochs": EPOCHS, "optimizers": "joint_optimizer", "freeze": "last_layer"}},
        },
        model,
    )
    data = {
        part: TensorDataset(torch.from_numpy(arrays[f"x_{part}"]), torch.from_numpy(arrays[f"y_{part}"]).long())
        for part in ("train", "test")
    }
    loaders = {
        "train_set": DataLoader(data["train"], batch_size=BATCH, shuffle=True),
        "projection_set": DataLoader(data["train"], batch_size=BATCH),
    }
    start = time.perf_counter()
    for epoch in range(EPOCHS):
        model.train_epoch(loaders, manager, device="cpu", epoch_idx=epoch)
    seconds = time.perf_counter() - start
    model.eval()
    right = 0
    with torch.no_grad():
        for maps, labels in DataLoader(data["test"], batch_size=BATCH):
            right += int((model(maps)[0].argmax(1) == labels).sum())
    return {"right": right, "seconds": round(seconds, 2), "epochs": EPOCHS + 3 * 20, "prototypes": model.num_prototypes}


def main() -> None:
    """Train with each seed and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("maps")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    torch.set_num_threads(1)
    with np.load(args.maps, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    from importlib.metadata import version

    found: dict = {"version": version("cabrnet"), "seeds": {}}
    for seed in args.seeds:
        found["seeds"][str(seed)] = train(arrays, seed)
        print(seed, found["seeds"][str(seed)], file=sys.stderr)
    answers.write(json.dumps(found) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
