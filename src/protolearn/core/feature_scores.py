"""Novelty scores that read features: distances to Gaussians, to neighbours, to a principal subspace. Higher = known.

A Gaussian's distance is a squared length in whitened coordinates: covariance is worked out in double precision once,
and a batch costs one matrix product to whiten and one to compare with all class means, whatever the number of classes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from protolearn.core.matching import chunk_rows
from protolearn.core.measures import squared_l2
from protolearn.core.neighbours import nearest_rows
from protolearn.core.scorer import Scorer, View, scorer
from protolearn.core.scores import energy
from protolearn.core.updates import group_sums
from protolearn.errors import UsageError


def whitening(covariance: Tensor) -> Tensor:
    """Return ``(D, r)`` float64 so that ``x @ whitening`` has unit covariance: the pseudo-inverse's square root.

    Directions without variance, up to rounding, are left out.

    Examples
    --------
    >>> whitening(torch.diag(torch.tensor([4.0, 0.0]))).abs()
    tensor([[0.5000],
            [0.0000]], dtype=torch.float64)
    """
    if not bool(torch.isfinite(covariance).all()):
        raise UsageError("features hold NaN or infinity, or are too large for a covariance")
    values, vectors = torch.linalg.eigh(covariance.double())
    least = values.amax().clamp_min(0.0) * len(values) * torch.finfo(torch.float64).eps * 10
    kept = values > least
    whiten: Tensor = vectors[:, kept] / values[kept].sqrt()
    return whiten


def class_gaussian(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return class means ``(C', D)`` of the classes that occur, and their tied covariance ``(D, D)``, in float64.

    The covariance is that of all labelled rows around the mean of their class, divided by their number.

    Parameters
    ----------
    features : Tensor
        ``(N, D)``.
    labels : Tensor
        ``(N,)`` int64, -1 = unlabelled, left out.

    Raises
    ------
    UsageError
        If no row is labelled.
    """
    known = labels >= 0
    if not bool(known.any()):
        raise UsageError("class-wise distances need labelled cases")
    rows = features[known]
    _, group = torch.unique(labels[known], return_inverse=True)
    count = int(group.max()) + 1
    sums, totals = group_sums(rows.double(), group, count)
    means = sums / totals.unsqueeze(1)
    return means, second_moment(rows, means, group)


def second_moment(rows: Tensor, centres: Tensor, group: Tensor | None = None) -> Tensor:
    """Return ``(D, D)`` float64: mean outer product of rows ``(N, D)`` less their centre, chunk by chunk.

    ``centres`` is ``(D,)``, or ``(C, D)`` with the centre of each row in ``group``.
    """
    total = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64, device=rows.device)
    for part in torch.split(torch.arange(len(rows), device=rows.device), chunk_rows(8 * rows.shape[1])):
        centred = rows[part].double() - (centres if group is None else centres[group[part]])
        total += centred.T @ centred
    return total / len(rows)


def _farthest_not_less(values: Tensor, centres: Tensor) -> Tensor:
    """Return ``(B,)``: the squared distance of each row to its nearest centre, in bounded memory."""
    rows = chunk_rows(4 * len(centres))
    parts = [squared_l2.pairwise(part, centres).amin(1) for part in torch.split(values, rows)]
    return torch.cat(parts) if parts else values.new_zeros(0)


@scorer("mahalanobis", source="Lee et al., NeurIPS 2018, on one layer, without input perturbation")
class Mahalanobis(Scorer):
    """Minus the squared Mahalanobis distance to the nearest class mean, one covariance for all classes."""

    means: Tensor
    whiten: Tensor

    def __init__(self, *, features: str = "encoded") -> None:
        super().__init__(features=features)
        self.register_buffer("means", torch.zeros(0, 0))
        self.register_buffer("whiten", torch.zeros(0, 0))

    def fit(self, view: View, labels: Tensor) -> Mahalanobis:
        """Learn class means and the tied covariance."""
        means, covariance = class_gaussian(view.features, labels)
        whiten = whitening(covariance)
        self.whiten, self.means = whiten.float(), (means @ whiten).float()
        return self

    def score(self, view: View) -> Tensor:
        """Return confidences."""
        return -self.distance(view.features)

    def distance(self, features: Tensor) -> Tensor:
        """Return ``(B,)`` squared distances to the nearest class."""
        _fitted(self.means)
        return _farthest_not_less(features.float() @ self.whiten, self.means)


@scorer("relative_mahalanobis", source="Ren et al., 2021")
class RelativeMahalanobis(Mahalanobis):
    """Mahalanobis distance to the nearest class, less that to one Gaussian of everything."""

    centre: Tensor
    whiten_all: Tensor

    def __init__(self, *, features: str = "encoded") -> None:
        super().__init__(features=features)
        self.register_buffer("centre", torch.zeros(0))
        self.register_buffer("whiten_all", torch.zeros(0, 0))

    def fit(self, view: View, labels: Tensor) -> RelativeMahalanobis:
        """Learn both Gaussians."""
        super().fit(view, labels)
        if len(self.means) < 2:
            raise UsageError(
                "relative_mahalanobis needs cases of several classes: of one, both its Gaussians are the same; use "
                "mahalanobis"
            )
        centre = view.features.double().mean(0)
        whiten = whitening(second_moment(view.features, centre))
        self.whiten_all, self.centre = whiten.float(), (centre @ whiten).float()
        return self

    def score(self, view: View) -> Tensor:
        """Return confidences."""
        background = (view.features.float() @ self.whiten_all - self.centre).square().sum(1)
        return background - self.distance(view.features)


@scorer("ssd", source="Sehwag et al., ICLR 2021, one Gaussian for all classes")
class StandardisedGaussian(Scorer):
    """Minus the Mahalanobis distance of unit-length, standardised features to their one mean; labels are not used.

    ``centre`` says from where: "mean", or "twice" for numbers comparable with the evaluation code of PALM (Lu et al.,
    ICLR 2024), which takes the mean off again after standardising and so measures from beside it.
    """

    settings_names = ("centre",)
    middle: Tensor
    whiten: Tensor

    def __init__(self, *, centre: str = "mean", features: str = "encoded") -> None:
        super().__init__(features=features)
        if centre not in ("mean", "twice"):
            raise UsageError(f"centre must be mean or twice, got {centre!r}")
        self.centre = centre
        self.register_buffer("middle", torch.zeros(0))
        self.register_buffer("whiten", torch.zeros(0, 0))

    def fit(self, view: View, labels: Tensor) -> StandardisedGaussian:
        """Learn the Gaussian. Standardising first changes only which directions count as without variance."""
        rows = F.normalize(view.features.double(), dim=1)
        spread = rows.std(0, correction=0)
        scale = torch.where(spread > 0, 1 / spread.where(spread > 0, 1.0), 0.0)
        scaled = rows * scale
        mean, plain = rows.mean(0), whitening(second_moment(scaled, scaled.mean(0)))
        whiten = scale.unsqueeze(1) * plain
        middle = mean @ whiten + (mean @ plain if self.centre == "twice" else 0.0)
        self.whiten, self.middle = whiten.float(), middle.float()
        return self

    def score(self, view: View) -> Tensor:
        """Return confidences."""
        _fitted(self.whiten)
        rows = F.normalize(view.features.float(), dim=1)
        return -(rows @ self.whiten - self.middle).square().sum(1)


@scorer("knn", source="Sun et al., ICML 2022")
class Neighbours(Scorer):
    """Minus the squared distance to the k-th nearest known case, features scaled to unit length."""

    settings_names = ("k", "most")
    bank: Tensor

    def __init__(self, *, k: int = 50, most: int = 0, features: str = "encoded") -> None:
        super().__init__(features=features)
        if k < 1 or most < 0:
            raise UsageError(f"k must be at least 1 and most at least 0 (0 = keep all), got {k} and {most}")
        self.k, self.most = k, most
        self.register_buffer("bank", torch.zeros(0, 0))

    def fit(self, view: View, labels: Tensor) -> Neighbours:
        """Keep the known cases; with ``most``, so many spread evenly over them."""
        rows = F.normalize(view.features.float(), dim=1)
        if self.most and len(rows) > self.most:
            rows = rows[torch.linspace(0, len(rows) - 1, self.most).round().long()]
        self.bank = rows
        return self

    def score(self, view: View) -> Tensor:
        """Return confidences; with fewer than k known cases, by the farthest of them."""
        _fitted(self.bank)
        found, _ = nearest_rows(
            F.normalize(view.features.float(), dim=1), self.bank, squared_l2, min(self.k, len(self.bank))
        )
        return -found[:, -1]


@scorer("vim", source="Wang et al., CVPR 2022")
class VirtualLogit(Scorer):
    """Energy of the logits less the length of the features outside the principal subspace of known cases.

    The origin is where the classifier's bias vanishes, ``-pinv(W) b``, where the view holds a linear classifier; the
    mean of the known features otherwise, which is a departure from the paper. ``dim`` 0 takes the paper's rule: 1000 of
    at least 2048 features, 512 of at least 768, half of fewer.
    """

    settings_names = ("dim",)
    origin: Tensor
    outside: Tensor
    alpha: Tensor

    def __init__(self, *, dim: int = 0, features: str = "encoded") -> None:
        super().__init__(features=features)
        if dim < 0:
            raise UsageError(f"dim must be at least 0, got {dim}")
        self.dim = dim
        self.register_buffer("origin", torch.zeros(0))
        self.register_buffer("outside", torch.zeros(0, 0))
        self.register_buffer("alpha", torch.tensor(0.0))

    def fit(self, view: View, labels: Tensor) -> VirtualLogit:
        """Learn the subspace and what one unit of length outside it is worth."""
        rows = view.features.double()
        if view.weight is not None and view.bias is not None:
            origin = -torch.linalg.pinv(view.weight.double()) @ view.bias.double()
        else:
            origin = rows.mean(0)
        width = rows.shape[1]
        dim = self.dim or (1000 if width >= 2048 else 512 if width >= 768 else width // 2)
        _, vectors = torch.linalg.eigh(second_moment(rows, origin))
        self.origin, self.outside = origin.float(), vectors[:, : max(width - dim, 0)].float()
        residual = self._residual(view.features).double().mean()
        best = view.logits.double().amax(1).mean()
        self.alpha = (best / residual if float(residual) > 0 else torch.zeros(())).float()
        return self

    def score(self, view: View) -> Tensor:
        """Return confidences."""
        _fitted(self.origin)
        return energy(view.logits) - self.alpha * self._residual(view.features)

    def _residual(self, features: Tensor) -> Tensor:
        outside: Tensor = torch.linalg.vector_norm((features.float() - self.origin) @ self.outside, dim=1)
        return outside


@scorer("prototype_cosine", source="ours: the cosine to the nearest class mean")
class ClassMeanCosine(Scorer):
    """The highest cosine between the features and the mean of a known class."""

    means: Tensor

    def __init__(self, *, features: str = "encoded") -> None:
        super().__init__(features=features)
        self.register_buffer("means", torch.zeros(0, 0))

    def fit(self, view: View, labels: Tensor) -> ClassMeanCosine:
        """Learn the means of unit-length features."""
        means, _ = class_gaussian(F.normalize(view.features.double(), dim=1), labels)
        self.means = F.normalize(means, dim=1).float()
        return self

    def score(self, view: View) -> Tensor:
        """Return confidences."""
        _fitted(self.means)
        return (F.normalize(view.features.float(), dim=1) @ self.means.T).amax(1)


def _fitted(learned: Tensor) -> None:
    if not len(learned):
        raise UsageError("this novelty score was not fitted: call fit with known cases first")
