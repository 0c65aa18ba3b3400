"""Consistency and stability of prototypes on key points, as metrics."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from protolearn.audit.bootstrap import interval_of, mean_interval
from protolearn.audit.metric import About, Metric, Score, Seen, Setting, metric
from protolearn.audit.object_parts import consistency, part_hits

SOURCE = "EvalProtoPNet (Huang et al., ICCV 2023), numbers from its authors' code"


class PartHits(Metric):
    """Collects which key points each prototype of a case's class hits; what the metrics here have in common."""

    size: int
    half_side: int

    def start(self, setting: Setting) -> None:
        """Get ready."""
        super().start(setting)
        self._hits: list[Tensor] = []
        self._counted: list[Tensor] = []
        self._visible: list[Tensor] = []
        self._grid: tuple[int, int] = (0, 0)

    def hits(self, maps: Tensor, counted: Tensor, seen: Seen) -> Tensor:
        """Return ``(B, P, N)`` bool."""
        self._grid = (int(maps.shape[2]), int(maps.shape[3]))
        points = seen.marks.points_at(self.size)
        return part_hits(maps, counted, points, seen.marks.visible, size=self.size, half_side=self.half_side)

    def update(self, seen: Seen) -> None:
        """Take in a batch."""
        assert seen.look.maps is not None
        counted = self.setting.subject.of_class(seen.labels)
        self._hits.append(self.hits(seen.look.maps, counted, seen).cpu())
        self._counted.append(counted.cpu())
        self._visible.append(seen.marks.visible.cpu())

    def gathered(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return hits ``(N, P, K)``, counted ``(N, P)`` and visible ``(N, K)`` of all cases."""
        return torch.cat(self._hits), torch.cat(self._counted), torch.cat(self._visible)

    def about_region(self) -> str:
        """Return a sentence on how large the region is beside a cell."""
        side = 2 * self.half_side
        rows, columns = self._grid
        cells = f"{side * rows / self.size:.2f} x {side * columns / self.size:.2f}" if rows else "unknown"
        return (
            f"The region is {side} x {side} pixels of {self.size}: {cells} cells of a {rows} x {columns} map. A larger "
            "region hits more."
        )


@metric(
    About(
        name="consistency",
        title="Consistency",
        variant="share of prototypes that hit one same key point in at least 80 % of their class's cases where it is "
        "visible; region: a square of half side 36 at the peak of the bicubic map, at 224 pixels",
        source=SOURCE,
        better="higher",
        unit="0-100",
        needs=("maps", "labels", "points"),
        instead=("continuity", "neighbour_purity"),
    )
)
@dataclass
class ConsistencyMetric(PartHits):
    """Whether a prototype means the same part of the object in every picture."""

    threshold: float = 0.8
    half_side: int = 36
    size: int = 224

    def result(self) -> Score:
        """Return 100 times the share of consistent prototypes."""
        hits, counted, visible = self.gathered()
        found = consistency(hits, counted, visible, threshold=self.threshold)
        judged = found.judged
        best = found.rates.double().amax(1) if found.rates.shape[1] else torch.zeros(len(judged), dtype=torch.float64)
        each = torch.where(judged, 100.0 * found.consistent.double(), float("nan"))
        value = None if not judged.any() else found.score
        draw = self.setting.generator
        flat = (hits & counted.unsqueeze(2)).double().flatten(1)
        seen = (counted.unsqueeze(2) & visible.bool().unsqueeze(1)).double().flatten(1)

        def score(weights: Tensor) -> Tensor:
            rates = (weights @ flat / (weights @ seen).clamp_min(1)).unflatten(1, hits.shape[1:])
            some = (weights @ counted.double()) > 0
            peak = rates.amax(2)
            kept = (peak >= self.threshold) & (peak > 0) & some
            return 100.0 * kept.sum(1) / some.sum(1)

        return Score(
            value,
            per_prototype=each,
            over_prototypes=mean_interval(each, draw),
            over_cases=interval_of(score, len(hits), draw) if value is not None else None,
            counts={
                "prototypes judged": int(judged.sum()),
                "prototypes without a case of their class": int((~judged & self.setting.subject.usable.cpu()).sum()),
                "prototypes that hit no key point": int((judged & ~hits.any(2).any(0)).sum()),
                "parts never visible": int((~visible.any(0)).sum()),
            },
            extras={
                "best rate of a part, mean over prototypes": float(best[judged].mean()) if judged.any() else None,
                "most hit part": self._parts(found.rates, judged),
            },
            notes=(self.about_region(),),
        )

    def _parts(self, rates: Tensor, judged: Tensor) -> dict[str, str]:
        """Return the part each judged prototype hits most often, by prototype id."""
        names, ids = self.setting.parts, self.setting.subject.ids
        return {
            str(ids[p]): names[int(rates[p].argmax())]
            for p in judged.nonzero().squeeze(1).tolist()
            if rates.shape[1] and float(rates[p].max()) > 0
        }


@metric(
    About(
        name="stability",
        title="Stability",
        variant="share of a prototype's cases in which it hits the very same key points with and without noise; "
        "region as for consistency; Gaussian noise of 0.2 clipped at 0.25, in normalised units",
        source=SOURCE,
        better="higher",
        unit="0-100",
        needs=("maps", "labels", "points"),
        instead=("continuity",),
        noise=True,
    )
)
@dataclass
class StabilityMetric(PartHits):
    """Whether a prototype points at the same part when the picture hardly changes."""

    half_side: int = 36
    size: int = 224

    def start(self, setting: Setting) -> None:
        """Get ready."""
        super().start(setting)
        self._same: list[Tensor] = []

    def update(self, seen: Seen) -> None:
        """Take in a batch and its noisy versions."""
        super().update(seen)
        hits, counted = self._hits[-1], self._counted[-1]
        total = torch.zeros(counted.shape, dtype=torch.float64)
        for look in seen.noisy:
            assert look.maps is not None
            again = self.hits(look.maps, counted.to(look.maps.device), seen).cpu()
            total += (hits == again).all(2)
        self._same.append(total / len(seen.noisy))

    def result(self) -> Score:
        """Return 100 times the mean share of cases with unchanged hits."""
        hits, counted, _ = self.gathered()
        same = torch.cat(self._same) * counted
        judged = counted.any(0)
        each = torch.where(judged, 100.0 * same.sum(0) / counted.sum(0).clamp_min(1), float("nan"))
        value = float(each[judged].mean()) if judged.any() else None
        empty = judged & ~(hits & counted.unsqueeze(2)).any(2).any(0)
        draw = self.setting.generator

        def score(weights: Tensor) -> Tensor:
            seen = weights @ counted.double()
            some = seen > 0
            rates = torch.where(some, weights @ same / seen.clamp_min(1), 0.0)
            return 100.0 * rates.sum(1) / some.sum(1)

        share = float(empty.sum() / judged.sum()) if judged.any() else 0.0
        return Score(
            value,
            per_prototype=each,
            over_prototypes=mean_interval(each, draw),
            over_cases=interval_of(score, len(hits), draw) if value is not None else None,
            counts={
                "prototypes judged": int(judged.sum()),
                "prototypes that hit no key point": int(empty.sum()),
                "draws of noise": self.setting.draws,
            },
            extras={"stability of prototypes that hit a key point": _mean(each[judged & ~empty])},
            notes=(
                self.about_region(),
                *((f"{share:.0%} of the prototypes hit nothing: they look stable because there is nothing to lose.",)
                  if share else ()),
            ),
        )  # fmt: skip


def _mean(values: Tensor) -> float | None:
    return float(values.mean()) if len(values) else None


__all__ = ["ConsistencyMetric", "PartHits", "StabilityMetric"]
