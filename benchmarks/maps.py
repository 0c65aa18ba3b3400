"""What do all maps of one picture cost, beside the forward pass they come from and beside CaBRNet's?"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.measure import Candidate, Plan, Row, Seconds, in_turn
from benchmarks.pictures import model
from protolearn.explain.regions import percentile_boxes, upsample

TITLE = "All maps of one picture"


def run(plan: Plan) -> Iterator[Row]:
    """Time two sizes of pictures."""
    for size in (64,) if plan.quick else (64, 224):
        judged = model(size)
        picture = torch.rand(1, 3, size, size)

        def maps(boxes: bool = False) -> None:
            tokens = judged.embed(judged.encode(picture))  # noqa: B023  called before the next turn
            assert tokens.grid is not None
            large = upsample(judged.maps(tokens), tokens.grid, (size, size))  # noqa: B023
            if boxes:
                percentile_boxes(large)

        calls: dict[str, Candidate] = {
            "forward": lambda: judged(picture),  # noqa: B023
            "maps": maps,
            "boxes": lambda: maps(True),
        }
        if plan.peer is not None:
            peer, ten = plan.peer, 2 if plan.quick else 10
            calls["peer"] = lambda: Seconds(peer.maps(size=size, prototypes=ten))  # noqa: B023
        with torch.no_grad():
            times = in_turn(calls, plan.rounds(15), warm=2)
        note = f"resnet18, one picture {size}x{size}, 100 prototypes; the pass included"
        yield times.ratio("maps", "forward", what="100 maps, enlarged", against="forward pass", at_most=2.0, note=note)
        yield times.ratio(
            "boxes",
            "forward",
            what="100 maps, enlarged, and their boxes",
            against="forward pass",
            at_most=2.0,
            note="the same",
        )
        if plan.peer is None:
            yield Row(
                "CaBRNet's ten maps", "our hundred", None, at_least=10.0, note=f"not measured: {plan.why_no_peer}"
            )
        else:
            yield times.ratio(
                "maps",
                "peer",
                what="CaBRNet's ten maps",
                against="our hundred",
                invert=True,
                at_least=10.0,
                note=f"{size}x{size}; its upsampling, the fastest of its five",
            )
