"""Run one metric as an audit does, on planted models whose inputs are their maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tests.audit.planted import planted
from torch import Tensor

from protolearn.audit.marks import no_marks
from protolearn.audit.metric import Score, Seen, Setting, make_metric
from protolearn.audit.noise import disturb
from protolearn.audit.subject import AdaptedSubject, Subject

Part = tuple[Tensor, Tensor]


def channels(
    ownership: Tensor,
    weight: Tensor | None = None,
    vectors: Tensor | None = None,
    ids: Sequence[int] | None = None,
    usable: Tensor | None = None,
) -> AdaptedSubject:
    """Return a subject whose inputs ``(B, P, h, w)`` are its maps; prototypes out of use score 0."""

    def maps(inputs: Tensor) -> Tensor:
        return inputs if usable is None else inputs * usable.view(1, -1, 1, 1)

    return planted(maps, ownership, weight, vectors=vectors, ids=ids, usable=usable)


def measure(
    name: str,
    subject: Subject,
    parts: dict[str, Part],
    *,
    batch: int = 5,
    twin: Subject | None = None,
    std: float = 0.2,
    **settings: Any,
) -> Score:
    """Run one metric as an audit does."""
    found = make_metric(name, **settings)
    counts = {part: len(inputs) for part, (inputs, _) in parts.items()}
    found.start(Setting(subject, counts, (), torch.Generator().manual_seed(0), twin))
    passes = [p.replace("?", "") if p.replace("?", "") in parts else "cases" for p in found.about.passes]
    with subject.looking():
        for part in dict.fromkeys(p for p in passes if p in parts):
            inputs, labels = parts[part]
            for rows in torch.arange(len(inputs)).split(batch):
                x = inputs[rows]
                each = [torch.Generator().manual_seed(int(i)) for i in rows]
                noisy = torch.cat([disturb(x[k : k + 1], std=std, generator=g) for k, g in enumerate(each)])
                shaken = (subject.look(noisy),) if found.about.noise else ()
                found.update(Seen(part, rows, x, labels[rows], subject.look(x), no_marks(len(x)), shaken))
    return found.result()


def drawn_maps(cases: int = 24, prototypes: int = 6, classes: int = 3, side: int = 8) -> tuple[Tensor, dict[str, Part]]:
    """Smooth maps in which prototypes of a case's class are high at a place of their own."""
    g = torch.Generator().manual_seed(1)
    ownership = torch.eye(classes).repeat_interleave(prototypes // classes, 0)

    def draw(count: int) -> Part:
        labels = torch.arange(count) % classes
        maps = 0.3 * torch.rand(count, prototypes, side, side, generator=g)
        place = torch.randint(1, side - 1, (count, prototypes, 2), generator=g)
        high = 1.0 + ownership.T[labels] * torch.rand(count, prototypes, generator=g)
        b, p = torch.meshgrid(torch.arange(count), torch.arange(prototypes), indexing="ij")
        maps[b, p, place[..., 0], place[..., 1]] += high
        return maps, labels

    parts = {"cases": draw(cases), "train": draw(2 * cases)}
    maps, labels = parts["cases"]
    parts["shifted"] = (0.7 * maps + 0.3 * torch.rand(maps.shape, generator=g), labels)
    return ownership, parts
