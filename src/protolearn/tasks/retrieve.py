"""Retrieval: the training cases most like a case, or like a prototype, to be looked at beside it.

A prediction is more to be trusted where the training cases that the model finds alike carry its class; how far that
holds is in the result (``agreement_when_right`` and ``agreement_when_wrong``), not assumed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from protolearn.core.gathering import summarise
from protolearn.core.matching import chunk_rows
from protolearn.core.measures import Distance, Measure, cosine, get_measure, squared_l2
from protolearn.core.model import PrototypeModel
from protolearn.data import Cases
from protolearn.encoders.search import KNOWN, MANY, MORE, nearest_cases
from protolearn.errors import DataError, UsageError, look_up
from protolearn.explain.passes import CaseList, Seen, run_over, track
from protolearn.explain.survey import predicted_contribution
from protolearn.structures import Output
from protolearn.tasks.prototype_cases import NearPrototypes, cases_of_prototypes, class_name
from protolearn.tasks.retrieve_result import By, Query, SimilarCase, SimilarCases

__all__ = ["CaseMemory", "cases_of_prototypes", "similar_cases"]

USUAL: dict[str, Measure | None] = {"evidence": squared_l2, "embedding": cosine, "prototype": None}
"""What vectors are compared by, where nothing else is asked for; None = the model's own measure."""


class CaseMemory:
    """Training cases as a model sees them, read once, to be asked about many cases.

    Parameters
    ----------
    model : PrototypeModel
        What is alike in its eyes; left as it is, and to be left so while the memory is in use.
    train : Cases
        The training cases.
    k : int
        How many to find for each case.
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
    """

    def __init__(
        self,
        model: PrototypeModel,
        train: Cases,
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
    ) -> None:
        usual = look_up("way to compare cases", by, USUAL)
        if k < 1:
            raise UsageError(f"k must be at least 1, got {k}")
        if search not in ("auto", "exact", "faiss"):
            raise UsageError(f"search must be auto, exact or faiss, got {search!r}")
        if len(train) == 0:
            raise DataError(f"{train.name}: no case to find")
        if by == "prototype" and measure is not None:
            raise UsageError(f"a prototype is compared in the model's own measure, {model.measure.name}")
        self.model, self.train, self.k, self.by, self.quiet = model, train, k, by, quiet
        self.passing: dict[str, Any] = {"batch_size": batch_size, "device": device, "workers": workers}
        chosen = usual if measure is None else get_measure(measure)
        self.measure = model.measure if chosen is None else chosen
        self.search = "exact" if chosen is None else _search_for(search, chosen, len(train), many)
        self.places = {case: row for row, case in enumerate(train.ids)}
        self.near: NearPrototypes | None = None
        self.vectors: Tensor | None = None
        if chosen is None:
            self.near = NearPrototypes.of(model, train, k + 1, self.passing)  # one more, in case it is the one asked
        else:
            self.vectors = _vectors(model, train, by, self.passing, quiet)

    def like(self, cases: CaseList, indices: Sequence[int] | None = None) -> SimilarCases:
        """Return the training cases most like some cases; one that is among them is not found for itself."""
        total = len(cases) if indices is None else len(indices)
        asked = track(
            run_over(self.model, cases, indices, **self.passing), total, "looking for similar cases", quiet=self.quiet
        )  # fmt: skip
        queries = self._by_vector(asked, cases) if self.near is None else self._by_prototype(asked, cases, self.near)
        return SimilarCases(self.by, self.measure.name, self.search, len(self.train), tuple(queries))

    def _by_vector(self, asked: Iterable[Seen], cases: CaseList) -> Iterator[Query]:
        assert self.vectors is not None, "read when there are no nearest cases of prototypes"
        values, said, left_out = [], [], []
        for seen in asked:
            values.append(_vector(seen.output, self.by))
            _refuse_nan(values[-1], cases, seen.indices)
            said += _said(self.model, cases, seen)
            left_out += [self._itself(cases, i) for i in seen.indices]
        if not said:
            return
        alone = torch.tensor(left_out, device=values[0].device)
        found = _nearest(torch.cat(values), self.vectors, self.measure, self.k, alone, self.search)
        for told, near in zip(said, found, strict=True):
            similar = [SimilarCase(self.train.ids[row], class_name(self.train, row), value) for row, value in near]
            yield Query(*told, None, tuple(similar))

    def _by_prototype(self, asked: Iterable[Seen], cases: CaseList, near: NearPrototypes) -> Iterator[Query]:
        bank = self.model.bank
        keys = bank.ids.tolist()
        nobodys = bank.usable & (bank.ownership.sum(1) == 0)
        for seen in asked:
            added = predicted_contribution(seen.output).detach()
            may = bank.owned_by(seen.output.logits.argmax(1)) | (nobodys & (added > 0))
            leading = added.masked_fill(~may, float("-inf")).argmax(1).tolist() if keys else [-1] * len(added)
            any_may = may.any(1).tolist()
            for b, said in enumerate(_said(self.model, cases, seen)):
                if said.predicted is None or not any_may[b]:
                    yield Query(*said, None, ())
                    continue
                but = self._itself(cases, seen.indices[b])
                yield Query(*said, keys[leading[b]], near.to(leading[b], self.k, but))

    def _itself(self, cases: CaseList, index: int) -> int:
        """Return the row of the training case that is this very case (same id, same content), -1 where there is none.

        A list of cases that cannot tell their content is believed by the id.
        """
        row = self.places.get(str(cases.ids[index]), -1)
        if row < 0 or cases is self.train or not hasattr(cases, "content"):
            return row
        return row if cases.content(index) == self.train.content(row) else -1


def similar_cases(
    model: PrototypeModel, cases: CaseList, train: Cases, indices: Sequence[int] | None = None, **how: Any
) -> SimilarCases:
    """Find the training cases most like each of some cases; the model is left as it is.

    Parameters
    ----------
    model : PrototypeModel
        What is alike in its eyes.
    cases, indices
        What to ask about; all by default. A case that is among the training cases (same id, same content) is not
        found for itself.
    train : Cases
        The training cases.
    **how
        ``k``, ``by``, ``measure``, ``search`` and the rest, see :class:`CaseMemory`, which reads the training cases
        once for several questions.

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
    return CaseMemory(model, train, **how).like(cases, indices)


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
