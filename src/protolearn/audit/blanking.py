"""Pictures in which places are blanked out, and what a model makes of them, many at a time.

B pictures, R orders of their pixels, T steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from protolearn.errors import UsageError

SUBSTRATES = ("zero", "blur")
"""What a pixel that is taken out becomes: 0 in the input's own units, or the same place of the blurred picture."""

MOST, NUMBERS = 64, 2**20
"""Altered pictures in one call of a model: at most, and the numbers that they may hold on a processor."""


def substrate(inputs: Tensor, kind: str) -> Tensor:
    """Return what is left of pictures ``(B, C, H, W)`` from which everything is taken out, of that shape.

    Parameters
    ----------
    inputs : Tensor
        As the encoder takes them.
    kind : {"zero", "blur"}
        ``zero`` is the mean colour where pictures are centred; the edges it makes are seen too. ``blur`` is a Gaussian
        blur with a standard deviation of 10 pixels for a side of 224, in proportion for others: no edges, but large
        shapes stay.

    Examples
    --------
    >>> substrate(torch.ones(1, 3, 8, 8), "zero").abs().max().item()
    0.0
    """
    if inputs.ndim != 4:
        raise UsageError(f"pixels are taken out of pictures (B, C, H, W), got inputs {tuple(inputs.shape)}")
    if kind == "zero":
        return torch.zeros_like(inputs)
    if kind != "blur":
        raise UsageError(f"a substrate is one of {', '.join(SUBSTRATES)}, got {kind!r}")
    from torchvision.transforms.functional import gaussian_blur

    sides = int(inputs.shape[3]), int(inputs.shape[2])  # width first, as torchvision has it
    spread = [10 * side / 224 for side in sides]
    reach = [min(math.ceil(3 * each), side - 1) for each, side in zip(spread, sides, strict=True)]
    # one side after the other: the same blur in far fewer steps
    wide: Tensor = gaussian_blur(inputs, [2 * reach[0] + 1, 1], spread)
    blurred: Tensor = gaussian_blur(wide, [1, 2 * reach[1] + 1], spread)
    return blurred


def per_call(inputs: Tensor, at_once: int | None) -> int:
    """Return how many altered pictures a model is shown in one call.

    As many as asked for; by default 64, and on a processor as few as hold a million numbers: 6 of 224 x 224 pixels.
    With more, the maps of a network's first layers leave the cache, and each picture takes twice as long.

    Examples
    --------
    >>> per_call(torch.zeros(1, 3, 224, 224), None), per_call(torch.zeros(1, 3, 16, 16), None)
    (6, 64)
    """
    if at_once is None:
        most = NUMBERS // max(1, inputs[0].numel()) if len(inputs) and inputs.device.type == "cpu" else MOST
        return max(1, min(MOST, most))
    if at_once < 1:
        raise UsageError(f"at_once must be at least 1, got {at_once}")
    return at_once


def covered(inputs: Tensor, blank: Tensor, boxes: Tensor) -> Tensor:
    """Return pictures ``(n, C, H, W)`` that show ``blank`` in a box each: ``(n, 4)`` y0, y1, x0, x1, ends exclusive.

    Examples
    --------
    >>> covered(torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), torch.tensor([[0, 1, 0, 2]])).tolist()
    [[[[0.0, 0.0], [1.0, 1.0]]]]
    """
    rows, columns = (torch.arange(side, device=inputs.device) for side in inputs.shape[2:])
    y0, y1, x0, x1 = boxes.unsqueeze(2).unbind(1)
    tall, wide = (rows >= y0) & (rows < y1), (columns >= x0) & (columns < x1)
    return torch.where((tall.unsqueeze(2) & wide.unsqueeze(1)).unsqueeze(1), blank, inputs)


@torch.no_grad()
def exchanged(
    score: Callable[[Tensor], Tensor],
    start: Tensor,
    end: Tensor,
    ranks: Tensor,
    counts: Tensor,
    targets: Tensor,
    *,
    at_once: int | None = None,
) -> Tensor:
    """Return ``(B, R, T)``: a class's score while ``start`` turns into ``end``, pixel by pixel in the order of ranks.

    A picture that has not changed yet and one that has wholly changed are scored once for all orders.

    Parameters
    ----------
    score : callable
        From inputs ``(n, C, H, W)`` to scores ``(n, classes)``.
    start, end : Tensor
        ``(B, C, H, W)``; not changed.
    ranks : Tensor
        ``(B, R, H, W)`` int64, 0 for what is exchanged first.
    counts : Tensor
        ``(T,)`` int64 rising: pixels whose rank is below a count come from ``end``.
    targets : Tensor
        ``(B,)`` int64 classes.
    at_once : int, optional
        Pictures in one call of ``score``; as :func:`per_call` by default.
    """
    at_once = per_call(start, at_once)
    batch, orders = ranks.shape[:2]
    if not len(ranks) or not len(counts):
        return start.new_zeros(batch, orders, len(counts))
    least, most = ranks.flatten(2).amin(2), ranks.flatten(2).amax(2)
    counts = counts.to(ranks.device)
    # where nothing or everything is exchanged, the first order stands for the others
    alike = (counts <= least.unsqueeze(2)) | (counts > most.unsqueeze(2))
    needed = ~(alike & alike[:, :1]) | (torch.arange(orders, device=ranks.device) == 0).view(-1, 1)
    jobs = needed.nonzero().T
    made = []
    for part in jobs.split(at_once, 1):
        which, order, step = part
        there = (ranks[which, order] < counts[step, None, None]).unsqueeze(1)
        found = score(torch.where(there, end[which], start[which]))
        made.append(found.gather(1, targets[which].unsqueeze(1)).squeeze(1))
    scores = torch.cat(made)
    curves = scores.new_zeros(batch, orders, len(counts))
    curves[tuple(jobs)] = scores
    return torch.where(needed, curves, curves[:, :1])
