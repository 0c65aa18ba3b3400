"""Prob-PSENN over arrays: prototypes that are distributions over codes, and how sure a prediction is."""

from __future__ import annotations

import copy
from typing import Any, Self

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from protolearn.core.model import PrototypeModel
from protolearn.core.sampling import calibrate_refusal, doubt_of, predictive
from protolearn.core.uncertainty import Uncertainty
from protolearn.data.features import features
from protolearn.encoders import FeatureEncoder
from protolearn.errors import UsageError
from protolearn.interop.shallow.base import ShallowClassifier
from protolearn.methods.whole.prob_psenn import ProbPSENN
from protolearn.structures import Tokens
from protolearn.training.fit import fit


class ProbPSENNClassifier(ShallowClassifier):
    """A small autoencoder of the rows, and prototypes that are distributions over its codes (method ``prob-psenn``).

    Predictions are those of the modes, so that explanations add up exactly and repeat; :meth:`sampled_proba` is the
    prediction averaged over draws of the prototypes, and :meth:`uncertainty` how much they disagree. It is trained by
    the library's own loop and takes no weights and no streams: codes change with every case.

    Parameters
    ----------
    prototypes_per_class : int
        Distributions of each class.
    law : {"diagonal", "full", "mixture"}
        Their kind.
    dim : int
        Width of the code.
    samples : int
        Draws a step in training.
    max_iter : int
        Passes over the cases for the autoencoder alone, and as many for everything together.
    batch_size : int
        Cases a step.
    learning_rate : float
        Of everything.
    random_state : int, RandomState or None
        Of weights, order and draws.

    Attributes
    ----------
    model_ : PrototypeModel
        The trained model; it takes rows centred and divided by the data's spread.
    prototypes_ : ndarray
        ``(P, D)``, what the decoder makes of the modes, in the units of X.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> classifier = ProbPSENNClassifier(dim=3, max_iter=15, random_state=0).fit(X, y)
    >>> classifier.score(X, y) > 0.85, classifier.uncertainty(X)["epistemic"].shape
    (True, (150,))
    """

    def __init__(
        self,
        prototypes_per_class: int = 1,
        *,
        law: str = "diagonal",
        dim: int = 8,
        samples: int = 10,
        max_iter: int = 30,
        batch_size: int = 64,
        learning_rate: float = 1e-2,
        random_state: Any = None,
    ) -> None:
        self.prototypes_per_class = prototypes_per_class
        self.law = law
        self.dim = dim
        self.samples = samples
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> Self:
        """Learn: the autoencoder, the distributions of the codes, then everything together."""
        page = self._page()
        if self.max_iter < 1 or self.batch_size < 1:
            raise UsageError(
                f"prob-psenn: max_iter and batch_size must be at least 1, got {self.max_iter}, {self.batch_size}"
            )
        x, codes, _ = self._begin(X, y, None)
        seed = int(torch.randint(2**31 - 1, (), generator=self._draw()))
        cases = features(x.float().numpy(), codes.numpy(), classes=[str(c) for c in self.classes_.tolist()], name="X")
        done = fit(
            page, cases, encoder=FeatureEncoder(x.shape[1]), seed=seed, batch_size=self.batch_size, device="cpu",
            quiet=True,
        )  # fmt: skip
        # in double precision a prediction does not depend on what else is in the batch
        self.model_: PrototypeModel = done.model.double().eval().requires_grad_(False)
        self.n_iter_ = 2 * self.max_iter
        assert self.model_.decoder is not None, "build made it so"
        decoded: Tensor = self.model_.decoder(self.model_.bank.vectors.unsqueeze(0))[0]
        self._tell(decoded.detach(), self.model_.bank.owner())
        return self

    @torch.no_grad()
    def sampled_proba(self, X: Any, samples: int = 30) -> np.ndarray:
        """Return ``(n, C)``: the prediction averaged over draws of the prototypes, the same draws in every call."""
        found: np.ndarray = self._drawn(X, samples)[0].numpy()
        return found

    @torch.no_grad()
    def uncertainty(self, X: Any, samples: int = 30) -> dict[str, np.ndarray]:
        """Return ``total``, ``aleatoric`` and ``epistemic`` doubt ``(n,)``, in nats; the last two sum to the first."""
        doubt = self._drawn(X, samples)[1]
        return {name: getattr(doubt, name).numpy() for name in ("total", "aleatoric", "epistemic")}

    @torch.no_grad()
    def calibrate_refusal(self, X: Any, quantile: float = 0.95, *, score: str = "epistemic", samples: int = 30) -> Self:
        """Set when to refuse, by cases that were not learned from: about ``1 - quantile`` of such are refused."""
        tokens = self._tokens(X)
        calibrate_refusal(
            self.model_, tokens, quantile, score=score, samples=samples, generator=torch.Generator().manual_seed(0)
        )
        return self

    @torch.no_grad()
    def refuse(self, X: Any) -> np.ndarray:
        """Return ``(n,)`` bool: cases whose doubt lies above the calibrated threshold."""
        tokens = self._tokens(X)
        found = doubt_of(self.model_, tokens)
        if found is None or found.refused is None:
            raise UsageError("prob-psenn: call calibrate_refusal with validation cases first")
        refused: np.ndarray = found.refused.numpy()
        return refused

    def _tokens(self, X: Any) -> Tokens:
        x = self._inside(X)  # refuses what is not fitted
        return self.model_.embed(Tokens(x.unsqueeze(1)))

    def _drawn(self, X: Any, samples: int) -> tuple[Tensor, Uncertainty]:
        tokens = self._tokens(X)
        found = predictive(self.model_, tokens, samples, torch.Generator().manual_seed(0))
        return found.mean, found.uncertainty

    def to_model(self) -> PrototypeModel:
        """Return a copy of the model, in single precision; it takes rows centred and divided by the data's spread."""
        check_is_fitted(self, "prototypes_")
        return copy.deepcopy(self.model_).float()

    def _for_model(self, x: np.ndarray) -> np.ndarray:
        return self._scaled(x).numpy()

    @torch.no_grad()
    def _evidence(self, x: Tensor) -> Tensor:
        return self.model_.score(self.model_.embed(Tokens(x.unsqueeze(1)))).evidence

    @torch.no_grad()
    def _scores(self, evidence: Tensor) -> Tensor:
        found: Tensor = self.model_.head(evidence)
        return found

    def _probabilities(self, scores: Tensor) -> Tensor:
        return scores.softmax(1)

    def _fill(self, model: PrototypeModel) -> None:
        raise NotImplementedError("the model is there already")

    def _page(self) -> ProbPSENN:
        return ProbPSENN(
            law=self.law,  # type: ignore[arg-type]  # checked there
            prototypes_per_class=self.prototypes_per_class, dim=self.dim, samples=self.samples, rate=self.learning_rate,
            autoencoder_epochs=self.max_iter, epochs=self.max_iter, encoder_rate=None,
        )  # fmt: skip
