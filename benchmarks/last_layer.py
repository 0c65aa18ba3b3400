"""How much quicker are the last-layer epochs after a projection than CaBRNet's?

Ours includes the one pass through the network that fills the cache of scores.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.measure import Candidate, Plan, Row, Seconds, in_turn
from benchmarks.pictures import BATCH, cases, method, model
from protolearn.core.method import Train
from protolearn.training.material import CachedScores, plain_outputs
from protolearn.training.steps import start_run
from protolearn.training.tensor_loop import tensor_epoch

TITLE = "Last-layer phase"


def run(plan: Plan) -> Iterator[Row]:
    """Time the phase."""
    size, count, epochs = (64, 2 * BATCH, 2) if plan.quick else (64, 400, 20)
    judged, device = model(size), torch.device("cpu")
    data = cases(count, size).with_transform(judged.encoder.preprocess)
    phase = Train("last_layer", epochs, {"head": 1e-4})

    def outputs() -> CachedScores:
        passed = plain_outputs(judged, data, None, device, batch_size=BATCH)
        return CachedScores(judged, (out for _, out in passed), 1)

    def ours() -> None:
        material, run = outputs(), start_run(judged, phase)
        for _ in range(epochs):
            tensor_epoch(judged, method(), phase, run, material, data.labels, seed=0, batch_size=BATCH, clip=None)
            run.epochs += 1

    calls: dict[str, Candidate] = {"ours": ours, "pass": outputs}
    if plan.peer is not None:
        peer = plan.peer

        def theirs() -> Seconds:
            return Seconds(peer.train(size=size, count=count, batch=BATCH, epochs=epochs)["last_layer"])

        calls["peer"] = theirs
    times = in_turn(calls, plan.rounds(3), warm=0)
    note = (
        f"resnet18, {count} pictures {size}x{size}, 100 prototypes, {epochs} epochs; ours with the pass for the cache"
    )
    if plan.peer is None:
        yield Row("CaBRNet's last-layer epochs", "ours", None, at_least=10.0, note=f"not measured: {plan.why_no_peer}")
    else:
        yield times.ratio(
            "ours", "peer", what="CaBRNet's last-layer epochs", against="ours", invert=True, at_least=10.0, note=note
        )
    yield times.ratio(
        "ours", "pass", what="last-layer phase", against="one pass that fills the cache of scores", note=note
    )
