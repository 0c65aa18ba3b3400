"""ProtoPNet's recipe "frozen" on birds and white blood cells, beside a logistic regression on the same features.

    python results/protopnet_frozen.py [--seeds 0 1 2]

Trains on the training parts by plain ``fit`` and reads each test part once a seed, at the end; writes
``protopnet_frozen.json``. How the recipe was chosen: ``select_frozen.py`` and ``protopnet_frozen.md``.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import ROOT, SETS, load, made, make_encoder, pooled, regression, wilson

from protolearn.core.heads import LinearEvidence
from protolearn.core.model import PrototypeModel
from protolearn.data.augment import Augment
from protolearn.data.cases import Cases
from protolearn.encoders.cache import TokenCache, token_cache
from protolearn.methods import get_method
from protolearn.training import record, schedule
from protolearn.training.fit import fit
from protolearn.training.material import plain_outputs

ProtoPNet = get_method("protopnet")
RECIPE = ProtoPNet.recipes["frozen"]
STAGES = ("before projection", "after projection", "after last layer")


def train_once(train: Cases, size: int, seed: int) -> tuple[PrototypeModel, torch.Tensor]:
    """Return the trained model, and its prototypes just before the last projection."""
    earlier: list[torch.Tensor] = []
    projected = schedule.project

    def watched(model: PrototypeModel, *args: Any, **how: Any) -> Any:
        earlier.append(model.bank.vectors.detach().clone())
        return projected(model, *args, **how)

    schedule.project = watched
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", record.TrainingWarning)
            fitted = fit(
                ProtoPNet(**RECIPE.method), train, encoder=make_encoder(**{**RECIPE.encoder, "size": size}),
                augment=Augment(**RECIPE.augment), seed=seed, device="cpu", quiet=True, **RECIPE.options,
            )  # fmt: skip
    finally:
        schedule.project = projected
    return fitted.model, earlier[-1]


@torch.no_grad()
def score(model: PrototypeModel, before: torch.Tensor, test: Cases, store: TokenCache) -> dict[str, int]:
    """Return how many test pictures are right at each stage; between projection and the end only the head moved."""

    def right() -> int:
        outputs = plain_outputs(model, test, store, torch.device("cpu"), batch_size=64)
        return int(np.sum(torch.cat([out.logits.argmax(1) for _, out in outputs]).numpy() == test.labels))

    found = {"after last layer": right()}
    model.head.load_state_dict(LinearEvidence.from_ownership(model.bank.ownership, own=1.0, other=-0.5).state_dict())
    found["after projection"] = right()
    model.bank.vectors.copy_(before)
    found["before projection"] = right()
    return {stage: found[stage] for stage in STAGES}


def summary(right: list[int], count: int) -> dict[str, Any]:
    """Return accuracies by seed, mean, spread, and the 95 % interval of the mean for this many pictures."""
    shares = np.array(right) / count
    return {
        "right": right,
        "accuracy": [round(float(share), 4) for share in shares],
        "mean": round(float(shares.mean()), 4),
        "sd": round(float(shares.std(ddof=1)), 4) if len(right) > 1 else None,
        "wilson": wilson(float(np.mean(right)), count),
    }


def baseline(train: Cases, test: Cases, size: int) -> dict[str, Any]:
    """Return what the logistic regression gets."""
    fitted = regression().fit(pooled(train, size), train.labels)
    right = int((fitted.predict(pooled(test, size)) == test.labels).sum())
    return {"right": right, "accuracy": round(right / len(test), 4), "wilson": wilson(right, len(test))}


def measure(name: str, size: int, seeds: list[int], sizes: tuple[int, ...]) -> Iterator[dict[str, Any]]:
    """Yield everything about one data set, anew after every seed."""
    train, test = load(name, "train"), load(name, "test").with_classes(load(name, "train").classes)
    entry: dict[str, Any] = {
        "data": {"train": train.counts(), "test": test.counts(), "train_digest": train.fingerprint(),
                 "test_digest": test.fingerprint()},
        "logistic_regression": {str(s): baseline(train, test, s) for s in sizes},
    }  # fmt: skip
    store = token_cache(make_encoder(**{**RECIPE.encoder, "size": size}), test, quiet=True, batch_size=16)
    counts: dict[str, list[int]] = {stage: [] for stage in STAGES}
    seconds = []
    for seed in seeds:
        start = time.perf_counter()
        model, before = train_once(train, size, seed)
        seconds.append(round(time.perf_counter() - start))
        for stage, right in score(model, before, test, store).items():
            counts[stage].append(right)
        print(
            name, "seed", seed, {s: f"{c[-1]}/{len(test)}" for s, c in counts.items()}, f"{seconds[-1]} s", flush=True
        )
        entry["protopnet"] = {stage: summary(right, len(test)) for stage, right in counts.items()}
        entry["seconds_of_training"] = seconds
        yield entry


def main() -> None:
    """Measure both sets and write the receipt."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=ROOT / "protopnet_frozen.json")
    args = parser.parse_args()
    size = int(RECIPE.encoder["size"])
    receipt = made("python results/protopnet_frozen.py --seeds " + " ".join(map(str, args.seeds)))
    receipt |= {"seeds": args.seeds, "recipe": dataclasses.asdict(RECIPE), "sets": {}}
    for name in SETS:
        for entry in measure(name, size, args.seeds, tuple(dict.fromkeys((size, 224)))):
            receipt["sets"][name] = entry
            args.out.write_text(json.dumps(receipt, indent=1, default=list) + "\n", encoding="utf-8")
    print(table(receipt["sets"], size))


def table(sets: dict[str, Any], size: int) -> str:
    """Return the results as a table in Markdown; means over the seeds, plus or minus their standard deviation."""
    lines = [f"| data | {' | '.join(STAGES)} | LR {size} px | LR 224 px | gap to LR {size} | gap to LR 224 |"]
    lines += ["|---|" + "---|" * (lines[0].count("|") - 2)]
    for name, entry in sets.items():
        ours = [f"{e['mean']:.3f} ± {e['sd'] or 0:.3f}" for e in entry["protopnet"].values()]
        final, yard = entry["protopnet"][STAGES[-1]]["mean"], entry["logistic_regression"]
        same, reference = yard[str(size)]["accuracy"], yard["224"]["accuracy"]
        gaps = f"{100 * (final - same):+.1f} | {100 * (final - reference):+.1f}"
        lines.append(f"| {name} | {' | '.join(ours)} | {same:.3f} | {reference:.3f} | {gaps} |")
    return "\n".join(lines)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
