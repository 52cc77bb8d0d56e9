"""Philips TIFFs, whose levels are padded to whole tiles: OpenSlide's pixels bit for bit, or OpenSlide."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from numpy.typing import NDArray

from tests.tiling.philips_files import MPP, spacing, write_philips
from tests.tiling.slides.test_tiled_tiff import assert_equals_openslide, blank, decibels, opened, picture, sizes
from tiling.core.errors import SlideError
from tiling.slides.direct import open_tiled_levels
from tiling.slides.slide import Slide

U8 = NDArray[np.uint8]
DIRECTLY = "openslide, tiles decoded directly"


@pytest.fixture(scope="module")
def level0() -> U8:
    return picture(1024, 1536)


@pytest.mark.parametrize("tile_px", [128, 256, 512])
@pytest.mark.parametrize("chroma", [(1, 1), (2, 1), (2, 2)])
def test_every_level_equals_openslide(tmp_path: Path, level0: U8, chroma: tuple[int, int], tile_px: int) -> None:
    """Of tiles of 512 px the levels of 768 x 512 and 384 x 256 px fill one and a half, and less than one."""
    path = write_philips(tmp_path / "a.tiff", level0, tile_px=tile_px, chroma=chroma)
    assert openslide.OpenSlide.detect_format(str(path)) == "philips"
    with tifffile.TiffFile(path) as tiff:
        assert [page.shape[:2] for page in tiff.pages] != [(size.height, size.width) for size in sizes(path)]
    with Slide(path) as slide:
        assert (slide.reader, slide.direct, slide.mpp) == (DIRECTLY, True, MPP)
        assert [(level.width, level.height) for level in slide.levels] == [(1536, 1024), (768, 512), (384, 256)]
    assert_equals_openslide(path)


@pytest.mark.parametrize("absent", [(0,), (3, 4), (8,)])
def test_left_out_tiles_are_white(tmp_path: Path, level0: U8, absent: tuple[int, ...]) -> None:
    """Of slides with several regions scanned Philips leaves out what lies between; in padding none matters."""
    path = write_philips(tmp_path / "a.tiff", level0)
    blank(path, absent)
    assert_equals_openslide(path)


@pytest.mark.parametrize("times", [2, 4])
def test_a_level_decoded_smaller_shows_no_padding(tmp_path: Path, level0: U8, times: int) -> None:
    path = write_philips(tmp_path / "a.tiff", level0, (1, 4), tile_px=512)
    with opened(path) as fast:
        whole = fast.read(1, 0, 0, 384, 256).reshape(256 // times, times, 384 // times, times, 3).mean((1, 3))
        small = fast.read(1, 0, 0, 384, 256, times)  # type: ignore[arg-type]
    assert decibels(small, np.rint(whole).astype(np.uint8)) > 30
    assert np.abs(small[:, -1].astype(int) - np.rint(whole[:, -1])).max() < 30  # grey or white would differ by more


def test_streams_are_the_native_tiles(tmp_path: Path, level0: U8) -> None:
    """A tile that is cut by the edge of a padded level is whole in the file; those beyond it are none of the level."""
    path = write_philips(tmp_path / "a.tiff", level0, tile_px=512)
    with opened(path) as fast:
        assert fast.jpeg_tile_px(1) == (512, 512)
        assert fast.stream(1, 1, 0) is not None
        for beyond in ((2, 0), (0, 1)):
            with pytest.raises(IndexError):
                fast.stream(1, *beyond)


def test_pages_that_are_not_the_levels_are_left_to_openslide(tmp_path: Path, level0: U8) -> None:
    path = write_philips(tmp_path / "a.tiff", level0)
    known = sizes(path)
    assert open_tiled_levels(path, known[:2]) is None
    assert open_tiled_levels(path, [known[0], known[0], known[2]]) is None  # a page smaller than its level


def test_a_level_said_to_be_as_large_as_the_first_is_not_taken_for_it(tmp_path: Path, level0: U8) -> None:
    """A wrong scale in the XML gives two levels of one size, which only Aperio's focal planes have."""
    path = write_philips(tmp_path / "a.tiff", level0, (1, 2))
    with Slide(path) as slide:
        expected = slide.read_region(0, 0, 0, 1536, 1024)
    path.write_bytes(path.read_bytes().replace(spacing(MPP * 2).encode(), spacing(MPP).encode()))
    with Slide(path) as slide:
        assert [(level.width, level.height) for level in slide.levels] == [(1536, 1024)]
        np.testing.assert_array_equal(slide.read_region(0, 0, 0, 1536, 1024), expected)


def test_a_level_of_no_pixels_is_refused(tmp_path: Path, level0: U8) -> None:
    """A scale in the XML that makes a level narrower than a pixel; OpenSlide divides by it and goes on."""
    path = write_philips(tmp_path / "a.tiff", level0)
    data = path.read_bytes()
    path.write_bytes(data.replace(spacing(MPP * 4).encode(), spacing(999.0).encode()))
    with openslide.OpenSlide(str(path)) as general:
        assert 0 in general.level_dimensions[-1]
    with pytest.raises(SlideError, match="damaged"):
        Slide(path).close()


def test_a_page_that_claims_more_than_its_tiles_is_refused(tmp_path: Path, level0: U8) -> None:
    """Nobody waits for a picture of 4 billion pixels a side of which two tiles are listed."""
    path = write_philips(tmp_path / "a.tiff", level0)
    with tifffile.TiffFile(path, mode="r+") as tiff:
        tiff.pages[0].tags["ImageWidth"].overwrite(2**31 - 256)  # type: ignore[union-attr]
    with pytest.raises(SlideError, match=r"damaged|incomplete"):
        Slide(path).close()


def test_no_barcode_leaves(tmp_path: Path, level0: U8) -> None:
    path = write_philips(tmp_path / "a.tiff", level0, barcode="SmFuZSBEb2U=")
    with openslide.OpenSlide(str(path)) as general:
        assert "Jane Doe" in general.properties.values()
    with Slide(path) as slide:
        told = repr(vars(slide))
        stream = slide.native_stream(0, 0, 0)
    assert "Jane Doe" not in told
    assert "SmFuZSBEb2U=" not in told
    assert stream is not None
    assert b"SmFuZSBEb2U=" not in stream
