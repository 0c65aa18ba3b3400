"""What is installed here, and what looks wrong with a model and its data."""

from __future__ import annotations

import importlib.metadata
import platform
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from protolearn.core.model import PrototypeModel
from protolearn.core.projection import NearestTokens, impure
from protolearn.data import Cases, check_pair, check_training, duplicates
from protolearn.errors import DataError
from protolearn.structures import Tokens
from protolearn.tasks.verify import verify
from protolearn.training.health import collapsed_classes, dead_prototypes
from protolearn.training.material import plain_outputs

Severity = Literal["error", "warning", "note"]

TINY_CLASS = 5
IMBALANCE = 10.0
PROJECTION_LOSS = 0.02
NEIGHBOURS, OWN_NEIGHBOURS = 6, 3
BORDER_SHARE = 0.8


@dataclass(frozen=True)
class Finding:
    """Something a person should look at.

    Attributes
    ----------
    severity : {"error", "warning", "note"}
        Predictions or explanations are wrong; probably hurts; good to know.
    topic : str
        A word for machines.
    message : str
        What, where, and what to do.
    prototypes : tuple of int
        Ids concerned.
    """

    severity: Severity
    topic: str
    message: str
    prototypes: tuple[int, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {**vars(self), "prototypes": list(self.prototypes)}


def environment() -> dict[str, Any]:
    """Return versions, devices and extras of this installation.

    Examples
    --------
    >>> sorted(environment())
    ['devices', 'extras', 'packages', 'platform', 'python']
    """
    plain, extras = _requirements()
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in ("protolearn", *plain)},
        "devices": _devices(),
        "extras": {
            extra: {
                "installed": {name: _version(name) for name in names if _version(name)},
                "missing": [name for name in names if not _version(name)],
                "install": f"pip install 'protolearn[{extra}]'",
            }
            for extra, names in extras.items()
        },
    }


def _requirements() -> tuple[list[str], dict[str, list[str]]]:
    """Return what the package needs, and what each extra adds, from its own metadata."""
    plain: list[str] = []
    extras: dict[str, list[str]] = defaultdict(list)
    try:
        wanted = importlib.metadata.requires("protolearn") or []
    except importlib.metadata.PackageNotFoundError:
        wanted = []
    for line in wanted:
        name = re.split(r"[\s\[<>=!~;(]", line, maxsplit=1)[0]
        extra = re.search(r"extra\s*==\s*['\"]([\w-]+)['\"]", line)
        if extra is None:
            plain.append(name)
        elif extra[1] not in ("dev", "all") and name != "protolearn":
            extras[extra[1]].append(name)
    return plain, dict(extras)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _devices() -> list[str]:
    found = [f"cpu ({torch.get_num_threads()} threads)"]
    if torch.cuda.is_available():
        found += [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        found.append("mps")
    return found


def examine(
    model: PrototypeModel,
    train: Cases | None = None,
    test: Cases | None = None,
    *,
    batch_size: int = 80,
    device: str | torch.device = "cpu",
) -> list[Finding]:
    """Return everything suspicious about a model, and about its data where they are given; worst first.

    Parameters
    ----------
    model : PrototypeModel
        Not changed.
    train : Cases, optional
        The training data: sources are recomputed, and one pass looks for dead and impure prototypes.
    test : Cases, optional
        Compared with the training data by content.
    batch_size, device
        How the passes are run.
    """
    findings = [*_model(model), *_metadata(model)]
    if train is not None:
        try:
            train = train.with_classes(model.classes)
        except DataError as error:
            return [*findings, Finding("error", "classes", str(error))]
        findings += [*_data(train), *_sources(model, train, batch_size, device)]
        if not any(finding.topic == "nan" for finding in findings):
            findings += _pass(model, train, batch_size, torch.device(device))
    if train is not None and test is not None:
        try:
            findings += [
                Finding("warning", "split", text) for text in check_pair(train, test.with_classes(model.classes))
            ]
        except DataError as error:
            findings.append(Finding("error", "split", str(error)))
    order = {"error": 0, "warning": 1, "note": 2}
    return sorted(findings, key=lambda finding: order[finding.severity])


def _model(model: PrototypeModel) -> Iterator[Finding]:
    bank = model.bank
    ids = bank.ids.tolist()
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            yield Finding("error", "nan", f"{name} holds NaN or infinite numbers: train again, with a smaller rate")
    usable = bank.usable
    none_owned = not bool((bank.ownership > 0).any())  # prototypes that belong to no class serve all of them
    for label, name in enumerate(model.classes):
        if not none_owned and not bool(((bank.ownership[:, label] > 0) & usable).any()):
            yield Finding(
                "error", "class without prototypes", f"class {name!r} has no usable prototype to be recognised by"
            )
    for label in collapsed_classes(bank):
        members = tuple(bank.ids[(bank.ownership[:, label] > 0) & usable].tolist())
        text = f"all {len(members)} prototypes of class {model.classes[label]!r} are (almost) the same vector"
        yield Finding("warning", "collapsed", text, members)
    without = tuple(key for key, source in zip(ids, bank.sources, strict=True) if source is None)
    if without:
        text = (
            f"{len(without)} of {len(ids)} prototypes come from no training case, so they cannot be shown: project them"
        )
        yield Finding("warning", "no source", text, without)
    fingerprint = model.fingerprint()
    old = tuple(k for k, s in zip(ids, bank.sources, strict=True) if s is not None and s.encoder != fingerprint)
    if old:
        text = (
            f"{len(old)} prototypes were taken with other weights of encoder or neck than the model has: project again"
        )
        yield Finding("error", "encoder changed", text, old)
    tokens: dict[tuple[str, int], list[int]] = defaultdict(list)
    for key, source in zip(ids, bank.sources, strict=True):
        if source is not None and source.moved:
            tokens[source.content, source.position].append(key)
    shared = [keys for keys in tokens.values() if len(keys) > 1]
    if shared:
        together = sum(map(len, shared))
        text = f"{together} prototypes are the same place of the same case as another one, e.g. {_shown(shared[0])}"
        yield Finding("warning", "duplicate", text, tuple(key for keys in shared for key in keys))
    per_unit = model.head.per_unit(len(bank), bank.usable)
    owned = bank.ownership > 0
    against = torch.zeros_like(usable) if per_unit is None else ((per_unit.T <= 0) & owned).any(1) & usable
    if bool(against.any()):
        keys = tuple(bank.ids[against].tolist())
        text = f"{len(keys)} prototypes speak against a class that owns them (weight at most 0): {_shown(keys)}"
        yield Finding("warning", "weight", text, keys)
    idle = tuple(bank.ids[~usable].tolist())
    if idle:
        yield Finding("note", "switched off", f"{len(idle)} prototypes are inactive or banned: {_shown(idle)}", idle)


def _metadata(model: PrototypeModel) -> Iterator[Finding]:
    projections = model.metadata.get("projections")
    for number, entry in enumerate(projections if isinstance(projections, list) else (), start=1):
        if not isinstance(entry, dict):
            continue
        before, after = entry.get("accuracy_before"), entry.get("accuracy_after")
        if isinstance(before, float) and isinstance(after, float) and before - after > PROJECTION_LOSS:
            text = (
                f"projection {number} cost {100 * (before - after):.1f} points of training accuracy ({before:.3f} to "
                f"{after:.3f}): a stronger cluster term brings prototypes nearer to real tokens"
            )
            yield Finding("warning", "projection", text)


def _data(train: Cases) -> Iterator[Finding]:
    try:
        warned = check_training(train)
    except DataError as error:
        yield Finding("error", "data", str(error))
        return
    for text in warned:
        yield Finding("warning", "data", text)
    counts = {name: count for name, count in train.counts().items() if count}
    tiny = [f"{name!r} ({count})" for name, count in counts.items() if 1 < count < TINY_CLASS]
    if tiny:
        text = f"{train.name}: few cases of {', '.join(tiny[:5])}{' and more' if len(tiny) > 5 else ''}"
        yield Finding("warning", "tiny class", text)
    most, least = max(counts, key=lambda n: counts[n]), min(counts, key=lambda n: counts[n])
    if counts[most] > IMBALANCE * counts[least]:
        text = (
            f"{train.name}: {counts[most]} cases of {most!r}, {counts[least]} of {least!r}; look at balanced accuracy"
        )
        yield Finding("warning", "imbalance", text)
    same = duplicates(train)
    if same:
        labels = {case: int(label) for case, label in zip(train.ids, train.labels.tolist(), strict=True)}
        torn = [(a, b) for a, b in same if labels[a] != labels[b]]
        text = f"{len(same)} pictures of {train.name} occur twice, e.g. {same[0][1]} = {same[0][0]}"
        yield Finding("note", "repeated picture", text)
        if torn:
            text = f"{len(torn)} pictures of {train.name} have two labels, e.g. {torn[0][1]} = {torn[0][0]}"
            yield Finding("warning", "contradicting labels", text)


def _sources(model: PrototypeModel, train: Cases, batch_size: int, device: str | torch.device) -> Iterator[Finding]:
    result = verify(model, train, batch_size=batch_size, device=device)
    wrong: dict[str, list[int]] = defaultdict(list)
    for check in result.failures:
        if check.status not in ("no source", "encoder changed"):  # said already
            wrong[check.status].append(check.prototype)
    for status, keys in wrong.items():
        text = f"{len(keys)} prototypes do not match {train.name} ({status}): {_shown(keys)}; see protolearn verify"
        yield Finding("error", status, text, tuple(keys))


def _pass(model: PrototypeModel, train: Cases, batch_size: int, device: torch.device) -> Iterator[Finding]:
    """Run the training cases once and look at what the prototypes do."""
    bank = model.bank
    home = bank.ids.device
    model.to(device)
    plain = train if model.encoder.preprocess is None else train.with_transform(model.encoder.preprocess)
    labels = torch.from_numpy(train.labels.copy())
    search = NearestTokens(bank, model.measure, NEIGHBOURS, own_class=False, compare=model.compare)
    evidence: list[Tensor] = []
    layout: Tokens | None = None
    for part, out in plain_outputs(model, plain, None, device, batch_size=batch_size):
        assert out.tokens is not None
        if not bool(torch.isfinite(out.logits).all()):
            row = int((~torch.isfinite(out.logits).all(1)).nonzero()[0])
            yield Finding("error", "nan", f"case {train.ids[int(part[row])]!r} gets logits that are not finite")
            model.to(home)
            return
        layout = out.tokens.replace(values=out.tokens.values[:1], mask=None, summary=None)
        search.update(out.tokens, labels[part].to(device), part.to(device))
        evidence.append(out.evidence.cpu())
    found = search.result
    model.to(home)
    table = torch.cat(evidence)
    dead = dead_prototypes(bank.cpu() if home.type == "cpu" else bank, table.to(home))
    if dead:
        text = f"{len(dead)} prototypes are dead (the same evidence for every case): {_shown(dead)}"
        yield Finding("warning", "dead", text, tuple(dead))
    unused = _never_nearest(model, table, labels)
    if unused:
        text = f"{len(unused)} prototypes are never the best match of their class in any of its cases: {_shown(unused)}"
        yield Finding("note", "unused", text, tuple(unused))
    needed = min(OWN_NEIGHBOURS, len(train))
    mixed = (impure(found, bank.ownership.to(device), needed).cpu() & bank.usable.cpu()).nonzero().squeeze(1)
    if len(mixed):
        keys = tuple(bank.ids.cpu()[mixed].tolist())
        text = (
            f"{len(keys)} prototypes are impure (fewer than {needed} of their {NEIGHBOURS} nearest cases are of their "
            f"class): {_shown(keys)}; prune them"
        )
        yield Finding("warning", "impure", text, keys)
    if layout is not None:
        yield from _border(model, layout)


def _never_nearest(model: PrototypeModel, evidence: Tensor, labels: Tensor) -> list[int]:
    bank = model.bank
    owned = bank.ownership.cpu() > 0
    usable = bank.usable.cpu()
    used = ~usable | ~owned.any(1)
    for label in range(bank.classes):
        members = (owned[:, label] & usable).nonzero().squeeze(1)
        if len(members) and bool((labels == label).any()):
            used[members[evidence[labels == label][:, members].argmax(1).unique()]] = True
        else:
            used[members] = True
    return [key for key, seen in zip(bank.ids.tolist(), used.tolist(), strict=True) if not seen]


def _border(model: PrototypeModel, layout: Tokens) -> Iterator[Finding]:
    if layout.grid is None or len(layout.grid) != 2 or min(layout.grid) < 4:
        return
    height, width = layout.grid
    ids = model.bank.ids.tolist()
    placed = [(key, source.position) for key, source in zip(ids, model.bank.sources, strict=True) if source is not None]
    rim = tuple(k for k, at in placed if at // width in (0, height - 1) or at % width in (0, width - 1))
    expected = 1 - (height - 2) * (width - 2) / (height * width)
    if len(placed) >= 5 and len(rim) / len(placed) >= max(BORDER_SHARE, expected + 0.1):
        text = (
            f"{len(rim)} of {len(placed)} prototypes lie at the border of the picture ({expected:.0%} by chance): "
            "the encoder may see its own padding instead of content; try an earlier layer or crop tighter"
        )
        yield Finding("warning", "border", text, rim)


def _shown(keys: Iterable[int], most: int = 10) -> str:
    listed = list(keys)
    return ", ".join(map(str, listed[:most])) + (f" and {len(listed) - most} more" if len(listed) > most else "")
