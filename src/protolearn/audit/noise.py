"""Small noise on inputs, to ask whether an explanation stays what it was."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from protolearn.errors import UsageError


def disturb(inputs: Tensor, *, std: float = 0.2, limit: float = 0.25, generator: torch.Generator) -> Tensor:
    """Return inputs plus clipped Gaussian noise, in the encoder's own (normalised) units.

    Source: EvalProtoPNet's stability, with its defaults: noise after normalisation, about 0.045 of a pixel's range.

    Examples
    --------
    >>> disturb(torch.zeros(2, 3), std=0.0, generator=torch.Generator()).abs().max().item()
    0.0
    """
    if std < 0 or limit < 0:
        raise UsageError(f"std and limit must be at least 0, got {std} and {limit}")
    noise = torch.randn(inputs.shape, generator=generator, dtype=inputs.dtype).to(inputs.device) * std
    return inputs + noise.clamp(-limit, limit)


def disturb_each(inputs: Tensor, seeds: Sequence[int], *, std: float = 0.2, limit: float = 0.25) -> Tensor:
    """Return inputs plus noise, each input's from a seed of its own: who is in the batch beside it changes nothing.

    Examples
    --------
    >>> batch = torch.zeros(3, 4)
    >>> torch.equal(disturb_each(batch, [5, 6, 7])[1:], disturb_each(batch[1:], [6, 7]))
    True
    """
    draws = [torch.Generator().manual_seed(seed) for seed in seeds]
    shaken = [disturb(one, std=std, limit=limit, generator=draw) for one, draw in zip(inputs, draws, strict=True)]
    return torch.stack(shaken) if shaken else inputs
