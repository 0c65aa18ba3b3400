"""Rows moved to the mean of their nearest neighbours, all at once: those that lie alone move far.

Source: mean-shift outlier detection (Yang, Rahardja, Fränti, 2018), as it is known. Not verified against its text.
"""

from __future__ import annotations

import torch
from torch import Tensor

from protolearn.core.measures import squared_l2
from protolearn.core.neighbours import nearest_rows


@torch.no_grad()
def mean_shift(values: Tensor, k: int, rounds: int) -> list[Tensor]:
    """Return the rows ``(N, D)`` before and after each round, ``rounds + 1`` of them.

    In a round every row becomes the mean of its k nearest others as they were before the round.

    Parameters
    ----------
    values : Tensor
        ``(N, D)``.
    k : int
        Neighbours, the row itself not among them; at most N - 1.
    rounds : int
        0 leaves the rows where they are.

    Examples
    --------
    >>> mean_shift(torch.tensor([[0.0], [1.0], [9.0]]), 1, 1)[-1].flatten().tolist()
    [1.0, 0.0, 1.0]
    """
    stages, itself = [values], torch.arange(len(values), device=values.device)
    for _ in range(rounds):
        now = stages[-1]
        found = nearest_rows(now, now, squared_l2, k, left_out=itself)[1]
        stages.append(now[found].mean(1))
    return stages


@torch.no_grad()
def shift_among(values: Tensor, stages: list[Tensor], k: int) -> Tensor:
    """Return new rows ``(B, D)`` moved as often as the rows of ``stages`` were, among those at each stage.

    Parameters
    ----------
    values : Tensor
        ``(B, D)``; new rows do not move each other.
    stages : list of Tensor
        What :func:`mean_shift` gave.
    k : int
        Neighbours among the rows of each stage; one that is equal to the new row counts like any other.

    Examples
    --------
    >>> stages = mean_shift(torch.tensor([[0.0], [1.0], [9.0]]), 1, 1)
    >>> shift_among(torch.tensor([[8.0]]), stages, 1)
    tensor([[9.]])
    """
    for stage in stages[:-1]:
        values = stage[nearest_rows(values, stage, squared_l2, k)[1]].mean(1)
    return values
