"""The preview: a picture of the thumbnail with the kept tiles and the mask's outline on it."""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.demo.synthetic import write_pyramid
from tiling import TileStore, TilingConfig, tile_slide
from tiling.core.errors import OutputError
from tiling.core.images import length_text, nice_length
from tiling.preview import _OUTLINE, _TILES, draw_preview, write_preview


def count(picture: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], colour: tuple[int, int, int]) -> int:
    return int((picture == colour).all(2).sum())


def test_the_preview_is_written_beside_the_store(finished: Path) -> None:
    png = finished.with_suffix(".png")
    picture = cv2.cvtColor(np.asarray(cv2.imread(str(png))), cv2.COLOR_BGR2RGB)
    np.testing.assert_array_equal(picture, draw_preview(TileStore(finished)))
    assert max(picture.shape) >= 700


def test_outline_and_tiles_are_drawn(small_slide: Path, tmp_path: Path) -> None:
    """Outside the kept tiles and the outline the picture is the thumbnail's glass: left upper corner."""
    store = TileStore(tile_slide(small_slide, tmp_path, TilingConfig(tile_px=64)).store)
    picture = draw_preview(store)
    assert count(picture, _TILES) > 2000
    assert count(picture, _OUTLINE) > 500
    times = picture.shape[1] / store.grid.width0
    for x, y in zip((store.tiles.x0 * times).astype(int), (store.tiles.y0 * times).astype(int), strict=True):
        assert count(picture[max(0, y - 3) : y + 4, max(0, x - 3) : x + 4], _TILES) > 5
    assert (picture[:20, :20] > 235).all()


def test_without_tissue_nothing_is_drawn(tmp_path: Path) -> None:
    write_pyramid(tmp_path / "glass.tif", np.full((300, 400, 3), 244, np.uint8), mpp=0.5)
    picture = draw_preview(TileStore(tile_slide(tmp_path / "glass.tif", tmp_path).store))
    assert (count(picture, _TILES), count(picture, _OUTLINE)) == (0, 0)


@pytest.mark.parametrize("size", [(1, 1), (3, 900), (900, 3), (17, 17)])
def test_extreme_slides_have_a_preview(tmp_path: Path, size: tuple[int, int]) -> None:
    write_pyramid(tmp_path / "thin.tif", np.full((*size, 3), (220, 140, 180), np.uint8), mpp=0.5, tile_px=16)
    tile_slide(tmp_path / "thin.tif", tmp_path, TilingConfig(tile_px=16))
    assert cv2.imread(str(tmp_path / "thin.png")) is not None


def test_the_scale_bar_has_its_length(small_slide: Path, tmp_path: Path) -> None:
    """A fifth of 350 um is 70 um: the bar is 50 um, black, near the lower left corner."""
    store = TileStore(tile_slide(small_slide, tmp_path, TilingConfig(tile_px=64)).store)
    picture = draw_preview(store)
    black = int((picture == 0).all(2).sum(1).max())
    um_per_px = store.grid.width0 * store.slide.mpp / picture.shape[1]
    assert black * um_per_px == pytest.approx(50, rel=0.05)


@pytest.mark.parametrize(
    ("about", "nice"), [(1, 1), (1.99, 1), (2, 2), (4.9, 2), (5, 5), (9.99, 5), (10, 10), (730, 500), (0.03, 0.02)]
)
def test_nice_length(about: float, nice: float) -> None:
    assert nice_length(about) == pytest.approx(nice)


@pytest.mark.parametrize(
    ("um", "text"), [(0.5, "0.5 µm"), (200, "200 µm"), (999, "999 µm"), (1000, "1 mm"), (20_000, "20 mm")]
)
def test_a_length_is_said_in_its_unit(um: float, text: str) -> None:
    assert length_text(um) == text


@given(about=st.floats(1e-6, 1e9))
def test_a_nice_length_is_the_largest_that_fits(about: float) -> None:
    length = nice_length(about)
    assert about / 2.5 < length * (1 + 1e-8)
    assert length <= about * (1 + 1e-8)
    assert round(length / 10 ** math.floor(math.log10(length * (1 + 1e-9)))) in (1, 2, 5)


def test_a_preview_that_cannot_be_written_is_an_output_error(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError):
        write_preview(TileStore(finished), tmp_path / "file" / "a.png")


def test_only_the_kept_tiles_are_drawn(finished: Path, tmp_path: Path) -> None:
    store = TileStore(finished)
    left = store.tiles.x0 + store.grid.tile_px0 < 300
    whole, some, bare = (draw_preview(store, kept) for kept in (None, left, np.zeros(len(store), np.bool_)))
    split = round(310 / store.attributes.thumbnail_px0 * whole.shape[1] / store.thumbnail.values.shape[1])
    np.testing.assert_array_equal(some[:, split:], bare[:, split:])
    assert (whole != some).any()
    assert (some[:, :split] != bare[:, :split]).any()
