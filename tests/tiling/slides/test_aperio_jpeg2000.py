"""Aperio's JPEG 2000: OpenSlide's pixels, and a tile whose stream does not fill it is as good as undecodable."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
import tifffile
from numpy.typing import NDArray

from tiling import Slide
from tiling.core.errors import SlideError, UnsupportedSlideError
from tiling.slides.jpeg2000_stream import fills, frame_shape
from tiling.slides.readers import READERS

TEXT = "Aperio Image Library v11.2.1 \r\n256x192 [0,0 256x192] (64x64) J2K/KDU Q=30|AppMag = 20|MPP = 0.5"
BEGIN = b"\xff\x4f\xff\x51"
PICTURE = np.random.default_rng(0).integers(0, 256, (192, 256, 3), np.uint8)
RGB, YCBCR = "aperio_jp2000_rgb", "aperio_jp2000_ycbc"
READER = {RGB: "openslide, tiles decoded directly", YCBCR: "openslide"}


def write(path: Path, compression: str = RGB, picture: NDArray[Any] = PICTURE) -> Path:
    """Two levels of 4 x 3 and 2 x 2 tiles of 64 px."""
    how: dict[str, Any] = {
        "tile": (64, 64), "compression": compression, "compressionargs": {"reversible": True}, "photometric": "rgb",
        "metadata": None,
    }  # fmt: skip
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(picture, description=TEXT, **how)
        tiff.write(picture[::2, ::2], **how)
    return path


def changed(path: Path, tile: int, at: int, form: str, *values: int, page: int = 0) -> Path:
    """The slide with other values in the header of one tile's stream, at a place that the standard gives."""
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as tiff:
        begin = tiff.pages[page].aspage().dataoffsets[tile]
    assert data[begin : begin + 4] == BEGIN
    struct.pack_into(form, data, begin + at, *values)
    path.write_bytes(data)
    return path


def listed(path: Path, tile: int, count: int) -> Path:
    """The slide with another number of bytes for one tile of its first level; 0: it is left out."""
    with tifffile.TiffFile(path, mode="r+") as tiff:
        tag = tiff.pages.first.tags["TileByteCounts"]
        tag.overwrite([count if i == tile else n for i, n in enumerate(tag.value)])
    return path


def shown(path: Path, level: int = 0) -> NDArray[np.uint8]:
    with openslide.OpenSlide(path) as slide:
        rgba = np.asarray(slide.read_region((0, 0), level, slide.level_dimensions[level]))
        return (
            rgba[..., :3] if (rgba[..., 3] == 255).all() else np.where(rgba[..., 3:] == 0, np.uint8(255), rgba[..., :3])
        )


@pytest.mark.parametrize("compression", [RGB, YCBCR])
def test_intact_slides_show_openslides_pixels(tmp_path: Path, compression: str) -> None:
    path = write(tmp_path / "a.svs", compression)
    with Slide(path) as slide:
        assert (slide.reader, slide.vendor, slide.mpp) == (READER[compression], "aperio", 0.5)
        for level, (width, height) in enumerate(((256, 192), (128, 96))):
            pixels = slide.read_region(0, 0, level, width, height)
            np.testing.assert_array_equal(pixels, shown(path, level))
        assert np.array_equal(slide.read_region(0, 0, 0, 256, 192), PICTURE) == (compression == RGB)
        np.testing.assert_array_equal(
            slide.read_region(-20, 150, 0, 300, 80)[:42, 20:276], slide.read_region(0, 150, 0, 256, 42)
        )


UNFIT = {
    "narrower by an offset": (16, ">I", 1), "lower by an offset": (20, ">I", 9), "narrower": (8, ">I", 63),
    "wider": (8, ">I", 65), "lower": (12, ">I", 32), "subsampled unevenly": (43, ">B", 3),
    "subsampled unevenly down": (50, ">B", 5), "of 12 bits": (42, ">B", 11), "signed": (45, ">B", 0x87),
    "of two components": (40, ">H", 2), "of no size": (2, ">H", 0),
}  # fmt: skip


@pytest.mark.parametrize("compression", [RGB, YCBCR])
@pytest.mark.parametrize("kind", UNFIT)
def test_a_tile_whose_stream_does_not_fill_it_is_damaged(tmp_path: Path, kind: str, compression: str) -> None:
    path = write(tmp_path / "a.svs", compression)
    intact = shown(path)
    with Slide(changed(path, 5, *UNFIT[kind])) as slide:
        assert slide.reader == READER[compression]
        for at in ((64, 64), (127, 127), (0, 0)):
            with pytest.raises(SlideError, match=r"a\.svs"):
                slide.read_region(*at, 0, 65, 65)
        for x, y, width, height in ((0, 0, 256, 64), (0, 64, 64, 128), (128, 64, 128, 128), (64, 128, 64, 64)):
            pixels = slide.read_region(x, y, 0, width, height)
            np.testing.assert_array_equal(pixels, intact[y : y + height, x : x + width])
        assert slide.read_region(0, 0, 1, 128, 96).shape == (96, 128, 3)


@pytest.mark.parametrize("count", [2**32 - 1, 1 << 20, 20])
def test_a_tile_that_ends_beyond_the_file_or_in_its_header_is_damaged(tmp_path: Path, count: int) -> None:
    with Slide(listed(write(tmp_path / "a.svs"), 5, count)) as slide:
        with pytest.raises(SlideError, match=r"a\.svs"):
            slide.read_region(64, 64, 0, 64, 64)
        np.testing.assert_array_equal(slide.read_region(128, 64, 0, 64, 64), PICTURE[64:128, 128:192])


def test_the_first_tile_of_a_level_is_looked_at_before_openslide_decodes_it(tmp_path: Path) -> None:
    """What OpenSlide refuses, tifffile reads, but for its damaged tile; colours of YCbCr it does not make."""
    path = changed(write(tmp_path / "a.svs"), 0, 16, ">I", 1)
    with Slide(path) as slide:
        assert slide.reader == "tifffile, tiles decoded directly"
        np.testing.assert_array_equal(slide.read_region(64, 0, 0, 192, 192), PICTURE[:, 64:])
        with pytest.raises(SlideError, match=r"a\.svs"):
            slide.read_region(0, 0, 0, 64, 64)
    path = changed(write(tmp_path / "b.svs", YCBCR), 0, 16, ">I", 1, page=1)
    with pytest.raises(UnsupportedSlideError, match="YCBC"):
        READERS["tifffile"](path, path)
    with pytest.raises(SlideError, match=r"b\.svs"):
        Slide(path)


def test_a_tile_that_is_left_out_shows_the_level_before(tmp_path: Path) -> None:
    path = listed(write(tmp_path / "a.svs"), 7, 0)
    with Slide(path) as slide:
        for level, (width, height) in enumerate(((256, 192), (128, 96))):
            np.testing.assert_array_equal(slide.read_region(0, 0, level, width, height), shown(path, level))
    with Slide(changed(path, 3, 16, ">I", 1)) as slide:  # OpenSlide makes a tile of the second level of it
        with pytest.raises(SlideError, match=r"a\.svs"):
            slide.read_region(200, 20, 1, 16, 16)
        assert slide.read_region(0, 0, 1, 64, 48).shape == (48, 64, 3)


def test_a_plain_tiff_whose_stream_has_other_samples_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, PICTURE, tile=(64, 64), compression="jpeg2000", photometric="rgb", metadata=None)
    data = path.read_bytes()
    start = data.index(BEGIN)
    path.write_bytes(data[: start + 42] + b"\x0b\x01\x01" * 3 + data[start + 51 :])
    with Slide(path) as slide, pytest.raises(SlideError, match=r"a\.tif"):
        slide.read_region(0, 0, 0, 64, 64)


def siz(width: int, height: int, *components: tuple[int, int, int], x: int = 0, y: int = 0) -> bytes:
    head = BEGIN + struct.pack(">HH8IH", 38 + 3 * len(components), 0, width, height, x, y, width, height, 0, 0, 3)
    return head + b"".join(struct.pack("3B", *component) for component in components)


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (siz(64, 48, *[(7, 1, 1)] * 3), True), (siz(64, 48, (7, 1, 1), (7, 2, 1), (7, 2, 1)), True),
        (siz(64, 48, (7, 1, 1), (7, 2, 2), (7, 2, 2)), True), (siz(64, 48, (7, 1, 1), (7, 3, 1), (7, 3, 1)), False),
        (siz(64, 48, (7, 1, 1), (7, 0, 1), (7, 1, 1)), False), (siz(64, 47, *[(7, 1, 1)] * 3), False),
        (siz(64, 48, *[(7, 1, 1)] * 3, x=1), False), (siz(64, 48, *[(7, 1, 1)] * 2), False), (b"", False),
        (b"\0" + siz(64, 48, *[(7, 1, 1)] * 3), False),
    ],
)  # fmt: skip
def test_what_fills_a_tile(stream: bytes, expected: bool) -> None:
    assert fills(stream, 64, 48) is expected


def test_the_shape_of_a_stream() -> None:
    assert frame_shape(b"box" + siz(65, 50, *[(7, 1, 1)] * 3, x=1, y=2)) == (48, 64, 3)
    with pytest.raises(ValueError, match="JPEG 2000"):
        frame_shape(BEGIN)


def test_streams_with_coarser_chroma_are_left_to_openslide(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Which no writer at hand makes; their headers say so."""
    path = write(tmp_path / "a.svs")
    for page, tiles in ((0, 12), (1, 4)):
        for tile in range(tiles):
            changed(path, tile, 46, ">B", 2, page=page)
    with Slide(path) as slide:
        assert slide.reader == "openslide"
    assert not caplog.records
