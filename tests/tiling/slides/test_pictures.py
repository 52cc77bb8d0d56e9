"""Plain JPEG and PNG as slides: pixels against Pillow's; what is not 8-bit RGB, or too large, is refused by name."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray

from tests.tiling.slides.test_slide import WINDOWS, assert_one_sentence, noise
from tiling.core.errors import SlideError, UnsupportedSlideError
from tiling.slides import picture_reader
from tiling.slides.files import is_slide, slide_name, slides_in
from tiling.slides.slide import Slide

U8 = NDArray[np.uint8]


def saved(path: Path, picture: PIL.Image.Image, **options: Any) -> Path:
    picture.save(path, **options)
    return path


def rgb() -> PIL.Image.Image:
    return PIL.Image.fromarray(noise(151, 203))


def see_through() -> PIL.Image.Image:
    picture = rgb().convert("RGBA")
    picture.putalpha(PIL.Image.fromarray(noise(151, 203, seed=1)[..., 0]))
    return picture


SLIDES: dict[str, tuple[str, Callable[[], PIL.Image.Image], dict[str, Any]]] = {
    "png": ("a.png", rgb, {"dpi": (300, 300)}),
    "jpeg": ("a.jpg", rgb, {"quality": 90, "dpi": (300, 300)}),
    "progressive": ("a.jpeg", rgb, {"progressive": True, "subsampling": 0}),
    "upper case": ("a.JPG", rgb, {"format": "JPEG"}),
    "named otherwise": ("a.tif", rgb, {"format": "PNG"}),
    "palette": ("a.png", lambda: rgb().quantize(64), {}),
}


@pytest.mark.parametrize("kind", SLIDES)
def test_pixels_equal_pillows(tmp_path: Path, kind: str) -> None:
    name, picture, options = SLIDES[kind]
    path = saved(tmp_path / name, picture(), **options)
    padded = np.full((400, 500, 3), 255, np.uint8)
    with PIL.Image.open(path) as oracle:
        padded[100:251, 100:303] = np.asarray(oracle.convert("RGB"))
        compression = oracle.format
    with Slide(path, mpp=0.5) as slide:
        assert [(level.width, level.height) for level in slide.levels] == [(203, 151)]
        assert (slide.mpp, slide.vendor, slide.compression()) == (0.5, "picture", compression)
        for x, y, w, h in WINDOWS:
            expected = padded[100 + y : 100 + y + h, 100 + x : 100 + x + w]
            np.testing.assert_array_equal(slide.read_region(x, y, 0, w, h), expected)
    assert slide_name(path) == "a"


def test_what_is_transparent_lies_over_white(tmp_path: Path) -> None:
    picture = see_through()
    pixels = np.asarray(picture).astype(float)
    alpha = pixels[..., 3:] / 255
    with Slide(saved(tmp_path / "a.png", picture), mpp=0.5) as slide:
        found = slide.read_region(0, 0, 0, 203, 151)
    assert np.abs(found - (pixels[..., :3] * alpha + 255 * (1 - alpha))).max() <= 1


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_dots_an_inch_are_no_scale(tmp_path: Path, name: str) -> None:
    """50,800 dots an inch would be 0.5 micrometres a pixel."""
    path = saved(tmp_path / name, rgb(), dpi=(50_800, 50_800))
    with Slide(path) as slide, pytest.raises(SlideError, match="--slide-mpp"):
        _ = slide.mpp


def test_in_folders_pictures_are_previews(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg"):
        assert not is_slide(saved(tmp_path / name, rgb()))
    assert slides_in(tmp_path) == []


def test_a_picture_open_twice_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, decode = list[int](), picture_reader._rgb

    def counted(picture: PIL.Image.Image) -> U8:
        calls.append(1)
        return decode(picture)

    monkeypatch.setattr(picture_reader, "_rgb", counted)
    path = saved(tmp_path / "a.png", rgb())
    with Slide(path, mpp=0.5) as one, Slide(path, mpp=0.5) as other:
        assert not calls
        np.testing.assert_array_equal(one.read_region(0, 0, 0, 99, 99), other.read_region(0, 0, 0, 99, 99))
        assert len(calls) == 1
        saved(path, PIL.Image.new("RGB", (203, 151), "red"))
        with Slide(path, mpp=0.5) as changed:
            assert changed.read_region(0, 0, 0, 1, 1).tolist() == [[[255, 0, 0]]]


def deep_png(path: Path) -> Path:
    """16 bits a sample, which Pillow would cut to 8."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
    rows = zlib.compress((b"\0" + bytes(48)) * 8)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))
    return path


def turned() -> bytes:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    return exif.tobytes()


REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "grey png": (lambda p: saved(p / "a.png", rgb().convert("L")), "a grey PNG"),
    "grey alpha": (lambda p: saved(p / "a.png", see_through().convert("LA")), "a grey PNG"),
    "grey of 16 bits": (lambda p: saved(p / "a.png", PIL.Image.fromarray(np.ones((9, 9), np.uint16))), "a grey PNG"),
    "bits": (lambda p: saved(p / "a.png", rgb().convert("1")), "black and white PNG"),
    "grey jpeg": (lambda p: saved(p / "a.jpg", rgb().convert("L")), "a grey JPEG"),
    "cmyk": (lambda p: saved(p / "a.jpg", rgb().convert("CMYK")), "a CMYK JPEG"),
    "16 bits": (lambda p: deep_png(p / "a.png"), "16 bits a sample"),
    "turned jpeg": (lambda p: saved(p / "a.jpg", rgb(), exif=turned()), "EXIF orientation"),
    "turned png": (lambda p: saved(p / "a.png", rgb(), exif=turned()), "EXIF orientation"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_supported_is_named(tmp_path: Path, kind: str) -> None:
    make, named = REFUSED[kind]
    path = make(tmp_path)
    with pytest.raises(UnsupportedSlideError, match=named) as caught:
        Slide(path)
    assert_one_sentence(caught.value, path)


@pytest.mark.parametrize("side", [11_600, 60_000])
def test_what_is_too_large_is_never_decoded(tmp_path: Path, side: int) -> None:
    """The second is what Pillow itself refuses to open."""
    path = saved(tmp_path / "a.png", PIL.Image.new("1", (8, 8)))
    data = bytearray(path.read_bytes())
    data[16:24] = struct.pack(">II", side, side)
    data[24:26] = bytes([8, 2])  # 8-bit RGB
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    path.write_bytes(data)
    with pytest.raises(UnsupportedSlideError, match=r"134 megapixels.*tiled pyramid TIFF"):
        Slide(path)


def test_a_jpeg_with_bytes_missing_in_the_middle_is_damaged(tmp_path: Path) -> None:
    """Pillow would show what comes of the rest."""
    path = tmp_path / "a.jpg"
    PIL.Image.fromarray(noise(80, 80)).save(path, quality=90)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + data[len(data) // 2 + 400 :])
    with Slide(path, mpp=0.5) as slide, pytest.raises(SlideError, match="damaged"):
        slide.read_region(0, 0, 0, 64, 64)


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_damaged_pictures_are_one_sentence_or_whole(tmp_path: Path, name: str) -> None:
    written = io.BytesIO()
    rgb().save(written, "PNG" if name == "a.png" else "JPEG", exif=turned()[:-4], quality=90)
    data, path, refused, random = written.getvalue(), tmp_path / name, 0, np.random.default_rng(0)
    copies = [data[: len(data) * i // 40] for i in range(1, 40)]
    for _ in range(200):
        changed = bytearray(data)
        for place in random.integers(8, 400, 3):
            changed[place] = random.integers(0, 256)
        copies.append(bytes(changed))
    for copy in copies:
        path.write_bytes(copy)
        try:
            with Slide(path, mpp=0.5) as slide:
                slide.read_region(0, 0, 0, 64, 64)
        except SlideError as error:
            assert_one_sentence(error, path)
            refused += 1
    assert refused >= 39
