"""Saying nothing: how often, and whether cases of no class of the model are told apart, as metrics."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from protolearn.audit.abstention import AcceptanceRule, abstained, separation
from protolearn.audit.bootstrap import mean_interval, mean_of
from protolearn.audit.cases import CaseValues, numbers
from protolearn.audit.metric import About, Metric, Score, Seen, Setting, metric
from protolearn.core.heads import Head
from protolearn.errors import UsageError, look_up

SOURCE = "PIP-Net (Nauta et al., CVPR 2023), numbers from its authors' code"
FEW = 100
"""Cases below which a 5 % quantile is a guess."""


@metric(
    About(
        name="ood_abstention",
        title="Outside cases taken for a known class",
        variant="share of the outside cases whose largest class score reaches the threshold of their predicted class; "
        "thresholds: 5 % quantile over the audited cases predicted as a class, then lowered together until at least "
        "95 % of the audited cases are accepted (false positives at 95 % true positives)",
        source=SOURCE,
        better="lower",
        unit="0-1",
        needs=("outside",),
        instead=("abstention", "risk_coverage"),
        passes=("cases", "outside"),
    )
)
@dataclass
class OODAbstention(Metric):
    """Whether the model's scores show that a case is none of its classes."""

    score: str = "logit"
    share: float = 0.95

    def start(self, setting: Setting) -> None:
        """Get ready."""
        super().start(setting)
        look_up("score", self.score, dict.fromkeys(("logit", "probability")))
        if not 0 < self.share <= 1:
            raise UsageError(f"the share to accept must lie above 0 and at most at 1, got {self.share}")
        self._cases = CaseValues()

    def update(self, seen: Seen) -> None:
        """Take in a batch."""
        look = seen.look
        scores = numbers(look.logits, "class scores", seen.indices, seen.part)
        silent = abstained(look)
        if self.score == "probability":
            scores = numbers(look.probabilities, "probabilities", seen.indices, seen.part)
        self._cases.add(seen.part, seen.indices, scores=scores.double(), silent=silent, labels=seen.labels)

    def result(self) -> Score:
        """Return the share of outside cases that are accepted."""
        inside, outside = (self._cases.of(part, "scores").numpy() for part in ("cases", "outside"))
        if not len(inside) or not len(outside):
            return Score(None, notes=("There are no cases of one of the two parts.",))
        labels = self._cases.of("cases", "labels").numpy()
        rule = AcceptanceRule.calibrate(inside, labels, share=self.share)
        taken = torch.from_numpy(rule.accepts(outside)).double()
        apart = separation(inside.max(1), outside.max(1))
        right_only = None if rule.overall_right is None else float(rule.accepts(outside, by="overall_right").mean())
        silent = {part: self._cases.of(part, "silent").double() for part in ("cases", "outside")}
        return Score(
            float(taken.mean()),
            over_cases=mean_interval(taken, self.setting.generator),
            counts={
                "cases": len(inside),
                "outside cases": len(outside),
                "outside cases accepted": int(taken.sum()),
                "outside cases on which the model says nothing": int(silent["outside"].sum()),
                "cases on which the model says nothing": int(silent["cases"].sum()),
                "classes never predicted": len(rule.never_predicted),
            },
            extras={
                "share of audited cases accepted": float(rule.accepts(inside).mean()),
                "outside cases accepted, one threshold for all": float(rule.accepts(outside, by="overall").mean()),
                "outside cases accepted, one threshold from right cases": right_only,
                "AUROC": apart.auroc,
                "AUPR, audited cases to be found": apart.aupr_inside,
                "AUPR, outside cases to be found": apart.aupr_outside,
                "score": self.score,
                "rule": rule.to_dict(),
            },
            notes=self._notes(rule, len(inside)),
        )

    def _notes(self, rule: AcceptanceRule, count: int) -> tuple[str, ...]:
        notes = [
            f"Judged by the {self.score} of the predicted class: another score gives other figures.",
            "The interval resamples the outside cases; the thresholds stay as they are.",
        ]
        if count < FEW:
            notes.append(f"Thresholds rest on {count} cases: a {1 - self.share:.0%} quantile of so few is a guess.")
        if rule.lowered == "shifted":
            notes.append(
                f"Scores are not all positive: thresholds were lowered by {rule.steps} thousandths of their range, "
                "where the published rule multiplies by 0.999."
            )
        return tuple(notes)


@metric(
    About(
        name="abstention",
        title="Cases on which the model says nothing",
        variant="share of the cases in which no prototype speaks for any class, as the model's head says; for a model "
        "without one, those whose largest class score is exactly 0",
        source=SOURCE,
        unit="0-1",
    )
)
@dataclass
class Abstention(Metric):
    """How often there is no explanation because there is no answer."""

    def start(self, setting: Setting) -> None:
        """Get ready."""
        super().start(setting)
        self._cases = CaseValues()
        self._can = True

    def update(self, seen: Seen) -> None:
        """Take in a batch."""
        look = seen.look
        numbers(look.logits, "class scores", seen.indices, seen.part)
        if look.output is not None:
            self._can = type(look.output.head).abstains is not Head.abstains
        right = look.predicted == seen.labels
        self._cases.add(seen.part, seen.indices, silent=abstained(look), right=right, known=seen.labels >= 0)

    def result(self) -> Score:
        """Return the share."""
        silent, right = self._cases.of("cases", "silent").bool(), self._cases.of("cases", "right").bool()
        answered = self._cases.of("cases", "known").bool() & ~silent
        each = silent.double()
        return Score(
            mean_of(each),
            per_case=each,
            over_cases=mean_interval(each, self.setting.generator),
            counts={"cases on which the model says nothing": int(silent.sum()), "labelled cases": int(answered.sum())},
            extras={"accuracy where it answers": mean_of(right[answered])},
            notes=() if self._can else (
                "The scores of this head do not start at 0 with nothing found: it answers every case.",
            ),
        )  # fmt: skip
