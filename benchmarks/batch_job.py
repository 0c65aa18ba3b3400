"""Can ten thousand pictures be explained as a batch job, at the pace of the forward pass and in bounded memory?"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

from benchmarks.measure import Plan, Row, in_turn
from benchmarks.memory import extra_megabytes
from benchmarks.pictures import cases, model
from protolearn.explain import write_explanations

TITLE = "Ten thousand pictures explained"
SIZE = 64


def run(plan: Plan) -> Iterator[Row]:
    """Explain shares of the pictures in turn with bare passes over the same share."""
    total, part = (128, 128) if plan.quick else (10_000, 1000)
    judged = model(SIZE)
    data = cases(total, SIZE)
    seen = data.with_transform(judged.encoder.preprocess)
    turns = {"explain": iter(()), "forward": iter(())}

    def share(name: str) -> list[int]:
        start = next(turns[name], None)
        if start is None:
            turns[name] = iter(range(part, total, part))
            start = 0
        return list(range(start, start + part))

    def explain() -> None:
        with tempfile.TemporaryDirectory() as folder:
            write_explanations(judged, data, Path(folder) / "all.jsonl", share("explain"), quiet=True)

    @torch.no_grad()
    def forward() -> None:
        for batch in DataLoader(seen.subset(share("forward")), 64):
            judged(batch.inputs)

    times = in_turn({"explain": explain, "forward": forward}, total // part, warm=0)
    rate = part / float(np.median(times.seconds["explain"]))
    yield times.ratio(
        "explain",
        "forward",
        what="explanations written",
        against="forward pass, same pictures",
        at_most=2.0,
        note=f"resnet18, {total} pictures {SIZE}x{SIZE}, ten rows each; {rate:.0f} pictures a second",
    )
    few, many = (64, 128) if plan.quick else (1000, 10_000)
    small = extra_megabytes("benchmarks.batch_job:case", count=few)
    large = extra_megabytes("benchmarks.batch_job:case", count=many)
    yield Row(
        "explanations written",
        f"extra memory for {many} pictures over {few}",
        large - small,
        at_most=50.0,
        unit="MB",
        note=f"the job itself: {small:.0f} MB for {few}",
    )


def case(count: int) -> tuple[Callable[[], object], Callable[[], object]]:
    """Return what :mod:`benchmarks.memory` runs."""
    judged, data = model(SIZE), cases(count, SIZE)

    def job(most: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            write_explanations(judged, data, Path(folder) / "all.jsonl", range(most), quiet=True)

    return lambda: job(8), lambda: job(count)
