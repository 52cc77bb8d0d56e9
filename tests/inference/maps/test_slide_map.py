"""The map that the formats share: where its pixels lie, and what its pyramid means."""

from __future__ import annotations

import numpy as np
import pytest

from inference.maps.slide_map import probability_map, pyramid
from tests.inference.conftest import MakePrediction
from tiling.core.text import printable


def test_the_map_of_a_prediction(make_prediction: MakePrediction) -> None:
    made = probability_map(make_prediction([(0, 0), (192, 128)], [0.25, 1.0]))
    expected = np.full((3, 4), np.nan)
    expected[0, 0], expected[2, 3] = 0.25, 1.0
    np.testing.assert_array_equal(made.values, expected)
    assert (made.downsample, made.mpp, made.name) == (64, 32, "probability of tumour")
    assert made.offset_um() == (63 / 2 * 0.5,) * 2


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
