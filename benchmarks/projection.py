"""Does projection cost more than one forward pass over the training set?"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader

from benchmarks.measure import Plan, Row, in_turn
from benchmarks.pictures import BATCH, cases, model
from protolearn.training.project import project

TITLE = "Projection"


def run(plan: Plan) -> Iterator[Row]:
    """Time the pass, with sources and fingerprint, against the bare pass."""
    sizes = [(2 * BATCH, 64)] if plan.quick else [(400, 64), (120, 224)]
    for count, size in sizes:
        judged = model(size)
        data = cases(count, size).with_transform(judged.encoder.preprocess)

        @torch.no_grad()
        def forward() -> None:
            for batch in DataLoader(data, BATCH):  # noqa: B023  called before the next turn
                judged(batch.inputs)  # noqa: B023

        def ours() -> None:
            project(judged, data, batch_size=BATCH)  # noqa: B023

        times = in_turn({"ours": ours, "forward": forward}, plan.rounds(11))
        yield times.ratio(
            "ours",
            "forward",
            what="projection with sources",
            against="forward pass, same loader and model",
            at_most=1.1,
            note=f"resnet18, {count} pictures {size}x{size}, 100 prototypes",
        )
