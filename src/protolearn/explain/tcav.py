"""Testing with concept activation vectors: whether a class, or a prototype, depends on a concept that a person shows.

The person gives examples of a concept (striped things) and a pool of random examples. A linear separator in a layer's
activations ``h`` gives a direction ``v``; the derivative of the logit or similarity along it, ``S(x) = grad_h(x) . v``,
says whether a step towards the concept raises it at ``x``.

    TCAV score = share of inputs with S(x) > 0

Source: Kim et al., ICML 2018 (arXiv 1711.11279). A score of 0.5 means nothing by itself, nor does one of 1: where the
gradient hardly changes from input to input, *any* direction scores 0 or 1. So a score is judged three times:

1. The separator must separate, on held-out examples. A direction at chance means nothing.
2. Over many random counterparts, scores must differ from those of random against random: Welch's two-sided t-test,
   Bonferroni-corrected over concepts. That is the published test (theirs assumes equal variances). It takes runs for
   independent, though every run has the same concept examples, so it is too sure: a few dozen examples lean to one side
   by chance, and every run inherits that lean.
3. So a number of *placebos*, random sets treated just like a concept, say how strong a derivative chance alone brings;
   the concept's must be stronger than almost all of them. This counts sizes, not signs.

What remains is no proof of cause: a concept's examples may differ from random ones in something else as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from protolearn.core.model import PrototypeModel
from protolearn.errors import DataError, UsageError
from protolearn.explain.cav import Cav, Layer, activations, gradients, separate
from protolearn.explain.gradients import classes_of, rows_of, sound
from protolearn.explain.passes import device_of
from protolearn.explain.tcav_result import RANDOM, ConceptScore, Tcav

PLACEBO_RUNS = 5
LEAST = 6
"""Examples below which nothing is fitted: two thirds are learned from, the rest is held out."""


def tcav(
    model: PrototypeModel,
    concepts: Mapping[str, Tensor],
    random: Tensor,
    inputs: Tensor,
    *,
    target: int | str | None = None,
    prototype: int | None = None,
    layer: Layer | None = None,
    relative: bool = False,
    repeats: int = 20,
    placebos: int = 39,
    size: int | None = None,
    separator: str = "sgd",
    alpha: float = 0.01,
    level: float = 0.05,
    least_accuracy: float = 0.6,
    batch_size: int = 64,
    seed: int = 0,
) -> Tcav:
    """Test whether a class's logit, or a prototype's similarity, depends on concepts.

    Parameters
    ----------
    model : PrototypeModel
        Left as it is, gradients of its parameters included.
    concepts : mapping of str to Tensor
        Examples ``(n, ...)`` of each concept as the encoder takes them; fifty or more make a stable direction.
    random : Tensor
        ``(M, ...)`` a pool that random counterparts are drawn from anew in every run.
    inputs : Tensor
        ``(N, ...)`` where derivatives are taken: cases of the class, usually.
    target : int or str, optional
        A class: its logit is asked about.
    prototype : int, optional
        An id: its similarity is asked about instead.
    layer : Layer, optional
        Where; by default the encoder's tokens, flattened.
    relative : bool
        Tell each concept from the other concepts instead of from random sets.
    repeats : int
        Runs of each concept, and of random against random.
    placebos : int
        Random sets treated as concepts; 0 leaves the third judgement out. The smallest ``p`` they can give is
        ``1 / (placebos + 1)``.
    size : int, optional
        Examples on either side of a separator; by default as many as the smallest concept has, and at most half the
        random pool. From larger sets so many are drawn in every run.
    separator, alpha
        See :func:`protolearn.explain.cav.separate`.
    level : float
        Largest ``p`` that counts as significant, of both tests.
    least_accuracy : float
        Mean held-out accuracy below which a separator is at chance.
    batch_size : int
        Inputs that go through the model at a time.
    seed : int
        Of every draw.

    Returns
    -------
    Tcav
        With a table for a person and plain types for a file.

    Raises
    ------
    UsageError
        If a name or setting cannot be right.
    DataError
        If there are too few examples.

    Examples
    --------
    >>> from protolearn.encoders import SmallEncoder
    >>> from protolearn.methods import get_method
    >>> model = get_method("protopnet")(prototypes_per_class=1, dim=8).build(SmallEncoder(16, size=16), 2)
    >>> draw = torch.Generator().manual_seed(0)
    >>> pool = torch.rand(60, 3, 16, 16, generator=draw)
    >>> found = tcav(model, {"bright": pool[:20] + 0.5}, pool, pool[:5], target=1, repeats=4, placebos=0)
    >>> found.concepts[0].scores.shape, bool(found.concepts[0].accuracy.mean() > 0.9)
    ((4,), True)
    """
    layer = Layer() if layer is None else layer
    _check(concepts, relative, repeats, placebos, level)
    if (target is None) == (prototype is None):
        raise UsageError("name a target class or a prototype, and not both")
    inputs = sound(inputs, pictures=False).to(device_of(model))
    if not len(inputs):
        raise DataError("there is no input to take derivatives at")
    if target is not None:
        what, rows = "logit", classes_of(model, target, len(inputs))
        asked = f"logit of class {model.classes[int(rows[0])]}"
    else:
        assert prototype is not None
        what, rows, asked = "similarity", rows_of(model, prototype, len(inputs)), f"similarity to prototype {prototype}"
    shown = {name: activations(model, sound(x, pictures=False), layer, batch_size=batch_size)
             for name, x in concepts.items()}  # fmt: skip
    pool = activations(model, sound(random, pictures=False), layer, batch_size=batch_size)
    size = _size({name: len(x) for name, x in shown.items()}, len(pool), size)

    def told(values: np.ndarray, others: np.ndarray, run: int) -> Cav:
        labels = np.arange(2 * size) < size
        return separate(np.concatenate([values, others]), labels, separator=separator, alpha=alpha, seed=run)

    draw = np.random.default_rng(seed)
    cavs = [told(*sets, run) for run, sets in enumerate(_sets(shown, pool, size, relative, repeats, placebos, draw))]
    directions = torch.from_numpy(np.stack([cav.vector for cav in cavs], 1)).float()
    accuracy = np.array([cav.accuracy for cav in cavs])
    signs, mean, spread, align, still = _derivatives(
        lambda: gradients(model, inputs, what, rows, layer, batch_size=batch_size), directions
    )
    runs = [slice(k * repeats, (k + 1) * repeats) for k in range(len(shown) + 1)]
    chance = align[len(runs) * repeats :].reshape(placebos, -1).mean(1) if placebos else None
    made = []
    for name, run in zip(shown, runs, strict=False):
        p = different(signs[run], signs[runs[-1]])
        corrected, own = min(1.0, p * len(shown)), float(align[run].mean())
        placebo = None if chance is None else float((1 + (np.abs(chance) >= abs(own)).sum()) / (1 + placebos))
        doubts = _doubts(accuracy[run].mean() < least_accuracy, corrected >= level,
                         placebo is not None and placebo > level)  # fmt: skip
        made.append(
            ConceptScore(
                concept=name,
                against="the other concepts" if relative else RANDOM,
                scores=signs[run],
                accuracy=accuracy[run],
                derivative=mean[run],
                spread=spread[run],
                alignment=own,
                p=p,
                p_corrected=corrected,
                p_placebo=placebo,
                doubts=doubts,
            )
        )
    return Tcav(
        asked=asked,
        layer=layer,
        concepts=tuple(made),
        random_scores=signs[runs[-1]],
        random_accuracy=accuracy[runs[-1]],
        inputs=len(inputs),
        size=size,
        placebos=placebos,
        seed=seed,
        notes=_notes(still, len(inputs), size, len(pool), repeats, placebos),
    )


def different(scores: np.ndarray, others: np.ndarray) -> float:
    """Return the two-sided p of Welch's t-test; 1 for equal constants, 0 for different ones.

    Examples
    --------
    >>> different(np.ones(4), np.ones(4)), different(np.ones(4), np.zeros(4))
    (1.0, 0.0)
    """
    means = [float(values.mean()) for values in (scores, others)]
    spreads = [float(values.std(ddof=1)) if np.ptp(values) > 1e-12 else 0.0 for values in (scores, others)]
    if not any(spreads):
        return float(abs(means[0] - means[1]) <= 1e-12)
    from scipy.stats import ttest_ind_from_stats

    found = ttest_ind_from_stats(means[0], spreads[0], len(scores), means[1], spreads[1], len(others), equal_var=False)
    return float(found.pvalue)


def _sets(
    shown: Mapping[str, np.ndarray],
    pool: np.ndarray,
    size: int,
    relative: bool,
    repeats: int,
    placebos: int,
    draw: np.random.Generator,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield what is told from what: each concept's runs, random against random, then each placebo's runs."""

    def some(values: np.ndarray) -> np.ndarray:
        return values[draw.permutation(len(values))[:size]]

    for name, values in shown.items():
        others = np.concatenate([v for other, v in shown.items() if other != name]) if relative else pool
        for _ in range(repeats):
            yield some(values), some(others)
    for _ in range(repeats):
        order = draw.permutation(len(pool))
        yield pool[order[:size]], pool[order[size : 2 * size]]
    for _ in range(placebos):
        order = draw.permutation(len(pool))
        fixed, rest = pool[order[:size]], pool[order[size:]]
        for _ in range(min(repeats, PLACEBO_RUNS)):
            yield fixed, some(rest)


def _derivatives(
    slopes: Callable[[], Iterator[Tensor]], directions: Tensor
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int]:
    """Return share above 0, mean, spread and mean cosine ``(J,)`` along J directions, and how many inputs are flat."""
    parts, cosines, still = [], [], 0
    for slope in slopes():
        along = (slope.float() @ directions.to(slope.device)).double().cpu()
        long = slope.double().norm(dim=1, keepdim=True).cpu()
        still += int((long == 0).sum())
        parts.append(along)
        cosines.append(along / torch.where(long > 0, long, 1.0))
    found = torch.cat(parts)
    return (
        (found > 0).double().mean(0).numpy(),
        found.mean(0).numpy(),
        found.std(0, correction=0).numpy(),
        torch.cat(cosines).mean(0).numpy(),
        still,
    )


def _size(counts: Mapping[str, int], pool: int, size: int | None) -> int:
    smallest = min(counts, key=lambda name: counts[name])
    most = min(counts[smallest], pool // 2)
    if most < LEAST:
        what = f"concept {smallest!r} has {counts[smallest]} examples" if counts[smallest] <= pool // 2 else ""
        what = what or f"the random pool has {pool} examples, and two sets are drawn from it"
        raise DataError(f"{what}: a separator needs at least {LEAST} of either side")
    if size is None:
        return most
    if not LEAST <= size <= most:
        raise UsageError(f"size must lie between {LEAST} and {most}, what the examples allow, got {size}")
    return size


def _check(concepts: Mapping[str, Tensor], relative: bool, repeats: int, placebos: int, level: float) -> None:
    if len(concepts) < (2 if relative else 1):
        raise UsageError("give examples of a concept" if not relative else "a relative test needs two concepts or more")
    if RANDOM in concepts:
        raise UsageError(f"a concept cannot be called {RANDOM!r}: that is what the others are compared with")
    if repeats < 2 or placebos < 0:
        raise UsageError(f"repeats must be at least 2 and placebos at least 0, got {repeats} and {placebos}")
    if not 0 < level < 1:
        raise UsageError(f"level must lie between 0 and 1, got {level}")
    if placebos and 1 / (placebos + 1) > level:
        raise UsageError(f"{placebos} placebos cannot show p <= {level}: take {int(np.ceil(1 / level)) - 1}, or 0")


def _doubts(at_chance: bool, alike: bool, weak: bool) -> tuple[str, ...]:
    said = {"separator near chance": at_chance, "not significant": alike, "no stronger than placebos": weak}
    return tuple(words for words, doubtful in said.items() if doubtful)


def _notes(still: int, inputs: int, size: int, pool: int, repeats: int, placebos: int) -> tuple[str, ...]:
    notes = []
    if still:
        notes.append(f"{still} of {inputs} inputs have no gradient at this layer; they count as not rising.")
    if repeats * size > pool:
        notes.append(f"{repeats} sets of {size} from a pool of {pool} overlap: the t-test takes them for independent.")
    if not placebos:
        notes.append("No placebos: the t-test alone calls chance directions of a fixed set of examples significant.")
    return tuple(notes)
