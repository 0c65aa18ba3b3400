"""Do activations foretell an outside label in patients that were not used to fit: AUROC of a penalised regression.

Part of :mod:`protolearn.audit.association`, whose caveat holds here too: the exact form is not verified against the
paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from protolearn.audit.association import Regressors
from protolearn.audit.bootstrap import interval_of
from protolearn.errors import UsageError


@dataclass(frozen=True)
class Foretold:
    """How well one family of regressors foretells one label.

    Attributes
    ----------
    family, label : str
        What was used, what was foretold.
    auroc : float or None
        Over held-out records; None where it cannot be computed, and ``status`` says why.
    interval : (float, float) or None
        95 % interval by resampling held-out groups, or records where there are no groups.
    train, train_cases, test, test_cases : int
        Records, and how many of them have the label.
    status : str
        Empty, or why there is no figure.
    """

    family: str
    label: str
    auroc: float | None
    interval: tuple[float, float] | None
    train: int
    train_cases: int
    test: int
    test_cases: int
    status: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {**vars(self), "interval": None if self.interval is None else list(self.interval)}


def auroc(scores: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the area under the curve of true over false positives, for each row of weights.

    The chance that a record with the label scores above one without, ties counted half.

    Parameters
    ----------
    scores : Tensor
        ``(n,)``.
    labels : Tensor
        ``(n,)`` bool.
    weights : Tensor, optional
        ``(R, n)`` float64, how often each record counts; once by default.

    Returns
    -------
    Tensor
        ``(R,)`` float64; NaN where one side has no weight.

    Examples
    --------
    >>> auroc(torch.tensor([0.1, 0.4, 0.4, 0.8]), torch.tensor([False, False, True, True])).tolist()
    [0.875]
    """
    if weights is None:
        weights = torch.ones(1, len(scores), dtype=torch.float64)
    values, place = scores.unique(return_inverse=True)
    zero = weights.new_zeros(len(weights), len(values))
    have = zero.index_add(1, place[labels], weights[:, labels])
    lack = zero.index_add(1, place[~labels], weights[:, ~labels])
    below = lack.cumsum(1) - 0.5 * lack
    return (have * below).sum(1) / (have.sum(1) * lack.sum(1))


def foretell(
    families: Sequence[Regressors],
    labels: np.ndarray,
    names: Sequence[str],
    held: np.ndarray,
    groups: Sequence[Any] | np.ndarray | None = None,
    *,
    generator: torch.Generator,
    least: int = 10,
    strength: float = 1.0,
) -> tuple[Foretold, ...]:
    """Fit each label on all regressors of a family over one part of the records, and judge on the other.

    Parameters
    ----------
    families : sequence of Regressors
        Each is used by itself, so that prototypes can be compared with class predictions.
    labels, names
        As for :func:`~protolearn.audit.association.association_table`; a record with NaN is left out for that label.
    held : ndarray
        ``(n,)`` bool: held out, to judge by.
    groups : sequence, optional
        ``(n,)`` the patient of each record.
    generator : Generator
        Of the resampling.
    least : int
        A label needs so many records on either side, in both parts.
    strength : float
        One over the strength of the L2 penalty, scikit-learn's ``C``; regressors are standardised over the first part.

    Raises
    ------
    UsageError
        If a group has records in both parts.

    Examples
    --------
    >>> draw = np.random.default_rng(0)
    >>> a = draw.standard_normal((200, 3))
    >>> sick = (a[:, 1] + draw.standard_normal(200) > 0).astype(float)
    >>> family = Regressors("prototype", ("0", "1", "2"), a)
    >>> (found,) = foretell([family], sick[:, None], ["sick"], np.arange(200) < 100,
    ...                     generator=torch.Generator().manual_seed(0))
    >>> found.auroc > 0.7, found.interval[0] < found.auroc < found.interval[1]
    (True, True)
    """
    members = None if groups is None else np.asarray(groups).astype(str)
    if members is not None and (shared := sorted(set(members[held].tolist()) & set(members[~held].tolist()))):
        raise UsageError(f"group {shared[0]!r} has records in both parts ({len(shared)} groups do): split by group")
    found = []
    for q, name in enumerate(names):
        known = ~np.isnan(labels[:, q])
        y, test = labels[known, q] > 0, held[known]
        counts = int((~test).sum()), int(y[~test].sum()), int(test.sum()), int(y[test].sum())
        low = min(counts[1], counts[0] - counts[1], counts[3], counts[2] - counts[3])
        for family in families:
            if low < least:
                status = f"fewer than {least} records on one side of a part"
                found.append(Foretold(family.family, str(name), None, None, *counts, status))
                continue
            scores = _foretold(family.values[known], y, test, strength)
            sick = torch.from_numpy(y[test])
            value = float(auroc(scores, sick))
            some = None if members is None else members[known][test]
            found.append(Foretold(family.family, str(name), value, _interval(scores, sick, some, generator), *counts))
    return tuple(found)


def _foretold(values: np.ndarray, y: np.ndarray, test: np.ndarray, strength: float) -> Tensor:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    fitted = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000)).fit(values[~test], y[~test])
    return torch.from_numpy(fitted.decision_function(values[test]))


def _interval(
    scores: Tensor, labels: Tensor, groups: np.ndarray | None, generator: torch.Generator
) -> tuple[float, float] | None:
    if groups is None:
        return interval_of(lambda weights: auroc(scores, labels, weights), len(scores), generator)
    names, place = np.unique(groups, return_inverse=True)
    each = torch.from_numpy(place)
    return interval_of(lambda weights: auroc(scores, labels, weights[:, each]), len(names), generator)
