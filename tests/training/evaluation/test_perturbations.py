"""Each shift against scipy, Pillow, colorsys or its formula in float64, on a picture like tissue."""

from __future__ import annotations

import colorsys
import io
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from tests.training.test_augment_ops import tissue
from tiling.quality import HED
from training.evaluation.perturbations import SHIFTS, shifted_copies

Tile = NDArray[np.uint8]
Oracle = Callable[[NDArray[np.float64], float], NDArray[np.floating]]
LUMA = np.array([0.299, 0.587, 0.114])


def batch() -> Tile:
    """uint8 (3, 48, 48, 3)"""
    dark = tissue() // 2
    return np.stack([tissue(), np.rot90(tissue()), dark])


def blurred_or_sharpened(tile: NDArray[np.float64], strength: float) -> NDArray[np.floating]:
    if strength < 0:
        sigma = -2 * strength
        radius = max(1, round(6 * sigma + 1) // 2)  # OpenCV's window for 8 bits
        planes = [ndimage.gaussian_filter(tile[..., c], sigma, mode="mirror", radius=radius) for c in range(3)]
    else:
        kernel = -strength * np.ones((3, 3))
        kernel[1, 1] = 1 + 8 * strength
        planes = [ndimage.convolve(tile[..., c], kernel, mode="mirror") for c in range(3)]
    return np.stack(planes, axis=-1)


def hue_turned(tile: NDArray[np.float64], strength: float) -> NDArray[np.floating]:
    def turned(pixel: NDArray[np.float64]) -> NDArray[np.float64]:
        h, s, v = colorsys.rgb_to_hsv(*(pixel / 255))
        return np.array(colorsys.hsv_to_rgb((h + strength / 8) % 1, s, v)) * 255

    return np.asarray(np.apply_along_axis(turned, -1, tile))


def restained(tile: NDArray[np.float64], strength: float) -> NDArray[np.floating]:
    amounts = -np.log(tile / 255) @ np.linalg.inv(HED)
    return np.asarray(255 * np.exp(-(amounts * [2**strength, 2**-strength, 1]) @ HED))


def halved(tile: NDArray[np.float64], strength: float) -> NDArray[np.floating]:
    """For strength 0.5 alone: means of 2 x 2, then linear between their centres."""
    assert strength == 0.5
    small = tile.reshape(24, 2, 24, 2, 3).mean(axis=(1, 3))
    for axis in (0, 1):
        small = np.moveaxis(small, axis, 0)
        padded = np.concatenate([small[:1], small, small[-1:]])
        even, odd = 0.25 * padded[:-2] + 0.75 * padded[1:-1], 0.75 * padded[1:-1] + 0.25 * padded[2:]
        small = np.moveaxis(np.stack([even, odd], axis=1).reshape(-1, *small.shape[1:]), 0, axis)
    return np.asarray(small)


def compressed(tile: NDArray[np.float64], strength: float) -> NDArray[np.floating]:
    file = io.BytesIO()
    Image.fromarray(tile.astype(np.uint8)).save(file, "JPEG", quality=round(100 - 95 * strength), subsampling="4:2:0")
    return np.asarray(Image.open(file), np.float64)


ORACLES: dict[str, tuple[Oracle, list[float], float]] = {
    "sharpness": (blurred_or_sharpened, [-1, -0.3, 0.4, 1], 1.5),
    "brightness": (lambda t, s: t * 2 ** (s / 2), [-1, 0.3, 1], 0.5),
    "contrast": (lambda t, s: (m := (t @ LUMA).mean()) + (t - m) * 2**s, [-1, 0.3, 1], 0.51),
    "saturation": (lambda t, s: (g := (t @ LUMA)[..., None]) + (t - g) * 2**s, [-1, 0.3, 1], 0.51),
    "hue": (hue_turned, [-1, 0.1, 1], 0.52),
    "gamma": (lambda t, s: 255 * (t / 255) ** (2**s), [-1, 0.3, 1], 0.5),
    "stain": (restained, [-1, 0.2, 1], 0.52),
    "jpeg": (compressed, [0.1, 0.6, 1], 1.0),
    "resolution": (halved, [0.5], 0.51),
}


@pytest.mark.parametrize("name", ORACLES)
def test_shift_is_what_the_oracle_says(name: str) -> None:
    oracle, strengths, tolerance = ORACLES[name]
    for strength in strengths:
        shifted = SHIFTS[name](batch(), strength)
        assert shifted.dtype == np.uint8
        assert shifted.shape == batch().shape
        expected = np.stack([oracle(tile.astype(np.float64), strength) for tile in batch()])
        assert np.abs(shifted - np.clip(expected, 0, 255)).max() <= tolerance
        assert (shifted != batch()).mean() > 0.3


def test_every_shift_has_an_oracle() -> None:
    assert set(SHIFTS) - set(ORACLES) == {"noise"}


@pytest.mark.parametrize("name", SHIFTS)
def test_strength_0_changes_nothing_and_others_leave_the_input_alone(name: str) -> None:
    tiles = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    before = tiles.copy()
    np.testing.assert_array_equal(SHIFTS[name](tiles, 0.0), before)
    for strength in SHIFTS[name].strengths(2):
        once = SHIFTS[name](tiles, strength)
        np.testing.assert_array_equal(tiles, before)
        np.testing.assert_array_equal(once, SHIFTS[name](tiles, strength))
        one_by_one = [SHIFTS[name](tiles[[row]], strength)[0] for row in range(4)]
        np.testing.assert_array_equal(once, np.stack(one_by_one), err_msg="the batch does not matter")
    assert SHIFTS[name](tiles[:0], 0.5).shape == (0, 16, 16, 3)


@pytest.mark.parametrize("name", SHIFTS)
def test_shifts_grow_with_their_strength(name: str) -> None:
    ways = [1, -1] if SHIFTS[name].two_sided else [1]
    for way in ways:
        distances = [
            np.abs(SHIFTS[name](batch(), way * strength).astype(int) - batch()).mean() for strength in (0.25, 0.5, 1.0)
        ]
        assert 0 < distances[0] < distances[1] < distances[2]


def test_noise_is_normal_and_unlike_between_tiles_and_channels() -> None:
    grey = np.full((2, 64, 64, 3), 128, np.uint8)
    grey[1, 0, 0, 0] = 129  # another tile, so other noise
    noisy = SHIFTS["noise"](grey, 0.5).astype(float) - 128
    for tile in noisy:
        assert abs(tile.mean()) < 1
        assert abs(tile.std() - 20) < 0.6
        assert abs((np.abs(tile) < 20).mean() - 0.683) < 0.02
    flat = noisy.reshape(2, -1, 3)
    assert abs(np.corrcoef(flat[0, :, 0], flat[1, :, 0])[0, 1]) < 0.06
    assert abs(np.corrcoef(flat[0, :, 0], flat[0, :, 1])[0, 1]) < 0.06


@pytest.mark.parametrize(("name", "strength"), [("jpeg", -0.1), ("noise", 1.01), ("hue", -1.5), ("gamma", np.nan)])
def test_strengths_out_of_range_are_refused(name: str, strength: float) -> None:
    with pytest.raises(ValueError, match="strength"):
        SHIFTS[name](batch(), strength)


def test_strengths_are_equal_steps_with_0_among_them() -> None:
    assert SHIFTS["hue"].strengths(2) == [-1, -0.5, 0, 0.5, 1]
    assert SHIFTS["jpeg"].strengths(4) == [0, 0.25, 0.5, 0.75, 1]


@pytest.mark.parametrize(
    ("name", "strength", "amount"),
    [
        ("sharpness", -1, "blur 2 px"), ("sharpness", 0.5, "sharpen 0.5"), ("brightness", -1, "× 0.71"),
        ("hue", 1, "+45°"), ("gamma", 1, "2"), ("stain", 1, "H × 2, E × 0.5"), ("jpeg", 0, "none"),
        ("jpeg", 1, "quality 5"), ("noise", 1, "sd 40 levels"), ("resolution", 1, "1/4"),
    ],
)  # fmt: skip
def test_amounts_are_said_in_the_shift_s_unit(name: str, strength: float, amount: str) -> None:
    assert SHIFTS[name].amount(strength) == amount


def test_shifted_copies_go_both_ways_where_a_shift_does() -> None:
    copies = shifted_copies()
    assert len(copies) == 7 * 2 + 3
    assert set(shifted_copies(("sharpness", "noise"), 0.25)) == {"sharpness -0.25", "sharpness +0.25", "noise +0.25"}
    np.testing.assert_array_equal(copies["sharpness -0.5"](batch()), SHIFTS["sharpness"](batch(), -0.5))
    np.testing.assert_array_equal(copies["jpeg +0.5"](batch()), SHIFTS["jpeg"](batch(), 0.5))
    assert all((copy(batch()) != batch()).any() for copy in copies.values())
