"""What a repair does to the prototypes of a model, step by step: ban, merge, drop; nothing is fitted here.

Each step changes the model it is given and says what it did, one :class:`Change` a prototype. No step leaves a class
without a prototype: a ban that would is refused, and whatever else would spares the best one and says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from protolearn.audit.redundancy import Use, near_pairs, same_source
from protolearn.audit.subject import ModelSubject
from protolearn.core.model import PrototypeModel
from protolearn.core.projection import Nearest, own_neighbours
from protolearn.core.similarities import PerPrototype
from protolearn.errors import UsageError
from protolearn.training.cards import owners

Action = Literal["banned", "merged", "dropped", "spared"]
BANNED = "banned by a person"


@dataclass(frozen=True)
class Change:
    """What was done to one prototype, and why.

    Attributes
    ----------
    action : str
        ``banned``: kept, but without a say until the ban is lifted. ``merged``: gone, and another speaks for it.
        ``dropped``: gone. ``spared``: should have gone, but it is the last of its class.
    prototype : int
        Its id.
    owner : str
        Names of the classes that own it.
    reason : str
        In words.
    into : int or None
        The one that speaks for it now, where it was merged.
    """

    action: Action
    prototype: int
    owner: str
    reason: str
    into: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return dict(vars(self))


def membership(model: PrototypeModel) -> Tensor:
    """Return ``(P, C)`` bool: usable prototypes of each class.

    One that no class owns is of every class that gives it a positive weight, or of all where there are no weights.
    """
    owned = model.bank.ownership > 0
    shared = ~owned.any(1, keepdim=True)
    weights = ModelSubject(model).weights
    member = owned | (shared if weights is None else shared & (weights.T > 0))
    return member & model.bank.usable.unsqueeze(1)


def spared(member: Tensor, gone: Tensor, worth: Sequence[tuple[float, ...]]) -> list[int]:
    """Return rows that must stay, so that no class loses its last prototype: the most worth of each such class.

    Parameters
    ----------
    member : Tensor
        ``(P, C)`` bool, as from :func:`membership`.
    gone : Tensor
        ``(P,)`` bool: rows that are to go.
    worth : sequence of tuple
        Of each row; larger is better, the first of equals stays.

    Examples
    --------
    >>> member = torch.tensor([[True, False], [True, False], [False, True]])
    >>> spared(member, torch.tensor([True, True, False]), [(1.0,), (2.0,), (0.0,)])
    [1]
    """
    kept: list[int] = []
    for label in (member.any(0) & ~(member & ~gone.unsqueeze(1)).any(0)).nonzero().squeeze(1).tolist():
        rows = member[:, label].nonzero().squeeze(1).tolist()
        if not set(rows) & set(kept):
            kept.append(max(rows, key=lambda row: (worth[row], -row)))
    return sorted(kept)


def ban_named(model: PrototypeModel, ids: Sequence[int]) -> list[Change]:
    """Ban prototypes that a person names.

    Raises
    ------
    UsageError
        If there is no such prototype, or a class would be left without one; nothing is banned then.
    """
    bank = model.bank
    known = set(bank.ids.tolist())
    missing = [key for key in ids if key not in known]
    if missing:
        raise UsageError(f"no prototype has the id {missing[0]}: this model's ids are {_spans(sorted(known))}")
    before = membership(model)
    gone = torch.zeros_like(bank.banned)
    gone[bank.rows(list(dict.fromkeys(ids)))] = True
    lost = (before.any(0) & ~(before & ~gone.unsqueeze(1)).any(0)).nonzero().squeeze(1).tolist()
    if lost:
        last = bank.ids[before[:, lost[0]]].tolist()
        raise UsageError(
            f"this would leave the class {model.classes[lost[0]]!r} without a prototype: it has {_spans(last)} and all "
            "of them are to be banned; keep one, or train it others"
        )
    fresh = gone & ~bank.banned
    made = [_change(model, row, "banned", BANNED) for row in fresh.nonzero().squeeze(1).tolist()]
    bank.banned |= gone
    return made


def ban_background(model: PrototypeModel, outside: Tensor, limit: float) -> list[Change]:
    """Ban prototypes whose heat lies outside the object by more than a limit, but the least bad of a class.

    Parameters
    ----------
    model : PrototypeModel
        Changed in place.
    outside : Tensor
        ``(P,)`` mean share of the heat outside the marked object, NaN where it was not judged.
    limit : float
        Between 0 and 1.
    """
    if not 0 < limit < 1:
        raise UsageError(f"the share of heat outside the object must lie between 0 and 1, got {limit}")
    bank = model.bank
    outside = outside.to(bank.ids.device)
    bad = (outside > limit) & bank.usable
    stay = spared(membership(model), bad, [(-value,) for value in outside.nan_to_num(0.0).tolist()])
    made = []
    for row in bad.nonzero().squeeze(1).tolist():
        reason = f"background: {float(outside[row]):.0%} of its heat lies outside the object"
        made.append(_change(model, row, "spared" if row in stay else "banned", reason))
    bad[stay] = False
    bank.banned |= bad
    return made


def why_not_merge(model: PrototypeModel) -> str:
    """Return why one prototype of this model cannot speak for another; empty where it can."""
    if model.bank.drawn:
        return "its prototypes are drawn from each input"
    if model.bank.law is not None or isinstance(model.similarity, PerPrototype):
        return "equal vectors are not equal prototypes here: each has a spread or width of its own"
    if model.across is not None:
        return "its prototypes compete, so that one does not bring what two bring"
    if model.compare is not None:
        return "its encoder compares inputs with prototypes itself"
    return ""


def merge_twins(model: PrototypeModel, share: float = 0.02) -> tuple[list[Change], str]:
    """Merge prototypes of the same classes that stand on one token, or that the measure hardly tells apart.

    The one with the most weight stays where it is, with its own training case, and takes over the weights of the
    others: for equal vectors no score changes. Every one that goes is near to the one that stays, so a chain of near
    pairs does not become one prototype.

    Parameters
    ----------
    model : PrototypeModel
        Changed in place.
    share : float
        How near is too near, as for :func:`~protolearn.audit.redundancy.near_pairs`; 0 = only those on one token.

    Returns
    -------
    list of Change, str
        What was done; and why nothing could be.
    """
    reason = why_not_merge(model)
    if reason:
        return [], f"nothing is merged: {reason}"
    bank = model.bank
    row_of = {key: row for row, key in enumerate(bank.ids.tolist())}
    near: dict[int, dict[int, str]] = {}

    def link(a: int, b: int, words: str) -> None:
        same_group = bank.groups is None or bool(bank.groups[a] == bank.groups[b])
        if same_group and bool((bank.ownership[a] == bank.ownership[b]).all()):
            near.setdefault(a, {}).setdefault(b, words)
            near.setdefault(b, {}).setdefault(a, words)

    for group in same_source(bank):
        rows = [row_of[key] for key in group]
        for k, a in enumerate(rows):
            for b in rows[k + 1 :]:
                link(a, b, "stands on the same token as")
    if share > 0:
        for pair in near_pairs(bank, model.measure, share, most=len(bank) ** 2):
            words = f"hardly differs ({pair.value:.2g}; a usual pair: {pair.usual:.2g}) from"
            link(row_of[pair.left], row_of[pair.right], words)
    weights = ModelSubject(model).weights
    size = [0.0] * len(bank) if weights is None else weights.abs().sum(0).tolist()
    taken: set[int] = set()
    made: list[Change] = []
    refused = False
    for row in sorted(near, key=lambda r: (-size[r], r)):
        if row in taken:
            continue
        taken.add(row)
        twins = [other for other in sorted(near[row]) if other not in taken]
        if not twins:
            continue
        if not model.head.absorb(row, torch.tensor(twins, device=bank.ids.device)):
            refused = True
            continue
        taken.update(twins)
        stays = int(bank.ids[row])
        made += [_change(model, twin, "merged", f"{near[row][twin]} {stays}", stays) for twin in twins]
        bank.counts[row] += bank.counts[twins].sum()
    if made:
        model.prune([change.prototype for change in made])
    note = f"a {type(model.head).__name__} cannot let one prototype speak for two, so twins stay" if refused else ""
    return made, note


def drop(
    model: PrototypeModel,
    use: Use,
    nearest: Nearest,
    cases: Sequence[int] | Tensor,
    *,
    dead: bool = True,
    impure: bool = True,
    minimum: int = 3,
) -> list[Change]:
    """Remove prototypes that bring nothing, and those whose nearest training cases are of other classes.

    Parameters
    ----------
    model : PrototypeModel
        Changed in place. Prototypes that a person has banned stay, or the ban would be forgotten.
    use : Use
        How they are used over the training cases.
    nearest : Nearest
        The nearest training cases of each, of any class.
    cases : sequence of int
        ``(C,)`` training cases of each class: of a class with fewer than ``minimum`` no more can be near.
    dead, impure : bool
        Which of the two.
    minimum : int
        An owned prototype is impure with fewer of its nearest cases of its own class.
    """
    bank = model.bank
    purity = own_neighbours(nearest, bank.ownership)
    owned = bank.ownership > 0
    own_cases = (owned.double() @ torch.as_tensor(cases).double().to(bank.ownership.device)).long()
    reasons: dict[int, str] = {}
    if dead:
        silent = use.dead(bank, ModelSubject(model).weights)
        row_of = {key: row for row, key in enumerate(bank.ids.tolist())}
        reasons |= {row_of[key]: f"dead: {why}" for key, why in silent.items() if why != BANNED}
    if impure:
        found = nearest.found.sum(1)
        few = owned.any(1) & bank.usable & (purity < own_cases.clamp(max=minimum))
        for row in few.nonzero().squeeze(1).tolist():
            words = f"impure: {int(purity[row])} of its {int(found[row])} nearest training cases are of its class"
            reasons.setdefault(row, words)
    return _removed(model, reasons, [
        (float(own), float(top), float(high))
        for own, top, high in zip(purity.tolist(), use.among.tolist(), use.mean.tolist(), strict=True)
    ])  # fmt: skip


def _removed(model: PrototypeModel, reasons: Mapping[int, str], worth: Sequence[tuple[float, ...]]) -> list[Change]:
    bank = model.bank
    gone = torch.zeros_like(bank.banned)
    gone[list(reasons)] = True
    stay = spared(membership(model), gone, worth)
    made = [_change(model, row, "spared" if row in stay else "dropped", why) for row, why in sorted(reasons.items())]
    if lost := [change.prototype for change in made if change.action == "dropped"]:
        model.prune(lost)
    return made


def _change(model: PrototypeModel, row: int, action: Action, reason: str, into: int | None = None) -> Change:
    return Change(action, int(model.bank.ids[row]), owners(model, row), reason, into)


def _spans(ids: Sequence[int]) -> str:
    """Return ids in order, with runs shortened.

    Examples
    --------
    >>> _spans([0, 1, 2, 5])
    '0-2, 5'
    """
    parts: list[list[int]] = []
    for key in ids:
        if parts and key == parts[-1][1] + 1:
            parts[-1][1] = key
        else:
            parts.append([key, key])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)
