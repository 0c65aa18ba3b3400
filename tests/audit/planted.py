"""Models whose prototypes fire where they are told: what a metric must say of them is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from protolearn.audit.look import Look
from protolearn.audit.marks import Marks
from protolearn.audit.metric import Seen, Setting
from protolearn.audit.subject import AdaptedSubject


class Planted(nn.Module):
    """Maps ``(B, P, h, w)`` read off the first pixels of the input by a function; linear scores over their maxima."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.float())
        self.bias = nn.Parameter(torch.zeros(len(weight)) if bias is None else bias.float())
        self.register_buffer("count", torch.zeros(1))  # a buffer, so that a change of it would show


def planted(
    maps: Callable[[Tensor], Tensor],
    ownership: Tensor,
    weight: Tensor | None = None,
    **more: Any,
) -> AdaptedSubject:
    """Return a subject whose similarity maps are a function of the inputs, pooled by the maximum."""
    net = Planted(ownership.T.float() if weight is None else weight)

    def look(inputs: Tensor) -> Look:
        table = maps(inputs)
        scores = table.flatten(2).amax(2)
        logits = scores @ net.weight.T + net.bias
        return Look(logits, logits.softmax(1), scores, table, lambda part: scores[part, None] * net.weight)

    classes = [f"class {c}" for c in range(ownership.shape[1])]
    return AdaptedSubject(
        net, look, classes=classes, ownership=ownership, weights=net.weight.detach(), offset=net.bias.detach(), **more
    )


def spots(rows: Tensor, columns: Tensor, side: int = 7) -> Tensor:
    """Return maps ``(B, P, side, side)`` that are 1 at one cell each, ``rows`` and ``columns`` ``(B, P)``."""
    table = torch.zeros(*rows.shape, side, side)
    b, p = torch.meshgrid(*(torch.arange(n) for n in rows.shape), indexing="ij")
    table[b, p, rows, columns] = 1.0
    return table


def setting(subject: AdaptedSubject, parts: tuple[str, ...] = (), count: int = 0, **more: Any) -> Setting:
    """Return what a metric is started with."""
    counts = more.pop("counts", {"cases": count})
    return Setting(subject, counts, parts, torch.Generator().manual_seed(0), **more)


def seen(subject: AdaptedSubject, inputs: Tensor, labels: Tensor, marks: Marks, noisy: tuple[Tensor, ...] = ()) -> Seen:
    """Return a batch as a metric sees it."""
    with subject.looking():
        look = subject.look(inputs)
        shaken = tuple(subject.look(each) for each in noisy)
    return Seen("cases", torch.arange(len(inputs)), inputs, labels, look, marks, shaken)
