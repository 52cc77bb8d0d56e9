"""The map that the formats share: where its pixels lie, and what its pyramid means."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.probability_map import map_px0, printable, probability_map, pyramid
from tests.inference.conftest import MakePrediction
from tiling import Grid


def grid(tile: int, stride: int, size: int = 5000) -> Grid:
    return Grid(width0=size, height0=size, slide_mpp=0.25, tile_px=64, tile_px0=tile, stride_px0=stride)


@pytest.mark.parametrize(
    ("tile", "stride", "px0"),
    [(256, 256, 256.0), (256, 128, 32.0), (256, 64, 32.0), (256, 16, 16.0), (512, 384, 384 / 6), (8, 4, 1.0)],
)
def test_a_pixel_of_the_map(tile: int, stride: int, px0: float) -> None:
    assert map_px0(grid(tile, stride)) == px0


@given(st.integers(16, 2048), st.floats(0, 0.95))
@settings(max_examples=200, deadline=None)
def test_tiles_begin_on_pixels_and_the_map_stays_small(tile: int, overlap: float) -> None:
    stride = max(1, round(tile * (1 - overlap)))
    px0 = map_px0(grid(tile, stride))
    assert abs(stride / px0 - round(stride / px0)) < 1e-9
    assert stride == px0 or tile / px0 < 16 + tile / stride
    assert stride == tile or px0 <= tile / 8 + 1e-9
    missed = abs(tile - round(tile / px0) * px0)
    assert missed <= px0 / 2 + 1e-9


def test_the_map_of_a_prediction(make_prediction: MakePrediction) -> None:
    made = probability_map(make_prediction([(0, 0), (192, 128)], [0.25, 1.0]))
    expected = np.full((3, 4), np.nan)
    expected[0, 0], expected[2, 3] = 0.25, 1.0
    np.testing.assert_array_equal(made.values, expected)
    assert (made.px0, made.mpp, made.name) == (64, 32, "probability of tumour")
    assert made.offset_um == 63 / 2 * 0.5


def test_a_map_without_tiles(make_prediction: MakePrediction) -> None:
    assert np.isnan(probability_map(make_prediction([], [])).values).all()


@pytest.mark.parametrize(
    ("shape", "levels"),
    [((1, 1), [(1, 1)]), ((256, 3), [(256, 3)]), ((257, 3), [(258, 4), (129, 2)]),
     ((10, 1025), [(16, 1032), (8, 516), (4, 258), (2, 129)])],
)  # fmt: skip
def test_levels_are_halves(shape: tuple[int, int], levels: list[tuple[int, int]]) -> None:
    assert [level.shape for level in pyramid(np.zeros(shape, np.float32))] == levels


def test_a_level_is_the_mean_of_what_is_known() -> None:
    values = np.full((4, 300), np.nan, np.float32)
    values[:2, :4] = [[0.0, 1.0, 0.5, np.nan], [0.25, 0.75, np.nan, np.nan]]
    first, second = pyramid(values)
    np.testing.assert_array_equal(first, values)
    np.testing.assert_array_equal(second[0, :3], [0.5, 0.5, np.nan])
    assert np.isfinite(second).sum() == 2


def test_names_are_made_printable() -> None:
    assert printable("tumör\n\x00 <&>") == "tumör\ufffd\ufffd <&>"
