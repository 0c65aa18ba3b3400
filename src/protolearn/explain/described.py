"""All prototypes of a model described by visual characteristics, with the checks such a description needs.

    redundancy      two prototypes for which the same characteristics matter as much react alike; if they are also near
                    as vectors, or stand on the same token, they are duplicates
    generalisation  importances over training and over held-out pictures, one characteristic at a time: Shapiro-Wilk's
                    test of either for normality, Welch's test of their means, their correlation over prototypes

Source: Nauta et al., *This Looks Like That, Because ...*, 2021; the correlation and the rule of redundancy are ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy import stats

from protolearn.audit.distinctness import equal_profiles
from protolearn.audit.redundancy import near_pairs, same_source
from protolearn.core.model import PrototypeModel
from protolearn.errors import UsageError
from protolearn.explain.characteristics import Global, global_characteristics, local_characteristics
from protolearn.explain.draw import Painter
from protolearn.explain.explain import explain
from protolearn.explain.passes import CaseList, picture_of, plain_json
from protolearn.explain.perturb import CHARACTERISTICS
from protolearn.explain.wording import hue_word, sentence
from protolearn.structures import LedgerRow

SMALL = 64
"""Pixels: on pictures with a shorter side than this, alterations laid out for photographs act very strongly."""


@dataclass(frozen=True)
class Generalises:
    """One characteristic's importances over training pictures beside those over held-out ones.

    Attributes
    ----------
    name : str
        The characteristic.
    train, test : float
        Mean importance over prototypes.
    normal_train, normal_test : float or None
        p of Shapiro-Wilk's test; None below 3 or above 5,000 prototypes, or where all are equal.
    t, p : float or None
        Of Welch's test that the means are equal; None where neither part varies.
    correlation : float or None
        Pearson's, over prototypes; None where a part does not vary.
    """

    name: str
    train: float
    test: float
    normal_train: float | None
    normal_test: float | None
    t: float | None
    p: float | None
    correlation: float | None


@dataclass(frozen=True)
class Alike:
    """Two prototypes for which the same characteristics matter as much.

    Attributes
    ----------
    left, right : int
        Ids.
    gap : float
        Largest difference over characteristics, in units of the usual importance.
    same_class : bool
        Whether one class owns both.
    duplicates : bool
        Whether they are near as vectors too, or stand on the same token.
    """

    left: int
    right: int
    gap: float
    same_class: bool
    duplicates: bool


@dataclass(frozen=True, eq=False)
class Match:
    """One prototype's match in one picture.

    Attributes
    ----------
    index : int
        Which of the pictures asked about.
    case, predicted : str
        Its id, and the class the model says.
    probability : float
        Of that class.
    row : LedgerRow
        The match and what it adds to that class.
    phi : ndarray
        ``(M,)`` fall of its similarity at that place, one a characteristic.
    words : str
        The same, compared with the usual size of a fall in one training picture.
    """

    index: int
    case: str
    predicted: str
    probability: float
    row: LedgerRow
    phi: np.ndarray
    words: str


@dataclass(frozen=True, eq=False)
class Characteristics:
    """What prototypes look at.

    Attributes
    ----------
    train : Global
        Importances over training pictures.
    test : Global or None
        Over held-out ones.
    owners : tuple of (str or None)
        Class of each prototype of ``train.prototypes``.
    colours : dict
        Prototype id to what the colour of its place is called.
    generalises : tuple of Generalises
        One a characteristic; empty without held-out pictures.
    alike : tuple of Alike
        The most equal first.
    matches : tuple of Match
        In the pictures asked about.
    facts : dict
        Data, strength, seed, how many pictures of how many.
    notes : tuple of str
        What a reader must know.
    """

    train: Global
    test: Global | None
    owners: tuple[str | None, ...]
    colours: dict[int, str]
    generalises: tuple[Generalises, ...]
    alike: tuple[Alike, ...]
    matches: tuple[Match, ...]
    facts: dict[str, Any]
    notes: tuple[str, ...]

    @property
    def told(self) -> tuple[bool, ...]:
        """Of each characteristic, whether altering it changed any similarity."""
        return _told(self.train)

    @property
    def usual(self) -> np.ndarray | None:
        """``(M,)`` mean size of the fall over prototypes; None with fewer than two of them."""
        return np.abs(self.train.importance).mean(0) if len(self.train.prototypes) > 1 else None

    def words(self, prototype: int) -> str:
        """Return what a prototype is matched for, compared with the others."""
        values = self.train.importance[self.train.row(prototype)]
        return sentence(self.train.names, values, self.usual, self.colours.get(prototype))

    def rows(self) -> list[dict[str, Any]]:
        """Return a flat row a prototype: importance, times the usual one, importance over held-out pictures."""
        found = []
        for k, (key, owner) in enumerate(zip(self.train.prototypes, self.owners, strict=True)):
            row: dict[str, Any] = {"prototype": key, "class": owner, "words": self.words(key)}
            for m, name in enumerate(self.train.names):
                row[name] = float(self.train.importance[k, m])
                row[f"{name}_relative"] = float(self.train.relative[k, m]) if self.usual is not None else None
                if self.test is not None:
                    row[f"{name}_test"] = float(self.test.importance[k, m])
            found.append(row)
        return found

    def match_rows(self) -> list[dict[str, Any]]:
        """Return a flat row a match in the pictures asked about."""
        return [
            {
                "case": match.case,
                "predicted": match.predicted,
                "probability": match.probability,
                "prototype": match.row.prototype,
                "contribution": match.row.contribution,
                "words": match.words,
                **dict(zip(self.train.names, match.phi.tolist(), strict=True)),
            }
            for match in self.matches
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        told: dict[str, Any] = plain_json(
            {
                "facts": self.facts,
                "characteristics": self.train.names,
                "usual": self.usual,
                "prototypes": self.rows(),
                "generalises": [asdict(each) for each in self.generalises],
                "alike": [asdict(each) for each in self.alike],
                "matches": self.match_rows(),
                "notes": self.notes,
            }
        )
        return told


def characterise(
    model: PrototypeModel,
    train: CaseList,
    test: CaseList | None = None,
    pictures: Sequence[CaseList] = (),
    *,
    names: Sequence[str] = CHARACTERISTICS,
    strength: float = 1.0,
    most: int | None = 100,
    matches: int = 3,
    seed: int = 0,
    batch_size: int = 64,
    device: str | torch.device | None = None,
    quiet: bool = True,
) -> Characteristics:
    """Describe every usable prototype by what its similarity falls with, and check the description.

    Parameters
    ----------
    model : PrototypeModel
        Read, not changed.
    train : Cases
        Training pictures: importances are averaged over them, and colours named from the prototypes' own places.
    test : Cases, optional
        Held-out pictures, for the check of generalisation.
    pictures : sequence of Cases
        Pictures whose predictions are put into words, match by match.
    names, strength
        See :func:`~protolearn.explain.characteristics.global_characteristics`.
    most : int, optional
        At most so many pictures of either part are altered, drawn by the seed, those that prototypes come from left
        out: they match exactly, any alteration ends that, and the fall would tell the drawn sources from the others.
        None = all training pictures, sources included, as in the paper.
        Texture takes about a second for a photograph of 300 x 200 pixels; ``names`` can leave it out.
    matches : int
        Matches put into words for each of the pictures, those that add most to the predicted class.
    seed, batch_size, device, quiet
        As usual.

    Raises
    ------
    UsageError
        If the cases hold no pictures, or ``most`` or ``matches`` is below 1.

    Examples
    --------
    >>> from protolearn.data import digits
    >>> from protolearn.encoders import SmallEncoder
    >>> from protolearn.methods import get_method
    >>> model = get_method("protopnet")(prototypes_per_class=1, dim=8).build(SmallEncoder(), 10)
    >>> found = characterise(model, digits("train"), names=("hue", "contrast"), most=5)
    >>> found.train.cases, found.facts["of"], bool((found.train.importance[:, 0] == 0).all())
    (5, 1438, True)
    """
    if (most is not None and most < 1) or matches < 1:
        raise UsageError(f"most and matches must be at least 1, got {most} and {matches}")
    how: dict[str, Any] = {
        "names": names, "strength": strength, "seed": seed, "batch_size": batch_size, "device": device, "quiet": quiet,
    }  # fmt: skip
    own = _sources(model, train)
    others = [i for i in range(len(train)) if i not in own]
    left_out = most is not None and bool(own) and bool(others)
    chosen = _drawn(others if left_out else range(len(train)), most, seed)
    over = global_characteristics(model, train, chosen, **how)
    held = None
    if test is not None and len(test):
        held = global_characteristics(model, test, _drawn(range(len(test)), most, seed + 1), **how)
    rows = [model.bank.ids.tolist().index(key) for key in over.prototypes]
    owners = model.bank.owner()[rows].tolist()
    named = tuple(str(model.classes[o]) if o >= 0 else None for o in owners)
    found = Characteristics(
        train=over,
        test=held,
        owners=named,
        colours=_colours(model, train, rows),
        generalises=() if held is None else generalisation(over, held),
        alike=_alike(model, over, rows),
        matches=(),
        facts={
            "data": getattr(train, "name", "the data"), "cases": over.cases, "of": len(train),
            "sources_left_out": len(own) if left_out else 0,
            "test_cases": None if held is None else held.cases, "strength": strength, "seed": seed,
        },
        notes=_notes(train, over, chosen, bool(own) and not left_out),
    )  # fmt: skip
    told = [match for cases in pictures for match in _matches(found, model, cases, matches, how)]
    return replace(found, matches=tuple(told))


def generalisation(train: Global, test: Global) -> tuple[Generalises, ...]:
    """Compare importances of the same prototypes over two parts of the data, one characteristic at a time.

    Examples
    --------
    >>> draw = np.random.default_rng(0).normal(size=(30, 1))
    >>> first = Global(("hue",), tuple(range(30)), draw, 9)
    >>> (same,) = generalisation(first, Global(("hue",), tuple(range(30)), draw + 5.0, 9))
    >>> round(same.correlation, 6), same.p < 1e-6
    (1.0, True)
    """
    if train.names != test.names or train.prototypes != test.prototypes:
        raise UsageError("compare importances of the same characteristics and the same prototypes")
    found = []
    for m, name in enumerate(train.names):
        a, b = train.importance[:, m], test.importance[:, m]
        vary = len(a) > 1 and max(np.ptp(a), np.ptp(b)) > 0
        both = len(a) > 1 and min(np.ptp(a), np.ptp(b)) > 0
        welch = stats.ttest_ind(a, b, equal_var=False) if vary else None
        found.append(
            Generalises(
                name, float(a.mean()) if len(a) else math.nan, float(b.mean()) if len(b) else math.nan,
                _normal(a), _normal(b), None if welch is None else float(welch.statistic),
                None if welch is None else float(welch.pvalue),
                float(stats.pearsonr(a, b).statistic) if both else None,
            )
        )  # fmt: skip
    return tuple(found)


def _normal(values: np.ndarray) -> float | None:
    return float(stats.shapiro(values).pvalue) if 3 <= len(values) <= 5000 and np.ptp(values) > 0 else None


def _sources(model: PrototypeModel, train: CaseList) -> set[int]:
    """Return the positions of cases that some usable prototype is a token of."""
    bank = model.bank
    moved = {s.case for s, use in zip(bank.sources, bank.usable.tolist(), strict=True) if use and s and s.moved}
    return {i for i, case in enumerate(train.ids) if str(case) in moved}


def _drawn(places: Sequence[int], most: int | None, seed: int) -> list[int]:
    if most is None or len(places) <= most:
        return list(places)
    draw = torch.randperm(len(places), generator=torch.Generator().manual_seed(seed))
    return sorted(places[k] for k in draw[:most].tolist())


def _colours(model: PrototypeModel, train: CaseList, rows: Sequence[int]) -> dict[int, str]:
    painter, found = Painter(model, train), {}
    for row in rows:
        source = model.bank.sources[row]
        picture, _ = painter.source_picture(source)
        word = None if picture is None or source is None else hue_word(picture, source.region)
        if word is not None:
            found[int(model.bank.ids[row])] = word
    return found


def _alike(model: PrototypeModel, over: Global, rows: Sequence[int]) -> tuple[Alike, ...]:
    if len(rows) < 2 or not np.any(over.importance):
        return ()
    owners = model.bank.owner()[list(rows)].tolist()
    same = {frozenset((p.left, p.right)) for p in near_pairs(model.bank, model.measure)}
    same |= {frozenset((a, b)) for group in same_source(model.bank) for a in group for b in group if a < b}
    pairs, gaps = equal_profiles(torch.from_numpy(over.importance))
    return tuple(
        Alike(
            over.prototypes[a], over.prototypes[b], gap, owners[a] == owners[b] and owners[a] >= 0,
            frozenset((over.prototypes[a], over.prototypes[b])) in same,
        )
        for (a, b), gap in zip(pairs.tolist(), gaps.tolist(), strict=True)
    )  # fmt: skip


def _told(over: Global) -> tuple[bool, ...]:
    return tuple(np.any(over.importance, axis=0).tolist()) if over.prototypes else (False,) * len(over.names)


def _notes(train: CaseList, over: Global, chosen: Sequence[int], own: bool) -> tuple[str, ...]:
    notes = []
    if own:
        notes.append(
            "Among the altered pictures are those that prototypes come from. These match their prototype exactly, any "
            "alteration ends that, and by a logarithmic similarity such falls can outweigh all others."
        )
    if len(over.prototypes) < 2:
        notes.append("One prototype alone has no usual fall to be compared with: only its figures are given.")
    silent = [] if not over.prototypes else [n for n, k in zip(over.names, _told(over), strict=True) if not k]
    if silent:
        notes.append(f"Altering {', '.join(silent)} changed no similarity at all: not shown.")
    size = picture_of(train, chosen[0]).size if chosen else (SMALL, SMALL)  # type: ignore[union-attr]
    if min(size) < SMALL:
        notes.append(
            f"The first picture has {size[0]} x {size[1]} pixels. The waves that bend outlines are 4 pixels high and "
            "texture is smoothed over 21 pixels whatever the size, so these two are coarse here."
        )
    return tuple(notes)


def _matches(
    found: Characteristics, model: PrototypeModel, cases: CaseList, most: int, how: dict[str, Any]
) -> list[Match]:
    local, size = local_characteristics(model, cases, **how), found.train.size
    usual = None if size is None or len(size) < 2 else size.mean(0)
    told = []
    for i, argument in enumerate(explain(model, cases, batch_size=how["batch_size"])):
        for row in argument.top(most):
            phi = local.phi[i, local.prototypes.index(row.prototype)]
            words = sentence(local.names, phi, usual)
            name = str(model.classes[argument.predicted])
            told.append(Match(i, argument.case, name, argument.probability, row, phi, words))
    return told
