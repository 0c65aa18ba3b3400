"""A classifier with scikit-learn's habits over any method, encoder and kind of data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from protolearn.core.encoder import Encoder
from protolearn.core.method import Method
from protolearn.core.model import PrototypeModel
from protolearn.core.sampling import Doubt, doubt_of, rule_of
from protolearn.data import Cases, FileCases, arrays
from protolearn.data.features import features
from protolearn.encoders import FeatureEncoder, ImageEncoder, SmallEncoder, make_encoder
from protolearn.encoders.search import retrieval_for
from protolearn.errors import DataError, UsageError
from protolearn.explain import explain
from protolearn.explain.passes import novelty_of, run_over
from protolearn.methods import get_method
from protolearn.structures import Explanation
from protolearn.training.fit import fit
from protolearn.training.folder import load, save
from protolearn.training.rebuild import check_types


class PrototypeClassifier(ClassifierMixin, BaseEstimator):
    """Classify pictures or features by prototypes.

    The constructor only stores; ``fit`` checks and learns.

    Parameters
    ----------
    method : str or Method
        Name of a method, or its settings.
    settings : mapping, optional
        Settings of a method that is given by name, e.g. ``{"prototypes_per_class": 5}``.
    encoder : None, str, mapping or Encoder
        ``"small"`` or a network of timm for pictures; a specification for ``make_encoder``; or an encoder, which is
        copied and not changed. None takes ``"small"`` for pictures, and features as they are.
    weights : str, optional
        Of a network of timm: a ``.safetensors`` file, or ``"hub"``.
    random_state : int, RandomState or None
        Seeds weights and order; an int makes runs repeatable.
    batch_size : int
        Cases at a time.
    device : str
        auto, cpu, cuda or mps.
    views : int
        Augmented views cached where the encoder is frozen; 1 does not augment.
    verbose : bool
        Show progress.

    Attributes
    ----------
    classes_ : ndarray
        The labels, as ``y`` had them.
    n_features_in_ : int
        Width of the features; only where X was features.
    model_ : PrototypeModel
        The trained model; ``save`` keeps it as a folder. Pickling is not promised.
    history_ : list of dict
        One row an epoch.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> X, y = load_digits(return_X_y=True)
    >>> settings = {"prototypes_per_class": 2, "dim": 16, "warm_epochs": 4, "project_at": (4,)}
    >>> classifier = PrototypeClassifier(settings=settings, random_state=0).fit(X[:500] / 16, y[:500])
    >>> classifier.predict(X[:1] / 16).shape, classifier.transform(X[:3] / 16).shape
    ((1,), (3, 20))
    """

    def __init__(
        self,
        method: str | Method = "protopnet",
        *,
        settings: Mapping[str, Any] | None = None,
        encoder: str | Mapping[str, Any] | Encoder | None = None,
        weights: str | None = None,
        random_state: int | np.random.RandomState | None = None,
        batch_size: int = 80,
        device: str = "auto",
        views: int = 1,
        verbose: bool = False,
    ) -> None:
        self.method = method
        self.settings = settings
        self.encoder = encoder
        self.weights = weights
        self.random_state = random_state
        self.batch_size = batch_size
        self.device = device
        self.views = views
        self.verbose = verbose

    def fit(self, X: Any, y: Any = None) -> Self:
        """Learn from cases.

        Parameters
        ----------
        X : array, sequence of paths, or Cases
            Pictures ``(n, H, W)`` or ``(n, H, W, 1 or 3)`` as uint8 or reals from 0 to 1; features ``(n, d)``, or
            ``(n, s, d)`` for s tokens each (three-dimensional arrays are pictures when they are uint8 or an encoder of
            pictures is given, features otherwise); paths of pictures; or cases, which bring their own labels.
        y : sequence, optional
            Labels of any kind.

        Returns
        -------
        PrototypeClassifier
            Itself.
        """
        from protolearn.data import Augment

        method = self._method()
        cases, labels = self._cases(X, y)
        seed = self.random_state
        if not isinstance(seed, int | np.integer):
            seed = check_random_state(seed).randint(2**31 - 1)
        result = fit(
            method, cases, encoder=self._encoder(cases, int(seed)), seed=int(seed), batch_size=self.batch_size,
            device=self.device, views=self.views, augment=Augment() if self.views > 1 else None,
            quiet=not self.verbose,
        )  # fmt: skip
        self.model_: PrototypeModel = result.model
        self.classes_: np.ndarray = labels
        self.history_ = result.history
        self._sources = cases
        width = getattr(cases, "_values", None)
        if width is not None:
            self.n_features_in_ = int(width.shape[-1])
        return self

    def predict(self, X: Any, *, unknown: Any = None) -> np.ndarray:
        """Return the label of each case; where :meth:`abstains` says so, nothing speaks for it.

        Parameters
        ----------
        X : array, sequence of paths, or Cases
            As for :meth:`fit`.
        unknown : label, optional
            What to return in place of a label for cases that are not known, by :meth:`fit_novelty`; None says the
            closest class of each.
        """
        best = self.decision_function(X).argmax(1)
        found: np.ndarray = self.classes_[best]
        if unknown is None:
            return found
        told = np.result_type(found, np.array(unknown)) if found.dtype.kind == np.array(unknown).dtype.kind else object
        return np.where(self.known(X), found.astype(told), np.array(unknown, dtype=told))

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return ``(n, classes)`` probabilities, in the order of ``classes_``."""
        logits = torch.from_numpy(self.decision_function(X)).double()
        with torch.no_grad():
            found: np.ndarray = self.model_.head.probabilities(logits).numpy()
        return found

    def abstains(self, X: Any) -> np.ndarray:
        """Return ``(n,)`` bool: no class scores anything, so that the label of :meth:`predict` is no answer.

        Methods whose scores start at 0 with nothing found can abstain (``pipnet``, ``cbc``); others never do.
        """
        logits = torch.from_numpy(self.decision_function(X))
        found: np.ndarray = self.model_.head.abstains(logits).numpy()
        return found

    def decision_function(self, X: Any) -> np.ndarray:
        """Return ``(n, classes)`` logits."""
        return self._run(X, "logits")

    def fit_novelty(
        self, X: Any, y: Any = None, score: Any = "mahalanobis", *, held: Any = None, rate: float = 0.95
    ) -> Self:
        """Let the fitted model say what it has not seen: learn from known cases, set a threshold by held-out ones.

        Parameters
        ----------
        X, y : as for :meth:`fit`
            Known cases; labels for scores that read them.
        score : str, mapping or Scorer
            As for ``tasks.ood.fit_novelty``.
        held : as X, optional
            Known cases the model has not seen, to set the threshold by; a part of X by default.
        rate : float
            Share of known cases to accept.
        """
        from protolearn.tasks.ood import fit_novelty

        check_is_fitted(self, "model_")
        kept = None if held is None else self._cases(held, None)[0]
        fit_novelty(
            self.model_, self._cases(X, y)[0], score, held=kept, rate=rate, batch_size=self.batch_size,
            quiet=not self.verbose,
        )  # fmt: skip
        return self

    def novelty(self, X: Any) -> np.ndarray:
        """Return ``(n,)`` confidences: higher = more like what was learned from."""
        return self._novelty(X)[0]

    def known(self, X: Any) -> np.ndarray:
        """Return ``(n,)`` bool: the confidence reaches the threshold."""
        return self._novelty(X)[1]

    def _novelty(self, X: Any) -> tuple[np.ndarray, np.ndarray]:
        check_is_fitted(self, "model_")
        if self.model_.scorer is None:
            raise UsageError("this model cannot tell what it has not seen: call fit_novelty with known cases first")
        seen = run_over(self.model_, self._cases(X, None)[0], batch_size=self.batch_size)
        found = [said for batch in seen if (said := novelty_of(self.model_, batch.output)) is not None]
        if not found:
            return np.zeros(0), np.zeros(0, dtype=bool)
        if found[0].known is None:
            raise UsageError("the novelty score of this model has no threshold: call fit_novelty with known cases")
        return (
            np.concatenate([said.confidence.double().numpy() for said in found]),
            np.concatenate([said.known.numpy() for said in found if said.known is not None]),
        )

    def uncertainty(self, X: Any) -> dict[str, np.ndarray]:
        """Return ``total``, ``aleatoric`` and ``epistemic`` doubt ``(n,)`` where prototypes are distributions."""
        doubts = self._doubts(X)
        names = ("total", "aleatoric", "epistemic")
        return {name: np.concatenate([getattr(d.uncertainty, name).cpu().numpy() for d in doubts]) for name in names}

    def refuse(self, X: Any) -> np.ndarray:
        """Return ``(n,)`` bool: cases the model does not answer, by the refusal calibrated for it.

        ``core.sampling.calibrate_refusal`` sets it by validation cases; it is saved with the model.
        """
        check_is_fitted(self, "model_")
        if rule_of(self.model_) is None:
            raise UsageError("no refusal was calibrated for this model: see core.sampling.calibrate_refusal")
        return np.concatenate([d.refused.cpu().numpy() for d in self._doubts(X) if d.refused is not None])

    def _doubts(self, X: Any) -> list[Doubt]:
        check_is_fitted(self, "model_")
        if self.model_.bank.law is None:
            raise UsageError("this model's prototypes are points: nothing is drawn that could disagree")
        seen = run_over(self.model_, self._cases(X, None)[0], batch_size=self.batch_size)
        found = [doubt_of(self.model_, batch.output.tokens) for batch in seen if batch.output.tokens is not None]
        return [doubt for doubt in found if doubt is not None]

    def transform(self, X: Any) -> np.ndarray:
        """Return ``(n, prototypes)`` evidence: how much of each prototype is in each case."""
        return self._run(X, "evidence")

    def fit_transform(self, X: Any, y: Any = None) -> np.ndarray:
        """Fit, then return the evidence of the same cases."""
        return self.fit(X, y).transform(X)

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Return a name for each column of :meth:`transform`: class and id of the prototype."""
        check_is_fitted(self, "model_")
        bank, names = self.model_.bank, self.model_.classes
        owners = [names[o] if o >= 0 else "shared" for o in bank.owner().tolist()]
        return np.array([f"{owner}_{key}" for owner, key in zip(owners, bank.ids.tolist(), strict=True)], dtype=object)

    def explain(self, X: Any, target: int | str = "predicted") -> list[Explanation]:
        """Return for each case why it got its label: prototypes by contribution, summing to the logit."""
        check_is_fitted(self, "model_")
        return explain(self.model_, self._cases(X, None)[0], target=target, batch_size=self.batch_size)

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write the model as a folder; :meth:`load` makes a classifier of it again."""
        check_is_fitted(self, "model_")
        cases = getattr(self, "_sources", None)
        kind = self.classes_.dtype.kind
        self.model_.metadata["labels"] = (
            "int" if kind in "iu" else "float" if kind == "f" else "bool" if kind == "b" else "str"
        )
        return save(self.model_, folder, cases, overwrite=overwrite)

    @classmethod
    def load(cls, folder: str | Path, **parameters: Any) -> Self:
        """Return a fitted classifier from a folder."""
        model = load(folder)
        made = cls(model.method or "protopnet", encoder=model.encoder.spec(), **parameters)
        made.model_ = model
        kind = model.metadata.get("labels", "str")
        names = np.array(model.classes)
        if kind in ("int", "float"):
            made.classes_ = names.astype(kind)
        else:
            made.classes_ = names == "True" if kind == "bool" else names
        if isinstance(model.encoder, FeatureEncoder):
            made.n_features_in_ = model.encoder.dim
        return made

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.non_deterministic = self.random_state is None
        return tags

    def _method(self) -> Method:
        if isinstance(self.method, Method):
            if self.settings:
                raise UsageError("settings belong to a method given by name; this one is a Method already")
            return self.method
        cls = get_method(self.method)
        settings = {key: tuple(v) if isinstance(v, list) else v for key, v in dict(self.settings or {}).items()}
        unknown = [key for key in settings if key not in cls.__dataclass_fields__]
        if unknown:
            from protolearn.errors import nearest_names

            raise UsageError(
                f"{cls.slug} has no setting {unknown[0]!r}: {nearest_names(unknown[0], cls.__dataclass_fields__)}"
            )
        check_types(cls, settings)
        return cls(**settings)

    def _encoder(self, cases: Cases, seed: int) -> Encoder:
        chosen = self.encoder
        if isinstance(chosen, Encoder):
            import copy

            return copy.deepcopy(chosen)
        if isinstance(chosen, Mapping):
            return make_encoder(chosen)
        values = getattr(cases, "_values", None)
        if values is not None:
            if chosen is not None:
                raise UsageError(f"X is features and the encoder {chosen!r} reads pictures: leave encoder out")
            return FeatureEncoder(int(values.shape[-1]))
        if chosen in (None, "small"):
            return SmallEncoder(seed=seed)
        return ImageEncoder(chosen, weights=self.weights, seed=seed)

    def _reads_features(self) -> bool | None:
        """Say whether X is features: True, False, or None where the encoder does not tell."""
        if hasattr(self, "model_"):
            return self.model_.encoder.preprocess is None
        if self.encoder is None:
            return None
        if isinstance(self.encoder, Encoder):
            return self.encoder.preprocess is None
        return isinstance(self.encoder, Mapping) and self.encoder.get("encoder") == "features"

    def _cases(self, X: Any, y: Any) -> tuple[Cases, np.ndarray]:
        """Return X as cases, and what the class indices stand for."""
        if isinstance(X, Cases):
            cases = X if y is None else X._derive(labels=_codes(y, X.classes))
            return cases, np.array(cases.classes)
        if y is not None:
            y = np.asarray(y)
            if y.ndim != 1:
                raise DataError(f"y must be one label a case, got shape {y.shape}")
            labels, codes = np.unique(y, return_inverse=True)
        else:
            labels, codes = np.zeros(0), None
        names = [str(label) for label in labels.tolist()]
        if not hasattr(X, "shape") and len(X) and isinstance(X[0], str | Path):
            return _files(X, codes, names), labels
        values = X.detach().cpu().numpy() if isinstance(X, torch.Tensor) else np.asarray(X)
        if values.ndim not in (2, 3, 4) or values.dtype == object:
            raise DataError(f"X must be pictures (n, H, W[, 3]) or features (n, d) or (n, s, d), got {values.shape}")
        if codes is not None and len(codes) != len(values):
            raise DataError(f"X has {len(values)} cases and y {len(codes)} labels")
        known = self._reads_features()
        as_features = values.ndim < 4 and (known if known is not None else values.ndim == 2 or values.dtype != np.uint8)
        if as_features:
            wide = getattr(self, "n_features_in_", None) if y is None else None
            if wide is not None and values.shape[-1] != wide:
                raise DataError(f"X has {values.shape[-1]} features, but {type(self).__name__} was fitted on {wide}")
            return features(values, codes, classes=names if codes is not None else None, name="X"), labels
        if values.ndim == 2:
            raise DataError("X is flat rows and the encoder reads pictures: reshape to (n, H, W[, 3])")
        return arrays(values, codes, classes=names if codes is not None else None, name="X"), labels

    def _run(self, X: Any, what: str) -> np.ndarray:
        check_is_fitted(self, "model_")
        cases, _ = self._cases(X, None)
        run = retrieval_for(self.model_) if what == "logits" else None
        rows = [
            getattr(batch.output, what).float().cpu().numpy()
            for batch in run_over(self.model_, cases, batch_size=self.batch_size, run=run)
        ]
        width = len(self.model_.classes) if what == "logits" else len(self.model_.bank)
        return np.concatenate(rows) if rows else np.zeros((0, width), dtype=np.float32)


def _codes(y: Any, classes: Sequence[str]) -> np.ndarray:
    place = {name: index for index, name in enumerate(classes)}
    try:
        return np.array([place[str(label)] for label in y], dtype=np.int64)
    except KeyError as error:
        raise DataError(
            f"y holds {error.args[0]!r}, which is none of the {len(classes)} classes of the cases"
        ) from error


def _files(paths: Sequence[str | Path], codes: Any, names: Sequence[str]) -> Cases:
    texts = [str(path) for path in paths]
    labels = np.full(len(texts), -1) if codes is None else codes
    return FileCases(".", texts, name="X", ids=texts, labels=labels, classes=names)
