"""Small charts of an audit, as inline SVG: where a figure lies with its interval, how it spreads over prototypes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from protolearn.audit.result import figure

SCALES = {"0-1": (0.0, 1.0), "0-100": (0.0, 100.0), "-1 to 1": (-1.0, 1.0), "0-2": (0.0, 2.0)}
"""Units of bounded figures, and their bounds."""


def interval_strip(value: float | None, pair: tuple[float, float] | None, unit: str) -> str:
    """Draw a figure and its interval on the scale of its unit; nothing where the unit has no bounds.

    Examples
    --------
    >>> "0.4 to 0.6" in interval_strip(0.5, (0.4, 0.6), "0-1").replace("0.400", "0.4").replace("0.600", "0.6")
    True
    >>> interval_strip(3.0, None, "prototypes")
    ''
    """
    if unit not in SCALES or value is None or not math.isfinite(value):
        return ""
    low, high = SCALES[unit]

    def x(v: float) -> float:
        return 4 + 112 * min(max((v - low) / (high - low), 0.0), 1.0)

    told = f"{figure(value)} on a scale from {figure(low)} to {figure(high)}"
    span = ""
    if pair is not None:
        told += f", 95 % interval {figure(pair[0])} to {figure(pair[1])}"
        span = f'<line class="ci" x1="{x(pair[0]):.1f}" x2="{x(pair[1]):.1f}" y1="9" y2="9"/>'
    return (
        f'<svg class="strip" viewBox="0 0 120 18" width="120" height="18" role="img" aria-label="{escape(told)}">'
        f'<line class="axis" x1="4" x2="116" y1="9" y2="9"/>{span}<circle cx="{x(value):.1f}" cy="9" r="3.5"/></svg>'
    )


def histogram(values: Sequence[float], title: str, unit: str, bins: int = 20) -> str:
    """Draw how many prototypes (or cases) have which figure; where all have the same, say so in words.

    Examples
    --------
    >>> histogram([0.1, 0.2, 0.2], "spread", "0-1").count("<rect")
    20
    >>> histogram([], "spread", "0-1")
    ''
    """
    kept = [v for v in values if math.isfinite(v)]
    if not kept:
        return ""
    if min(kept) == max(kept):
        return (
            f'<p class="small soft">{escape(title)}: {figure(kept[0])} for {"all " * (len(kept) > 1)}{len(kept)}.</p>'
        )
    low, high = SCALES.get(unit, (min(kept), max(kept)))
    counts = [0] * bins
    for v in kept:
        counts[min(max(int((v - low) / (high - low) * bins), 0), bins - 1)] += 1
    most, width, height = max(counts), 240, 60
    bars = "".join(
        f'<rect x="{k * width / bins + 0.5:.1f}" y="{height - height * n / most:.1f}" '
        f'width="{width / bins - 1:.1f}" height="{height * n / most:.1f}"/>'
        for k, n in enumerate(counts)
    )
    told = f"{title}: {len(kept)} values from {figure(min(kept))} to {figure(max(kept))}, most in one bin {most}"
    return (
        f'<figure class="spread"><figcaption>{escape(title)}: {len(kept)}, at most {most} in a bar</figcaption>'
        f'<svg viewBox="0 0 {width} {height + 16}" role="img" aria-label="{escape(told)}">{bars}'
        f'<text x="0" y="{height + 13}">{figure(low)}</text>'
        f'<text x="{width}" y="{height + 13}" text-anchor="end">{figure(high)}</text></svg></figure>'
    )
