"""Is what an explanation shows what the prediction rests on: decisions from a few prototypes, and by a small tree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.model_selection import KFold
from sklearn.tree import DecisionTreeClassifier
from torch import Tensor

from protolearn.errors import UsageError

FOLDS = 5
"""Parts of a cross-validation."""


def scores_of_shown(table: Tensor, offset: Tensor, predicted: Tensor, shown: Sequence[int]) -> Tensor:
    """Return ``(K, B, C)`` float64: all class scores, from the prototypes an explanation of the prediction shows.

    Shown are those that contribute most to the predicted class, for or against; one that contributes exactly nothing
    to it is never shown, and of equal ones the first is. What they contribute to every other class counts with them,
    and so does what no prototype brings.

    Parameters
    ----------
    table : Tensor
        ``(B, C, P)`` contributions.
    offset : Tensor
        ``(C,)``.
    predicted : Tensor
        ``(B,)`` int64.
    shown : sequence of int
        How many prototypes are shown, K numbers of at least 1.

    Raises
    ------
    UsageError
        If a number is below 1 or the shapes do not fit.

    Examples
    --------
    Two classes, three prototypes; the largest contribution alone would already give class 0:

    >>> table = torch.tensor([[[3.0, 1.0, 0.0], [1.0, 0.0, 2.5]]])
    >>> scores_of_shown(table, torch.zeros(2), torch.tensor([0]), [1, 2]).tolist()
    [[[3.0, 1.0]], [[4.0, 1.0]]]
    """
    _check(table, offset, shown)
    if len(predicted) != len(table):
        raise UsageError(f"{len(table)} cases need as many predictions, got {len(predicted)}")
    classes, count = table.shape[1:]
    most = min(max(shown), count)
    own = table.gather(1, predicted.view(-1, 1, 1).expand(-1, 1, count)).squeeze(1).abs()
    order = torch.sort(own, dim=1, descending=True, stable=True)
    rows = order.indices[:, :most].unsqueeze(1).expand(-1, classes, -1)
    kept = table.gather(2, rows).double() * (order.values[:, :most] > 0).unsqueeze(1)
    return _summed(kept, offset, shown)


def scores_of_largest(table: Tensor, offset: Tensor, shown: Sequence[int]) -> Tensor:
    """Return ``(K, B, C)`` float64: each class's score from the contributions to it that are largest, for or against.

    Every class has its own few prototypes, so that the choice knows nothing of the prediction.

    Parameters
    ----------
    table, offset, shown
        As for :func:`scores_of_shown`.

    Examples
    --------
    >>> table = torch.tensor([[[3.0, 1.0, 0.0], [1.0, 0.0, 2.5]]])
    >>> scores_of_largest(table, torch.zeros(2), [1, 2]).tolist()
    [[[3.0, 2.5]], [[4.0, 3.5]]]
    """
    _check(table, offset, shown)
    most = min(max(shown), table.shape[2])
    order = table.abs().topk(most, dim=2).indices
    return _summed(table.gather(2, order).double(), offset, shown)


def _summed(kept: Tensor, offset: Tensor, shown: Sequence[int]) -> Tensor:
    """Return ``(K, B, C)`` sums of the first contributions ``(B, C, most)``, and what no prototype brings."""
    sums = torch.cat([kept.new_zeros(*kept.shape[:2], 1), kept.cumsum(2)], 2)
    return torch.stack([sums[:, :, min(number, kept.shape[2])] + offset.double() for number in shown])


def _check(table: Tensor, offset: Tensor, shown: Sequence[int]) -> None:
    if table.ndim != 3 or offset.shape != table.shape[1:2]:
        raise UsageError(
            f"contributions must be (B, C, P) with offset (C,), got {tuple(table.shape)} and {tuple(offset.shape)}"
        )
    if not shown or min(shown) < 1:
        raise UsageError(f"how many prototypes are shown must be numbers of at least 1, got {list(shown)}")


@dataclass(frozen=True, eq=False)
class Student:
    """A decision tree that predicts what a model says from its prototype scores.

    Attributes
    ----------
    said : ndarray
        ``(N,)`` its predictions on the cases it is judged on.
    leaves, read : float
        Leaves and prototypes it asks about; the mean over the trees of a cross-validation.
    """

    said: np.ndarray
    leaves: float
    read: float


def student(
    scores: np.ndarray,
    predicted: np.ndarray,
    judged: np.ndarray | None = None,
    *,
    depth: int | None = 4,
    seed: int = 0,
) -> Student:
    """Fit a decision tree to a model's predictions.

    Parameters
    ----------
    scores : ndarray
        ``(N, P)`` prototype scores to learn from.
    predicted : ndarray
        ``(N,)`` what the model says of them.
    judged : ndarray, optional
        ``(M, P)`` scores of other cases to be judged on; by default the same cases, five-fold cross-validated.
    depth : int or None
        Questions on the way to a leaf; None = as many as it takes.
    seed : int
        Of folds and of the order in which equally good questions are tried.

    Raises
    ------
    UsageError
        If there is no case, or one alone and nothing else to be judged on, or a score is not finite.

    Examples
    --------
    >>> scores = np.random.default_rng(0).random((200, 5))
    >>> told = student(scores, (scores[:, 2] > 0.5).astype(int), depth=1)
    >>> bool((told.said == (scores[:, 2] > 0.5)).mean() > 0.97), told.leaves, told.read
    (True, 2.0, 1.0)
    """
    if scores.ndim != 2 or len(scores) != len(predicted) or len(scores) < (2 if judged is None else 1):
        raise UsageError(f"a student needs scores (N, P) and N predictions, got {scores.shape} and {predicted.shape}")
    if not np.isfinite(scores).all() or (judged is not None and not np.isfinite(judged).all()):
        raise UsageError("a student needs scores that are finite")
    if depth is not None and depth < 1:
        raise UsageError(f"depth must be at least 1 or None, got {depth}")

    def fitted(rows: np.ndarray) -> DecisionTreeClassifier:
        return DecisionTreeClassifier(max_depth=depth, random_state=seed).fit(scores[rows], predicted[rows])

    if judged is None:
        folds = KFold(min(FOLDS, len(scores)), shuffle=True, random_state=seed)
        said = np.zeros_like(predicted)
        trees = []
        for rows, held in folds.split(scores):
            trees.append(fitted(rows))
            said[held] = trees[-1].predict(scores[held])
    else:
        trees = [fitted(np.arange(len(scores)))]
        said = trees[0].predict(judged)
    asked = [len(set(tree.tree_.feature[tree.tree_.feature >= 0].tolist())) for tree in trees]
    return Student(said, float(np.mean([tree.get_n_leaves() for tree in trees])), float(np.mean(asked)))
