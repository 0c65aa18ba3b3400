"""Do tokens become pooled evidence (distance, pooling, similarity, position) at the cost of a matrix product?"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn.functional import conv2d, max_pool2d, relu

from benchmarks.measure import Plan, Row, in_turn
from benchmarks.memory import extra_megabytes
from protolearn.core.matching import best_match
from protolearn.core.measures import squared_l2
from protolearn.core.similarities import LogRatio

TITLE = "Tokens to pooled evidence"
SHAPES = {
    "small": (40, 4, 128, 100),
    "birds": (80, 49, 128, 2000),
    "transformer": (16, 196, 384, 500),
    "long": (1, 10_000, 512, 1000),
}
"""Batch, positions, width, prototypes: 10 classes of small pictures; CUB-200; patches of a ViT; one long input."""

Call = Callable[[], object]
similarity = LogRatio()


def ours(x: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """Return evidence and positions."""
    best, positions = best_match(x, p, squared_l2)
    return similarity(best), positions


def product(x: Tensor, p: Tensor) -> Tensor:
    """Return one matrix product of this size and one reduction: no distance, no similarity, no position."""
    return (x.flatten(0, 1) @ p.T).view(*x.shape[:2], -1).amax(1)


def cdist(x: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """Return evidence and positions by torch.cdist."""
    best, positions = torch.cdist(x, p).min(1)
    return similarity(best.square()), positions


def cdist_without_positions(x: Tensor, p: Tensor) -> Tensor:
    """Return the smallest distances only."""
    return torch.cdist(x, p).amin(1)


def convolution(x: Tensor, p: Tensor) -> Tensor:
    """Return evidence the usual way: |x|^2 and x.p as 1x1 convolutions over the map, maximum over the map."""
    maps = x.transpose(1, 2).unsqueeze(-1)  # (B, D, S, 1)
    kernel = p[:, :, None, None]
    squares = conv2d(maps.square(), torch.ones_like(kernel))
    distances = relu(squares - 2 * conv2d(maps, kernel) + p.square().sum(1).view(-1, 1, 1))
    best = -max_pool2d(-distances, distances.shape[2:]).flatten(1)
    return torch.log((best + 1) / (best + 1e-4))


def inputs(shape: tuple[int, int, int, int]) -> tuple[Tensor, Tensor]:
    """Return tokens and prototypes."""
    draw = torch.Generator().manual_seed(0)
    batch, steps, dim, count = shape
    return torch.rand(batch, steps, dim, generator=draw), torch.rand(count, dim, generator=draw)


def run(plan: Plan) -> Iterator[Row]:
    """Time every shape, then training direction, then memory."""
    shapes = {"small": (4, 4, 8, 10)} if plan.quick else SHAPES
    for name, shape in shapes.items():
        x, p = inputs(shape)
        ways = {
            "ours": ours,
            "product": product,
            "cdist": cdist,
            "bare cdist": cdist_without_positions,
            "convolution": convolution,
        }
        with torch.no_grad():
            times = in_turn({name: bound(way, x, p) for name, way in ways.items()}, plan.rounds(15), warm=3)
        note = f"{name}: {shape[0]} inputs, {shape[1]} positions, width {shape[2]}, {shape[3]} prototypes"
        yield times.ratio(
            "ours",
            "product",
            what="evidence and positions",
            against="matrix product and maximum",
            at_most=2.0,
            note=note,
        )
        yield times.ratio(
            "ours",
            "bare cdist",
            what="evidence and positions",
            against="torch.cdist and minimum",
            at_most=1.0,
            note=f"{name}; the minimum only: neither similarity nor position",
        )
        yield times.ratio(
            "ours",
            "cdist",
            what="evidence and positions",
            against="torch.cdist, doing the same",
            at_most=1.0,
            note=name,
        )
        yield times.ratio(
            "ours",
            "convolution",
            what="evidence and positions",
            against="the usual convolution form",
            at_most=1.0,
            note=f"{name}; without positions",
        )
    yield from training_direction(plan)
    sizes = [(1, 64, 8, 16)] if plan.quick else [(80, 49, 128, 2000), (1, 10_000, 512, 10_000), (2, 200_000, 128, 500)]
    for size in sizes:
        held = 4e-6 * (size[0] * size[1] * size[2] + size[3] * size[2])
        whole = 4e-6 * size[0] * size[1] * size[3]
        note = f"{' x '.join(map(str, size))}: inputs hold {held:.0f} MB, the whole table would hold {whole:.0f} MB"
        yield Row(
            "evidence and positions",
            "extra memory at the peak",
            extra_megabytes("benchmarks.matching:case", size=size),
            at_most=50.0,
            unit="MB",
            note=note,
        )


def training_direction(plan: Plan) -> Iterator[Row]:
    """Time forward and backward together."""
    shape = (4, 4, 8, 10) if plan.quick else SHAPES["birds"]
    x, p = (t.requires_grad_() for t in inputs(shape))

    def learn(way: Callable[[Tensor, Tensor], Tensor | tuple[Tensor, Tensor]]) -> Call:
        def call() -> None:
            found = way(x, p)
            (found[0] if isinstance(found, tuple) else found).sum().backward()

        return call

    times = in_turn(
        {"ours": learn(ours), "product": learn(product), "cdist": learn(cdist), "convolution": learn(convolution)},
        plan.rounds(9),
        warm=2,
    )
    for base, words in (
        ("product", "matrix product and maximum"),
        ("cdist", "torch.cdist, doing the same"),
        ("convolution", "the usual convolution form"),
    ):
        limit = {"at_most": 2.0} if base == "product" else {"at_most": 1.0}
        yield times.ratio(
            "ours",
            base,
            what="evidence, forward and backward",
            against=words,
            **limit,
            note="birds" if base == "product" else "the same",
        )


def bound(way: Callable[[Tensor, Tensor], object], x: Tensor, p: Tensor) -> Call:
    """Return a call without arguments."""
    return lambda: way(x, p)


def case(size: list[int]) -> tuple[Call, Call]:
    """Return what :mod:`benchmarks.memory` runs."""
    torch.set_grad_enabled(False)
    return bound(ours, *inputs((1, 8, size[2], 8))), bound(ours, *inputs(tuple(size)))  # type: ignore[arg-type]
