"""A short training whose loss and rule compare the cases of a batch with each other, alone or as one of several."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from protolearn.data import Augment, digits
from protolearn.encoders import make_encoder
from protolearn.methods import get_method
from protolearn.training import distributed
from protolearn.training.fit import fit


def main(out: str, labelled: str) -> None:
    method = get_method("palm")(
        prototypes_per_class=3, k=0, momentum=0.5, dim=8, hidden=16, epochs=2, warmup=1, encoder_rate=0.05,
        neck_rate=0.05, contrast_weight=5.0, labelled=labelled == "yes",
    )  # fmt: skip
    train = digits("train").subset(range(121))  # the last batch has one case, so one process of two has none
    made = {"depth": 1, "embed_dim": 24, "num_heads": 2, "patch_size": 4, "img_size": 16}
    encoder = make_encoder(  # no batch norm, whose statistics would be those of a part of the batch
        {"encoder": "image", "name": "vit_tiny_patch16_224", "size": 16, "mean": 0.5, "std": 0.5, "model_args": made}
    )
    augment = Augment(rotation=10, shear=0, skew=0, flip=0)
    done = fit(method, train, encoder=encoder, batch_size=20, quiet=True, device="cpu", augment=augment)
    if distributed.rank() == 0:
        state = {name: tensor.contiguous() for name, tensor in done.model.state_dict().items()}
        for i, row in enumerate(done.history):
            state[f"history {i}"] = torch.tensor([row["mle"], row["contrast"], row["loss"]])
        save_file(state, Path(out))


if __name__ == "__main__":
    main(*sys.argv[1:])
