"""What looks wrong while training: said as warnings, in words that name the prototypes and pictures."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from protolearn.core.bank import PrototypeBank
from protolearn.training.project import Projection


def dead_prototypes(bank: PrototypeBank, evidence: Tensor) -> list[int]:
    """Return ids of usable prototypes whose evidence ``(N, P)`` hardly differs between cases.

    Hardly: its standard deviation is under a thousandth of the mean standard deviation of all, or zero.
    """
    if len(evidence) < 2:
        return []
    spread = evidence.float().std(0)
    typical = spread[bank.usable].mean() if bool(bank.usable.any()) else spread.mean()
    dead = (spread <= 1e-3 * typical) & bank.usable
    found: list[int] = bank.ids[dead].tolist()
    return found


def collapsed_classes(bank: PrototypeBank) -> list[int]:
    """Return classes with several prototypes that (almost) all are the same vector."""
    vectors = bank.vectors.detach()
    if len(bank) < 2:
        return []
    typical = torch.cdist(vectors, vectors).mean()
    collapsed = []
    for label in range(bank.classes):
        members = vectors[(bank.ownership[:, label] > 0) & bank.usable]
        if len(members) > 1 and torch.cdist(members, members).max() <= 1e-3 * typical:
            collapsed.append(label)
    return collapsed


def projection_warnings(report: Projection, bank: PrototypeBank, classes: tuple[str, ...]) -> Iterator[str]:
    """Yield what a person should know about where prototypes went."""
    if report.duplicates:
        shared = sum(len(group) for group in report.duplicates)
        yield (
            f"{shared} of {len(bank)} prototypes share a training token with another one, e.g. ids "
            f"{', '.join(map(str, report.duplicates[0]))}: use fewer per class, or distinct projection"
        )
    if report.kept:
        named = ", ".join(map(str, report.kept))
        yield f"prototypes {named} found no training case of their class and stayed as they were"
    for label in collapsed_classes(bank):
        yield f"all prototypes of class {classes[label]!r} collapsed onto one: they say one thing several times"


def projection_cost(before: float, after: float) -> str | None:
    """Return a warning when projection took more than two points of training accuracy."""
    if before - after <= 0.02:
        return None
    return (
        f"projection cost {100 * (before - after):.1f} points of training accuracy ({before:.3f} to {after:.3f}): a "
        "stronger cluster term brings prototypes nearer to real tokens"
    )
