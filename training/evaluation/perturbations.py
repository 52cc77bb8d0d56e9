"""Image perturbations: what a scanner or a laboratory changes. Pure numpy, one tile like another.

`blurred`, `brightened` and `turned_hue` take an amount in their own unit. A `Shift` takes a strength: 0 leaves tiles
uint8 (B, T, T, 3) unchanged; the largest is 1, and shifts of two directions go down to -1. `Shift.amount` is a strength
in the shift's unit. A tile's result depends on that tile and the strength alone, not on its batch.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from tiling.quality import HED

Tiles = NDArray[np.uint8]
Floats = NDArray[np.float32]

BLUR_SIGMA_PX: Final = 2.0
HUE_DEGREES: Final = 45.0
BRIGHTEST: Final = 2**0.5  # on stained tissue, which is bright, twice would leave nothing but white
LOWEST_QUALITY: Final = 5
NOISE_LEVELS: Final = 40.0
COARSEST: Final = 4.0
_LUMA: Final = np.array([0.299, 0.587, 0.114], np.float32)
_LEVELS: Final = np.arange(256, dtype=np.float64)
_DENSITY: Final = -np.log(np.maximum(_LEVELS, 1) / 255).astype(np.float32)
_SHARPEN: Final = np.array([[-1, -1, -1], [-1, 9, -1], [-1, -1, -1]], np.float32)
_UNCHANGED: Final = np.array([[0, 0, 0], [0, 1, 0], [0, 0, 0]], np.float32)
_NOISE_SEED: Final = 7


@dataclass(frozen=True)
class Shift:
    """An image perturbation: how tiles of another scanner or laboratory may differ."""

    apply: Callable[[Tiles, float], Tiles]
    """For a strength other than 0."""
    amount: Callable[[float], str]
    """A strength in the shift's own unit."""
    two_sided: bool = True
    """Whether strengths below 0 mean something."""

    def __call__(self, tiles: Tiles, strength: float) -> Tiles:
        """Shifted tiles, uint8 (B, T, T, 3). Raises ValueError for a strength out of range."""
        if not -1 * self.two_sided <= strength <= 1:
            raise ValueError(f"strength must lie in [{-1 if self.two_sided else 0}, 1], not {strength}")
        return tiles if strength == 0 or len(tiles) == 0 else self.apply(tiles, strength)

    def strengths(self, steps: int) -> list[float]:
        """Equal steps from 0 to each end, in order; 0 is exactly among them."""
        return [step / steps for step in range(-steps if self.two_sided else 0, steps + 1)]


def blurred(tiles: Tiles, sigma: float) -> Tiles:
    """Gaussian blur with a standard deviation of `sigma` pixels, edges mirrored."""
    return _by_tile(tiles, lambda tile: cv2.GaussianBlur(tile, (0, 0), sigma))


def brightened(tiles: Tiles, factor: float) -> Tiles:
    """All channels times a factor, clipped."""
    return _bytes(_LEVELS * factor)[tiles]


def turned_hue(tiles: Tiles, degrees: float) -> Tiles:
    """The hue turned by `degrees`, red towards yellow above 0; saturation and value stay."""
    hsv = cv2.cvtColor(_tall(tiles).astype(np.float32) / 255, cv2.COLOR_RGB2HSV)
    hsv[..., 0] = (hsv[..., 0] + degrees) % 360
    return _bytes(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB) * 255).reshape(tiles.shape)


def sharpness(tiles: Tiles, strength: float) -> Tiles:
    """Below 0 a Gaussian blur of up to 2 px standard deviation; above, `strength` times the Laplacian is taken off."""
    if strength < 0:
        return blurred(tiles, -strength * BLUR_SIGMA_PX)
    kernel = (1 - strength) * _UNCHANGED + strength * _SHARPEN
    return _by_tile(tiles, lambda tile: cv2.filter2D(tile, -1, kernel))


def brightness(tiles: Tiles, strength: float) -> Tiles:
    """All channels times up to the square root of 2, or its inverse."""
    return brightened(tiles, BRIGHTEST**strength)


def gamma(tiles: Tiles, strength: float) -> Tiles:
    """Light in [0, 1] to the power 2^strength: above 0 it darkens."""
    return _bytes(255 * (_LEVELS / 255) ** (2**strength))[tiles]


def contrast(tiles: Tiles, strength: float) -> Tiles:
    """The distance from the tile's mean grey times 2^strength."""
    mean = (tiles.mean(axis=(1, 2), dtype=np.float64) @ _LUMA)[:, None, None, None]
    return _bytes(mean + (tiles - mean) * 2**strength)


def saturation(tiles: Tiles, strength: float) -> Tiles:
    """The distance of each pixel from its grey times 2^strength."""
    grey = (tiles @ _LUMA)[..., None]
    return _bytes(grey + (tiles - grey) * np.float32(2**strength))


def hue(tiles: Tiles, strength: float) -> Tiles:
    """The hue turned by up to 45 degrees, red towards yellow above 0."""
    return turned_hue(tiles, strength * HUE_DEGREES)


def stain(tiles: Tiles, strength: float) -> Tiles:
    """Haematoxylin times 2^strength and eosin times 2^-strength, unmixed by Ruifrok & Johnston's matrix."""
    scale = np.diag([2.0**strength, 2.0**-strength, 1.0])
    matrix = HED.T @ scale @ np.linalg.inv(HED.T)  # of densities, columns
    density = cv2.transform(_DENSITY[_tall(tiles)], matrix.astype(np.float32))
    return _bytes(255 * np.exp(-density)).reshape(tiles.shape)


def jpeg(tiles: Tiles, strength: float) -> Tiles:
    """Compressed and decompressed by libjpeg, 4:2:0, at a quality from 100 down to 5."""
    settings = [cv2.IMWRITE_JPEG_QUALITY, _quality(strength)]

    def coded(tile: Tiles) -> cv2.typing.MatLike:
        written = cv2.imencode(".jpg", cv2.cvtColor(tile, cv2.COLOR_RGB2BGR), settings)[1]
        return np.asarray(cv2.imdecode(written, cv2.IMREAD_COLOR_RGB))

    return _by_tile(tiles, coded)


def noise(tiles: Tiles, strength: float) -> Tiles:
    """Normal noise of up to 40 grey levels standard deviation, for each channel its own; its seed is the tile."""

    def noisy(tile: Tiles) -> NDArray[np.uint8]:
        random = np.random.default_rng([_NOISE_SEED, zlib.crc32(tile.tobytes())])
        return _bytes(tile + random.standard_normal(tile.shape, np.float32) * np.float32(strength * NOISE_LEVELS))

    return _by_tile(tiles, noisy)


def resolution(tiles: Tiles, strength: float) -> Tiles:
    """Shrunk by area, up to four times a side, and enlarged again linearly."""
    side = tiles.shape[1]
    small = max(1, round(side / COARSEST**strength))

    def coarse(tile: Tiles) -> Tiles:
        shrunk = cv2.resize(tile.astype(np.float32), (small, small), interpolation=cv2.INTER_AREA)
        return _bytes(cv2.resize(shrunk, (side, side)))

    return _by_tile(tiles, coarse)


def _quality(strength: float) -> int:
    return round(100 - (100 - LOWEST_QUALITY) * strength)


def _by_tile(tiles: Tiles, change: Callable[[Tiles], cv2.typing.MatLike | Tiles]) -> Tiles:
    return np.stack([np.asarray(change(tile), np.uint8) for tile in tiles])


def _tall(tiles: Tiles) -> Tiles:
    """The tiles below one another, (B * T, T, 3), for what looks at pixels alone."""
    return tiles.reshape(-1, tiles.shape[2], 3)


def _bytes(levels: NDArray[np.floating] | cv2.typing.MatLike) -> Tiles:
    return np.asarray(np.clip(np.rint(levels), 0, 255), np.uint8)


def _factor(strength: float) -> str:
    return f"× {2**strength:.2g}"


SHIFTS: dict[str, Shift] = {
    "sharpness": Shift(sharpness, lambda s: f"blur {-s * BLUR_SIGMA_PX:.2g} px" if s < 0 else f"sharpen {s:.2g}"),
    "brightness": Shift(brightness, lambda s: f"× {BRIGHTEST**s:.2g}"),
    "contrast": Shift(contrast, _factor),
    "saturation": Shift(saturation, _factor),
    "hue": Shift(hue, lambda s: f"{s * HUE_DEGREES:+.3g}°"),
    "gamma": Shift(gamma, lambda s: f"{2**s:.2g}"),
    "stain": Shift(stain, lambda s: f"H × {2**s:.2g}, E × {2**-s:.2g}"),
    "jpeg": Shift(jpeg, lambda s: f"quality {_quality(s)}" if s else "none", two_sided=False),
    "noise": Shift(noise, lambda s: f"sd {s * NOISE_LEVELS:.3g} levels", two_sided=False),
    "resolution": Shift(resolution, lambda s: f"1/{COARSEST**s:.2g}", two_sided=False),
}

MODERATE: Final = 0.5
"""The strength at which copies of validation are shifted to choose among models: half of what a shift goes to."""


@dataclass(frozen=True)
class DrawnShift:
    """Tiles (B, T, T, 3) and the position of the first -> all in one moderate shift, drawn by seed and position."""

    seed: int

    def __call__(self, tiles: Tiles, position: int) -> Tiles:
        """See the class."""
        shifts = list(shifted_copies().values())
        return shifts[np.random.default_rng([self.seed, position]).integers(len(shifts))](tiles)


def shifted_copies(
    shifts: Iterable[str] = tuple(SHIFTS), strength: float = MODERATE
) -> dict[str, Callable[[Tiles], Tiles]]:
    """What makes each shifted copy of some tiles, by shift and strength (`sharpness -0.5`): both directions if it has.

    Args:
        shifts: Names of SHIFTS.
        strength: In (0, 1].

    Returns:
        By name, a function from tiles uint8 (B, T, T, 3) to shifted ones.

    Raises:
        KeyError: For a shift that is not in SHIFTS.
    """
    ends = [
        (name, end) for name in shifts for end in ((-strength, strength) if SHIFTS[name].two_sided else (strength,))
    ]
    return {f"{name} {end:+g}": partial(SHIFTS[name], strength=end) for name, end in ends}
