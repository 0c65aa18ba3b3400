"""Classification by components over arrays, with a certified radius."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from protolearn.core.certificate import radius_by_bisection, radius_closed_form
from protolearn.core.measures import squared_l2
from protolearn.core.model import PrototypeModel
from protolearn.core.reasoning import Reasoning
from protolearn.core.similarities import RadialBasis
from protolearn.core.starts import class_centres
from protolearn.errors import UsageError
from protolearn.interop.shallow.base import ShallowClassifier
from protolearn.interop.shallow.descent import batches, falling
from protolearn.methods.parts.cbc import CBC
from protolearn.objectives.margin import margin_loss, robust_margin


class CBCClassifier(ShallowClassifier):
    """Classes that expect components to be present or absent (Saralajew et al., AAAI 2025); see the method ``cbc``.

    Components are radial basis functions that start on k-means centres of each class; all classes reason with all. A
    score is the share of a class's expectations that a case meets, in [0, 1]; probabilities are shares of the scores.
    A case that no class expects has low scores throughout.

    There is no ``partial_fit``: a class that comes later would change the reasoning of all others.

    Parameters
    ----------
    prototypes_per_class : int
        Components that start on each class.
    margin : float
        By how much the own score should lead.
    absence : bool
        Whether classes may reason by absence.
    robust_weight : float
        Of the robustness term, ``mean of relu(robust_target - certified radius)``; 0 = without.
    robust_target : float
        The radius asked for, in units of the data's spread (the root of the summed variances).
    max_iter, batch_size : int
        Passes over the cases, and cases a step.
    learning_rate : float
        Of components, widths and reasoning; falls along half a cosine.
    random_state : int, RandomState or None
        Of start and order.

    Attributes
    ----------
    widths_ : ndarray
        ``(P,)``, in squared units of X.
    reasoning_ : ndarray
        ``(2, C, P)``: how much presence and absence of each component count for each class; sums to 1 over a class.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> classifier = CBCClassifier(random_state=0, max_iter=30).fit(X, y)
    >>> classifier.score(X, y) > 0.9, classifier.certified_radius(X).shape
    (True, (150,))
    """

    def __init__(
        self,
        prototypes_per_class: int = 3,
        *,
        margin: float = 0.025,
        absence: bool = True,
        robust_weight: float = 0.0,
        robust_target: float = 0.2,
        max_iter: int = 50,
        batch_size: int = 64,
        learning_rate: float = 0.05,
        random_state: Any = None,
    ) -> None:
        self.prototypes_per_class = prototypes_per_class
        self.margin = margin
        self.absence = absence
        self.robust_weight = robust_weight
        self.robust_target = robust_target
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.random_state = random_state

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Learn components, widths and reasoning together; weights ``(n,)`` multiply the cost of their cases."""
        self._page()
        for name in ("max_iter", "batch_size", "learning_rate"):
            if not getattr(self, name) > 0:
                raise UsageError(f"cbc: {name} must be positive, got {getattr(self, name)}")
        x, codes, w = self._begin(X, y, sample_weight)
        draw, classes = self._draw(), len(self.classes_)
        centres = [
            class_centres(x[codes == c], self.prototypes_per_class, generator=draw, weights=_of(w, codes == c))
            for c in range(classes)
        ]
        owner = torch.arange(classes).repeat_interleave(torch.tensor([len(part) for part in centres]))
        vectors = torch.cat(centres).requires_grad_()
        table = squared_l2.pairwise(x, vectors.detach())
        away = table.mean(0) if w is None else (w / w.sum()) @ table
        bumps = RadialBasis(away.clamp_min(1e-3))
        head = Reasoning.start(classes, len(vectors), absence=self.absence, generator=draw).double()
        rates = [self.learning_rate / x.shape[1] ** 0.5, self.learning_rate, self.learning_rate]
        groups = ([vectors], list(bumps.parameters()), list(head.parameters()))
        optimizer = torch.optim.Adam([{"params": p, "lr": r} for p, r in zip(groups, rates, strict=True)])
        for epoch in range(self.max_iter):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * falling(epoch, self.max_iter)
            for a, b, c in batches(x, codes, w, self.batch_size, draw):
                distances = squared_l2.pairwise(a, vectors)
                loss = margin_loss(head(bumps(distances)), b, self.margin, c)
                if self.robust_weight > 0:
                    roots = distances.clamp_min(1e-12).sqrt()
                    radii = radius_closed_form(roots, bumps.width, head.shares(), b).amin(1)
                    loss = loss + self.robust_weight * robust_margin(radii, b, self.robust_target, c)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        self.n_iter_ = self.max_iter
        self._vectors, self._bumps, self._head = (
            vectors.detach(),
            bumps.requires_grad_(False),
            head.requires_grad_(False),
        )
        self.widths_: np.ndarray = (bumps.width * self._unit**2).numpy()
        self.reasoning_: np.ndarray = head.shares().numpy()
        self._tell(self._vectors, owner)
        return self

    def certified_radius(self, X: Any) -> np.ndarray:
        """Return ``(n,)``: no change of a case shorter than this, in units of X, changes its predicted label.

        Proven for the model as it is, not estimated (``core.certificate``); inf where nothing could.
        """
        x = self._inside(X)
        distances = squared_l2.pairwise(x, self._vectors)
        best = self._scores(self._evidence(x)).argmax(1)
        radii = radius_by_bisection(distances.sqrt(), self._bumps.width, self._head.shares(), best).amin(1)
        found: np.ndarray = radii.numpy() * self._unit
        return found

    def _spread(self, deviations: np.ndarray, weight: np.ndarray | None) -> float:
        """Return the root of the summed variances: with it, squared distances are about 1 however many features."""
        return super()._spread(deviations, weight) * deviations.shape[1] ** 0.5

    def _evidence(self, x: Tensor) -> Tensor:
        found: Tensor = self._bumps(squared_l2.pairwise(x, self._vectors))
        return found

    def _scores(self, evidence: Tensor) -> Tensor:
        found: Tensor = self._head(evidence)
        return found

    def _probabilities(self, scores: Tensor) -> Tensor:
        total = scores.sum(1, keepdim=True)
        return torch.where(total > 0, scores / total.where(total > 0, 1.0), 1.0 / scores.shape[1])

    def _fill(self, model: PrototypeModel) -> None:
        assert isinstance(model.similarity, RadialBasis) and isinstance(model.head, Reasoning)
        model.similarity.reset(torch.from_numpy(self.widths_).to(model.similarity.raw))
        model.head.theta.copy_(self._head.theta)

    def _page(self) -> CBC:
        unit = getattr(self, "_unit", 1.0)
        return CBC(
            detection="rbf", per_class=self.prototypes_per_class, margin=self.margin, absence=self.absence, clip=0.0,
            robust_weight=self.robust_weight, robust_target=self.robust_target * unit,
        )  # fmt: skip


def _of(weight: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if weight is None else weight[rows]
