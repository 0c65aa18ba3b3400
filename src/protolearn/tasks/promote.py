"""A cluster that a person has named becomes a class of the running model: prototypes with sources, old scores kept.

Nothing is trained. The bank gets real tokens of the cluster's cases as prototypes, the head a class that owns them.
Scores of the old classes stay what they were, up to rounding; what can do harm is that the new class outscores them
where they were right. That is measured on labelled cases of the old classes, and kept below a limit.
"""

from __future__ import annotations

import copy
import datetime
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from protolearn.audit.discovered import Cluster, Discovery
from protolearn.audit.result import figure
from protolearn.core.heads import WeighedEvidence
from protolearn.core.matching import best_match
from protolearn.core.measures import Distance, squared_l2
from protolearn.core.model import PrototypeModel
from protolearn.core.neighbours import nearest_rows
from protolearn.core.similarities import PerPrototype
from protolearn.core.updates import k_means
from protolearn.data.cases import Cases
from protolearn.errors import DataError, UsageError, nearest_names
from protolearn.explain.passes import device_of, run_over, track
from protolearn.structures import Source, Tokens
from protolearn.training.project import layout, make_sources

MOST_CASES = 500
"""Of a cluster's cases so many, the clearest, are looked at for prototypes."""
MOST_WEIGHT = 4.0
"""New prototypes weigh at most so many times what those of other classes do."""
CANDIDATES = 4
"""So many places are compared for each prototype, where a case has several."""


@dataclass(frozen=True)
class Promotion:
    """What became of a cluster.

    Attributes
    ----------
    name : str
        Of the class.
    index : int
        Of the class.
    prototypes : tuple of int
        Ids of its prototypes.
    sources : tuple of str
        The cases they come from.
    before, after : float
        Accuracy on the labelled cases of the old classes, ``known`` of them.
    lost : tuple of str
        Those that were right and no longer are.
    shift : float
        Largest change of an old class's score on them; 0 but for rounding.
    taken, taken_others : float or None
        Share of the cluster's cases that now are of the new class, and the same of those that gave no prototype; None
        where there is none.
    spilled : float or None
        Share of the cases of clusters that stand for old classes that now are of the new class.
    strength, usual : float or None
        Weight of its prototypes, and what those of old classes weigh on the average; None where a head has none.
    renamed : bool
        The model had this class before, under a number, and it got a name; nothing else changed.
    scorer_dropped : bool
        The model had a novelty score, which told known from foreign before there was this class; it has none now.
    """

    name: str
    index: int
    prototypes: tuple[int, ...]
    sources: tuple[str, ...]
    before: float
    after: float
    known: int
    lost: tuple[str, ...]
    shift: float
    taken: float | None
    taken_others: float | None
    spilled: float | None
    strength: float | None
    usual: float | None
    renamed: bool
    scorer_dropped: bool

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    def table(self) -> str:
        """Return the numbers as lines of text."""
        rows = [
            (f"{self.name}: prototypes", f"{len(self.prototypes)} from {', '.join(self.sources) or 'no case'}"),
            ("known cases right", f"{figure(self.before)} before, {figure(self.after)} after, of {self.known}"),
            ("known cases lost", str(len(self.lost))),
            ("of the cluster, now in the class", figure(self.taken)),
            ("those that gave no prototype", figure(self.taken_others)),
            ("of known clusters, now in the class", figure(self.spilled)),
        ]
        if self.strength != self.usual:
            rows.append(("weight of its prototypes", f"{figure(self.strength)} in place of {figure(self.usual)}"))
        if self.scorer_dropped:
            rows.append(("novelty score", "dropped, as it was set without this class: fit it again"))
        width = max(len(words) for words, _ in rows)
        return "\n".join(f"{words:<{width}}  {value}" for words, value in rows)


def promote(
    model: PrototypeModel,
    discovery: Discovery,
    cluster: str | int,
    name: str,
    cases: Cases,
    known: Cases,
    *,
    prototypes: int | None = None,
    without: Sequence[str] = (),
    harm: float = 0.01,
    seed: int = 0,
    batch_size: int = 64,
    device: str | torch.device | None = None,
    quiet: bool = True,
) -> Promotion:
    """Make a discovered cluster a class of a model, in place; a person has looked at its cases and named it.

    Prototypes are real tokens: centres of the cluster's tokens by k-means, each moved to the nearest one. Where a case
    has several tokens, more places than needed are compared, and those are kept that are found in the cluster's cases
    rather than in the known ones. Where the model itself has the class under a number ("new 2", of a method that learns
    new classes), it only gets the name.

    Parameters
    ----------
    model : PrototypeModel
        Changed in place; as it was before where this fails.
    discovery : Discovery
        With the cluster; it may have been made on other features than the model's.
    cluster : str or int
        Its name or number.
    name : str
        Of the class.
    cases : Cases
        The unlabelled cases that were searched, under their ids.
    known : Cases
        Labelled cases of the old classes, best held-out ones: what harm is measured on.
    prototypes : int, optional
        How many; as many as old classes have on the average by default.
    without : sequence of str
        Cases of the cluster that do not belong to the class, by id.
    harm : float
        Largest share of the known cases that are right that may be lost. Where the head has a weight for prototypes,
        the new ones' is chosen so that most of the cluster is taken and least of the known cases is lost; where more
        than this share would be, the promotion fails.
    seed, batch_size, device, quiet
        As usual.

    Raises
    ------
    UsageError
        If the model's head cannot take up a class exactly, the name is taken, the cluster stands for a known class, or
        more would be lost than allowed.
    DataError
        If cases of the cluster are not among ``cases``, or known ones have no label.

    Examples
    --------
    >>> promote(model, found, "new 1", "wolf", unlabelled, held_out).after  # doctest: +SKIP
    0.94
    """
    chosen = discovery[cluster]
    _check(model, chosen, name, harm, prototypes)
    if device is not None:
        model.to(device)
    run = _Run(model, batch_size, quiet)
    members = run.members(discovery, chosen, cases, without)
    before = run.look(known, "judging known cases", strict=True)
    renamed = chosen.name in model.classes
    usual = strength = None
    if renamed:
        index = model.classes.index(chosen.name)
        model.classes = tuple(name if k == index else old for k, old in enumerate(model.classes))
        rows = (model.bank.owner() == index).nonzero().squeeze(1)
        after = run.look(known, "judging known cases", strict=True)
    else:
        index = len(model.classes)
        count = prototypes or max(1, round(float((model.bank.ownership[model.bank.usable] > 0).sum()) / index))
        with _undone_on_failure(model):
            rows = run.grow(cases, members, known, count, name, torch.Generator().manual_seed(seed))
            usual, strength = run.weigh(cases, members, known, before, rows, harm)
            after = run.look(known, "judging known cases", strict=True)
            _refuse_harm(before, after, harm, name)
    taken, others, spilled = run.taken(discovery, chosen, cases, members, rows, index)
    right, still = before.right(), after.right()
    found = Promotion(
        name=name,
        index=index,
        prototypes=tuple(model.bank.ids[rows].tolist()),
        sources=tuple(source.case for row in rows.tolist() if (source := model.bank.sources[row]) is not None),
        before=float(right.float().mean()),
        after=float(still.float().mean()),
        known=len(right),
        lost=tuple(before.ids[i] for i in (right & ~still).nonzero().squeeze(1).tolist()),
        shift=float((after.logits[:, : before.logits.shape[1]] - before.logits).abs().max()),
        taken=taken,
        taken_others=others,
        spilled=spilled,
        strength=strength,
        usual=usual,
        renamed=renamed,
        scorer_dropped=model.scorer is not None,
    )
    model.scorer = None
    record = {**found.to_dict(), "cluster": chosen.name, "date": datetime.date.today().isoformat()}
    model.metadata["promoted"] = [*model.metadata.get("promoted", []), record]
    return found


def _check(model: PrototypeModel, cluster: Cluster, name: str, harm: float, prototypes: int | None) -> None:
    if not name.strip() or len(name) > 1000:
        raise UsageError(f"a class needs a name of 1 to 1000 characters, got {name[:60]!r}")
    if name in model.classes:
        raise UsageError(f"the model has a class {name!r} already: choose another name")
    if not cluster.new:
        raise UsageError(f"the cluster {cluster.name!r} stands for a known class: there is nothing to promote")
    if not 0 <= harm < 1 or (prototypes is not None and prototypes < 1):
        raise UsageError(f"harm must lie in 0 to below 1 and prototypes be 1 at least, got {harm} and {prototypes}")
    bank = model.bank
    held = {
        "prototypes that compete at each place": model.across is not None,
        "an encoder that reads the prototypes": model.encoder.reads_bank or model.compare is not None,
        "a similarity of its own for each prototype": isinstance(model.similarity, PerPrototype),
        "prototypes drawn from the input": bank.drawn,
        "prototypes with a spread or a law": bank.spread is not None or bank.law is not None,
        "prototypes in groups": bank.groups is not None,
    }
    why = next((words for words, true in held.items() if true), None)
    if why is not None and cluster.name not in model.classes:
        raise UsageError(f"a model with {why} cannot take up a class exactly: train it anew with the new class")


def _refuse_harm(before: _Looked, after: _Looked, harm: float, name: str) -> None:
    right = before.right()
    lost = int((right & ~after.right()).sum())
    if lost > harm * int(right.sum()):
        raise UsageError(
            f"as {name!r} the cluster would take {lost} of {int(right.sum())} known cases that are right now, more "
            f"than a share of {harm:g}: it may not be a class of its own; allow more harm, or leave cases out"
        )


@contextmanager
def _undone_on_failure(model: PrototypeModel) -> Iterator[None]:
    bank, head, classes = copy.deepcopy(model.bank), copy.deepcopy(model.head), model.classes
    try:
        yield
    except BaseException:
        model.bank, model.head, model.classes = bank, head, classes
        raise


@dataclass(frozen=True, eq=False)
class _Looked:
    """Scores of cases, on the processor."""

    logits: Tensor
    evidence: Tensor
    labels: Tensor
    ids: tuple[str, ...]

    def right(self) -> Tensor:
        """Return ``(N,)`` bool."""
        return self.logits.argmax(1) == self.labels


@dataclass(frozen=True, eq=False)
class _Sides:
    """At which weight of the new prototypes each case goes over to the new class.

    ``support`` is what they find in it, ``room`` what they may add before the best old class is outscored.
    """

    room: Tensor
    support: Tensor

    @classmethod
    def of(cls, looked: _Looked, rows: Tensor, weight: float) -> _Sides:
        support = looked.evidence[:, rows.cpu()].sum(1).double()
        base = looked.logits[:, -1].double() - weight * support
        return cls(looked.logits[:, :-1].amax(1).double() - base, support)

    def part(self, cases: Tensor) -> _Sides:
        return _Sides(self.room[cases], self.support[cases])

    def edges(self) -> Tensor:
        return (self.room / self.support)[self.support != 0]

    def over(self, weights: Tensor) -> Tensor:
        """Return how many cases are of the new class at each weight."""
        edges = self.room / self.support
        rising, falling = edges[self.support > 0].sort().values, edges[self.support < 0].sort().values
        above = torch.searchsorted(rising, weights) + len(falling) - torch.searchsorted(falling, weights, right=True)
        return above + int(((self.support == 0) & (self.room < 0)).sum())


@dataclass(eq=False)
class _Run:
    """Passes of a model over cases."""

    model: PrototypeModel
    batch_size: int
    quiet: bool

    def look(self, cases: Cases, words: str, indices: Sequence[int] | None = None, *, strict: bool = False) -> _Looked:
        """Return scores; ``strict`` takes labelled cases of the model's classes only."""
        if strict:
            indices = np.flatnonzero(np.asarray(cases.labels) >= 0).tolist()
            if not indices:
                raise DataError(f"{cases.name}: no case has a label, so no harm to the known classes could be seen")
        total = len(cases) if indices is None else len(indices)
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        ids: list[str] = []
        seen = run_over(self.model, cases, indices, batch_size=self.batch_size, strict_labels=strict)
        for batch in track(seen, total, words, quiet=self.quiet):
            out = batch.output
            parts.append((out.logits.cpu(), out.evidence.cpu(), batch.labels.cpu()))
            ids += [str(cases.ids[i]) for i in batch.indices]
        logits, evidence, labels = (torch.cat(each) for each in zip(*parts, strict=True))
        return _Looked(logits, evidence, labels, tuple(ids))

    def members(self, discovery: Discovery, cluster: Cluster, cases: Cases, without: Sequence[str]) -> list[int]:
        """Return where the cluster's cases are, clearest first."""
        named = discovery.members(cluster.index)
        wrong = [case for case in without if case not in named]
        if wrong:
            raise UsageError(f"{wrong[0]!r} is not in the cluster {cluster.name!r}: {nearest_names(wrong[0], named)}")
        kept = [case for case in named if case not in set(without)]
        if not kept:
            raise UsageError(f"the cluster {cluster.name!r} has no case left to make a class of")
        return [cases.index(case) for case in kept]

    def grow(
        self, cases: Cases, members: list[int], known: Cases, count: int, name: str, draw: torch.Generator
    ) -> Tensor:
        """Add prototypes and the class; return the new rows of the bank."""
        model = self.model
        looked = members[:MOST_CASES]
        tokens = self._tokens(cases, looked)
        place, position = self._choose(tokens, known, count, draw)
        vectors = tokens.values[place, position]
        preprocess = model.encoder.preprocess
        plain = cases if preprocess is None else cases.with_transform(preprocess)
        with torch.no_grad():
            shape = model.embed(layout(model, plain))
        chosen, zeros = [looked[i] for i in place.tolist()], [0.0] * len(place)
        index = len(model.classes)
        sources: list[Source | None] = [
            replace(source, label=index)
            for source in make_sources(model, plain, chosen, position.tolist(), zeros, shape)
        ]
        bank, held = model.bank, len(model.bank)
        ownership = F.one_hot(torch.full((len(place),), index), index + 1).float().to(bank.ownership)
        bank.grow(vectors.to(bank.vectors), ownership, sources)
        bank.constrain()
        model.head.take_class(bank.ownership)
        model.classes = (*model.classes, name)
        return torch.arange(held, len(bank), device=bank.ids.device)

    def _tokens(self, cases: Cases, indices: Sequence[int]) -> Tokens:
        """Return the embedded tokens of some cases, on the processor."""
        values, masks = [], []
        for batch in run_over(self.model, cases, indices, batch_size=self.batch_size):
            tokens = batch.output.tokens
            assert tokens is not None
            real = tokens.values.new_ones(tokens.values.shape[:2], dtype=torch.bool)
            values.append(tokens.values.cpu())
            masks.append((real if tokens.mask is None else tokens.mask).cpu())
        return Tokens(torch.cat(values), torch.cat(masks))

    def _choose(self, tokens: Tokens, known: Cases, count: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return case and position of the tokens that become prototypes."""
        assert tokens.mask is not None
        where = tokens.mask.nonzero()
        values = tokens.values[tokens.mask]
        by_direction = self.model.measure.name.startswith("cosine")
        compared = F.normalize(values, dim=1) if by_direction else values
        single = tokens.values.shape[1] == 1
        wanted = min(count if single else CANDIDATES * count, len(torch.unique(compared, dim=0)))
        centres = k_means(compared, wanted, generator=draw, restarts=3).centres
        found = torch.unique(nearest_rows(centres, compared, squared_l2, 1)[1][:, 0])
        if not single and len(found) > count:
            found = found[self._contrast(values[found], tokens, known).argsort(descending=True, stable=True)]
            apart = torch.unique(where[found, 0], return_inverse=True)[1]
            first = torch.tensor([int(k) not in apart[:i].tolist() for i, k in enumerate(apart)])
            found = torch.cat([found[first], found[~first]])[:count]  # of different cases, as far as there are
        return where[found, 0], where[found, 1]

    def _contrast(self, vectors: Tensor, tokens: Tokens, known: Cases) -> Tensor:
        """Return how much more surely each place is found in the cluster's cases than in the known ones."""
        own = self._found(vectors, tokens).mean(0)
        labelled = np.flatnonzero(np.asarray(known.labels) >= 0)
        step = max(1, len(labelled) // MOST_CASES)
        return own - self._found(vectors, self._tokens(known, labelled[::step].tolist())).mean(0)

    @torch.no_grad()
    def _found(self, vectors: Tensor, tokens: Tokens) -> Tensor:
        model, where = self.model, device_of(self.model)
        parts = []
        for values, mask in zip(tokens.values.split(64), tokens.mask.split(64), strict=True):  # type: ignore[union-attr]
            best = best_match(values.to(where), vectors.to(where), model.measure, mask.to(where))[0]
            parts.append(model.similarity(best) if isinstance(model.measure, Distance) else best)
        return torch.cat(parts).cpu()

    @torch.no_grad()
    def weigh(
        self, cases: Cases, members: list[int], known: Cases, before: _Looked, rows: Tensor, harm: float
    ) -> tuple[float | None, float | None]:
        """Choose the weight of the new prototypes, where the head has one; return the usual one and that.

        Each case changes sides at one weight, so how many known cases are lost and how many of the cluster's are taken
        is known for every weight. The one with the largest difference of both shares is taken, with no more harm than
        allowed and not more than ``MOST_WEIGHT`` times the usual one; of equal ones the nearest to the usual one.
        """
        head = self.model.head
        if not isinstance(head, WeighedEvidence):
            return None, None
        usual = float(head.weight[-1, rows[0]])
        right = before.right()
        old = _Sides.of(self.look(known, "judging known cases", strict=True), rows, usual).part(right)
        new = _Sides.of(self.look(cases, "looking at the new class", members), rows, usual)
        top = MOST_WEIGHT * usual
        edges = torch.cat([0.999 * old.edges(), 1.001 * new.edges()])
        tried = torch.cat([edges[(edges > 0) & (edges <= top)], edges.new_tensor([usual])])
        lost, won = old.over(tried) / max(1, len(old.room)), new.over(tried) / max(1, len(new.room))
        fine = lost <= harm
        strength = usual  # what does more harm is refused by whoever asks
        if bool(fine.any()):
            gain = (won - lost)[fine]
            best = tried[fine][gain >= gain.max() - 1e-9]
            strength = float(best[(best.log() - math.log(usual)).abs().argmin()])
        head.weight[-1, rows] = strength
        return usual, strength

    def taken(
        self, discovery: Discovery, cluster: Cluster, cases: Cases, members: list[int], rows: Tensor, index: int
    ) -> tuple[float | None, float | None, float | None]:
        """Return the shares of the cluster's cases, of those without a prototype, and of known clusters' cases."""
        gave = {source.case for row in rows.tolist() if (source := self.model.bank.sources[row]) is not None}
        own = self.look(cases, "looking at the new class", members)
        hit = own.logits.argmax(1) == index
        other = torch.tensor([case not in gave for case in own.ids])
        old = {each.index for each in discovery.clusters if not each.new}
        places = [cases.index(discovery.cases[i]) for i, k in enumerate(discovery.rows.tolist()) if k in old]
        spilled = self.look(cases, "looking at known classes", places).logits.argmax(1) == index if places else None
        return _share(hit), _share(hit[other]), None if spilled is None else _share(spilled)


def _share(hit: Tensor) -> float | None:
    return float(hit.float().mean()) if len(hit) else None
