"""The nearest class mean over arrays, in one pass or as a stream."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor

from protolearn.core.measures import squared_l2
from protolearn.core.updates import group_sums, running_mean
from protolearn.interop.shallow.winner import WinnerClassifier
from protolearn.methods.shallow.nearest_class_mean import NearestClassMean


class NearestMeanClassifier(WinnerClassifier):
    """Predict the class whose mean is nearest, or one of whose k-means centres is.

    Parameters
    ----------
    prototypes_per_class : int
        1 = the mean; more = k-means inside the class.
    random_state : int, RandomState or None
        Of the k-means start; without effect on means.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> classifier = NearestMeanClassifier().fit(X, y)
    >>> classifier.prototypes_.shape, round(classifier.score(X, y), 2)
    ((3, 4), 0.93)
    """

    def __init__(self, prototypes_per_class: int = 1, *, random_state: Any = None) -> None:
        self.prototypes_per_class = prototypes_per_class
        self.random_state = random_state

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Take the means. A whole weight is exactly so many repetitions of the case."""
        self._page()
        return self._take(*self._begin(X, y, sample_weight), first=True)

    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> Self:
        """Take in more cases.

        One mean a class is exact, however the cases are split. With several, a case moves the nearest centre of its
        class as sequential k-means does (each centre stays the mean of the cases it was moved by).
        """
        self._page()
        first = not hasattr(self, "_state")
        if not first:
            self._same_size()
        return self._take(
            *self._begin(X, y, sample_weight, y if classes is None else classes, first=first), first=first
        )

    def _take(self, x: Tensor, y: Tensor, w: Tensor | None, *, first: bool) -> Self:
        if first:
            self._state = self._start(x.shape[1], self.prototypes_per_class)
            self._counts = torch.zeros(len(self._state.vectors), dtype=torch.float64)
        state, per_class = self._state, self.prototypes_per_class
        self._place(x, y, w, self._draw())
        table = squared_l2.pairwise(x, state.vectors).masked_fill(~state.active, torch.inf)
        rows = y * per_class + table.view(len(x), state.classes, per_class)[torch.arange(len(x)), y].argmin(1)
        sums, totals = group_sums(x, rows, len(state.vectors), w)
        # a centre just placed is the mean of its cases already: with count 0 it becomes that again
        state.vectors, self._counts = running_mean(state.vectors, self._counts, sums, totals)
        self._finish(x, y, w, first=first)
        return self

    def _page(self) -> NearestClassMean:
        return NearestClassMean(**self._common())
