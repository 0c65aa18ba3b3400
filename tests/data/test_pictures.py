"""Every kind of picture file is read right, or refused with its name and what to do."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from protolearn.data import pictures
from protolearn.data.pictures import content_hash, eight_bit, read_picture
from protolearn.errors import DataError


@pytest.fixture(autouse=True)
def _say_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "_said", set())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    monkeypatch.delenv(pictures.LIMIT_VARIABLE, raising=False)


def rgb(picture: Image.Image) -> np.ndarray:
    assert picture.mode == "RGB"
    return np.asarray(picture)


def saved(path: Path, picture: Image.Image, **options: object) -> Path:
    picture.save(path, **options)
    return path


COLOURS = np.array(
    [[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [10, 20, 30]], [[0, 0, 0], [255, 255, 255]]], dtype=np.uint8
)


@pytest.mark.parametrize("ending", ["png", "bmp", "tif", "gif", "webp", "ppm"])
def test_colour_files(tmp_path: Path, ending: str) -> None:
    options = {"lossless": True} if ending == "webp" else {}
    path = saved(tmp_path / f"a.{ending}", Image.fromarray(COLOURS), **options)
    assert rgb(read_picture(path)).tolist() == COLOURS.tolist()


def test_grey_and_one_bit(tmp_path: Path) -> None:
    grey = np.array([[0, 7, 255]], dtype=np.uint8)
    assert rgb(read_picture(saved(tmp_path / "g.png", Image.fromarray(grey))))[0].tolist() == [
        [0] * 3,
        [7] * 3,
        [255] * 3,
    ]
    bits = Image.fromarray(grey).convert("1", dither=Image.Dither.NONE)
    assert rgb(read_picture(saved(tmp_path / "b.png", bits)))[0].tolist() == [[0] * 3, [0] * 3, [255] * 3]


def test_palette_with_and_without_transparency(tmp_path: Path) -> None:
    palette = Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8), mode="L").convert("P")
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    assert rgb(read_picture(saved(tmp_path / "p.png", palette)))[0].tolist() == [[255, 0, 0], [0, 255, 0], [0, 0, 255]]
    clear = saved(tmp_path / "t.png", palette, transparency=1)
    with pytest.warns(UserWarning, match=r"t\.png is partly transparent: composited on white"):
        assert rgb(read_picture(clear))[0].tolist() == [[255, 0, 0], [255, 255, 255], [0, 0, 255]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        read_picture(clear)


def test_alpha_is_composited_on_white(tmp_path: Path) -> None:
    values = np.array([[[255, 0, 0, 0], [0, 0, 0, 128], [0, 0, 9, 255]]], dtype=np.uint8)
    with pytest.warns(UserWarning, match="composited on white"):
        found = rgb(read_picture(saved(tmp_path / "a.png", Image.fromarray(values))))
    assert found[0, 0].tolist() == [255, 255, 255]
    assert abs(int(found[0, 1, 0]) - 127) <= 1
    assert found[0, 2].tolist() == [0, 0, 9]


def test_opaque_alpha_says_nothing(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(COLOURS).convert("RGBA"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert rgb(read_picture(path)).tolist() == COLOURS.tolist()


def test_grey_with_alpha(tmp_path: Path) -> None:
    values = np.array([[[0, 0], [100, 255]]], dtype=np.uint8)
    with pytest.warns(UserWarning, match="composited"):
        found = rgb(read_picture(saved(tmp_path / "la.png", Image.fromarray(values, mode="LA"))))
    assert found[0].tolist() == [[255] * 3, [100] * 3]


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_sixteen_bits_use_the_full_range(tmp_path: Path, ending: str) -> None:
    path = saved(tmp_path / f"a.{ending}", Image.fromarray(np.array([[0, 257, 32768, 65535]], dtype=np.uint16)))
    assert rgb(read_picture(path))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_the_same_grey_stays_the_same_in_a_dim_picture(tmp_path: Path) -> None:
    bright = saved(tmp_path / "a.tif", Image.fromarray(np.array([[2570, 65535]], dtype=np.uint16)))
    dim = saved(tmp_path / "b.tif", Image.fromarray(np.array([[2570, 0]], dtype=np.uint16)))
    with pytest.warns(UserWarning, match=r"b\.tif uses at most 2570.*bits=12"):
        assert rgb(read_picture(dim))[0, 0, 0] == rgb(read_picture(bright))[0, 0, 0] == 10


def test_stated_bits(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.tif", Image.fromarray(np.array([[0, 2048, 4095]], dtype=np.uint16)))
    assert rgb(read_picture(path, bits=12))[0, :, 0].tolist() == [0, 128, 255]
    over = saved(tmp_path / "b.tif", Image.fromarray(np.array([[4096]], dtype=np.uint16)))
    with pytest.raises(DataError, match=r"b\.tif holds values from 4096 to 4096, beyond the 12 bits stated"):
        read_picture(over, bits=12)


def test_big_endian_sixteen_bits(tmp_path: Path) -> None:
    """A hand-made big-endian TIFF: the other byte order must not turn 256 into 1."""
    pixels = struct.pack(">2H", 65535, 257)
    tags = [
        (256, 3, 1, 2 << 16),
        (257, 3, 1, 1 << 16),
        (258, 3, 1, 16 << 16),
        (259, 3, 1, 1 << 16),
        (262, 3, 1, 1 << 16),
    ]
    tags += [(273, 4, 1, 8), (277, 3, 1, 1 << 16), (278, 3, 1, 1 << 16), (279, 4, 1, len(pixels))]
    directory = struct.pack(">H", len(tags)) + b"".join(struct.pack(">HHII", *tag) for tag in tags) + bytes(4)
    path = tmp_path / "big.tif"
    path.write_bytes(b"MM\x00\x2a" + struct.pack(">I", 8 + len(pixels)) + pixels + directory)
    assert rgb(read_picture(path))[0, :, 0].tolist() == [255, 1]


def test_cmyk(tmp_path: Path) -> None:
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    found = rgb(read_picture(saved(tmp_path / "c.tif", cmyk)))
    assert found[0, 0].tolist() == [255, 0, 0]
    jpeg = rgb(read_picture(saved(tmp_path / "c.jpg", cmyk, quality=100)))
    assert jpeg[0, 0, 0] > 245
    assert jpeg[0, 0, 1] < 10


@pytest.mark.parametrize("ending", ["jpg", "png", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(tmp_path: Path, ending: str, orientation: int) -> None:
    """Pillow's own transposition of the upright picture, stored with the tag that undoes it."""
    corners = np.zeros((16, 32, 3), dtype=np.uint8)
    corners[:8, :16] = (255, 0, 0)
    corners[8:, 16:] = (0, 0, 255)
    upright = Image.fromarray(corners)
    undo = {
        2: "FLIP_LEFT_RIGHT",
        3: "ROTATE_180",
        4: "FLIP_TOP_BOTTOM",
        5: "TRANSPOSE",
        6: "ROTATE_90",
        7: "TRANSVERSE",
        8: "ROTATE_270",
    }
    stored = upright.transpose(Image.Transpose[undo[orientation]]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[274] = orientation
    options = {"quality": 100, "subsampling": 0} if ending == "jpg" else {}
    path = saved(tmp_path / f"a.{ending}", stored, exif=exif, **options)
    found = rgb(read_picture(path)).astype(int)
    assert found.shape == (16, 32, 3)
    assert np.abs(found - corners).max() <= 3


def test_rotated_sixteen_bits(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    path = saved(tmp_path / "a.png", Image.fromarray(np.array([[0, 65535]], dtype=np.uint16)), exif=exif)
    assert rgb(read_picture(path))[:, 0, 0].tolist() == [0, 255]


def test_first_page(tmp_path: Path) -> None:
    pages = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    path = saved(tmp_path / "a.tif", pages[0], save_all=True, append_images=pages[1:])
    with pytest.warns(UserWarning, match=r"a\.tif has 2 pages or frames: the first is used"):
        assert rgb(read_picture(path))[0, 0].tolist() == [255, 0, 0]


def test_real_values(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.tif", Image.fromarray(np.array([[0.0, 0.5, 1.0]], dtype=np.float32)))
    assert rgb(read_picture(path))[0, :, 0].tolist() == [0, 128, 255]
    for name, values in {"high": [0.0, 2.0], "nan": [0.0, np.nan]}.items():
        wrong = saved(tmp_path / f"{name}.tif", Image.fromarray(np.array([values], dtype=np.float32)))
        with pytest.raises(DataError, match=rf"{name}\.tif holds real values .* expected 0 to 1"):
            read_picture(wrong)


def test_thirty_two_bits_need_a_scale(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.tif", Image.fromarray(np.array([[0, 1000]], dtype=np.int32)))
    with pytest.raises(DataError, match=r"a\.tif holds int32 values, which have no agreed scale"):
        read_picture(path)
    assert rgb(read_picture(path, bits=10))[0, :, 0].tolist() == [0, 249]


def test_zero_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"a\.png is empty \(0 bytes\)"):
        read_picture(tmp_path / "a.png")


@pytest.mark.parametrize("ending", ["png", "jpg", "tif", "bmp", "gif"])
def test_truncated(tmp_path: Path, ending: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = saved(tmp_path / f"a.{ending}", Image.fromarray(noise))
    whole = path.read_bytes()
    for share in (0.9, 0.5, 0.1):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(DataError, match=rf"a\.{ending} is (damaged|not a picture)"):
            read_picture(path)


def test_not_a_picture(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("hello, I am text")
    with pytest.raises(DataError, match=r"a\.png is not a picture that can be read: expected PNG"):
        read_picture(tmp_path / "a.png")
    with pytest.raises(DataError, match="is a folder: expected a picture"):
        read_picture(tmp_path)


def test_missing_suggests_a_neighbour(tmp_path: Path) -> None:
    saved(tmp_path / "bird.png", Image.new("L", (2, 2)))
    with pytest.raises(DataError, match=r"brid\.png does not exist.*did you mean 'bird\.png'"):
        read_picture(tmp_path / "brid.png")


def enormous(width: int, height: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [10_000, 50_000])  # Pillow itself would warn at the first and refuse the second
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_enormous_is_refused_before_it_is_decoded(tmp_path: Path, side: int) -> None:
    (tmp_path / "bomb.png").write_bytes(enormous(side, side))
    with pytest.raises(
        DataError, match=rf"bomb\.png is enormous .*{side * side:,} pixels.*PROTOLEARN_MAX_PIXELS={side * side}"
    ):
        read_picture(tmp_path / "bomb.png")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_the_limit_is_a_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "a.png", Image.new("L", (20, 20)))
    monkeypatch.setenv(pictures.LIMIT_VARIABLE, "399")
    with pytest.raises(DataError, match=r"a\.png is enormous \(.*400 pixels, the limit is 399\)"):
        read_picture(path)
    monkeypatch.setenv(pictures.LIMIT_VARIABLE, "400")
    assert read_picture(path).size == (20, 20)
    monkeypatch.setenv(pictures.LIMIT_VARIABLE, "many")
    with pytest.raises(DataError, match="must be a whole number of pixels, got 'many'"):
        read_picture(path)


def test_bytes_and_path_give_the_same(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(COLOURS))
    assert content_hash(read_picture(path.read_bytes())) == content_hash(read_picture(path))


def test_content_is_what_is_shown_not_the_file(tmp_path: Path) -> None:
    png, bmp = (saved(tmp_path / f"a.{ending}", Image.fromarray(COLOURS)) for ending in ("png", "bmp"))
    assert content_hash(read_picture(png)) == content_hash(read_picture(bmp))
    turned = Image.fromarray(COLOURS.reshape(2, 3, 3))  # the same bytes in another shape
    assert content_hash(turned) != content_hash(read_picture(png))
    changed = COLOURS.copy()
    changed[0, 0, 0] -= 1
    assert content_hash(Image.fromarray(changed)) != content_hash(read_picture(png))


def test_random_damage_never_escapes_as_another_error() -> None:
    draw = np.random.default_rng(0)
    noise = Image.fromarray(draw.integers(0, 256, (16, 16, 3), dtype=np.uint8))
    refused = 0
    for kind in ("PNG", "JPEG", "TIFF", "GIF", "BMP", "WEBP"):
        buffer = io.BytesIO()
        noise.save(buffer, kind)
        whole = np.frombuffer(buffer.getvalue(), dtype=np.uint8)
        for _ in range(30):
            broken = whole.copy()
            broken[draw.integers(0, len(whole), 8)] = draw.integers(0, 256, 8)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    assert read_picture(broken.tobytes(), name="x").mode == "RGB"
                except DataError:
                    refused += 1
    assert refused > 30


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([[300]], dtype=np.int64), "int64 values, which have no agreed scale"),
        (np.array([["a"]]), "expected uint8"),
        (np.array([[1j]]), "expected uint8"),
    ],
)
def test_arrays_without_a_scale(values: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        eight_bit(values)


def test_negative_values() -> None:
    with pytest.raises(DataError, match="from -1 to -1, beyond the 8 bits"):
        eight_bit(np.array([[-1]], dtype=np.int16), bits=8)
