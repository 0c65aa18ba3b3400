"""A head that is a tree, drawn: it grows from left to right, and the way of a case through it can be shown.

A solid blue line leads on where the prototype is present, a dashed orange one where it is absent. Pillow and SVG by
hand: no other program is needed.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw
from torch import Tensor

from protolearn.core.model import PrototypeModel
from protolearn.core.trees import Branching, HardRouting
from protolearn.errors import UsageError
from protolearn.explain.draw import AGAINST, FOR, INK, LINE, PAPER, SOFT, Painter, SourcePictures, View
from protolearn.explain.lettering import lettering, share
from protolearn.explain.page import data_uri, write_text
from protolearn.explain.passes import CaseList, picture_of, run_over, whole_file
from protolearn.explain.tree import Route, branching, routes

MOST_PIXELS = 120_000_000
STEP, ROW, SIDE, MARGIN, END = 196, 50, 64, 28, 250
"""Width of a level, height of a leaf, side of a picture, margin, width of a leaf's words; in pixels."""


def save_tree(
    model: PrototypeModel,
    path: str | Path,
    *,
    sources: SourcePictures | None = None,
    cases: CaseList | None = None,
    index: int | None = None,
    routing: HardRouting = "greedy",
    depth: int | None = None,
) -> Path:
    """Draw the tree of a model into a file, ``.svg`` or ``.png`` by its suffix.

    Parameters
    ----------
    model : PrototypeModel
        With a head that branches.
    path : path
        The file.
    sources : Cases or callable, optional
        The training cases, for the prototypes' pictures.
    cases, index : optional
        A case whose way is drawn in bold, with its similarities.
    routing : {"greedy", "max_leaf"}
        Which way that is.
    depth : int, optional
        How many levels are drawn; what lies below is counted in words. All by default.

    Raises
    ------
    UsageError
        If the suffix is another, the model has no tree, or the picture would be too large.
    """
    path = Path(path)
    if path.suffix.lower() not in (".svg", ".png"):
        raise UsageError(f"a tree is drawn as .svg or .png, got {path.name!r}")
    if (cases is None) != (index is None):
        raise UsageError("to draw the way of a case give both cases and index")
    scene = tree_scene(model, sources=sources, cases=cases, index=index, routing=routing, depth=depth)
    if path.suffix.lower() == ".svg":
        return write_text(path, scene.svg())
    picture = scene.picture()
    with whole_file(path, "the tree") as temporary:
        picture.save(temporary, "PNG")
    return path


@dataclass(frozen=True)
class _Way:
    """A line from a node to a child."""

    start: tuple[float, float]
    stop: tuple[float, float]
    present: bool
    bold: bool
    faint: bool


@dataclass(frozen=True)
class _Words:
    x: float
    y: float
    text: str
    size: int = 14
    fill: str = INK
    bold: bool = False


@dataclass
class Scene:
    """What is to be drawn, once for both formats: lines, boxes, pictures, words, in this order."""

    title: str
    width: int = 0
    height: int = 0
    ways: list[_Way] = field(default_factory=list)
    boxes: list[tuple[float, float, float, float, str]] = field(default_factory=list)
    pictures: list[tuple[float, float, Image.Image, str]] = field(default_factory=list)
    words: list[_Words] = field(default_factory=list)

    def svg(self) -> str:
        """Return the scene as SVG that asks for nothing outside itself."""
        size = f'width="{self.width}" height="{self.height}"'
        named = f'role="img" aria-label="{_plain(self.title)}" font-family="system-ui, sans-serif"'
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} viewBox="0 0 {self.width} {self.height}" {named}>',
            f"<title>{_plain(self.title)}</title>",
            f'<rect {size} fill="{PAPER}"/>',
        ]
        for way in self.ways:
            (x0, y0), (x1, y1) = way.start, way.stop
            middle = (x0 + x1) / 2
            curve = f"M{x0:.1f} {y0:.1f} C{middle:.1f} {y0:.1f} {middle:.1f} {y1:.1f} {x1:.1f} {y1:.1f}"
            look = f'stroke="{FOR if way.present else AGAINST}" stroke-width="{4 if way.bold else 1.6}"'
            look += "" if way.present else ' stroke-dasharray="7 5"'
            look += ' opacity="0.35"' if way.faint else ""
            parts.append(f'<path d="{curve}" fill="none" {look}/>')
        for x0, y0, x1, y1, fill in self.boxes:
            outline = f' stroke="{LINE}" stroke-width="1.5"' if fill == PAPER else ""
            parts.append(
                f'<rect x="{x0:.1f}" y="{y0:.1f}" width="{x1 - x0:.1f}" height="{y1 - y0:.1f}" fill="{fill}"{outline}/>'
            )
        for x, y, picture, told in self.pictures:
            parts.append(
                f'<image x="{x:.1f}" y="{y:.1f}" width="{picture.width}" height="{picture.height}" '
                f'href="{data_uri(picture)}"><title>{_plain(told)}</title></image>'
            )
        for w in self.words:
            weight = ' font-weight="bold"' if w.bold else ""
            parts.append(
                f'<text x="{w.x:.1f}" y="{w.y + 0.8 * w.size:.1f}" font-size="{w.size}" fill="{w.fill}"{weight}>'
                f"{_plain(w.text)}</text>"
            )
        return "\n".join([*parts, "</svg>"]) + "\n"

    def picture(self) -> Image.Image:
        """Return the scene as pixels."""
        if self.width * self.height > MOST_PIXELS:
            raise UsageError(
                f"the tree would be {self.width} x {self.height} pixels: draw it as .svg, or fewer levels with depth"
            )
        canvas = Image.new("RGB", (self.width, self.height), PAPER)
        draw = ImageDraw.Draw(canvas)
        for way in self.ways:
            points = _curve(way.start, way.stop)
            colour = FOR if way.present else AGAINST
            if way.faint:
                colour = _paler(colour)
            for run in [points] if way.present else _dashed(points):
                draw.line(run, fill=colour, width=4 if way.bold else 2, joint="curve")
        for x0, y0, x1, y1, fill in self.boxes:
            draw.rectangle([x0, y0, x1, y1], fill=fill, outline=LINE if fill == PAPER else None)
        for x, y, picture, _ in self.pictures:
            canvas.paste(picture, (round(x), round(y)))
        for w in self.words:
            lettering(w.size).write(draw, w.x, w.y, w.text, w.fill, bold=w.bold)
        return canvas


def tree_scene(
    model: PrototypeModel,
    *,
    sources: SourcePictures | None = None,
    cases: CaseList | None = None,
    index: int | None = None,
    routing: HardRouting = "greedy",
    depth: int | None = None,
) -> Scene:
    """Return the drawing of a model's tree, see :func:`save_tree`."""
    if depth is not None and depth < 1:
        raise UsageError(f"depth must be at least 1, got {depth}")
    head, painter = branching(model), Painter(model, sources)
    route, picture, evidence = None, None, None
    if cases is not None and index is not None:
        seen = next(iter(run_over(model, cases, [index])))
        evidence, picture = seen.output.evidence[0], picture_of(cases, index)
        route = routes(model, cases, [index], routing=routing)[0]
    drawing = _Drawing(model, head, painter, evidence, route, depth)
    return drawing.made(picture)


class _Drawing:
    def __init__(
        self,
        model: PrototypeModel,
        head: Branching,
        painter: Painter,
        evidence: Tensor | None,
        route: Route | None,
        depth: int | None,
    ) -> None:
        self.model, self.painter, self.evidence, self.route = model, painter, evidence, route
        self.left, self.right = head.left.tolist(), head.right.tolist()
        self.root, self.limit = int(head.root), depth
        self.leaves = head.leaf_distributions().double().cpu()
        self.ids: list[int] = model.bank.ids.tolist()
        self.scene = Scene("")
        self.top = MARGIN
        self.rows = 0
        self.deepest = 0

    def made(self, picture: Image.Image | None) -> Scene:
        """Return the scene: heading, then the tree."""
        scene, route = self.scene, self.route
        inner = len(self.left)
        scene.title = f"A tree of {inner} prototypes and {len(self.leaves)} leaves"
        x = float(MARGIN)
        if route is not None:
            scene.title = f"The way of case {route.case} through {scene.title[0].lower()}{scene.title[1:]}"
            if picture is not None:
                shown = View(picture).thumbnail(132)
                scene.pictures.append((x, MARGIN, shown, f"case {route.case}"))
                x += shown.width + 24
        y = float(MARGIN)
        scene.words.append(_Words(x, y, scene.title, 22, bold=True))
        y += 36
        for line in self._told():
            scene.words.append(_Words(x, y, line, 15, SOFT))
            y += 22
        self.top = int(max(y, MARGIN + 132 if picture is not None and route is not None else y)) + 26
        self._place(self.root, 0, on_way=route is not None)
        scene.width = max(2 * MARGIN + self.deepest * STEP + END, self._heading_end())
        scene.height = self.top + self.rows * ROW + MARGIN
        return scene

    def _told(self) -> list[str]:
        lines = ["Solid blue: the prototype is present, go up. Dashed orange: it is absent, go down."]
        if self.route is None:
            return [*lines, "Under a picture: the prototype's id."]
        r = self.route
        end = self.model.classes[r.predicted]
        manner = "likelier side at every prototype" if r.routing == "greedy" else "most probable leaf"
        lines.append(f"Bold: the {manner}. It ends at {end} ({share(max(r.distribution))}).")
        agrees = "too" if r.soft == r.predicted else "instead"
        lines.append(f"All leaves together say {self.model.classes[r.soft]} {agrees}.")
        lines.append("Under a picture: the prototype's id, and how present it is in this case (0 to 1).")
        return lines

    def _heading_end(self) -> int:
        return max(round(w.x + lettering(w.size).length(w.text)) for w in self.scene.words) + MARGIN

    def _place(self, code: int, level: int, on_way: bool) -> float:
        """Draw a subtree from the next free row on; return the height of its first node."""
        x = MARGIN + level * STEP
        self.deepest = max(self.deepest, level)
        if code < 0 or (self.limit is not None and level >= self.limit):
            y = self.top + (self.rows + 0.5) * ROW
            self.rows += 1
            if code < 0:
                self._leaf(-1 - code, x, y, on_way)
            else:
                nodes, leaves = self._size(code)
                self.scene.words.append(_Words(x + 8, y - 9, f"… {nodes} more prototypes, {leaves} leaves", 14, SOFT))
            return y
        goes = self._goes(code) if on_way else None
        above = self._place(self.right[code], level + 1, goes is True)
        below = self._place(self.left[code], level + 1, goes is False)
        y = (above + below) / 2
        for stop, present in ((above, True), (below, False)):
            bold = goes is present
            way = _Way((x + SIDE, y), (x + STEP, stop), present, bold, faint=self.route is not None and not bold)
            self.scene.ways.append(way)
        self._node(code, x, y, on_way)
        return y

    def _goes(self, code: int) -> bool | None:
        assert self.route is not None
        key = self.ids[code]
        return next((d.present for d in self.route.decisions if d.prototype == key), None)

    def _node(self, code: int, x: float, y: float, on_way: bool) -> None:
        key, scene = self.ids[code], self.scene
        view, why = self.painter.prototype_view(key, self.model.bank.sources[code])
        corner = y - SIDE / 2
        if view is None:
            scene.boxes.append((x, corner, x + SIDE, corner + SIDE, PAPER))
            for k, line in enumerate(lettering(10).wrapped(why, SIDE - 6)[:4]):
                scene.words.append(_Words(x + 4, corner + 6 + 13 * k, line, 10, SOFT))
        else:
            drawn = view.close_up(SIDE)
            source = self.model.bank.sources[code]
            told = f"prototype {key}" + ("" if source is None else f", from {source.case}")
            scene.pictures.append((x + (SIDE - drawn.width) / 2, corner + (SIDE - drawn.height) / 2, drawn, told))
        said = f"{key}" if self.evidence is None else f"{key}: {share(float(self.evidence[code]))}"
        scene.words.append(_Words(x + 2, corner + SIDE + 2, said, 13, INK if on_way else SOFT, bold=on_way))

    def _leaf(self, leaf: int, x: float, y: float, on_way: bool) -> None:
        best = int(self.leaves[leaf].argmax())
        says, scene = float(self.leaves[leaf, best]), self.scene
        name = lettering(16).shortened(self.model.classes[best], END - 70)
        scene.words.append(_Words(x + 8, y - 15, name, 16, bold=on_way))
        end = x + 8 + lettering(16).length(name) + 10
        scene.words.append(_Words(end, y - 13, share(says), 14, SOFT))
        scene.boxes.append((x + 8, y + 6, x + 148, y + 11, "#eef1f4"))
        scene.boxes.append((x + 8, y + 6, x + 8 + 140 * says, y + 11, FOR if on_way or self.route is None else SOFT))

    def _size(self, code: int) -> tuple[int, int]:
        nodes, leaves, ahead = 0, 0, [code]
        while ahead:
            one = ahead.pop()
            if one < 0:
                leaves += 1
            else:
                nodes += 1
                ahead += [self.left[one], self.right[one]]
        return nodes, leaves


def _curve(start: tuple[float, float], stop: tuple[float, float], pieces: int = 40) -> list[tuple[float, float]]:
    """Return points of the cubic that leaves and arrives level."""
    (x0, y0), (x1, y1) = start, stop
    middle = (x0 + x1) / 2
    points = []
    for k in range(pieces + 1):
        t = k / pieces
        a, b, c, d = (1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3
        points.append((a * x0 + (b + c) * middle + d * x1, (a + b) * y0 + (c + d) * y1))
    return points


def _dashed(points: list[tuple[float, float]], dash: float = 7.0, gap: float = 5.0) -> list[list[tuple[float, float]]]:
    """Return the pieces of a line that are drawn; the last one reaches the end."""
    ends = [0.0]
    for a, b in pairwise(points):
        ends.append(ends[-1] + math.dist(a, b))
    count = max(1, round((ends[-1] + gap) / (dash + gap)))
    step = (ends[-1] + gap) / count
    pieces = []
    for k in range(count):
        low, high = k * step, k * step + step - gap
        inside = [point for point, at in zip(points, ends, strict=True) if low < at < high]
        pieces.append([_along(points, ends, low), *inside, _along(points, ends, high)])
    return pieces


def _along(points: list[tuple[float, float]], ends: list[float], at: float) -> tuple[float, float]:
    """Return the point at a length along a line."""
    k = min(max(bisect_left(ends, at), 1), len(points) - 1)
    (x0, y0), (x1, y1) = points[k - 1], points[k]
    t = (at - ends[k - 1]) / max(ends[k] - ends[k - 1], 1e-9)
    return x0 + (x1 - x0) * t, y0 + (y1 - y0) * t


def _paler(colour: str) -> str:
    """Return a colour two thirds of the way to paper."""
    parts = [int(colour[k : k + 2], 16) for k in (1, 3, 5)]
    return "#" + "".join(f"{round(255 - (255 - part) * 0.35):02x}" for part in parts)


def _plain(text: Any) -> str:
    return escape("".join(c if c.isprintable() else "?" for c in str(text)), quote=True)
