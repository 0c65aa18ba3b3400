"""What the processes of one training must know of each other's part of a batch, with gradients.

A term that compares the cases of a batch with each other is not the mean of what each process finds in its own part.
Inside :func:`shared_batch`, which the training loop opens where processes share a batch, :func:`together` gives the
rows of all of them and :func:`summed` adds up what each one found; elsewhere both change nothing.

The gradient of a value that every process computes alike, averaged over processes as distributed training does, is then
the gradient on one process.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

_COUNTS: ContextVar[bool | None] = ContextVar("counts", default=None)
"""None: a batch of its own. Else whether this process's part of a shared one counts."""


@contextmanager
def shared_batch(counts: bool = True) -> Iterator[None]:
    """Say that every process now has its own part of one batch.

    Parameters
    ----------
    counts : bool
        False where a batch has fewer cases than there are processes and this one got a case only to have one.
    """
    before = _COUNTS.set(counts)
    try:
        yield
    finally:
        _COUNTS.reset(before)


def is_shared() -> bool:
    """Return whether a batch is shared by several processes."""
    return _COUNTS.get() is not None and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def together(rows: Tensor, fill: float = 0.0) -> tuple[Tensor, Tensor]:
    """Return the rows of all processes, and which of them are this one's.

    Parameters
    ----------
    rows : Tensor
        ``(B, ...)``; the processes may have different B.
    fill : float
        What stands in rows that are nobody's: processes with fewer rows are filled up.

    Returns
    -------
    every : Tensor
        ``(N, ...)``, one process after the other. Its gradient comes back to ``rows`` summed over processes.
    mine : Tensor
        ``(N,)`` bool.

    Examples
    --------
    >>> every, mine = together(torch.tensor([1.0, 2.0]))
    >>> every, mine
    (tensor([1., 2.]), tensor([True, True]))
    """
    if not is_shared():
        return rows, torch.ones(len(rows), dtype=torch.bool, device=rows.device)
    if not _COUNTS.get():
        # nobody's, but on the graph: every process must take part in the exchange of gradients
        rows = rows.masked_fill(torch.ones_like(rows, dtype=torch.bool), fill)
    most = torch.tensor(len(rows), device=rows.device)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    padding = rows.new_full((int(most) - len(rows), *rows.shape[1:]), fill)
    every: Tensor = _Gather.apply(torch.cat([rows, padding]))
    start = int(most) * dist.get_rank()
    places = torch.arange(len(every), device=rows.device)
    return every, (places >= start) & (places < start + len(rows))


def summed(value: Tensor) -> Tensor:
    """Return the sum over processes of what each found in its own part.

    Examples
    --------
    >>> summed(torch.tensor(3.0))
    tensor(3.)
    """
    if not is_shared():
        return value
    total: Tensor = _Sum.apply(value)
    return total


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        whole = gradients[0].contiguous().clone()
        dist.all_reduce(whole)
        own: Tensor = whole.chunk(dist.get_world_size())[dist.get_rank()]
        return own


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.detach().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        whole = gradients[0].contiguous().clone()
        dist.all_reduce(whole)
        return whole
