"""What a module deep inside a network puts out, and how that is taken out of it: with its gradient where asked.

Nothing of the network changes: parameters get no gradient, hooks are gone afterwards, and a layer that works in place
on what was tapped works on a copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from protolearn.errors import UsageError, look_up, nearest_names
from protolearn.structures import Tokens

POOLINGS = ("sum", "mean", "first")
"""How a map or a row of tokens becomes one number a neuron; "first" is the class token of a transformer."""


@dataclass(frozen=True, eq=False)
class Tapped:
    """The output of one module.

    Attributes
    ----------
    values : Tensor
        ``(B, N)``, a map ``(B, N, H, W)`` or tokens ``(B, S, N)``; part of the graph where gradients were asked for.
    mask : Tensor or None
        ``(B, S)`` bool, True where a token is real.
    """

    values: Tensor
    mask: Tensor | None = None


def module_at(network: nn.Module, path: str) -> nn.Module:
    """Return the module of this dotted name.

    Raises
    ------
    UsageError
        If there is none; the nearest names are suggested.

    Examples
    --------
    >>> module_at(nn.Sequential(nn.Linear(2, 3), nn.ReLU()), "1")
    ReLU()
    """
    found = dict(network.named_modules())
    if not path or path not in found:
        raise UsageError(f"the network has no module {path!r}: {nearest_names(path, [name for name in found if name])}")
    module: nn.Module = found[path]
    return module


@contextmanager
def tapping(network: nn.Module, paths: Sequence[str], *, gradients: bool = False) -> Iterator[dict[str, Tapped]]:
    """Note what the modules of these names put out in the one forward pass made inside the block.

    Parameters
    ----------
    network : Module
        Whose modules.
    paths : sequence of str
        Dotted names.
    gradients : bool
        Record the pass from the first of these modules on, so that ``torch.autograd.grad`` can ask about their outputs.
        Parameters take no part: what stands before costs no memory.

    Raises
    ------
    UsageError
        If a module does not exist, puts out neither a tensor nor tokens, or runs twice in one pass.

    Examples
    --------
    >>> network = nn.Sequential(nn.Linear(2, 3), nn.ReLU(inplace=True))
    >>> with tapping(network, ["0"], gradients=True) as seen:
    ...     total = network(torch.ones(1, 2)).sum()
    >>> torch.autograd.grad(total, seen["0"].values)[0].shape, network[0].weight.grad
    (torch.Size([1, 3]), None)
    """
    modules = {path: module_at(network, path) for path in paths}
    seen: dict[str, Tapped] = {}
    held = [each.register_forward_hook(_noting(path, seen, gradients)) for path, each in modules.items()]
    trained = [each for each in network.parameters() if gradients and each.requires_grad]
    try:
        for each in trained:
            each.requires_grad_(False)
        with torch.set_grad_enabled(gradients or torch.is_grad_enabled()):
            yield seen
    finally:
        for hook in held:
            hook.remove()
        for each in trained:
            each.requires_grad_(True)


def _noting(path: str, seen: dict[str, Tapped], gradients: bool) -> Callable[..., Any]:
    def note(module: nn.Module, given: Any, output: Any) -> Any:
        if path in seen:
            raise UsageError(f"the module {path!r} runs more than once in a pass: name one that runs once")
        if isinstance(output, Tokens):
            values, onward = _noted(output.values, gradients)
            seen[path] = Tapped(values, output.mask)
            return output.replace(values=onward)
        first = output[0] if isinstance(output, tuple) and output else output
        if not isinstance(first, Tensor):
            raise UsageError(f"the module {path!r} puts out {type(first).__name__}, neither a tensor nor tokens")
        values, onward = _noted(first, gradients)
        seen[path] = Tapped(values)
        return (onward, *output[1:]) if isinstance(output, tuple) else onward

    return note


def _noted(values: Tensor, gradients: bool) -> tuple[Tensor, Tensor]:
    """Return what is kept, and what goes on: a copy, so that nothing later overwrites what is kept."""
    if gradients and not values.requires_grad:
        values = values.detach().requires_grad_()
    return values, values.clone()


def pool(values: Tensor, how: str, mask: Tensor | None = None) -> Tensor:
    """Return ``(B, N)``: one number a neuron of a vector, a map ``(B, N, H, W)`` or tokens ``(B, S, N)``.

    Parameters
    ----------
    values : Tensor
        What a module put out, or its gradient.
    how : {"sum", "mean", "first"}
        Over the places.
    mask : Tensor, optional
        ``(B, S)`` bool; padding counts as 0, and not among the places.

    Examples
    --------
    >>> pool(torch.tensor([[[1.0], [3.0]]]), "sum").item(), pool(torch.ones(1, 2, 3, 3), "mean").tolist()
    (4.0, [[1.0, 1.0]])
    """
    look_up("pooling", how, dict.fromkeys(POOLINGS))
    if values.ndim == 2:
        return values
    if values.ndim == 4:
        values = values.flatten(2).transpose(1, 2)
    if values.ndim != 3:
        raise UsageError(f"a layer is pooled as (B, N), (B, N, H, W) or (B, S, N), got {tuple(values.shape)}")
    if how == "first":
        return values[:, 0]
    if mask is not None:
        values = values.masked_fill(~mask.unsqueeze(-1), 0.0)
    total = values.sum(1)
    if how == "sum":
        return total
    return total / (values.shape[1] if mask is None else mask.sum(1, keepdim=True).clamp_min(1))
