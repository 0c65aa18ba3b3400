"""What a comparison of attributions found, for a person and for a file; see :mod:`protolearn.explain.faithfulness`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from protolearn.audit.bootstrap import interval_of
from protolearn.explain.passes import plain_json

RANDOM = "random"
"""Name of the random orders that every method is held against."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """How faithful each method's maps are to what the similarity depends on.

    Attributes
    ----------
    methods : tuple of str
        The M methods, "random" last.
    prototypes : tuple of int
        Ids, one for each of N inputs.
    shares : ndarray
        ``(T,)`` share of the patches that are covered (or uncovered) at each point of a curve.
    deletion, insertion : ndarray
        ``(N, M, T)`` similarities, not scaled.
    gap : ndarray
        ``(N,)`` similarity of the whole picture minus that of a blank one.
    deletion_area, insertion_area : ndarray
        ``(N, M)`` under the scaled curves; NaN where there is nothing to judge by.
    patch : int
        Side of a patch in pixels.
    place : str
        "fixed" or "free", see :func:`protolearn.explain.attribution.attribute`.
    blank : str
        What covered patches became.
    seed : int
        Of random orders and resampling.
    notes : tuple of str
        What a reader must know.
    """

    methods: tuple[str, ...]
    prototypes: tuple[int, ...]
    shares: np.ndarray
    deletion: np.ndarray
    insertion: np.ndarray
    gap: np.ndarray
    deletion_area: np.ndarray
    insertion_area: np.ndarray
    patch: int
    place: str
    blank: str
    seed: int
    notes: tuple[str, ...]

    def summary(self) -> dict[str, dict[str, Any]]:
        """Return for each method weighted mean areas and their gain over random orders, with intervals (95 %).

        ``gain`` is positive where the method beats a random order: for deletion, random minus its area.
        """
        draw, gap = torch.Generator().manual_seed(self.seed), torch.from_numpy(self.gap)
        return {
            method: {
                "deletion": _told(self.deletion_area, m, -1.0, gap, draw),
                "insertion": _told(self.insertion_area, m, 1.0, gap, draw),
                "judged": int((~np.isnan(self.deletion_area[:, m])).sum()),
            }
            for m, method in enumerate(self.methods)
        }

    def best(self) -> str | None:
        """Return the method with the largest gain of deletion and insertion together, if one surely beats random."""
        found = {
            method: told["deletion"]["gain"] + told["insertion"]["gain"]
            for method, told in self.summary().items()
            if method != RANDOM
            and all(_verdict(told[kind]["gain_interval"]) == "better" for kind in ("deletion", "insertion"))
        }
        return max(found, key=found.__getitem__) if found else None

    def table(self) -> str:
        """Return the summary as text."""
        head = ("method", "deletion (small is good)", "insertion (large is good)", "against random", "judged")
        rows: list[tuple[str, ...]] = [head]
        for method, told in self.summary().items():
            verdicts = [_verdict(told[kind]["gain_interval"]) for kind in ("deletion", "insertion")]
            beats = "" if method == RANDOM else ", ".join(verdicts)
            values = [_with_interval(told[kind]) for kind in ("deletion", "insertion")]
            rows.append((method, *values, beats, f"{told['judged']} of {len(self.prototypes)}"))
        widths = [max(len(row[k]) for row in rows) for k in range(len(head))]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([*lines, *self.notes])

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types: summary, areas and settings, without the curves."""
        return {
            "methods": self.summary(),
            "prototypes": list(self.prototypes),
            "areas": {
                kind: {method: plain_json(table[:, m]) for m, method in enumerate(self.methods)}
                for kind, table in (("deletion", self.deletion_area), ("insertion", self.insertion_area))
            },
            "gap": plain_json(self.gap),
            "patch": self.patch,
            "place": self.place,
            "blank": self.blank,
            "seed": self.seed,
            "notes": list(self.notes),
        }


def _told(areas: np.ndarray, m: int, sign: float, gap: Tensor, draw: torch.Generator) -> dict[str, Any]:
    values, gains = torch.from_numpy(areas[:, m]), torch.from_numpy(sign * (areas[:, m] - areas[:, -1]))
    (value, interval), (gain, gain_interval) = (_mean(found, gap, draw) for found in (values, gains))
    return {"value": value, "interval": interval, "gain": gain, "gain_interval": gain_interval}


def _mean(values: Tensor, gap: Tensor, draw: torch.Generator) -> tuple[float | None, tuple[float, float] | None]:
    """Return the mean of judged values weighed by the gaps, and its interval."""
    kept = ~values.isnan()
    values, gap = values[kept], gap[kept]
    if not len(values):
        return None, None
    whole = float(values @ gap / gap.sum())
    return whole, interval_of(lambda weights: weights @ (values * gap) / (weights @ gap), len(values), draw)


def _verdict(interval: tuple[float, float] | None) -> str:
    if interval is None or interval[0] <= 0 <= interval[1]:
        return "no telling"
    return "better" if interval[0] > 0 else "worse"


def _with_interval(told: dict[str, Any]) -> str:
    if told["value"] is None:
        return "nothing to judge by"
    low_high = told["interval"]
    return f"{told['value']:.3f}" + ("" if low_high is None else f" ({low_high[0]:.3f} to {low_high[1]:.3f})")
