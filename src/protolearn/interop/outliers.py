"""Outliers of a table by an autoencoder that knows how unsure it is, on rows moved towards their neighbours.

APRE and MSS (Tan et al., arXiv 2304.00709; Pattern Recognition 163, 2025). **Equations not verified**: neither the text
of the paper nor its code could be read. What is here is the best-known form, in the words below; widths, epochs and
rate are ours.

    m(x), s(x)      two heads of a decoder: the mean of every column, and how far it scatters
    APRE(x, m, s)   mean over columns of alpha (x - m)^2 / s^2 + beta log s^2; trained on all rows, outliers too
    mean shift      T rounds: every row becomes the mean of its k nearest others, all rows at once
    score           |x - m(x')|^2 / d with x' the shifted row: an outlier that the network learned to repeat is still
                    far from what is made of its neighbours; or APRE(x, m(x'), s(x')) in its place
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from protolearn.core.mean_shift import mean_shift, shift_among
from protolearn.core.necks import uniform_linear
from protolearn.errors import UsageError
from protolearn.objectives.reconstruction import two_part_error

VERIFIED = "unverified: neither the paper's equations nor its code could be read; laws only"


class AutoencoderOutliers(OutlierMixin, BaseEstimator):
    """Score rows of a table by how badly an autoencoder makes them from their neighbourhood (unverified form).

    Signs are scikit-learn's: ``score_samples`` and ``decision_function`` are **higher for ordinary rows**, and
    ``predict`` gives 1 for them and -1 for outliers. ``outlier_scores`` is the paper's sign, **higher for outliers**.

    Columns are standardised inside; constant ones are left out.

    Parameters
    ----------
    probabilistic : bool
        Two heads and APRE; otherwise one head and the mean squared error.
    fit_weight, spread_weight : float
        alpha and beta; there is no label to choose them by, 1 and 1 is the Gaussian likelihood.
    rank_by : {"error", "likelihood"}
        What ranks rows: the mean squared error, or APRE. The variances are learned on rows as they are, and so are too
        small for what lies between a row and its shifted self: with ``shifts`` the likelihood can fail badly.
    shifts : int
        T, rounds of mean shift; 0 scores the reconstruction of the row itself.
    neighbours : int
        k, at most the number of other rows.
    hidden : tuple of int
        Widths of the encoder's layers, of the decoder's in reverse.
    bottleneck : int, optional
        Width of the code; half the columns by default.
    networks : int
        Networks from different starts whose scores are averaged.
    epochs, batch_size, rate
        Of Adam.
    contamination : float
        Share of the training rows that ``predict`` calls outliers, in (0, 0.5]: it sets ``offset_`` and nothing else.
    random_state : int, RandomState or None
        Seeds starts and order.

    Attributes
    ----------
    outlier_scores_ : ndarray
        ``(n,)`` of the training rows, each moved among the others (itself left out).
    offset_ : float
        ``decision_function`` is ``score_samples`` less this.
    n_features_in_ : int
        Width of X.

    Notes
    -----
    ``fit_predict`` judges the training rows among each other, without themselves. ``predict`` judges rows as new ones:
    a training row then finds itself among its neighbours, so the two can differ, as with scikit-learn's LOF.

    Examples
    --------
    >>> draw = np.random.default_rng(0)
    >>> X = np.concatenate([draw.normal(size=(100, 4)), 8 + draw.normal(size=(2, 4)) * 4])
    >>> found = AutoencoderOutliers(epochs=20, random_state=0).fit(X)
    >>> sorted(found.outlier_scores_.argsort()[-2:].tolist())
    [100, 101]
    """

    def __init__(
        self,
        *,
        probabilistic: bool = True,
        fit_weight: float = 1.0,
        spread_weight: float = 1.0,
        rank_by: Literal["error", "likelihood"] = "error",
        shifts: int = 3,
        neighbours: int = 30,
        hidden: tuple[int, ...] = (64,),
        bottleneck: int | None = None,
        networks: int = 3,
        epochs: int = 50,
        batch_size: int = 64,
        rate: float = 1e-3,
        contamination: float = 0.1,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.probabilistic = probabilistic
        self.fit_weight = fit_weight
        self.spread_weight = spread_weight
        self.rank_by = rank_by
        self.shifts = shifts
        self.neighbours = neighbours
        self.hidden = hidden
        self.bottleneck = bottleneck
        self.networks = networks
        self.epochs = epochs
        self.batch_size = batch_size
        self.rate = rate
        self.contamination = contamination
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> Self:
        """Learn from rows ``(n, d)``; ``y`` is not read."""
        self._check()
        rows = validate_data(self, X, dtype=np.float64, ensure_min_samples=2)
        spread = rows.std(0)
        # what rounding leaves of a constant column is no spread
        self._kept = spread > 1e-12 * np.abs(rows).max(0)
        self._mean, self._spread = rows.mean(0)[self._kept], spread[self._kept]
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        draw = torch.Generator().manual_seed(seed)
        x = self._inside(rows)
        self._k = min(self.neighbours, len(x) - 1)
        self._stages = mean_shift(x, self._k, self.shifts)
        self._nets = [self._learn(x, draw) for _ in range(self.networks if x.shape[1] else 0)]
        self.outlier_scores_: np.ndarray = self._scores(x, self._stages[-1])
        self.offset_ = float(np.quantile(-self.outlier_scores_, self.contamination))
        return self

    def fit_predict(self, X: Any, y: Any = None, **settings: Any) -> np.ndarray:
        """Return 1 for ordinary training rows and -1 for outliers, each judged among the others."""
        self.fit(X)
        return np.where(-self.outlier_scores_ < self.offset_, -1, 1)

    def outlier_scores(self, X: Any) -> np.ndarray:
        """Return ``(n,)``, higher for outliers, of rows as new ones."""
        check_is_fitted(self, "outlier_scores_")
        x = self._inside(validate_data(self, X, dtype=np.float64, reset=False))
        return self._scores(x, shift_among(x, self._stages, self._k))

    def score_samples(self, X: Any) -> np.ndarray:
        """Return ``(n,)``, higher for ordinary rows: the negative of :meth:`outlier_scores`."""
        return -self.outlier_scores(X)

    def decision_function(self, X: Any) -> np.ndarray:
        """Return ``(n,)``, below 0 for outliers: :meth:`score_samples` less ``offset_``."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> np.ndarray:
        """Return 1 for ordinary rows and -1 for outliers."""
        return np.where(self.decision_function(X) < 0, -1, 1)

    def column_spread(self, X: Any) -> np.ndarray:
        """Return ``(n, d)``: how far the networks say each column scatters about its mean, in units of X.

        0 for constant columns; only with ``probabilistic``.
        """
        check_is_fitted(self, "outlier_scores_")
        if not self.probabilistic:
            raise UsageError("column_spread: only a probabilistic autoencoder says how far columns scatter")
        x = self._inside(validate_data(self, X, dtype=np.float64, reset=False))
        found = np.zeros((len(x), self.n_features_in_))
        if self._nets:
            with torch.no_grad():
                logs = torch.stack([net(x)[1].clamp(-10.0, 10.0) for net in self._nets])
            found[:, self._kept] = (logs / 2).exp().mean(0).numpy() * self._spread
        return found

    def _check(self) -> None:
        for name in ("neighbours", "networks", "epochs", "batch_size", "bottleneck"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} must be at least 1, got {value}")
        if self.rank_by not in ("error", "likelihood") or (self.rank_by == "likelihood" and not self.probabilistic):
            raise UsageError(
                f"rank_by must be error, or likelihood of a probabilistic autoencoder, got {self.rank_by!r}"
            )
        if self.shifts < 0:
            raise UsageError(f"shifts must be at least 0, got {self.shifts}")
        if not 0 < self.contamination <= 0.5:
            raise UsageError(f"contamination must lie in (0, 0.5], got {self.contamination}")

    def _inside(self, rows: np.ndarray) -> Tensor:
        return torch.from_numpy((rows[:, self._kept] - self._mean) / self._spread)

    def _learn(self, x: Tensor, draw: torch.Generator) -> _TwoHeads:
        code = self.bottleneck or max(1, x.shape[1] // 2)
        net = _TwoHeads(x.shape[1], tuple(self.hidden), code, draw, self.probabilistic)
        optimizer = torch.optim.Adam(net.parameters(), self.rate)
        for _ in range(self.epochs):
            for part in torch.randperm(len(x), generator=draw).split(self.batch_size):
                loss = self._error(net, x[part], x[part]).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        return net

    def _error(self, net: _TwoHeads, shown: Tensor, wanted: Tensor) -> Tensor:
        mean, logs = net(shown)
        weights = (self.fit_weight, self.spread_weight) if self.probabilistic else (1.0, 0.0)
        return two_part_error(mean, logs, wanted, fit=weights[0], spread=weights[1])

    @torch.no_grad()
    def _scores(self, x: Tensor, moved: Tensor) -> np.ndarray:
        if not self._nets:
            return np.zeros(len(x))  # every column is constant: no row differs
        if self.rank_by == "likelihood":
            each = [self._error(net, moved, x) for net in self._nets]
        else:
            each = [(net(moved)[0] - x).square().mean(1) for net in self._nets]
        found: np.ndarray = torch.stack(each).mean(0).numpy()
        return found


class _TwoHeads(nn.Module):
    """``(B, D) -> means (B, D), log variances (B, D)``; the latter are 0 without a second head."""

    def __init__(self, dim: int, hidden: tuple[int, ...], code: int, draw: torch.Generator, second: bool) -> None:
        super().__init__()
        widths = (dim, *hidden)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [uniform_linear(before, after, generator=draw), nn.ReLU()]
        layers.append(uniform_linear(widths[-1], code, generator=draw))
        back = (code, *reversed(hidden))
        for before, after in pairwise(back):
            layers += [uniform_linear(before, after, generator=draw), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.mean = uniform_linear(back[-1], dim, generator=draw)
        self.logs = uniform_linear(back[-1], dim, generator=draw) if second else None
        self.double()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return both heads' outputs."""
        found = self.body(x)
        mean: Tensor = self.mean(found)
        return mean, torch.zeros_like(mean) if self.logs is None else self.logs(found)
