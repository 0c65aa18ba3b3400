"""Repair a model: merge, drop and ban prototypes, fit the last layer again, and measure before and after.

The model that is given stays as it is; the repaired one is a copy. A smaller model is not a better one by itself: look
at the two columns.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from protolearn.audit.metric import Metric
from protolearn.audit.redundancy import Use
from protolearn.core.model import PrototypeModel
from protolearn.core.modes import evaluating
from protolearn.core.projection import NearestTokens
from protolearn.core.votes import Votes
from protolearn.data.cases import Cases
from protolearn.errors import UsageError
from protolearn.explain.passes import device_of, inputs_over, labels_for, track
from protolearn.explain.survey import predicted_contribution
from protolearn.tasks.audit import QUICK, audit
from protolearn.tasks.classify import evaluate, kept_scores
from protolearn.tasks.repair_result import RepairResult
from protolearn.tasks.repair_steps import Change, ban_background, ban_named, drop, merge_twins
from protolearn.training.refit import refit_head

HEAT = "content_heat_share"
"""The metric by which background is found: the share of a prototype's heat that lies on the marked object."""


def repair(
    model: PrototypeModel,
    train: Cases,
    test: Cases | None = None,
    *,
    merge: bool = True,
    near: float = 0.02,
    drop_dead: bool = True,
    drop_impure: bool = True,
    k: int = 6,
    minimum: int = 3,
    ban: Sequence[int] = (),
    background: float | None = None,
    refit: bool = True,
    epochs: int = 50,
    rate: float = 1e-2,
    metrics: str | Sequence[str | Metric] | None = QUICK,
    seed: int = 0,
    batch_size: int = 64,
    device: str | None = None,
    quiet: bool = True,
) -> RepairResult:
    """Repair a copy of a model, and judge both.

    In this order: ban what a person names, ban background, merge twins, drop dead and impure prototypes, fit the last
    layer again. What is not changed is not fitted either: with nothing to repair the copy is equal. Fitting longer may
    help by itself, so the given model is judged a second time with its last layer fitted again and nothing else done.

    Parameters
    ----------
    model : PrototypeModel
        Stays as it is.
    train : Cases
        The training cases: how prototypes are used is seen on them, and the last layer is fitted to them.
    test : Cases, optional
        Other cases to judge both models by; without them both are judged on the training cases, and the result says so.
    merge, near : bool, float
        Merge prototypes of one class that stand on one token, or are nearer than ``near`` times a usual pair.
    drop_dead, drop_impure : bool
        Remove prototypes that bring nothing (:class:`~protolearn.audit.redundancy.Use`), or of whose ``k`` nearest
        training cases fewer than ``minimum`` are of their own class.
    ban : sequence of int
        Ids of prototypes that must not speak. They stay in the bank, and the ban can be lifted.
    background : float, optional
        Ban prototypes of whose heat more than this share lies outside the marked object, on average over the training
        cases of their class; the training cases need masks or boxes.
    refit, epochs, rate : bool, int, float
        Fit the last layer again, see :func:`~protolearn.training.refit.refit_head`.
    metrics : "all", "quick", sequence or None
        Of the audit before and after, see :func:`~protolearn.tasks.audit.audit`; None leaves it out.
    seed, batch_size, device, quiet
        As usual.

    Returns
    -------
    RepairResult

    Raises
    ------
    UsageError
        If a ban names what is not there or would leave a class without a prototype, if there is nothing to fit the last
        layer by, or if the training cases themselves are the prototypes.

    Examples
    --------
    >>> from protolearn.data import digits
    >>> from protolearn.encoders import SmallEncoder
    >>> from protolearn.methods import get_method
    >>> method = get_method("protopnet")(prototypes_per_class=2, dim=8)
    >>> model = method.build(SmallEncoder(), 10)
    >>> model.method, model.classes = method, digits("train").classes
    >>> few = digits("train").subset(range(80))
    >>> result = repair(model, few, ban=[3], merge=False, drop_dead=False, drop_impure=False, epochs=1, metrics=None)
    >>> [(change.action, change.prototype) for change in result.changes], result.prototypes
    ([('banned', 3)], (20, 19))
    """
    _check(model, train, near, k, minimum)
    where = device_of(model) if device is None else torch.device(device)
    model.to(where)
    made = copy.deepcopy(model)
    notes: list[str] = []
    changes = ban_named(made, ban)
    if background is not None:
        banned, even = _background(made, train, background, batch_size, quiet)
        changes += banned
        notes += even
    unmerged = copy.deepcopy(made, {id(made.encoder): made.encoder})
    twins: list[Change] = []
    if merge:
        twins, note = merge_twins(made, near)
        notes += [note] if note else []
    changes += twins
    if drop_dead and made.across is not None:
        drop_dead = False
        notes.append("dead prototypes stay: they compete with the others, whose evidence would change without them")
    shift = None
    if drop_dead or drop_impure or twins:
        use, nearest, moved = _looked(unmerged if twins else None, made, train, k, batch_size, quiet)
        shift = moved if twins else None
        counts = np.bincount(labels_for(made, train).clip(-1) + 1, minlength=len(made.classes) + 1)[1:]
        changes += drop(
            made, use, nearest, torch.from_numpy(counts), dead=drop_dead, impure=drop_impure, minimum=minimum
        )
    acted = any(change.action != "spared" for change in changes)
    fitted = refit and acted and bool(list(made.head.parameters()))
    if refit and acted and not fitted:
        notes.append(f"the last layer is not fitted again: a {type(made.head).__name__} has nothing to learn")
    alone = copy.deepcopy(model) if fitted else None
    for each in (made, alone) if alone is not None else ():
        options: dict[str, Any] = {"seed": seed, "batch_size": batch_size, "quiet": quiet, "device": str(where)}
        refit_head(each, train, epochs=epochs, rate=rate, **options)
    made.eval()
    cases = train if test is None else test
    if test is None:
        notes.append("judged on the training cases, which both models have seen")
    how: dict[str, Any] = {"batch_size": batch_size, "quiet": quiet}
    before, after = (evaluate(each, cases, **how) for each in (model, made))
    audits = None
    if metrics is not None:
        audits = tuple(audit(each, cases, train, metrics=metrics, seed=seed, **how) for each in (model, made))
    judged = "training" if test is None else "test"
    result = RepairResult(
        model=made,
        changes=tuple(changes),
        before=before,
        after=after,
        prototypes=(int(model.bank.usable.sum()), int(made.bank.usable.sum())),
        judged_on=f"{judged} cases of {cases.name}",
        shift=shift,
        refitted=None if alone is None else evaluate(alone, cases, **how),
        audits=audits,  # type: ignore[arg-type]
        notes=tuple(notes),
    )
    if acted:
        made.metadata["repairs"] = [*made.metadata.get("repairs", []), result.record()]
        made.metadata["metrics"] = kept_scores(after, judged, cases.name)
    return result


def _check(model: PrototypeModel, train: Cases, near: float, k: int, minimum: int) -> None:
    if not 0 <= near < 1 or k < 1 or not 0 <= minimum <= k:
        raise UsageError(f"expected 0 <= near < 1 and 0 <= minimum <= k, got {near}, {minimum} and {k}")
    if model.bank.drawn:
        raise UsageError("the prototypes of this model are drawn from each input: there is nothing to repair")
    if isinstance(model.head, Votes):
        raise UsageError(
            "in this model the training cases themselves vote: there is nothing to merge or to fit again; ban cases "
            "with model.bank.ban"
        )
    if not len(train):
        raise UsageError("a repair needs the training cases, got none")


def _background(
    model: PrototypeModel, train: Cases, limit: float, batch_size: int, quiet: bool
) -> tuple[list[Change], list[str]]:
    """Ban prototypes that look at the background of the training cases; say how much of the pictures that is."""
    found = audit(model, train, metrics=[HEAT], batch_size=batch_size, quiet=quiet)[HEAT]
    assert found.per_prototype is not None
    area = found.extras.get("object's share of the picture, mean")
    even = [] if area is None else [f"the background takes {1 - area:.0%} of the pictures, and of evenly spread heat"]
    return ban_background(model, 1.0 - found.per_prototype, limit), even


def _looked(
    other: PrototypeModel | None, model: PrototypeModel, train: Cases, k: int, batch_size: int, quiet: bool
) -> tuple[Use, Any, float]:
    """Return how prototypes are used, the nearest training cases, and the largest difference to the other's scores.

    The encoder runs once: both models read its tokens.
    """
    where = device_of(model)
    labels = torch.from_numpy(labels_for(model, train, strict=True))
    use, largest = Use(len(model.bank)), 0.0
    search = NearestTokens(model.bank, model.measure, k, own_class=False, compare=model.compare)
    shown = inputs_over(train, getattr(model.encoder, "preprocess", None), batch_size=batch_size)
    with evaluating(model), torch.no_grad():
        for batch in track(shown, len(train), "looking at prototypes", quiet=quiet):
            encoded = model.encode(batch.inputs.to(where))
            out = model.run(encoded)
            assert out.tokens is not None
            use.update(out.evidence, predicted_contribution(out), model.bank.usable)
            part = torch.tensor(batch.indices)
            search.update(out.tokens, labels[part].to(where), part.to(where))
            if other is not None:
                with evaluating(other):
                    largest = max(largest, float((other.run(encoded).logits - out.logits).abs().max()))
    return use, search.result, largest
