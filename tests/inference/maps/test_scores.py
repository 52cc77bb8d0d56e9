"""Scores of slides against figures worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from inference.maps.regions import find_regions
from inference.maps.scores import SlideScores, areas_mm2, noisy_or, region_areas, slide_scores, top_mean
from inference.maps.stitch import slide_map
from tiling.grid import Grid, Tiles

RAMP = [i / 100 for i in range(100)]


@pytest.mark.parametrize(
    ("probabilities", "threshold", "mean", "top", "above"),
    [
        ([0.25], 0.5, 0.25, 0.25, 0.0),
        ([0.5], 0.5, 0.5, 0.5, 1.0),
        ([0.0, 1.0], 0.5, 0.5, 1.0, 0.5),
        ([1.0, 0.0, 0.0, 0.0], 0.25, 0.25, 1.0, 0.25),
        ([0.5] * 10, 0.75, 0.5, 0.5, 0.0),
        (RAMP, 0.895, 0.495, 0.97, 0.10),
        (RAMP[::-1], 0.895, 0.495, 0.97, 0.10),
        ([0.0] * 20 + [1.0], 0.5, 1 / 21, 0.5, 1 / 21),
    ],
)
def test_literal_slides(probabilities: list[float], threshold: float, mean: float, top: float, above: float) -> None:
    scores = slide_scores(np.array(probabilities, np.float32), threshold)
    found = (scores.mean, scores.top5_mean, scores.fraction_above_threshold)
    assert found == pytest.approx((mean, top, above), abs=1e-6)


def test_a_slide_without_tiles_has_no_scores() -> None:
    assert slide_scores(np.empty(0, np.float32), 0.5) == SlideScores(None, None, None)


@pytest.mark.parametrize(("tiles", "counted"), [(1, 1), (19, 1), (20, 1), (21, 2), (40, 2), (41, 3), (100, 5)])
def test_top_5_percent_are_rounded_up(tiles: int, counted: int) -> None:
    """With one tile of 1 and the rest 0, the mean of the top tells how many there were."""
    probabilities = np.zeros(tiles, np.float32)
    probabilities[tiles // 2] = 1
    assert slide_scores(probabilities, 0.5).top5_mean == pytest.approx(1 / counted)


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=60), st.floats(0, 1))
def test_order_does_not_matter_and_scores_are_ordered(values: list[float], threshold: float) -> None:
    scores = slide_scores(np.array(values, np.float32), threshold)
    assert scores == slide_scores(np.array(sorted(values), np.float32), threshold)
    assert scores.mean is not None
    assert scores.top5_mean is not None
    assert scores.mean <= scores.top5_mean + 1e-12
    assert scores.top5_mean <= max(values)
    assert scores.fraction_above_threshold == pytest.approx(sum(v >= threshold for v in values) / len(values))


# ---------------------------------------------------------------------------------------- percentile and noisy-or


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=60))
def test_percentile_is_numpys_and_top_mean_a_sort(values: list[float]) -> None:
    p = np.array(values, np.float32)
    assert slide_scores(p, 0.5).percentile95 == pytest.approx(np.quantile(p.astype(float), 0.95), abs=1e-9)
    for fraction in (0.01, 0.3, 1.0):
        count = max(1, int(np.ceil(fraction * len(values))))
        assert top_mean(p, fraction) == pytest.approx(np.mean(sorted(p.astype(float))[::-1][:count]), abs=1e-9)


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=60))
def test_noisy_or_is_the_product(values: list[float]) -> None:
    assert noisy_or(np.array(values, np.float32)) == pytest.approx(1 - np.prod(1 - np.array(values)), abs=1e-12)


@pytest.mark.parametrize(
    ("values", "found"), [([1.0, 0.3], 1.0), ([0.0, 0.0], 0.0), ([0.5, 0.5], 0.75), ([2.0**-40] * 4, 2.0**-38)]
)
def test_noisy_or_of_the_sure_and_of_the_tiny(values: list[float], found: float) -> None:
    assert noisy_or(np.array(values, np.float32)) == pytest.approx(found, rel=1e-9, abs=0)


# ------------------------------------------------------------------------------------------------------- areas


@given(arrays(np.bool_, st.tuples(st.integers(1, 12), st.integers(1, 12))), st.integers(0, 2**31))
@settings(max_examples=80, deadline=None)
def test_regions_are_scipys(above: NDArray[np.bool_], seed: int) -> None:
    areas = np.random.default_rng(seed).random(above.shape)
    labels, count = scipy.ndimage.label(above)  # four neighbours
    parts = scipy.ndimage.sum_labels(areas, labels, range(1, count + 1))
    assert region_areas(above, areas) == pytest.approx((areas[above].sum(), max(parts, default=0.0)), abs=1e-9)


def grid_of(width: int, height: int, tile: int, stride: int, mpp: float = 0.5) -> Grid:
    return Grid(width0=width, height0=height, slide_mpp=mpp, tile_px=tile, tile_px0=tile, stride_px0=stride)


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 15), st.integers(0, 15), st.integers(0, 2**31))
@settings(max_examples=80, deadline=None)
def test_areas_without_overlap_are_those_of_the_squares(
    columns: int, rows: int, cut_x: int, cut_y: int, seed: int
) -> None:
    """The oracle is shapely: the union of the tiles above the threshold, cut at the slide's edge."""
    side, mpp = 16, 0.25
    grid = grid_of(columns * side - cut_x, rows * side - cut_y, side, side, mpp)
    random = np.random.default_rng(seed)
    x0, y0 = grid.corners()
    kept = random.random(len(x0)) < 0.8
    x0, y0 = x0[kept], y0[kept]
    tiles = Tiles(grid, x0, y0)
    p = random.random(len(x0)).astype(np.float32)
    high = p >= 0.5
    squares = shapely.box(x0[high], y0[high], x0[high] + side, y0[high] + side)
    slide = shapely.box(0, 0, grid.width0, grid.height0)
    union = shapely.intersection(shapely.union_all(squares), slide)
    per_px = (mpp / 1000) ** 2
    area, largest = areas_mm2(p, 0.5, tiles)
    assert area == pytest.approx(union.area * per_px, abs=1e-12)
    sizes = [part.area * per_px for part in shapely.get_parts(union)]  # what touches at a corner only is apart
    assert largest == pytest.approx(max(sizes, default=0.0), abs=1e-12)


def test_a_known_slide_in_square_millimetres() -> None:
    """Tiles of 1 mm: two that touch at a corner, then at a side, one alone, one below the threshold."""
    grid = grid_of(5000, 2000, 1000, 1000, mpp=1.0)
    x0, y0 = np.array([0, 1000, 4000, 3000], np.int32), np.array([0, 1000, 0, 1000], np.int32)
    p = np.array([0.5, 0.9, 0.8, 0.49], np.float32)
    assert areas_mm2(p, 0.5, Tiles(grid, x0, y0)) == pytest.approx((3.0, 1.0))
    beside = np.array([0, 1000, 4000, 3000], np.int32), np.array([0, 0, 0, 1000], np.int32)
    scores = slide_scores(p, 0.5, areas_mm2(p, 0.5, Tiles(grid, *beside)))
    assert (scores.area_above_mm2, scores.largest_region_mm2) == pytest.approx((3.0, 2.0))
    assert slide_scores(p, 0.5).area_above_mm2 is None


def test_overlapping_tiles_are_not_counted_twice() -> None:
    grid = grid_of(96, 96, 32, 16, mpp=1000.0)  # a pixel is a square millimetre
    tiles = Tiles.all_of(grid)
    everything = areas_mm2(np.ones(len(tiles), np.float32), 0.5, tiles)
    assert everything == pytest.approx((96**2, 96**2))
    nothing = areas_mm2(np.zeros(len(tiles), np.float32), 0.5, tiles)
    assert nothing == (0.0, 0.0)


@given(
    st.integers(2, 6),
    st.integers(2, 6),
    st.sampled_from([(64, 32), (64, 16), (60, 45), (64, 64)]),
    st.integers(0, 2**31),
)
@settings(max_examples=60, deadline=None)
def test_areas_are_those_of_the_squares_and_of_the_regions(
    columns: int, rows: int, tile_stride: tuple[int, int], seed: int
) -> None:
    """All tiles there are, are above: shapely's union of their squares, whose sides these maps hold exactly."""
    tile, stride = tile_stride
    grid = grid_of((columns - 1) * stride + tile - 5, (rows - 1) * stride + tile - 9, tile, stride, mpp=1000.0)
    x0, y0 = grid.corners()
    kept = np.random.default_rng(seed).random(len(x0)) < 0.4
    x0, y0 = x0[kept], y0[kept]
    tiles = Tiles(grid, x0, y0)
    p, slide = np.full(len(x0), 0.9, np.float32), shapely.box(0, 0, grid.width0, grid.height0)
    union = shapely.intersection(shapely.union_all(shapely.box(x0, y0, x0 + tile, y0 + tile)), slide)
    parts = [part.area for part in shapely.get_parts(union) if part.area]
    assert areas_mm2(p, 0.5, tiles) == pytest.approx((union.area, max(parts, default=0)), abs=1e-6)
    regions = find_regions(slide_map(p, tiles), grid, threshold=0.5)
    assert sorted(region.area for region in regions) == pytest.approx(sorted(parts), abs=1e-6)


@pytest.mark.parametrize("overlap", [0.5, 0.33])
def test_areas_and_regions_agree_on_any_tiles(overlap: float) -> None:
    grid = grid_of(3000, 2000, 256, round(256 * (1 - overlap)))
    tiles = Tiles.all_of(grid)
    p = np.random.default_rng(0).random(len(tiles)).astype(np.float32)
    regions = find_regions(slide_map(p, tiles), grid, threshold=0.5)
    found = [region.area * (0.5 / 1000) ** 2 for region in regions]
    assert areas_mm2(p, 0.5, tiles) == pytest.approx((sum(found), max(found)), rel=1e-3)


def test_no_tiles_have_no_area() -> None:
    none = np.empty(0, np.int32)
    assert areas_mm2(np.empty(0, np.float32), 0.5, Tiles(grid_of(100, 50, 32, 32), none, none)) == (0.0, 0.0)
