"""Verification: every prototype must equal the place in the training case that it claims to come from.

Each source is looked up by case id, its picture compared by content, and its token computed again. What does not
match is named; nothing is repaired.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from protolearn.core.model import PrototypeModel
from protolearn.core.modes import evaluating
from protolearn.data import Cases
from protolearn.errors import DataError, UsageError
from protolearn.structures import Box, Source, Tokens

Status = Literal[
    "ok", "no source", "case missing", "case renamed", "content changed", "case unreadable", "encoder changed",
    "token differs", "region differs",
]  # fmt: skip


@dataclass(frozen=True)
class Check:
    """What came of one prototype.

    Attributes
    ----------
    prototype : int
        Its id.
    owner : str
        Names of the classes that own it.
    case : str or None
        The recorded case id.
    status : str
        "ok", or what does not match.
    detail : str
        In words: where the case is now, by how much the token differs.
    difference : float or None
        Distance between prototype and recomputed token, relative to the length of the prototype; for a prototype that
        stayed where it was, how far the recomputed nearness is from the recorded one.
    """

    prototype: int
    owner: str
    case: str | None
    status: Status
    detail: str = ""
    difference: float | None = None


@dataclass(frozen=True)
class Verification:
    """Every prototype with what came of it."""

    checks: tuple[Check, ...]
    fingerprint: str = ""

    @property
    def ok(self) -> bool:
        """Every prototype has a source, and equals it."""
        return bool(self.checks) and all(check.status == "ok" for check in self.checks)

    @property
    def failures(self) -> tuple[Check, ...]:
        """The prototypes that do not match."""
        return tuple(check for check in self.checks if check.status != "ok")

    def summary(self) -> str:
        """Return one line.

        Examples
        --------
        >>> Verification((Check(0, "cat", "a.png", "ok"), Check(1, "cat", None, "no source"))).summary()
        '1 of 2 prototypes match the case they come from; 1 no source'
        """
        wrong = Counter(check.status for check in self.failures)
        line = f"{len(self.checks) - len(self.failures)} of {len(self.checks)} prototypes match the case they come from"
        return "; ".join([line, ", ".join(f"{count} {status}" for status, count in wrong.items())]) if wrong else line

    def table(self, *, everything: bool = False) -> str:
        """Return the prototypes that do not match, or all, as lines of text."""
        rows = [("prototype", "class", "status", "case", "detail")]
        for check in self.checks if everything else self.failures:
            rows.append((str(check.prototype), check.owner, check.status, check.case or "", check.detail))
        widths = [min(60, max(len(row[column]) for row in rows)) for column in range(4)]
        return "\n".join(
            "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]]).rstrip()
            for row in rows
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {
            "ok": self.ok,
            "prototypes": len(self.checks),
            "failures": len(self.failures),
            "checks": [vars(check) for check in self.checks],
        }


def verify(
    model: PrototypeModel,
    cases: Cases,
    *,
    tolerance: float = 1e-3,
    batch_size: int = 64,
    device: str | torch.device | None = None,
) -> Verification:
    """Recompute every prototype from the case it says it comes from.

    Only the cases that prototypes name are read. The rest is read, and compared by content, when a named case is
    missing or holds another picture: it may have been renamed.

    Parameters
    ----------
    model : PrototypeModel
        Any model whose sources are recorded; it is not changed.
    cases : Cases
        The training data, in any order and under any transform: pictures are shown to the encoder as at projection.
    tolerance : float
        Largest allowed difference between prototype and token, relative to the length of the prototype. Other machines
        and batch sizes round differently, by about 1e-6.
    batch_size, device
        How the cases are run; by default where the model is.

    Returns
    -------
    Verification

    Examples
    --------
    >>> verify(model, train).ok  # doctest: +SKIP
    True
    """
    if not tolerance > 0:
        raise UsageError(f"tolerance must be above 0, got {tolerance}")
    bank = model.bank
    owners = [" + ".join(_names(model, row)) for row in range(len(bank))]
    found: dict[int, int] = {}  # bank row -> index of the very case
    checks: dict[int, Check] = {}

    def note(row: int, status: Status, detail: str = "", difference: float | None = None) -> None:
        source = bank.sources[row]
        case = None if source is None else source.case
        checks[row] = Check(int(bank.ids[row]), owners[row], case, status, detail, difference)

    lost: list[int] = []
    for row, source in enumerate(bank.sources):
        if source is None:
            note(row, "no source", "it comes from no single case: never projected, or merged since")
            continue
        try:
            index = cases.index(source.case)
        except DataError:
            lost.append(row)
            note(row, "case missing", f"{cases.name} has no case of this id, nor any of the same content")
            continue
        try:
            same = cases.content(index) == source.content
        except DataError as error:
            note(row, "case unreadable", str(error))
            continue
        if same:
            found[row] = index
        else:
            lost.append(row)
            note(row, "content changed", "the case of this id holds another picture than the recorded one")
    for row, name in _by_content(cases, [(row, bank.sources[row]) for row in lost]):
        was = checks[row].status
        other = ", and another picture has its id now" if was == "content changed" else ""
        note(row, "case renamed", f"the same picture is now called {name!r}{other}")
    fingerprint = model.fingerprint()
    place = torch.device(device) if device is not None else bank.ids.device
    for row, tokens, index in _tokens(model, cases, found, batch_size, place):
        source = bank.sources[row]
        assert source is not None
        note(row, *_compare(model, row, source, tokens, cases, index, fingerprint, tolerance))
    return Verification(tuple(checks[row] for row in range(len(bank))), fingerprint)


def _compare(
    model: PrototypeModel,
    row: int,
    source: Source,
    tokens: Tokens,
    cases: Cases,
    index: int,
    fingerprint: str,
    tolerance: float,
) -> tuple[Status, str, float | None]:
    if source.position >= tokens.values.shape[1]:
        return "token differs", f"position {source.position} is not among {tokens.values.shape[1]}", None
    token, vector = tokens.values[0, source.position], model.bank.vectors[row].detach()
    if source.moved:
        became = model.bank.settled(torch.tensor([row], device=token.device), token.unsqueeze(0))[0].double().cpu()
        kept = vector.double().cpu()
        gap = float((became - kept).norm() / kept.norm().clamp_min(1e-12))
    else:
        found = float(
            model.measure.paired(token, vector)
            if model.compare is None
            else model.compare(tokens)[0, source.position, row]
        )
        gap = abs(found - source.distance) / max(abs(source.distance), 1.0)
    size = f"by {gap:.3g} of its length"
    if source.encoder != fingerprint:
        return "encoder changed", f"encoder or neck are not those it was taken with; its token differs {size}", gap
    if not gap <= tolerance:
        return "token differs", f"{size} (tolerance {tolerance:g})", gap
    region = _region(model, tokens, source.position, cases, index)
    if not _same_region(region, source.region):
        return "region differs", f"recorded {_shown(source.region)}, computed {_shown(region)}", gap
    return "ok", "", gap


def _names(model: PrototypeModel, row: int) -> list[str]:
    return [model.classes[c] for c in (model.bank.ownership[row] > 0).nonzero().squeeze(1).tolist()]


def _by_content(cases: Cases, lost: Sequence[tuple[int, Source | None]]) -> Iterator[tuple[int, str]]:
    """Yield the new case id of sources whose picture is still there; stops reading once all are found."""
    wanted: dict[str, list[int]] = {}
    for row, source in lost:
        if source is not None:
            wanted.setdefault(source.content, []).append(row)
    for index, name in enumerate(cases.ids):
        if not wanted:
            return
        try:
            content = cases.content(index)
        except DataError:
            continue  # a damaged picture is not the one that is looked for
        for row in wanted.pop(content, ()):
            yield row, name


@torch.no_grad()
def _tokens(
    model: PrototypeModel, cases: Cases, found: dict[int, int], batch_size: int, device: torch.device
) -> Iterator[tuple[int, Tokens, int]]:
    """Yield ``(bank row, embedded tokens of its case (1, S, D), case index)``, each case run once, in eval mode."""
    plain = cases if model.encoder.preprocess is None else cases.with_transform(model.encoder.preprocess)
    rows: dict[int, list[int]] = {}
    for row, index in found.items():
        rows.setdefault(index, []).append(row)
    order = sorted(rows)
    home = model.bank.ids.device
    with evaluating(model):
        model.to(device)
        try:
            for start in range(0, len(order), batch_size):
                part = order[start : start + batch_size]
                inputs: Tensor = torch.stack([plain[index].inputs for index in part]).to(device)
                tokens = model.embed(model.encode(inputs))
                for place, index in enumerate(part):
                    one = tokens.part(slice(place, place + 1))
                    for row in rows[index]:
                        yield row, one, index
        finally:
            model.to(home)


def _region(model: PrototypeModel, tokens: Tokens, position: int, cases: Cases, index: int) -> Box | None:
    cell = tokens.region(position)
    if cell is None or model.encoder.preprocess is None:
        return cell
    region: Box = model.encoder.preprocess.to_picture(cell, cases.picture(index).size)
    return region


def _same_region(left: Box | None, right: Box | None) -> bool:
    if left is None or right is None:
        return left is right
    return bool(np.allclose(left, right, atol=0.5))


def _shown(region: Box | None) -> str:
    return "nowhere" if region is None else "(" + ", ".join(f"{side:.4g}" for side in region) + ")"
