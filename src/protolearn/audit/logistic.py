"""One logistic regression that says when it has no answer, in place of a number that an algorithm stopped at."""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import Any

import numpy as np

from protolearn.errors import MissingExtra

FAR = 15.0
"""A fitted log-odds beyond this is looked at: the two sides may be separated."""
ITERATIONS = 35
"""Of Newton's method. Where sides are separated it walks on for ever, and with many more it would seem to arrive."""


def standardised(values: np.ndarray) -> np.ndarray:
    """Return columns ``(n, k)`` of mean 0 and standard deviation 1; a constant column becomes zeros.

    Examples
    --------
    >>> standardised(np.array([[1.0, 7.0], [3.0, 7.0]])).tolist()
    [[-1.0, 0.0], [1.0, 0.0]]
    """
    if not len(values):
        return np.asarray(values, dtype=np.float64)
    values = np.asarray(values, dtype=np.float64)
    centred = values - values.mean(0)
    deviation = centred.std(0)
    flat = deviation <= 1e-12 * np.maximum(np.abs(values).max(0), 1e-300)
    return np.where(flat, 0.0, centred / np.where(flat, 1.0, deviation))


def the_statsmodels(part: str) -> Any:
    """Return a module of statsmodels, which only the extra ``association`` brings."""
    try:
        return import_module(f"statsmodels.{part}")
    except ImportError as error:
        raise MissingExtra("statsmodels", "association", "testing associations") from error


def fit_logistic(
    design: np.ndarray, y: np.ndarray, start: np.ndarray | None = None, groups: np.ndarray | None = None
) -> tuple[Any, str]:
    """Return statsmodels' fit of a logistic regression and "", or None and why there is none.

    Where a combination of columns tells the two sides apart (separation, complete or not), the likelihood has no
    maximum, and what an algorithm stops at is no estimate.

    Parameters
    ----------
    design : ndarray
        ``(n, k)``, the constant among the columns.
    y : ndarray
        ``(n,)`` 0 or 1.
    start : ndarray, optional
        ``(k,)`` where to begin.
    groups : ndarray, optional
        ``(n,)`` int64: errors by the sandwich over groups.

    Examples
    --------
    >>> x = np.column_stack([np.ones(6), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]])
    >>> fit_logistic(x, np.array([0.0, 0.0, 0.0, 1.0, 1.0, 1.0]))
    (None, 'separated')
    """
    model = the_statsmodels("api").Logit(y, design)
    robust = {} if groups is None else {"cov_type": "cluster", "cov_kwds": {"groups": groups}}
    fitted = _newton(model, start, robust)
    if fitted is not None and float(np.abs(design @ fitted.params).max()) <= FAR:
        return fitted, ""
    if separated(design, y):
        return None, "separated"
    if fitted is None:  # steps that are too long for a column with few large values: begin nearer
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            nearer = model.fit(start_params=start, method="bfgs", disp=0, maxiter=1000, gtol=1e-6, skip_hessian=True)
        fitted = _newton(model, nearer.params, robust)
    return (None, "the fit did not converge") if fitted is None else (fitted, "")


def _newton(model: Any, start: np.ndarray | None, robust: dict[str, Any]) -> Any:
    """Return the fit by Newton's method, or None where it did not arrive."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            fitted = model.fit(start_params=start, disp=0, maxiter=ITERATIONS, **robust)
        except (np.linalg.LinAlgError, ValueError, FloatingPointError):
            return None
        sure = bool(fitted.mle_retvals["converged"]) and np.isfinite(fitted.params).all()
        return fitted if sure and np.isfinite(fitted.bse).all() else None


def separated(design: np.ndarray, y: np.ndarray) -> bool:
    """Return whether some combination of the columns puts no record on the wrong side, and one on the right side.

    Found by linear programming: the largest sum of ``s_i (z_i . b)`` over ``|b| <= 1`` with every term at least 0,
    ``s`` 1 or -1 by label, is above 0 if and only if there is separation, complete or not.

    Parameters
    ----------
    design : ndarray
        ``(n, k)`` of full rank, the constant among the columns.
    y : ndarray
        ``(n,)`` 0 or 1.

    Examples
    --------
    >>> x = np.column_stack([np.ones(4), [0.0, 0.0, 0.0, 1.0]])
    >>> separated(x, np.array([0.0, 1.0, 0.0, 1.0])), separated(x, np.array([0.0, 1.0, 0.0, 0.0]))
    (True, True)
    >>> separated(np.column_stack([np.ones(4), [0.0, 0.0, 1.0, 1.0]]), np.array([0.0, 1.0, 0.0, 1.0]))
    False
    """
    from scipy.optimize import linprog

    have, lack = design[y > 0], design[y == 0]
    if not len(have) or not len(lack):
        return True
    moves = np.ptp(design, axis=0) > 0
    if (moves & ((have.min(0) >= lack.max(0)) | (have.max(0) <= lack.min(0)))).any():
        return True  # one column does it alone, and that is quick to see
    signed = design * (2.0 * y - 1.0)[:, None]
    exact = {"primal_feasibility_tolerance": 1e-9, "dual_feasibility_tolerance": 1e-9}
    limits = np.zeros(len(y))
    found = linprog(-signed.sum(0), A_ub=-signed, b_ub=limits, bounds=(-1, 1), method="highs", options=exact)
    return bool(found.status == 0 and -found.fun > 1e-7 * len(y))


def effective_groups(design: np.ndarray, chance: np.ndarray, groups: np.ndarray) -> float:
    """Return how many groups of equal weight carry as much of the first column as these do: at least 1.

    ``1 / sum h_g^2``, ``h_g`` the share of group g in the information about the first coefficient, the other columns
    taken out. Errors by group rest on that many groups, however many there are: with a prototype that is active in
    three patients, a normal distribution finds far too much. (The effective number of clusters of Carter, Schnepel and
    Steigerwald, Review of Economics and Statistics, 2017.)

    Parameters
    ----------
    design : ndarray
        ``(n, k)``.
    chance : ndarray
        ``(n,)`` fitted probabilities.
    groups : ndarray
        ``(n,)`` int64, at least 0.

    Examples
    --------
    >>> column = np.array([1.0, 1.0, 0.0, 0.0, 0.0, 0.0])
    >>> x = np.column_stack([column, np.ones(6)])
    >>> round(effective_groups(x, np.full(6, 0.5), np.array([0, 0, 1, 1, 2, 2])), 3)
    2.0
    """
    weight = chance * (1.0 - chance)
    column, others = design[:, 0], design[:, 1:]
    root = np.sqrt(weight)
    taken = np.linalg.lstsq(others * root[:, None], column * root, rcond=None)[0]
    carried = np.bincount(groups, weight * (column - others @ taken) ** 2)
    return float(carried.sum() ** 2 / (carried**2).sum())
