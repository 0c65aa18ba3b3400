"""What is asked of an input, as one number that gradients flow through: a prototype's similarity, or a class's logit.

A prototype's similarity is read either at a fixed place (where the unaltered input matched best) or wherever the
altered input matches best. The first asks "what made this place look like the prototype", the second also lets the
match move.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from protolearn.core.matching import all_matches
from protolearn.core.model import PrototypeModel
from protolearn.core.modes import evaluating
from protolearn.core.similarities import PerPrototype
from protolearn.errors import DataError, UsageError, look_up, nearest_names
from protolearn.explain.passes import device_of
from protolearn.structures import Tokens

PLACES = ("fixed", "free")
Prototype = int | Sequence[int] | Tensor
"""One prototype's id for all inputs, or one id for each."""
Class = int | str | Sequence[int | str]
"""One class (index or name) for all inputs, or one for each."""


class Asked(nn.Module):
    """From inputs to one number each, ``(B, ...) -> (B,)``; every input brings its own row and place.

    ``last`` is an identity that the encoder's map passes through as ``(B, D, h, w)``, so that methods which read a
    layer find it there whatever the encoder is.
    """

    def __init__(self, model: PrototypeModel, what: str, *, fixed: bool) -> None:
        super().__init__()
        self.model, self.what, self.fixed = model, what, fixed
        self.last = nn.Identity()

    def forward(self, inputs: Tensor, rows: Tensor, places: Tensor) -> Tensor:
        """Return the number asked for."""
        encoded = self._through_last(self.model.encode(inputs))
        if self.what == "similarity" and self.fixed:
            return similarity_at(self.model, self.model.embed(encoded), rows, places)
        output = self.model.run(encoded)
        table = output.similarities if self.what == "similarity" else output.logits
        return table.gather(1, rows.view(-1, 1)).squeeze(1)

    def _through_last(self, tokens: Tokens) -> Tokens:
        if tokens.grid is None or len(tokens.grid) != 2:
            return tokens
        values = tokens.values
        laid = self.last(values.transpose(1, 2).unflatten(2, tokens.grid))
        return tokens.replace(values=laid.flatten(2).transpose(1, 2))


def similarity_at(model: PrototypeModel, tokens: Tokens, rows: Tensor, places: Tensor) -> Tensor:
    """Return ``(B,)``: how similar one prototype is to one place of each input, differentiable in the tokens.

    Parameters
    ----------
    model : PrototypeModel
        Left as it is.
    tokens : Tokens
        Embedded, ``(B, S, D)``.
    rows, places : Tensor
        ``(B,)`` int64: row of the bank and position in the input.
    """
    each = torch.arange(len(rows), device=rows.device)
    if model.compare is None and model.across is None:
        vectors = model.bank.vectors
        own = vectors[each, rows] if model.bank.drawn else vectors[rows]
        near = model.measure.paired(tokens.values[each, places], own)
        similarity = model.similarity
        return similarity.of(rows)(near) if isinstance(similarity, PerPrototype) else similarity(near)
    if model.compare is None:  # prototypes compete at this place: all of them are needed there, and no other place
        here = tokens.values[each, places].unsqueeze(1)
        table, places = all_matches(here, model.bank.vectors, model.measure), torch.zeros_like(places)
    else:
        table = model.compare(tokens)
    table = model.similarity(table)
    if model.across is not None:
        table = model.across(table, model.bank.usable)
    return table[each, places, rows]


def rows_of(model: PrototypeModel, prototype: Prototype, count: int) -> Tensor:
    """Return ``(count,)`` rows of the bank for ids.

    Raises
    ------
    UsageError
        If there is no such prototype, it is out of use, or there are not as many as inputs.
    """
    ids = _one_each(prototype, count, "prototype")
    known = model.bank.ids.tolist()
    unknown = [key for key in ids if key not in known]
    if unknown:
        raise UsageError(f"no prototype has the id {unknown[0]!r}: {_some(known)}")
    rows = model.bank.rows(ids)
    out = ~model.bank.usable[rows]
    if bool(out.any()):
        raise UsageError(f"prototype {ids[int(out.nonzero()[0])]} is inactive or banned: it is similar to nothing")
    return rows


def classes_of(model: PrototypeModel, target: Class, count: int) -> Tensor:
    """Return ``(count,)`` indices of classes for names or indices.

    Raises
    ------
    UsageError
        If there is no such class, or there are not as many as inputs.
    """
    names = {name: index for index, name in enumerate(model.classes)}
    found = []
    for one in _one_each(target, count, "class"):
        index = look_up("class", one, names) if isinstance(one, str) else int(one)
        if not 0 <= index < len(names):
            raise UsageError(f"there is no class {index}: the model has the classes 0 to {len(names) - 1}")
        found.append(index)
    return torch.tensor(found, dtype=torch.long, device=device_of(model))


def _one_each(given: Any, count: int, kind: str) -> list[Any]:
    plain = given.tolist() if isinstance(given, Tensor) else given
    if isinstance(plain, int | str):
        return [plain] * count
    if len(plain) != count:
        raise UsageError(f"give one {kind} for all inputs or one for each of the {count}, got {len(plain)}")
    return list(plain)


def _some(known: Sequence[int]) -> str:
    return "the model has " + (", ".join(map(str, known[:12])) + (" ..." if len(known) > 12 else "") or "none")


def placed(place: str) -> bool:
    """Return whether a setting asks for the fixed place."""
    if place not in PLACES:
        raise UsageError(f"place is 'fixed' or 'free', got {place!r}: {nearest_names(place, PLACES)}")
    return place == "fixed"


def sound(inputs: Tensor, *, pictures: bool = True) -> Tensor:
    """Return inputs that gradients can be taken of.

    Raises
    ------
    UsageError
        If they are no pictures ``(B, C, H, W)`` where these are needed, or not floating point.
    DataError
        If one holds NaN or infinity.
    """
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
        raise UsageError("inputs are a floating-point tensor, as the encoder takes them")
    if pictures and inputs.ndim != 4:
        raise UsageError(f"pixels need pictures (B, C, H, W), got {tuple(inputs.shape)}")
    good = torch.isfinite(inputs).flatten(1).all(1) if len(inputs) else inputs.new_ones(0, dtype=torch.bool)
    if not bool(good.all()):
        raise DataError(f"input {int((~good).nonzero()[0])} of the batch holds NaN or infinity: check how it was read")
    return inputs.detach()


@contextmanager
def asking(model: PrototypeModel) -> Iterator[None]:
    """Evaluate with gradients and give every module its own mode back.

    No gradient is kept: ``.grad`` and ``requires_grad`` of parameters stay as they are.
    """
    with evaluating(model), torch.enable_grad():
        yield


def slopes(score: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    """Return the gradient of each input's own number with respect to that input, shaped like the inputs.

    Raises
    ------
    UsageError
        If the numbers do not depend on the inputs by anything that has a gradient.
    """
    leaf = inputs.detach().clone().requires_grad_(True)
    value = score(leaf)
    if not value.requires_grad:
        raise UsageError("this model gives no gradients of its inputs: its encoder is not differentiable")
    found: Tensor | None = torch.autograd.grad(value.sum(), leaf, allow_unused=True)[0]
    if found is None:
        raise UsageError("this model gives no gradients of its inputs: its encoder is not differentiable")
    return found


def noisy_slopes(
    score: Callable[[Tensor], Tensor], inputs: Tensor, draws: int, noise: float, generator: torch.Generator
) -> Tensor:
    """Return ``(B, H, W)``: the size of the gradient summed over channels, averaged over noisy copies of the inputs.

    Parameters
    ----------
    score : callable
        ``(B, C, H, W) -> (B,)``, in eval mode.
    inputs : Tensor
        ``(B, C, H, W)``.
    draws : int
        Copies.
    noise : float
        Standard deviation as a share of each input's range; without noise one gradient is enough, and is taken.
    generator : Generator
        Of the noise, on the CPU; every input gets the same noise, so that what it gets does not depend on the others.
    """
    spread = noise * (inputs.flatten(1).amax(1) - inputs.flatten(1).amin(1)).view(-1, 1, 1, 1)
    total = inputs.new_zeros(len(inputs), *inputs.shape[2:])
    draws = draws if noise > 0 else 1
    for _ in range(draws):
        shaken = torch.randn(inputs.shape[1:], generator=generator).to(inputs) * spread
        total += slopes(score, inputs + shaken).abs().sum(1)
    return total / draws


def best_places(model: PrototypeModel, inputs: Tensor, rows: Tensor) -> Tensor:
    """Return ``(B,)`` int64: where each input matches its prototype best, in eval mode."""
    with evaluating(model), torch.no_grad():
        return model(inputs).positions.gather(1, rows.view(-1, 1)).squeeze(1)
