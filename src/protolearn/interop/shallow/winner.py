"""Estimators whose class is that of the nearest prototype: evidence by inverse distance, the winner takes all."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from protolearn.core.heads import NearestOfClass
from protolearn.core.measures import squared_l2
from protolearn.core.model import PrototypeModel
from protolearn.core.regression import sureness
from protolearn.core.similarities import Inverse
from protolearn.core.starts import class_centres
from protolearn.errors import UsageError
from protolearn.interop.shallow.base import ShallowClassifier
from protolearn.interop.shallow.descent import State


class WinnerClassifier(ShallowClassifier):
    """Base of nearest-prototype classifiers.

    Attributes
    ----------
    scale_ : float
        Squared distance, in the units of X, at which evidence is one half: the mean over training cases of the distance
        to the nearest prototype of the own class.
    power_ : float
        Probabilities are shares of scores raised to it; fitted to the training cases (:func:`sureness`).
    exemplars_ : ndarray
        ``(P,)`` for each prototype the row of X, as given last, that is nearest to it among the cases of its class;
        -1 where that X had none.
    """

    _state: State

    def _evidence(self, x: Tensor) -> Tensor:
        state = self._state
        vectors = state.vectors[state.active]
        distances = squared_l2.pairwise(state.bent(x), state.bent(vectors))
        return Inverse(self._scale)(distances)

    def _scores(self, evidence: Tensor) -> Tensor:
        return self._head()(evidence)  # type: ignore[no-any-return]

    def _probabilities(self, scores: Tensor) -> Tensor:
        return self._head().probabilities(scores)

    def _head(self) -> NearestOfClass:
        return NearestOfClass(self._state.owner[self._state.active], len(self.classes_), self.power_)

    def _fill(self, model: PrototypeModel) -> None:
        if model.metric is not None:
            bend = self._state.relevances if self._state.omega is None else self._state.omega
            assert bend is not None
            model.metric.weight.copy_(bend)

    def _start(self, dim: int, per_class: int) -> State:
        """Return a state without any prototype yet."""
        classes = len(self.classes_)
        vectors = torch.zeros(classes * per_class, dim, dtype=torch.float64)
        return State(vectors, torch.zeros(len(vectors), dtype=torch.bool), classes)

    def _place(self, x: Tensor, y: Tensor, w: Tensor | None, draw: torch.Generator) -> list[int]:
        """Start the prototypes of classes that have none on the centres of their cases here; return those classes."""
        state = self._state
        per_class = len(state.vectors) // state.classes
        fresh = [c for c in range(state.classes) if not bool(state.active[c * per_class]) and bool((y == c).any())]
        for c in fresh:
            own = y == c
            centres = class_centres(x[own], per_class, generator=draw, weights=None if w is None else w[own])
            rows = slice(c * per_class, c * per_class + len(centres))
            state.vectors[rows], state.active[rows] = centres, True
        return fresh

    def _finish(self, x: Tensor, y: Tensor, w: Tensor | None, *, first: bool = True) -> None:
        """Set what is learned in the words of scikit-learn."""
        state = self._state
        active = state.active
        owner = state.owner[active]
        vectors = state.vectors[active]
        bent = state.bent(vectors)
        exemplars = np.full(len(vectors), -1)
        nearest = torch.zeros(len(x), dtype=torch.float64)
        for c in range(state.classes):
            cases, rows = (y == c).nonzero().squeeze(1), (owner == c).nonzero().squeeze(1)
            if len(cases) and len(rows):
                table = squared_l2.pairwise(state.bent(x[cases]), bent[rows])
                nearest[cases] = table.amin(1)
                exemplars[rows.numpy()] = cases[table.argmin(0)].numpy()
        weight = torch.ones(len(x), dtype=torch.float64) if w is None else w
        total = float(weight.sum())
        mean = float((nearest * weight).sum()) / total
        if first:
            self._scale, self.power_, self._seen = 0.0, 1.0, 0.0
        self._seen += total
        part = total / self._seen
        self._scale += (max(mean, 1e-12) - self._scale) * part
        self.scale_ = self._scale * self._unit**2
        self.exemplars_ = exemplars
        self._tell(vectors, owner)
        scores = self._scores(self._evidence(x))
        known = (scores > 0).any(0)
        if int(known.sum()) > 1:
            place = known.cumsum(0) - 1
            here = known[y]
            logs = scores[here][:, known].log()
            self.power_ += (sureness(logs, place[y[here]], weight[here]) - self.power_) * part

    def _resize(self, factor: float, first: bool) -> None:
        if not first:
            self._state.vectors *= factor
            self._scale *= factor**2

    def _same_size(self) -> None:
        """Refuse another number of prototypes in the middle of a stream."""
        held, wanted = len(self._state.vectors) // self._state.classes, self.prototypes_per_class  # type: ignore[attr-defined]
        if held != wanted:
            raise UsageError(
                f"{self._page().slug}: prototypes_per_class must stay {held} while a stream goes on, got {wanted}: "
                "call fit to begin anew"
            )

    def _common(self) -> dict[str, Any]:
        """Return the settings of the page that every nearest-prototype method has."""
        known = {"scale": getattr(self, "scale_", 1.0), "power": getattr(self, "power_", 1.0)}
        return {"prototypes_per_class": self.prototypes_per_class, **known}  # type: ignore[attr-defined]
