"""Several processes (``torchrun``): who I am, and the few things processes must agree on."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch import distributed as dist

from protolearn.core.projection import Nearest
from protolearn.structures import Output, Tokens


def rank() -> int:
    """Return this process's number, 0 where there is only one."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@contextmanager
def processes(device: torch.device) -> Iterator[None]:
    """Join the processes that ``torchrun`` started, if it did; leave them at the end."""
    started = int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized()
    if started:
        if device.type == "cuda":
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        if started and dist.is_initialized():
            dist.destroy_process_group()


def barrier() -> None:
    """Wait for the others."""
    if size() > 1:
        dist.barrier()


def gather_nearest(mine: Nearest) -> list[Nearest]:
    """Return what every other process found."""
    if size() == 1:
        return []
    columns: dict[str, list[Tensor]] = {}
    for field in dataclasses.fields(mine):
        local = getattr(mine, field.name).contiguous()
        columns[field.name] = [torch.empty_like(local) for _ in range(size())]
        dist.all_gather(columns[field.name], local)
    return [Nearest(**{name: parts[r] for name, parts in columns.items()}) for r in range(size()) if r != rank()]


def gather_rows(local: Tensor, total: int) -> Tensor:
    """Return the rows of all processes where process ``r`` holds the rows ``r, r + size, r + 2 size ...``."""
    if size() == 1:
        return local
    longest = -(-total // size())
    padded = local.new_zeros(longest, *local.shape[1:])
    padded[: len(local)] = local
    parts = [torch.empty_like(padded) for _ in range(size())]
    dist.all_gather(parts, padded)
    return torch.stack(parts, 1).flatten(0, 1)[:total]


def gather_unequal(local: Tensor, fill: float = 0.0) -> Tensor:
    """Return the rows of all processes, one process after the other; those with fewer are filled up."""
    if size() == 1:
        return local
    count = torch.tensor(len(local), device=local.device)
    dist.all_reduce(count, dist.ReduceOp.MAX)
    padded = local.new_full((int(count), *local.shape[1:]), fill)
    padded[: len(local)] = local
    parts = [torch.empty_like(padded) for _ in range(size())]
    dist.all_gather(parts, padded)
    return torch.cat(parts)


@torch.no_grad()
def whole_batch(out: Output, labels: Tensor, counts: bool = True) -> tuple[Output, Tensor]:
    """Return what all processes made of a batch together, without gradients: rules must not see one shard of it.

    Only what there is per case and prototype or class, and tokens where there is one a case; other tokens and inputs
    stay where they are and are left out. Rows that fill a shorter shard up are labelled -1 and their tokens are 0; so
    are the tokens of a process whose rows do not count.
    """
    if size() == 1:
        return out, labels
    rows = ("distances", "similarities", "positions", "evidence", "logits", "average")
    found = {name: getattr(out, name) for name in rows}
    gathered = {name: None if value is None else gather_unequal(value.detach()) for name, value in found.items()}
    nothing = dict.fromkeys(("inputs", "encoded", "table", "reconstruction", "original"))
    tokens = out.tokens
    if tokens is not None and (tokens.values.shape[1] != 1 or tokens.mask is not None):
        tokens = None
    if tokens is not None:
        values = tokens.values.detach()
        tokens = Tokens(gather_unequal(values if counts else torch.zeros_like(values)))
    whole = out.replace(**gathered, **nothing, tokens=tokens, targets={}, branches={}, cases=())
    return whole, gather_unequal(labels, -1)


def sum_over_processes(values: Tensor) -> Tensor:
    """Return the sum over processes."""
    if size() > 1:
        dist.all_reduce(values)
    return values


def agree(module: nn.Module) -> None:
    """Give every process the weights of the first, so that loops that each one ran by itself cannot drift apart."""
    if size() > 1:
        for tensor in (*module.parameters(), *module.buffers()):
            dist.broadcast(tensor.detach(), 0)
