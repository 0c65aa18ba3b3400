"""StableAdamW: AdamW while gradients are steady, smaller steps when one jumps."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from protolearn.training.stable_adamw import StableAdamW


def steps(kind: type[torch.optim.Optimizer], gradients: list[float], **settings: object) -> torch.Tensor:
    weight = nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = kind([weight], lr=0.01, **settings)  # type: ignore[call-arg]
    for size in gradients:
        weight.grad = torch.tensor([size, -size])
        optimizer.step()
    return weight.detach()


@pytest.mark.parametrize("amsgrad", [False, True])
def test_it_is_adamw_while_gradients_never_exceed_their_history(amsgrad: bool) -> None:
    gradients = [1.0, 0.9, 0.8, 0.5, 0.4]
    ours = steps(StableAdamW, gradients, weight_decay=0.1, amsgrad=amsgrad)
    theirs = steps(torch.optim.AdamW, gradients, weight_decay=0.1, amsgrad=amsgrad)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_a_sudden_gradient_moves_less_than_with_adamw() -> None:
    gradients = [0.01] * 50
    moved = [
        float((steps(kind, [*gradients, 10.0]) - steps(kind, gradients)).abs().max())
        for kind in (StableAdamW, torch.optim.AdamW)
    ]
    assert moved[0] < 0.2 * moved[1]


def test_a_parameter_without_gradient_stays_and_settings_are_checked() -> None:
    still, moved = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    optimizer = StableAdamW([still, moved], lr=0.1)
    moved.grad = torch.zeros(1)
    optimizer.step()
    assert float(still.detach()) == 1.0
    assert bool(moved.isfinite())
    with pytest.raises(ValueError, match="betas"):
        StableAdamW([still], betas=(1.0, 0.9))
