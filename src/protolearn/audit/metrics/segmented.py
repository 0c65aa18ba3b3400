"""Consistency and stability by the area above a quantile of the map, as metrics."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from protolearn.audit.look import Look
from protolearn.audit.metric import About, Seen, Setting, metric
from protolearn.audit.metrics.object_parts import HitConsistency, HitStability, PartHits
from protolearn.audit.noise import disturb_each
from protolearn.audit.segmented import segment_hits

SOURCE = "ScaleProtoSeg (Porta et al., WACV 2025), on key points and pictures of one label"
AREA = "region: the bicubic map above its own 0.8 quantile, at 224 pixels; a part is hit where its key point's pixel "


class AreaHits(PartHits):
    """The region is the area above a quantile of the map."""

    quantile: float
    mode: str

    def hits(self, maps: Tensor, counted: Tensor, seen: Seen) -> Tensor:
        """Return ``(B, P, N)`` bool."""
        points, how = seen.marks.points_at(self.size), {"quantile": self.quantile, "mode": self.mode}
        return segment_hits(maps, counted, points, seen.marks.visible, size=self.size, **how)  # type: ignore[arg-type]

    def about_region(self) -> str:
        """Return a sentence on how large the region is."""
        (rows, columns), share = self._grid, 1 - self.quantile
        return (
            f"The region is at most {share:.0%} of the picture, {share * rows * columns:.1f} cells of a {rows} x "
            f"{columns} map: a prototype that lights up anywhere at random hits a key point that often."
        )


@metric(
    About(
        name="segment_consistency",
        title="Consistency by area",
        variant="share of prototypes that hit one same key point in more than 80 % of their class's cases where it is "
        f"visible; {AREA}lies in it",
        source=SOURCE,
        better="higher",
        unit="0-100",
        needs=("maps", "labels", "points"),
        instead=("continuity", "neighbour_purity"),
    )
)
@dataclass
class SegmentConsistency(HitConsistency, AreaHits):
    """Whether the area a prototype lights up holds the same part of the object in every picture."""

    threshold: float = 0.8
    quantile: float = 0.8
    mode: str = "bicubic"
    size: int = 224
    strict = True


@metric(
    About(
        name="segment_stability",
        title="Stability by area",
        variant="share of a prototype's cases in which it hits the very same key points with and without noise; "
        f"{AREA}lies in it; Gaussian noise of 0.2, not clipped, in normalised units",
        source=SOURCE,
        better="higher",
        unit="0-100",
        needs=("maps", "labels", "points"),
        instead=("continuity",),
    )
)
@dataclass
class SegmentStability(HitStability, AreaHits):
    """Whether the area a prototype lights up holds the same parts when the picture hardly changes.

    It draws noise of its own, since that of an audit is clipped: one more look at every case a draw.
    """

    std: float = 0.2
    quantile: float = 0.8
    mode: str = "bicubic"
    size: int = 224

    def start(self, setting: Setting) -> None:
        """Get ready; one number of the generator is the root of every draw of noise."""
        super().start(setting)
        self._root = int(torch.randint(2**40, (), generator=setting.generator))

    def _seed(self, draw: int, case: str) -> int:
        digest = hashlib.blake2b(f"{self._root}/{draw}/{case}".encode(), digest_size=7).digest()
        return int.from_bytes(digest, "big")

    def noisy(self, seen: Seen) -> Iterator[Look]:
        """Yield looks under noise that depends on the seed, the draw and the case alone, not on batch or order."""
        subject = self.setting.subject
        for draw in range(self.setting.draws):
            seeds = [self._seed(draw, case) for case in seen.ids or map(str, seen.indices.tolist())]
            with subject.looking():
                yield subject.look(disturb_each(seen.inputs, seeds, std=self.std, limit=float("inf")))
