"""What the estimators over arrays share: checks of input, labels and weights, and everything after training."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, column_or_1d, validate_data
from torch import Tensor

from protolearn.core.method import Method
from protolearn.core.model import PrototypeModel
from protolearn.data.features import features
from protolearn.encoders import FeatureEncoder
from protolearn.explain import explain
from protolearn.structures import Explanation
from protolearn.training.folder import save


class ShallowClassifier(ClassifierMixin, TransformerMixin, BaseEstimator):
    """Base of the estimators: a subclass says how it learns, and how evidence and scores come about.

    Everything is computed in double precision on centred data, in units of its spread: moving or scaling all features
    together changes nothing. Features of different kinds should be brought to comparable scales before
    (``StandardScaler`` in a pipeline).

    Attributes
    ----------
    classes_ : ndarray
        The labels, as ``y`` had them.
    n_features_in_ : int
        Width of X.
    prototypes_ : ndarray
        ``(P, D)``, in the units of X.
    prototype_labels_ : ndarray
        ``(P,)``.
    """

    # -- what a subclass says -------------------------------------------------------------------------------------

    @abstractmethod
    def _page(self) -> Method:
        """Return the settings as the method's page takes them; it refuses impossible ones."""

    @abstractmethod
    def _evidence(self, x: Tensor) -> Tensor:
        """Return ``(n, P)`` for cases in internal units."""

    @abstractmethod
    def _scores(self, evidence: Tensor) -> Tensor:
        """Return ``(n, C)``."""

    @abstractmethod
    def _probabilities(self, scores: Tensor) -> Tensor:
        """Return ``(n, C)``, rising with the scores within a case."""

    @abstractmethod
    def _fill(self, model: PrototypeModel) -> None:
        """Set what the built model has beyond vectors and owners."""

    # -- what all can do ------------------------------------------------------------------------------------------

    def predict(self, X: Any) -> np.ndarray:
        """Return the label of each case."""
        best = self._scored(X).argmax(1).numpy()
        found: np.ndarray = self.classes_[best]
        return found

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return ``(n, C)`` probabilities, in the order of ``classes_``."""
        found: np.ndarray = self._probabilities(self._scored(X)).numpy()
        return found

    def decision_function(self, X: Any) -> np.ndarray:
        """Return the scores ``(n, C)``; with two classes ``(n,)``, the second probability less the first."""
        scores = self._scored(X)
        if len(self.classes_) > 2:
            found: np.ndarray = scores.numpy()
            return found
        both = self._probabilities(scores)
        difference: np.ndarray = (both[:, 1] - both[:, 0]).numpy()
        return difference

    def transform(self, X: Any) -> np.ndarray:
        """Return ``(n, P)`` evidence: how similar each case is to each prototype."""
        found: np.ndarray = self._evidence(self._inside(X)).numpy()
        return found

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Return a name for each column of :meth:`transform`: the prototype's class and its number."""
        check_is_fitted(self, "prototypes_")
        if input_features is not None and len(input_features) != self.n_features_in_:
            raise ValueError(
                f"input_features should have length equal to number of features ({self.n_features_in_}), "
                f"got {len(input_features)}"
            )
        return np.array([f"{label}_{row}" for row, label in enumerate(self.prototype_labels_)], dtype=object)

    def to_model(self) -> PrototypeModel:
        """Return the same classifier as a model of the library, for reports, audits, tasks and saving.

        It takes X in its own units, in single precision.
        """
        check_is_fitted(self, "prototypes_")
        page, owner = self._page(), np.searchsorted(self.classes_, self.prototype_labels_)
        model = page.build(FeatureEncoder(self.n_features_in_), len(self.classes_))
        # classes with fewer different cases than prototypes have fewer prototypes
        made = np.repeat(np.arange(len(self.classes_)), len(model.bank) // len(self.classes_))
        kept = np.concatenate([np.flatnonzero(made == c)[: (owner == c).sum()] for c in range(len(self.classes_))])
        model.prune([key for row, key in enumerate(model.bank.ids.tolist()) if row not in set(kept.tolist())])
        with torch.no_grad():
            model.bank.vectors.copy_(torch.from_numpy(self.prototypes_))
            self._fill(model)
        model.classes = tuple(str(label) for label in self.classes_.tolist())
        model.method = page
        return model.eval()

    def explain(self, X: Any, target: int | str = "predicted") -> list[Explanation]:
        """Return for each case why it got its score: prototypes by contribution, whose sum is the score."""
        check_is_fitted(self, "prototypes_")
        x = validate_data(self, X, reset=False, dtype=np.float64)
        names = [str(label) for label in self.classes_.tolist()]
        return explain(self.to_model(), features(self._for_model(x), classes=names, name="X"), target=target)

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write the model as a folder that ``protolearn`` loads, explains and reports on."""
        return save(self.to_model(), folder, overwrite=overwrite)

    def _for_model(self, x: np.ndarray) -> np.ndarray:
        """Return cases as :meth:`to_model`'s model takes them."""
        return x

    # -- helpers of the subclasses --------------------------------------------------------------------------------

    def _begin(
        self, X: Any, y: Any, sample_weight: Any, classes: Any = None, *, first: bool = True
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Check input and labels; return cases in internal units, class indices ``(n,)`` and weights."""
        X, y = validate_data(self, X, y, reset=first, dtype=np.float64)
        y = column_or_1d(y, warn=True)
        check_classification_targets(y)
        weight = None
        if sample_weight is not None:
            weight = _check_sample_weight(sample_weight, X, dtype=np.float64)
            if (weight < 0).any():
                raise ValueError("sample_weight must not be negative")
            X, y, weight = X[weight > 0], y[weight > 0], weight[weight > 0]
        if first:
            self.classes_ = np.unique(y if classes is None else classes)
        codes = np.searchsorted(self.classes_, y)
        unknown = codes >= len(self.classes_)
        codes[unknown] = 0
        if (self.classes_[codes] != y).any() or unknown.any():
            raise ValueError(f"y holds labels that are not among the classes {self.classes_.tolist()}")
        if len(self.classes_) < 2 or (first and classes is None and len(np.unique(codes)) < 2):
            raise ValueError(
                f"{type(self).__name__} needs at least two classes that carry weight, got {len(self.classes_)} class"
            )
        if first:
            self._centre, self._unit, self._measured = np.average(X, axis=0, weights=weight), 1.0, False
        if not self._measured:  # the first cases of a stream may all be the same
            spread = self._spread(X - self._centre, weight)
            if spread > 1e-14 * float(np.abs(self._centre).max()):
                self._resize(self._unit / spread, first)
                self._unit, self._measured = spread, True
        w = None if weight is None else torch.from_numpy(weight)
        return self._scaled(X), torch.from_numpy(codes), w

    def _resize(self, factor: float, first: bool) -> None:
        """Take a new internal unit: lengths learned so far, in a stream, are multiplied by a factor."""

    def _spread(self, deviations: np.ndarray, weight: np.ndarray | None) -> float:
        """Return the internal unit: the root of the mean variance of the features."""
        return float(np.sqrt(np.average(np.square(deviations).mean(1), weights=weight)))

    def _scaled(self, X: np.ndarray) -> Tensor:
        return torch.from_numpy((X - self._centre) / self._unit)

    def _inside(self, X: Any) -> Tensor:
        check_is_fitted(self, "prototypes_")
        return self._scaled(validate_data(self, X, reset=False, dtype=np.float64))

    def _scored(self, X: Any) -> Tensor:
        return self._scores(self._evidence(self._inside(X)))

    def _draw(self) -> torch.Generator:
        """Return a generator seeded by ``random_state``."""
        seed = self.random_state  # type: ignore[attr-defined]
        if not isinstance(seed, int | np.integer):
            seed = check_random_state(seed).randint(2**31 - 1)
        return torch.Generator().manual_seed(int(seed))

    def _tell(self, vectors: Tensor, owner: Tensor) -> None:
        """Set the public attributes from prototypes in internal units."""
        self.prototypes_: np.ndarray = vectors.numpy() * self._unit + self._centre
        self.prototype_labels_: np.ndarray = self.classes_[owner.numpy()]
