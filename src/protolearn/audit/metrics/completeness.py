"""Whether what is shown is what decides, and whether a person could follow, as metrics."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from protolearn.audit.bootstrap import mean_interval, mean_of
from protolearn.audit.cases import CaseValues, numbers
from protolearn.audit.completeness import FOLDS, scores_of_largest, scores_of_shown, student
from protolearn.audit.metric import About, Metric, Score, Seen, Setting, metric
from protolearn.errors import UsageError


@metric(
    About(
        name="completeness",
        title="Predictions that the shown prototypes alone give",
        variant="share of the cases in which the prototypes that contribute most to the predicted class, for or "
        "against (5 of them; 1 and 3 beside it), give the same class when all others are left out of every class score",
        source="ours, after the completeness of Co-12 (Nauta et al. 2023)",
        better="higher",
        unit="0-1",
    )
)
@dataclass
class Completeness(Metric):
    """How much of the decision an explanation of a few prototypes holds."""

    shown: int = 5
    others: tuple[int, ...] = (1, 3)

    def start(self, setting: Setting) -> None:
        """Get ready."""
        super().start(setting)
        self._numbers = sorted({self.shown, *self.others})
        if self._numbers[0] < 1:
            raise UsageError(f"how many prototypes are shown must be at least 1, got {self._numbers[0]}")
        self._cases = CaseValues()
        self._falling = 0

    def update(self, seen: Seen) -> None:
        """Take in a batch."""
        look, offset = seen.look, self.setting.subject.offset.to(seen.look.logits.device)
        for part, table in look.ledgers():
            table = numbers(table, "contributions", seen.indices[part], seen.part)
            predicted = look.predicted[part]
            some = scores_of_shown(table, offset, predicted, self._numbers).argmax(2).T
            largest = scores_of_largest(table, offset, self._numbers).argmax(2).T
            rows = torch.arange(len(table), device=table.device)
            whole = table.sum(2, dtype=torch.float64) + offset
            self._falling += int((table[rows, predicted].sum(1) < 0).sum())
            self._cases.add(
                seen.part,
                seen.indices[part],
                same=some == predicted.unsqueeze(1),
                right=some == seen.labels[part].unsqueeze(1),
                same_largest=largest == predicted.unsqueeze(1),
                right_largest=largest == seen.labels[part].unsqueeze(1),
                gap=(whole - look.logits[part]).abs().amax(1),
                whole=whole.argmax(1) == predicted,
                labels=seen.labels[part],
            )

    def result(self) -> Score:
        """Return the share of unchanged predictions."""
        same = self._cases.of("cases", "same").double()
        if not len(same):
            return Score(None, notes=("No case was shown.",))
        labelled = self._cases.of("cases", "labels") >= 0
        at = self._numbers.index(self.shown)
        each = same[:, at]
        return Score(
            mean_of(each),
            per_case=each,
            over_cases=mean_interval(each, self.setting.generator),
            counts={"cases": len(each), "labelled cases": int(labelled.sum())},
            extras={
                "same prediction, by prototypes shown": self._by_number("same"),
                "accuracy, by prototypes shown": self._by_number("right", labelled),
                "same prediction, by prototypes of every class": self._by_number("same_largest"),
                "accuracy, by prototypes of every class": self._by_number("right_largest", labelled),
                "same prediction, all prototypes": mean_of(self._cases.of("cases", "whole")),
                "largest gap between score and sum of contributions": float(self._cases.of("cases", "gap").max()),
            },
            notes=self._notes(),
        )

    def _notes(self) -> tuple[str, ...]:
        notes = [
            "The shown prototypes are chosen by the prediction, which favours it, above all where classes own theirs.",
            "See also the same by the largest contributions to every class.",
        ]
        if self._falling:
            notes.append(
                f"In {self._falling} cases the contributions to the predicted class sum to less than 0: leaving a "
                "prototype out then raises a score, of this class or another, and the figure says little."
            )
        return tuple(notes)

    def _by_number(self, name: str, kept: torch.Tensor | None = None) -> dict[str, float | None]:
        table = self._cases.of("cases", name)
        table = table if kept is None else table[kept]
        return {str(number): mean_of(table[:, k]) for k, number in enumerate(self._numbers)}


@metric(
    About(
        name="simulatability",
        title="Predictions a small tree can foretell",
        variant="share of the cases in which a decision tree of at most 4 questions on prototype scores, fitted to the "
        f"model's predictions on the training cases, says what the model says; without training cases {FOLDS}-fold "
        "cross-validated on the audited ones",
        source="ours; a stand-in for a person who foretells the model (Co-12, Nauta et al. 2023)",
        better="higher",
        unit="0-1",
        passes=("train?", "cases"),
    )
)
@dataclass
class Simulatability(Metric):
    """Whether few questions about prototypes are enough to say what the model will say."""

    depth: int | None = 4
    others: tuple[int | None, ...] = (2, 8)

    def start(self, setting: Setting) -> None:
        """Get ready."""
        super().start(setting)
        for depth in (self.depth, *self.others):
            if depth is not None and depth < 1:
                raise UsageError(f"depth must be at least 1 or None, got {depth}")
        self._cases = CaseValues()

    def update(self, seen: Seen) -> None:
        """Take in a batch."""
        scores = numbers(seen.look.scores, "scores", seen.indices, seen.part)
        usable = self.setting.subject.usable.to(scores.device)
        self._cases.add(seen.part, seen.indices, scores=scores[:, usable], said=seen.look.predicted, labels=seen.labels)

    def result(self) -> Score:
        """Return how often the tree of the main depth says what the model says."""
        part = "train" if self._cases.count("train") else "cases"
        learned, judged = self._cases.of(part, "scores").numpy(), self._cases.of("cases", "scores").numpy()
        taught, said = self._cases.of(part, "said").numpy(), self._cases.of("cases", "said").numpy()
        seed = int(torch.randint(2**31 - 1, (1,), generator=self.setting.generator))
        if not len(judged) or len(learned) < 2 or not judged.shape[1]:
            return Score(None, notes=("Fewer than two cases to learn from, or no prototype in use.",))
        others = None if part == "cases" else judged
        trees = {
            depth: student(learned, taught, others, depth=depth, seed=seed)
            for depth in dict.fromkeys((self.depth, *self.others))
        }
        each = torch.from_numpy(trees[self.depth].said == said).double()
        labels = self._cases.of("cases", "labels").numpy()
        known = torch.from_numpy(labels >= 0)
        common = np.bincount(taught).argmax()
        main = trees[self.depth]
        return Score(
            mean_of(each),
            per_case=each,
            over_cases=mean_interval(each, self.setting.generator),
            counts={"cases learned from": len(learned), "cases": len(judged), "prototypes in use": judged.shape[1]},
            extras={
                "same prediction, by questions": {
                    "any number" if depth is None else str(depth): float((tree.said == said).mean())
                    for depth, tree in trees.items()
                },
                "same prediction, always the commonest class": float((said == common).mean()),
                "accuracy of the tree": mean_of(torch.from_numpy(main.said == labels)[known]),
                "leaves": main.leaves,
                "prototypes asked about": main.read,
                "learned from": part,
            },
            notes=self._notes(len(set(taught.tolist())) == 1),
        )

    def _notes(self, alike: bool) -> tuple[str, ...]:
        notes = ["A tree is no person: a high figure says that the scores hold a short rule, not that anyone sees it."]
        if alike:
            notes.append("The model says the same of every case it was learned from: there is nothing to foretell.")
        return tuple(notes)
