"""Projection over a data set: every prototype becomes a real training token, and says which."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from protolearn.core.method import Project, Prune
from protolearn.core.model import PrototypeModel
from protolearn.core.projection import Nearest, NearestTokens, assign_distinct, impure, own_neighbours
from protolearn.data.cases import Cases
from protolearn.errors import DataError, UsageError
from protolearn.structures import Box, Source, Tokens
from protolearn.training import distributed
from protolearn.training.material import TokenStore, plain_outputs


@dataclass(frozen=True)
class Projection:
    """What a projection did.

    Attributes
    ----------
    moved : int
        Prototypes that now are training tokens, or have the nearest one on record.
    kept : tuple of int
        Ids of usable prototypes that found no allowed case and stayed where they were.
    duplicates : tuple of tuple of int
        Groups of ids that share one token.
    mean_distance, largest_distance : float
        How far prototypes were from the tokens they became, in the model's measure.
    accuracy_before : float
        On the cases projected onto, before anything moved.
    """

    moved: int
    kept: tuple[int, ...]
    duplicates: tuple[tuple[int, ...], ...]
    mean_distance: float
    largest_distance: float
    accuracy_before: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {**asdict(self), "kept": list(self.kept), "duplicates": [list(ids) for ids in self.duplicates]}


def project(
    model: PrototypeModel,
    cases: Cases,
    phase: Project | None = None,
    *,
    store: TokenStore | None = None,
    batch_size: int = 80,
    workers: int = 0,
    device: torch.device | str = "cpu",
) -> Projection:
    """Move every prototype onto the nearest token of the cases that the rule allows, in one pass.

    With ``move=False`` in the phase only the sources are recorded.

    Parameters
    ----------
    model : PrototypeModel
        Changed in place: vectors and sources of its bank.
    cases : Cases
        Training cases, not augmented, under the encoder's own preprocessing.
    phase : Project, optional
        The rule; own class by default.
    store : TokenStore, optional
        Cached tokens of the same cases, to spare the encoder.
    batch_size, workers, device
        How the pass is run; the result does not depend on them, nor on the number of processes.

    Returns
    -------
    Projection

    Raises
    ------
    UsageError
        If the rule is ``group`` and the cases have no groups.
    DataError
        If a token is not finite.
    """
    phase = Project() if phase is None else phase
    if phase.rule not in ("own_class", "any", "group"):
        raise UsageError(f"projection rule must be own_class, any or group, got {phase.rule!r}")
    device = torch.device(device)
    ownership = model.bank.ownership
    most = int((ownership > 0).sum(0).max()) if phase.rule != "any" else len(model.bank)
    k = most if phase.distinct or phase.rule == "group" else 1
    nearest, accuracy, shape = _search(model, cases, k, phase.rule, store, batch_size, workers, device)
    column = torch.where(nearest.found[:, 0], 0, -1)
    if phase.rule == "group":
        owner = model.bank.owner().unsqueeze(1)
        column = assign_distinct(nearest, model.measure, (owner + 1) * (int(nearest.units.max()) + 2) + nearest.units)
    elif phase.distinct:
        cells = int(nearest.positions.max()) + 1
        column = assign_distinct(nearest, model.measure, nearest.cases * cells + nearest.positions)
    rows = (column >= 0).nonzero().squeeze(1)
    column = column[rows]
    values = nearest.values[rows, column]
    chosen, positions = nearest.cases[rows, column].tolist(), nearest.positions[rows, column].tolist()
    sources = make_sources(model, cases, chosen, positions, values.tolist(), shape)
    if phase.move:
        model.bank.move(rows, nearest.vectors[rows, column], sources)
    else:
        model.bank.record(rows, [replace(source, moved=False) for source in sources])
    tokens = list(zip(chosen, positions, strict=True))
    stayed = model.bank.usable.clone()  # one that is banned or inactive is not looked for
    stayed[rows] = False
    return Projection(
        moved=len(rows),
        kept=tuple(model.bank.ids[stayed].tolist()),
        duplicates=_shared(model.bank.ids[rows].tolist(), tokens) if phase.move else (),
        mean_distance=float(values.double().mean()) if len(rows) else 0.0,
        largest_distance=float(values.max()) if len(rows) else 0.0,
        accuracy_before=accuracy,
    )


def nearest_cases(
    model: PrototypeModel,
    cases: Cases,
    k: int,
    *,
    own_class: bool = False,
    store: TokenStore | None = None,
    batch_size: int = 80,
    workers: int = 0,
    device: torch.device | str = "cpu",
) -> Nearest:
    """Return the ``k`` nearest cases of every prototype, one token a case; changes nothing."""
    rule = "own_class" if own_class else "any"
    return _search(model, cases, k, rule, store, batch_size, workers, torch.device(device))[0]


def prune(model: PrototypeModel, cases: Cases, phase: Prune, **how: Any) -> list[int]:
    """Remove prototypes whose nearest training cases are mostly of other classes; return their ids.

    As in the authors' code, each case counts once, with its nearest token. A class never loses its last prototype: the
    one with the most neighbours of its own class stays, the first of equal ones. (Distances would not do: after a
    projection they are all 0 but for rounding.)
    """
    nearest = nearest_cases(model, cases, phase.k, **how)
    bad = impure(nearest, model.bank.ownership, phase.minimum)
    own = model.bank.ownership > 0
    emptied = (own & ~bad.unsqueeze(1)).sum(0) == 0
    purity = own_neighbours(nearest, model.bank.ownership)
    for label in emptied.nonzero().squeeze(1).tolist():
        members = own[:, label].nonzero().squeeze(1)
        purest = members[purity[members] == purity[members].max()][0]
        bad[purest] = False
    gone: list[int] = model.bank.ids[bad].tolist()
    model.prune(gone)
    return gone


def make_sources(
    model: PrototypeModel,
    cases: Cases,
    chosen: list[int],
    positions: list[int],
    values: list[float],
    shape: Tokens | None = None,
) -> list[Source]:
    """Return the sources of tokens, given as case index and position; ``shape`` is the layout where it is known."""
    fingerprint = model.fingerprint()
    shape = layout(model, cases) if shape is None else shape
    contents = {i: cases.content(i) for i in set(chosen)}  # first, since hashing a picture remembers its size
    sizes = {i: cases.size(i) for i in contents} if shape.grid is not None and cases.pictured else {}
    regions = [_region(model, shape, position, sizes.get(i)) for i, position in zip(chosen, positions, strict=True)]
    return [
        Source(cases.ids[i], contents[i], position, region, value, fingerprint, int(cases.labels[i]))
        for i, position, region, value in zip(chosen, positions, regions, values, strict=True)
    ]


@torch.no_grad()
def layout(model: PrototypeModel, cases: Cases) -> Tokens:
    """Return the encoder's tokens of one case, to see how they are laid out."""
    device = model.bank.vectors.device
    was = model.encoder.training
    model.encoder.eval()
    tokens = model.encode(cases[0].inputs.unsqueeze(0).to(device))
    model.encoder.train(was)
    return tokens


def _region(model: PrototypeModel, shape: Tokens, position: int, picture: tuple[int, int] | None) -> Box | None:
    cell = shape.region(position)
    if cell is None or picture is None or model.encoder.preprocess is None:
        return cell
    region: Box = model.encoder.preprocess.to_picture(cell, picture)
    return region


def _search(
    model: PrototypeModel,
    cases: Cases,
    k: int,
    rule: str,
    store: TokenStore | None,
    batch_size: int,
    workers: int,
    device: torch.device,
) -> tuple[Nearest, float, Tokens | None]:
    """Return the nearest tokens, the accuracy on the way, and a layout of the tokens if any case came by."""
    if len(cases) == 0:
        raise DataError(f"{cases.name}: no case to search for prototypes")
    if rule == "group" and cases.groups is None:
        raise UsageError(f"{cases.name} has no groups: give the cases groups (patients), or use the rule own_class")
    names = sorted(set(cases.groups or ()))
    number = {name: i for i, name in enumerate(names)}
    units = np.array([number[g] for g in cases.groups]) if rule == "group" and cases.groups is not None else None
    labels = torch.from_numpy(np.array(cases.labels))
    search = NearestTokens(model.bank, model.measure, k, own_class=rule != "any", compare=model.compare)
    right = torch.zeros(2, dtype=torch.float64)
    shape: Tokens | None = None
    how = {"batch_size": batch_size, "workers": workers, "shard": True}
    for part, out in plain_outputs(model, cases, store, device, **how):  # type: ignore[arg-type]
        assert out.tokens is not None
        _refuse_nan(out.tokens.values, cases, part)
        shape = out.tokens
        y = labels[part].to(device)
        unit = None if units is None else torch.from_numpy(units)[part].to(device)
        search.update(out.tokens, y, part.to(device), unit)
        right += torch.tensor([float((out.logits.argmax(1) == y).sum()), float((y >= 0).sum())], dtype=torch.float64)
    search.merge(distributed.gather_nearest(search.result))
    right = distributed.sum_over_processes(right)
    return search.result, float(right[0] / right[1].clamp_min(1)), shape


def _refuse_nan(values: Tensor, cases: Cases, part: Tensor) -> None:
    finite = torch.isfinite(values).flatten(1).all(1)
    if not bool(finite.all()):
        name = cases.ids[int(part[int((~finite).nonzero()[0])])]
        raise DataError(
            f"{cases.name}: the tokens of case {name!r} are not finite; look at that input, or at the encoder"
        )


def _shared(ids: list[int], tokens: list[tuple[int, int]]) -> tuple[tuple[int, ...], ...]:
    by_token: dict[tuple[int, int], list[int]] = {}
    for key, token in zip(ids, tokens, strict=True):
        by_token.setdefault(token, []).append(key)
    return tuple(tuple(group) for group in by_token.values() if len(group) > 1)
