"""The contrast of a batch that processes share unevenly: its value, and the gradient of a layer averaged over them."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import distributed as dist
from torch.nn import functional as F

from protolearn.core.together import shared_batch, summed, together
from protolearn.objectives.contrastive import group_contrast
from protolearn.training import distributed


def main(out: str) -> None:
    draw = torch.Generator().manual_seed(0)
    inputs, groups = torch.randn(13, 6, generator=draw, dtype=torch.float64), torch.arange(13) % 4
    layer = torch.nn.Linear(6, 3, dtype=torch.float64)
    with torch.no_grad():
        for values in layer.parameters():
            values.copy_(torch.randn(values.shape, generator=draw, dtype=torch.float64))
    with distributed.processes(torch.device("cpu")):
        rank, size = distributed.rank(), distributed.size()
        mine = torch.arange(13)[rank::size] if rank < 2 else torch.arange(1)  # a third one has nothing of its own
        mine = torch.arange(13)[rank::2] if size == 3 and rank < 2 else mine
        with shared_batch(counts=rank < 2):
            every, own = together(F.normalize(layer(inputs[mine]), dim=1))
            named, _ = together(groups[mine], -1)
            loss = summed(group_contrast(every, named, 0.1, anchors=own))
        loss.backward()
        found = {"loss": loss.detach()}
        for name, values in layer.named_parameters():
            assert values.grad is not None
            if size > 1:
                dist.all_reduce(values.grad)
            found[name] = values.grad / size
        if rank == 0:
            save_file(found, Path(out))


if __name__ == "__main__":
    main(*sys.argv[1:])
