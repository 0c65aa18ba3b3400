"""Do prototypes of one class point at different places? Overlap of their maps, as a metric."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from protolearn.audit.bootstrap import interval_of
from protolearn.audit.metric import About, Metric, Score, Seen, Setting, metric
from protolearn.audit.overlap import map_overlaps


@metric(
    About(
        name="map_overlap",
        title="Overlap of maps",
        variant="intersection over union of the cells where two prototypes of the predicted class are high (at least "
        "0.5 of the map scaled to 0 to 1), mean over pairs and cases",
        source="ours",
        better="lower",
        unit="0-1",
        needs=("maps",),
        instead=("prototype_cosine", "evidence_correlation"),
    )
)
@dataclass
class MapOverlapMetric(Metric):
    """Whether the prototypes that explain a prediction point at different places. Holds tables of all pairs."""

    threshold: float = 0.5

    def start(self, setting: Setting) -> None:
        """Get ready."""
        super().start(setting)
        count = len(setting.subject.ids)
        self._iou, self._chance, self._seen = (torch.zeros(count, count) for _ in range(3))
        self._case = torch.zeros(setting.counts["cases"], 2, dtype=torch.float64)
        self._flat = 0
        self._grid: tuple[int, int] = (0, 0)

    def update(self, seen: Seen) -> None:
        """Take in a batch."""
        maps = seen.look.maps
        assert maps is not None
        self._grid = (int(maps.shape[2]), int(maps.shape[3]))
        counted = self.setting.subject.of_class(seen.look.predicted).to(maps.device)
        flat = maps.flatten(2)
        self._flat += int((counted & (flat.amax(2) == flat.amin(2))).sum())
        for found in map_overlaps(maps, counted, threshold=self.threshold):
            at = found.prototypes.cpu()
            table = at.unsqueeze(1), at
            self._iou[table] += found.iou.sum(0).cpu()
            self._chance[table] += found.chance.sum(0).cpu()
            self._seen[table] += found.judged.sum(0).cpu()
            cases = seen.indices[found.cases.cpu()]
            self._case[cases, 0] = found.iou.sum((1, 2)).cpu().double()
            self._case[cases, 1] = found.judged.sum((1, 2)).cpu().double()

    def result(self) -> Score:
        """Return the mean overlap of two prototypes in a case."""
        iou, seen, case = self._iou, self._seen, self._case
        count = float(seen.double().sum())
        value = float(iou.double().sum()) / count if count else None
        chance = float(self._chance.double().sum()) / count if count else None
        judged = seen.sum(1) > 0
        each = torch.where(judged, iou.double().sum(1) / seen.double().sum(1).clamp_min(1), float("nan"))
        pairs = torch.where(seen > 0, iou / seen.clamp_min(1), -1.0)
        draw = self.setting.generator
        kept = judged.nonzero().squeeze(1)
        tables = iou[kept][:, kept], seen[kept][:, kept]

        def over(weights: Tensor) -> Tensor:
            w = weights.float()
            sums = [((w @ table) * w).sum(1) for table in tables]
            return sums[0] / sums[1].where(sums[1] > 0, float("nan"))

        rows, columns = self._grid
        return Score(
            value,
            per_prototype=each,
            per_case=torch.where(case[:, 1] > 0, case[:, 0] / case[:, 1].clamp_min(1), float("nan")),
            over_prototypes=interval_of(over, len(kept), draw) if count else None,
            over_cases=interval_of(lambda w: (w @ case[:, 0]) / (w @ case[:, 1]), len(case), draw) if count else None,
            counts={
                "prototypes judged": int(judged.sum()),
                "cases with two prototypes to compare": int((case[:, 1] > 0).sum()),
                "pairs of prototypes compared": int((seen > 0).sum()) // 2,
                "maps that are the same everywhere, left out": self._flat,
            },
            extras={
                "overlap of regions as large laid at random": chance,
                "largest mean overlap of a pair": float(pairs.max()) if count else None,
                "pair with the largest": self._pair(pairs) if count else None,
            },
            notes=(f"Regions are cells of a {rows} x {columns} map: on a coarse map more of them overlap by chance.",)
            if count
            else ("No case has two prototypes of its predicted class with a map that varies.",),
        )

    def _pair(self, pairs: Tensor) -> list[int]:
        one, other = divmod(int(pairs.argmax()), len(pairs))
        return [self.setting.subject.ids[one], self.setting.subject.ids[other]]


__all__ = ["MapOverlapMetric"]
