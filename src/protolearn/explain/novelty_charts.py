"""How confidences of known and foreign cases lie, and where the threshold cuts them, as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from protolearn.explain.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    _digits,
    _figure,
    _legend,
    _short,
    _tick,
    ticks,
)

BINS = 40
_FAR = 2.0
_LINES = (("var(--for)", ""), ("var(--against)", "5 3"), ("var(--third)", "2 3"), ("var(--soft)", "8 3 2 3"))


def confidence_chart(
    title: str, parts: Mapping[str, Sequence[float] | np.ndarray], threshold: float | None = None
) -> str:
    """Draw what share of each part's cases has which confidence.

    The scale covers the first part, the known cases, and the others as far as they lie within twice its width of it;
    what lies beyond is counted at the edge, and the chart says so.

    Parameters
    ----------
    title : str
        Heading, also the accessible name.
    parts : mapping of str to sequence
        Confidences by name, the known cases first; -inf is drawn at the low edge.
    threshold : float, optional
        Below it is unknown.

    Examples
    --------
    >>> chart = confidence_chart("energy", {"known": [1.0, 1.1], "textures": [0.2]}, 0.9)
    >>> chart.count("<polyline"), "0 of 1 textures at or above the threshold" in chart
    (2, True)
    >>> confidence_chart("energy", {"known": []})
    ''
    """
    rows = {name: np.asarray(values, dtype=np.float64) for name, values in parts.items()}
    rows = {name: values[~np.isnan(values)] for name, values in rows.items() if len(values)}
    finite = {name: values[np.isfinite(values)] for name, values in rows.items()}
    if not rows or not any(len(values) for values in finite.values()):
        return ""
    low, high = _range(finite, threshold)
    edges = np.linspace(low, high, BINS + 1)
    shares = {name: np.histogram(v.clip(low, high), edges)[0] / len(v) for name, v in rows.items()}
    most = max(float(each.max()) for each in shares.values())

    def x(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (value - low) / (high - low)

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - value / most)

    made = [_axes(low, high, most, x, y)]
    for k, share in enumerate(shares.values()):
        colour, dash = _LINES[k % len(_LINES)]
        steps = [(edge, value) for i, value in enumerate(share) for edge in (edges[i], edges[i + 1])]
        points = " ".join(f"{x(edge):.1f},{y(float(value)):.1f}" for edge, value in steps)
        if not k:
            closed = f"{x(low):.1f},{y(0):.1f} {points} {x(high):.1f},{y(0):.1f}"
            made.append(f'<polygon points="{closed}" fill="{colour}" fill-opacity="0.16"/>')
        made.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.8" stroke-dasharray="{dash}"/>'
        )
    told = [f"{name}: {_middle(values)}" for name, values in finite.items()]
    if threshold is not None and math.isfinite(threshold):
        made.append(
            f'<line x1="{x(threshold):.1f}" x2="{x(threshold):.1f}" y1="{TOP - 8}" y2="{HEIGHT - BOTTOM}" '
            f'stroke="var(--ink)" stroke-width="1.4"/><text x="{x(threshold):.1f}" y="{TOP - 12}" '
            f'text-anchor="middle">threshold</text>'
        )
        told += [
            f"{int((values >= threshold).sum())} of {len(values)} {name} at or above the threshold"
            for name, values in rows.items()
        ]
    beyond = {name: int(((v < low) | (v > high)).sum()) for name, v in rows.items()}
    beyond = {name: count for name, count in beyond.items() if count}
    note = ", ".join(f"{count} of {escape(name)}" for name, count in beyond.items())
    keys = _legend(list(rows)) + (f'<p class="key">beyond the scale, drawn at its edge: {note}</p>' if note else "")
    return _figure(title, f"{title}: {'; '.join(told)}", "".join(made), keys)


def _range(rows: Mapping[str, np.ndarray], threshold: float | None) -> tuple[float, float]:
    known = next(values for values in rows.values() if len(values))
    low, high = float(known.min()), float(known.max())
    reach = _FAR * (high - low)
    every = np.concatenate(list(rows.values()))
    low, high = max(low - reach, float(every.min())), min(high + reach, float(every.max()))
    if threshold is not None and math.isfinite(threshold):
        low, high = min(low, threshold), max(high, threshold)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _axes(low: float, high: float, most: float, x: object, y: object) -> str:
    assert callable(x) and callable(y)
    parts, across, up = [], ticks(low, high), ticks(0.0, most)
    digits = _digits(up)
    for value in up:
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y(value) + 3.5:.1f}" text-anchor="end">{_tick(value, digits)}</text>')
    digits = _digits(across)
    for value in across:
        parts.append(f'<text x="{x(value):.1f}" y="{HEIGHT - 14}" text-anchor="middle">{_tick(value, digits)}</text>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 2}" text-anchor="end">confidence</text>')
    parts.append(f'<text x="4" y="{TOP - 12}">share</text>')
    return "".join(parts)


def _middle(values: np.ndarray) -> str:
    if not len(values):
        return "none finite"
    return f"half of {len(values)} above {_short(float(np.median(values)))}"
