"""Retrieval: the training cases most like a case, or like a prototype, to be looked at beside it.

A prediction is more to be trusted where the training cases that the model finds alike carry its class; how far that
holds is in the result (``agreement_when_right`` and ``agreement_when_wrong``), not assumed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from protolearn.core.gathering import summarise
from protolearn.core.matching import chunk_rows
from protolearn.core.measures import Distance, Measure, cosine, get_measure, squared_l2
from protolearn.core.model import PrototypeModel
from protolearn.core.projection import Nearest
from protolearn.data import Cases
from protolearn.encoders.search import KNOWN, MANY, MORE, nearest_cases
from protolearn.errors import DataError, UsageError, look_up
from protolearn.explain.passes import CaseList, Seen, run_over, track
from protolearn.explain.regions import Cells
from protolearn.explain.survey import predicted_contribution
from protolearn.structures import Output
from protolearn.tasks.retrieved import By, PrototypeCases, Query, SimilarCase, SimilarCases
from protolearn.training import project

USUAL: dict[str, Measure | None] = {"evidence": squared_l2, "embedding": cosine, "prototype": None}
"""What vectors are compared by, where nothing else is asked for; None = the model's own measure."""


def similar_cases(
    model: PrototypeModel,
    cases: CaseList,
    train: Cases,
    indices: Sequence[int] | None = None,
    *,
    k: int = 5,
    by: By = "evidence",
    measure: str | None = None,
    search: Literal["auto", "exact", "faiss"] = "auto",
    many: int = MANY,
    batch_size: int = 64,
    device: str | torch.device | None = None,
    workers: int = 0,
    quiet: bool = True,
) -> SimilarCases:
    """Find the training cases most like each of some cases; the model is left as it is.

    A case that is among the training cases itself (same id, same content) is not found for itself.

    Parameters
    ----------
    model : PrototypeModel
        What is alike in its eyes.
    cases, indices
        What to ask about; all by default.
    train : Cases
        The training cases.
    k : int
        How many to find for each.
    by : {"evidence", "embedding", "prototype"}
        ``evidence``: the vector of all usable prototypes' evidence, so that what is found was judged for the same
        reasons. ``embedding``: the encoder's summary of the whole input or, where it makes none, the mean of the
        embedded tokens. ``prototype``: the training cases nearest to one prototype, in the model's own measure: of
        those of the predicted class the one that added most to it; where prototypes belong to no class, the one that
        added most, if any added something.
    measure : str, optional
        By default ``squared_l2`` for evidence and ``cosine`` for embeddings; not for ``prototype``.
    search : {"auto", "exact", "faiss"}
        How vectors are searched; ``auto`` takes faiss (extra ``scale``) where it is installed and there are ``many``
        training cases or more. A few more than ``k`` are found and compared again exactly, so the answer is the same.
    many : int
        See ``search``.
    batch_size, device, workers, quiet
        As usual.

    Raises
    ------
    UsageError
        If a name is unknown, or the prototypes are not the same for every input.
    DataError
        If there is nothing to find, or a case's vector is not finite.

    Examples
    --------
    >>> from protolearn.data import digits
    >>> from protolearn.encoders import SmallEncoder
    >>> from protolearn.methods import get_method
    >>> model = get_method("protopnet")(prototypes_per_class=2).build(SmallEncoder(), 10)
    >>> found = similar_cases(model, digits("test"), digits("train").subset(range(50)), [0, 1], k=3)
    >>> [len(query.found) for query in found.queries], found.search
    ([3, 3], 'exact')
    """
    how = look_up("way to compare cases", by, USUAL)
    if k < 1:
        raise UsageError(f"k must be at least 1, got {k}")
    if search not in ("auto", "exact", "faiss"):
        raise UsageError(f"search must be auto, exact or faiss, got {search!r}")
    if len(train) == 0:
        raise DataError(f"{train.name}: no case to find")
    passing: dict[str, Any] = {"batch_size": batch_size, "device": device, "workers": workers}
    total = len(cases) if indices is None else len(indices)
    asked = track(run_over(model, cases, indices, **passing), total, "looking for similar cases", quiet=quiet)
    itself = _Itself(cases, train)
    if how is None:
        if measure is not None:
            raise UsageError(f"a prototype is compared in the model's own measure, {model.measure.name}")
        near_to = _NearPrototypes.of(model, train, k + 1, passing)  # one more, in case it is the one asked about
        by_one = [query for seen in asked for query in _by_prototype(model, cases, seen, near_to, k, itself)]
        return SimilarCases(by, model.measure.name, "exact", len(train), tuple(by_one))
    way = how if measure is None else get_measure(measure)
    taken = _search_for(search, way, len(train), many)
    values, said, left_out = [], [], []
    for seen in asked:
        values.append(_vector(seen.output, by))
        _refuse_nan(values[-1], cases, seen.indices)
        said += _said(model, cases, seen)
        left_out += [itself.row(i) for i in seen.indices]
    queries = []
    if said:
        stored = _vectors(model, train, by, passing, quiet)
        left = torch.tensor(left_out, device=stored.device)
        for told, near in zip(said, _nearest(torch.cat(values), stored, way, k, left, taken), strict=True):
            queries.append(
                Query(*told, None, tuple(SimilarCase(train.ids[r], class_name(train, r), v) for r, v in near))
            )
    return SimilarCases(by, way.name, taken, len(train), tuple(queries))


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
    found = _NearPrototypes.of(model, train, k, {"batch_size": batch_size, "device": device, "workers": workers})
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


# -- by a vector ------------------------------------------------------------------------------------------------------


def _search_for(search: str, measure: Measure, stored: int, many: int) -> str:
    if search != "auto":
        return search
    able = measure.name in KNOWN and importlib.util.find_spec("faiss") is not None
    return "faiss" if able and stored >= many else "exact"


def _vector(output: Output, by: By) -> Tensor:
    if by == "evidence":
        return output.evidence.detach().float()[:, output.bank.usable]
    assert output.tokens is not None, "a whole pass keeps the tokens"
    return summarise(output.tokens).detach().float()


def _vectors(model: PrototypeModel, train: Cases, by: By, passing: dict[str, Any], quiet: bool) -> Tensor:
    parts = []
    for seen in track(run_over(model, train, **passing), len(train), "reading training cases", quiet=quiet):
        parts.append(_vector(seen.output, by))
        _refuse_nan(parts[-1], train, seen.indices)
    return torch.cat(parts)


def _refuse_nan(values: Tensor, cases: CaseList, indices: list[int]) -> None:
    finite = torch.isfinite(values).all(1)
    if not bool(finite.all()):
        case = cases.ids[indices[int((~finite).nonzero()[0])]]
        raise DataError(f"case {case!r} has evidence or tokens that are not finite: nothing is like it")


def _nearest(
    values: Tensor, stored: Tensor, measure: Measure, k: int, left_out: Tensor, search: str
) -> list[list[tuple[int, float]]]:
    """Return row and value of the k nearest of each, compared exactly; a tie goes to the lower row."""
    found: list[list[tuple[int, float]]] = [[] for _ in range(len(values))]
    for among_them in (False, True):  # who is among the stored cases must not find itself, and has one fewer to find
        who = ((left_out >= 0) == among_them).nonzero().squeeze(1)
        if len(who) == 0 or (among_them and len(stored) == 1):
            continue
        asked, alone = values[who], left_out[who] if among_them else None
        rows = nearest_cases(asked, stored, measure, k + MORE, left_out=alone, search=search)[1].sort(1).values
        step = chunk_rows(4 * asked.element_size() * rows.shape[1] * asked.shape[1])
        for i in range(0, len(who), step):
            part = rows[i : i + step]
            exact = measure.paired(asked[i : i + step].unsqueeze(1), stored[part])
            order = exact.argsort(dim=1, stable=True, descending=not isinstance(measure, Distance))[:, :k]
            listed = part.gather(1, order).tolist(), exact.gather(1, order).tolist()
            for query, at, near in zip(who[i : i + step].tolist(), *listed, strict=True):
                found[query] = list(zip(at, near, strict=True))
    return found


class _Itself:
    """Which training case, if any, is the very case that is asked about: same id, same content."""

    def __init__(self, cases: CaseList, train: Cases) -> None:
        self.cases, self.train = cases, train
        self.places = {case: row for row, case in enumerate(train.ids)}

    def row(self, index: int) -> int:
        """Return its row, -1 where there is none."""
        row = self.places.get(str(self.cases.ids[index]), -1)
        if row < 0 or self.cases is self.train or not hasattr(self.cases, "content"):
            return row
        return row if self.cases.content(index) == self.train.content(row) else -1


class _Said(NamedTuple):
    case: str
    predicted: str | None
    probability: float
    label: str | None


def _said(model: PrototypeModel, cases: CaseList, seen: Seen) -> list[_Said]:
    chances = model.head.probabilities(seen.output.logits.double()).detach()
    best = seen.output.logits.argmax(1)
    sure = chances.gather(1, best.unsqueeze(1)).squeeze(1).tolist()
    silent = model.head.abstains(seen.output.logits).tolist()
    return [
        _Said(
            case=str(cases.ids[i]),
            predicted=None if silent[b] else model.classes[int(best[b])],
            probability=sure[b],
            label=class_name(cases, i),
        )
        for b, i in enumerate(seen.indices)
    ]


def class_name(cases: CaseList, index: int) -> str | None:
    """Return the name of a case's class, None where it is unlabelled."""
    label = int(cases.labels[index])
    return None if label < 0 else str(cases.classes[label])


# -- by a prototype ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _NearPrototypes:
    """The nearest training cases of every prototype."""

    train: Cases
    nearest: Nearest
    cells: Cells

    @classmethod
    def of(cls, model: PrototypeModel, train: Cases, k: int, passing: dict[str, Any]) -> _NearPrototypes:
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


def _by_prototype(
    model: PrototypeModel, cases: CaseList, seen: Seen, near: _NearPrototypes, k: int, itself: _Itself
) -> Iterator[Query]:
    bank = model.bank
    added = predicted_contribution(seen.output).detach()
    nobodys = bank.usable & (bank.ownership.sum(1) == 0)
    may = bank.owned_by(seen.output.logits.argmax(1)) | (nobodys & (added > 0))
    leading = added.masked_fill(~may, float("-inf")).argmax(1).tolist() if len(bank) else []
    keys, any_may = bank.ids.tolist(), may.any(1).tolist()
    for b, said in enumerate(_said(model, cases, seen)):
        if said.predicted is None or not any_may[b]:
            yield Query(*said, None, ())
        else:
            yield Query(*said, keys[leading[b]], near.to(leading[b], k, itself.row(seen.indices[b])))
