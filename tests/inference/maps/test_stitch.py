"""The map of tile values against a loop over its pixels."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray

from inference.maps import stitch as heatmap
from inference.maps.stitch import assemble, map_downsample, slide_map
from tiling.grid import Grid, Tiles

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]


def assembled(squares: list[tuple[float, int, int]], size0: int, px0: float, shape: tuple[int, int]) -> Floats:
    values, x0, y0 = (np.array([s[i] for s in squares]) for i in range(3))
    return assemble(values.astype(np.float32), tiles_at(x0.astype(np.int32), y0.astype(np.int32), size0), px0, shape)


def tiles_at(x0: Ints, y0: Ints, side: int) -> Tiles:
    return Tiles(grid(side, side), x0, y0)


@given(
    columns=st.integers(1, 6),
    rows=st.integers(1, 6),
    size0=st.integers(8, 50),
    px0=st.floats(1, 7),
    seed=st.integers(0),
)
@settings(max_examples=60, deadline=None)
def test_neighbours_leave_no_gap_and_share_no_pixel(columns: int, rows: int, size0: int, px0: float, seed: int) -> None:
    """So a full grid covers every pixel, and each pixel shows the value of one tile, unmixed."""
    y, x = np.divmod(np.arange(rows * columns, dtype=np.int32), np.int32(columns))
    values = np.random.default_rng(seed).permutation(rows * columns).astype(np.float32)
    shape = (int(rows * size0 / px0), int(columns * size0 / px0))
    found = assemble(values, tiles_at(x * np.int32(size0), y * np.int32(size0), size0), px0, shape)
    assert np.isin(found, values).all()


def test_nothing_lies_where_no_tile_does() -> None:
    assert np.isnan(assembled([], 4, 1.0, (3, 5))).all()
    found = assembled([(0.0, 2, 2)], 2, 1.0, (6, 6))
    assert (found[2:4, 2:4] == 0).all()
    assert np.isnan(found).sum() == 32


@pytest.mark.parametrize(("x", "y", "covered"), [(4, 0, 8), (0, 4, 8), (4, 4, 4), (6, 0, 0), (0, 6, 0), (900, 900, 0)])
def test_tiles_beyond_the_edge_are_cut(x: int, y: int, covered: int) -> None:
    found = assembled([(0.7, x, y)], 4, 1.0, (6, 6))
    assert np.isfinite(found).sum() == covered


def test_far_corners_do_not_overflow() -> None:
    last = np.iinfo(np.int32).max
    assert np.isnan(assembled([(1.0, last, last)], 512, 1.0, (4, 4))).all()


def tented(values: Floats, x0: Ints, y0: Ints, size0: int, px0: float, shape: tuple[int, int]) -> Floats:
    """The oracle: every square painted pixel by pixel, weighted by the distances from its edges."""
    total, weight = np.zeros(shape), np.zeros(shape)
    for value, x, y in zip(values.tolist(), x0.tolist(), y0.tolist(), strict=True):
        top, bottom, left, right = (round(end / px0) for end in (y, y + size0, x, x + size0))
        for row in range(top, bottom):
            for column in range(left, right):
                if 0 <= row < shape[0] and 0 <= column < shape[1]:
                    down = min(row + 0.5 - top, bottom - row - 0.5)
                    across = min(column + 0.5 - left, right - column - 0.5)
                    total[row, column] += down * across * value
                    weight[row, column] += down * across
    with np.errstate(invalid="ignore"):
        return np.asarray(total / weight, np.float32)


@given(
    squares=st.lists(st.tuples(st.floats(0, 1, width=32), st.integers(0, 90), st.integers(0, 90)), max_size=12),
    size0=st.integers(1, 40),
    px0=st.floats(1, 9),
    shape=st.tuples(st.integers(1, 16), st.integers(1, 16)),
)
@settings(max_examples=150, deadline=None)
def test_tents_are_what_a_loop_paints(
    squares: list[tuple[float, int, int]], size0: int, px0: float, shape: tuple[int, int]
) -> None:
    values, x0, y0 = (np.array([s[i] for s in squares]) for i in range(3))
    expected = tented(values, x0, y0, size0, px0, shape)
    found = assembled(squares, size0, px0, shape)
    assert found.dtype == np.float32
    assert_array_equal(np.isnan(found), np.isnan(expected))
    assert_allclose(found, expected, atol=1e-6)


def test_half_overlapping_tents_interpolate_between_the_centres() -> None:
    """The closed form: tents of neighbours sum to one, so what they average is bilinear between tile centres."""
    columns, rows, size = 5, 4, 16
    values = np.random.default_rng(0).random((rows, columns)).astype(np.float32)
    squares = [(float(values[r, c]), c * size // 2, r * size // 2) for r in range(rows) for c in range(columns)]
    found = assembled(squares, size, 1.0, ((rows + 1) * size // 2, (columns + 1) * size // 2))
    at_x, at_y = np.arange(found.shape[1]) + 0.5, np.arange(found.shape[0]) + 0.5
    centres_x, centres_y = (size / 2 * (np.arange(n) + 1) for n in (columns, rows))
    across = np.stack([np.interp(at_x, centres_x, row) for row in values])
    expected = np.stack([np.interp(at_y, centres_y, column) for column in across.T], 1)
    assert_allclose(found, expected, atol=1e-6)


@given(columns=st.integers(1, 6), size0=st.integers(8, 50), px0=st.floats(1, 7), seed=st.integers(0))
@settings(max_examples=40, deadline=None)
def test_without_overlap_tents_change_nothing(columns: int, size0: int, px0: float, seed: int) -> None:
    """To the last bit: a value weighted and divided by its weight is itself."""
    y, x = np.divmod(np.arange(columns**2, dtype=np.int32), np.int32(columns))
    values = np.random.default_rng(seed).random(columns**2).astype(np.float32)
    tiles, side = tiles_at(x * np.int32(size0), y * np.int32(size0), size0), int(columns * size0 / px0)
    assert np.isin(assemble(values, tiles, px0, (side, side)), values).all()


# ------------------------------------------------------------------------------------------ the map of a whole slide


def grid(tile: int, stride: int, size: int = 5000) -> Grid:
    return Grid(width0=size, height0=size, slide_mpp=0.25, tile_px=64, tile_px0=tile, stride_px0=stride)


@pytest.mark.parametrize(
    ("tile", "stride", "px0"),
    [(256, 256, 256.0), (256, 128, 32.0), (256, 64, 32.0), (256, 16, 16.0), (512, 384, 384 / 6), (8, 4, 1.0)],
)
def test_a_pixel_of_the_map(tile: int, stride: int, px0: float) -> None:
    assert map_downsample(grid(tile, stride)) == px0


@given(st.integers(16, 2048), st.floats(0, 0.95))
@settings(max_examples=200, deadline=None)
def test_tiles_begin_on_pixels_and_the_map_stays_small(tile: int, overlap: float) -> None:
    stride = max(1, round(tile * (1 - overlap)))
    px0 = map_downsample(grid(tile, stride))
    assert abs(stride / px0 - round(stride / px0)) < 1e-9
    assert stride == px0 or tile / px0 < 16 + tile / stride
    assert stride == tile or px0 <= tile / 8 + 1e-9


@given(st.integers(16, 2048), st.floats(0, 0.95), st.integers(1, 400), st.floats(0, 1), st.sampled_from([10**4, 10**6]))
@settings(max_examples=200, deadline=None)
def test_a_tile_begins_where_it_was_read_and_ends_within_half_a_pixel(
    tile: int, overlap: float, columns: int, place: float, max_pixels: int
) -> None:
    """One tile on a map of at most about `max_pixels` pixels, none of which spans several strides."""
    stride = max(1, round(tile * (1 - overlap)))
    width = (columns - 1) * stride + tile
    slide = Grid(width0=width, height0=tile, slide_mpp=0.25, tile_px=64, tile_px0=tile, stride_px0=stride)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(heatmap, "MAX_PIXELS", max_pixels)
        px0, x0 = map_downsample(slide), round(place * (columns - 1)) * stride
        tile_at = Tiles(slide, np.array([x0], np.int32), np.zeros(1, np.int32))
        covered = np.flatnonzero(np.isfinite(slide_map(np.ones(1, np.float32), tile_at).values).any(0))
    assert px0 <= stride
    assert covered[0] * px0 == pytest.approx(x0, abs=1e-6)
    missed = abs((covered[-1] + 1) * px0 - min(x0 + tile, math.ceil(width / px0) * px0))
    assert missed <= px0 / 2 + 1e-6


@pytest.mark.parametrize(
    ("tile", "stride", "px0"),
    [(256, 256, 256.0), (256, 128, 64.0), (256, 179, 89.5), (224, 112, 112.0), (24, 24, 72.0), (24, 7, 63.0)],
)
def test_the_map_of_a_giant_slide_stays_small(tile: int, stride: int, px0: float) -> None:
    """300,000 px squared are 90 gigapixels: a pixel spans 60 at least, and whole parts of a stride, or strides."""
    slide = grid(tile, stride, 300_000)
    assert map_downsample(slide) == px0
    y0, x0 = (np.indices((9, 9), np.int32).reshape(2, -1) + 31) * np.int32(stride)
    values = slide_map(np.ones(len(x0), np.float32), Tiles(slide, x0, y0)).values
    assert values.size <= 25_100_000
    rows, columns = (np.flatnonzero(np.isfinite(values).any(axis)) for axis in (1, 0))
    assert len(rows) * px0 == len(columns) * px0 == pytest.approx(8 * stride + tile, abs=px0)
