"""What is among these cases that no class has a name for? Clusters beside the known classes, for a person to name.

Clusters are of features: that cases lie together does not make them a class. Look at their cases before you name one,
and see :func:`protolearn.tasks.promote.promote` for what follows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from protolearn.audit.discovered import ClassNumber, Cluster, Discovery, finite
from protolearn.audit.discovery import jaccard_stability
from protolearn.core.discovery import Move, centre_margin, class_means, seeded_k_means
from protolearn.core.encoder import Encoder
from protolearn.core.measures import squared_l2
from protolearn.core.method import registered
from protolearn.core.model import PrototypeModel
from protolearn.core.neighbours import nearest_rows
from protolearn.core.scorer import pooled
from protolearn.data.features import features as feature_cases
from protolearn.encoders.features import FeatureEncoder
from protolearn.encoders.search import nearest_centres
from protolearn.errors import DataError, UsageError, nearest_names
from protolearn.explain.passes import CaseList, evaluating, inputs_over, track
from protolearn.tasks.class_number import Criterion, estimate_classes
from protolearn.training.fit import fit
from protolearn.training.rebuild import method_called

SSK_MEANS = "ssk_means"
AREA = "discovery"
"""Methods of this area take labelled and unlabelled cases."""
FEATURES = ("auto", "encoded", "embedded", "evidence")
SHOWN, DOUBTFUL, BESIDE = 12, 4, 5
"""Typical and doubtful cases, and labelled ones beside them, named for each cluster."""
SHARE = 0.8
"""Of the unlabelled cases in each draw by which stability is judged."""


def discover(
    model: PrototypeModel | Encoder,
    labelled: CaseList,
    unlabelled: CaseList,
    *,
    method: str = SSK_MEANS,
    classes: int | None = None,
    criterion: Criterion = "accuracy",
    high: int | None = None,
    move: Move = "all",
    features: str = "auto",
    unit: bool = True,
    draws: int = 10,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    batch_size: int = 64,
    device: str | torch.device | None = None,
    workers: int = 0,
    quiet: bool = True,
) -> Discovery:
    """Find new classes among unlabelled cases, beside those that are known.

    Parameters
    ----------
    model : PrototypeModel or Encoder
        Gives the features that are clustered, one vector a case; ``FeatureEncoder`` takes features as they are. It is
        not changed.
    labelled : Cases
        Of the known classes. Its own unlabelled cases are left out.
    unlabelled : Cases
        Of known classes or others. Labels it may have are not looked at.
    method : str
        ``ssk_means`` (semi-supervised k-means), or a method of the area "discovery", which is trained on the features.
    classes : int, optional
        Known and new classes together; estimated by default.
    criterion, high : str, int
        How the number is estimated and up to which, see :func:`~protolearn.tasks.class_number.estimate_classes`.
    move : {"all", "new", "apart"}
        For ``ssk_means``, see :func:`~protolearn.core.discovery.seeded_k_means`. ``apart``: unlabelled cases are of
        new classes only.
    features : {"auto", "encoded", "embedded", "evidence"}
        Of a model: mean of the tokens before its neck, or after it, where prototypes are compared; or how much of each
        prototype is found, which keeps what single places look like. ``auto``: evidence where an input has several
        tokens, else embedded.
    unit : bool
        Scale features to unit length.
    draws : int
        So many further draws, each of four fifths of the unlabelled cases, say how stable each cluster is; 0 = not
        tried. Only for ``ssk_means``.
    settings : mapping, optional
        Of the method, in place of those of its recipe ``frozen``.
    seed, batch_size, device, workers, quiet
        As usual.

    Returns
    -------
    Discovery

    Raises
    ------
    UsageError
        If there is no labelled or unlabelled case, or more clusters are asked for than can be.
    DataError
        If features are not finite, or a case is in both data sets.

    Examples
    --------
    >>> import numpy as np
    >>> from protolearn.data import features
    >>> from protolearn.encoders import FeatureEncoder
    >>> draw = np.random.default_rng(0)
    >>> centres = 9 * draw.normal(size=(4, 8))
    >>> truth = np.repeat(np.arange(4), 30)
    >>> values = centres[truth] + draw.normal(size=(120, 8))
    >>> known = features(values[:40:2], ["ab"[k] for k in truth[:40:2]], name="known")
    >>> others = features(values[1::2], name="others")
    >>> found = discover(FeatureEncoder(8), known, others, classes=4)
    >>> [(cluster.name, cluster.size) for cluster in found.clusters]
    [('a', 15), ('b', 15), ('new 1', 15), ('new 2', 15)]
    """
    desk = _Desk(model, labelled, unlabelled, features, unit, batch_size, device, workers, quiet)
    draw = torch.Generator().manual_seed(seed)
    number: ClassNumber | None = None
    if classes is None:
        number = estimate_classes(
            desk.values, desk.labels, generator=draw, criterion=criterion, high=high, apart=move == "apart"
        )
        classes = number.count
    if classes < len(desk.classes):
        raise UsageError(
            f"there are {len(desk.classes)} known classes: classes must be as many at least, got {classes}"
        )
    if method == SSK_MEANS:
        found = desk.cluster(classes, move, draws, draw)
    else:
        found = desk.train(method, classes, settings, seed, device)
    facts = {
        "data": str(getattr(unlabelled, "name", "unlabelled cases")),
        "known": str(getattr(labelled, "name", "labelled cases")),
        "method": method,
        "features": desk.features if isinstance(model, PrototypeModel) else type(model).__name__,
        "unit": unit,
        "move": move if method == SSK_MEANS else None,
        "cases": {"labelled": len(desk.known_ids), "unlabelled": len(desk.free_ids)},
        "seed": seed,
        "draws": draws if found.stability is not None else 0,
    }
    return desk.told(found, number, facts)


def new_names(classes: Sequence[str], count: int) -> tuple[str, ...]:
    """Return names for classes that have none, "new 1" and so on, none of them taken.

    Examples
    --------
    >>> new_names(["cat", "new 1"], 2)
    ('new 2', 'new 3')
    """
    names: list[str] = []
    number = 0
    while len(names) < count:
        number += 1
        if f"new {number}" not in classes:
            names.append(f"new {number}")
    return tuple(names)


@dataclass(frozen=True, eq=False)
class _Found:
    """Clusters of the unlabelled cases, the known classes first."""

    rows: Tensor
    confidence: Tensor
    centres: Tensor
    stability: Tensor | None = None
    notes: tuple[str, ...] = ()
    model: PrototypeModel | None = None


@dataclass(eq=False)
class _Desk:
    """The cases of a search, as features: labelled ones first."""

    model: PrototypeModel | Encoder
    labelled: CaseList
    unlabelled: CaseList
    features: str
    unit: bool
    batch_size: int
    device: str | torch.device | None
    workers: int
    quiet: bool
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.features not in FEATURES:
            raise UsageError(f"features are {', '.join(FEATURES)}, got {self.features!r}")
        given = np.asarray(self.labelled.labels, dtype=np.int64)
        kept = np.flatnonzero(given >= 0)
        if not len(kept):
            raise UsageError("discovery stands on known classes: there is no labelled case")
        if not len(self.unlabelled):
            raise UsageError("there is no unlabelled case to find anything in")
        if len(kept) < len(given):
            self.notes.append(f"{len(given) - len(kept)} unlabelled cases among the labelled ones were left out")
        names = [str(name) for name in self.labelled.classes]
        present = sorted(set(given[kept].tolist()))
        self.classes = tuple(names[k] for k in present)
        self.known_ids = tuple(str(self.labelled.ids[i]) for i in kept.tolist())
        self.free_ids = tuple(map(str, self.unlabelled.ids))
        both = sorted(set(self.known_ids) & set(self.free_ids))
        if both:
            raise DataError(f"the case {both[0]!r} is among the labelled and the unlabelled cases: keep it in one")
        parts = [self._values(self.labelled, kept.tolist()), self._values(self.unlabelled, None)]
        self.values = torch.cat(parts)
        if self.unit:
            self.values = F.normalize(self.values, dim=1)
        ranks = np.searchsorted(present, given[kept])
        self.labels = torch.from_numpy(np.concatenate([ranks, np.full(len(self.free_ids), -1)]))
        self.known = self.labels >= 0

    def _values(self, cases: CaseList, indices: Sequence[int] | None) -> Tensor:
        """Return one vector a case ``(N, D)``, on the processor."""
        encoder = self.model.encoder if isinstance(self.model, PrototypeModel) else self.model
        where = self.device or next((p.device for p in encoder.parameters()), torch.device("cpu"))
        self.model.to(where)
        total = len(cases) if indices is None else len(indices)
        shown = inputs_over(cases, encoder.preprocess, indices, batch_size=self.batch_size, workers=self.workers)
        found = []
        with evaluating(self.model), torch.no_grad():
            for batch in track(shown, total, "reading features", quiet=self.quiet):
                values = self._of(batch.inputs.to(where)).float().cpu()
                wrong = (~values.isfinite().all(1)).nonzero().squeeze(1).tolist()
                if wrong:
                    name = str(cases.ids[batch.indices[wrong[0]]])
                    raise DataError(f"the features of case {name!r} are not finite: look at that input, or the encoder")
                found.append(values)
        return torch.cat(found)

    def _of(self, inputs: Tensor) -> Tensor:
        if not isinstance(self.model, PrototypeModel):
            return pooled(self.model(inputs))
        if self.features == "evidence":
            return self.model(inputs).evidence
        tokens = self.model.encode(inputs)
        if self.features == "auto":
            several = self.model.embed(tokens).values.shape[1] > 1
            self.features = "evidence" if several else "embedded"
            return self._of(inputs)
        return pooled(tokens if self.features == "encoded" else self.model.embed(tokens))

    # -- methods --------------------------------------------------------------------------------------------------

    def cluster(self, count: int, move: Move, draws: int, draw: torch.Generator) -> _Found:
        """Return semi-supervised k-means, and how stable its clusters are."""
        how: dict[str, Any] = {"generator": draw, "move": move, "assign": nearest_centres}
        found = seeded_k_means(self.values, self.labels, count, **how)
        free = self.values[~self.known]
        rows = found.rows[~self.known]
        known = len(self.classes) if move == "apart" else 0
        margin = centre_margin(free, found.centres[known:].to(free))[1]
        stability = None
        if draws:
            others = [self._again(count, how, draw) for _ in range(draws)]
            stability = jaccard_stability(rows, [each for each in others if each is not None], count)
        return _Found(rows, margin, found.centres, stability)

    def _again(self, count: int, how: dict[str, Any], draw: torch.Generator) -> tuple[Tensor, Tensor] | None:
        """Return some unlabelled cases and the clusters that they form without the others."""
        total = len(self.free_ids)
        some = torch.randperm(total, generator=draw)[: max(1, round(SHARE * total))].sort().values
        if count - len(self.classes) > len(some):
            return None
        known = self.known.nonzero().squeeze(1)
        cases = torch.cat([known, (~self.known).nonzero().squeeze(1)[some]])
        again = seeded_k_means(self.values[cases], self.labels[cases], count, restarts=3, **how)
        return some, again.rows[len(known) :]

    def train(
        self,
        slug: str,
        count: int,
        settings: Mapping[str, Any] | None,
        seed: int,
        device: str | torch.device | None,
    ) -> _Found:
        """Return what a method learns from the features."""
        cls = method_called(slug)
        if cls.area != AREA:
            known = [SSK_MEANS, *(name for name, each in registered().items() if each.area == AREA)]
            raise UsageError(f"{slug} does not look for new classes: {nearest_names(slug, known)}")
        recipe = cls.recipes.get("frozen")
        chosen = {**(recipe.method if recipe is not None else {}), **(settings or {})}
        options = {"batch_size": 128, **(recipe.options if recipe is not None else {})}
        names = (*self.classes, *new_names(self.classes, count - len(self.classes)))
        cases = feature_cases(
            self.values, self.labels, classes=names, ids=[*self.known_ids, *self.free_ids], name="features"
        )
        where = "auto" if device is None else str(device)
        done = fit(
            cls(**chosen), cases, encoder=FeatureEncoder(self.values.shape[1]), seed=seed, device=where,
            quiet=self.quiet, **options,
        )  # fmt: skip
        model = done.model.cpu()
        free = self.values[~self.known]
        with torch.no_grad():
            logits = torch.cat([model(part).logits for part in free.split(4096)])
        sure, rows = model.head.probabilities(logits.double()).max(1)
        centres = torch.zeros(count, free.shape[1])
        centres[: len(self.classes)] = class_means(self.values, self.labels)[0]  # where no unlabelled case is
        means, present = class_means(free, rows)
        centres[present] = means
        notes = tuple(text for text in done.warnings if "have no label" not in text and "no picture of" not in text)
        return _Found(rows, sure.float(), centres, None, notes, model)

    # -- the result -----------------------------------------------------------------------------------------------

    def told(self, found: _Found, number: ClassNumber | None, facts: dict[str, Any]) -> Discovery:
        """Return the findings with names, typical cases and likeness to known classes."""
        count, old = len(found.centres), len(self.classes)
        fresh = new_names(self.classes, count - old)
        means = class_means(self.values, self.labels)[0]
        likeness = F.normalize(found.centres.to(means), dim=1) @ F.normalize(means, dim=1).T
        beside = nearest_rows(
            found.centres.to(means), self.values[self.known], squared_l2, min(BESIDE, len(self.known_ids))
        )[1]
        free, labelled = self.values[~self.known], torch.bincount(self.labels[self.known], minlength=count)
        clusters = []
        for k in range(count):
            places = (found.rows == k).nonzero().squeeze(1)
            gaps = (free[places] - found.centres[k].to(free)).square().sum(1)
            near = places[gaps.argsort(stable=True)[:SHOWN]].tolist()
            order = places[found.confidence[places].argsort(stable=True)].tolist()
            doubtful = [i for i in order if i not in near][:DOUBTFUL]
            best = int(likeness[k].argmax())
            clusters.append(
                Cluster(
                    index=k,
                    name=self.classes[k] if k < old else fresh[k - old],
                    label=k if k < old else None,
                    size=len(places),
                    labelled=int(labelled[k]),
                    confidence=finite(float(found.confidence[places].mean())) if len(places) else None,
                    stability=None if found.stability is None else finite(float(found.stability[k])),
                    typical=tuple(self.free_ids[i] for i in near),
                    doubtful=tuple(self.free_ids[i] for i in doubtful),
                    nearest=None if k < old else self.classes[best],
                    likeness=None if k < old else float(likeness[k, best]),
                    beside=() if k < old else tuple(self.known_ids[i] for i in beside[k].tolist()),
                )
            )
        notes = [*self.notes, *(number.notes if number is not None else ()), *found.notes]
        empty = [each.name for each in clusters if each.new and not each.size]
        if empty:
            notes.append(f"no unlabelled case is in {', '.join(empty)}")
        return Discovery(
            facts=facts,
            classes=self.classes,
            clusters=tuple(clusters),
            cases=self.free_ids,
            rows=found.rows,
            confidence=found.confidence,
            centres=found.centres,
            number=number,
            notes=tuple(notes),
            model=found.model,
        )
