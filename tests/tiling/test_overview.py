"""The slide in small, against the same by numpy."""

from __future__ import annotations

import numpy as np
import pytest

from tiling.overview import FINER, SPREAD_UNIT, Overview, spread_within


def colour_ratios(
    picture: np.ndarray[tuple[int, ...], np.dtype[np.uint8]],
) -> list[np.ndarray[tuple[int, ...], np.dtype[np.float64]]]:
    red, green, blue = np.moveaxis(-np.log((picture.astype(float) + 1) / 256), 2, 0)
    return [red - green, green - blue, red - blue]


@pytest.fixture
def finer() -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(140, 180, (40, 60, 3), dtype=np.uint8)


def test_spread_is_the_deviation_of_colour_within_a_pixel(
    finer: np.ndarray[tuple[int, ...], np.dtype[np.uint8]],
) -> None:
    variance = sum(ratio.reshape(20, FINER, 30, FINER).var((1, 3)) for ratio in colour_ratios(finer))
    np.testing.assert_allclose(spread_within(finer) * SPREAD_UNIT, np.sqrt(variance), atol=SPREAD_UNIT)


def test_grey_has_no_spread() -> None:
    grey = np.random.default_rng(0).integers(0, 255, (8, 8, 1), dtype=np.uint8).repeat(3, 2)
    assert not spread_within(grey).any()


def test_texture_is_the_spread_within_and_among_neighbours(
    finer: np.ndarray[tuple[int, ...], np.dtype[np.uint8]],
) -> None:
    overview = Overview.of(finer)
    row, column = 7, 11
    around = (slice(row - 1, row + 2), slice(column - 1, column + 2))
    variance = ((overview.spread[around] * SPREAD_UNIT) ** 2).mean()
    variance += sum(ratio[around].var() for ratio in colour_ratios(overview.picture))
    assert overview.texture()[row, column] * SPREAD_UNIT == pytest.approx(np.sqrt(variance), abs=2 * SPREAD_UNIT)


def test_what_is_finer_counts(finer: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> None:
    overview = Overview.of(finer)
    assert overview.texture().mean() > 1.5 * Overview.plain(overview.picture).texture().mean()
