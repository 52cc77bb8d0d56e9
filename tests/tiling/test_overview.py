"""The slide in small, against the same by numpy."""

from __future__ import annotations

import numpy as np
import pytest

from tiling.overview import FINER, SPREAD_UNIT, Overview, spread_within

U8 = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
F8 = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


def colours(picture: U8) -> list[F8]:
    red, green, blue = np.moveaxis(picture.astype(float), 2, 0)
    return [red - green, green - blue]


def deviation(values: F8, axes: tuple[int, ...]) -> F8:
    return np.asarray(np.abs(values - values.mean(axes, keepdims=True)).mean(axes))


@pytest.fixture
def finer() -> U8:
    return np.random.default_rng(0).integers(170, 190, (40, 60, 3), dtype=np.uint8)


def test_spread_is_the_deviation_of_colour_within_a_pixel(finer: U8) -> None:
    expected = sum(deviation(colour.reshape(20, FINER, 30, FINER), (1, 3)) for colour in colours(finer))
    np.testing.assert_allclose(spread_within(finer) * SPREAD_UNIT, expected, atol=1.2)  # means are whole levels


def test_grey_has_no_spread() -> None:
    grey = np.random.default_rng(0).integers(0, 255, (8, 8, 1), dtype=np.uint8).repeat(3, 2)
    assert not spread_within(grey).any()


def test_texture_is_the_spread_within_and_among_neighbours() -> None:
    """Stripes a pixel wide, red and green by turns: each pixel is even within, and differs from its neighbours."""
    picture = np.full((20, 30, 3), 180, np.uint8)
    picture[:, ::2, 0], picture[:, 1::2, 0] = 198, 162
    among = np.mean([4 / 3, 2 / 3, 4 / 3]) * 18  # the middle of three is the odd one: its distance, and theirs
    np.testing.assert_allclose(Overview.plain(picture).texture[5:15, 5:25] * SPREAD_UNIT, among, atol=6)
    within = Overview.plain(picture, np.full((20, 30), 20, np.uint8))
    raised = within.texture.astype(int) - Overview.plain(picture).texture
    np.testing.assert_array_equal(raised[5:15, 5:25], 20)


def test_what_is_finer_counts(finer: U8) -> None:
    overview = Overview.of(finer)
    assert overview.texture.mean() > 1.5 * Overview.plain(overview.picture).texture.mean()
