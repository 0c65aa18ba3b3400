"""The training cases nearest to prototypes, and where in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from protolearn.core.model import PrototypeModel
from protolearn.core.projection import Nearest
from protolearn.data import Cases
from protolearn.errors import DataError, UsageError
from protolearn.explain.passes import CaseList, run_over
from protolearn.explain.regions import Cells
from protolearn.tasks.retrieve_result import PrototypeCases, SimilarCase
from protolearn.training import project


def cases_of_prototypes(
    model: PrototypeModel,
    train: Cases,
    ids: Sequence[int] | None = None,
    *,
    k: int = 5,
    batch_size: int = 64,
    device: str | torch.device | None = None,
    workers: int = 0,
) -> tuple[PrototypeCases, ...]:
    """Find the training cases nearest to prototypes, of any class, each with the place that is nearest in it.

    Parameters
    ----------
    model : PrototypeModel
        Left as it is.
    train : Cases
        The training cases.
    ids : sequence of int, optional
        Which prototypes; all usable ones by default. One that is banned or inactive finds nothing.
    k : int
        How many cases; fewer where there are fewer.
    batch_size, device, workers
        As usual.

    Examples
    --------
    >>> from protolearn.data import digits
    >>> from protolearn.encoders import SmallEncoder
    >>> from protolearn.methods import get_method
    >>> model = get_method("protopnet")(prototypes_per_class=2).build(SmallEncoder(), 10)
    >>> (one,) = cases_of_prototypes(model, digits("train").subset(range(50)), [3], k=2)
    >>> one.prototype, one.owner, len(one.found)
    (3, '1', 2)
    """
    if k < 1:
        raise UsageError(f"k must be at least 1, got {k}")
    bank = model.bank
    wanted = bank.ids[bank.usable].tolist() if ids is None else [int(key) for key in ids]
    missing = [key for key in wanted if key not in set(bank.ids.tolist())]
    if missing:
        raise UsageError(f"there is no prototype {missing[0]} in this model (any more)")
    if len(train) == 0:
        raise DataError(f"{train.name}: no case to find")
    found = NearPrototypes.of(model, train, k, {"batch_size": batch_size, "device": device, "workers": workers})
    owners = bank.owner().tolist()
    return tuple(
        PrototypeCases(
            prototype=key,
            owner=None if owners[row] < 0 else model.classes[owners[row]],
            source=bank.sources[row],
            found=found.to(row, k),
        )
        for key, row in zip(wanted, bank.rows(wanted).tolist(), strict=True)
    )


@dataclass(frozen=True)
class NearPrototypes:
    """The nearest training cases of every prototype."""

    train: Cases
    nearest: Nearest
    cells: Cells

    @classmethod
    def of(cls, model: PrototypeModel, train: Cases, k: int, passing: Mapping[str, Any]) -> NearPrototypes:
        """Return the k nearest of every usable prototype; ``passing`` says how: batch_size, workers, device."""
        if model.bank.drawn:
            raise UsageError("the prototypes of this model belong to one input each: no training case is near them")
        preprocess = getattr(model.encoder, "preprocess", None)
        where = model.bank.ids.device if passing["device"] is None else torch.device(passing["device"])
        shown = train if preprocess is None else train.with_transform(preprocess)
        with torch.no_grad():
            found = project.nearest_cases(
                model.to(where), shown, min(k, len(train)), batch_size=passing["batch_size"],
                workers=passing["workers"], device=where,
            )  # fmt: skip
        (first,) = run_over(model, train, [0])
        assert first.output.tokens is not None, "a whole pass keeps the tokens"
        return cls(train, found, Cells(first.output.tokens, preprocess))

    def to(self, row: int, k: int, but: int = -1) -> tuple[SimilarCase, ...]:
        """Return up to k cases of one prototype, without a certain one."""
        there = self.nearest.found[row] & (self.nearest.cases[row] != but)
        columns = (self.nearest.cases[row], self.nearest.values[row], self.nearest.positions[row])
        found = zip(*(column[there][:k].tolist() for column in columns), strict=True)
        return tuple(
            SimilarCase(self.train.ids[i], class_name(self.train, i), value, self.cells.box(position, self._size(i)))
            for i, value, position in found
        )

    def _size(self, index: int) -> tuple[int, int] | None:
        return self.train.size(index) if self.train.pictured else None


def class_name(cases: CaseList, index: int) -> str | None:
    """Return the name of a case's class, None where it is unlabelled."""
    label = int(cases.labels[index])
    return None if label < 0 else str(cases.classes[label])
