"""The slide in small, for detecting tissue: its picture, and the spread of colour that is lost at that scale. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from tiling.core.arrays import Float32Array, UInt8Array

SPREAD_UNIT: Final = 1 / 500
"""Optical density (natural log) by level of a spread stored as uint8."""
FINER: Final = 2
"""How many times finer than the overview the slide is looked at."""
_STRIP_ROWS = 512
_WINDOW_PX = 3


@dataclass(frozen=True)
class Overview:
    """A slide in small."""

    picture: UInt8Array
    """RGB (h, w, 3)."""
    spread: UInt8Array
    """Standard deviation of colour within each pixel, (h, w), in `SPREAD_UNIT`; 0 where nothing finer was seen."""

    @classmethod
    def of(cls, finer: UInt8Array) -> Overview:
        """The overview of an RGB picture (2h, 2w, 3) that is twice as fine."""
        height, width = finer.shape[0] // FINER, finer.shape[1] // FINER
        picture = cv2.resize(finer[: height * FINER, : width * FINER], (width, height), interpolation=cv2.INTER_AREA)
        return cls(np.asarray(picture, np.uint8), spread_within(finer))

    def part(self, where: tuple[slice, slice]) -> Overview:
        """Those rows and columns of it."""
        return Overview(self.picture[where], self.spread[where])

    @classmethod
    def plain(cls, picture: UInt8Array) -> Overview:
        """The overview that is a picture (h, w, 3) of which nothing finer is known."""
        return cls(picture, np.zeros(picture.shape[:2], np.uint8))

    def texture(self) -> UInt8Array:
        """Standard deviation of colour in each pixel and its 3 x 3 neighbours, uint8 (h, w), in `SPREAD_UNIT`."""
        texture = np.empty(self.picture.shape[:2], np.uint8)
        for rows, wider, own in strips(len(texture), _WINDOW_PX // 2):
            variance = _blurred((self.spread[wider].astype(np.float32) * SPREAD_UNIT) ** 2)
            for ratio in _colour_ratios(self.picture[wider]):
                variance += np.maximum(_blurred(ratio * ratio) - _blurred(ratio) ** 2, 0)
            texture[rows] = _as_levels(variance[own])
        return texture


def spread_within(finer: UInt8Array) -> UInt8Array:
    """Standard deviation of colour within each 2 x 2 pixels of an RGB picture (2h, 2w, 3): uint8 (h, w), `SPREAD_UNIT`.

    Colour is the difference of optical density between channels: brown and blue cells differ where their mean is grey,
    and shadows and dust have none.
    """
    height, width = finer.shape[0] // FINER, finer.shape[1] // FINER
    variance = np.zeros((height, width), np.float32)
    for ratio in _colour_ratios(finer[: height * FINER, : width * FINER]):
        mean, square = (
            cv2.resize(values, (width, height), interpolation=cv2.INTER_AREA) for values in (ratio, ratio * ratio)
        )
        variance += np.maximum(square - mean * mean, 0)
    return _as_levels(variance)


def strips(height: int, margin: int = 0) -> Iterator[tuple[slice, slice, slice]]:
    """The rows of a picture in strips, so that work in floats takes little memory whatever the picture's size.

    Gives the strip's rows, these with up to `margin` rows on either side, and the strip within those.
    """
    for top in range(0, height, _STRIP_ROWS):
        lower = min(top + _STRIP_ROWS, height)
        first, last = max(0, top - margin), min(height, lower + margin)
        yield slice(top, lower), slice(first, last), slice(top - first, lower - first)


def _colour_ratios(picture: UInt8Array) -> Iterator[Float32Array]:
    """Differences of optical density between red and green, green and blue, red and blue: float32 (h, w) each."""
    red, green, blue = cv2.split(cv2.LUT(picture, _DENSITY))
    for one, other in ((red, green), (green, blue), (red, blue)):
        yield np.asarray(one - other, np.float32)


_DENSITY: Final = -np.log((np.arange(256) + 1) / 256).astype(np.float32)


def _blurred(values: NDArray[Any]) -> Float32Array:
    return np.asarray(cv2.blur(values, (_WINDOW_PX, _WINDOW_PX), borderType=cv2.BORDER_REPLICATE), np.float32)


def _as_levels(variance: Float32Array) -> UInt8Array:
    return np.minimum(np.sqrt(variance) / SPREAD_UNIT, 255).astype(np.uint8)
