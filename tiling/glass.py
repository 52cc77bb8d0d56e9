"""The glass of a slide in small: its colour, where it lies, and its colour near any place. Pure."""

from __future__ import annotations

from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from tiling.core.arrays import BoolArray, Float32Array, Float64Array, Int64Array, UInt8Array
from tiling.overview import strips

STAINED_OD: Final = 0.055
"""Minimum difference of optical density (natural log) between channels that counts as stain."""
_FLAT_STD = 3.0  # glass is flat: standard deviation over 5 x 5 mask pixels, grey levels
_GLASS_CHROMA = 40  # glass may be tinted by lamp or white balance, but no further
_MIN_GLASS = 0.002  # share of the picture; below it there is no glass to measure and white is assumed
_MIN_OTHER_GLASS = 0.15  # share of what is not exact white; with that much, exact white is no glass
_SAME_GLASS = 10  # levels
_PADDING_RIM_PX = 2
_COARSE = 32  # levels a channel, for the commonest colour
_TINT_OD = (0.2, 0.25)  # what eosin left on the glass adds at most: difference of channels, mean of channels
_SHADOW_OD = 0.7
_CLEAR_OD = 0.12
_MIN_CLEAR = 0.02  # share of an even area that must be clear glass, for all of it to be glass
_BLOCK_PX = 4  # of the picture at half its scale
_SIGMAS = (64.0, 16.0, 4.0)  # blocks
_SEEN = 0.1  # share of the neighbourhood that must be glass, for its colour to count in full


def background_colour(picture: UInt8Array, ignored: BoolArray | None = None) -> Float64Array:
    """RGB of the glass, float64 (3,): the commonest bright, nearly neutral and flat colour; white if there is none.

    Of an RGB picture (h, w, 3), without its `ignored` pixels (h, w).
    """
    glass, colours = np.empty(picture.shape[:2], np.uint8), np.zeros((_COARSE,) * 3, np.int64)
    for rows, wider, own in strips(len(picture), 2):
        glass[rows] = _bright_and_flat(picture[wider])[own]
        if ignored is not None:
            glass[rows] &= ~ignored[rows]
        colours += counts(picture[rows], glass[rows], (0, 1, 2), _COARSE)
    if colours.sum() < _MIN_GLASS * glass.size:
        return np.full(3, 255.0)
    levels, step = np.zeros((3, 256), np.int64), 256 // _COARSE
    darkest = float(step) * np.array(np.unravel_index(colours.argmax(), colours.shape))
    for rows, _, _ in strips(len(picture)):
        commonest = np.asarray(cv2.inRange(picture[rows], darkest, darkest + step - 1), np.uint8) & glass[rows]
        levels += [counts(picture[rows], commonest, (c,)) for c in range(3)]
    return np.array([_median(of_channel) for of_channel in levels])


def padding_mask(picture: UInt8Array) -> BoolArray:
    """Where a file is filled up with exact white, bool (h, w), with its rim: only if its glass has another colour."""
    white = cv2.inRange(picture, (255, 255, 255), (255, 255, 255)) > 0
    if white.mean() < _MIN_GLASS or white.all():
        return np.zeros_like(white)
    glass, alike = background_colour(picture, white), 0
    for rows, wider, own in strips(len(picture), 2):
        near = cv2.inRange(picture[rows], glass - _SAME_GLASS, glass + _SAME_GLASS) > 0
        alike += int(np.count_nonzero(near & _bright_and_flat(picture[wider])[own] & ~white[rows]))
    if alike < _MIN_OTHER_GLASS * np.count_nonzero(~white):
        return np.zeros_like(white)
    large = cv2.morphologyEx(white.view(np.uint8), cv2.MORPH_OPEN, np.ones((5, 5), np.uint8)) > 0
    rim = np.ones((2 * _PADDING_RIM_PX + 1,) * 2, np.uint8)
    return np.asarray(cv2.dilate(large.view(np.uint8), rim) > 0)


def glass_mask(picture: UInt8Array, even: BoolArray, glass: Float64Array) -> BoolArray:
    """Which of the `even` pixels (h, w), those without texture, are glass: clear, tinted or in a shadow.

    A tint or a shadow passes evenly into clear glass, of the colour `glass` (3,); stained tissue ends at an edge.
    """
    maybe, clear = np.empty_like(even), np.empty_like(even)
    for rows, _, _ in strips(len(picture)):
        density = optical_density(picture[rows], glass)
        lowest, highest = channel_range(density)
        chroma, mean = highest - lowest, np.abs(cv2.transform(density, _MEAN))
        tinted = (chroma < _TINT_OD[0]) & (mean < _TINT_OD[1])
        neutral = chroma < STAINED_OD
        maybe[rows] = even[rows] & (tinted | (neutral & (mean < _SHADOW_OD)))
        clear[rows] = even[rows] & neutral & (mean < _CLEAR_OD)
    _, labels = cv2.connectedComponents(maybe.view(np.uint8), connectivity=4)
    sizes, clears = np.bincount(labels.ravel()), np.bincount(labels[clear], minlength=labels.max() + 1)
    is_glass = clears >= _MIN_CLEAR * sizes
    is_glass[0] = False
    return np.asarray(is_glass[labels])


def local_glass(picture: UInt8Array, even: BoolArray, glass: Float64Array) -> Float32Array:
    """Colour of the glass near each block of 8 x 8 pixels, as log levels, float32 (h / 8, w / 8, 3), rounded up.

    From the `glass_mask` of the picture (h, w, 3) the glass is seen, the nearer the more; `glass` (3,) where none is
    within reach. At half the picture's scale: glass is even.
    """
    half = ((picture.shape[1] + 1) // 2, (picture.shape[0] + 1) // 2)
    small = np.asarray(cv2.resize(picture, half, interpolation=cv2.INTER_AREA), np.uint8)
    shares = cv2.resize(even.view(np.uint8) * np.uint8(255), half, interpolation=cv2.INTER_AREA)
    where = glass_mask(small, np.asarray(shares == 255), glass)
    shape = (-(-small.shape[0] // _BLOCK_PX), -(-small.shape[1] // _BLOCK_PX))
    colour, weight = np.zeros((*shape, 3), np.float32), np.zeros(shape, np.float32)
    for rows, _, _ in strips(len(small)):  # of a multiple of 4 rows, but for the last
        blocks = slice(rows.start // _BLOCK_PX, -(-rows.stop // _BLOCK_PX))
        size = (shape[1], blocks.stop - blocks.start)
        seen = where[rows].astype(np.float32)
        logs = cv2.LUT(small[rows], _LOG) * seen[..., None]
        colour[blocks] = cv2.resize(logs, size, interpolation=cv2.INTER_AREA)
        weight[blocks] = cv2.resize(seen, size, interpolation=cv2.INTER_AREA)
    result = np.broadcast_to(np.log(glass + 1).astype(np.float32), colour.shape).copy()
    for sigma in _SIGMAS:
        near = cv2.GaussianBlur(weight, (0, 0), sigma, borderType=cv2.BORDER_CONSTANT)[..., None]
        summed = cv2.GaussianBlur(colour, (0, 0), sigma, borderType=cv2.BORDER_CONSTANT)
        result += np.minimum(near / _SEEN, 1) * (summed / np.maximum(near, 1e-6) - result)
    return result


def density_over(picture: UInt8Array, glass: Float32Array, rows: slice) -> Float32Array:
    """Optical density of those rows of a picture (h, w, 3), against its `local_glass`: float32 (rows, w, 3)."""
    side = 2 * _BLOCK_PX
    blocks = glass[rows.start // side : -(-rows.stop // side)]
    near = cv2.resize(blocks, (picture.shape[1], rows.stop - rows.start), interpolation=cv2.INTER_LINEAR)
    return np.asarray(near - cv2.LUT(picture[rows], _LOG), np.float32)


def optical_density(picture: UInt8Array, background: Float64Array) -> Float32Array:
    """-log(I / background) by channel, float32 (h, w, 3); Beer-Lambert. Below 0 where brighter than the background."""
    levels = np.arange(256, dtype=np.float64)[:, None]
    table = -np.log((levels + 1) / (background + 1))  # (256, 3): a look-up beats a logarithm a pixel
    return np.asarray(cv2.LUT(picture, table[None].astype(np.float32)))


def channel_range(picture: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The minimum and the maximum of each pixel's three channels, (h, w) each; numpy's own way over axis 2 is slow."""
    red, green, blue = cv2.split(picture)
    lowest, highest = cv2.min(cv2.min(red, green), blue), cv2.max(cv2.max(red, green), blue)
    return np.asarray(lowest), np.asarray(highest)


def counts(picture: UInt8Array, where: UInt8Array, channels: tuple[int, ...], bins: int = 256) -> Int64Array:
    """How many of the pixels `where` (h, w) is not 0 have which levels, in equal bins: int64, an axis a channel."""
    found = cv2.calcHist([picture], channels, where, [bins] * len(channels), [0, 256] * len(channels))
    return np.asarray(found, np.int64).reshape((bins,) * len(channels))  # float32: exact for a strip's pixels


_LOG: Final = np.log(np.arange(256) + 1).astype(np.float32)
_MEAN: Final = np.full((1, 3), 1 / 3, np.float32)


def _bright_and_flat(picture: UInt8Array) -> BoolArray:
    """Which pixels are bright, nearly neutral and flat, (h, w)."""
    grey = cv2.transform(picture.astype(np.float32), _MEAN)
    mean = cv2.blur(grey, (5, 5))
    variance = cv2.blur(grey * grey, (5, 5)) - mean * mean
    darkest, brightest = channel_range(picture)
    return np.asarray((variance < _FLAT_STD**2) & (brightest - darkest <= _GLASS_CHROMA) & (grey > 140))


def _median(counts: NDArray[np.int64]) -> float:
    """The median of values of which there are so many of 0, 1, 2 and so on."""
    up_to = np.cumsum(counts)
    middle = np.array([(up_to[-1] - 1) // 2, up_to[-1] // 2])
    return float(np.searchsorted(up_to, middle, side="right").mean())
