"""Fair parts of a data set, and what is wrong with unfair ones."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from protolearn.data.cases import Cases, view_seed
from protolearn.errors import DataError, UsageError


def stratified_split(
    labels: Sequence[int] | np.ndarray, test: float = 0.2, seed: int = 0, *, ids: Sequence[str] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Split so that each class is divided alike.

    scikit-learn's stratified split refuses a class with one case and may leave a small class out of one side; here
    every class with two or more cases is on both sides, and a single case is for training.

    Parameters
    ----------
    labels : sequence of int
        One a case; unlabelled cases (-1) are divided like a class.
    test : float
        Share of each class that is held out.
    seed : int
        Chooses which.
    ids : sequence of str, optional
        Case ids. Cases are drawn by a hash of their id (their position without ids), so the split is the same with any
        version of any library, and a case added or dropped moves few others.

    Returns
    -------
    train, test : ndarray
        Sorted positions.

    Examples
    --------
    >>> train, test = stratified_split([0, 0, 0, 0, 1, 1], test=0.5)
    >>> len(train), len(test)
    (3, 3)
    """
    _check_share(test)
    values = np.asarray(labels)
    names = range(len(values)) if ids is None else ids
    if len(names) != len(values):
        raise DataError(f"{len(values)} labels and {len(names)} ids: expected one of each a case")
    order = np.array([view_seed(seed, 0, str(name)) for name in names], dtype=np.int64)
    held = np.zeros(len(values), dtype=bool)
    for label in np.unique(values):
        members = np.flatnonzero(values == label)
        members = members[np.argsort(order[members], kind="stable")]
        if len(members) > 1:
            held[members[: min(max(round(len(members) * test), 1), len(members) - 1)]] = True
    return np.flatnonzero(~held), np.flatnonzero(held)


def group_split(
    labels: Sequence[int] | np.ndarray, groups: Sequence[str], test: float = 0.2, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Split so that no group (patient, slide) is on both sides and classes are divided as alike as groups allow.

    Built on scikit-learn's ``StratifiedGroupKFold``; the held-out share is the nearest that whole groups give.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    _check_share(test)
    values, owners = np.asarray(labels), np.asarray(groups)
    if values.shape != owners.shape:
        raise DataError(f"{len(values)} labels and {len(owners)} groups: expected one of each a case")
    count = len(np.unique(owners))
    if count < 2:
        raise DataError(
            f"all cases belong to {'one group' if count else 'no group'}: a split by groups needs at least two"
        )
    share = Fraction(test).limit_denominator(min(count, 20))
    folds = min(max(share.denominator, 2), count)
    taken = min(max(share.numerator, 1), folds - 1)
    largest = int(np.unique(values, return_counts=True)[1].max())
    if folds > largest:  # every class is smaller than the folds: nothing to stratify
        values = np.zeros_like(values)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class smaller than the folds: divided as far as it goes
        parts = StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(values, values, owners)
        sides = [held for _, held in parts][:taken]
    held = np.sort(np.concatenate(sides))
    return np.setdiff1d(np.arange(len(values)), held), held


def train_test(cases: Cases, test: float = 0.2, seed: int = 0) -> tuple[Cases, Cases]:
    """Return training and test cases: the data's own parts if it has them, else by group, else stratified.

    Of the data's own parts ``train`` is for training and ``test`` for testing (``val`` where there is no test).
    """
    if cases.split_names:
        held = next((name for name in ("test", "val") if name in cases.split_names), None)
        if "train" not in cases.split_names or held is None:
            raise DataError(
                f"{cases.name} comes in the parts {', '.join(cases.split_names)}: expected train and test, or "
                "choose with "
                "cases.split(name)"
            )
        return cases.split("train"), cases.split(held)
    if cases.groups is not None:
        first, second = group_split(cases.labels, cases.groups, test, seed)
    else:
        first, second = stratified_split(cases.labels, test, seed, ids=cases.ids)
    return cases.subset(first), cases.subset(second)


def duplicates(train: Cases, test: Cases | None = None) -> list[tuple[str, str]]:
    """Return the ids of pictures that are the same by content, across two data sets or within one.

    Each picture of the second set that also is in the first is paired with its first twin there; within one set, each
    repetition with the first. Reads every picture once; the hashes are remembered.
    """
    first: dict[str, str] = {}
    pairs = []
    for i, case in enumerate(train.ids):
        known = first.setdefault(train.content(i), case)
        if test is None and known != case:
            pairs.append((known, case))
    if test is not None:
        pairs = [(first[test.content(i)], case) for i, case in enumerate(test.ids) if test.content(i) in first]
    return pairs


def check_training(cases: Cases, *, labels: bool = True) -> list[str]:
    """Refuse data nothing can be learned from; return a warning for each thing that is merely suspicious.

    Without ``labels`` none is asked for.
    """
    if not len(cases):
        raise DataError(f"{cases.name} holds no cases: nothing to train on")
    if not labels:
        return []
    counts = cases.counts()
    present = {name: count for name, count in counts.items() if count}
    if not present:
        raise DataError(
            f"{cases.name} has no labels: training needs a class for each picture (folders, or a label column)"
        )
    if len(present) < 2:
        raise DataError(f"{cases.name} has one class, {next(iter(present))!r}: telling apart needs at least two")
    warned = []
    if len(present) < len(counts):
        warned.append(f"{cases.name}: no picture of {_names([n for n, c in counts.items() if not c])}")
    single = [name for name, count in present.items() if count == 1]
    if single:
        warned.append(
            f"{cases.name}: only one picture of {_names(single)}; its prototypes can only repeat that picture"
        )
    unlabelled = int((cases.labels < 0).sum())
    if unlabelled:
        warned.append(f"{cases.name}: {unlabelled} of {len(cases)} pictures have no label")
    return warned


def check_pair(train: Cases, test: Cases) -> list[str]:
    """Refuse a test set that the training set cannot prepare for; return a warning for each shared picture or group."""
    if train.classes != test.classes:
        raise DataError(
            f"{test.name} numbers its {len(test.classes)} classes differently from {train.name} "
            f"({len(train.classes)}): "
            "match them by name with test.with_classes(train.classes)"
        )
    unseen = np.setdiff1d(np.unique(test.labels[test.labels >= 0]), np.unique(train.labels))
    if unseen.size:
        raise DataError(
            f"{test.name} has pictures of {_names([test.classes[i] for i in unseen])}, unseen in {train.name}: add "
            "training "
            "pictures or leave the class out"
        )
    warned = []
    same = duplicates(train, test)
    if same:
        shown = ", ".join(f"{b} = {a}" for a, b in same[:3]) + (", ..." if len(same) > 3 else "")
        warned.append(f"{len(same)} pictures of {test.name} are also in {train.name}: {shown}")
    shared = sorted(set(train.groups or ()) & set(test.groups or ()))
    if shared:
        warned.append(f"{len(shared)} groups are in both {train.name} and {test.name}: {_names(shared)}")
    return warned


def _names(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _check_share(test: float) -> None:
    if not 0 < test < 1:
        raise UsageError(f"the held-out share must lie between 0 and 1, got {test}")
