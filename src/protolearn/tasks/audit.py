"""Audit a model: run every metric that the data allow over one pass of the cases, and leave the model as it was."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

import protolearn.audit.metrics  # noqa: F401  its modules register themselves
from protolearn.audit.cases import numbers
from protolearn.audit.classification import ClassificationResult, score_logits
from protolearn.audit.look import Look
from protolearn.audit.marks import no_marks
from protolearn.audit.metric import METRICS, NEEDS, PASSES, Metric, Seen, Setting, make_metric
from protolearn.audit.noise import disturb_each
from protolearn.audit.result import AuditResult, Refused
from protolearn.audit.subject import Subject, facts, subject_of
from protolearn.data.cases import view_seed
from protolearn.errors import DataError, ProtolearnError, UsageError
from protolearn.explain.passes import CaseList, inputs_over, labels_for, track
from protolearn.tasks.audit_marks import has_objects, marks_of, parts_of

ALL, QUICK = "all", "quick"


def audit(
    model: Any,
    cases: CaseList,
    train: CaseList | None = None,
    *,
    metrics: str | Sequence[str | Metric] = ALL,
    outside: CaseList | None = None,
    shifted: CaseList | None = None,
    twin: Any = None,
    seed: int = 0,
    draws: int = 1,
    noise: float = 0.2,
    limit: float = 0.25,
    batch_size: int = 64,
    device: str | torch.device | None = None,
    workers: int = 0,
    quiet: bool = True,
) -> AuditResult:
    """Measure what a model's explanations are worth.

    Parameters
    ----------
    model : PrototypeModel or Subject
        Any model of the library, or another one behind ``audit.subject.AdaptedSubject``. It is not changed: its
        parameters, buffers and modes are compared before and after.
    cases : Cases
        What it is judged on: cases it was not trained on, with the annotations there are.
    train : Cases, optional
        The training cases, for metrics about a prototype's own neighbourhood.
    metrics : "all", "quick" or sequence
        Names, or instances with settings of their own. "all" runs every metric that the data allow and lists the
        others as refused; "quick" leaves out those that ask the model about many altered inputs. A metric that is
        named and cannot run raises.
    outside : Cases, optional
        Cases of none of the model's classes.
    shifted : Cases, optional
        The same cases under some shift, in the same order.
    twin : PrototypeModel or Subject, optional
        A second model of the same kind, trained with another seed.
    seed : int
        Of noise, of random baselines and of resampling.
    draws : int
        Of noise for each case.
    noise, limit : float
        Standard deviation of the noise and where it is clipped, in the encoder's normalised units.
    batch_size, device, workers, quiet
        As usual.

    Returns
    -------
    AuditResult
        Scores with intervals and counts, refusals with what to do, accuracy beside them.

    Raises
    ------
    UsageError
        If there are no cases, a metric does not exist, or one that is named lacks something.
    DataError
        If marks do not fit their pictures, or a map holds NaN.

    Examples
    --------
    >>> from protolearn.data import digits
    >>> from protolearn.encoders import SmallEncoder
    >>> from protolearn.methods import get_method
    >>> model = get_method("protopnet")(prototypes_per_class=2).build(SmallEncoder(), 10)
    >>> result = audit(model, digits("test").subset(range(12)), metrics="quick")
    >>> result["consistency"]
    Traceback (most recent call last):
    protolearn.errors.UsageError: consistency needs key points in the pictures (...); without it, look at ...
    """
    if not len(cases):
        raise UsageError("an audit needs cases, got none")
    if draws < 1:
        raise UsageError(f"draws must be at least 1, got {draws}")
    subject = subject_of(model)
    other = None if twin is None else subject_of(twin)
    for each in (subject, other):
        if each is not None:
            each.module.to(each.device if device is None else device)
    given = {"cases": cases, "train": train, "outside": outside, "shifted": shifted}
    parts = {name: part for name, part in given.items() if part is not None and len(part)}
    if "shifted" in parts and list(map(str, parts["shifted"].ids)) != list(map(str, cases.ids)):
        raise UsageError("shifted must hold the same cases in the same order as cases: their ids differ")
    before = subject.digest(), None if other is None else other.digest()
    desk = _Desk(subject, other, parts, seed, draws, noise, limit, batch_size, workers, quiet)
    with subject.looking():
        running, refused = desk.choose(metrics)
        classified = desk.run(running)
    if before != (subject.digest(), None if other is None else other.digest()):
        raise ProtolearnError("the audit changed the model's parameters, buffers or modes; its figures are withheld")
    return AuditResult(
        facts=desk.facts(),
        classified=classified,
        abouts={each.about.name: each.about for each, _ in running},
        scores={each.about.name: each.result() for each, _ in running},
        refused=tuple(refused),
        prototypes=subject.ids,
        cases=tuple(map(str, cases.ids)),
    )


Running = tuple[Metric, tuple[str, ...]]
"""A metric that has started, and the parts of the data it is shown."""


@dataclass(eq=False)
class _Desk:
    """One audit: what it was given."""

    subject: Subject
    twin: Subject | None
    parts: Mapping[str, CaseList]
    seed: int
    draws: int
    noise: float
    limit: float
    batch_size: int
    workers: int
    quiet: bool

    def __post_init__(self) -> None:
        self.named = {name: parts_of(part) for name, part in self.parts.items()}
        self.marked = {name: has_objects(part) for name, part in self.parts.items()}
        self.point_names = tuple(dict.fromkeys(name for names in self.named.values() for name in names))

    def choose(self, wanted: str | Sequence[str | Metric]) -> tuple[list[Running], list[Refused]]:
        """Return the metrics that can run, started, and the others."""
        if wanted in (ALL, QUICK):
            every = [name for name, cls in METRICS.items() if wanted == ALL or not cls.about.costly]
            return self._start([make_metric(name) for name in every], strict=False)
        wanted = [wanted] if isinstance(wanted, str) else wanted
        chosen = [make_metric(each) if isinstance(each, str) else each for each in wanted]
        names = [each.about.name for each in chosen]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise UsageError(f"the metric {twice!r} is asked for twice: audit twice for two settings")
        return self._start(chosen, strict=True)

    def _start(self, chosen: Sequence[Metric], *, strict: bool) -> tuple[list[Running], list[Refused]]:
        running: list[Running] = []
        refused: list[Refused] = []
        has_maps = any("maps" in each.about.needs for each in chosen) and self._maps()
        for each in chosen:
            passes = self._passes(each)
            lacking = [need for need in each.about.needs if not self._has(need, passes, has_maps)]
            if lacking:
                refused.append(Refused(each.about, ", ".join(NEEDS[need] for need in lacking)))
                if strict:
                    raise UsageError(refused[-1].reason)
                continue
            digest = hashlib.blake2b(f"{self.seed}/{each.about.name}".encode(), digest_size=7).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
            counts = {name: len(part) for name, part in self.parts.items()}
            each.start(Setting(self.subject, counts, self.point_names, generator, self.twin, self.draws))
            running.append((each, passes))
        return running, refused

    def _passes(self, each: Metric) -> tuple[str, ...]:
        """Return the parts a metric is shown: "train?" is the training cases where they are given, marks included."""
        found = []
        for name in each.about.passes:
            if name == "train?":
                marked = ("points" not in each.about.needs or self.named.get("train")) and (
                    "objects" not in each.about.needs or self.marked.get("train")
                )
                name = "train" if "train" in self.parts and marked else "cases"
            if name in self.parts and name not in found:
                found.append(name)
        return tuple(found)

    def _has(self, need: str, passes: tuple[str, ...], has_maps: bool) -> bool:
        if need == "maps":
            return has_maps
        if need == "labels":
            return any(bool((self._labels(name) >= 0).any()) for name in passes)
        if need == "points":
            return any(self.named[name] for name in passes)
        if need == "objects":
            return any(self.marked[name] for name in passes)
        if need in ("weights", "vectors"):
            return getattr(self.subject, need) is not None
        return self.twin is not None if need == "twin" else need in self.parts

    def _labels(self, part: str) -> np.ndarray:
        if part == "outside":
            return np.full(len(self.parts[part]), -1, dtype=np.int64)
        return labels_for(self.subject, self.parts[part])

    def _maps(self) -> bool:
        first = next(inputs_over(self.parts["cases"], self.subject.preprocess, [0], batch_size=1))
        return self.subject.look(first.inputs.to(self.subject.device)).maps is not None

    def run(self, running: Sequence[Running]) -> ClassificationResult:
        """Show each part of the data to the metrics that read it; return the scores on the cases."""
        logits, chances = [], []
        for part in PASSES:
            readers = [each for each, passes in running if part in passes]
            if part not in self.parts or not (readers or part == "cases"):
                continue
            for seen in self._batches(part, readers):
                for each in readers:
                    each.update(seen)
                if part == "cases":
                    logits.append(seen.look.logits.double().cpu())
                    chances.append(seen.look.probabilities.double().cpu())
        ids = [str(case) for case in self.parts["cases"].ids]
        table, shares = torch.cat(logits).numpy(), torch.cat(chances).numpy()
        return score_logits(table, self._labels("cases"), self.subject.classes, ids, shares)

    def _batches(self, part: str, readers: Sequence[Metric]) -> Iterator[Seen]:
        cases, where = self.parts[part], self.subject.device
        labels = self._labels(part)
        needs = {need for each in readers for need in each.about.needs}
        noisy = any(each.about.noise for each in readers)
        objects = "objects" in needs and self.marked[part]
        points = self.point_names if "points" in needs else ()
        shown = inputs_over(cases, self.subject.preprocess, batch_size=self.batch_size, workers=self.workers)
        for indices, inputs, sizes in track(shown, len(cases), f"auditing {part}", quiet=self.quiet):
            if points or objects:
                size = (int(inputs.shape[-2]), int(inputs.shape[-1]))
                marks = marks_of(
                    cases, indices, sizes, size, self.subject.preprocess, self.point_names, objects=objects
                )
            else:
                marks = no_marks(len(indices))
            inputs = inputs.to(where)
            ids = [str(cases.ids[i]) for i in indices]
            look, places = self.subject.look(inputs, maps="maps" in needs), torch.tensor(indices)
            _sound(look, places, part)
            yield Seen(
                part=part,
                indices=places,
                inputs=inputs,
                labels=torch.from_numpy(labels[indices]).to(where),
                look=look,
                marks=marks.to(where),
                noisy=tuple(self._noisy(inputs, ids, "maps" in needs)) if noisy else (),
                ids=tuple(ids),
            )

    def _noisy(self, inputs: Tensor, ids: Sequence[str], maps: bool) -> Iterator[Look]:
        """Yield looks at the inputs plus noise that depends on seed, draw and case alone, not on the batch."""
        for draw in range(self.draws):
            seeds = [view_seed(self.seed, draw, case) for case in ids]
            yield self.subject.look(disturb_each(inputs, seeds, std=self.noise, limit=self.limit), maps=maps)

    def _unknown(self) -> tuple[str, ...]:
        """Return the classes of labelled cases that the model does not know; such cases count as unlabelled."""
        cases = self.parts["cases"]
        used = sorted(set(np.asarray(cases.labels)[np.asarray(cases.labels) >= 0].tolist()))
        return tuple(name for name in (str(cases.classes[c]) for c in used) if name not in self.subject.classes)

    def _trained_on(self) -> int | None:
        """Return how many audited cases are training cases too; None where that cannot be told.

        They share id and content: ids alone may be mere numbers of rows, the same in any two data sets.
        """
        cases, train = self.parts["cases"], self.parts.get("train")
        if train is None or not (hasattr(cases, "content") and hasattr(train, "content")):
            return None
        place = {str(case): i for i, case in enumerate(train.ids)}
        both = [(i, place[str(case)]) for i, case in enumerate(cases.ids) if str(case) in place]
        return sum(cases is train or cases.content(i) == train.content(k) for i, k in both)

    def facts(self) -> dict[str, Any]:
        """Return what was audited, for the record."""
        from protolearn import __version__

        return {
            **facts(self.subject),
            "data": str(getattr(self.parts["cases"], "name", "its cases")),
            "cases": {name: len(part) for name, part in self.parts.items()},
            "unknown_classes": list(self._unknown()),
            "trained_on": self._trained_on(),
            "key_points": list(self.point_names),
            "seed": self.seed,
            "noise": {"std": self.noise, "limit": self.limit, "draws": self.draws},
            "protolearn": __version__,
        }


def _sound(look: Look, indices: Tensor, part: str) -> None:
    """Refuse scores that are no numbers, whatever is asked for: a metric might take a damaged case for a silent one."""
    numbers(look.scores, "scores", indices, part)
    numbers(look.logits, "class scores", indices, part)
    if part == "cases" and bool(torch.isinf(look.logits).any()):
        case = int(indices[torch.isinf(look.logits).any(1).cpu()][0])
        raise DataError(f"case {case} of the cases: a class score is infinite, so that no figure can be made of it")
