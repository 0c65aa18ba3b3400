"""Classification: how often, how evenly and how honestly a model is right."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from protolearn.audit.classification import ClassificationResult, ClassScore, score_logits
from protolearn.core.model import PrototypeModel
from protolearn.explain.passes import CaseList, run_over, track

__all__ = ["ClassScore", "ClassificationResult", "evaluate", "score_logits"]


def evaluate(
    model: PrototypeModel,
    cases: CaseList,
    indices: Sequence[int] | None = None,
    *,
    batch_size: int = 64,
    device: str | torch.device | None = None,
    workers: int = 0,
    quiet: bool = True,
) -> ClassificationResult:
    """Run a model over cases and score it; :func:`score_logits` does the same from logits.

    The model is left as it is. Labels are matched with the model's classes by name; unlabelled cases are left out and
    counted, and a class without cases has no recall rather than a recall of 0.

    Raises
    ------
    DataError
        If a labelled case has a class the model was not trained on.
    """
    logits, labels, ids = [np.zeros((0, len(model.classes)))], [np.zeros(0, np.int64)], []
    total = len(cases) if indices is None else len(indices)
    seen = run_over(model, cases, indices, batch_size=batch_size, device=device, workers=workers, strict_labels=True)
    for batch in track(seen, total, "evaluating", quiet=quiet):
        logits.append(batch.output.logits.double().cpu().numpy())
        labels.append(batch.labels.cpu().numpy())
        ids += [str(cases.ids[i]) for i in batch.indices]
    return score_logits(np.concatenate(logits), np.concatenate(labels), model.classes, ids)
