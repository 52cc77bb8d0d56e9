"""Regions against counted pixels, scipy's connected components, and geometry worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.ndimage
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from inference.maps.regions import find_regions, measured, rings_of, without_holes
from tiling.grid import Grid, Raster, Tiles

NAN = float("nan")
RING = [[0.9, 0.9, 0.9], [0.9, 0.1, 0.9], [0.9, 0.9, 0.9]]
EVERYWHERE = Grid(width0=10_000, height0=10_000, slide_mpp=0.5, tile_px=8, tile_px0=8, stride_px0=8)


def found(values: list[list[float]] | NDArray[np.float32], **changes: float) -> list[shapely.Polygon]:
    options = {"threshold": 0.5} | changes
    return find_regions(Raster(np.array(values, np.float32), 8.0), EVERYWHERE, **options)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([[0.2, 0.3]], []),
        ([[NAN, NAN]], []),
        ([[0.9, 0.2]], [shapely.box(0, 0, 8, 8)]),
        ([[0.5, 0.9], [NAN, 0.6]], [shapely.box(0, 0, 16, 8) | shapely.box(8, 8, 16, 16)]),  # at the threshold, too
        ([[0.9, 0.1], [0.1, 0.9]], [shapely.box(0, 0, 8, 8), shapely.box(8, 8, 16, 16)]),  # touching at a corner only
        (RING, [shapely.box(0, 0, 24, 24) - shapely.box(8, 8, 16, 16)]),
        ([[0.9, 0.1, 0.9, 0.9]], [shapely.box(16, 0, 32, 8), shapely.box(0, 0, 8, 8)]),  # the largest first
    ],
)
def test_regions_are_the_union_of_their_pixels(values: list[list[float]], expected: list[shapely.Polygon]) -> None:
    regions = found(values)
    assert len(regions) == len(expected)
    assert all(a.is_valid and a.equals(b) for a, b in zip(regions, expected, strict=True))


def test_straight_edges_have_no_points_between() -> None:
    (square,) = found(np.full((20, 20), 0.9, np.float32))
    assert len(square.exterior.coords) == 5
    assert square.exterior.is_ccw


@given(arrays.arrays(np.float32, (9, 11), elements=st.sampled_from([0.1, 0.6, np.nan])))
@settings(max_examples=40, deadline=None)
def test_regions_are_scipys_components(values: NDArray[np.float32]) -> None:
    regions = found(values)
    labels, count = scipy.ndimage.label(values >= 0.5)  # four neighbours
    assert len(regions) == count
    areas = sorted(np.bincount(labels.ravel())[1:] * 64.0)
    assert sorted(region.area for region in regions) == pytest.approx(areas)
    rows, columns = np.indices(values.shape)
    centres = shapely.points(columns * 8 + 4.0, rows * 8 + 4.0)
    inside = shapely.contains(shapely.MultiPolygon(regions), centres) if regions else np.zeros(values.shape, bool)
    np.testing.assert_array_equal(inside, values >= 0.5)


def test_smoothing_rounds_corners_by_its_radius() -> None:
    """A square of side s keeps s^2 - (4 - pi) r^2 of its area when its corners are rounded by r."""
    values = np.full((12, 12), 0.1, np.float32)
    values[2:10, 2:10] = 0.9
    (region,) = found(values, smoothing_um=4.0)  # r = 8 level-0 pixels, s = 64
    assert region.area == pytest.approx(64**2 - (4 - math.pi) * 8**2, rel=2e-3)
    assert region.bounds == (16, 16, 80, 80)


@pytest.mark.parametrize(("gap", "parts"), [(1, 1), (4, 2)])
def test_smoothing_closes_gaps_narrower_than_its_diameter(gap: int, parts: int) -> None:
    values = np.full((10, 16 + gap), 0.9, np.float32)
    values[:, 8 : 8 + gap] = NAN
    assert len(found(values)) == 2
    assert len(found(values, smoothing_um=6.0)) == parts  # diameter: 24 level-0 pixels, three of the map


def test_smoothing_keeps_large_holes_and_takes_specks() -> None:
    values = np.full((30, 40), 0.1, np.float32)
    values[2:28, 2:28] = 0.9
    values[10:20, 10:20] = 0.1
    values[5, 35] = 0.9
    assert len(found(values)) == 2
    (region,) = found(values, smoothing_um=8.0)
    (hole,) = region.interiors
    assert shapely.Polygon(hole).area == pytest.approx(80**2 - (4 - math.pi) * 16**2, rel=5e-3)


@pytest.mark.parametrize(("min_area_um2", "kept"), [(0, 2), (16, 2), (16.1, 1), (128, 1), (128.1, 0)])
def test_small_regions_are_left_out_by_their_area_without_holes(min_area_um2: float, kept: int) -> None:
    """Pixels of 8 level-0 pixels of half a micrometre: 16 square micrometres each; the ring has eight."""
    values = np.full((3, 6), NAN, np.float32)
    values[:, :3] = RING
    values[0, 5] = 0.9
    assert len(found(values, min_area_um2=min_area_um2)) == kept


def test_what_lies_beyond_the_slide_is_cut_off() -> None:
    slide = EVERYWHERE.model_copy(update={"width0": 13, "height0": 11})
    (region,) = find_regions(Raster(np.full((2, 2), 0.9, np.float32), 8.0), slide, threshold=0.5)
    assert region.equals(shapely.box(0, 0, 13, 11))


def test_measurements_are_those_of_the_tiles_inside() -> None:
    regions = found([[0.9, 0.1, 0.9, 0.1]])
    x0, p = np.array([0, 8, 16], np.int32), np.array([0.5, 0.1, 0.75], np.float32)
    tiles = Tiles(EVERYWHERE, x0, np.zeros(3, np.int32))
    first, second = measured(regions, tiles, p)
    assert (first.area_um2, first.tiles, first.mean, first.highest) == (16, 1, 0.5, 0.5)
    assert (second.tiles, second.mean) == (1, 0.75)
    (alone,) = measured([shapely.box(100, 100, 108, 108)], tiles, p)
    assert (alone.tiles, alone.mean, alone.highest) == (0, None, None)
    assert measured([], tiles, p) == []


@pytest.mark.parametrize(
    "holes",
    [[], [(8, 8, 16, 16)], [(8, 8, 16, 16), (20, 8, 24, 30)], [(8, 8, 16, 16), (8, 20, 16, 24), (30, 1, 31, 39)]],
)
def test_pieces_without_holes_are_the_whole(holes: list[tuple[int, int, int, int]]) -> None:
    whole = shapely.box(0, 0, 40, 40) - shapely.union_all([shapely.box(*hole) for hole in holes])
    pieces = without_holes(whole)
    assert all(not piece.interiors and piece.is_valid for piece in pieces)
    assert shapely.union_all(pieces).equals(whole)
    assert sum(piece.area for piece in pieces) == pytest.approx(whole.area)
    assert len(rings_of(whole)) == 1 + len(holes)


@pytest.mark.parametrize(
    "smoothing_um", [2.0, *(pytest.param(um, marks=pytest.mark.nightly) for um in (1.0, 1.6, 6.0)), 30.0]
)
def test_smoothing_in_blocks_is_smoothing_of_the_whole(smoothing_um: float) -> None:
    """Against one buffer after another of the union of all pixels, on noise that lies on both sides of each border."""
    values = np.random.default_rng(0).random((50, 70)).astype(np.float32)
    whole = shapely.union_all([shapely.box(8 * x, 8 * y, 8 * x + 8, 8 * y + 8) for y, x in np.argwhere(values >= 0.5)])
    radius0 = 2 * smoothing_um
    for distance in (radius0, -2 * radius0, radius0):
        whole = whole.buffer(distance, quad_segs=8)
    whole = shapely.intersection(whole, shapely.box(0, 0, 560, 400))
    parts = found(values, smoothing_um=smoothing_um)
    assert all(part.is_valid for part in parts)
    regions = shapely.union_all(parts)
    assert regions.symmetric_difference(whole).area < 2e-3 * whole.area
    assert regions.hausdorff_distance(whole) < 0.05 * radius0 + 0.25


def test_what_is_smoothed_at_once_does_not_grow_with_the_map(monkeypatch: pytest.MonkeyPatch) -> None:
    """Buffers take time that grows faster than what they are given: all of a noisy map at once would never end."""
    sizes: list[int] = []

    def one_pixel(marked: NDArray[np.bool_], downsample: float) -> shapely.Polygon:
        sizes.append(marked.size)
        return shapely.box(0, 0, downsample, downsample)

    monkeypatch.setattr("inference.maps.regions._pixels", one_pixel)
    handled = []
    for shape in ((160, 160), (320, 320)):
        sizes.clear()
        found(np.random.default_rng(0).random(shape).astype(np.float32), smoothing_um=2.0)
        handled.append((max(sizes), sum(sizes)))
    assert handled[0][0] == handled[1][0] < 160 * 160 / 4
    assert handled[1][1] < 1.2 * 4 * handled[0][1]
