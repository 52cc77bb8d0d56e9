"""The slide in small, for detecting tissue: its picture, and the spread of colour that is lost at that scale. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from cv2.typing import MatLike

from tiling.core.arrays import UInt8Array

SPREAD_UNIT: Final = 0.25
"""Grey levels by unit of a spread or texture stored as uint8."""
FINER: Final = 2
"""How many times finer than the overview the slide is looked at."""
_STRIP_ROWS = 128
_WINDOW_PX = 3


@dataclass(frozen=True)
class Overview:
    """A slide in small, for tissue detection."""

    picture: UInt8Array
    """RGB (h, w, 3)."""
    texture: UInt8Array
    """How much colour differs around each pixel, (h, w), see `texture_of`."""

    @classmethod
    def of(cls, finer: UInt8Array) -> Overview:
        """The overview of an RGB picture (2h, 2w, 3) that is twice as fine."""
        height, width = finer.shape[0] // FINER, finer.shape[1] // FINER
        picture = cv2.resize(finer[: height * FINER, : width * FINER], (width, height), interpolation=cv2.INTER_AREA)
        return cls.plain(np.asarray(picture, np.uint8), spread_within(finer))

    @classmethod
    def plain(cls, picture: UInt8Array, spread: UInt8Array | None = None) -> Overview:
        """The overview that is a picture (h, w, 3), with what is known of the `spread_within` its pixels (h, w)."""
        return cls(picture, texture_of(picture, np.zeros(picture.shape[:2], np.uint8) if spread is None else spread))

    def part(self, where: tuple[slice, slice]) -> Overview:
        """Those rows and columns of it."""
        return Overview(self.picture[where], self.texture[where])


def texture_of(picture: UInt8Array, spread: UInt8Array) -> UInt8Array:
    """How much colour differs around each pixel of an RGB picture (h, w, 3): uint8 (h, w), in `SPREAD_UNIT`.

    The mean of the `spread` within its 3 x 3 neighbours, and their mean absolute deviation in both colours, added.
    """
    window = (_WINDOW_PX, _WINDOW_PX)
    texture = np.empty_like(spread)
    for rows, wider, own in strips(len(texture), 2 * (_WINDOW_PX // 2)):
        total = cv2.blur(spread[wider], window)
        for colour in _colours(picture[wider]):
            total = cv2.add(total, cv2.blur(_deviation(colour, cv2.blur(colour, window)), window))
        texture[rows] = total[own]
    return texture


def spread_within(finer: UInt8Array) -> UInt8Array:
    """How much colour differs within each 2 x 2 pixels of an RGB picture (2h, 2w, 3): uint8 (h, w), `SPREAD_UNIT`.

    The mean absolute deviation of red minus green, and that of green minus blue, added. Brown and blue cells differ
    where their mean is grey; shadows and dust do not. In whole levels, not optical density: it is several times faster,
    and where tissue is so dark that they part it is found by its colour.
    """
    height, width = finer.shape[0] // FINER, finer.shape[1] // FINER
    spread = np.zeros((height, width), np.uint8)
    for rows, _, _ in strips(height):
        own = finer[rows.start * FINER : rows.stop * FINER, : width * FINER]
        small = (width, rows.stop - rows.start)
        for colour in _colours(own):
            mean = cv2.resize(colour, small, interpolation=cv2.INTER_AREA)
            deviation = _deviation(colour, cv2.resize(mean, own.shape[1::-1], interpolation=cv2.INTER_NEAREST))
            spread[rows] = cv2.add(spread[rows], cv2.resize(deviation, small, interpolation=cv2.INTER_AREA))
    return spread


def strips(height: int, margin: int = 0) -> Iterator[tuple[slice, slice, slice]]:
    """The rows of a picture in strips, so that work in floats takes little memory whatever the picture's size.

    Gives the strip's rows, these with up to `margin` rows on either side, and the strip within those.
    """
    for top in range(0, height, _STRIP_ROWS):
        lower = min(top + _STRIP_ROWS, height)
        first, last = max(0, top - margin), min(height, lower + margin)
        yield slice(top, lower), slice(first, last), slice(top - first, lower - first)


def _colours(picture: UInt8Array) -> Iterator[UInt8Array]:
    """Red minus green, and green minus blue, about 128: uint8 (h, w) each."""
    red, green, blue = cv2.split(picture)
    for one, other in ((red, green), (green, blue)):
        yield np.asarray(cv2.addWeighted(one, 1, other, -1, 128), np.uint8)


def _deviation(values: UInt8Array, mean: MatLike) -> UInt8Array:
    """Absolute deviation, in `SPREAD_UNIT`."""
    return np.asarray(cv2.convertScaleAbs(cv2.absdiff(values, mean), alpha=1 / SPREAD_UNIT), np.uint8)
