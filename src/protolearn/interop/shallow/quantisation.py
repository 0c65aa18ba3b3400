"""Learning vector quantisation over arrays: GLVQ, GRLVQ and GMLVQ."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted

from protolearn.core.metrics import unit_trace
from protolearn.errors import UsageError
from protolearn.interop.shallow.descent import Descent, falling
from protolearn.interop.shallow.winner import WinnerClassifier
from protolearn.methods.shallow.glvq import GLVQ
from protolearn.methods.shallow.gmlvq import GMLVQ
from protolearn.methods.shallow.grlvq import GRLVQ


class _Quantiser(WinnerClassifier):
    """What the three share: the start, the loop, and the stream."""

    prototypes_per_class: int
    max_iter: int
    batch_size: int
    metric_rate: float = 1.0  # of those that learn no metric: without effect

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Learn.

        Parameters
        ----------
        X : array
            ``(n, D)`` finite numbers.
        y : array
            ``(n,)`` labels of any kind.
        sample_weight : array, optional
            ``(n,)`` not negative. A whole number counts like so many repetitions of the case: exactly where a batch
            holds all cases, else on average over their orders.
        """
        page = self._checked()
        x, y, w = self._begin(X, y, sample_weight)
        draw = self._draw()
        self._prepare(x.shape[1])
        self._place(x, y, w, draw)
        descent = self._descent = self._make(page)
        labels = y.unsqueeze(1)
        for epoch in range(self.max_iter):
            descent.epoch(x, labels, w, self.batch_size, falling(epoch, self.max_iter), draw)
        self.n_iter_ = self.max_iter
        self._finish(x, y, w)
        return self

    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> Self:
        """Go once over more cases, at the full rate; the first call must name all ``classes`` that will ever come.

        Prototypes of a class start when its first cases come; until then it is never predicted.
        """
        page = self._checked()
        first = not hasattr(self, "_state")
        if not first:
            self._same_size()
        x, y, w = self._begin(X, y, sample_weight, y if classes is None else classes, first=first)
        if first:
            self._draws = self._draw()
            self._prepare(x.shape[1])
            self.n_iter_ = 0
        draw = self._draws if hasattr(self, "_draws") else self._draw()
        if self._place(x, y, w, draw) or first:
            self._descent = self._make(page)
        if len(torch.unique(self._state.owner[self._state.active])) > 1:
            self._descent.epoch(x, y.unsqueeze(1), w, self.batch_size, 1.0, draw)
        self.n_iter_ += 1
        self._finish(x, y, w, first=first)
        return self

    def _checked(self) -> Any:
        page = self._page()
        if not isinstance(self.batch_size, int | np.integer) or self.batch_size < 1:
            raise UsageError(f"{page.slug}: batch_size must be at least 1, got {self.batch_size}")
        return page

    def _prepare(self, dim: int) -> None:
        self._state = self._start(dim, self.prototypes_per_class)

    def _make(self, page: Any) -> Descent:
        return Descent(
            self._state, transfer=page.transfer, sharpness=page.sharpness, rate=page.rate,
            metric_rate=self._metric_rate(),
        )  # fmt: skip

    def _metric_rate(self) -> float:
        return self.metric_rate

    def _settings(self) -> dict[str, Any]:
        given = {"transfer": "transfer", "sharpness": "sharpness", "epochs": "max_iter", "rate": "learning_rate"}
        return {**self._common(), **{name: getattr(self, own) for name, own in given.items()}}


class GLVQClassifier(_Quantiser):
    """Generalised learning vector quantisation (Sato and Yamada, 1995); formulas in ``methods.shallow.glvq``.

    Parameters
    ----------
    prototypes_per_class : int
        How many prototypes each class has.
    transfer : {"sigmoid", "identity"}
        What the relative distance goes through; the sigmoid looks at cases near the border.
    sharpness : float
        Of the sigmoid.
    max_iter : int
        Passes over the cases.
    batch_size : int
        Cases a step.
    learning_rate : float
        In units of the data's spread; falls along half a cosine.
    random_state : int, RandomState or None
        Of start and order; an int makes runs repeatable.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> classifier = GLVQClassifier(random_state=0).fit(X, y)
    >>> classifier.prototypes_.shape, classifier.score(X, y) > 0.95
    ((3, 4), True)
    """

    def __init__(
        self,
        prototypes_per_class: int = 1,
        *,
        transfer: str = "sigmoid",
        sharpness: float = 10.0,
        max_iter: int = 50,
        batch_size: int = 64,
        learning_rate: float = 0.05,
        random_state: Any = None,
    ) -> None:
        self.prototypes_per_class = prototypes_per_class
        self.transfer = transfer
        self.sharpness = sharpness
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.random_state = random_state

    def _page(self) -> GLVQ:
        return GLVQ(**self._settings())


class GRLVQClassifier(_Quantiser):
    """GLVQ that learns how much each feature counts (Hammer and Villmann, 2002); formulas in ``methods.shallow.grlvq``.

    Parameters
    ----------
    prototypes_per_class, transfer, sharpness, max_iter, batch_size, learning_rate, random_state
        As for :class:`GLVQClassifier`.
    metric_rate : float
        Learning rate of the relevances, as a share of the equal one, ``1 / D``.

    Attributes
    ----------
    relevances_ : ndarray
        ``(D,)``, sum 1.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> classifier = GRLVQClassifier(random_state=0).fit(X, y)
    >>> [str(load_iris().feature_names[i]) for i in classifier.relevances_.argsort()[-2:]]
    ['petal length (cm)', 'petal width (cm)']
    """

    def __init__(
        self,
        prototypes_per_class: int = 1,
        *,
        transfer: str = "sigmoid",
        sharpness: float = 10.0,
        max_iter: int = 50,
        batch_size: int = 64,
        learning_rate: float = 0.05,
        metric_rate: float = 0.02,
        random_state: Any = None,
    ) -> None:
        self.prototypes_per_class = prototypes_per_class
        self.transfer = transfer
        self.sharpness = sharpness
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.metric_rate = metric_rate
        self.random_state = random_state

    @property
    def relevances_(self) -> np.ndarray:
        """How much each feature counts."""
        check_is_fitted(self, "prototypes_")
        assert self._state.relevances is not None
        found: np.ndarray = self._state.relevances.numpy().copy()
        return found

    def _prepare(self, dim: int) -> None:
        super()._prepare(dim)
        self._state.relevances = torch.full((dim,), 1.0 / dim, dtype=torch.float64)

    def _metric_rate(self) -> float:
        return self.metric_rate / self._state.vectors.shape[1]

    def _page(self) -> GRLVQ:
        return GRLVQ(**self._settings(), metric_rate=self.metric_rate)


class GMLVQClassifier(_Quantiser):
    """GLVQ that learns which directions count (Schneider et al., 2009); formulas in ``methods.shallow.gmlvq``.

    Parameters
    ----------
    prototypes_per_class, transfer, sharpness, max_iter, batch_size, learning_rate, random_state
        As for :class:`GLVQClassifier`.
    metric_rate : float
        Learning rate of the matrix, as a share of the entries it starts with, ``1 / sqrt(D)``.
    rank : int, optional
        Rows of Omega; the width by default.

    Attributes
    ----------
    omega_ : ndarray
        ``(rank, D)``, of unit trace ``omega.T @ omega``.
    relevances_ : ndarray
        ``(D,)``, the diagonal of ``omega.T @ omega``: how much each feature counts, sum 1.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> classifier = GMLVQClassifier(random_state=0).fit(X, y)
    >>> classifier.omega_.shape, classifier.score(X, y) > 0.95
    ((4, 4), True)
    """

    def __init__(
        self,
        prototypes_per_class: int = 1,
        *,
        transfer: str = "sigmoid",
        sharpness: float = 10.0,
        max_iter: int = 50,
        batch_size: int = 64,
        learning_rate: float = 0.05,
        metric_rate: float = 0.02,
        rank: int | None = None,
        random_state: Any = None,
    ) -> None:
        self.prototypes_per_class = prototypes_per_class
        self.transfer = transfer
        self.sharpness = sharpness
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.metric_rate = metric_rate
        self.rank = rank
        self.random_state = random_state

    @property
    def omega_(self) -> np.ndarray:
        """The matrix that differences go through."""
        check_is_fitted(self, "prototypes_")
        assert self._state.omega is not None
        found: np.ndarray = self._state.omega.numpy().copy()
        return found

    @property
    def relevances_(self) -> np.ndarray:
        """How much each feature counts."""
        found: np.ndarray = np.square(self.omega_).sum(0)
        return found

    def _prepare(self, dim: int) -> None:
        super()._prepare(dim)
        self._state.omega = unit_trace(torch.eye(self.rank or dim, dim, dtype=torch.float64))

    def _metric_rate(self) -> float:
        return self.metric_rate / float(np.sqrt(self._state.vectors.shape[1]))

    def _page(self) -> GMLVQ:
        return GMLVQ(**self._settings(), metric_rate=self.metric_rate, rank=self.rank)
