"""What a prototype looks at, in words: how its similarity falls when one visual characteristic of a picture is altered.

    local    phi_m(x, p) = g(x, p) - g_h(x altered by m, p),  h the place where x itself matched p best
    global   Phi_m(p) = sum over x of phi_m(x, p) g(x, p) / sum over x of g(x, p)

Source: Nauta et al., *This Looks Like That, Because ...*, 2021. The place is kept: with a free maximum a match that
moves would hide the fall. Large = the characteristic matters, near 0 = it does not, negative = the alteration makes the
picture more alike. Alterations differ in strength, so compare prototypes within one characteristic, or use
``relative``. Weights must not be negative: where a prototype's similarity goes below zero (cosine), its weights are
counted from its lowest value.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from protolearn.core.matching import chunk_rows
from protolearn.core.model import PrototypeModel
from protolearn.errors import DataError, UsageError
from protolearn.explain.passes import CaseList, pictured, plain_json, run_over, track
from protolearn.explain.perturb import CHARACTERISTICS, Perturbed, perturbation
from protolearn.structures import Tokens


@dataclass(frozen=True, eq=False)
class Local:
    """How much each characteristic matters for each prototype in each case.

    Attributes
    ----------
    names : tuple of str
        The M characteristics.
    cases : tuple of str
        Ids, N of them.
    prototypes : tuple of int
        Ids of usable prototypes, P of them.
    phi : ndarray
        ``(N, P, M)`` fall of the similarity at the place of the match.
    similarity : ndarray
        ``(N, P)`` in the unaltered picture, at that place.
    positions : ndarray
        ``(N, P)`` that place.
    free : ndarray
        ``(N, P, M)`` fall of the largest similarity anywhere; never above ``phi``.
    """

    names: tuple[str, ...]
    cases: tuple[str, ...]
    prototypes: tuple[int, ...]
    phi: np.ndarray
    similarity: np.ndarray
    positions: np.ndarray
    free: np.ndarray

    def words(self, case: int, prototype: int) -> str:
        """Return one prototype's match in one case in words, the characteristics that matter most first."""
        row = _row(self.prototypes, prototype)
        return f"prototype {prototype}: {in_words(self.names, self.phi[case, row])}"


@dataclass(frozen=True, eq=False)
class Global:
    """How much each characteristic matters for each prototype over a data set.

    Attributes
    ----------
    names : tuple of str
        The M characteristics.
    prototypes : tuple of int
        Ids of usable prototypes, P of them.
    importance : ndarray
        ``(P, M)`` float64.
    cases : int
        How many pictures were altered.
    size : ndarray, optional
        ``(P, M)`` mean over pictures of the size of the fall, whatever its sign: what a fall in one picture is to be
        compared with.
    """

    names: tuple[str, ...]
    prototypes: tuple[int, ...]
    importance: np.ndarray
    cases: int
    size: np.ndarray | None = None

    @property
    def relative(self) -> np.ndarray:
        """``(P, M)``: importance divided by its mean size over prototypes, one characteristic at a time."""
        usual = np.abs(self.importance).mean(0, keepdims=True) if len(self.prototypes) else 1.0
        return self.importance / np.where(usual > 0, usual, 1.0)

    def row(self, prototype: int) -> int:
        """Return the row of a prototype's id."""
        return _row(self.prototypes, prototype)

    def first(self, prototype: int, *, relative: bool = False) -> str:
        """Return the characteristic that matters most for a prototype."""
        table = self.relative if relative else self.importance
        return self.names[int(table[_row(self.prototypes, prototype)].argmax())]

    def words(self, prototype: int) -> str:
        """Return one prototype in words, the characteristics that matter most first."""
        return f"prototype {prototype}: {in_words(self.names, self.importance[_row(self.prototypes, prototype)])}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        told = {
            str(key): dict(zip(self.names, row, strict=True))
            for key, row in zip(self.prototypes, self.importance.tolist(), strict=True)
        }
        return {"cases": self.cases, "characteristics": list(self.names), "prototypes": plain_json(told)}


def in_words(names: Sequence[str], values: np.ndarray) -> str:
    """Return importances as text, largest first.

    Examples
    --------
    >>> in_words(("hue", "shape"), np.array([0.5, 2.0]))
    'shape +2.00, hue +0.50'
    """
    order = np.argsort(-values, kind="stable")
    return ", ".join(f"{names[m]} {0.0 + round(float(values[m]), 2):+.2f}" for m in order.tolist())


def local_characteristics(
    model: PrototypeModel,
    cases: CaseList,
    indices: Sequence[int] | None = None,
    *,
    names: Sequence[str] = CHARACTERISTICS,
    strength: float = 1.0,
    seed: int = 0,
    batch_size: int = 64,
    device: str | torch.device | None = None,
    quiet: bool = True,
) -> Local:
    """Alter pictures one characteristic at a time and say how much each prototype's similarity falls in each.

    Parameters
    ----------
    model, cases, indices
        What to look at; all cases by default.
    names : sequence of str
        Characteristics, see :mod:`protolearn.explain.perturb`.
    strength : float
        1 = the published settings; 0 alters nothing and gives zeros.
    seed : int
        For alterations that draw.
    batch_size, device, quiet
        As usual.

    Examples
    --------
    >>> from protolearn.data import digits
    >>> from protolearn.encoders import SmallEncoder
    >>> from protolearn.methods import get_method
    >>> model = get_method("protopnet")(prototypes_per_class=1, dim=8).build(SmallEncoder(), 10)
    >>> found = local_characteristics(model, digits("test"), [0, 1], names=("hue", "contrast"))
    >>> found.phi.shape, bool((found.phi[..., 0] == 0).all())
    ((2, 10, 2), True)
    """
    parts = list(_each(model, cases, indices, names, strength, seed, batch_size, device, quiet))
    places = [place for part in parts for place in part.indices]
    usable, count = model.bank.usable.cpu(), int(model.bank.usable.sum())

    def gathered(field: str, *shape: int) -> np.ndarray:
        whole = [getattr(part, field) for part in parts]
        return np.concatenate(whole) if whole else np.zeros((0, *shape))

    return Local(
        tuple(names), tuple(str(cases.ids[i]) for i in places), tuple(model.bank.ids.cpu()[usable].tolist()),
        gathered("phi", count, len(names)), gathered("similarity", count), gathered("positions", count),
        gathered("free", count, len(names)),
    )  # fmt: skip


def global_characteristics(
    model: PrototypeModel,
    cases: CaseList,
    indices: Sequence[int] | None = None,
    *,
    names: Sequence[str] = CHARACTERISTICS,
    strength: float = 1.0,
    seed: int = 0,
    batch_size: int = 64,
    device: str | torch.device | None = None,
    quiet: bool = True,
) -> Global:
    """Average the local importances over cases (the training set), each weighted by the prototype's similarity.

    One pass for each characteristic, holding one batch at a time; parameters as for :func:`local_characteristics`. A
    prototype that is alike to every case has equal weights.
    """
    usable = model.bank.usable.cpu()
    count = int(usable.sum())
    falls, weighted, sizes = (np.zeros((count, len(names))) for _ in range(3))
    weight, lowest, seen = np.zeros(count), np.full(count, np.inf), 0
    for part in _each(model, cases, indices, names, strength, seed, batch_size, device, quiet):
        falls += part.phi.sum(0)
        sizes += np.abs(part.phi).sum(0)
        weighted += (part.phi * part.similarity[..., None]).sum(0)
        weight += part.similarity.sum(0)
        lowest = np.minimum(lowest, part.similarity.min(0))
        seen += len(part.indices)
    if seen == 0:
        raise DataError(f"{getattr(cases, 'name', 'the data')}: no picture to alter")
    shift = np.minimum(lowest, 0.0)  # weights from the lowest similarity, so that none is negative
    total = weight - shift * seen
    plain = total <= 1e-12 * np.maximum(1.0, np.abs(weight))
    importance = np.where(
        plain[:, None], falls / seen, (weighted - shift[:, None] * falls) / np.where(plain, 1.0, total)[:, None]
    )
    return Global(tuple(names), tuple(model.bank.ids.cpu()[usable].tolist()), importance, seen, sizes / seen)


class _Part(NamedTuple):
    indices: list[int]
    phi: np.ndarray
    similarity: np.ndarray
    positions: np.ndarray
    free: np.ndarray


def _each(
    model: PrototypeModel,
    cases: CaseList,
    indices: Sequence[int] | None,
    names: Sequence[str],
    strength: float,
    seed: int,
    batch_size: int,
    device: str | torch.device | None,
    quiet: bool,
) -> Iterator[_Part]:
    """Yield batches: unaltered and altered pictures go through the model side by side."""
    if not pictured(cases):
        raise UsageError(
            f"{getattr(cases, 'name', 'the data')} holds features, and characteristics are of pictures: give the "
            "pictures, and a model whose encoder reads them"
        )
    if not names:
        raise UsageError(f"name at least one characteristic, of {', '.join(CHARACTERISTICS)}")
    how: dict[str, Any] = {"batch_size": batch_size, "device": device}
    altered = [Perturbed(cases, perturbation(name), strength, seed) for name in names]
    first = run_over(model, cases, indices, **how)
    others = [run_over(model, part, indices, **how) for part in altered]
    usable = model.bank.usable
    total = len(cases) if indices is None else len(indices)
    for seen in track(first, total, "altering pictures", quiet=quiet):
        tokens = seen.output.tokens
        assert tokens is not None  # a whole pass keeps them
        rows = usable.to(tokens.values.device)
        best, places = _largest(model, tokens)
        near, positions = best[:, rows], places[:, rows]
        falls, free = [], []
        for other in others:
            shown = next(other).output.tokens
            assert shown is not None
            fixed, largest = _at(model, shown, places)
            falls.append(_fall(near, fixed[:, rows]))
            free.append(_fall(near, largest[:, rows]))
        yield _Part(
            seen.indices,
            torch.stack(falls, -1).double().cpu().numpy(),
            near.masked_fill(torch.isneginf(near), 0.0).double().cpu().numpy(),
            positions.cpu().numpy(),
            torch.stack(free, -1).double().cpu().numpy(),
        )


def _fall(before: Tensor, after: Tensor) -> Tensor:
    """Return how much a similarity fell; 0 where an input has no real place, so that nothing matches at all."""
    return (before - after).masked_fill(torch.isneginf(before), 0.0)


def _chunks(model: PrototypeModel, tokens: Tokens) -> Iterator[tuple[slice, Tensor]]:
    """Yield maps ``(b, P, S)`` of a few cases at a time."""
    count = chunk_rows(4 * tokens.values.shape[1] * len(model.bank))
    for start in range(0, len(tokens.values), count):
        part = slice(start, start + count)
        yield part, model.maps(tokens.part(part))


def _largest(model: PrototypeModel, tokens: Tokens) -> tuple[Tensor, Tensor]:
    found = [maps.max(-1) for _, maps in _chunks(model, tokens)]
    return torch.cat([part.values for part in found]), torch.cat([part.indices for part in found])


def _at(model: PrototypeModel, tokens: Tokens, positions: Tensor) -> tuple[Tensor, Tensor]:
    fixed, largest = [], []
    for part, maps in _chunks(model, tokens):
        fixed.append(maps.gather(-1, positions[part].unsqueeze(-1)).squeeze(-1))
        largest.append(maps.amax(-1))
    return torch.cat(fixed), torch.cat(largest)


def _row(prototypes: tuple[int, ...], prototype: int) -> int:
    if not prototypes:
        raise UsageError(f"there is no usable prototype {prototype}, nor any other")
    if prototype not in prototypes:
        raise UsageError(f"there is no usable prototype {prototype}: ids go from {prototypes[0]} to {prototypes[-1]}")
    return prototypes.index(prototype)
