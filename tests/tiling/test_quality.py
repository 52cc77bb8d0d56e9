"""Quality columns on tiles whose values are known."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from tiling.quality import METRICS, quality

SIDE = 64
U8 = NDArray[np.uint8]


def flat(*colour: int) -> U8:
    return np.full((SIDE, SIDE, 3), colour, np.uint8)


def halves(left: tuple[int, int, int], right: tuple[int, int, int]) -> U8:
    tile = flat(*left)
    tile[:, SIDE // 2 :] = right
    return tile


WHITE, BLACK, PINK, GREEN = (250, 250, 250), (0, 0, 0), (220, 140, 180), (30, 150, 60)


@pytest.mark.parametrize(
    ("tile", "expected"),
    [
        (flat(*WHITE), {"focus": 0, "white": 1, "black": 0, "pen": 0, "saturation": 0}),
        (flat(*BLACK), {"focus": 0, "white": 0, "black": 1, "saturation": 0}),
        (flat(*PINK), {"focus": 0, "white": 0, "black": 0, "pen": 0, "saturation": 93 / 255}),
        (flat(255, 0, 0), {"saturation": 1, "white": 0, "black": 0, "pen": 1}),
        (halves(WHITE, BLACK), {"white": 0.5, "black": 0.5}),
        (halves(PINK, GREEN), {"pen": 0.5, "white": 0, "black": 0}),
        (flat(226, 226, 226), {"white": 1}),
        (flat(225, 255, 255), {"white": 0}),
        (flat(29, 29, 29), {"black": 1}),
        (flat(30, 0, 0), {"black": 0}),
    ],
)
def test_known_tiles(tile: U8, expected: dict[str, float]) -> None:
    found = quality(tile)
    assert tuple(found) == METRICS
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=2e-3)


def test_focus_is_the_variance_of_the_laplacian() -> None:
    """One bright pixel of height h: the 4-neighbour Laplacian is -4h once and h four times."""
    tile = flat(0, 0, 0)
    tile[20, 20] = 100
    expected = (16 * 100**2 + 4 * 100**2) / SIDE**2
    assert quality(tile)["focus"] == pytest.approx(expected)


def test_blur_lowers_the_focus() -> None:
    sharp = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    blurred = [np.asarray(cv2.GaussianBlur(sharp, (0, 0), sigma), np.uint8) for sigma in (0.7, 1.5, 3)]
    values = [quality(tile)["focus"] for tile in (sharp, *blurred)]
    assert values == sorted(values, reverse=True)
    assert values[0] > 100 * values[-1]


@pytest.mark.parametrize("side", [1, 2, 3, 15, 17])
def test_tiny_tiles_have_values(side: int) -> None:
    found = quality(np.full((side, side, 3), 255, np.uint8))
    assert found["white"] == 1
    assert all(np.isfinite(value) for value in found.values())
