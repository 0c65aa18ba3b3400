"""AdamW whose step shrinks where a gradient is larger than its running variance says."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


class StableAdamW(torch.optim.Optimizer):
    """AdamW with update clipping.

    For each tensor the rate is divided by ``max(1, r)``, ``r`` the root of the mean over its entries of
    ``g^2 / max(v, eps^2)``, with ``g`` the gradient and ``v`` the running second moment that already holds it. Weight
    decay is decoupled and shrinks with the rate. With ``amsgrad`` the largest second moment so far divides the step.

    Source: Stable and low-precision training for large-scale vision-language models (Wortsman et al., 2023),
    Algorithm 2, with AdamW's usual correction of the start in place of its changed decay rates.

    Parameters
    ----------
    params : iterable of Parameter
        What to train.
    lr, betas, eps, weight_decay, amsgrad
        As in :class:`torch.optim.AdamW`.

    Examples
    --------
    >>> weight = nn.Parameter(torch.ones(2))
    >>> optimizer = StableAdamW([weight], lr=0.1, weight_decay=0.0)
    >>> weight.grad = torch.ones(2)
    >>> optimizer.step()
    >>> weight.detach()
    tensor([0.9000, 0.9000])
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        amsgrad: bool = False,
    ) -> None:
        if not lr >= 0 or not eps >= 0 or not weight_decay >= 0 or not all(0 <= b < 1 for b in betas):
            raise ValueError(f"rates must not be negative and betas lie in [0, 1): {lr=}, {betas=}, {eps=}")
        settings = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "amsgrad": amsgrad}
        super().__init__(params, settings)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Move every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, parameter.grad, self.state[parameter], group)
        return loss

    def _move(self, parameter: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        if not state:
            state["step"] = 0
            state["first"], state["second"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
            if group["amsgrad"]:
                state["largest"] = torch.zeros_like(parameter)
        state["step"] += 1
        one, two = group["betas"]
        first = state["first"].lerp_(gradient, 1 - one)
        second = state["second"].mul_(two).addcmul_(gradient, gradient, value=1 - two)
        early = 1 - two ** state["step"]
        ratio = gradient.square().div_((second / early).clamp_min(group["eps"] ** 2)).mean().sqrt()
        rate = group["lr"] / ratio.clamp_min(1.0)
        if group["amsgrad"]:
            second = torch.maximum(state["largest"], second, out=state["largest"])
        below = (second / early).sqrt_().add_(group["eps"])
        parameter.mul_(1 - rate * group["weight_decay"])
        parameter.sub_(rate * (first / (1 - one ** state["step"])) / below)
