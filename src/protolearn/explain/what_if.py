"""What would change over a data set if some prototypes were banned, removed or given another weight."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from protolearn.audit.classification import ClassificationResult, score_logits
from protolearn.core.model import PrototypeModel
from protolearn.core.modes import evaluating
from protolearn.explain.alter import Alteration, altered, answer_of
from protolearn.explain.passes import CaseList, plain_json, run_over, track
from protolearn.structures import Output


@dataclass(frozen=True)
class Flip:
    """A case that is answered otherwise.

    Attributes
    ----------
    case : str
        Its id.
    label : str or None
        Its class; None = unlabelled.
    before, after : str or None
        The predicted classes; None where the model says that it does not know.
    probability_before, probability_after : float
        Of the class predicted before.
    """

    case: str
    label: str | None
    before: str | None
    after: str | None
    probability_before: float
    probability_after: float

    @property
    def kind(self) -> str:
        """``broken`` (was right), ``repaired`` (is right now), ``other`` (wrong both times) or ``unlabelled``."""
        if self.label is None:
            return "unlabelled"
        return "broken" if self.before == self.label else "repaired" if self.after == self.label else "other"

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {**vars(self), "kind": self.kind}


@dataclass(frozen=True, eq=False)
class WhatIf:
    """The answers of a model and of an altered copy of it.

    Attributes
    ----------
    alteration : Alteration
        What is other in the copy.
    before, after : ClassificationResult
        Scores over the labelled cases.
    flips : tuple of Flip
        Cases with another answer, labelled or not, in the order of the data.
    cases : int
        How many were asked about.
    abstained_before, abstained_after : int
        Cases in which nothing speaks for any class. A flip has no class there; the scores read the first class, as
        ``evaluate`` does, so that the two may differ by so many cases.
    ids : tuple of str
        Of the cases.
    probabilities_before, probabilities_after : ndarray
        ``(N, C)``.
    notes : tuple of str
        What a reader must know.
    """

    alteration: Alteration
    before: ClassificationResult
    after: ClassificationResult
    flips: tuple[Flip, ...]
    cases: int
    abstained_before: int
    abstained_after: int
    ids: tuple[str, ...]
    probabilities_before: np.ndarray
    probabilities_after: np.ndarray
    notes: tuple[str, ...] = ()

    @property
    def counts(self) -> dict[str, int]:
        """How many flips there are of each kind."""
        found = Counter(flip.kind for flip in self.flips)
        return {kind: found[kind] for kind in ("broken", "repaired", "other", "unlabelled")}

    @property
    def p_value(self) -> float | None:
        """McNemar's exact test, two-sided: broken against repaired, if either were as likely; None without any."""
        broken, repaired = self.counts["broken"], self.counts["repaired"]
        if broken + repaired == 0:
            return None
        from scipy.stats import binomtest

        return float(binomtest(broken, broken + repaired).pvalue)

    @property
    def largest_shift(self) -> float | None:
        """Largest change of any class's probability in any case; None without cases."""
        if not len(self.ids):
            return None
        return float(np.abs(self.probabilities_after - self.probabilities_before).max())

    def per_class(self) -> dict[str, tuple[float | None, float | None, int]]:
        """Return recall before and after, and the number of cases, by class."""
        pairs = zip(self.before.per_class, self.after.per_class, strict=True)
        return {old.name: (old.recall, new.recall, old.count) for old, new in pairs}

    def summary(self) -> str:
        """Return one line."""
        counts = self.counts
        told = [f"{len(self.flips)} of {self.cases} answers change"]
        if self.before.accuracy is not None and self.after.accuracy is not None:
            told.append(f"accuracy {self.before.accuracy:.4f} -> {self.after.accuracy:.4f}")
            told.append(f"{counts['broken']} broken, {counts['repaired']} repaired, {counts['other']} wrong otherwise")
        if self.p_value is not None:
            told.append(f"exact McNemar p = {self.p_value:.2g}")
        if self.abstained_after or self.abstained_before:
            told.append(f"without an answer {self.abstained_before} -> {self.abstained_after}")
        return f"{self.alteration.words()}: {'; '.join(told)}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        per_class = {
            name: {"n": count, "recall_before": old, "recall_after": new}
            for name, (old, new, count) in self.per_class().items()
        }
        return plain_json(
            {
                "alteration": self.alteration.to_dict(),
                "cases": self.cases,
                "before": self.before.to_dict(),
                "after": self.after.to_dict(),
                "abstained": {"before": self.abstained_before, "after": self.abstained_after},
                "counts": self.counts,
                "p_value": self.p_value,
                "largest_shift": self.largest_shift,
                "per_class": per_class,
                "notes": list(self.notes),
                "flips": [flip.to_dict() for flip in self.flips],
            }
        )


def what_if(
    model: PrototypeModel,
    cases: CaseList,
    alteration: Alteration,
    indices: Sequence[int] | None = None,
    *,
    batch_size: int = 64,
    device: str | torch.device | None = None,
    workers: int = 0,
    quiet: bool = True,
) -> WhatIf:
    """Ask a model and an altered copy of it about the same cases; the model is left as it is.

    Parameters
    ----------
    model, cases, indices
        As for :func:`~protolearn.explain.explain.explain`. Cases without a label are asked about too.
    alteration : Alteration
        What is other in the copy. Nothing is trained again: the head keeps weights that were learned in the presence
        of what is missing now.
    batch_size, device, workers, quiet
        As usual.

    Raises
    ------
    UsageError
        As for :func:`~protolearn.explain.alter.altered`.
    DataError
        If a labelled case has a class the model was not trained on.

    Examples
    --------
    >>> from protolearn.data import digits
    >>> from protolearn.encoders import SmallEncoder
    >>> from protolearn.methods import get_method
    >>> model = get_method("protopnet")(prototypes_per_class=2).build(SmallEncoder(), 10)
    >>> found = what_if(model, digits("test").subset(range(20)), Alteration(ban=tuple(range(20))))
    >>> sorted(set(flip.after for flip in found.flips)) <= ["0"], found.cases
    (True, 20)
    """
    model.to(model.bank.ids.device if device is None else torch.device(device))
    other = altered(model, alteration, share=True)
    total = len(cases) if indices is None else len(indices)
    sides: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    labels, ids = [np.zeros(0, np.int64)], []
    gone = ~torch.isin(model.bank.ids, other.bank.ids[other.bank.usable]) & model.bank.usable
    below = matches = 0
    seen = run_over(
        model, cases, indices, batch_size=batch_size, device=device, workers=workers, strict_labels=True
    )  # fmt: skip
    for batch in track(seen, total, "asking twice", quiet=quiet):
        with evaluating(other):
            outputs = batch.output, answer_of(other, batch.output)
        evidence = batch.output.evidence.detach()[:, gone]
        below, matches = below + int((evidence < 0).sum()), matches + evidence.numel()
        for side, output in zip(sides, outputs, strict=True):
            side.append(_answers(output))
        labels.append(batch.labels.cpu().numpy())
        ids += [str(cases.ids[i]) for i in batch.indices]
    none = np.zeros((0, 2 * len(model.classes) + 1))
    tables = [np.concatenate([none, *side]) for side in sides]
    result = _result(model, alteration, tables, np.concatenate(labels), ids)
    return replace(result, notes=_notes(below, matches) if "evidence" in model.head.reads else ())


def _notes(below: int, matches: int) -> tuple[str, ...]:
    if below == 0:
        return ()
    share = f"what is gone brought evidence below 0 in {below / matches:.0%} of its matches"
    return (f"{share}; out of use it brings 0, which there speaks for what it spoke for",)


def _answers(output: Output) -> np.ndarray:
    """Return ``(B, 2 C + 1)``: logits, probabilities, and 1 where the model abstains."""
    logits = output.logits.detach().double()
    parts = [logits, output.head.probabilities(logits).detach(), output.head.abstains(output.logits).unsqueeze(1)]
    return torch.cat([part.double() for part in parts], 1).cpu().numpy()


def _result(
    model: PrototypeModel, alteration: Alteration, tables: list[np.ndarray], labels: np.ndarray, ids: list[str]
) -> WhatIf:
    names, size = model.classes, len(model.classes)
    logits = [table[:, :size] for table in tables]
    chances = [table[:, size : 2 * size] for table in tables]
    silent = [table[:, -1] > 0 for table in tables]
    answers = [np.where(quiet, -1, each.argmax(1)) for each, quiet in zip(logits, silent, strict=True)]
    scored = [score_logits(each, labels, names, ids, p) for each, p in zip(logits, chances, strict=True)]
    flips = []
    for i in np.flatnonzero(answers[0] != answers[1]).tolist():
        first = int(logits[0][i].argmax())
        old, new = (None if answer[i] < 0 else names[answer[i]] for answer in answers)
        label = None if labels[i] < 0 else names[labels[i]]
        flips.append(Flip(ids[i], label, old, new, float(chances[0][i, first]), float(chances[1][i, first])))
    return WhatIf(
        alteration=alteration,
        before=scored[0],
        after=scored[1],
        flips=tuple(flips),
        cases=len(ids),
        abstained_before=int(silent[0].sum()),
        abstained_after=int(silent[1].sum()),
        ids=tuple(ids),
        probabilities_before=chances[0],
        probabilities_after=chances[1],
    )
