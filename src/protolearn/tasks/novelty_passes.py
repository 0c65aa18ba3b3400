"""Passes of a model over data for novelty scores: fitted, calibrated and asked, each part of the data read once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from protolearn.audit.ood_result import ForeignCase
from protolearn.core.modes import evaluating
from protolearn.core.scorer import Scorer, View, joined
from protolearn.core.views import ModelViews, Views
from protolearn.data.splits import group_split, stratified_split
from protolearn.errors import DataError, UsageError
from protolearn.explain.explain import explain
from protolearn.explain.passes import CaseList, inputs_over, labels_for, picture_of, track


class _Ran(NamedTuple):
    inputs: Tensor
    ran: Any


class Seen(NamedTuple):
    """What a pass over one part of the data gave."""

    logits: np.ndarray
    probabilities: np.ndarray
    confidences: dict[str, np.ndarray]
    unclear: int
    """Confidences that were NaN."""


@dataclass(eq=False)
class Desk:
    """A model and how it is run."""

    views: Views
    batch_size: int
    device: str | torch.device | None
    workers: int
    quiet: bool

    def __post_init__(self) -> None:
        if self.device is not None:
            self.views.module.to(self.device)

    def prepare(
        self,
        scorers: Sequence[Scorer],
        train: CaseList | None,
        held: CaseList | None,
        rate: float,
        share: float,
        seed: int,
    ) -> dict[str, Any]:
        """Fit and calibrate scores; return what was used, for the record."""
        if held is not None and not len(held):
            raise UsageError("there are no held-out known cases to set a threshold by")
        facts: dict[str, Any] = {}
        if train is not None:
            if not len(train):
                raise UsageError("there are no known cases to fit a novelty score on")
            fit, kept = (np.arange(len(train)), None) if held is not None else _parts(train, share, seed)
            self.fit(scorers, train, fit)
            facts = {"fitted_on": str(getattr(train, "name", "training cases")), "fitted": len(fit)}
        else:
            kept = None
        source, indices = (held, None) if held is not None else (train, kept)
        assert source is not None
        labels = {str(k): each for k, each in enumerate(scorers)}
        found = self.ask(labels, source, "calibrating", indices=indices, known=True)
        if found.unclear:
            raise DataError(
                "the novelty score of a held-out known case is not a number: the model or the score is damaged"
            )
        for key, each in labels.items():
            each.calibrate(torch.from_numpy(found.confidences[key]), rate)
        calibrated = len(source) if indices is None else len(indices)
        where = "held-out cases" if held is not None else "a part of the cases kept out of the fit"
        split = {} if held is not None else {"share": share, "seed": seed}
        return {**facts, "calibrated": calibrated, "calibrated_on": where, **split}

    def fit(self, scorers: Sequence[Scorer], cases: CaseList, indices: np.ndarray) -> None:
        """Fit scores on some known cases: one pass for all that read outputs, one for each that reads inputs."""
        labels = torch.from_numpy(labels_for(self.views, cases, strict=True)[indices])
        reading = [each for each in scorers if not each.fits_inputs]
        kinds = sorted({each.features for each in reading})
        views: dict[str, list[View]] = {kind: [] for kind in kinds}
        if reading:
            for _, ran in self._passes(cases, indices, "fitting", known=True):
                for kind in kinds:
                    seen = self.views.view(ran.ran, kind)
                    views[kind].append(View(seen.features.cpu(), seen.logits.cpu(), None, seen.weight, seen.bias))
        for kind in kinds:
            whole = joined(views[kind])
            weight, bias = (None if each is None else each.cpu() for each in (whole.weight, whole.bias))
            whole = View(whole.features, whole.logits, None, weight, bias)
            if len(whole) > 1 and bool((whole.features == whole.features[0]).all()):
                raise DataError(
                    f"the {kind} features of all {len(whole)} known cases are the same: the model cannot tell any case "
                    "from another, so nothing can be known or foreign to it"
                )
            for each in reading:
                if each.features == kind:
                    each.fit(whole, labels)
        for each in scorers:
            if each.fits_inputs:
                chosen = indices[each.chosen(labels).numpy()]
                with evaluating(self.views.module):
                    each.fit_inputs(self.views.module, self._inputs(cases, chosen))
            each.to(self.views.device)

    def ask(
        self,
        scorers: Mapping[str, Scorer],
        cases: CaseList,
        words: str,
        *,
        indices: np.ndarray | None = None,
        known: bool = False,
    ) -> Seen:
        """Return logits and every score's confidences of some cases, in one pass."""
        none = np.zeros((0, len(self.views.classes)))
        logits, chances = [none], [none]
        said: dict[str, list[np.ndarray]] = {label: [] for label in scorers}
        for scorer in scorers.values():
            scorer.to(self.views.device)
        if known:
            labels_for(self.views, cases, strict=True)
        for _, each in self._passes(cases, indices, words, known=known):
            logits.append(self.views.logits(each.ran).double().cpu().numpy())
            chances.append(self.views.probabilities(each.ran).detach().cpu().numpy())
            for label, scorer in scorers.items():
                with evaluating(self.views.module), torch.no_grad():
                    confidence = self.views.confidence(scorer, each.ran, each.inputs)
                said[label].append(confidence.double().cpu().numpy())
        confidences = {label: np.concatenate(parts) for label, parts in said.items()}
        unclear = sum(int(np.isnan(values).sum()) for values in confidences.values())
        lowest = {label: np.where(np.isnan(values), -np.inf, values) for label, values in confidences.items()}
        return Seen(np.concatenate(logits), np.concatenate(chances), lowest, unclear)

    def _passes(
        self, cases: CaseList, indices: np.ndarray | None, words: str, *, known: bool
    ) -> Iterator[tuple[list[int], _Ran]]:
        """Yield passes of the model over cases; features of known cases must be finite."""
        chosen = None if indices is None else indices.tolist()
        shown = inputs_over(cases, self.views.preprocess, chosen, batch_size=self.batch_size, workers=self.workers)
        total = len(cases) if chosen is None else len(chosen)
        for places, inputs, _ in track(shown, total, words, quiet=self.quiet):
            given = inputs.to(self.views.device)
            with evaluating(self.views.module), torch.no_grad():
                ran = self.views.run(given)
            if known:
                view = self.views.view(ran)
                whole = torch.isfinite(view.features).all(1) & ~view.logits.isnan().any(1)
                if not bool(whole.all()):
                    case = cases.ids[places[int((~whole).nonzero()[0])]]
                    raise DataError(
                        f"{case}: features or scores of this known case hold NaN or infinity: case or model is damaged"
                    )
            yield places, _Ran(given, ran)

    def _inputs(self, cases: CaseList, indices: np.ndarray) -> Iterator[Tensor]:
        shown = inputs_over(
            cases, self.views.preprocess, indices.tolist(), batch_size=self.batch_size, workers=self.workers
        )
        for _, inputs, _ in track(shown, len(indices), "fitting", quiet=self.quiet):
            yield inputs.to(self.views.device)

    def examples(
        self, scorer: Scorer, confidences: Mapping[str, np.ndarray], sets: Mapping[str, CaseList], count: int
    ) -> Iterator[ForeignCase]:
        """Yield the most foreign cases of all sets, then the foreign cases most taken for known."""
        every = [(float(v), name, i) for name, values in confidences.items() for i, v in enumerate(values)]
        every.sort(key=lambda entry: entry[0])
        low, high = every[:count], every[count:][::-1][:count]
        set_at = threshold_of(scorer)
        for value, name, i in [*low, *high]:
            cases = sets[name]
            picture = picture_of(cases, i)
            why = None
            if isinstance(self.views, ModelViews):
                why = explain(self.views.model, cases, [i])[0]
            known = None if set_at is None else value >= set_at[0]
            yield ForeignCase(name, str(cases.ids[i]), value, known, why, picture)

    def facts(self, known: CaseList, sets: Mapping[str, CaseList], seed: int, draws: int) -> dict[str, Any]:
        """Return what was asked, for the record."""
        from protolearn import __version__

        return {
            "model": self.views.name,
            "classes": len(self.views.classes),
            "data": str(getattr(known, "name", "its cases")),
            "known": len(known),
            "sets": {name: {"data": str(getattr(c, "name", name)), "cases": len(c)} for name, c in sets.items()},
            "seed": seed,
            "draws": draws,
            "protolearn": __version__,
        }


def _parts(cases: CaseList, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return positions to fit on and positions to calibrate by."""
    groups = getattr(cases, "groups", None)
    if groups is not None:
        fit, kept = group_split(cases.labels, groups, share, seed)
    else:
        fit, kept = stratified_split(cases.labels, share, seed, ids=list(map(str, cases.ids)))
    if not len(kept):
        raise UsageError(
            f"{len(cases)} known cases, one a class, leave none to set a threshold by: give held-out known cases"
        )
    return fit, kept


def threshold_of(scorer: Scorer) -> tuple[float, float] | None:
    """Return the threshold of a score and the share of known cases it was set to accept; None where it was not set."""
    return None if bool(scorer.threshold.isnan()) else (float(scorer.threshold), float(scorer.rate))
