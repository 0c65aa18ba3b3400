"""Pictures of an explanation: this part of this case looks like that part of that training case. Pillow only.

A matched place is outlined in bright yellow between two black lines, so that it stands out on any picture; the soft
glow is the prototype's similarity map. What speaks for a class is blue, has a plus sign and a solid bar and outline;
what speaks against it is orange, has a minus sign, a hatched bar and a dashed outline.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from protolearn.core.model import PrototypeModel
from protolearn.core.modes import evaluating
from protolearn.explain.decode import decoded_pictures, decodes_pictures
from protolearn.explain.lettering import lettering, number, share, signed
from protolearn.explain.passes import CaseList, device_of, picture_of
from protolearn.explain.regions import percentile_boxes, to_original, upsample
from protolearn.structures import Box, Explanation, LedgerRow, Source, Tokens

PAPER, INK, SOFT, LINE = "#ffffff", "#16202a", "#5a6672", "#d5dbe1"
FOR, AGAINST, MARK = "#0072b2", "#c84e00", "#ffd60a"  # Okabe and Ito's blue and vermilion, the latter a shade darker
FIELD = "#56b4e9"  # sky blue of the same palette: what a place sees, beside what is outlined
GLOW = (255, 196, 0)

OUTLINED = (
    "Outlined: the place that was compared.",
    "Glow: the prototype's similarity map, upsampled.",
    "Its features see beyond the outline.",
)
DECODED = (
    "Prototype: as the model's decoder shows it.",
    "It is no training case; the nearest one is beside it.",
    "Compared are whole pictures.",
    "Struck through: far from it speaks for the class.",
)

NO_CASE = "no training case behind it"
NOT_AT_HAND = "its training case is not at hand"
CHANGED = "its training case has changed since"
NO_PICTURE = "its training case is numbers, not a picture"

SourcePictures = CaseList | Callable[[Source], Image.Image | None]
"""Where the pictures behind prototypes come from: the training cases, or a function."""


@dataclass(frozen=True)
class View:
    """One picture to be drawn.

    Attributes
    ----------
    picture : Image
        The original.
    box : Box, optional
        To outline, in pixels of the original.
    heat : ndarray, optional
        ``(h, w)`` from 0 to 1 over the part of the picture that ``window`` says.
    window : Box, optional
        The part of the original that the model saw; all of it by default.
    supports : bool
        Solid outline, or dashed.
    field : Box, optional
        Outlined too, dashed and in blue: what the boxed place sees.
    """

    picture: Image.Image
    box: Box | None = None
    heat: np.ndarray | None = None
    window: Box | None = None
    supports: bool = True
    field: Box | None = None

    @property
    def whole(self) -> bool:
        """Whether no part of the picture was meant: there is no box, or it holds everything."""
        width, height = self.picture.size
        return self.box is None or (
            self.box.x0 <= 0 and self.box.y0 <= 0 and self.box.x1 >= width and self.box.y1 >= height
        )

    def thumbnail(self, side: int) -> Image.Image:
        """Return the whole picture within a square of this side."""
        return self._drawn(Box(0.0, 0.0, *map(float, self.picture.size)), side)

    def close_up(self, side: int) -> Image.Image:
        """Return the surroundings of the box within a square of this side; the whole picture where there is none."""
        if self.box is None:
            return self.thumbnail(side)
        width, height = self.picture.size
        wide = max(self.box.x1 - self.box.x0, self.box.y1 - self.box.y0) * 1.7
        wide = min(max(wide, 0.2 * min(width, height), 3.0), float(min(width, height)))
        x0 = min(max((self.box.x0 + self.box.x1 - wide) / 2, 0.0), width - wide)
        y0 = min(max((self.box.y0 + self.box.y1 - wide) / 2, 0.0), height - wide)
        # a crop need not start on a pixel: resizing takes the fractional box
        return self._drawn(Box(x0, y0, x0 + wide, y0 + wide), side)

    def _drawn(self, part: Box, side: int) -> Image.Image:
        wide, high = part.x1 - part.x0, part.y1 - part.y0
        scale = side / max(wide, high)
        size = (max(1, round(wide * scale)), max(1, round(high * scale)))
        picture = self.picture.convert("RGB")
        # small pictures keep their pixels; shrinking and moderate enlarging are smooth
        nearest = scale >= 3 or max(self.picture.size) <= 64
        method = Image.Resampling.NEAREST if nearest and scale > 1 else Image.Resampling.LANCZOS
        shown = picture.resize(size, method, box=(part.x0, part.y0, part.x1, part.y1))
        if self.heat is not None:
            shown = self._glow(shown, part, scale)
        outlined = [(self.field, True, FIELD), (None if self.whole else self.box, not self.supports, MARK)]
        for box, dashed, colour in outlined:
            if box is not None:
                at = [(box.x0 - part.x0) * scale, (box.y0 - part.y0) * scale]
                to = [(box.x1 - part.x0) * scale, (box.y1 - part.y0) * scale]
                outline(shown, Box(*at, *to), dashed=dashed, width=max(2, round(side / 62)), colour=colour)
        return shown

    def _glow(self, shown: Image.Image, part: Box, scale: float) -> Image.Image:
        assert self.heat is not None
        window = self.window or Box(0.0, 0.0, *map(float, self.picture.size))
        left, top = (window.x0 - part.x0) * scale, (window.y0 - part.y0) * scale
        right, bottom = (window.x1 - part.x0) * scale, (window.y1 - part.y0) * scale
        # the part of the map that lies within what is shown
        height, width = self.heat.shape
        x0, x1 = max(left, 0.0), min(right, float(shown.width))
        y0, y1 = max(top, 0.0), min(bottom, float(shown.height))
        if x1 - x0 < 1 or y1 - y0 < 1:
            return shown
        across, down = width / (right - left), height / (bottom - top)
        source = ((x0 - left) * across, (y0 - top) * down, (x1 - left) * across, (y1 - top) * down)
        heat = Image.fromarray(self.heat.astype(np.float32))
        target = (max(1, round(x1 - x0)), max(1, round(y1 - y0)))
        laid = np.zeros((shown.height, shown.width), np.float32)
        x, y = min(round(x0), shown.width - target[0]), min(round(y0), shown.height - target[1])
        laid[y : y + target[1], x : x + target[0]] = np.asarray(
            heat.resize(target, Image.Resampling.BILINEAR, box=source)
        )
        laid = laid.clip(0.0, 1.0)[..., None]
        pixels = np.asarray(shown, np.float32)
        dimmed = pixels * (0.62 + 0.38 * laid)  # what did not match steps back
        alpha = 0.42 * laid**2.0
        return Image.fromarray(
            (dimmed * (1 - alpha) + np.array(GLOW, np.float32) * alpha).clip(0, 255).astype(np.uint8)
        )


def outline(picture: Image.Image, box: Box, *, dashed: bool = False, width: int = 3, colour: str = MARK) -> None:
    """Draw a bright rectangle between two black ones into a picture, never outside it."""
    draw = ImageDraw.Draw(picture)
    pad = width // 2 + 1
    x0, x1 = (min(max(v, pad), picture.width - 1 - pad) for v in (box.x0, box.x1))
    y0, y1 = (min(max(v, pad), picture.height - 1 - pad) for v in (box.y0, box.y1))
    if x1 <= x0 or y1 <= y0:
        return
    corners = [(x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0)]
    draw.line(corners, fill="#000000", width=width + 2, joint="curve")
    for a, b in pairwise(corners):
        for start, end in _dashes(a, b, width * 2.4) if dashed else [(a, b)]:
            draw.line([start, end], fill=colour, width=width)
    if not dashed:
        draw.line(corners, fill=colour, width=width, joint="curve")


def _dashes(a: tuple[float, float], b: tuple[float, float], dash: float) -> list[Any]:
    length = math.dist(a, b)
    count = max(1, round(length / (2 * dash)))
    step = 1.0 / (2 * count)
    return [
        tuple(
            (a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * t) for t in ((2 * k + 0.5) * step, (2 * k + 1.5) * step)
        )
        for k in range(count)
    ]


class Painter:
    """Makes the views of an explanation: finds source pictures, computes maps, remembers both.

    Parameters
    ----------
    model : PrototypeModel
        Left as it is.
    sources : Cases or callable, optional
        The training cases, or a function from a ``Source`` to its picture (None where it has none).
    region : {"cell", "percentile"}
        What is outlined: the place that was compared (the token's cell, or the window of cells it stands for), or the
        bounding rectangle of the map's hottest five percent.
    """

    def __init__(self, model: PrototypeModel, sources: SourcePictures | None = None, *, region: str = "cell") -> None:
        if region not in ("cell", "percentile"):
            raise ValueError(f"region is 'cell' or 'percentile', got {region!r}")
        self.model, self.sources, self.region = model, sources, region
        self.rows = {key: row for row, key in enumerate(model.bank.ids.tolist())}
        self._tokens: OrderedDict[str, Tokens] = OrderedDict()
        self._found: OrderedDict[Source, tuple[Image.Image | None, str]] = OrderedDict()
        self._decoded: list[Image.Image] | None = None

    def decoded(self, prototype: int) -> Image.Image | None:
        """Return what a decoder makes of a prototype, None where the model has none that makes pictures."""
        row = self.rows.get(prototype)
        if row is None or not decodes_pictures(self.model):
            return None
        if self._decoded is None:
            self._decoded = decoded_pictures(self.model)
        return self._decoded[row]

    def source_picture(self, source: Source | None) -> tuple[Image.Image | None, str]:
        """Return the picture behind a prototype; or None and why there is none."""
        if source is None:
            return None, NO_CASE
        if source not in self._found:
            self._found[source] = self._look_up(source)
            if len(self._found) > 256:
                self._found.popitem(last=False)
        return self._found[source]

    def _look_up(self, source: Source) -> tuple[Image.Image | None, str]:
        if self.sources is None:
            return None, NOT_AT_HAND
        if callable(self.sources):
            picture = self.sources(source)
            return (picture, "") if picture is not None else (None, NOT_AT_HAND)
        at = index_of(self.sources, source.case)
        if at is None:
            return None, NOT_AT_HAND
        content = getattr(self.sources, "content", None)
        if content is not None and content(at) != source.content:
            return None, CHANGED
        picture = picture_of(self.sources, at)
        return (picture, "") if picture is not None else (None, NO_PICTURE)

    def case_view(self, picture: Image.Image, case: str, row: LedgerRow) -> View:
        """Return a case with the region where the prototype of a row matched."""
        return self._view(picture, f"case {case}", row.prototype, row.region, row.contribution >= 0)

    def source_view(self, row: LedgerRow) -> tuple[View | None, str]:
        """Return the prototype's own picture with its region; or None and why."""
        return self.prototype_view(row.prototype, row.source, supports=row.contribution >= 0)

    def prototype_view(
        self, prototype: int, source: Source | None, *, supports: bool = True
    ) -> tuple[View | None, str]:
        """Return the picture a prototype comes from with its region; or None and why."""
        picture, why = self.source_picture(source)
        if picture is None or source is None:
            return None, why
        return self._view(picture, f"source {source.content}", prototype, source.region, supports), ""

    def _view(self, picture: Image.Image, key: str, prototype: int, cell: Box | None, supports: bool) -> View:
        view = View(picture, cell, supports=supports)
        found = self._map(picture, key, prototype)
        if found is None:
            return view
        heat, window = found
        if self.region == "percentile":
            height, width = heat.shape
            x0, y0, x1, y1 = percentile_boxes(torch.from_numpy(heat)).tolist()
            across, down = (window.x1 - window.x0) / width, (window.y1 - window.y0) / height
            box = Box(*(window.x0 + x0 * across, window.y0 + y0 * down, window.x0 + x1 * across, window.y0 + y1 * down))
            view = replace(view, box=box)
        return replace(view, heat=heat, window=window)

    def _map(self, picture: Image.Image, key: str, prototype: int) -> tuple[np.ndarray, Box] | None:
        preprocess = getattr(self.model.encoder, "preprocess", None)
        row = self.rows.get(prototype)
        if preprocess is None or row is None:
            return None
        tokens = self._embedded(picture, key, preprocess)
        if tokens.grid is None or len(tokens.grid) != 2 or tokens.input_size is None or tokens.grid == (1, 1):
            return None
        height, width = tokens.input_size
        maps = self.model.maps(tokens, torch.tensor([row], device=tokens.values.device))
        size = (min(height, 224), min(width, 224))  # only for the eye: no finer than it can see
        heat = upsample(maps, tokens.grid, size)[0, 0].float().cpu().numpy()
        low, high = float(heat.min()), float(heat.max())
        heat = (heat - low) / (high - low) if high > low else np.zeros_like(heat)
        return heat, to_original(Box(0.0, 0.0, float(width), float(height)), preprocess, picture.size)

    def _embedded(self, picture: Image.Image, key: str, preprocess: Any) -> Tokens:
        if key not in self._tokens:
            inputs = preprocess(picture).unsqueeze(0).to(device_of(self.model))
            with evaluating(self.model), torch.no_grad():
                self._tokens[key] = self.model.embed(self.model.encode(inputs))
            if len(self._tokens) > 128:
                self._tokens.popitem(last=False)
        return self._tokens[key]


def index_of(cases: CaseList, case: str) -> int | None:
    """Return the position of a case id, None where there is no such case."""
    finder = getattr(cases, "index", None)
    if finder is not None:
        try:
            return int(finder(case))
        except (ValueError, KeyError):
            return None
    ids = list(cases.ids)
    return ids.index(case) if case in ids else None


def verdict(explanation: Explanation, names: Sequence[str]) -> str:
    """Return what a model says of a case, in a few words."""
    return "Does not know" if explanation.unknown else f"Looks like {names[explanation.predicted]}"


def explanation_picture(
    painter: Painter,
    picture: Image.Image,
    explanation: Explanation,
    runner_up: Explanation | None = None,
    *,
    most: int = 5,
    against: int = 2,
) -> Image.Image:
    """Draw an explanation as one picture.

    Parameters
    ----------
    painter : Painter
        Of the model that made the explanation.
    picture : Image
        The case.
    explanation : Explanation
        Of the class to argue for, normally the predicted one.
    runner_up : Explanation, optional
        Of the class that came second, drawn below.
    most, against : int
        How many rows of each are shown.
    """
    card = _Card(painter, picture, explanation, runner_up)
    arguments = [explanation, *([runner_up] if runner_up is not None else [])]
    card.title()
    card.argument(explanation, most, first=True)
    if runner_up is not None:
        card.argument(runner_up, against, first=False)
    card.side_panel(arguments)
    return card.finished()


class _Card:
    WIDTH, MARGIN, SIDE, THUMB, GAP = 1360, 36, 300, 128, 10

    def __init__(
        self, painter: Painter, picture: Image.Image, explanation: Explanation, runner_up: Explanation | None
    ) -> None:
        self.painter, self.picture, self.explanation = painter, picture, explanation
        self.names = painter.model.classes
        self.canvas = Image.new("RGB", (self.WIDTH, 8000), PAPER)
        self.draw = ImageDraw.Draw(self.canvas)
        self.left = self.MARGIN + self.SIDE + 44
        self.y = self.MARGIN
        self.body = 0
        every = [*explanation.rows, *(() if runner_up is None else runner_up.rows)]
        # one scale for both classes, so that their bars can be compared
        self.largest = max((abs(row.contribution) for row in every), default=1.0) or 1.0
        self.side_end = 0

    def finished(self) -> Image.Image:
        return self.canvas.crop((0, 0, self.WIDTH, max(self.y, self.side_end) + self.MARGIN - 8))

    def words(
        self,
        x: float,
        y: float,
        text: str,
        size: int = 17,
        fill: str = INK,
        *,
        width: float | None = None,
        bold: bool = False,
    ) -> float:
        """Write one line and return where it ends."""
        face = lettering(size)
        text = face.shortened(text, width) if width is not None else text
        return face.write(self.draw, x, y, text, fill, bold=bold)

    def title(self) -> None:
        e = self.explanation
        said = "does not know" if e.unknown else f"predicted: {self.names[e.predicted]}"
        x = self.words(
            self.MARGIN,
            self.y,
            verdict(e, self.names) if e.target == e.predicted else f"Why {self.names[e.target]}? ({said})",
            34,
            width=880,
            bold=True,
        )
        self.words(x + 18, self.y + 12, f"probability {share(e.probability)}", 21, SOFT)
        self.y += 48
        told = f"case {e.case}"
        if e.label is not None:
            told += f"  ·  labelled {self.names[e.label]}: " + (
                "right" if e.label == e.predicted and not e.unknown else "not known" if e.unknown else "WRONG"
            )
        self.words(self.MARGIN, self.y, told, 18, SOFT, width=self.WIDTH - 2 * self.MARGIN)
        self.y += 44
        self.draw.line([(self.MARGIN, self.y), (self.WIDTH - self.MARGIN, self.y)], fill=LINE, width=2)
        self.y += 22
        self.body = self.y

    def argument(self, e: Explanation, most: int, *, first: bool) -> None:
        name, rows = self.names[e.target], e.top(most)
        if not first:
            self.y += 12
            self.draw.line([(self.left, self.y), (self.WIDTH - self.MARGIN, self.y)], fill=LINE, width=2)
            self.y += 18
        heading = f"Why {name}" if first else f"Runner-up: {name}"
        x = self.words(self.left, self.y, heading, 23, width=640, bold=True)
        self.words(x + 14, self.y + 6, f"{e.score_name} {number(e.logit)}", 18, SOFT)
        self.y += 36
        t, g = self.THUMB, self.GAP
        columns = [self.left, self.left + t + g, self.left + 2 * t + g + 62, self.left + 3 * t + 2 * g + 62]
        text = self.left + 4 * t + 2 * g + 62 + 24
        if rows:
            here, there, beside = headings(self.painter, rows)
            self.words(columns[0], self.y, here, 16, SOFT)
            self.words(columns[2], self.y, there, 16, SOFT)
            self.words(columns[3], self.y, beside, 16, SOFT)
            self.words(text, self.y, contribution_is(rows), 16, SOFT, width=self.WIDTH - self.MARGIN - text)
            self.y += 26
        for row in rows:
            self._row(row, columns, text, e)
            self.y += t + 16
        self._sum(e, rows)

    def _row(self, row: LedgerRow, columns: list[int], text: int, e: Explanation) -> None:
        t = self.THUMB
        here = self.painter.case_view(self.picture, e.case, row)
        there, why = self.painter.source_view(row)
        self._paste(here.thumbnail(t), columns[0])
        if not here.whole:
            self._paste(here.close_up(t), columns[1])
        middle = columns[1] + t + 31
        self._alike(middle, self.y + t / 2, but_not=far_speaks(row))
        made = self.painter.decoded(row.prototype)
        if made is not None:
            self._paste(View(made).thumbnail(t), columns[2])
        if there is None:
            self._absent(columns[2] if made is None else columns[3], why, wide=made is None)
        else:
            if made is None and not there.whole:
                self._paste(there.close_up(t), columns[2])
            self._paste(there.thumbnail(t), columns[3] if made is not None or not there.whole else columns[2])
        colour = FOR if row.contribution >= 0 else AGAINST
        room = self.WIDTH - self.MARGIN - text
        self.words(text, self.y - 2, signed(row.contribution), 32, colour, bold=True)
        bar(self.draw, text + 128, self.y + 7, room - 128, 20, row.contribution / self.largest)
        self.words(text, self.y + 42, made_of(row), 20)
        owner = "of no single class" if row.owner is None else f"class {self.names[row.owner]}"
        self.words(text, self.y + 72, f"prototype {row.prototype}, {owner}", 16, SOFT, width=room)
        self.words(text, self.y + 95, why or origin(row.source), 16, SOFT, width=room)

    def _paste(self, picture: Image.Image, x: int) -> None:
        t = self.THUMB
        self.draw.rectangle([x, self.y, x + t - 1, self.y + t - 1], fill="#f1f3f5")
        self.canvas.paste(picture, (x + (t - picture.width) // 2, self.y + (t - picture.height) // 2))

    def _alike(self, x: float, y: float, *, but_not: bool) -> None:
        for dy in (-7, 6):  # a wavy double line: alike
            points = [(x - 16 + k, y + dy - 3.2 * math.sin(k / 32 * 2 * math.pi)) for k in range(33)]
            self.draw.line(points, fill=SOFT, width=4, joint="curve")
        if but_not:
            self.draw.line([(x - 9, y + 19), (x + 9, y - 19)], fill=SOFT, width=4)

    def _absent(self, x: int, why: str, *, wide: bool = True) -> None:
        t = self.THUMB
        across = 2 * t + self.GAP if wide else t
        self.draw.rectangle([x, self.y, x + across, self.y + t - 1], outline=LINE, width=2)
        lines = lettering(18).wrapped(why, across - self.GAP - 30)
        for k, line in enumerate(lines):
            self.words(x + 18, self.y + t / 2 - 12 * len(lines) + 25 * k, line, 18, SOFT)

    def _sum(self, e: Explanation, rows: Sequence[LedgerRow]) -> None:
        x = float(self.left)
        for k, (value, what) in enumerate(summands(e, len(rows))):
            words = signed(value)
            x = self.words(x, self.y, words if k == 0 else f"{words[0]} {words[1:]}", 20) + 7
            x = self.words(x, self.y + 3, f"({what})", 16, SOFT) + 14
        self.words(x, self.y - 2, f"=  {e.score_name} {number(e.logit)}", 22, bold=True)
        self.y += 34

    def side_panel(self, arguments: Sequence[Explanation]) -> None:
        x, y = self.MARGIN, self.body
        shown = View(self.picture).thumbnail(self.SIDE)
        self.canvas.paste(shown, (x, y))
        y += shown.height + 26
        self.words(x, y, "Probability", 18, bold=True)
        y += 32
        for e in arguments:
            self.words(x, y, self.names[e.target], 17, width=self.SIDE - 80)
            lettering(17).write(self.draw, x + self.SIDE, y, share(e.probability), INK, right=True)
            bar(self.draw, x, y + 25, self.SIDE, 14, e.probability)
            y += 54
        if len(arguments) == 2:
            a, b = arguments
            self.words(x, y, f"{a.score_name} {number(a.logit)} and {number(b.logit)}:", 16, SOFT)
            ahead = "ahead" if a.logit >= b.logit else "behind"
            self.words(x, y + 21, f"{ahead} by {number(abs(a.logit - b.logit))}", 16, SOFT)
            y += 54
        y += 8
        rows = arguments[0].rows
        decoded = any(self.painter.decoded(row.prototype) is not None for row in rows)
        for line in (
            *(DECODED if decoded else OUTLINED),
            "Solid, +: speaks for the class.",
            "Dashed or hatched, −: speaks against it.",
        ):
            self.words(x, y, line, 14, SOFT)
            y += 20
        self.side_end = y


def far_speaks(row: LedgerRow) -> bool:
    """Say whether it is the distance that speaks for the class: similarity and weight are both below 0."""
    return row.evidence < 0 and row.weight < 0


def headings(painter: Painter, rows: Sequence[LedgerRow]) -> tuple[str, str, str]:
    """Return what stands above the pictures of the case, of the prototypes, and beside these."""
    if any(painter.decoded(row.prototype) is not None for row in rows):
        return "this picture", "prototype", "nearest case"
    if any(row.source is not None and not row.source.moved for row in rows):
        return "this part of this picture", "that part of the nearest picture", ""
    return "this part of this picture", "that part of a training picture", ""


def origin(source: Source | None) -> str:
    """Return in words where a prototype comes from, or what it only lies near."""
    if source is None:
        return NO_CASE
    return f"from {source.case}" if source.moved else f"nearest case {source.case}"


def contribution_is(rows: Sequence[LedgerRow]) -> str:
    """Return what contributions are made of, as the head of their column."""
    if rows and rows[0].parts:
        return " + ".join(rows[0].parts)
    return "contribution, by similarity" if rows and rows[0].quotient else "similarity × weight = contribution"


def weighed(e: Explanation) -> bool:
    """Say whether contributions are similarity times weight."""
    return not any(row.quotient or row.parts for row in e.rows)


def made_of(row: LedgerRow) -> str:
    """Return what a contribution is made of, in numbers."""
    if row.quotient and not row.parts:
        return f"similarity {number(row.similarity)}"
    return " ".join(map(signed, row.parts.values())) or f"{number(row.similarity)} × {signed(row.weight)}"


def summands(e: Explanation, shown: int) -> list[tuple[float, str]]:
    """Return the parts of a logit in words: the rows shown, what the others say for and against, the bias."""
    parts = [(sum(row.contribution for row in e.rows[:shown]), f"the {shown} shown")] if shown else []
    rest = e.rows[shown:]
    for said, words in (
        ([row.contribution for row in rest if row.contribution > 0], "for"),
        ([row.contribution for row in rest if row.contribution < 0], "against"),
    ):
        if said:
            parts.append((sum(said), f"{len(said)} other{'s' if len(said) > 1 else ''} {words}"))
    if e.bias:
        parts.append((e.bias, "bias"))
    return parts or [(0.0, "nothing speaks")]


def bar(draw: ImageDraw.ImageDraw, x: float, y: float, width: float, height: float, fraction: float) -> None:
    """Draw a bar of a signed fraction: solid blue from the left for plus, hatched orange for minus."""
    long = max(2.0, min(abs(fraction), 1.0) * width)
    draw.rectangle([x, y, x + width - 1, y + height - 1], fill="#eef1f4")
    if fraction >= 0:
        draw.rectangle([x, y, x + long - 1, y + height - 1], fill=FOR)
        return
    draw.rectangle([x, y, x + long - 1, y + height - 1], fill="#ffe9dc", outline=AGAINST, width=2)
    k = 0.0
    while k < long + height:
        a, b = max(0.0, k - long), min(k, height - 1)
        draw.line([(x + k - a, y + a), (x + k - b, y + b)], fill=AGAINST, width=2)
        k += 8
