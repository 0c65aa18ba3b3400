"""Charts as inline SVG, drawn by hand: no library, no script, readable at phone width, in light and dark.

Colours come from the page's CSS variables; every line is also told apart by its dash and its label.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape

from protolearn.audit.calibration import ReliabilityBin
from protolearn.explain.lettering import number

WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 24, 30
Place = Callable[[float], float]
"""From a value to where it is drawn."""
_QUARTERS = (0.0, 0.25, 0.5, 0.75, 1.0)
_DASHES = ("", "5 3", "2 3", "8 3 2 3")
_COLOURS = ("var(--for)", "var(--against)", "var(--third)", "var(--soft)")


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Return round numbers that span a range.

    Examples
    --------
    >>> ticks(0.0, 1.0)
    [0.0, 0.25, 0.5, 0.75, 1.0]
    >>> ticks(3.0, 3.0)
    [3.0]
    """
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return [low]
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * k for k in (1, 2, 2.5, 5, 10) if power * k >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    made: list[float] = []
    while first * step <= high + 1e-9 * step and len(made) < 20:
        made.append(round(first * step, 12))
        first += 1
    return made


def line_chart(
    title: str,
    series: Mapping[str, Sequence[float | None]],
    *,
    phases: Sequence[str] = (),
    marks: Mapping[float, str] | None = None,
) -> str:
    """Draw curves over epochs, with a band for each phase and a vertical line for each mark.

    Parameters
    ----------
    title : str
        Heading, also the accessible name.
    series : mapping of str to sequence
        Name to values, one an epoch; None or a value that is not finite leaves a gap.
    phases : sequence of str
        Name of each epoch's phase.
    marks : mapping of float to str, optional
        Place (in epochs, between two of them) to words.
    """
    clean = {n: [v if v is not None and math.isfinite(v) else None for v in values] for n, values in series.items()}
    flat = [v for values in clean.values() for v in values if v is not None]
    epochs = max((len(values) for values in clean.values()), default=0)
    if not flat or not epochs:
        return ""
    low, high = min(flat), max(flat)
    if high - low < 1e-12:
        low, high = low - 0.5, high + 0.5
    pad = 0.04 * (high - low)
    low, high = (low if low == 0 else low - pad), high + pad

    def x(epoch: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (epoch / max(epochs, 1))

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - (value - low) / (high - low))

    parts = [_bands(phases, x), _grid(ticks(low, high), y)]
    for epoch in (e for e in ticks(0, epochs) if e == int(e)):
        parts.append(f'<text x="{x(epoch):.1f}" y="{HEIGHT - 14}" text-anchor="middle">{int(epoch)}</text>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 2}" text-anchor="end">epochs</text>')
    for place, words in (marks or {}).items():
        parts.append(
            f'<line class="mark" x1="{x(place):.1f}" x2="{x(place):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}">'
            f"<title>{escape(words)}</title></line>"
        )
    told = []
    for k, (name, values) in enumerate(clean.items()):
        colour, dash = _COLOURS[k % len(_COLOURS)], _DASHES[k % len(_DASHES)]
        for run in _runs(values):
            points = " ".join(f"{x(i + 0.5):.1f},{y(v):.1f}" for i, v in run)
            if len(run) == 1:
                i, v = run[0]
                parts.append(f'<circle cx="{x(i + 0.5):.1f}" cy="{y(v):.1f}" r="2" fill="{colour}"/>')
            parts.append(
                f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.8" '
                f'stroke-dasharray="{dash}"/>'
            )
        last = next((v for v in reversed(values) if v is not None), None)
        if last is not None:
            told.append(f"{name} ends at {_short(last)}")
    legend = _legend(list(clean)) if len(clean) > 1 else ""
    return _figure(title, f"{title} over {epochs} epochs: {', '.join(told)}", "".join(parts), legend)


def reliability_chart(bins: Sequence[ReliabilityBin], title: str = "Reliability") -> str:
    """Draw accuracy over confidence; a point on the diagonal means what it says; its area counts cases."""
    if not bins:
        return ""
    side_x, side_y = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def x(v: float) -> float:
        return LEFT + side_x * v

    def y(v: float) -> float:
        return TOP + side_y * (1 - v)

    parts = [_grid(_QUARTERS, y, "{:g}".format), _shares(x)]
    parts.append(f'<line class="mark" x1="{x(0)}" y1="{y(0)}" x2="{x(1)}" y2="{y(1)}"/>')
    total = sum(b.count for b in bins)
    for b in bins:
        radius = 2.5 + 9 * math.sqrt(b.count / total)
        words = f"{b.count} cases: sure {b.confidence:.2f}, right {b.accuracy:.2f}"
        parts.append(
            f'<line x1="{x(b.confidence):.1f}" x2="{x(b.confidence):.1f}" y1="{y(b.confidence):.1f}" '
            f'y2="{y(b.accuracy):.1f}" stroke="var(--against)" stroke-width="1.5"/>'
            f'<circle cx="{x(b.confidence):.1f}" cy="{y(b.accuracy):.1f}" r="{radius:.1f}" fill="var(--for)" '
            f'fill-opacity="0.75"><title>{words}</title></circle>'
        )
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 2}" text-anchor="end">how sure the model was</text>')
    parts.append(f'<text x="4" y="{TOP - 10}">how often it was right</text>')
    told = "; ".join(f"sure {b.confidence:.2f}, right {b.accuracy:.2f} ({b.count} cases)" for b in bins)
    return _figure(title, f"{title}: {told}", "".join(parts), "")


def risk_coverage_chart(
    coverage: Sequence[float], risk: Sequence[float], title: str = "Errors when unsure cases are left out"
) -> str:
    """Draw the share of errors among the cases answered, the surest first; the dotted line is what all of them give.

    Parameters
    ----------
    coverage : sequence of float
        Shares of the cases that are answered, rising, the last one 1.
    risk : sequence of float
        Share of errors among them.
    title : str
        Heading, also the accessible name.

    Examples
    --------
    >>> "all answered: 0.5 wrong" in risk_coverage_chart([0.5, 1.0], [0.0, 0.5])
    True
    """
    if not coverage:
        return ""
    shown = ticks(0.0, max(max(risk), 0.01))
    high = max(*shown, *risk)

    def x(v: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * v

    def y(v: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - v / high)

    parts = [_grid(shown, y), _shares(x)]
    whole = risk[-1]
    parts.append(f'<line class="mark" x1="{x(0)}" x2="{x(1)}" y1="{y(whole):.1f}" y2="{y(whole):.1f}"/>')
    points = " ".join(f"{x(c):.1f},{y(r):.1f}" for c, r in zip(coverage, risk, strict=True))
    parts.append(f'<polyline points="{points}" fill="none" stroke="var(--for)" stroke-width="1.8"/>')
    if len(coverage) == 1:
        parts.append(f'<circle cx="{x(coverage[0]):.1f}" cy="{y(whole):.1f}" r="2" fill="var(--for)"/>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 2}" text-anchor="end">share of cases answered</text>')
    parts.append(f'<text x="4" y="{TOP - 10}">share of them wrong</text>')
    steps = [next(k for k, c in enumerate(coverage) if c >= least - 1e-9) for least in (0.8, 0.9)]
    told = "; ".join(f"{coverage[k]:.2f} answered: {risk[k]:.3g} wrong" for k in steps)
    return _figure(title, f"{title}: {told}; all answered: {whole:.3g} wrong", "".join(parts), "")


def curve_chart(title: str, points: Mapping[int, float], best: int, across: str, up: str) -> str:
    """Draw values over whole numbers, each that was tried as a point; a line marks the best.

    Parameters
    ----------
    title : str
        Heading, also the accessible name.
    points : mapping of int to float
        Values that are not finite are left out.
    best : int
        The number to mark.
    across, up : str
        What the axes are.

    Examples
    --------
    >>> "best at 3" in curve_chart("Clusters", {2: 0.1, 3: 0.4}, 3, "clusters", "silhouette")
    True
    >>> curve_chart("Clusters", {}, 3, "clusters", "silhouette")
    ''
    """
    kept = sorted((k, v) for k, v in points.items() if math.isfinite(v))
    if not kept:
        return ""
    (first, _), (last, _) = kept[0], kept[-1]
    low, high = min(v for _, v in kept), max(v for _, v in kept)
    if high - low < 1e-12:
        low, high = low - 0.5, high + 0.5

    def x(v: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * ((v - first) / (last - first) if last > first else 0.5)

    def y(v: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - (v - low) / (high - low))

    parts = [_grid(ticks(low, high), y)]
    for v in (k for k in ticks(first, last) if k == int(k)):
        parts.append(f'<text x="{x(v):.1f}" y="{HEIGHT - 14}" text-anchor="middle">{int(v)}</text>')
    parts.append(f'<line class="mark" x1="{x(best):.1f}" x2="{x(best):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
    line = " ".join(f"{x(k):.1f},{y(v):.1f}" for k, v in kept)
    parts.append(f'<polyline points="{line}" fill="none" stroke="var(--for)" stroke-width="1.8"/>')
    parts += [f'<circle cx="{x(k):.1f}" cy="{y(v):.1f}" r="2" fill="var(--for)"/>' for k, v in kept]
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 2}" text-anchor="end">{escape(across)}</text>')
    parts.append(f'<text x="4" y="{TOP - 10}">{escape(up)}</text>')
    told = f"{title}: {up} over {across} from {first} to {last}, best at {best}"
    return _figure(title, told, "".join(parts), "")


def confusion_chart(table: Sequence[Sequence[int]], title: str = "Confusion") -> str:
    """Draw a large confusion matrix as coloured cells: rows are the true classes, columns the predicted ones."""
    size = len(table)
    if not size:
        return ""
    step = 340 / size
    parts = ['<rect x="10" y="10" width="340" height="340" class="frame"/>']
    for r, row in enumerate(table):
        total = sum(row) or 1
        for c, count in enumerate(row):
            if count:
                colour = "var(--for)" if r == c else "var(--against)"
                parts.append(
                    f'<rect x="{10 + c * step:.2f}" y="{10 + r * step:.2f}" width="{step:.2f}" height="{step:.2f}" '
                    f'fill="{colour}" fill-opacity="{0.15 + 0.85 * count / total:.2f}"/>'
                )
    right = sum(table[k][k] for k in range(size))
    told = f"{title}: {size} classes, {right} of {sum(map(sum, table))} cases on the diagonal"
    return _figure(title, told, "".join(parts), "<p class='key'>rows true, columns predicted</p>", height=360)


def _grid(values: Sequence[float], y: Place, told: Callable[[float], str] | None = None) -> str:
    """Return a horizontal line and its number for each value."""
    digits = _digits(values)
    words = [_tick(v, digits) if told is None else told(v) for v in values]
    return "".join(
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(v):.1f}" y2="{y(v):.1f}"/>'
        f'<text x="{LEFT - 6}" y="{y(v) + 3.5:.1f}" text-anchor="end">{word}</text>'
        for v, word in zip(values, words, strict=True)
    )


def _shares(x: Place) -> str:
    """Return the numbers of an axis of shares, from 0 to 1."""
    return "".join(f'<text x="{x(v):.1f}" y="{HEIGHT - 14}" text-anchor="middle">{v:g}</text>' for v in _QUARTERS)


def _bands(phases: Sequence[str], x: Place) -> str:
    parts, start, shade = [], 0, False
    for k in range(1, len(phases) + 1):
        if k == len(phases) or phases[k] != phases[start]:
            a, b = x(start), x(k)
            if shade:
                parts.append(
                    f'<rect class="band" x="{a:.1f}" y="{TOP}" width="{b - a:.1f}" height="{HEIGHT - TOP - BOTTOM}"/>'
                )
            name = phases[start].replace("_", " ")
            if 5.4 * len(name) < b - a:
                at = f'x="{(a + b) / 2:.1f}" y="{TOP - 4}"'
                parts.append(f'<text class="phase" {at} text-anchor="middle">{escape(name)}</text>')
            start, shade = k, not shade
    return "".join(parts)


def _runs(values: Sequence[float | None]) -> list[list[tuple[int, float]]]:
    runs: list[list[tuple[int, float]]] = []
    fresh = True
    for i, value in enumerate(values):
        if value is None:
            fresh = True
            continue
        if fresh:
            runs.append([])
            fresh = False
        runs[-1].append((i, value))
    return runs


def _legend(names: Sequence[str]) -> str:
    keys = []
    for k, name in enumerate(names):
        colour, dash = _COLOURS[k % len(_COLOURS)], _DASHES[k % len(_DASHES)]
        keys.append(
            '<span><svg viewBox="0 0 26 8" width="26" height="8" aria-hidden="true"><line x2="26" y1="4" y2="4" '
            f'stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"/></svg> {escape(name)}</span>'
        )
    return f'<p class="key">{" ".join(keys)}</p>'


def _figure(title: str, told: str, inside: str, legend: str, height: int = HEIGHT) -> str:
    return (
        f'<figure class="chart"><figcaption>{escape(title)}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(told, quote=True)}">{inside}</svg>'
        f"{legend}</figure>"
    )


def _digits(values: Sequence[float]) -> int | None:
    """Return how many decimals tell ticks apart; None where they are better written as powers of ten."""
    if max(map(abs, values)) >= 1e5 or (len(values) > 1 and values[1] - values[0] < 1e-4):
        return None
    return next((d for d in range(6) if all(abs(v - round(v, d)) < 1e-9 for v in values)), 5)


def _tick(value: float, digits: int | None) -> str:
    return _short(value) if digits is None else number(value, digits)


def _short(value: float) -> str:
    size = abs(value)
    if size == 0:
        return "0"
    if size >= 1e5 or size < 1e-3:
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e").replace("-", "−")
    return number(value, 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 0.1 else 3)
