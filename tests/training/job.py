"""A small training on digits in a process of its own, to be killed, resumed, or run as one of several."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from protolearn.core.projection import NearestTokens
from protolearn.data import Augment, digits
from protolearn.encoders import make_encoder
from protolearn.methods import get_method
from protolearn.training import checkpoint, distributed, record
from protolearn.training.fit import fit


def die_at(what: str, call: int) -> None:
    """Kill this process at a call: half-way through writing a checkpoint, in a projection, or before a step."""
    owner: Any = {"write": checkpoint, "project": NearestTokens, "step": torch.optim.Adam}[what]
    name = {"write": "save_file", "project": "update", "step": "step"}[what]
    inner, calls = getattr(owner, name), 0

    def deadly(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            if what == "write":
                Path(args[1]).write_bytes(b"half a checkpoint")
            os.kill(os.getpid(), signal.SIGKILL)
        return inner(*args, **kwargs)

    setattr(owner, name, deadly)


def main(out: str, directory: str, die: str = "", pruned: str = "yes") -> None:
    record.CHECKPOINT_SECONDS = 0.0  # after every epoch, so that there is something to resume
    train = digits("train").subset(range(0, 1400, 7))
    if die:
        what, call = die.split(":")
        die_at(what, int(call))
    method = get_method("protopnet")(
        prototypes_per_class=2,
        dim=8,
        warm_epochs=2,
        project_at=(3, 4),
        last_layer_epochs=3,
        encoder_rate=1e-3,
        step=2,
        freeze_batch_norm=True,  # statistics of half a batch are not those of a whole one
        prune=pruned == "yes",
        prune_epochs=2,
    )
    done = fit(
        method,
        train,
        encoder=make_encoder({"encoder": "small", "seed": 3}),
        validation=digits("test").subset(range(0, 300, 10)),
        directory=None if directory == "-" else directory,
        augment=Augment(rotation=10, shear=0, skew=0, flip=0),
        views=2,
        batch_size=33,
        quiet=True,
        device="cpu",
    )
    if distributed.rank() == 0:
        target = Path(out)
        save_file(
            {name: tensor.contiguous() for name, tensor in done.model.state_dict().items()}, target.with_suffix(".part")
        )
        target.with_suffix(".part").rename(target)


if __name__ == "__main__":
    main(*sys.argv[1:])
