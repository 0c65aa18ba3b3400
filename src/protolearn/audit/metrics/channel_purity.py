"""Does a prototype fire alone where it fires most? Channel purity, as a metric."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from protolearn.audit.bootstrap import mean_interval, mean_of
from protolearn.audit.channel_purity import channel_purity
from protolearn.audit.metric import About, Metric, Score, Seen, Setting, metric
from protolearn.core.top_cases import TopCases
from protolearn.errors import look_up

SELECT = ("score", "sum")

NOTE = (
    "Purity supposes maps that are 0 where nothing is found; similarities that start elsewhere, such as a negative "
    "distance, make it hard to read, and it falls with the number of prototypes."
)


@metric(
    About(
        name="channel_purity",
        title="Channel purity",
        variant="a map's value at its peak over the Euclidean length of all usable prototypes' values at that place, "
        "mean over the 5 training cases (or audited ones where no training cases are given) with the highest score of "
        "the prototype (select='sum': with the largest sum of its map)",
        source="EPIC (Borycki et al., AAAI 2026), whose code selects by the sum",
        better="higher",
        unit="-1 to 1",
        needs=("maps",),
        instead=("evidence_correlation",),
        passes=("train?",),
    )
)
@dataclass
class ChannelPurityMetric(Metric):
    """Whether one prototype alone is active where it is most active."""

    n: int = 5
    select: str = "score"

    def start(self, setting: Setting) -> None:
        """Get ready."""
        super().start(setting)
        look_up("way to select cases", self.select, dict.fromkeys(SELECT))
        self._top = TopCases(len(setting.subject.ids), self.n)

    def update(self, seen: Seen) -> None:
        """Take in a batch."""
        maps = seen.look.maps
        assert maps is not None
        rank = maps.sum((2, 3)) if self.select == "sum" else seen.look.scores
        self._top.update(rank, seen.indices, purity=channel_purity(maps, self.setting.subject.usable))

    def result(self) -> Score:
        """Return the mean over prototypes."""
        subject, top = self.setting.subject, self._top
        usable = subject.usable.cpu()
        purity = top.columns["purity"].double()
        real = top.found & ~purity.isnan()
        judged = real.any(1) & usable
        each = torch.where(real, purity, 0.0).sum(1) / real.sum(1).clamp_min(1)
        each = torch.where(judged, each, float("nan"))
        count = int(usable.sum())
        return Score(
            mean_of(each),
            per_prototype=each,
            over_prototypes=mean_interval(each, self.setting.generator),
            counts={
                "prototypes judged": int(judged.sum()),
                "prototypes whose maps are the same everywhere": int((usable & ~judged).sum()),
                "cases behind each, at most": self.n,
            },
            extras={"purity if all were equally active": count**-0.5 if count else None},
            notes=(NOTE, *(() if judged.any() else ("Every map is the same everywhere: none has a peak.",))),
        )


__all__ = ["ChannelPurityMetric"]
