"""Which prototypes go with which labels that the model never saw: odds ratios with covariates and corrected p-values.

For each regressor ``a`` (the activation of a prototype, in standard deviations over the cohort) and each label ``D``,
with covariates ``X``:

    logit Pr(D = 1) = b0 + b a + g . X        odds ratio per standard deviation: exp(b)

with Wald's interval and p-value, and p-values corrected over every test of every family of regressors at once. Where
groups (patients) are given, errors are the sandwich over groups, compared with Student's t of as many degrees of
freedom as groups effectively carry the regressor, less one.

NOT VERIFIED: the analysis follows the abstract of "Prototype Learning to Create Refined Interpretable Digital
Phenotypes from ECGs" (Sethi et al., 2025, arXiv 2508.01521), but its equations were not at hand. What stands here is
the usual form of such an analysis, checked against other code for the same statistics, not against that paper.

An association says nothing about causes, and correcting for the covariates that are given corrects for no others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.stats import t as student

from protolearn.audit.association_result import Association, AssociationTable
from protolearn.audit.logistic import effective_groups, fit_logistic, standardised, the_statsmodels
from protolearn.errors import DataError, UsageError, look_up

CORRECTIONS = {"bonferroni": "bonferroni", "benjamini-hochberg": "fdr_bh"}
"""What each correction is called by statsmodels. Bonferroni bounds the chance of any false finding, Benjamini-Hochberg
the expected share of false ones among the findings."""

Z95 = 1.959963984540054
FEW_GROUPS = 40
"""With fewer groups than this errors by group tend to be too small."""
LEAST_CARRIERS = 2.0
"""With fewer groups that effectively carry a regressor there is nothing to compare between groups."""


@dataclass(frozen=True, eq=False)
class Regressors:
    """A family of numbers that are tested one by one.

    Attributes
    ----------
    family : str
        "prototype", "class prediction" ...
    names : tuple of str
        F of them.
    values : ndarray
        ``(n, F)`` float, finite.
    owners, sources : tuple of str
        The class each belongs to and the training case behind it; empty where there is none.
    """

    family: str
    names: tuple[str, ...]
    values: np.ndarray
    owners: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or self.values.shape[1] != len(self.names):
            raise UsageError(f"{self.family}: values {self.values.shape} must be (n, {len(self.names)}), one a name")
        for what in ("owners", "sources"):
            if len(getattr(self, what)) not in (0, len(self.names)):
                raise UsageError(f"{self.family}: {len(getattr(self, what))} {what} for {len(self.names)} names")
        if not np.isfinite(self.values).all():
            place = int(np.flatnonzero(~np.isfinite(self.values).all(0))[0])
            raise DataError(
                f"{self.family} {self.names[place]} holds NaN or infinity: the model or an input is damaged"
            )


def association_table(
    families: Sequence[Regressors],
    labels: np.ndarray,
    names: Sequence[str],
    covariates: np.ndarray | None = None,
    groups: Sequence[Any] | np.ndarray | None = None,
    *,
    correction: str = "bonferroni",
    alpha: float = 0.05,
    least: int = 20,
) -> AssociationTable:
    """Test every regressor of every family against every label, one logistic regression each.

    Parameters
    ----------
    families : sequence of Regressors
        Of n records each. Families that are compared belong into one call: all their tests are corrected together.
    labels : ndarray
        ``(n, Q)`` 1, 0, or NaN where it is not known; such a record is left out for that label only.
    names : sequence of str
        Of the labels.
    covariates : ndarray, optional
        ``(n, k)`` finite, without a constant.
    groups : sequence, optional
        ``(n,)`` the patient of each record: errors then allow for likeness within a patient.
    correction : {"bonferroni", "benjamini-hochberg"}
        Over all tests that were tried.
    alpha : float
        Level of the corrected p-value.
    least : int
        A label with fewer records that have it, or that do not, is not tested.

    Returns
    -------
    AssociationTable

    Raises
    ------
    UsageError
        If sizes do not fit, or a name is unknown.
    DataError
        If covariates are not finite, or say the same twice.
    MissingExtra
        Without statsmodels.

    Examples
    --------
    >>> draw = np.random.default_rng(0)
    >>> a = draw.standard_normal((400, 3))
    >>> sick = (draw.random(400) < 1 / (1 + np.exp(1 - 1.5 * a[:, 1]))).astype(float)
    >>> found = association_table([Regressors("prototype", ("0", "1", "2"), a)], sick[:, None], ["sick"])
    >>> [(row.regressor, row.odds_ratio > 2) for row in found.significant()]
    [('1', True)]
    """
    count = len(labels)
    _check(families, labels, names, covariates, groups, alpha, least)
    method = look_up("correction", correction, CORRECTIONS)
    base = np.ones((count, 1)) if covariates is None else np.column_stack([np.ones(count), standardised(covariates)])
    if count and np.linalg.matrix_rank(base) < base.shape[1]:
        raise DataError(
            f"the {base.shape[1] - 1} columns of covariates say the same twice (one is constant, or a sum of others): "
            "leave one out"
        )
    members = None if groups is None else np.unique(np.asarray(groups).astype(str), return_inverse=True)[1]
    columns = {family.family: standardised(family.values) for family in families}
    rows: list[Association] = []
    dropped: dict[str, str] = {}
    missing: dict[str, int] = {}
    for q, name in enumerate(names):
        known = ~np.isnan(labels[:, q])
        y, some = labels[known, q], None if members is None else members[known]
        missing[str(name)] = int(count - known.sum())
        positive = int(y.sum())
        if min(positive, len(y) - positive) < least:
            dropped[str(name)] = f"{positive} of {len(y)} records have it; fewer than {least} on one side"
            continue
        null = _Null(base[known], y)
        for family in families:
            rows += _tested(family, columns[family.family][known], null, str(name), some)
    rows = _corrected(rows, method, alpha)
    counts = {
        "records": count,
        "labels tested": len(names) - len(dropped),
        "not estimable": sum(r.p is None for r in rows),
    }
    if members is not None:
        counts["groups"] = len(np.unique(members))
    notes = tuple(_notes(rows, members, base.shape[1], dropped))
    missing = {name: left for name, left in missing.items() if left}
    return AssociationTable(tuple(rows), correction, alpha, len(rows), dropped, missing, counts, notes)


def _check(
    families: Sequence[Regressors],
    labels: np.ndarray,
    names: Sequence[str],
    covariates: np.ndarray | None,
    groups: Sequence[Any] | np.ndarray | None,
    alpha: float,
    least: int,
) -> None:
    if labels.ndim != 2 or labels.shape[1] != len(names):
        raise UsageError(f"labels must be (n, {len(names)}), one column a name, got {labels.shape}")
    if not np.isin(labels[~np.isnan(labels)], (0.0, 1.0)).all():
        raise UsageError("labels must be 0, 1 or NaN (not known)")
    if not 0 < alpha < 1 or least < 1:
        raise UsageError(f"alpha must lie between 0 and 1 and least be at least 1, got {alpha} and {least}")
    if len({family.family for family in families}) < len(families):
        raise UsageError("two families of regressors have one name")
    sizes = {f"family {family.family!r}": len(family.values) for family in families}
    sizes |= {} if covariates is None else {"covariates": len(covariates)}
    sizes |= {} if groups is None else {"groups": len(groups)}
    for what, size in sizes.items():
        if size != len(labels):
            raise UsageError(f"{size} records in {what}, {len(labels)} in the labels")
    if covariates is not None and (covariates.ndim != 2 or not np.isfinite(covariates).all()):
        raise DataError("covariates must be (n, k) finite numbers: leave out records in which one is not known")
    if groups is not None and len(set(np.asarray(groups).astype(str).tolist())) < 2:
        raise DataError("errors by group need at least two groups")


class _Null:
    """A label and the covariates of its records, fitted once; every regressor then joins."""

    def __init__(self, base: np.ndarray, y: np.ndarray) -> None:
        self.base, self.y = base, y
        twice = np.linalg.matrix_rank(base) < base.shape[1]
        fitted, status = (None, "they say the same twice") if twice else fit_logistic(base, y)
        self.status = status and f"the covariates alone: {status}"
        self.start = None if fitted is None else fitted.params


def _tested(
    family: Regressors, columns: np.ndarray, null: _Null, label: str, groups: np.ndarray | None
) -> Iterator[Association]:
    for p, name in enumerate(family.names):
        row = Association(
            family.family, name, family.owners[p] if family.owners else "", family.sources[p] if family.sources else "",
            label, len(null.y), int(null.y.sum()),
        )  # fmt: skip
        yield _estimated(row, columns[:, p], null, groups)


def _estimated(row: Association, column: np.ndarray, null: _Null, groups: np.ndarray | None) -> Association:
    design = np.column_stack([column, null.base])
    status, fitted = null.status, None
    if not status and np.ptp(column) <= 1e-9:
        status = "the same in every record"
    if not status and np.linalg.matrix_rank(design, tol=1e-8 * np.sqrt(len(design))) < design.shape[1]:
        status = "no more than the covariates say"
    if not status:
        assert null.start is not None
        fitted, status = fit_logistic(design, null.y, np.concatenate([[0.0], null.start]), groups)
    if fitted is None:
        return replace(row, status=f"not estimable: {status}")
    slope, error = float(fitted.params[0]), float(fitted.bse[0])
    p, reach = float(fitted.pvalues[0]), Z95
    if groups is not None:  # before the error is looked at, which is 0 where one group fits itself
        carriers = effective_groups(design, fitted.predict(), groups)
        if carriers < LEAST_CARRIERS:
            return replace(row, status="not estimable: hardly more than one group carries it")
        spread = student(carriers - 1.0)
        p, reach = float(2.0 * spread.sf(abs(slope) / max(error, 1e-300))), float(spread.ppf(0.975))
    if not error > 0:
        return replace(row, status="not estimable: no error can be computed")
    with np.errstate(over="ignore"):
        ratio, low, high = (float(v) for v in np.exp([slope, slope - reach * error, slope + reach * error]))
    return replace(row, odds_ratio=ratio, interval=(low, high), p=p)


def _corrected(rows: list[Association], method: str, alpha: float) -> list[Association]:
    """Return the rows by p-value, corrected for all of them: what is not estimable was tried, and counts as p = 1."""
    if not rows:
        return rows
    multipletests = the_statsmodels("stats.multitest").multipletests
    found = multipletests([1.0 if row.p is None else row.p for row in rows], alpha=alpha, method=method)[1].tolist()
    made = [
        row if row.p is None else replace(row, corrected=float(value), significant=value <= alpha)
        for row, value in zip(rows, found, strict=True)
    ]

    def order(row: Association) -> tuple[bool, float, float]:
        far = 0.0 if row.odds_ratio is None else -abs(float(np.log(row.odds_ratio)))
        return row.p is None, row.p or 0.0, far

    return sorted(made, key=order)


def _notes(
    rows: list[Association], groups: np.ndarray | None, columns: int, dropped: Mapping[str, str]
) -> Iterator[str]:
    yield "Associations, not causes; corrected for the covariates that were given and no others."
    if groups is None:
        yield "Every record counts as independent: with several records of one patient p-values are too small."
    elif len(np.unique(groups)) < FEW_GROUPS:
        yield f"{len(np.unique(groups))} groups: errors by group are too small where groups are few."
    thin = sorted({row.label for row in rows if min(row.cases, row.n - row.cases) < 10 * (columns + 1)})
    if thin:
        yield (
            f"Fewer than ten records a coefficient on one side, so that odds ratios come out too far from 1: "
            f"{_listed(thin)}."
        )
    lost = sum(row.p is None for row in rows)
    if lost:
        yield f"{lost} tests are not estimable and have no number; they count among the tests corrected for."
    if dropped:
        yield f"Labels not tested, too few records on one side: {_listed(sorted(dropped))}."


def _listed(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
