"""A person corrects what a model looks at, and the prediction is computed again.

Somebody may reject a concept (a group of prototypes) or a prototype, forbid a part of a picture (negative box), or say
where to look (positive box), for all prototypes or for some. Nothing is multiplied: a factor of 0 would put a forbidden
place above every negative similarity. Instead, for each prototype and before pooling,

- a place that a negative box touches gets similarity -inf, whatever positive boxes say;
- where positive boxes are drawn, a place that none of them touches is lowered to ``floor + outside (s - floor)``, floor
  being the prototype's lowest similarity in this picture: 1 changes nothing, 0 forbids the place;
- a prototype that is rejected, or that has no place left, brings the evidence that ``absent`` says: none, or what it
  brings on average (for a head whose other weights were learned in its presence);
- with nothing drawn or rejected, no number changes.

A box is in pixels of the original picture; it touches every place whose region (cell, or the window of cells that the
token stands for) it overlaps.

Works for models whose head is made of evidence, similarities, distances, positions or the table of all places. One that
reads the tokens themselves, or means over all places, would go on seeing what was taken away, and an edit is refused
(a head that adds a linear classifier on the features, say; there, ban the prototypes of the bank instead, which leaves
the classifier). Boxes need tokens with a place. ``absent="mean"`` needs a head that reads nothing but evidence.

Source: CSR (Huy et al., 2025), whose importance maps multiply.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from protolearn.core.measures import Distance
from protolearn.core.model import PrototypeModel
from protolearn.core.pooling import max_pool
from protolearn.errors import DataError, UsageError, nearest_names
from protolearn.explain.edits import Edit, Interaction, Who
from protolearn.explain.explain import Target, explain_seen
from protolearn.explain.groups import group_names
from protolearn.explain.passes import CaseList, run_over
from protolearn.structures import Box, Explanation, Output, Tokens


@dataclass(frozen=True, eq=False)
class Corrected:
    """A case before and after a person's edits.

    Attributes
    ----------
    before, after : Explanation
        Of the class asked for; with ``target="predicted"`` each of its own prediction.
    logits_before, logits_after : Tensor
        ``(C,)``.
    without : tuple of int
        Prototypes that no longer have a say: rejected, or without a place left.
    """

    before: Explanation
    after: Explanation
    logits_before: Tensor
    logits_after: Tensor
    without: tuple[int, ...] = field(default=())

    @property
    def changed(self) -> bool:
        """Whether another class is predicted now."""
        return self.before.predicted != self.after.predicted


def interact(
    model: PrototypeModel,
    cases: CaseList,
    interaction: Interaction | Mapping[str, Interaction],
    indices: Sequence[int] | None = None,
    *,
    target: Target = "predicted",
    typical: Tensor | None = None,
    batch_size: int = 64,
    device: str | torch.device | None = None,
) -> list[Corrected]:
    """Compute predictions and explanations again under a person's edits; the model is left as it is.

    Parameters
    ----------
    model, cases, indices
        As for :func:`~protolearn.explain.explain.explain`.
    interaction : Interaction, or mapping of str to Interaction
        One for every case, or by case id; a case without one stays as it is.
    target : int or str
        Which logit to explain; name a class to compare the same one before and after.
    typical : Tensor, optional
        ``(P,)`` mean evidence over training cases (:func:`typical_evidence`), for ``absent="mean"``.
    batch_size, device
        As usual.

    Raises
    ------
    UsageError
        If an edit names what the model does not have, or boxes are drawn where positions have no place.
    """
    found: list[Corrected] = []
    nothing = Interaction()
    for seen in run_over(model, cases, indices, batch_size=batch_size, device=device):
        ids = [str(cases.ids[i]) for i in seen.indices]
        each = [interaction if isinstance(interaction, Interaction) else interaction.get(i, nothing) for i in ids]
        output, absent = corrected(model, seen.output, each, seen.sizes, typical)
        before = explain_seen(model, cases, seen, (target,))
        after = explain_seen(model, cases, seen._replace(output=output), (target,))
        keys = model.bank.ids.cpu()
        for b, (old, new) in enumerate(zip(before, after, strict=True)):
            gone = tuple(keys[absent[b].cpu()].tolist())
            found.append(Corrected(old[0], new[0], seen.output.logits[b], output.logits[b], gone))
    return found


@torch.no_grad()
def typical_evidence(
    model: PrototypeModel,
    cases: CaseList,
    *,
    batch_size: int = 64,
    device: str | torch.device | None = None,
) -> Tensor:
    """Return ``(P,)``: what each prototype brings on average over cases, the training ones."""
    total, count = torch.zeros(len(model.bank), dtype=torch.float64), 0
    for seen in run_over(model, cases, batch_size=batch_size, device=device):
        total += seen.output.evidence.double().sum(0).cpu()
        count += len(seen.indices)
    if count == 0:
        raise DataError("no case to average the evidence over")
    return (total / count).float()


@torch.no_grad()
def corrected(
    model: PrototypeModel,
    out: Output,
    interactions: Sequence[Interaction],
    sizes: Sequence[tuple[int, int] | None] | None = None,
    typical: Tensor | None = None,
) -> tuple[Output, Tensor]:
    """Return an output computed again under edits, one interaction a case, and ``(B, P)`` who has no say any more.

    ``sizes`` are those of the original pictures (width, height), for boxes; None where boxes are in input pixels.
    """
    assert out.tokens is not None, "a whole pass keeps the tokens"
    tokens, (batch, count) = out.tokens, out.evidence.shape
    if len(interactions) != batch:
        raise ValueError(f"{len(interactions)} interactions for {batch} cases")
    where = out.evidence.device
    forbidden = torch.zeros(batch, tokens.values.shape[1], count, dtype=torch.bool, device=where)
    left = torch.ones(forbidden.shape, dtype=out.evidence.dtype, device=where)  # share of a similarity that is left
    rejected = torch.zeros(batch, count, dtype=torch.bool, device=where)
    for b, interaction in enumerate(interactions):
        size = None if sizes is None else sizes[b]
        for who in interaction.rejected:
            rejected[b] |= chosen(model, who)
        for edit in interaction.boxes("negative"):
            forbidden[b] |= _touched(model, tokens, edit, size).unsqueeze(1) & chosen(model, edit.who)
        looked = interaction.boxes("positive")
        if looked:
            inside, spoken = torch.zeros_like(forbidden[b]), torch.zeros_like(rejected[b])
            for edit in looked:
                who_now = chosen(model, edit.who)
                inside |= _touched(model, tokens, edit, size).unsqueeze(1) & who_now
                spoken |= who_now
            left[b] = torch.where(spoken & ~inside, interaction.outside, 1.0)
    forbidden |= left == 0
    edited = forbidden | (left < 1)
    touched = edited.any(1)
    if model.pooling is max_pool and model.across is None:
        # a maximum stays what it was as long as its own place is left alone
        touched &= edited.gather(1, out.positions.unsqueeze(1)).squeeze(1)
    new = _again(model, out, forbidden, left, touched)
    usable = model.bank.usable
    absent = (rejected | (touched & torch.isinf(new.similarities))) & usable
    stand_in = torch.zeros_like(new.evidence)
    for b, interaction in enumerate(interactions):
        if interaction.absent == "mean" and bool(absent[b].any()):
            others = sorted(set(model.head.reads) - {"evidence"})
            if others:
                raise UsageError(
                    f'absent="mean" puts other evidence in, and this model\'s head reads {", ".join(others)}: use '
                    'absent="zero"'
                )
            if typical is None or typical.shape != (count,):
                raise UsageError(
                    'absent="mean" needs what prototypes bring on average: typical=typical_evidence(model, training '
                    "cases)"
                )
            stand_in[b] = typical.to(stand_in)
    changes: dict[str, Any] = {
        "evidence": torch.where(absent, stand_in, new.evidence),
        "similarities": new.similarities.masked_fill(absent, float("-inf")),
    }
    if new.distances is not None:
        changes["distances"] = new.distances.masked_fill(absent, float("inf"))
    if new.table is not None:
        changes["table"] = new.table.masked_fill(absent.unsqueeze(1), float("-inf"))
    beyond = sorted(set(model.head.reads) - {"evidence", "similarities", "distances", "positions", "table"})
    if beyond and bool((absent | touched).any()):
        raise UsageError(f"edits do not reach this model: its head reads {', '.join(beyond)} beside the evidence")
    new = new.replace(**changes)
    logits = model.head.read(new)
    if bool((torch.isfinite(out.logits) & ~torch.isfinite(logits)).any()):
        raise UsageError("edits do not reach this model: its head has no answer for a prototype that is absent")
    return new.replace(logits=logits), absent


def chosen(model: PrototypeModel, who: Who) -> Tensor:
    """Return ``(P,)`` bool: the prototypes that a name, an id or None means.

    Raises
    ------
    UsageError
        If there is no such concept or prototype.
    """
    bank = model.bank
    if who is None:
        return torch.ones_like(bank.active)
    if isinstance(who, int):
        if who not in bank.ids.tolist():
            raise UsageError(f"there is no prototype {who} in this model (any more)")
        return bank.ids == who
    names = group_names(model)
    if who not in names:
        raise UsageError(f"no concept is called {who!r}: {nearest_names(who, names)}")
    assert bank.groups is not None
    return bank.groups == names.index(who)


def touched_places(tokens: Tokens, box: Box) -> Tensor:
    """Return ``(S,)`` bool: the places whose region a box, in input pixels, overlaps at all.

    Examples
    --------
    >>> touched_places(Tokens(torch.zeros(1, 4, 8), grid=(2, 2), input_size=(32, 32)), Box(15, 0, 18, 4)).tolist()
    [True, True, False, False]
    """
    found = []
    for position in range(tokens.values.shape[1]):
        region = tokens.region(position)
        if region is None:
            raise UsageError("boxes need places: the positions of these inputs have none (no grid)")
        across = region.x0 < box.x1 and box.x0 < region.x1
        down = len(tokens.grid or ()) != 2 or (region.y0 < box.y1 and box.y0 < region.y1)
        found.append(across and down)
    return torch.tensor(found, dtype=torch.bool, device=tokens.values.device)


def _touched(model: PrototypeModel, tokens: Tokens, edit: Edit, size: tuple[int, int] | None) -> Tensor:
    assert edit.box is not None, "an edit that draws has a box"
    box, preprocess = edit.box, model.encoder.preprocess
    if size is not None and hasattr(preprocess, "to_input"):
        box = Box(*map(float, preprocess.to_input(box, size)))
    return touched_places(tokens, box)


def _again(model: PrototypeModel, out: Output, forbidden: Tensor, left: Tensor, touched: Tensor) -> Output:
    """Return an output with similarities pooled again where a prototype's places have been edited."""
    if not bool(touched.any()):
        return out
    assert out.tokens is not None, "a whole pass keeps the tokens"
    tokens, usable = out.tokens, model.bank.usable
    compared = model._compared(tokens)
    table = model.similarity(compared)
    if model.across is not None:
        table = model.across(table, usable)
    real = torch.ones_like(forbidden) if tokens.mask is None else tokens.mask.unsqueeze(-1).expand_as(forbidden)
    floor = table.masked_fill(~real, float("inf")).amin(1, keepdim=True)
    table = torch.where((left < 1) & (left > 0) & real, floor + left * (table - floor), table)
    allowed = real & ~forbidden
    hidden = table.masked_fill(~allowed, float("-inf"))
    positions = hidden.argmax(1)
    # a pooling knows one mask a case; here each prototype has its own, so each becomes a case
    batch, places, count = table.shape
    apart = (part.transpose(1, 2).reshape(batch * count, places) for part in (table, allowed))
    values, masks = apart
    pooled = model.pooling(values.unsqueeze(-1), masks).view(batch, count)
    pooled = pooled.masked_fill(~allowed.any(1), float("-inf"))
    similarities = torch.where(touched, pooled, out.similarities).masked_fill(~usable, float("-inf"))
    evidence = torch.where(touched, pooled, out.evidence)
    evidence = evidence.masked_fill(~usable | torch.isinf(evidence), 0.0)
    distances = out.distances
    if distances is not None and isinstance(model.measure, Distance):
        found = compared.gather(1, positions.unsqueeze(1)).squeeze(1)
        distances = torch.where(touched, found, distances).masked_fill(~usable, model.measure.farthest)
    return out.replace(
        similarities=similarities,
        evidence=evidence,
        positions=torch.where(touched, positions, out.positions),
        distances=distances,
        table=None if out.table is None else torch.where(touched.unsqueeze(1), hidden, out.table),
    )
