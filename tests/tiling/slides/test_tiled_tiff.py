"""The fast reader of tiled JPEG TIFFs: OpenSlide's pixels bit for bit, or nothing."""

from __future__ import annotations

import logging
import math
import pickle
import struct
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import numpy as np
import openslide
import pytest
import simplejpeg
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.demo.synthetic import write_pyramid
from tiling.core.errors import SlideError
from tiling.slides.direct import open_tiled_levels
from tiling.slides.jpeg_stream import NotUnderstoodError, ScaleDenom
from tiling.slides.readers import open_reader
from tiling.slides.slide import Slide
from tiling.slides.tiled_levels import BadTileError, TiledLevels
from tiling.slides.tiled_tiff import tiff_levels

U8 = NDArray[np.uint8]
DENOMS: tuple[ScaleDenom, ...] = (2, 4, 8)


@dataclass(frozen=True)
class Size:
    """A level as open_tiled_levels wants it."""

    width: int
    height: int
    downsample: float


# ------------------------------------------------------------------------------------------- slides made for the tests


def picture(height: int, width: int, seed: int = 0) -> U8:
    """Smooth coloured noise, different everywhere."""
    coarse = np.random.default_rng(seed).integers(40, 250, (height // 24 + 2, width // 24 + 2, 3)).astype(np.uint8)
    return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)


def encoded(tile: U8, colour: str) -> bytes:
    """One tile as a JPEG: "444", "422", "420" with JFIF, or "rgb" with neither JFIF nor Adobe marker (as Aperio)."""
    if colour != "rgb":
        return simplejpeg.encode_jpeg(np.ascontiguousarray(tile), 85, "RGB", colour)  # type: ignore[no-any-return]
    jpeg = imagecodecs.jpeg8_encode(tile, level=85, colorspace="RGB", outcolorspace="RGB", subsampling="444")
    return b"\xff\xd8" + b"".join(s for s in segments(bytes(jpeg)) if s[1] & 0xF0 != 0xE0)


def segments(jpeg: bytes) -> Iterator[bytes]:
    """The marker segments after SOI; the last is the scan with all that follows."""
    at = 2
    while jpeg[at + 1] != 0xDA:
        end = at + 2 + struct.unpack_from(">H", jpeg, at + 2)[0]
        yield jpeg[at:end]
        at = end
    yield jpeg[at:]


def split_tables(jpeg: bytes) -> tuple[bytes, bytes]:
    """(abbreviated stream, tables-only stream)."""
    parts = list(segments(jpeg))
    tables = b"".join(s for s in parts if s[1] in (0xDB, 0xC4))
    rest = b"".join(s for s in parts if s[1] not in (0xDB, 0xC4))
    return b"\xff\xd8" + rest, b"\xff\xd8" + tables + b"\xff\xd9"


def tiles_of(level: U8, tile: int) -> list[U8]:
    """Its tiles in reading order, padded with grey."""
    h, w = (math.ceil(n / tile) * tile for n in level.shape[:2])
    padded = np.full((h, w, 3), 99, np.uint8)
    padded[: level.shape[0], : level.shape[1]] = level
    return [padded[y : y + tile, x : x + tile] for y in range(0, h, tile) for x in range(0, w, tile)]


def write_slide(
    path: Path,
    level0: U8,
    *,
    colour: str = "420",
    tile: int = 256,
    levels: int = 1,
    shared: bool = False,
    absent: Sequence[int] = (),
    description: str | None = None,
    bigtiff: bool = False,
    photometric: str | None = None,
    streams: Callable[[bytes], bytes] = lambda s: s,
) -> Path:
    """A tiled JPEG TIFF from streams encoded here; `absent` tiles of each level get a byte count of zero."""
    tag = photometric or ("rgb" if colour == "rgb" else "ycbcr")
    with tifffile.TiffWriter(path, bigtiff=bigtiff) as tiff:
        level = level0
        for number in range(levels):
            jpegs = [encoded(t, colour) for t in tiles_of(level, tile)]
            tables = split_tables(jpegs[0])[1] if shared else None
            jpegs = [streams(split_tables(j)[0] if shared else j) for j in jpegs]
            tiff.write(
                iter(jpegs),
                shape=level.shape,
                dtype=np.uint8,
                tile=(tile, tile),
                compression="jpeg",
                compressionargs={"outcolorspace": tag},  # or tifffile would call RGB pages YCbCr
                photometric=tag,
                subsampling={"420": (2, 2), "422": (2, 1)}.get(colour, (1, 1)),
                jpegtables=tables,
                subfiletype=int(number > 0),
                description=None if number else description,
                metadata=None,
            )
            level = np.asarray(cv2.resize(level, (level.shape[1] // 2, level.shape[0] // 2)), np.uint8)
    blank(path, absent)
    return path


def blank(path: Path, absent: Sequence[int]) -> None:
    """Set the byte counts and offsets of some tiles to zero, in every level."""
    places = []
    with tifffile.TiffFile(path) as tiff:
        order = tiff.byteorder
        for page in tiff.pages:
            for name in ("TileOffsets", "TileByteCounts"):
                tag = page.tags[name]  # type: ignore[union-attr]
                size = {3: 2, 4: 4, 16: 8}[int(tag.dtype)]
                places += [(tag.valueoffset + i * size, size) for i in absent if i < tag.count]
    with path.open("r+b") as f:
        for offset, size in places:
            f.seek(offset)
            f.write(struct.pack({"<": "<", ">": ">"}[order] + {2: "H", 4: "I", 8: "Q"}[size], 0))


def sizes(path: Path) -> list[Size]:
    with openslide.OpenSlide(str(path)) as slide:
        return [Size(*d, f) for d, f in zip(slide.level_dimensions, slide.level_downsamples, strict=True)]


def on_white(path: Path, x0: int, y0: int, level: int, width: int, height: int) -> U8:
    """OpenSlide's region over white."""
    with openslide.OpenSlide(str(path)) as slide:
        rgba = np.asarray(slide.read_region((x0, y0), level, (width, height)), np.float64)
    alpha = rgba[..., 3:] / 255
    return np.rint(rgba[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)


@cache
def canvas(path: Path, level: int, margin: int = 300) -> U8:
    """A whole level as OpenSlide shows it, read from (0, 0) where it never interpolates, with a white margin."""
    size = sizes(path)[level]
    inner = on_white(path, 0, 0, level, size.width + margin, size.height + margin)
    return np.pad(inner, ((margin, 0), (margin, 0), (0, 0)), constant_values=255)


def opened(path: Path, **options: Any) -> TiledLevels:
    found = open_tiled_levels(path, sizes(path), **options)
    assert found is not None
    return found


def agrees(path: Path, fast: TiledLevels) -> bool:
    with Slide(path) as slide:
        return fast.agrees_with(slide.read_region, slide.levels)


def assert_equals_openslide(path: Path) -> None:
    with opened(path) as fast:
        assert agrees(path, fast)
        for level, size in enumerate(sizes(path)):
            ours = fast.read(level, -300, -300, size.width + 600, size.height + 600)
            np.testing.assert_array_equal(ours, canvas(path, level))


def decibels(ours: U8, theirs: U8) -> float:
    error = float(np.mean((ours.astype(np.float64) - theirs) ** 2))
    return 10 * math.log10(255**2 / max(error, 1e-9))


# ------------------------------------------------------------------------------------------------ OpenSlide's pixels


@pytest.mark.parametrize("shared", [False, True], ids=["private", "shared"])
@pytest.mark.parametrize("tile", [240, 256])
@pytest.mark.parametrize("colour", ["444", "422", "420", "rgb"])
def test_every_kind_equals_openslide(tmp_path: Path, colour: str, tile: int, shared: bool) -> None:
    path = write_slide(tmp_path / "a.tif", picture(531, 707), colour=colour, tile=tile, levels=3, shared=shared)
    assert len(sizes(path)) == 3
    assert_equals_openslide(path)


@pytest.mark.parametrize("subsampling", [(1, 1), (2, 1), (2, 2)])
def test_our_own_pyramids_equal_openslide(tmp_path: Path, subsampling: tuple[int, int]) -> None:
    write_pyramid(tmp_path / "a.tif", picture(600, 900), mpp=0.5, levels=3, subsampling=subsampling)
    assert_equals_openslide(tmp_path / "a.tif")


def test_bigtiff_equals_openslide(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "a.tif", picture(300, 400), bigtiff=True, levels=2)
    with tifffile.TiffFile(path) as tiff:
        assert tiff.is_bigtiff
    assert_equals_openslide(path)


def test_the_real_slide_equals_openslide(svs: Path) -> None:
    assert_equals_openslide(svs)


@pytest.mark.parametrize("width", [256, 512, 257])
def test_sizes_that_tiles_fill_exactly_or_just_exceed(tmp_path: Path, width: int) -> None:
    assert_equals_openslide(write_slide(tmp_path / "a.tif", picture(256, width)))


@pytest.mark.parametrize("absent", [(0,), (1, 4), (5,), tuple(range(6))])
def test_left_out_tiles_are_white(tmp_path: Path, absent: tuple[int, ...]) -> None:
    path = write_slide(tmp_path / "a.tif", picture(500, 700), levels=2, absent=absent)
    assert_equals_openslide(path)


def test_comments_and_other_markers_do_not_matter_and_do_not_leave(tmp_path: Path) -> None:
    def with_comment(stream: bytes) -> bytes:
        secret = b"Jane Doe"
        return stream[:2] + b"\xff\xfe" + struct.pack(">H", 2 + len(secret)) + secret + stream[2:]

    path = write_slide(tmp_path / "a.tif", picture(300, 300), streams=with_comment)
    assert_equals_openslide(path)
    with opened(path) as fast:
        stream = fast.stream(0, 0, 0)
    assert b"Jane Doe" in path.read_bytes()
    assert stream is not None
    assert b"Jane Doe" not in stream


@pytest.mark.parametrize("colour", ["444", "422", "420", "rgb"])
def test_a_stream_is_a_picture_of_its_own(tmp_path: Path, colour: str) -> None:
    path = write_slide(tmp_path / "a.tif", picture(500, 500), colour=colour, shared=True, absent=[3])
    with opened(path) as fast:
        stream = fast.stream(0, 0, 1)
        assert stream is not None
        np.testing.assert_array_equal(simplejpeg.decode_jpeg(stream, "RGB")[:244], fast.read(0, 0, 256, 256, 244))
        assert fast.stream(0, 1, 1) is None
        for nowhere in ((2, 0), (0, 2), (-1, 0)):
            with pytest.raises(IndexError):
                fast.stream(0, *nowhere)
        assert fast.jpeg_tile_px(0) == (256, 256)


@pytest.mark.parametrize("missing", [1, 2, 3000])
def test_a_stream_that_is_cut_short_is_not_copied(tmp_path: Path, missing: int) -> None:
    path = write_slide(tmp_path / "a.tif", picture(500, 500))
    with opened(path) as fast:
        assert fast._levels[0] is not None
        fast._levels[0].counts[2] -= missing
        with pytest.raises(BadTileError, match=r"column 0, row 1 .*ends too early"):
            fast.stream(0, 0, 1)
        assert fast.stream(0, 0, 0) is not None


def test_ome_tiff_equals_tifffile(ome: Path) -> None:
    with Slide(ome) as slide:
        fast = open_tiled_levels(ome, slide.levels)
        assert fast is not None  # RGB by its tag, JFIF by its streams
        with fast:
            assert fast.agrees_with(slide.read_region, slide.levels)
            theirs = slide.read_region(-20, -30, 0, slide.width + 40, slide.height + 50)
            np.testing.assert_array_equal(fast.read(0, -20, -30, slide.width + 40, slide.height + 50), theirs)


def test_ome_pyramid_in_subifds(tmp_path: Path) -> None:
    path, level0 = tmp_path / "a.ome.tif", picture(600, 800)
    layout: dict[str, Any] = {"tile": (256, 256), "compression": "jpeg", "photometric": "rgb"}
    with tifffile.TiffWriter(path, ome=True) as tiff:
        tiff.write(level0, subifds=1, metadata={"axes": "YXS"}, **layout)
        tiff.write(level0[::2, ::2], subfiletype=1, **layout)
    with Slide(path) as slide:
        assert len(slide.levels) == 2
        fast = open_tiled_levels(path, slide.levels)
        assert fast is not None
        with fast:
            assert fast.agrees_with(slide.read_region, slide.levels)
            np.testing.assert_array_equal(fast.read(1, 0, 0, 400, 300), slide.read_region(0, 0, 1, 400, 300))


@pytest.fixture(scope="module")
def varied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, TiledLevels]]:
    """A slide of three levels with a left-out tile, and its reader with room for five tiles."""
    path = tmp_path_factory.mktemp("varied") / "a.tif"
    write_slide(path, picture(1013, 1403), tile=240, levels=3, shared=True, absent=[7])
    with opened(path, cache_bytes=5 * 240 * 240 * 3) as fast:
        yield path, fast


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_random_regions(varied: tuple[Path, TiledLevels], data: st.DataObject) -> None:
    path, fast = varied
    level = data.draw(st.integers(0, 2))
    whole = canvas(path, level)
    x = data.draw(st.integers(-300, whole.shape[1] - 301))
    y = data.draw(st.integers(-300, whole.shape[0] - 301))
    width = data.draw(st.integers(1, whole.shape[1] - x - 300))
    height = data.draw(st.integers(1, whole.shape[0] - y - 300))
    theirs = whole[y + 300 : y + 300 + height, x + 300 : x + 300 + width]
    np.testing.assert_array_equal(fast.read(level, x, y, width, height), theirs)


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_random_regions_of_the_real_slide(svs: Path, data: st.DataObject) -> None:
    x, y = data.draw(st.integers(-200, 2300)), data.draw(st.integers(-200, 3000))
    width, height = data.draw(st.integers(1, 700)), data.draw(st.integers(1, 700))
    with opened(svs) as fast:
        np.testing.assert_array_equal(fast.read(0, x, y, width, height), on_white(svs, x, y, 0, width, height))


# ------------------------------------------------------------------------------------------------------ scaled decode


def area(path: Path, level: int, x: int, y: int, width: int, height: int, denom: int) -> U8:
    """OpenSlide's region, resampled by area."""
    whole = np.pad(canvas(path, level), ((0, 300), (0, 300), (0, 0)), constant_values=255)
    part = whole[y + 300 : y + 300 + height, x + 300 : x + 300 + width]
    return np.asarray(cv2.resize(part, (width // denom, height // denom), interpolation=cv2.INTER_AREA), np.uint8)


@pytest.mark.parametrize("denom", DENOMS)
def test_scaled_real_slide_is_close_to_area(svs: Path, denom: ScaleDenom) -> None:
    with opened(svs) as fast:
        whole = fast.read(0, 0, 0, 2240, 2976, denom)
        assert decibels(whole, area(svs, 0, 0, 0, 2240, 2976, denom)) >= 45
        assert decibels(whole[-30:], area(svs, 0, 0, 0, 2240, 2976, denom)[-30:]) >= 45  # the cut tiles


@pytest.mark.parametrize("colour", ["444", "422", "420", "rgb"])
@pytest.mark.parametrize("denom", DENOMS)
def test_scaled_smooth_slide_is_close_to_area(tmp_path: Path, denom: ScaleDenom, colour: str) -> None:
    smooth = np.asarray(cv2.GaussianBlur(picture(531, 707), (0, 0), 6), np.uint8)
    path = write_slide(tmp_path / "a.tif", smooth, colour=colour)
    with opened(path) as fast:
        ours = fast.read(0, -16, -16, 736, 560, denom)
    assert decibels(ours, area(path, 0, -16, -16, 736, 560, denom)) >= 45


@pytest.mark.parametrize("tile", [240, 256])
@pytest.mark.parametrize("denom", DENOMS)
def test_scaled_pixels_stay_in_place(tmp_path: Path, denom: ScaleDenom, tile: int) -> None:
    """The colours are the position: red rises by one every 4 px to the right, green every 4 px down."""
    y, x = np.mgrid[:880, :960]
    coded = np.stack([x / 4, y / 4, np.full_like(x, 128)], axis=2)
    path = write_slide(tmp_path / "a.tif", np.rint(coded).astype(np.uint8), colour="444", tile=tile)
    with opened(path) as fast:
        got = fast.read(0, 0, 0, 960, 880, denom).astype(np.float64)
    rows, columns = np.mgrid[: 880 // denom, : 960 // denom]
    for channel, where in ((0, columns), (1, rows)):
        expected = (where * denom + (denom - 1) / 2) / 4  # the middle of the pixels it stands for
        off = (got[..., channel] - expected) * 4  # in level pixels
        assert abs(off.mean()) < 0.5  # rounding to whole colours is 2 px at worst, and evens out
        middles = off[5:-5, 5:-5]
        for edge in range(tile // denom, min(middles.shape) - 5, tile // denom):  # nothing jumps between native tiles
            step = middles[:, edge : edge + 4].mean() - middles[:, edge - 8 : edge - 4].mean()
            assert abs(step) < 1.5


@settings(deadline=None, max_examples=80)
@given(data=st.data())
def test_scaled_regions_are_parts_of_one_picture(varied: tuple[Path, TiledLevels], data: st.DataObject) -> None:
    _, fast = varied
    level, d = data.draw(st.integers(0, 2)), data.draw(st.sampled_from(DENOMS))
    side = 1600 // d
    whole = fast.read(level, -64, -64, 1600, 1600, d)
    x, y = data.draw(st.integers(0, side - 1)), data.draw(st.integers(0, side - 1))
    width, height = data.draw(st.integers(1, side - x)), data.draw(st.integers(1, side - y))
    part = fast.read(level, x * d - 64, y * d - 64, width * d, height * d, d)
    np.testing.assert_array_equal(part, whole[y : y + height, x : x + width])


@pytest.mark.parametrize(
    "rectangle", [(1, 0, 8, 8, 2), (0, 2, 8, 8, 4), (0, 0, 12, 8, 8), (0, 0, 0, 8, 1), (0, 0, 9, 9, 3)]
)
def test_rectangles_off_the_grid_are_refused(
    varied: tuple[Path, TiledLevels], rectangle: tuple[int, int, int, int, Any]
) -> None:
    with pytest.raises(ValueError, match="see the docstring"):
        varied[1].read(0, *rectangle)


# ------------------------------------------------------------------------------------------------ lossless tiles


LOSSLESS: dict[str, dict[str, Any]] = {
    "uncompressed": {},
    "LZW": {"compression": "lzw"},
    "LZW, differences": {"compression": "lzw", "predictor": True},
    "deflate": {"compression": "zlib"},
    "zstd": {"compression": "zstd"},
    "deflate, differences": {"compression": "zlib", "predictor": True},
}


def write_lossless(path: Path, kind: str) -> U8:
    """A slide of 700 x 520 px with a level of half that; returns its pixels."""
    pixels = picture(520, 700)
    with tifffile.TiffWriter(path) as tiff:
        for down in (1, 2):
            kinds: dict[str, Any] = {
                "photometric": "rgb",
                "tile": (256, 240),
                "metadata": None,
                "subfiletype": int(down > 1),
            }
            tiff.write(np.ascontiguousarray(pixels[::down, ::down]), **kinds, **LOSSLESS[kind])
    return pixels


@pytest.mark.parametrize("kind", LOSSLESS)
def test_lossless_tiles_equal_openslide(tmp_path: Path, kind: str) -> None:
    pixels = write_lossless(tmp_path / "a.tif", kind)
    assert_equals_openslide(tmp_path / "a.tif")
    with opened(tmp_path / "a.tif") as fast:
        np.testing.assert_array_equal(fast.read(0, 0, 0, 700, 520), pixels)
        assert fast.jpeg_tile_px(0) is None


@pytest.mark.parametrize("kind", LOSSLESS)
@pytest.mark.parametrize("denom", DENOMS)
def test_scaled_lossless_tiles_are_area_averages(tmp_path: Path, kind: str, denom: ScaleDenom) -> None:
    pixels = write_lossless(tmp_path / "a.tif", kind)[16:496, 8:688]
    with opened(tmp_path / "a.tif") as fast:
        scaled = fast.read(0, 8, 16, 680, 480, denom).astype(int)
    exact = pixels.reshape(480 // denom, denom, 680 // denom, denom, 3).mean(axis=(1, 3))
    assert np.abs(scaled - exact).max() <= 0.5


@pytest.mark.parametrize("kind", sorted(set(LOSSLESS) - {"uncompressed"}))
def test_a_damaged_lossless_tile_is_named_and_alone(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.tif"
    pixels = write_lossless(path, kind)
    damage(path, 4, lambda stored: stored[:100] + bytes(len(stored) - 100))
    with opened(path) as fast:
        with pytest.raises(BadTileError, match=r"level 0, column 1, row 1 .*corrupt"):
            fast.read(0, 240, 256, 32, 32)
        np.testing.assert_array_equal(fast.read(0, 0, 0, 240, 520), pixels[:, :240])


# ---------------------------------------------------------------------------------------------- what it does not read


def write_plain(path: Path, pixels: NDArray[Any], **layout: Any) -> Path:
    tifffile.imwrite(path, pixels, metadata=None, **layout)
    return path


PLAIN: dict[str, dict[str, Any]] = {
    "LZW, YCbCr": {"tile": (256, 256), "compression": "lzw", "photometric": "ycbcr"},
    "JPEG 2000": {"tile": (256, 256), "compression": "jpeg2000", "photometric": "rgb"},
    "LZMA": {"tile": (256, 256), "compression": "lzma", "photometric": "rgb"},
    "in strips": {"rowsperstrip": 64, "compression": "jpeg", "photometric": "rgb"},
    "separate planes": {"tile": (256, 256), "compression": "jpeg", "photometric": "rgb", "planarconfig": "separate"},
}


@pytest.mark.parametrize("kind", PLAIN)
def test_other_tiffs_are_left_alone(tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    pixels = picture(300, 400)
    if kind == "separate planes":
        pixels = np.ascontiguousarray(np.moveaxis(pixels, 2, 0))
    path = write_plain(tmp_path / "a.tif", pixels, **PLAIN[kind])
    with caplog.at_level(logging.DEBUG, "tiling.slides.direct"):
        assert open_tiled_levels(path, [Size(400, 300, 1.0)]) is None
    assert "not read as tiles of TIFF: " in caplog.text


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_grey_and_deep_tiles_are_left_alone(tmp_path: Path, dtype: type) -> None:
    grey: NDArray[Any] = picture(300, 400)[..., 0].astype(dtype)
    layout: dict[str, Any] = {"compression": "jpeg"} if dtype is np.uint8 else {}
    path = write_plain(tmp_path / "a.tif", grey, tile=(256, 256), photometric="minisblack", **layout)
    assert open_tiled_levels(path, [Size(400, 300, 1.0)]) is None


def test_levels_must_fit_exactly_one_page(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "a.tif", picture(300, 400), levels=2)
    assert open_tiled_levels(path, [Size(400, 300, 1.0)]) is not None
    assert open_tiled_levels(path, [Size(400, 301, 1.0)]) is None
    with tifffile.TiffWriter(tmp_path / "b.tif") as tiff:
        for _ in range(2):
            tiff.write(picture(300, 400), tile=(256, 256), compression="jpeg", photometric="rgb", metadata=None)
    assert open_tiled_levels(tmp_path / "b.tif", [Size(400, 300, 1.0)]) is None


def test_giant_tiles_are_left_alone(tmp_path: Path) -> None:
    path = write_plain(tmp_path / "a.tif", picture(64, 64), tile=(16, 4112), compression="jpeg", photometric="rgb")
    assert open_tiled_levels(path, [Size(64, 64, 1.0)]) is None


def test_other_vendors_are_left_alone(ndpi: Path) -> None:
    with pytest.raises(NotUnderstoodError, match="hamamatsu"):
        tiff_levels(ndpi, sizes(ndpi))


def test_aperio_slides_with_left_out_tiles_are_left_alone(tmp_path: Path) -> None:
    """OpenSlide paints their missing tiles from another level."""
    known: dict[str, Any] = {"levels": 2, "description": "Aperio Image Library\r\nx|MPP = 0.5"}
    whole = write_slide(tmp_path / "a.svs", picture(600, 900), **known)
    assert openslide.OpenSlide.detect_format(str(whole)) == "aperio"
    assert_equals_openslide(whole)
    sparse = write_slide(tmp_path / "b.svs", picture(600, 900), absent=[1], **known)
    assert open_tiled_levels(sparse, sizes(sparse)) is None


def test_not_a_tiff(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(b"not a TIFF at all")
    assert open_tiled_levels(tmp_path / "a.tif", [Size(4, 3, 1.0)]) is None
    with pytest.raises(FileNotFoundError):
        open_tiled_levels(tmp_path / "missing.tif", [Size(4, 3, 1.0)])


def test_pixels_that_differ_are_noticed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_slide(tmp_path / "a.tif", picture(700, 900), levels=2)
    with opened(path) as fast, Slide(path) as slide:

        def one_off(x0: int, y0: int, level: int, width: int, height: int) -> U8:
            pixels = slide.read_region(x0, y0, level, width, height).copy()
            if level == 1:
                pixels[3, 3, 0] ^= 1
            return pixels

        assert fast.agrees_with(slide.read_region, slide.levels)
        assert not caplog.records
        assert not fast.agrees_with(one_off, slide.levels)
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert f"{path}: level 1" in caplog.text


def test_levels_that_openslide_interpolates_are_still_compared(tmp_path: Path) -> None:
    """At its own downsample of 2.003 the middle of level 1 lies between level-0 pixels."""
    path = write_slide(tmp_path / "a.tif", picture(1401, 1203), levels=2, tile=240)
    general = open_reader(path)[1]
    assert general.levels[1].downsample % 1

    def shifted(x0: int, y0: int, level: int, width: int, height: int) -> U8:
        return general.read(x0 + 12 * min(x0, 1), y0, level, width, height)

    with opened(path) as fast:
        assert fast.agrees_with(general.read, general.levels)
        assert not fast.agrees_with(shifted, general.levels)
    general.close()


def test_jfif_streams_called_rgb_are_left_to_openslide(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_slide(tmp_path / "a.tif", picture(300, 400), colour="444", photometric="rgb")
    with opened(path) as fast:
        assert not agrees(path, fast)
    assert "not using it" in caplog.text


# ------------------------------------------------------------------------------------------------------------- damage


def damage(path: Path, index: int, change: Callable[[bytes], bytes]) -> None:
    """Change one tile's stream in place, keeping its length."""
    with tifffile.TiffFile(path) as tiff:
        page: Any = tiff.pages[0]
        offset, count = page.dataoffsets[index], page.databytecounts[index]
    data = bytearray(path.read_bytes())
    changed = change(bytes(data[offset : offset + count]))
    assert len(changed) == count
    data[offset : offset + count] = changed
    path.write_bytes(data)


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "zeros": lambda s: bytes(len(s)),
    "half": lambda s: s[: len(s) // 2] + bytes(len(s) - len(s) // 2),
    "early end": lambda s: s[:-400] + b"\xff\xd9" + bytes(398),
    "huge frame": lambda s: s.replace(b"\x08\x01\x00\x01\x00\x03", b"\x08\xff\xff\xff\xff\x03", 1),
    "smaller frame": lambda s: s.replace(b"\x08\x01\x00\x01\x00\x03", b"\x08\x00\x80\x00\x80\x03", 1),
    "progressive": lambda s: s.replace(b"\xff\xc0", b"\xff\xc2", 1),
    "no scan": lambda s: s.replace(b"\xff\xda", b"\xff\xd9", 1),
}


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("denom", [1, 2])
def test_a_damaged_tile_is_named_and_alone(tmp_path: Path, kind: str, denom: ScaleDenom) -> None:
    path = write_slide(tmp_path / "a.tif", picture(520, 700))
    damage(path, 4, DAMAGE[kind])  # column 1, row 1 of 3 x 3
    with opened(path) as fast:
        assert agrees(path, fast)  # the middle tile is passed over
        with pytest.raises(BadTileError, match="level 0, column 1, row 1") as caught:
            fast.read(0, 240, 256, 32, 32, denom)
        bad = caught.value
        assert str(bad).startswith(f"{path}: ")
        assert (bad.level, bad.column, bad.row) == (0, 1, 1)
        good = fast.read(0, 0, 0, 256, 520)
    np.testing.assert_array_equal(good, on_white(path, 0, 0, 0, 256, 520))
    with openslide.OpenSlide(str(path)) as slide, pytest.raises(openslide.OpenSlideError):
        slide.read_region((300, 300), 0, (32, 32))


def test_a_bad_tile_error_travels_between_processes() -> None:
    error = BadTileError("a.svs", 1, 2, 3, "why")
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert isinstance(copy, BadTileError)
    assert str(copy) == str(error)
    assert (copy.level, copy.column, copy.row) == (1, 2, 3)


def test_a_truncated_file_gives_what_it_still_holds(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "a.tif", picture(520, 700))
    intact = on_white(path, 0, 0, 0, 256, 256)
    path.write_bytes(path.read_bytes()[:-2000])
    fast = open_tiled_levels(path, [Size(700, 520, 1.0)])
    assert fast is not None
    with fast:
        np.testing.assert_array_equal(fast.read(0, 0, 0, 256, 256), intact)
        with pytest.raises(BadTileError, match="column 2, row 2"):
            fast.read(0, 690, 515, 10, 5)


def test_a_file_of_damaged_tiles_only_does_not_agree(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "a.tif", picture(200, 200))
    damage(path, 0, DAMAGE["zeros"])
    with opened(path) as fast:
        assert not agrees(path, fast)


def test_mutated_slides_give_openslides_pixels_or_an_error(tmp_path: Path) -> None:
    """One to four random bytes changed anywhere: header, tables or streams."""
    original = write_slide(tmp_path / "a.tif", picture(250, 250), tile=128, shared=True).read_bytes()
    random = np.random.default_rng(0)
    outcomes = dict.fromkeys(("refused", "bad tile", "equal", "openslide fails"), 0)
    for _ in range(200):
        data = np.frombuffer(original, np.uint8).copy()
        # Half of the changes go where the TIFF's and the first stream's headers are.
        end = len(data) if random.random() < 0.5 else 1200
        data[random.integers(0, end, random.integers(1, 5))] = random.integers(0, 256)
        path = tmp_path / "mutated.tif"
        path.write_bytes(data.tobytes())
        outcomes[mutated(path)] += 1
    assert outcomes["bad tile"] > 10
    assert outcomes["equal"] > 10


def mutated(path: Path) -> str:
    fast = open_tiled_levels(path, [Size(250, 250, 1.0)])
    if fast is None:
        return "refused"
    with fast:
        try:
            ours = fast.read(0, 0, 0, 250, 250)
        except BadTileError:
            return "bad tile"
        try:
            theirs = on_white(path, 0, 0, 0, 250, 250)
            same = agrees(path, fast)
        except (openslide.OpenSlideError, SlideError):
            return "openslide fails"
        if not same:
            return "refused"
    np.testing.assert_array_equal(ours, theirs)
    return "equal"


# --------------------------------------------------------------------------------------------------- how it reads


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows by one with every tile decoded."""
    calls: list[int] = []
    decode = simplejpeg.decode_jpeg

    def counted(*args: Any, **options: Any) -> Any:
        calls.append(1)
        return decode(*args, **options)

    monkeypatch.setattr(simplejpeg, "decode_jpeg", counted)
    return calls


def test_rows_of_overlapping_regions_decode_each_native_tile_once(tmp_path: Path, decoded: list[int]) -> None:
    path = write_slide(tmp_path / "a.tif", picture(1000, 1200), tile=240)  # 5 x 5 tiles
    with opened(path) as fast:
        for y in range(-30, 1000, 100):
            for x in range(-30, 1200, 100):
                fast.read(0, x, y, 200, 200)
    assert len(decoded) == 25


def test_the_memory_given_is_kept(tmp_path: Path, decoded: list[int]) -> None:
    path = write_slide(tmp_path / "a.tif", picture(1000, 1200), tile=240)
    tile_bytes = 240 * 240 * 3
    with opened(path, cache_bytes=4 * tile_bytes) as fast:
        for y in range(0, 960, 240):
            for x in range(0, 1200, 100):
                fast.read(0, x, y, 100, 100)
                assert sum(t.nbytes for t in fast._cache._tiles.values()) == fast._cache._bytes <= 4 * tile_bytes
    assert len(decoded) == 20  # a row is too wide, but within it no tile is decoded twice


def test_regions_belong_to_the_caller(varied: tuple[Path, TiledLevels]) -> None:
    first = varied[1].read(0, 0, 0, 240, 240)
    kept = first.copy()
    first[:] = 0
    np.testing.assert_array_equal(varied[1].read(0, 0, 0, 240, 240), kept)


def test_threads_share_a_reader(varied: tuple[Path, TiledLevels]) -> None:
    path, fast = varied
    whole = canvas(path, 0)
    random = np.random.default_rng(1)
    corners = [(int(x), int(y)) for x, y in random.integers(0, 900, (100, 2))]
    with ThreadPoolExecutor(4) as pool:
        regions = list(pool.map(lambda at: fast.read(0, at[0], at[1], 100, 100), corners))
    for (x, y), region in zip(corners, regions, strict=True):
        np.testing.assert_array_equal(region, whole[y + 300 : y + 400, x + 300 : x + 400])


def test_closing_twice_is_harmless(tmp_path: Path) -> None:
    fast = opened(write_slide(tmp_path / "a.tif", picture(200, 200)))
    fast.close()
    fast.close()
    with pytest.raises(SlideError, match="cannot be read"):
        fast.read(0, 0, 0, 10, 10)
