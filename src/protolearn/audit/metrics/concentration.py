"""Whether few prototypes carry a case, as a metric."""

from __future__ import annotations

from dataclasses import dataclass

from protolearn.audit.bootstrap import mean_interval, mean_of
from protolearn.audit.cases import CaseValues, numbers
from protolearn.audit.concentration import active_count, gini
from protolearn.audit.metric import About, Metric, Score, Seen, Setting, metric


@metric(
    About(
        name="concentration",
        title="Concentration on few prototypes",
        variant="Gini coefficient of the magnitudes of the scores of usable prototypes in each case, mean over cases: "
        "0 = all alike, near 1 = one alone; beside it the number above 0.1 and the same of contributions",
        source="ProtoTTA (2026), numbers from its authors' code; of contributions: ours",
        better="higher",
        unit="0-1",
    )
)
@dataclass
class Concentration(Metric):
    """How unevenly scores, and contributions to the predicted class, are spread over the prototypes."""

    active_above: float = 0.1

    def start(self, setting: Setting) -> None:
        """Get ready."""
        super().start(setting)
        self._cases = CaseValues()
        self._lowest = 0.0

    def update(self, seen: Seen) -> None:
        """Take in a batch."""
        look, usable = seen.look, self.setting.subject.usable.to(seen.look.scores.device)
        scores = numbers(look.scores, "scores", seen.indices, seen.part)[:, usable]
        moved = numbers(look.toward(look.predicted), "contributions", seen.indices, seen.part)[:, usable]
        if scores.numel():
            self._lowest = min(self._lowest, float(scores.min()))
        self._cases.add(
            seen.part,
            seen.indices,
            scores=gini(scores),
            moved=gini(moved),
            scores_active=active_count(scores, self.active_above),
            moved_active=active_count(moved, self.active_above),
        )

    def result(self) -> Score:
        """Return the mean Gini coefficient of the scores."""
        found = {name: self._cases.of("cases", name) for name in ("scores", "moved", "scores_active", "moved_active")}
        each, moved, above = found["scores"], found["moved"], f"{self.active_above:g}"
        return Score(
            mean_of(each),
            per_case=each,
            over_cases=mean_interval(each, self.setting.generator),
            counts={
                "prototypes in use": int(self.setting.subject.usable.sum()),
                "cases in which every score is 0": int(each.isnan().sum()),
                "cases in which nothing contributes to the predicted class": int(moved.isnan().sum()),
            },
            extras={
                f"scores beyond {above}, mean over cases": mean_of(found["scores_active"]),
                "Gini coefficient of contributions to the predicted class": mean_of(moved),
                f"contributions beyond {above}, mean over cases": mean_of(found["moved_active"]),
            },
            notes=self._notes(mean_of(each) is None),
        )

    def _notes(self, silent: bool) -> tuple[str, ...]:
        notes = []
        if silent:
            notes.append("In no case is there a score that is not 0: nothing is spread over prototypes.")
        if self._lowest < 0:
            notes.append(
                f"Scores go down to {self._lowest:.3g}: magnitudes are compared, so that a strong mismatch counts like "
                "a strong match. Read the coefficient of the contributions."
            )
        return tuple(notes)
