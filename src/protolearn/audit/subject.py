"""What an audit can look at: a model of the library, or any other behind an adapter of a few lines.

An audit asks a subject the same few things of every batch: how similar each prototype is to each place of the input,
how similar to the whole, and what each adds to each class's score. B batch, P prototypes, C classes.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from protolearn.audit.look import Look, finite_maps, settled
from protolearn.core.model import PrototypeModel
from protolearn.core.modes import evaluating
from protolearn.errors import UsageError
from protolearn.structures import Output


class Subject(ABC):
    """A model that is audited. It answers; nothing here may change it.

    Attributes
    ----------
    name : str
        For reports.
    classes : tuple of str
        Names, in the order of the scores.
    ids : tuple of int
        Of the prototypes, P of them.
    ownership : Tensor
        ``(P, C)`` weights of membership, at least 0; a row of zeros is a prototype of no single class.
    usable : Tensor
        ``(P,)`` bool: prototypes that speak at all.
    weights : Tensor or None
        ``(C, P)`` what one unit of each prototype's score adds; None where that is not how scores are made.
    offset : Tensor
        ``(C,)`` part of each score that no prototype brings.
    vectors : Tensor or None
        ``(P, D)`` the prototypes themselves, where they are vectors to be compared.
    preprocess : object or None
        From a picture to an input, as an encoder's.
    module : Module
        What is audited, for its parameters, buffers and modes.
    """

    name: str
    classes: tuple[str, ...]
    ids: tuple[int, ...]
    ownership: Tensor
    usable: Tensor
    weights: Tensor | None
    offset: Tensor
    vectors: Tensor | None
    preprocess: Any
    module: nn.Module

    @property
    def device(self) -> torch.device:
        """Where the model is; the CPU for one without a parameter or buffer."""
        held = [*self.module.parameters(), *self.module.buffers()]
        return held[0].device if held else torch.device("cpu")

    @abstractmethod
    def look(self, inputs: Tensor, *, maps: bool = True) -> Look:
        """Return what the model puts out for a batch of inputs; without ``maps`` where nobody reads them."""

    def scored(self, inputs: Tensor) -> Tensor:
        """Return the probabilities ``(B, C)`` alone, for audits that ask about many altered inputs."""
        return self.look(inputs, maps=False).probabilities

    def of_class(self, labels: Tensor) -> Tensor:
        """Return ``(B, P)`` bool: the usable prototypes of each case's class.

        A prototype of no single class belongs to the classes that give it a positive weight, or to all of them where
        no weights are known; an unlabelled case (-1) has none.
        """
        owned = self.ownership > 0
        shared = ~owned.any(1, keepdim=True)
        if self.weights is None:
            member = owned | shared
        else:
            member = owned | (shared & (self.weights.T > 0))
        known = labels >= 0
        return member.T[labels.clamp_min(0)] & known.unsqueeze(1) & self.usable

    def digest(self) -> str:
        """Return a SHA-256 over every parameter and buffer and every module's mode."""
        found = hashlib.sha256()
        for name, values in sorted([*self.module.named_parameters(), *self.module.named_buffers()]):
            raw = values.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            found.update(f"{name}{tuple(values.shape)}{values.dtype}".encode() + raw.numpy().tobytes())
        found.update("".join(f"{name}{each.training}" for name, each in self.module.named_modules()).encode())
        return found.hexdigest()

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Evaluate without gradients and without dropout, and give every module its own mode back."""
        with evaluating(self.module), torch.no_grad():
            yield


class ModelSubject(Subject):
    """A model of the library.

    Its encoder and neck may compute in half or double precision: inputs are brought to it.

    Raises
    ------
    UsageError
        If the head is in half precision, in which it cannot add up scores.

    Examples
    --------
    >>> from protolearn.encoders import SmallEncoder
    >>> from protolearn.methods import get_method
    >>> model = get_method("protopnet")(prototypes_per_class=2).build(SmallEncoder(size=16), 3)
    >>> subject = ModelSubject(model)
    >>> with subject.looking():
    ...     look = subject.look(torch.rand(4, 3, 16, 16))
    >>> look.maps.shape, torch.allclose(look.ledger(slice(0, 4)).sum(2) + subject.offset, look.logits, atol=1e-5)
    (torch.Size([4, 6, 4, 4]), True)
    """

    def __init__(self, model: PrototypeModel) -> None:
        if any(each.dtype in (torch.float16, torch.bfloat16) for each in model.head.parameters()):
            raise UsageError(
                "the model's head is in half precision, in which it cannot add up scores: audit model.float(), or "
                "leave only encoder and neck in half precision"
            )
        self.model = model
        self.module = model
        self.name = "a prototype model" if model.method is None else type(model.method).__name__
        self.classes = model.classes
        self.preprocess = getattr(model.encoder, "preprocess", None)

    @property
    def ids(self) -> tuple[int, ...]:  # type: ignore[override]
        """Of the prototypes."""
        return tuple(self.model.bank.ids.tolist())

    @property
    def ownership(self) -> Tensor:  # type: ignore[override]
        """``(P, C)``."""
        return self.model.bank.ownership.detach()

    @property
    def usable(self) -> Tensor:  # type: ignore[override]
        """``(P,)``."""
        return self.model.bank.usable

    @property
    def weights(self) -> Tensor | None:  # type: ignore[override]
        """``(C, P)`` or None."""
        found = self.model.head.per_unit(len(self.model.bank), self.model.bank.usable)
        return None if found is None else found.detach()

    @property
    def offset(self) -> Tensor:  # type: ignore[override]
        """``(C,)``."""
        return self.model.head.offset().detach()

    @property
    def vectors(self) -> Tensor | None:  # type: ignore[override]
        """``(P, D)`` or None."""
        return None if self.model.bank.drawn else self.model.bank.vectors.detach()

    def look(self, inputs: Tensor, *, maps: bool = True) -> Look:
        """Return what the model puts out for a batch of inputs, which may be of another precision than the model."""
        out: Output = self.model(inputs.to(self._precision()) if inputs.is_floating_point() else inputs)
        return Look(
            logits=out.logits,
            probabilities=out.head.probabilities(out.logits),
            scores=settled(out.similarities.masked_fill(~self.usable, 0.0)),
            maps=self._maps(out) if maps else None,
            ledger=lambda part: out.head.ledger(out.part(part)),
            output=out,
        )

    def _precision(self) -> torch.dtype:
        """Return the type of number that the encoder computes in; that of the prototypes where it holds none."""
        held = (each.dtype for each in self.model.encoder.parameters() if each.is_floating_point())
        return next(held, self.model.bank.vectors.dtype)

    def _maps(self, out: Output) -> Tensor | None:
        tokens = out.tokens
        if tokens is None or tokens.grid is None or len(tokens.grid) != 2:
            return None
        table = self.model.maps(tokens) if out.table is None else out.table.transpose(1, 2)
        return finite_maps(table.detach().unflatten(2, tokens.grid))


class AdaptedSubject(Subject):
    """Any other model, through a function from a batch of inputs to a :class:`Look`.

    Parameters
    ----------
    module : Module
        The model: its parameters and buffers are watched, its modes are set and given back.
    look : callable
        From inputs to a ``Look``; maps may be left out.
    classes : sequence of str
        Names.
    ownership : Tensor
        ``(P, C)``; a row of zeros is a prototype of no single class.
    weights, offset, vectors, usable, preprocess, ids, name
        As in :class:`Subject`; what is not known may be left out, and the audits that need it then refuse.

    Examples
    --------
    A linear model over the brightness of the four quarters of a picture, each quarter a "prototype":

    >>> class Quarters(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.weight = nn.Parameter(torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 1.0, 1.0]]))
    >>> net = Quarters()
    >>> def look(inputs):
    ...     cells = torch.nn.functional.adaptive_avg_pool2d(inputs.mean(1, keepdim=True), 2)
    ...     scores = cells.flatten(1)
    ...     places = torch.eye(4).view(1, 4, 2, 2) * cells
    ...     logits = scores @ net.weight.T
    ...     return Look(logits, logits.softmax(1), scores, places, lambda part: scores[part, None] * net.weight)
    >>> subject = AdaptedSubject(net, look, classes=["first", "rest"], ownership=(net.weight.detach().T > 0).float())
    >>> with subject.looking():
    ...     subject.look(torch.ones(1, 3, 8, 8)).predicted.item()
    1
    """

    def __init__(
        self,
        module: nn.Module,
        look: Callable[[Tensor], Look],
        *,
        classes: Sequence[str],
        ownership: Tensor,
        weights: Tensor | None = None,
        offset: Tensor | None = None,
        vectors: Tensor | None = None,
        usable: Tensor | None = None,
        preprocess: Any = None,
        ids: Sequence[int] | None = None,
        name: str = "an adapted model",
    ) -> None:
        count = len(ownership)
        if ownership.ndim != 2 or ownership.shape[1] != len(classes):
            raise UsageError(f"ownership must be (P, C) with C = {len(classes)} classes, got {tuple(ownership.shape)}")
        size = {"P": count, "C": len(classes)}
        for what, given, wanted in (("weights", weights, "CP"), ("offset", offset, "C"), ("usable", usable, "P")):
            if given is not None and tuple(given.shape) != tuple(size[side] for side in wanted):
                raise UsageError(f"{what} must be ({', '.join(wanted)}) with {size}, got {tuple(given.shape)}")
        for what, number in (("vectors", vectors), ("ids", ids)):
            if number is not None and len(number) != count:
                raise UsageError(f"{what} must be {count}, one for each prototype, got {len(number)}")
        self.module, self._look, self.name = module, look, name
        self.classes = tuple(map(str, classes))
        self.ownership, self.weights, self.vectors = ownership, weights, vectors
        self.offset = ownership.new_zeros(len(self.classes)) if offset is None else offset
        self.usable = torch.ones(count, dtype=torch.bool, device=ownership.device) if usable is None else usable
        self.ids = tuple(range(count)) if ids is None else tuple(map(int, ids))
        self.preprocess = preprocess

    def look(self, inputs: Tensor, *, maps: bool = True) -> Look:
        """Return what the function says of a batch of inputs, checked for shape."""
        found = self._look(inputs)
        wanted, scored = (len(inputs), len(self.ids)), (len(inputs), len(self.classes))
        shapes = tuple(tuple(each.shape) for each in (found.scores, found.logits, found.probabilities))
        if shapes != (wanted, scored, scored):
            raise UsageError(
                f"a look at {len(inputs)} inputs must hold scores {wanted}, logits and probabilities {scored}, got "
                f"{', '.join(map(str, shapes))}"
            )
        maps_found = found.maps
        if maps_found is not None:
            if tuple(maps_found.shape[:2]) != wanted or maps_found.ndim != 4:
                raise UsageError(f"maps must be (B, P, h, w) = {wanted} and places, got {tuple(maps_found.shape)}")
            maps_found = finite_maps(maps_found)

        def ledger(part: slice) -> Tensor:
            table = found.ledger(part)
            asked = (len(range(*part.indices(len(inputs)))), len(self.classes), len(self.ids))
            if tuple(table.shape) != asked:
                raise UsageError(f"a ledger must be (b, C, P) = {asked}, got {tuple(table.shape)}")
            return table

        return Look(found.logits, found.probabilities, settled(found.scores), maps_found, ledger, found.output)


def subject_of(model: Any) -> Subject:
    """Return a model as an audit sees it; a subject stays what it is.

    Raises
    ------
    UsageError
        If it is neither a model of the library nor a subject.
    """
    if isinstance(model, Subject):
        return model
    if isinstance(model, PrototypeModel):
        return ModelSubject(model)
    raise UsageError(
        f"an audit needs a PrototypeModel or a Subject, got {type(model).__name__}: wrap another model in "
        "protolearn.audit.subject.AdaptedSubject"
    )


def facts(subject: Subject) -> Mapping[str, Any]:
    """Return plain facts about a subject for a record."""
    owned = (subject.ownership > 0).any(1)
    return {
        "model": subject.name,
        "classes": len(subject.classes),
        "prototypes": len(subject.ids),
        "usable": int(subject.usable.sum()),
        "of_no_single_class": int((~owned).sum()),
    }
