"""Has the model seen anything like this before? A score is fitted on known cases, calibrated on others, and judged.

Nothing here looks at foreign cases before they are judged: settings that were chosen by them would have to be chosen on
a set of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from protolearn.audit.bootstrap import DRAWS
from protolearn.audit.classification import score_logits
from protolearn.audit.ood import Convention, auroc_by_class, detect
from protolearn.audit.ood_result import KINDS, KNOWN, OODResult
from protolearn.core.scorer import Scorer, make_scorer
from protolearn.core.views import ModelViews, Views, views_of
from protolearn.data.cases import view_seed
from protolearn.errors import UsageError
from protolearn.explain.passes import CaseList, labels_for
from protolearn.tasks.novelty_passes import Desk, Seen, threshold_of

Spec = str | Mapping[str, Any] | Scorer
"""A score: its name, name and settings, or itself."""


def fit_novelty(
    model: Any,
    train: CaseList,
    score: Spec = "mahalanobis",
    *,
    held: CaseList | None = None,
    rate: float = 0.95,
    share: float = 0.2,
    seed: int = 0,
    batch_size: int = 64,
    device: str | torch.device | None = None,
    workers: int = 0,
    quiet: bool = True,
) -> Scorer:
    """Give a model a novelty score with a threshold, so that it can say "unknown".

    The score learns from training cases; the threshold is set so that ``rate`` of held-out known cases reach it. Cases
    that the model was trained on look more known than new ones of the same kind, so a threshold set on a part of the
    training data refuses more new cases than ``1 - rate``: give ``held``, known cases it has not seen, where you can.

    Parameters
    ----------
    model : PrototypeModel or Views
        A model of the library, whose ``scorer`` this sets (it is saved with the model), or another network behind
        ``core.views.NetworkViews``. Nothing else of it changes.
    train : Cases
        Known cases to learn from.
    score : str, mapping or Scorer
        Name, name and settings, or a score, which is fitted anew. ``core.scorer.SCORERS`` holds their names.
    held : Cases, optional
        Known cases to set the threshold by; without them a part of ``train`` is kept out of the fit for that.
    rate : float
        Share of known cases to accept.
    share, seed : float, int
        Of ``train`` to keep out of the fit where ``held`` is not given, and which: class by class, whole groups where
        the cases have groups.
    batch_size, device, workers, quiet
        As usual.

    Returns
    -------
    Scorer
        Fitted, with its threshold.

    Raises
    ------
    UsageError
        If there are no known cases to fit or to calibrate by, or the score cannot be worked out from them.
    DataError
        If features are all the same, or hold NaN: the case is named; or a case is of a class the model does not know.

    Examples
    --------
    >>> from protolearn.data import digits
    >>> from protolearn.encoders import SmallEncoder
    >>> from protolearn.methods import get_method
    >>> model = get_method("protopnet")(prototypes_per_class=1).build(SmallEncoder(), 10)
    >>> scorer = fit_novelty(model, digits("train").subset(range(200)), "knn", rate=0.9)
    >>> verdict = model.eval().novelty(torch.zeros(2, 3, 32, 32))
    >>> verdict.known.tolist()
    [False, False]
    """
    views = views_of(model)
    desk = Desk(views, batch_size, device, workers, quiet)
    scorer = _made(score)
    facts = desk.prepare([scorer], train, held, rate, share, seed)
    views.scorer = scorer
    if isinstance(views, ModelViews):
        views.model.metadata["novelty"] = {**facts, "score": scorer.spec(), "rate": rate}
    return scorer


def evaluate_ood(
    model: Any,
    known: CaseList,
    *,
    near: Mapping[str, CaseList] | None = None,
    far: Mapping[str, CaseList] | None = None,
    outside: Mapping[str, CaseList] | None = None,
    scores: Sequence[Spec] | None = None,
    train: CaseList | None = None,
    held: CaseList | None = None,
    rate: float = 0.95,
    share: float = 0.2,
    convention: Convention | None = None,
    examples: int = 4,
    draws: int = DRAWS,
    seed: int = 0,
    batch_size: int = 64,
    device: str | torch.device | None = None,
    workers: int = 0,
    quiet: bool = True,
) -> OODResult:
    """Measure how well scores tell known cases from foreign ones; each set is read once, whatever the number of scores.

    Parameters
    ----------
    model : PrototypeModel or Views
        As for :func:`fit_novelty`. It is left as it is.
    known : Cases
        New cases of the model's classes: not those it was trained on, nor those that scores were fitted on.
    near, far, outside : mapping of str to Cases
        Sets of foreign cases by name: like the known ones (other species, other products), unlike them, or not said.
        Means are taken over the sets of one kind only.
    scores : sequence, optional
        Scores that are fitted, or names and settings, which are fitted on ``train``; the model's own by default.
    train, held, rate, share, seed
        As for :func:`fit_novelty`, for scores that are not fitted yet.
    convention : Convention
        What the false positive rate means: known cases positive, by the ROC curve, unless said otherwise.
    examples : int
        So many of the most foreign cases, and of the foreign cases most taken for known, are kept to be shown.
    draws : int
        Resamplings behind each interval; 0 = none.
    batch_size, device, workers, quiet
        As usual.

    Returns
    -------
    OODResult
        Its ``table()``, ``rows()`` and ``to_json()`` tell; ``explain.report(novelty=...)`` shows it.

    Raises
    ------
    UsageError
        If a part of the data is empty, there is no set of foreign cases, or a score needs ``train``.

    Examples
    --------
    >>> from protolearn.data import digits
    >>> from protolearn.encoders import SmallEncoder
    >>> from protolearn.methods import get_method
    >>> model = get_method("protopnet")(prototypes_per_class=1).build(SmallEncoder(), 10)
    >>> cases = digits("test")
    >>> result = evaluate_ood(
    ...     model, cases.subset(range(40)), outside={"others": cases.subset(range(40, 60))}, scores=["energy"], draws=0
    ... )
    >>> result["energy", "others"].foreign
    20
    """
    views = views_of(model)
    sets, kinds = _sets(near, far, outside)
    if not len(known):
        raise UsageError("there are no known cases to compare with")
    if examples < 0 or draws < 0:
        raise UsageError(f"examples and draws must not be negative, got {examples} and {draws}")
    desk = Desk(views, batch_size, device, workers, quiet)
    asked = _asked(views, scores, fits=train is not None)
    fresh = [each.scorer for each in asked.values() if each.fresh]
    fitted: dict[str, Any] = {}
    if fresh and (train is not None or held is not None):
        fitted = desk.prepare(fresh, train, held, rate, share, seed)
    scorers = {label: each.scorer for label, each in asked.items()}
    seen = {part: desk.ask(scorers, cases, part, known=part == KNOWN) for part, cases in {KNOWN: known, **sets}.items()}
    how = convention or Convention()
    labels = labels_for(views, known)
    detections, by_class, by_foreign = {}, {}, {}
    for label in scorers:
        inside = seen[KNOWN].confidences[label]
        for name, cases in sets.items():
            foreign, mine = seen[name].confidences[label], np.asarray(cases.labels, dtype=np.int64)
            generator = torch.Generator().manual_seed(view_seed(seed, 0, name)) if draws else None
            detections[label, name] = detect(inside, foreign, convention=how, generator=generator, draws=draws)
            by_class[label, name] = _named(auroc_by_class(inside, foreign, labels), views.classes)
            by_foreign[label, name] = _named(auroc_by_class(inside, foreign, mine, of="foreign"), cases.classes)
    first = next(iter(scorers))
    said = {name: seen[name].confidences[first] for name in sets}
    return OODResult(
        facts={**desk.facts(known, sets, seed, draws), **({"fitted": fitted} if fitted else {})},
        classified=score_logits(
            seen[KNOWN].logits, labels, views.classes, [str(i) for i in known.ids], seen[KNOWN].probabilities
        ),
        convention=how,
        specs={label: each.spec() for label, each in scorers.items()},
        thresholds={label: threshold_of(each) for label, each in scorers.items()},
        kinds=kinds,
        cases={part: tuple(map(str, cases.ids)) for part, cases in {KNOWN: known, **sets}.items()},
        confidences={label: {part: each.confidences[label] for part, each in seen.items()} for label in scorers},
        detections=detections,
        by_class=by_class,
        by_foreign_class={key: found for key, found in by_foreign.items() if found},
        examples=tuple(desk.examples(scorers[first], said, sets, examples)),
        notes=tuple(_notes(views, sets, seen, fitted)),
        fitted=scorers,
    )


class _Asked(NamedTuple):
    scorer: Scorer
    fresh: bool
    """Made here, so that it may be fitted here."""


def _made(score: Spec) -> Scorer:
    return score if isinstance(score, Scorer) else make_scorer(score)


def _asked(views: Views, scores: Sequence[Spec] | None, *, fits: bool) -> dict[str, _Asked]:
    """Return the scores to ask, by label: the name, with settings where two have the same name."""
    if scores is None:
        if views.scorer is None:
            raise UsageError("this model has no novelty score yet: name scores, or fit one first with fit_novelty")
        scores = [views.scorer]
    if isinstance(scores, str | Mapping | Scorer):
        scores = [scores]
    asked = [_Asked(_made(score), not isinstance(score, Scorer)) for score in scores]
    if not asked:
        raise UsageError("name at least one score")
    for scorer, fresh in asked:
        learns = scorer.fits_inputs or type(scorer).fit is not Scorer.fit
        if fresh and learns and not fits:
            raise UsageError(f"the novelty score {scorer.name} learns from known cases: give train")
    made: dict[str, _Asked] = {}
    for each in asked:
        label = _label(each.scorer, [other.scorer for other in asked])
        if label in made:
            raise UsageError(f"the score {label} is asked for twice")
        made[label] = each
    return made


def _label(scorer: Scorer, others: Sequence[Scorer]) -> str:
    """Return the name of a score, with the settings in which it differs from others of the name."""
    mine, same = scorer.spec(), [other.spec() for other in others if other.name == scorer.name]
    told = [f"{key} {value}" for key, value in mine.items() if any(other[key] != value for other in same)]
    return f"{scorer.name} ({', '.join(told)})" if told else scorer.name


def _sets(*given: Mapping[str, CaseList] | None) -> tuple[dict[str, CaseList], dict[str, str]]:
    """Return the sets of foreign cases and the kind of each, by name."""
    sets: dict[str, CaseList] = {}
    kinds: dict[str, str] = {}
    for kind, some in zip(KINDS, given, strict=True):
        for name, cases in (some or {}).items():
            if name in sets or name == KNOWN:
                raise UsageError(f"two parts of the data are called {name!r}")
            if not len(cases):
                raise UsageError(f"the set {name!r} holds no cases")
            sets[name], kinds[name] = cases, kind
    if not sets:
        raise UsageError("there are no foreign cases to tell apart: give near, far or outside, sets by name")
    return sets, kinds


def _named(found: Mapping[int, float], classes: Sequence[str]) -> dict[str, float]:
    return {str(classes[k]): value for k, value in found.items()}


def _notes(
    views: Views, sets: Mapping[str, CaseList], seen: Mapping[str, Seen], fitted: Mapping[str, Any]
) -> Iterator[str]:
    if "share" in fitted:
        yield (
            f"thresholds were set on {fitted['calibrated']} of the cases given to fit on, kept out of the fit: if the "
            "model was trained on them, it refuses more of the new known cases than was asked for"
        )
    for name, cases in sets.items():
        shared = labels_for(views, cases)
        if (shared >= 0).any():
            first = views.classes[int(shared[shared >= 0][0])]
            yield (
                f"{int((shared >= 0).sum())} cases of {name!r} carry the name of a class the model knows ({first}): if "
                "they are of that class, they are no foreign cases"
            )
    for part, found in seen.items():
        if found.unclear:
            yield f"{found.unclear} confidences of {part!r} were not a number and count as lowest: unknown"
