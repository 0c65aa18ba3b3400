"""New classes in a table of which some classes are known: a simple embedding, clusters in it, settings without labels.

Troisemaine et al., "A practical approach to novel class discovery in tabular data" (PBN), DMKD 2024, arXiv 2311.05440.

    z = encoder(x);  L = w CE(linear(z), y) over labelled rows + (1 - w) mean |decoder(z) - x|^2 over all rows
    encoder   linear layers of 3/4 and 2/4 of the columns, each with ReLU, batch norm and dropout, then linear to z; the
              decoder is its mirror. AdamW, 200 epochs, batches of 512
    clusters  of z of the unlabelled rows: k-means; NCD k-means (class means keep the starts away); NCD spectral
    number    of new classes: the largest mean silhouette of k-means on z of unlabelled rows
    settings  chosen by hiding known classes: half of them are treated as unlabelled, and clusters are judged on those

Departs from the code: rows are shuffled every epoch; starts of NCD k-means are drawn by squared distances, as k-means++
has it, where the code draws by plain ones; the widths of the hidden layers are those of the authors' other method.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, clone
from sklearn.metrics import silhouette_score
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data
from torch import Tensor, nn
from torch.nn import functional as F

from protolearn.audit.discovery import discovery_score
from protolearn.core.assignment import nearest
from protolearn.core.discovery import seeded_k_means
from protolearn.core.necks import uniform_linear
from protolearn.core.spectral import novel_spectral
from protolearn.core.updates import k_means
from protolearn.errors import UsageError

Clusterer = Literal["k_means", "ncd_k_means", "ncd_spectral"]


class NovelClasses(BaseEstimator):
    """Find classes among unlabelled rows, all of which are of new classes, with the help of labelled rows of others.

    ``y`` is -1 for unlabelled rows; all other values are classes. Columns are standardised inside. With few columns (up
    to about ten) the hidden layers have few units and lose classes: take ``embedding="none"`` there.

    Parameters
    ----------
    n_clusters : int, optional
        How many new classes there are; by default estimated by the silhouette, from 2 to ``most_clusters``.
    clusterer : {"k_means", "ncd_k_means", "ncd_spectral"}
        How unlabelled rows are clustered.
    embedding : {"pbn", "none"}
        The learned space, or the standardised columns as they are.
    latent : int
        Width of z.
    weight : float
        w in [0, 1]: 1 is a classifier of the known classes, 0 an autoencoder.
    rate, dropout, epochs, batch_size
        Of the training.
    lowest : float
        Of the spectral bandwidth, see :func:`~protolearn.core.spectral.tree_bandwidth`.
    most_clusters : int
        Where the search for the number ends.
    restarts : int
        Of the clustering.
    random_state : int, RandomState or None
        Seeds weights, order and starts.

    Attributes
    ----------
    classes_ : ndarray
        The known classes.
    labels_ : ndarray
        ``(n,)``: cluster of each unlabelled row, from 0; -1 for labelled rows.
    n_clusters_ : int
        New classes.
    silhouettes_ : dict of int to float
        Mean silhouette of every number that was tried; empty where the number was given.
    cluster_centers_ : ndarray
        ``(n_clusters_, latent)``.

    Examples
    --------
    >>> from sklearn.datasets import make_blobs
    >>> X, truth = make_blobs(300, 8, centers=6, random_state=0)
    >>> y = np.where(truth < 3, truth, -1)
    >>> found = NovelClasses(3, latent=4, epochs=10, random_state=0).fit(X, y)
    >>> sorted(np.unique(found.labels_).tolist())
    [-1, 0, 1, 2]
    """

    def __init__(
        self,
        n_clusters: int | None = None,
        *,
        clusterer: Clusterer = "ncd_k_means",
        embedding: Literal["pbn", "none"] = "pbn",
        latent: int = 10,
        weight: float = 0.5,
        rate: float = 1e-3,
        dropout: float = 0.1,
        epochs: int = 200,
        batch_size: int = 512,
        lowest: float = 0.6,
        most_clusters: int = 30,
        restarts: int = 10,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.n_clusters = n_clusters
        self.clusterer = clusterer
        self.embedding = embedding
        self.latent = latent
        self.weight = weight
        self.rate = rate
        self.dropout = dropout
        self.epochs = epochs
        self.batch_size = batch_size
        self.lowest = lowest
        self.most_clusters = most_clusters
        self.restarts = restarts
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> Self:
        """Learn the space from all rows, and cluster the unlabelled ones (``y`` = -1)."""
        self._check()
        rows = validate_data(self, X, dtype=np.float64, ensure_min_samples=2)
        given = column_or_1d(y)
        if given.shape != rows.shape[:1]:
            raise UsageError(f"{len(rows)} rows need as many labels, got {len(given)}")
        free = given == -1
        if not free.any():
            raise UsageError("no row is unlabelled (-1): there is nothing to discover")
        self.classes_, ranks = np.unique(given[~free], return_inverse=True)
        labels = torch.full((len(rows),), -1)
        labels[torch.from_numpy(~free)] = torch.from_numpy(ranks).long()
        self._mean, spread = rows.mean(0), rows.std(0)
        self._spread = np.where(spread > 0, spread, 1.0)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        draw = torch.Generator().manual_seed(seed)
        self._net = self._learn(self._inside(rows), labels, draw) if self.embedding == "pbn" else None
        z = self._embedded(rows)
        unlabelled = z[labels < 0]
        self.silhouettes_ = {} if self.n_clusters else self._silhouettes(unlabelled, draw)
        self.n_clusters_ = int(self.n_clusters or max(self.silhouettes_, key=self.silhouettes_.__getitem__))
        found, centres = self._clusters(z, labels, draw)
        self.labels_ = np.full(len(rows), -1)
        self.labels_[free] = found.numpy()
        self.cluster_centers_ = centres.numpy()
        return self

    def fit_predict(self, X: Any, y: Any) -> np.ndarray:
        """Return the cluster of each unlabelled row, -1 for labelled ones."""
        found: np.ndarray = self.fit(X, y).labels_
        return found

    def transform(self, X: Any) -> np.ndarray:
        """Return ``(n, latent)``: rows in the learned space."""
        check_is_fitted(self, "labels_")
        found: np.ndarray = self._embedded(validate_data(self, X, dtype=np.float64, reset=False)).numpy()
        return found

    def predict(self, X: Any) -> np.ndarray:
        """Return for rows of new classes the cluster of the nearest centre in the learned space.

        After ``ncd_spectral`` centres are the means of the clusters, and borders are not those of the graph.
        """
        z = torch.from_numpy(self.transform(X))
        found: np.ndarray = nearest(z, torch.from_numpy(self.cluster_centers_))[1].numpy()
        return found

    def _check(self) -> None:
        if self.clusterer not in ("k_means", "ncd_k_means", "ncd_spectral"):
            raise UsageError(f"clusterer must be k_means, ncd_k_means or ncd_spectral, got {self.clusterer!r}")
        if self.embedding not in ("pbn", "none"):
            raise UsageError(f"embedding must be pbn or none, got {self.embedding!r}")
        if not 0 <= self.weight <= 1 or not 0 <= self.dropout < 1:
            raise UsageError(f"weight must lie in [0, 1] and dropout in [0, 1), got {self.weight} and {self.dropout}")
        for name in ("n_clusters", "latent", "epochs", "restarts"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} must be at least 1, got {value}")
        if self.batch_size < 2 or self.most_clusters < 2:
            raise UsageError("batch_size and most_clusters must be at least 2")

    def _inside(self, rows: np.ndarray) -> Tensor:
        return torch.from_numpy((rows - self._mean) / self._spread).float()

    @torch.no_grad()
    def _embedded(self, rows: np.ndarray) -> Tensor:
        x = self._inside(rows)
        z: Tensor = x if self._net is None else self._net.eval().encoder(x)
        return z.double()

    def _learn(self, x: Tensor, labels: Tensor, draw: torch.Generator) -> _Space:
        classes = len(self.classes_)
        net = _Space(x.shape[1], self.latent, classes, self.dropout, draw)
        optimizer = torch.optim.AdamW(net.parameters(), self.rate)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**31, (), generator=draw)))  # of dropout
            for _ in range(self.epochs):
                for part in torch.randperm(len(x), generator=draw).split(self.batch_size):
                    if len(part) == 1:
                        continue  # batch norm knows no single row
                    loss = self.loss(net, x[part], labels[part])
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
        return net

    def loss(self, net: _Space, x: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of a batch: labelled rows are classified, all are reconstructed."""
        z = net.encoder(x)
        known = labels >= 0
        wrong = x.new_zeros(())
        if bool(known.any()) and net.classifier is not None:
            wrong = F.cross_entropy(net.classifier(z[known]), labels[known])
        return self.weight * wrong + (1 - self.weight) * (net.decoder(z) - x).square().sum(1).mean()

    def _silhouettes(self, z: Tensor, draw: torch.Generator) -> dict[int, float]:
        """Return the mean silhouette for each number, over three runs of k-means."""
        most = min(self.most_clusters, len(torch.unique(z, dim=0)) - 1)
        if most < 2:
            raise UsageError("the number of new classes cannot be estimated from fewer than 3 different rows")
        found = {}
        for count in range(2, most + 1):
            runs = [k_means(z, count, generator=draw).rows for _ in range(3)]
            found[count] = float(np.mean([silhouette_score(z.numpy(), rows.numpy()) for rows in runs]))
        return found

    def _clusters(self, z: Tensor, labels: Tensor, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        free, known = labels < 0, len(self.classes_)
        if self.clusterer == "k_means":
            plain = k_means(z[free], self.n_clusters_, generator=draw, restarts=self.restarts)
            return plain.rows, plain.centres
        count, how = known + self.n_clusters_, {"generator": draw, "restarts": self.restarts}
        if self.clusterer == "ncd_k_means":
            found = seeded_k_means(z, labels, count, move="apart", iterations=1000, tolerance=1e-10, **how)  # type: ignore[arg-type]
        else:
            found = novel_spectral(z, labels, count, lowest=self.lowest, **how)  # type: ignore[arg-type]
        return found.rows[free] - known, found.centres[known:]


class _Space(nn.Module):
    def __init__(self, dim: int, latent: int, classes: int, dropout: float, draw: torch.Generator) -> None:
        super().__init__()
        first, second = max(1, 3 * dim // 4), max(1, 2 * dim // 4)
        self.encoder = _layers((dim, first, second, latent), dropout, draw)
        self.decoder = _layers((latent, second, first, dim), dropout, draw)
        self.classifier = uniform_linear(latent, classes, generator=draw) if classes else None


def _layers(widths: Sequence[int], dropout: float, draw: torch.Generator) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths[:-1]):
        layers += [uniform_linear(before, after, generator=draw), nn.ReLU(), nn.BatchNorm1d(after), nn.Dropout(dropout)]
    return nn.Sequential(*layers, uniform_linear(widths[-2], widths[-1], generator=draw))


@dataclass(frozen=True)
class HiddenClassSearch:
    """What hiding known classes found.

    Attributes
    ----------
    best : dict
        The settings with the best mean accuracy.
    table : tuple of (dict, tuple of float)
        Every setting that was tried, and its accuracy on the hidden classes of each fold.
    hidden : tuple of tuple
        The classes that each fold hid.
    """

    best: dict[str, Any]
    table: tuple[tuple[dict[str, Any], tuple[float, ...]], ...]
    hidden: tuple[tuple[Any, ...], ...]


def hidden_class_search(
    estimator: NovelClasses,
    X: Any,
    y: Any,
    space: Mapping[str, Sequence[Any]],
    *,
    folds: int = 3,
    draws: int | None = None,
    random_state: int = 0,
) -> HiddenClassSearch:
    """Choose settings for discovery without a label of a new class: known classes are hidden and must be found.

    In each fold half of the known classes (at least 2, and one stays known) are treated as unlabelled; clusters are
    judged by the accuracy on them. Unlabelled rows (-1) take no part at all, so nothing about new classes, neither
    labels nor rows, can enter the choice.

    Parameters
    ----------
    estimator : NovelClasses
        Whose settings are changed; it is not fitted. The number of clusters is that of the hidden classes.
    X, y : array
        Rows, and classes with -1 = unlabelled.
    space : mapping of str to sequence
        Values of each setting to try; all combinations, or ``draws`` of them.
    folds : int
        Draws of hidden classes.
    draws : int, optional
        Combinations to try, drawn without repetition.
    random_state : int
        Of folds and draws.

    Examples
    --------
    >>> from sklearn.datasets import make_blobs
    >>> X, y = make_blobs(200, 5, centers=5, random_state=0)
    >>> y[y == 4] = -1
    >>> found = hidden_class_search(NovelClasses(embedding="none"), X, y, {"clusterer": ["k_means", "ncd_k_means"]})
    >>> len(found.table), 4 in found.hidden[0]
    (2, False)
    """
    rows, given = np.asarray(X), column_or_1d(y)
    if rows.shape[:1] != given.shape:
        raise UsageError(f"{len(rows)} rows need as many labels, got {len(given)}")
    known = given != -1
    rows, given = rows[known], given[known]
    classes, ranks = np.unique(given, return_inverse=True)
    if len(classes) < 3:
        raise UsageError(f"hiding classes needs at least 3 known ones, got {len(classes)}")
    if folds < 1 or not space:
        raise UsageError("hidden_class_search needs at least one fold and one setting with values")
    draw = np.random.default_rng(random_state)
    half = min(max(2, len(classes) // 2), len(classes) - 1)
    hidden = [np.sort(draw.choice(len(classes), half, replace=False)) for _ in range(folds)]
    tried = [dict(zip(space, values, strict=True)) for values in itertools.product(*space.values())]
    if draws is not None and draws < len(tried):
        tried = [tried[i] for i in draw.choice(len(tried), draws, replace=False)]
    table = []
    for settings in tried:
        scores = []
        for fold in hidden:
            unseen = np.isin(ranks, fold)
            model = clone(estimator).set_params(**settings, n_clusters=half, random_state=random_state)
            found = model.fit_predict(rows, np.where(unseen, -1, ranks))
            right = discovery_score(found[unseen], ranks[unseen], old=[]).all
            assert right is not None, "every hidden class has rows"
            scores.append(right)
        table.append((settings, tuple(scores)))
    best = max(table, key=lambda entry: float(np.mean(entry[1])))
    return HiddenClassSearch(best[0], tuple(table), tuple(tuple(classes[fold].tolist()) for fold in hidden))
