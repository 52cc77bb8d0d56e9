"""What is padding, and not glass, on painted pictures."""

from __future__ import annotations

import numpy as np
import pytest

from tiling.glass import padding_mask

SCANNED = (slice(20, 80), slice(30, 90))


def picture(glass: tuple[int, int, int], around: int = 255) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """A scanned part with a square of tissue, on a picture filled up with one grey."""
    whole = np.full((100, 120, 3), around, np.uint8)
    whole[SCANNED] = glass
    whole[40:60, 50:70] = (190, 120, 160)
    return whole


@pytest.mark.parametrize("glass", [(240, 222, 236), (228, 226, 205), (224, 222, 223)])
def test_white_around_other_glass_is_padding(glass: tuple[int, int, int]) -> None:
    expected = np.ones((100, 120), np.bool_)
    expected[22:78, 32:88] = False  # the rim is padding too: there the two are mixed
    np.testing.assert_array_equal(padding_mask(picture(glass)), expected)


@pytest.mark.parametrize(("glass", "around"), [((255, 255, 255), 255), ((240, 222, 236), 254), ((240, 222, 236), 240)])
def test_glass_that_is_white_and_what_is_not_exact_white_are_none(glass: tuple[int, int, int], around: int) -> None:
    assert not padding_mask(picture(glass, around)).any()


def test_single_white_pixels_are_none() -> None:
    dotted = picture((240, 222, 236), 240)
    dotted[::4, ::4] = 255
    assert not padding_mask(dotted).any()


def test_all_white_is_none() -> None:
    assert not padding_mask(np.full((20, 30, 3), 255, np.uint8)).any()
