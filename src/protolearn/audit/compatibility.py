"""May a new model answer queries over a gallery that an older one has indexed? Scores for a chain of models.

``scores[t][k]`` is how well queries of model t find their class in the gallery of model k, k <= t.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from protolearn.errors import UsageError


def search_accuracy(queries: Tensor, query_labels: Tensor, gallery: Tensor, gallery_labels: Tensor) -> float:
    """Return how often the nearest template is of the query's class.

    A template is the mean of a class's gallery features, scaled to unit length; queries are scaled too.

    Parameters
    ----------
    queries, gallery : Tensor
        ``(N, D)`` and ``(M, D)``.
    query_labels, gallery_labels : Tensor
        ``(N,)`` and ``(M,)`` int64.

    Examples
    --------
    >>> search_accuracy(torch.eye(2), torch.tensor([0, 1]), torch.eye(2), torch.tensor([0, 1]))
    1.0
    """
    if len(queries) == 0 or len(gallery) == 0:
        raise UsageError(f"a search needs queries and a gallery, got {len(queries)} and {len(gallery)}")
    names, rows = gallery_labels.unique(return_inverse=True)
    sums = gallery.new_zeros(len(names), gallery.shape[1]).index_add_(0, rows, gallery)
    templates = F.normalize(sums / torch.bincount(rows).unsqueeze(1), dim=1)
    found = names[(F.normalize(queries, dim=1) @ templates.T).argmax(1)]
    return float((found == query_labels).double().mean())


def compatibility_matrix(
    queries: Sequence[Tensor], query_labels: Tensor, galleries: Sequence[Tensor], gallery_labels: Tensor
) -> Tensor:
    """Return ``(T, T)`` search accuracies of each model's queries in its own and every older gallery; NaN above.

    Examples
    --------
    >>> one = torch.eye(2)
    >>> compatibility_matrix([one, -one], torch.arange(2), [one, -one], torch.arange(2))
    tensor([[1., nan],
            [0., 1.]])
    """
    scores = torch.full((len(queries), len(galleries)), float("nan"))
    for t, asked in enumerate(queries):
        for k, gallery in enumerate(galleries[: t + 1]):
            scores[t, k] = search_accuracy(asked, query_labels, gallery, gallery_labels)
    return scores


def average_compatibility(scores: Tensor) -> float:
    """Return the share of pairs of models of which the newer is better on the older's gallery than the older itself.

    A tie is not compatible. With one model there is no pair that could fail: 1.

    Examples
    --------
    >>> average_compatibility(torch.tensor([[50.0, 0.0], [51.0, 60.0]]))
    1.0
    """
    count = _square(scores)
    if count < 2:
        return 1.0
    below = torch.tril_indices(count, count, offset=-1)
    worse = ~(scores[below[0], below[1]] > scores.diagonal()[below[1]])
    return float(1 - worse.double().mean())


def average_accuracy(scores: Tensor) -> float:
    """Return the mean score over the lower triangle with the diagonal, NaN left out.

    The authors' code leaves out zeros, which stand for "not evaluated" there; here that is NaN, and 0 is a score. It
    also multiplies by 100 where all scores of the newest model are below 1; here the units of the scores stay.

    Examples
    --------
    >>> average_accuracy(torch.tensor([[50.0, 0.0], [40.0, 60.0]]))
    50.0
    """
    count = _square(scores)
    lower = torch.tril_indices(count, count)
    return float(scores[lower[0], lower[1]].double().nanmean())


def _square(scores: Tensor) -> int:
    if scores.ndim != 2 or scores.shape[0] != scores.shape[1] or len(scores) == 0:
        raise UsageError(f"scores of a chain of models are a square table, got {tuple(scores.shape)}")
    return len(scores)
