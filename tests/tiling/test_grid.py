"""The grid: it covers the slide, and means over its squares are exact."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.tiling.squares import squares
from tiling.core.arrays import AnyArray
from tiling.core.errors import ConfigError
from tiling.grid import Grid, Raster, Tiles, box_mean, fit_grid, same_scale

sides = st.integers(1, 90)


def cover(grid: Grid) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """How many tiles lie over each level-0 pixel, (height0, width0)."""
    counts = np.zeros((grid.height0, grid.width0), np.int64)
    for x, y in zip(*grid.corners(), strict=True):
        counts[y : y + grid.tile_px0, x : x + grid.tile_px0] += 1
    return counts


def whole_scale(width: int, height: int, tile_px: int, overlap: float = 0.0) -> Grid:
    return fit_grid((width, height), 0.5, (1.0,), mpp=0.5, tile_px=tile_px, overlap=overlap)


@settings(deadline=None, max_examples=60)
@given(width=sides, height=sides, tile_px=st.integers(1, 40))
def test_without_overlap_every_pixel_lies_in_exactly_one_tile(width: int, height: int, tile_px: int) -> None:
    assert (cover(whole_scale(width, height, tile_px)) == 1).all()


@settings(deadline=None, max_examples=60)
@given(width=sides, height=sides, tile_px=st.integers(1, 40), overlap=st.floats(0, 0.99))
def test_with_overlap_every_pixel_lies_in_a_tile(width: int, height: int, tile_px: int, overlap: float) -> None:
    assert (cover(whole_scale(width, height, tile_px, overlap)) >= 1).all()


@settings(deadline=None, max_examples=60)
@given(width=sides, height=sides, tile_px=st.integers(2, 40), overlap=st.floats(0, 0.9))
def test_no_tile_is_superfluous(width: int, height: int, tile_px: int, overlap: float) -> None:
    """Each tile but the first of its row and column begins before the slide's last pixel is covered."""
    grid = whole_scale(width, height, tile_px, overlap)
    for length, count in ((width, grid.columns), (height, grid.rows)):
        assert count == 1 or (count - 2) * grid.stride_px0 + grid.tile_px0 < length


@given(width=sides, height=sides, tile_px=st.integers(1, 40), overlap=st.floats(0, 0.9))
def test_corners_are_in_reading_order(width: int, height: int, tile_px: int, overlap: float) -> None:
    grid = whole_scale(width, height, tile_px, overlap)
    x0, y0 = grid.corners()
    assert x0.dtype == y0.dtype == np.int32
    keys = list(zip(y0.tolist(), x0.tolist(), strict=True))
    assert keys == sorted(set(keys))
    assert len(keys) == grid.rows * grid.columns


@pytest.mark.parametrize(
    ("length", "tile_px", "overlap", "starts"),
    [
        (10, 10, 0.0, [0]),
        (11, 10, 0.0, [0, 10]),
        (9, 10, 0.0, [0]),
        (20, 10, 0.5, [0, 5, 10]),
        (21, 10, 0.5, [0, 5, 10, 15]),
        (12, 10, 0.9, [0, 1, 2]),
        (1, 1, 0.0, [0]),
        (12, 10, 0.999, [0, 1, 2]),  # a stride is at least one pixel
    ],
)
def test_starts(length: int, tile_px: int, overlap: float, starts: list[int]) -> None:
    assert whole_scale(length, 1, tile_px, overlap).corners()[0].tolist() == starts


@pytest.mark.parametrize(
    ("slide_mpp", "downsamples", "mpp", "tile_px0", "true_mpp"),
    [
        (0.5, (1.0,), 0.5, 256, 0.5),
        (0.499, (1.0,), 0.5, 256, 0.499),  # within tolerance: the level as it is
        (0.505, (1.0,), 0.5, 256, 0.505),  # also where it is finer by a hair
        (0.5, (1.0,), 1.0, 512, 1.0),
        (0.25, (1.0, 4.0), 1.0, 1024, 1.0),
        (0.25, (1.0, 4.0002), 1.0, 1024, 1.0),
        (0.25, (1.0, 3.96), 1.0, 1014, 0.25 * 1014 / 256),  # the level's own scale
        (0.5, (1.0,), 0.75, 384, 0.75),
        (0.33, (1.0,), 0.5, 388, 0.33 * 388 / 256),  # whole level-0 pixels
    ],
)
def test_scale(slide_mpp: float, downsamples: tuple[float, ...], mpp: float, tile_px0: int, true_mpp: float) -> None:
    grid = fit_grid((9000, 9000), slide_mpp, downsamples, mpp=mpp, tile_px=256)
    assert (grid.tile_px0, grid.stride_px0) == (tile_px0, tile_px0)
    assert grid.mpp == pytest.approx(true_mpp, rel=1e-12)


def test_the_nearest_of_two_levels_within_tolerance_is_taken() -> None:
    grid = fit_grid((9000, 9000), 0.5, (1.0, 1.99, 2.01), mpp=1.004, tile_px=100)
    assert grid.tile_px0 == 201


@pytest.mark.parametrize("mpp", [0.1, 0.25, 0.48])
def test_pixels_are_never_invented(mpp: float) -> None:
    with pytest.raises(ConfigError, match=r"^mpp: .* 0\.5; .*--mpp 0\.5"):
        fit_grid((100, 100), 0.5, (1.0,), mpp=mpp, tile_px=16)


@pytest.mark.parametrize(("mpp", "same"), [(0.49, True), (0.525, True), (0.53, False), (0.25, False), (0.51, True)])
def test_scales_that_may_be_put_together(mpp: float, same: bool) -> None:
    """What was asked for as 0.5 with the tolerance of 2% to both sides, and hardly more; whichever is named first."""
    assert same_scale(0.5, mpp) == same_scale(mpp, 0.5) == same
    assert same_scale(0.49, 0.51)
    assert not same_scale(0.476, 0.524)


@pytest.mark.parametrize("field", ["width0", "height0", "slide_mpp", "tile_px", "tile_px0", "stride_px0"])
def test_lengths_are_positive(field: str) -> None:
    good: dict[str, float] = dict.fromkeys(("width0", "height0", "tile_px", "tile_px0", "stride_px0"), 8)
    good["slide_mpp"] = 0.5
    Grid.model_validate(good)
    with pytest.raises(ValidationError, match=field):
        Grid.model_validate(good | {field: 0})


def test_unknown_fields_are_refused() -> None:
    grid = whole_scale(5, 5, 5)
    with pytest.raises(ValidationError, match="rotation"):
        Grid.model_validate(grid.model_dump() | {"rotation": 1})
    assert Grid.model_validate_json(grid.model_dump_json()) == grid


# ---------------------------------------------------------------------------------------------- means over squares


@settings(deadline=None, max_examples=50)
@given(
    seed=st.integers(0, 999), height=st.integers(1, 7), width=st.integers(1, 7), px0=st.integers(1, 5), data=st.data()
)
def test_box_mean_equals_brute_force(seed: int, height: int, width: int, px0: int, data: st.DataObject) -> None:
    """Whole pixels, so brute force is exact: every level-0 pixel painted and averaged, 0 outside."""
    picture = np.random.default_rng(seed).random((height, width))
    size0 = data.draw(st.integers(1, 12))
    x = data.draw(st.integers(0, width * px0 + 3))
    y = data.draw(st.integers(0, height * px0 + 3))
    painted = np.zeros((height * px0 + 40, width * px0 + 40))
    painted[: height * px0, : width * px0] = np.kron(picture, np.ones((px0, px0)))
    expected = painted[y : y + size0, x : x + size0].mean()
    got = box_mean(Raster(picture, float(px0)), squares([x], [y], size0))
    assert got.dtype == np.float32
    assert got[0] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("px0", [2.5, 3.3, 16.032064128256515])
def test_box_mean_is_exact_inside_pixels(px0: float) -> None:
    """Closed form: overlap of intervals along each axis, for a picture that is an outer product."""
    rows, cols = np.array([0.0, 1.0, 1.0]), np.array([1.0, 0.0, 1.0, 1.0])
    size0, x, y = 7, 4, 3

    def mean(values: np.ndarray[tuple[int], np.dtype[np.float64]], start: int) -> float:
        edges = np.arange(len(values)) * px0
        overlap = np.clip(np.minimum(edges + px0, start + size0) - np.maximum(edges, start), 0, None)
        return float((values * overlap).sum() / size0)

    got = box_mean(Raster(np.outer(rows, cols), px0), squares([x], [y], size0))
    assert got[0] == pytest.approx(mean(rows, y) * mean(cols, x), abs=1e-6)


@pytest.mark.parametrize("dtype", [np.bool_, np.float64])
def test_box_mean_is_the_same_wherever_bands_of_rows_end(dtype: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles in no order, across the ends of bands, over the lower edge and beyond it: as without bands."""
    random = np.random.default_rng(0)
    px0 = 2.5
    picture: AnyArray = (random.random((90, 40)) * 1.5).astype(dtype)
    tiles = squares(random.integers(0, 110, 200).tolist(), random.integers(0, 240, 200).tolist(), 23)
    whole = box_mean(Raster(picture, px0), tiles)
    for rows in (1, 7, 64):
        monkeypatch.setattr("tiling.grid._BAND_ROWS", rows)
        np.testing.assert_allclose(box_mean(Raster(picture, px0), tiles), whole, atol=1e-7)
    assert whole[tiles.y0 > 90 * px0].max() == 0 < whole.max()


def test_box_mean_of_a_full_mask_is_one_and_of_none_zero() -> None:
    tiles = Tiles.all_of(Grid(width0=64, height0=64, slide_mpp=1, tile_px=16, tile_px0=16, stride_px0=16))
    assert (box_mean(Raster(np.ones((8, 8), bool), 8.0), tiles) == 1).all()
    assert (box_mean(Raster(np.zeros((8, 8), bool), 8.0), tiles) == 0).all()
