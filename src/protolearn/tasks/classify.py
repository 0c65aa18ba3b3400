"""Classification: how often, how evenly and how honestly a model is right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from protolearn.audit.classification import ClassificationResult, ClassScore, score_draws, score_logits
from protolearn.core.model import PrototypeModel
from protolearn.core.sampling import doubt_of, rule_of
from protolearn.explain.passes import CaseList, run_over, track
from protolearn.structures import Output

__all__ = ["ClassScore", "ClassificationResult", "evaluate", "kept_scores", "score_logits"]


def evaluate(
    model: PrototypeModel,
    cases: CaseList,
    indices: Sequence[int] | None = None,
    *,
    batch_size: int = 64,
    device: str | torch.device | None = None,
    workers: int = 0,
    quiet: bool = True,
    run: Callable[[Tensor], Output] | None = None,
) -> ClassificationResult:
    """Run a model over cases and score it; :func:`score_logits` does the same from logits.

    The model is left as it is. Labels are matched with the model's classes by name; unlabelled cases are left out and
    counted, and a class without cases has no recall rather than a recall of 0. Where prototypes are distributions,
    ``drawn`` scores the prediction averaged over draws, and how many cases the model refuses if that was calibrated.
    ``run`` is as for :func:`~protolearn.explain.passes.run_over`: ``encoders.search.retrieval_for(model)`` spares the
    comparison with all of very many stored cases.

    Raises
    ------
    DataError
        If a labelled case has a class the model was not trained on.
    """
    none = np.zeros((0, len(model.classes)))
    logits, chances, labels, ids = [none], [none], [np.zeros(0, np.int64)], []
    total = len(cases) if indices is None else len(indices)
    right, doubts, refused = [np.zeros(0, bool)], [np.zeros((0, 3))], [np.zeros(0, bool)]
    seen = run_over(
        model, cases, indices, batch_size=batch_size, device=device, workers=workers, strict_labels=True, run=run
    )
    for batch in track(seen, total, "evaluating", quiet=quiet):
        logits.append(batch.output.logits.double().cpu().numpy())
        chances.append(batch.output.head.probabilities(batch.output.logits.double()).detach().cpu().numpy())
        labels.append(batch.labels.cpu().numpy())
        ids += [str(cases.ids[i]) for i in batch.indices]
        doubt = None if batch.output.tokens is None else doubt_of(model, batch.output.tokens)
        if doubt is not None:
            known = batch.labels >= 0
            right.append((doubt.mean.argmax(1) == batch.labels)[known].cpu().numpy())
            doubts.append(torch.stack(list(doubt.uncertainty), 1)[known].double().cpu().numpy())
            refused.append(known[known].cpu().numpy() if doubt.refused is None else doubt.refused[known].cpu().numpy())
    found = score_logits(np.concatenate(logits), np.concatenate(labels), model.classes, ids, np.concatenate(chances))
    if model.bank.law is None:
        return found
    by_rule = None if rule_of(model) is None else np.concatenate(refused)
    return replace(found, drawn=score_draws(np.concatenate(right), np.concatenate(doubts), by_rule))


def kept_scores(found: ClassificationResult, where: str, data: str) -> dict[str, Any]:
    """Return the scores that a model keeps; those on other than test cases are named after where they are from."""
    prefix = "" if where == "test" else f"{where}_"
    return {
        f"{prefix}accuracy": found.accuracy,
        f"{prefix}balanced_accuracy": found.balanced_accuracy,
        f"{prefix}calibration_error": found.ece,
        **({} if found.drawn is None else {f"{prefix}averaged_accuracy": found.drawn.accuracy}),
        "cases": found.n,
        "judged_on": f"{where} cases of {data}",
    }
