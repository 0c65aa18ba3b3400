"""Writing on pictures with what every Pillow has, and any name a person may give a class.

Pillow's own scalable font knows little beyond ASCII. Minus and times signs are drawn; other characters come from a font
of the system where there is one, else from their ASCII relatives (``é`` becomes ``e``), else they become ``?``.
"""

from __future__ import annotations

import math
import unicodedata
from functools import lru_cache
from typing import Any

from PIL import ImageDraw, ImageFont

DRAWN = frozenset("−×")
SYSTEM_FONTS = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "LiberationSans-Regular.ttf",
    "Arial Unicode.ttf",
    "Arial.ttf",
    "arial.ttf",
    "NotoSansCJK-Regular.ttc",
    "wqy-zenhei.ttc",
    "msyh.ttc",
)


@lru_cache(maxsize=64)
def lettering(size: int) -> Lettering:
    """Return the lettering of a size in pixels.

    Examples
    --------
    >>> lettering(20).shortened("a very long name of a class", 90)
    'a ve…lass'
    """
    return Lettering(size)


class Lettering:
    """Measures and writes single lines; the position is the top left corner of the line."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.font: Any = ImageFont.load_default(size=size)
        self.plus = self.font.getbbox("+")
        self.step = float(self.font.getlength("+"))
        self._missing = _shape(self.font, "\ue123")
        self._known: dict[str, tuple[str, Any]] = {}

    def length(self, text: str) -> float:
        """Return how wide a text is."""
        return sum(self.step if font is None else font.getlength(run) for run, font in self._runs(text))

    def write(
        self,
        draw: ImageDraw.ImageDraw,
        x: float,
        y: float,
        text: str,
        fill: str,
        *,
        bold: bool = False,
        right: bool = False,
    ) -> float:
        """Write a text and return where it ends; with ``right`` it ends at ``x``."""
        x = x - self.length(text) if right else x
        baseline = y + self.font.getmetrics()[0]
        for run, font in self._runs(text):
            if font is None:
                self._draw_sign(draw, run, x, y, fill, bold)
                x += self.step
            else:
                draw.text((x, baseline), run, fill=fill, font=font, anchor="ls", stroke_width=0.35 if bold else 0)
                x += font.getlength(run)
        return x

    def shortened(self, text: str, width: float) -> str:
        """Return a text that fits, cut in the middle: both ends of a name or path tell more than that."""
        if self.length(text) <= width:
            return text
        if len(text) > 400:
            text = text[:200] + text[-200:]
        for keep in range(len(text) - 1, 1, -1):
            head = keep // 2
            short = text[:head].rstrip() + "…" + text[len(text) - (keep - head) :].lstrip()
            if self.length(short) <= width:
                return short
        return "…"

    def wrapped(self, text: str, width: float) -> list[str]:
        """Return lines that fit, broken between words."""
        lines: list[str] = []
        for word in text.split():
            if lines and self.length(f"{lines[-1]} {word}") <= width:
                lines[-1] += f" {word}"
            else:
                lines.append(word)
        return lines

    def _runs(self, text: str) -> list[tuple[str, Any]]:
        runs: list[tuple[str, Any]] = []
        for char in text:
            shown, font = self._glyph(char)
            if runs and font is not None and runs[-1][1] is font:
                runs[-1] = (runs[-1][0] + shown, font)
            else:
                runs.append((shown, font))
        return runs

    def _glyph(self, char: str) -> tuple[str, Any]:
        if char in DRAWN:
            return char, None
        if " " <= char <= "~":
            return char, self.font
        if char not in self._known:
            self._known[char] = self._search(char)
        return self._known[char]

    def _search(self, char: str) -> tuple[str, Any]:
        if char.isspace() or unicodedata.category(char).startswith("C"):
            return " ", self.font
        if _shape(self.font, char) != self._missing:
            return char, self.font
        for font in _system_fonts(self.size):
            if _shape(font, char) != _shape(font, "\ue123"):
                return char, font
        relative = "".join(c for c in unicodedata.normalize("NFKD", char) if " " <= c <= "~")
        return relative or "?", self.font

    def _draw_sign(self, draw: ImageDraw.ImageDraw, sign: str, x: float, y: float, fill: str, bold: bool) -> None:
        x0, y0, x1, y1 = self.plus
        thick = max(1, round(self.size * (0.095 if bold else 0.08)))
        left, right, middle = x + x0, x + x1 - 1, y + (y0 + y1 - 1) / 2
        if sign == "−":
            draw.line([(left, middle), (right, middle)], fill=fill, width=thick)
            return
        reach = (right - left) * 0.34
        thick = max(1, round(self.size * 0.07))
        centre = (left + right) / 2
        draw.line([(centre - reach, middle - reach), (centre + reach, middle + reach)], fill=fill, width=thick)
        draw.line([(centre - reach, middle + reach), (centre + reach, middle - reach)], fill=fill, width=thick)


def _shape(font: Any, char: str) -> tuple[Any, bytes]:
    mask = font.getmask(char)
    return mask.size, bytes(mask)


@lru_cache(maxsize=64)
def _system_fonts(size: int) -> tuple[Any, ...]:
    found = []
    for name in SYSTEM_FONTS:
        try:
            found.append(ImageFont.truetype(name, size))
        except OSError:
            continue
    return tuple(found)


def number(value: float, digits: int = 2) -> str:
    """Write a number with a true minus sign; one that is not finite in words.

    Examples
    --------
    >>> number(-1.234), number(float("-inf"))
    ('−1.23', 'none')
    """
    if not math.isfinite(value):
        return "none" if value < 0 else "infinite"
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text.replace("-", "−")


def signed(value: float, digits: int = 2) -> str:
    """Write a number with its sign.

    Examples
    --------
    >>> signed(2.5), signed(-0.001)
    ('+2.50', '+0.00')
    """
    text = number(value, digits)
    return text if text.startswith("−") or not math.isfinite(value) else f"+{text}"


def share(value: float) -> str:
    """Write a probability; never 1.00 or 0.00 unless it is.

    Examples
    --------
    >>> share(0.734), share(0.99999), share(1.0)
    ('0.73', '> 0.99', '1.00')
    """
    if 0.995 <= value < 1:
        return "> 0.99"
    return "< 0.01" if 0 < value < 0.005 else f"{value:.2f}"


def percent(value: float | None, digits: int = 1) -> str:
    """Write a share as percent, a dash where there is none.

    Examples
    --------
    >>> percent(0.8731), percent(None)
    ('87.3 %', '–')
    """
    return "–" if value is None else f"{100 * value:.{digits}f} %"
