"""Importances of visual characteristics as a sentence: "matched for its purple hue, not for its outline".

The rules are ours, the source leaves words to the reader. Alterations differ in strength, so each fall is first divided
by its mean size over prototypes, the usual fall. Prototypes differ in how much anything moves them, so those
are compared with the prototype's own mean size over characteristics: one at least ``MUCH`` times that mean is what it
is matched for, one of at most ``LITTLE`` times, up or down, what it is not matched for, and of one below that the
altered picture is more alike. A colour is named from the pixels of the prototype's own place in its training picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from protolearn.structures import Box

MUCH, LITTLE = 1.5, 0.25
"""Times a prototype's own mean: from here on a characteristic is named, up to here it is ruled out."""
NOTHING = "no characteristic stands out"
NOUNS = {
    "hue": "hue",
    "saturation": "strength of colour",
    "contrast": "contrast",
    "brightness": "brightness",
    "texture": "texture",
    "shape": "outline",
    "noise": "single pixels",
}
HUES = (
    (15, "red"), (40, "orange"), (70, "yellow"), (165, "green"), (195, "turquoise"), (255, "blue"), (290, "purple"),
    (345, "pink"), (360, "red"),
)  # fmt: skip
"""Up to which angle of the colour wheel, in degrees, a hue is called what."""


def sentence(names: Sequence[str], values: np.ndarray, usual: np.ndarray | None, colour: str | None = None) -> str:
    """Return importances of M characteristics in words.

    Parameters
    ----------
    names : sequence of str
        The characteristics.
    values : ndarray
        ``(M,)`` falls of the similarity, of one prototype.
    usual : ndarray or None
        ``(M,)`` mean size of the fall over prototypes; None where there is no other to compare with.
    colour : str, optional
        What the hue is called.

    Examples
    --------
    >>> sentence(("hue", "shape"), np.array([0.6, 0.01]), np.array([0.3, 0.2]), "purple")
    'matched for its purple hue (2.0 times the usual fall), not for its outline (0.0)'
    >>> sentence(("hue", "shape"), np.array([0.3, 0.2]), np.array([0.3, 0.2]))
    'no characteristic stands out'
    """
    if usual is None:
        return "no other prototype to compare its falls with"
    times = {m: float(values[m] / usual[m]) for m in range(len(names)) if usual[m] > 0}
    if not times:
        return NOTHING
    own = sum(map(abs, times.values())) / len(times)
    if own <= LITTLE:
        return f"hardly moved by any alteration ({_times(own)} times the usual fall)"
    if len(times) == 1:
        own = 1.0  # nothing to compare it with but other prototypes
    much = sorted((m for m in times if times[m] >= MUCH * own), key=lambda m: -times[m])
    little = sorted((m for m in times if abs(times[m]) <= LITTLE * own), key=lambda m: times[m])
    raised = sorted((m for m in times if times[m] < -LITTLE * own), key=lambda m: times[m])
    if not much and not little and not raised:
        return f"moved by every alteration alike ({_times(own)} times the usual fall)" if own >= 2 * MUCH else NOTHING
    parts = []
    for k, m in enumerate(much):
        noun = f"{colour} hue" if colour is not None and names[m] == "hue" else NOUNS.get(names[m], names[m])
        parts.append(f"{noun} ({_times(times[m])}{'' if k else ' times the usual fall'})")
    told = f"matched for its {_joined(parts, 'and')}" if much else "matched for no characteristic above the others"
    if little:
        told += f", not for its {_joined(_figures(names, times, little), 'or')}"
    if raised:
        told += f"; more alike when its {_joined(_figures(names, times, raised), 'or')} is altered"
    return told


def _figures(names: Sequence[str], times: dict[int, float], chosen: Sequence[int]) -> list[str]:
    return [f"{NOUNS.get(names[m], names[m])} ({_times(times[m])})" for m in chosen]


def _times(value: float) -> str:
    return f"{0.0 + round(value, 1):.1f}".replace("-", "−")


def _joined(parts: Sequence[str], word: str) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} {word} {parts[-1]}"


def hue_word(picture: Image.Image, box: Box | None = None) -> str | None:
    """Return what the colour of a picture, or of a box in it, is called; None where it is grey or of many colours.

    The mean of the pixels' hues around the wheel, each counted by how strong its colour is.

    Examples
    --------
    >>> hue_word(Image.new("RGB", (4, 4), (120, 40, 200))), hue_word(Image.new("RGB", (4, 4), (90, 90, 90)))
    ('purple', None)
    """
    if box is not None:
        width, height = picture.size
        x0, y0 = min(max(math.floor(box.x0), 0), width - 1), min(max(math.floor(box.y0), 0), height - 1)
        picture = picture.crop((x0, y0, max(min(math.ceil(box.x1), width), x0 + 1),
                                max(min(math.ceil(box.y1), height), y0 + 1)))  # fmt: skip
    values = np.asarray(picture.convert("RGB").convert("HSV"), dtype=np.float64).reshape(-1, 3) / 255.0
    strong = values[:, 1] * values[:, 2]
    if strong.mean() < 0.12:
        return None
    turned = (strong * np.exp(2j * np.pi * values[:, 0])).sum() / strong.sum()
    if abs(turned) < 0.7:
        return None
    angle = math.degrees(float(np.angle(turned))) % 360.0
    found = next(name for top, name in HUES if angle <= top)
    bright = float((strong * values[:, 2]).sum() / strong.sum())
    return "brown" if found == "orange" and bright < 0.65 else found
