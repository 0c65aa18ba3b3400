"""Models that are known to look in certain places: one where its outlines are, one somewhere else altogether."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from protolearn.core.bank import PrototypeBank
from protolearn.core.encoder import Encoder
from protolearn.core.heads import LinearEvidence
from protolearn.core.measures import dot, squared_l2
from protolearn.core.model import PrototypeModel
from protolearn.core.similarities import LogRatio
from protolearn.structures import Tokens

CELL, GRID = 4, 4
SIDE = CELL * GRID


class Patches(Encoder):
    """Each token is the mean colour of one cell: its own, or (``turned``) the one point-reflected in the picture."""

    dim = 3
    preprocess = None

    def __init__(self, *, turned: bool = False, sees_all: bool = False, differentiable: bool = True) -> None:
        super().__init__()
        self.turned, self.sees_all, self.differentiable = turned, sees_all, differentiable
        self.gain = nn.Parameter(torch.ones(1))

    def forward(self, inputs: Tensor) -> Tokens:
        means = nn.functional.avg_pool2d(inputs, CELL) * self.gain
        if self.turned:
            means = means.flip(2, 3)
        if self.sees_all:
            means = means + 0.01 * inputs.mean((2, 3), keepdim=True)
        if not self.differentiable:
            means = means.detach().round(decimals=3)
        grid = (means.shape[2], means.shape[3])
        return Tokens(means.flatten(2).transpose(1, 2), grid=grid, input_size=(inputs.shape[2], inputs.shape[3]))

    def spec(self) -> dict[str, Any]:
        return {}


def sighted(*, linear: bool = False, encoder: Encoder | None = None, **how: bool) -> PrototypeModel:
    """Return a model with one prototype each for red, green and blue; by dot product it is linear at a fixed place."""
    ownership = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    bank = PrototypeBank(torch.eye(3), ownership)
    measure, more = (dot, {}) if linear else (squared_l2, {"similarity": LogRatio()})
    head = LinearEvidence.from_ownership(ownership)
    return PrototypeModel(Patches(**how) if encoder is None else encoder, nn.Identity(), bank, measure, head, **more)


def spotted(*cells: tuple[int, int], colour: int = 0, background: float = 0.1, seed: int = 0) -> Tensor:
    """Return one picture a cell, grey and slightly noisy, in which that cell has a colour."""
    draw = torch.Generator().manual_seed(seed)
    pictures = background + 0.02 * torch.rand(len(cells), 3, SIDE, SIDE, generator=draw)
    for b, (row, column) in enumerate(cells):
        pictures[b, colour, row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL] = 0.9
    return pictures


def state_of(model: nn.Module) -> tuple[Any, ...]:
    """Return all that an explanation must leave as it is: values, gradients, modes, hooks."""
    return (
        {name: value.clone() for name, value in model.state_dict().items() if isinstance(value, Tensor)},
        {name: (p.requires_grad, p.grad) for name, p in model.named_parameters()},
        {name: (m.training, len(m._forward_hooks), len(m._backward_hooks)) for name, m in model.named_modules()},
    )


def unchanged(before: tuple[Any, ...], after: tuple[Any, ...]) -> bool:
    """Say whether two states are the same to the bit."""
    same = before[1:] == after[1:] and before[0].keys() == after[0].keys()
    return same and all(torch.equal(value, after[0][name]) for name, value in before[0].items())
