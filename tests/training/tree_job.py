"""One epoch of a small tree on digits in a process of its own or as one of several: what its leaves counted."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from protolearn.core.trees import TreeHead
from protolearn.data import Augment, digits
from protolearn.encoders import make_encoder
from protolearn.methods import get_method
from protolearn.training import distributed
from protolearn.training.fit import fit


def main(out: str) -> None:
    method = get_method("prototree")(
        depth=2, dim=4, epochs=1, freeze_epochs=0, encoder_rate=1e-3, milestones=(), prune_threshold=0.0
    )
    train = digits("train").subset(range(121))  # the last batch has one case, so one process of two has none
    still = Augment(rotation=0, shear=0, skew=0, flip=0)
    encoder = make_encoder({"encoder": "small", "seed": 3})
    done = fit(method, train, encoder=encoder, batch_size=20, quiet=True, device="cpu", augment=still)
    head = done.model.head
    assert isinstance(head, TreeHead)
    if distributed.rank() == 0:
        counted = {"cases": float(head.leaves.sum()), "classes": head.leaves.sum(0).tolist(), "steps": int(head.done)}
        Path(out).write_text(json.dumps(counted), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
