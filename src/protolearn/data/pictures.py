"""One picture read right: upright, RGB, 8 bits, or an error that names the file and what to do.

The rules, the same for every file so that equal numbers stay equal across a data set:

- EXIF orientation is applied; nothing else in the metadata is (colour profiles are ignored).
- Transparency is composited on white; said once.
- 16-bit values are scaled by the full 16-bit range (65535 becomes 255), whatever range the picture uses: stretching
  each picture to its own range would make one grey mean two things. A TIFF that declares 9 to 15 bits a sample is
  scaled by those; any other range (a 12-bit camera writing 16-bit files) must be stated with ``bits=12``. 16-bit
  colour files are reduced to their high bytes, the same rule rounded down.
- Real-valued pictures must lie in 0 to 1. Other integer pictures need ``bits``.
- Of several pages or frames the first is used; said once.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from protolearn.errors import DataError, nearest_names

PICTURE_SUFFIXES = frozenset(
    f".{kind}"
    for kind in (
        *("png", "apng", "jpg", "jpeg", "jpe", "jfif", "bmp", "dib", "tif", "tiff", "gif", "webp", "avif"),
        *("ppm", "pgm", "pbm", "pnm", "jp2", "j2k", "tga", "pcx"),
    )
)
LIMIT_VARIABLE = "PROTOLEARN_MAX_PIXELS"
_said: set[str] = set()


def read_picture(source: str | Path | bytes, *, name: str | None = None, bits: int | None = None) -> Image.Image:
    """Read one picture as upright 8-bit RGB.

    Parameters
    ----------
    source : path or bytes
        A file, or the content of one.
    name : str, optional
        What messages call it; the path by default.
    bits : int, optional
        How many bits of a grey value above 8 bits are used, e.g. 12; the full range of the file's type by default.

    Returns
    -------
    PIL.Image.Image
        Mode RGB, without metadata.

    Examples
    --------
    >>> buffer = io.BytesIO()
    >>> Image.new("L", (4, 3), 200).save(buffer, "PNG")
    >>> picture = read_picture(buffer.getvalue(), name="grey.png")
    >>> picture.mode, picture.size
    ('RGB', (4, 3))
    """
    if name is None:
        name = "the picture" if isinstance(source, bytes) else str(source)
    with open_picture(source, name) as picture:
        return to_rgb(picture, name=name, bits=bits)


def open_picture(source: str | Path | bytes, name: str) -> Image.Image:
    """Open a picture, decode its first page and turn it upright, leaving its mode alone."""
    _refuse_empty(source, name)
    limit = _limit()
    try:
        picture = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
        if limit is not None and picture.width * picture.height > limit:
            raise _enormous(name, f"{picture.width} x {picture.height}", picture.width * picture.height, limit)
        if picture.format in ("TIFF", "GIF", "WEBP", "PNG") and "pages" not in _said:
            pages = getattr(picture, "n_frames", 1)
            if pages > 1:
                _say("pages", f"{name} has {pages} pages or frames: the first is used")
        declared = _declared_bits(picture)
        picture.load()
        upright = ImageOps.exif_transpose(picture)
        if declared:
            upright.info["declared_bits"] = declared
        return upright
    except DataError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        pixels = re.search(r"\((\d+) pixels\)", str(error))
        raise _enormous(name, "", int(pixels[1]) if pixels else 0, limit or 0) from error
    except UnidentifiedImageError as error:
        raise DataError(
            f"{name} is not a picture that can be read: expected PNG, JPEG, TIFF, BMP, GIF, WebP or another format of "
            "Pillow; convert it or remove it"
        ) from error
    except MemoryError as error:
        raise DataError(f"{name} does not fit in memory: make it smaller or remove it") from error
    except Exception as error:  # damaged files make decoders fail in many ways; all mean the same here
        raise DataError(
            f"{name} is damaged or incomplete ({_first_line(error)}): copy it again from its origin, or remove it"
        ) from error


def to_rgb(picture: Image.Image, *, name: str = "the picture", bits: int | None = None) -> Image.Image:
    """Turn a decoded picture of any mode into 8-bit RGB by the rules of this module."""
    mode = picture.mode
    if mode in ("I", "F") or mode.startswith("I;16"):
        values = np.asarray(picture)
        if values.dtype.kind == "u":
            bits = bits or picture.info.get("declared_bits")
        return Image.fromarray(eight_bit(values, name=name, bits=bits)).convert("RGB")
    if mode == "RGB" and "transparency" not in picture.info:
        return _bare(picture)
    if picture.has_transparency_data or mode in ("La", "RGBa"):
        clear = picture.convert("RGBA")
        if clear.getchannel("A").getextrema()[0] == 255:
            return _bare(clear.convert("RGB"))
        _say("alpha", f"{name} is partly transparent: composited on white")
        return _bare(Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear).convert("RGB"))
    try:
        return _bare(picture.convert("RGB"))
    except ValueError as error:
        raise DataError(
            f"{name} has colour mode {mode}, which has no conversion to RGB: save it as RGB or grey"
        ) from error


def eight_bit(values: np.ndarray, *, name: str = "the picture", bits: int | None = None) -> np.ndarray:
    """Scale an array of any type to uint8 by the rules of this module.

    Examples
    --------
    >>> eight_bit(np.array([0, 65535], dtype=np.uint16)).tolist()
    [0, 255]
    >>> eight_bit(np.array([0, 4095], dtype=np.uint16), bits=12).tolist()
    [0, 255]
    """
    if bits is not None and not 1 <= bits <= 32:
        raise DataError(f"bits must lie in 1 to 32, got {bits}")
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind == "f":
        low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
        if not (low >= 0.0 and high <= 1.0):  # also true for NaN
            raise DataError(
                f"{name} holds real values from {low:g} to {high:g}: expected 0 to 1 without NaN; rescale it, or "
                "store 0 to "
                "255 as uint8"
            )
        return np.rint(values.astype(np.float64) * 255.0).astype(np.uint8)
    if values.dtype.kind not in "ui":
        raise DataError(f"{name} holds {values.dtype} values: expected uint8, uint16, bool or real numbers from 0 to 1")
    low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
    if bits is None:
        if values.dtype.itemsize != 2 or values.dtype.kind != "u":
            raise DataError(
                f"{name} holds {values.dtype} values, which have no agreed scale: store 8-bit values as uint8, or "
                "say how "
                "many bits are used, e.g. bits=16"
            )
        bits = 16
        if 255 < high < 4096:
            _say("dim", f"{name} uses at most {high} of 65535 grey values; if the camera has 12 bits, say bits=12")
    full = 2**bits - 1
    if low < 0 or high > full:
        raise DataError(f"{name} holds values from {low} to {high}, beyond the {bits} bits stated (0 to {full})")
    return ((values.astype(np.uint64) * 255 + full // 2) // full).astype(np.uint8)


def content_hash(picture: Image.Image) -> str:
    """Return the SHA-256 of a picture's size and RGB pixels: what it shows, whatever file it came from."""
    digest = hashlib.sha256(f"RGB {picture.width}x{picture.height}\n".encode())
    digest.update(picture.convert("RGB").tobytes())
    return digest.hexdigest()


def _bare(picture: Image.Image) -> Image.Image:
    picture = picture.copy() if picture.info or type(picture) is not Image.Image else picture
    picture.info = {}
    return picture


def _refuse_empty(source: str | Path | bytes, name: str) -> None:
    if isinstance(source, bytes):
        size = len(source)
    else:
        path = Path(source)
        try:
            if path.is_dir():
                raise DataError(f"{name} is a folder: expected a picture file")
            size = path.stat().st_size
        except FileNotFoundError as error:
            siblings = sorted(p.name for p in path.parent.iterdir())[:2000] if path.parent.is_dir() else []
            hint = nearest_names(path.name, siblings) if siblings else ""
            hint = f" ({hint})" if hint.startswith("did") else ""
            raise DataError(f"{name} does not exist: was it moved or renamed?{hint}") from error
        except (OSError, ValueError) as error:
            raise DataError(f"{name} cannot be read: {_first_line(error)}") from error
    if size == 0:
        raise DataError(f"{name} is empty (0 bytes): copy it again from its origin, or remove it")


def _limit() -> int | None:
    stated = os.environ.get(LIMIT_VARIABLE)
    if stated:
        if not stated.isdigit() or int(stated) < 1:
            raise DataError(f"{LIMIT_VARIABLE} must be a whole number of pixels, got {stated!r}")
        Image.MAX_IMAGE_PIXELS = int(stated)
    return Image.MAX_IMAGE_PIXELS


def _enormous(name: str, size: str, pixels: int, limit: int) -> DataError:
    shown = f"{size} = {pixels:,}" if size else f"{pixels:,}"
    return DataError(
        f"{name} is enormous ({shown} pixels, the limit is {limit:,}): make it smaller, or, if you trust the file, "
        "raise the "
        f"limit with the environment variable {LIMIT_VARIABLE}={pixels}"
    )


def _declared_bits(picture: Image.Image) -> int | None:
    """Return the bits a sample that a TIFF declares when they are fewer than its container's."""
    tags = getattr(picture, "tag_v2", None)
    stated = tags.get(258) if tags is not None else None
    stated = stated[0] if isinstance(stated, tuple) and stated else stated
    return int(stated) if isinstance(stated, int) and 9 <= stated <= 15 else None


def _say(kind: str, message: str) -> None:
    if kind not in _said:
        _said.add(kind)
        warnings.warn(message + " (said once)", stacklevel=3)


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
