"""The RBF network over arrays, in closed form."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor

from protolearn.core.heads import LinearEvidence
from protolearn.core.measures import squared_l2
from protolearn.core.model import PrototypeModel
from protolearn.core.regression import Readout, least_squares, sureness
from protolearn.core.similarities import RadialBasis
from protolearn.core.starts import class_centres, neighbour_widths
from protolearn.interop.shallow.base import ShallowClassifier
from protolearn.methods.shallow.rbf_network import RBFNetwork


class RBFNetworkClassifier(ShallowClassifier):
    """Bumps on k-means centres of each class, a linear readout of their heights (``methods.shallow.rbf_network``).

    Centres, widths and readout are set once from all cases, so there is no ``partial_fit``. A whole sample weight is
    exactly so many repetitions of the case.

    Parameters
    ----------
    prototypes_per_class : int
        Centres of each class.
    neighbours : int
        Other centres that a width is measured by.
    width : float
        Factor of all widths. The papers' is 1, as on the page; 3 was chosen on the training part of digits.
    ridge : float
        Strength of the ridge of the least squares.
    random_state : int, RandomState or None
        Of the k-means start.

    Attributes
    ----------
    widths_ : ndarray
        ``(P,)``, in squared units of X.
    coef_, intercept_ : ndarray
        ``(C, P)`` and ``(C,)`` of the readout.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> RBFNetworkClassifier(random_state=0).fit(X, y).score(X, y) > 0.95
    True
    """

    def __init__(
        self,
        prototypes_per_class: int = 5,
        *,
        neighbours: int = 2,
        width: float = 3.0,
        ridge: float = 1e-4,
        random_state: Any = None,
    ) -> None:
        self.prototypes_per_class = prototypes_per_class
        self.neighbours = neighbours
        self.width = width
        self.ridge = ridge
        self.random_state = random_state

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Set centres, widths and readout; weights ``(n,)`` count like repetitions."""
        page = self._page()
        x, codes, w = self._begin(X, y, sample_weight)
        draw = self._draw()
        centres, owner = [], []
        for label in range(len(self.classes_)):
            own = codes == label
            part = None if w is None else w[own]
            centres.append(class_centres(x[own], page.prototypes_per_class, generator=draw, weights=part))
            owner.append(torch.full((len(centres[-1]),), label))
        self._vectors = torch.cat(centres)
        self._widths = page.width * neighbour_widths(self._vectors, page.neighbours)
        evidence = self._evidence(x)
        found = least_squares(evidence, codes, len(self.classes_), ridge=page.ridge, weights=w)
        factor = sureness(evidence @ found.weight.T + found.bias, codes, w)
        self._readout = Readout(factor * found.weight, factor * found.bias)
        self.widths_ = (self._widths * self._unit**2).numpy()
        self.coef_, self.intercept_ = self._readout.weight.numpy(), self._readout.bias.numpy()
        self._tell(self._vectors, torch.cat(owner))
        return self

    def _evidence(self, x: Tensor) -> Tensor:
        return (-squared_l2.pairwise(x, self._vectors) / self._widths).exp()

    def _scores(self, evidence: Tensor) -> Tensor:
        return evidence @ self._readout.weight.T + self._readout.bias

    def _probabilities(self, scores: Tensor) -> Tensor:
        return scores.softmax(1)

    def _fill(self, model: PrototypeModel) -> None:
        assert isinstance(model.similarity, RadialBasis) and isinstance(model.head, LinearEvidence)
        assert model.head.bias is not None
        model.similarity.reset(torch.from_numpy(self.widths_).to(model.similarity.raw))
        model.head.weight.copy_(self._readout.weight)
        model.head.bias.copy_(self._readout.bias)

    def _page(self) -> RBFNetwork:
        return RBFNetwork(self.prototypes_per_class, self.neighbours, self.width, self.ridge)
