"""ProtoPNet as in the paper, encoder and all, on white blood cells: one run on two processor cores.

    python results/protopnet_trained.py [--size 128] [--batch 16] [--seed 0] [--stretch 1] [--threads 1]

Every setting of the method is the paper's default (regular neck, uniform start, 5 warm epochs, projection at 10, 20
and 30, 20 epochs of the last layer after each). Beside it, at the same size: the recipe "frozen" and the logistic
regression. The test part is read once, at the end. Writes ``protopnet_trained.json``.

``--stretch 4`` holds every stage before the last layer four times as long: the paper's epoch has 30 augmented copies of
each picture, ours one view.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path

import torch
from common import ROOT, load, made, make_encoder, wilson
from protopnet_frozen import STAGES, ProtoPNet, baseline, score, train_once

from protolearn.core.heads import LinearEvidence
from protolearn.data.augment import Augment
from protolearn.encoders.cache import token_cache
from protolearn.tasks.classify import evaluate
from protolearn.training.fit import fit
from protolearn.training.record import TrainingWarning

AUGMENT = Augment()  # rotation, skew or shear, each with a random flip: the paper's


def main() -> None:
    """Train, score, and write the receipt."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stretch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ROOT / "protopnet_trained.json")
    args = parser.parse_args()
    train, test = load("wbc", "train"), load("wbc", "test")
    torch.set_num_threads(args.threads)
    paper = ProtoPNet()
    method = ProtoPNet(
        warm_epochs=paper.warm_epochs * args.stretch,
        project_at=tuple(epoch * args.stretch for epoch in paper.project_at),
        step=paper.step * args.stretch,
    )
    start = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", TrainingWarning)
        fitted = fit(
            method, train, encoder=make_encoder(layer="final", size=args.size), augment=AUGMENT,
            seed=args.seed, batch_size=args.batch, device="cpu", quiet=True,
        )  # fmt: skip
    seconds = time.perf_counter() - start
    model = fitted.model
    final = evaluate(model, test)
    kept = {key: value.clone() for key, value in model.head.state_dict().items()}
    model.head.load_state_dict(LinearEvidence.from_ownership(model.bank.ownership, own=1.0, other=-0.5).state_dict())
    first = evaluate(model, test)  # the last layer as it was before its first epoch, on the last projection
    model.head.load_state_dict(kept)
    right = {"after projection": first, "after last layer": final}
    flags = f"--size {args.size} --batch {args.batch} --seed {args.seed} --stretch {args.stretch}"
    receipt = made(f"python results/protopnet_trained.py {flags} --threads {args.threads}")
    receipt |= {
        "data": {"name": "wbc_tecom", "train": train.counts(), "test": test.counts(),
                 "train_digest": train.fingerprint(), "test_digest": test.fingerprint()},
        "method": method.settings(), "augment": AUGMENT.to_dict(), "size": args.size, "batch_size": args.batch,
        "seed": args.seed, "seconds": round(seconds),
        "trained": {
            stage: {"right": round(r.accuracy * len(test)), "accuracy": round(r.accuracy, 4),
                    "wilson": wilson(round(r.accuracy * len(test)), len(test))} for stage, r in right.items()
        },
        "projections": [
            {**p, "duplicates": len(p["duplicates"])}  # groups of prototypes on one token
            for p in model.metadata["projections"]
        ],
        "last_epochs": {name: next(row for row in reversed(fitted.history) if row["phase"] == name)
                        for name in ("warm", "joint", "last_layer")},
        "warnings": [str(w.message) for w in caught],
    }  # fmt: skip
    write(args.out, receipt)
    receipt["logistic_regression"] = baseline(train, test, args.size)
    frozen, before = train_once(train, args.size, args.seed)
    settings = {**ProtoPNet.recipes["frozen"].encoder, "size": args.size}
    counts = score(frozen, before, test, token_cache(make_encoder(**settings), test, quiet=True))
    receipt["frozen"] = {s: {"right": counts[s], "accuracy": round(counts[s] / len(test), 4)} for s in STAGES}
    write(args.out, receipt)
    print({key: receipt[key] for key in ("trained", "frozen", "logistic_regression", "seconds")})


def write(path: Path, receipt: dict[str, object]) -> None:
    """Write the receipt as it stands."""
    path.write_text(json.dumps(receipt, indent=1, default=list) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
