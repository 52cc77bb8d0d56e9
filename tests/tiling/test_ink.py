"""What ink and black borders hide, against brute force."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from tiling.ink import as_nearest, border_mask

B = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]


def nearest_within(mask: B, hidden: B, slack_px: float) -> tuple[B, B]:
    """Whether a set, and whether an unset, pixel lies no farther than the nearest that is seen and `slack_px`."""
    places, seen = np.argwhere(hidden), np.argwhere(~hidden)
    far = np.hypot(*np.moveaxis(places[:, None] - seen[None], 2, 0))
    near = far <= far.min(1, keepdims=True) + slack_px
    of_seen = mask[~hidden]
    return (near & of_seen).any(1), (near & ~of_seen).any(1)


@pytest.mark.parametrize("shape", [(30, 40), (31, 37)])
@pytest.mark.parametrize("seed", range(3))
def test_hidden_pixels_are_as_the_nearest_seen(shape: tuple[int, int], seed: int) -> None:
    random = np.random.default_rng(seed)
    mask = cv2.GaussianBlur(random.random(shape), (0, 0), 4) > 0.5
    hidden = np.zeros(shape, np.uint8)
    for x, y, radius in random.integers((0, 0, 3), (shape[1], shape[0], 8), (3, 3)).tolist():
        cv2.circle(hidden, (x, y), radius, 1, -1)
    result = as_nearest(mask, hidden > 0)
    assert result.shape == shape
    np.testing.assert_array_equal(result[hidden == 0], mask[hidden == 0])
    may_be_set, may_be_unset = nearest_within(mask, hidden > 0, 4)  # found at half the scale
    assert np.where(result[hidden > 0], may_be_set, may_be_unset).all()
    assert not (may_be_set & may_be_unset).all(), "some are decided"


def test_without_ink_the_mask_is_itself_and_under_ink_alone_there_is_nothing() -> None:
    mask = np.eye(9, dtype=np.bool_)
    np.testing.assert_array_equal(as_nearest(mask, np.zeros_like(mask)), mask)
    assert not as_nearest(mask, np.ones_like(mask)).any()


def test_black_is_a_border_where_it_reaches_the_edge() -> None:
    picture = np.full((40, 50, 3), 240, np.uint8)
    picture[:, :6] = (20, 0, 50)
    picture[15:25, 20:30] = 0
    picture[-4:, -4:] = 51
    expected = np.zeros((40, 50), np.bool_)
    expected[:, : 6 + 2] = True  # and its rim
    np.testing.assert_array_equal(border_mask(picture), expected)
