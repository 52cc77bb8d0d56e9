"""Overview picture -> tissue mask. Pure; knows nothing of slides.

Tissue is what is stained: pixels whose optical density, measured against the slide's own background colour, differs
between the colour channels. White, grey and pinkish glass, shadows and black borders are neutral against that
background whatever their brightness; ink has hues and densities that haematoxylin, eosin and DAB do not reach.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from tiling import histoprep
from tiling.config import TissueConfig
from tiling.core.arrays import BoolArray, UInt8Array

STAINED_OD = 0.055
"""Minimum difference of optical density (natural log) between channels that counts as stain."""
_BLACK = 50  # a pixel whose brightest channel is below is border, fold shadow or ink, not stained tissue
_FLAT_STD = 3.0  # glass is flat: standard deviation over 5 x 5 mask pixels, grey levels
_GLASS_CHROMA = 40  # glass may be tinted by lamp or white balance, but no further
_STRIP_ROWS = 512
_MIN_GLASS = 0.002  # share of the picture; below it there is no glass to measure and white is assumed


def tissue_mask(picture: UInt8Array, mpp: float, config: TissueConfig) -> BoolArray:
    """Where the tissue is by `config.method`, bool (h, w), of an RGB picture uint8 (h, w, 3) at `mpp` micrometres a
    pixel.

    A picture that is not bright-field (fluorescence: dark with coloured light) has none. Raises ConfigError for
    `histoprep` without the extra, ValueError for `mask`, which is no detection.
    """
    if config.method not in METHODS:
        raise ValueError(f"{config.method} detects nothing")
    if not is_bright_field(picture):
        return np.zeros(picture.shape[:2], np.bool_)
    found = METHODS[config.method](picture)
    return sized(found, mpp, config) if config.method == "histoprep" else clean_mask(found, mpp, config)


def stained(picture: UInt8Array) -> BoolArray:
    """Where optical density differs between the channels by more than glass and noise do, and no ink is near."""
    smooth = np.asarray(cv2.GaussianBlur(picture, (0, 0), 0.8), np.uint8)
    background, found = background_colour(picture), _clear_of_ink(smooth)
    for rows in _strips(len(picture)):
        darkest, brightest = _channel_range(optical_density(smooth[rows], background))
        found[rows] &= brightest - darkest > STAINED_OD
    return found


def above_otsu(picture: UInt8Array) -> BoolArray:
    """Where the mean optical density exceeds Otsu's threshold (1979), itself at least `STAINED_OD`; no ink, no black.

    Ink and black are left out of the histogram too, or they would decide the threshold.
    """
    smooth = np.asarray(cv2.GaussianBlur(picture, (0, 0), 0.8), np.uint8)
    background, clear = background_colour(picture), _clear_of_ink(smooth)
    density = np.empty(clear.shape, np.float32)
    for rows in _strips(len(picture)):
        density[rows] = np.clip(optical_density(smooth[rows], background).mean(2), 0, 2)
    if not clear.any():
        return clear
    levels = np.asarray(np.rint(density * (255 / 2)), np.uint8)
    threshold, _ = cv2.threshold(levels[clear], 0, 1, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    return np.asarray((density > max(threshold * 2 / 255, STAINED_OD)) & clear)


def of_stain_hue(picture: UInt8Array) -> BoolArray:
    """Where HSV saturation, with the glass made white, is at least 18 of 255 and the hue is violet to brown."""
    smooth = np.asarray(cv2.GaussianBlur(picture, (0, 0), 0.8), np.uint8)
    background, found = background_colour(picture), _clear_of_ink(smooth)
    for rows in _strips(len(picture)):
        white = np.minimum(smooth[rows] * (255 / background), 255).astype(np.uint8)
        hue, saturation, _ = cv2.split(cv2.cvtColor(white, cv2.COLOR_RGB2HSV))
        found[rows] &= (saturation >= 18) & ((hue >= 120) | (hue <= 20))
    return found


METHODS: dict[str, Callable[[UInt8Array], BoolArray]] = {
    "specslide": stained,
    "otsu": above_otsu,
    "hsv": of_stain_hue,
    "histoprep": histoprep.tissue,
}
"""What `--tissue` can name: from the slide in small, RGB uint8 (h, w, 3), to where tissue is, bool (h, w)."""


def _clear_of_ink(picture: UInt8Array) -> BoolArray:
    return np.asarray((_channel_range(picture)[1] > _BLACK) & ~_dilated(pen_mask(picture), 2))


def is_bright_field(picture: UInt8Array) -> bool:
    """Whether light passes through the slide: the pixels that are lit at all are mostly lit in every channel."""
    darkest, brightest = _channel_range(picture)
    lit = np.count_nonzero(brightest >= _BLACK)
    return bool(lit >= 0.01 * brightest.size and np.count_nonzero(darkest >= _BLACK) > 0.3 * lit)


def background_colour(picture: UInt8Array) -> NDArray[np.float64]:
    """RGB of the glass, float64 (3,): the commonest bright, nearly neutral and flat colour; white if there is none."""
    glass, colours = np.empty(picture.shape[:2], np.bool_), np.zeros(1 << 15, np.int64)
    for rows in _strips(len(picture)):
        glass[rows] = _glass(picture, rows)
        colours += np.bincount(_coarse_colour(picture[rows])[glass[rows]], minlength=len(colours))
    if colours.sum() < _MIN_GLASS * glass.size:
        return np.full(3, 255.0)
    levels = np.zeros((3, 256), np.int64)
    for rows in _strips(len(picture)):
        commonest = picture[rows][glass[rows] & (_coarse_colour(picture[rows]) == colours.argmax())]
        levels += [np.bincount(commonest[:, c], minlength=256) for c in range(3)]
    return np.array([_median(counts) for counts in levels])


def _glass(picture: UInt8Array, rows: slice) -> BoolArray:
    """Which pixels of those rows are bright, nearly neutral and flat, (rows, w)."""
    above, below = min(2, rows.start), min(2, len(picture) - rows.stop)  # the blur's neighbours
    part = picture[rows.start - above : rows.stop + below]
    grey = cv2.transform(part.astype(np.float32), np.full((1, 3), 1 / 3, np.float32))
    mean = cv2.blur(grey, (5, 5))
    variance = cv2.blur(grey * grey, (5, 5)) - mean * mean
    darkest, brightest = _channel_range(part)
    glass = (variance < _FLAT_STD**2) & (brightest - darkest <= _GLASS_CHROMA) & (grey > 140)
    return np.asarray(glass[above : len(glass) - below])


def _coarse_colour(picture: UInt8Array) -> NDArray[np.uint16]:
    """The upper five bits of each channel as one number."""
    red, green, blue = (picture[..., c].astype(np.uint16) >> 3 for c in range(3))
    return np.asarray(red << 10 | green << 5 | blue, np.uint16)


def _median(counts: NDArray[np.int64]) -> float:
    """The median of values of which there are so many of 0, 1, 2 and so on."""
    up_to = np.cumsum(counts)
    middle = np.array([(up_to[-1] - 1) // 2, up_to[-1] // 2])
    return float(np.searchsorted(up_to, middle, side="right").mean())


def _strips(height: int) -> Iterator[slice]:
    """The rows of a picture in strips, so that work in floats takes little memory whatever the picture's size."""
    return (slice(top, min(top + _STRIP_ROWS, height)) for top in range(0, height, _STRIP_ROWS))


def _channel_range(picture: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The minimum and the maximum of each pixel's three channels, (h, w) each; numpy's own way over axis 2 is slow."""
    red, green, blue = (picture[..., c] for c in range(3))
    return np.minimum(np.minimum(red, green), blue), np.maximum(np.maximum(red, green), blue)


def optical_density(picture: UInt8Array, background: NDArray[np.float64]) -> NDArray[np.float32]:
    """-log(I / background) by channel, float32 (h, w, 3); Beer-Lambert. Below 0 where brighter than the background."""
    levels = np.arange(256, dtype=np.float64)[:, None]
    table = -np.log((levels + 1) / (background + 1))  # (256, 3): a look-up beats a logarithm a pixel
    return np.asarray(cv2.LUT(picture, table[None].astype(np.float32)))


def pen_mask(picture: UInt8Array) -> BoolArray:
    """Where coloured or black ink is, bool (h, w): green, cyan and blue hues, pure red, and dense neutral strokes.

    Hues (OpenCV, 0-180) of haematoxylin and eosin lie between about 125 and 178, of DAB between 5 and 20. Ink of such
    a hue is brighter than the stain is where it is as saturated (Beer-Lambert: both follow from the stain's amount).
    """
    hue, saturation, value = cv2.split(cv2.LUT(cv2.cvtColor(picture, cv2.COLOR_RGB2HSV), _IN_BOX))
    return np.asarray(cv2.bitwise_and(cv2.bitwise_and(hue, saturation), value), np.bool_)


_INK: Final = np.array(
    [
        [(30, 119), (61, 255), (0, 255)],  # green, cyan, blue
        [(0, 8), (171, 255), (121, 255)],  # pure red
        [(175, 180), (171, 255), (121, 255)],
        [(0, 180), (0, 59), (0, 89)],  # dense neutral
        [(20, 29), (111, 255), (151, 255)],  # yellow
        [(5, 19), (171, 255), (181, 255)],  # orange
        [(0, 180), (216, 255), (111, 255)],  # magenta, purple
    ]
)
"""Boxes of ink in (hue, saturation, value), minimum and maximum: (7, 3, 2)."""
_LEVELS: Final = np.arange(256)[:, None, None]
_IN_BOX: Final = np.packbits(
    (_LEVELS >= _INK[..., 0].T) & (_LEVELS <= _INK[..., 1].T), axis=2, bitorder="little"
).reshape(1, 256, 3)
"""For each level of each channel, one bit a box: a pixel is ink where a bit is set in all three channels."""


def clean_mask(mask: BoolArray, mpp: float, config: TissueConfig) -> BoolArray:
    """The mask without speckle: edges closed, small holes filled, small objects dropped.

    Holes are filled before speckle is opened away, or the thin walls of fat cells would go with it.
    """
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))
    framed = np.pad(mask.astype(np.uint8), 4)  # or tissue near the edge would be joined to it, and cut off the glass
    closed = cv2.morphologyEx(framed, cv2.MORPH_CLOSE, kernel)[4:-4, 4:-4]
    filled = ~_large_objects(closed == 0, config.max_hole_um2 / mpp**2)
    opened = cv2.morphologyEx(filled.astype(np.uint8), cv2.MORPH_OPEN, kernel[1:4, 1:4])
    return sized(opened > 0, mpp, config)


def sized(mask: BoolArray, mpp: float, config: TissueConfig) -> BoolArray:
    """The mask with its small holes filled and its small objects dropped, by the areas of the settings."""
    filled = ~_large_objects(~mask, config.max_hole_um2 / mpp**2)
    return _large_objects(filled, config.min_object_um2 / mpp**2)


def _large_objects(mask: BoolArray, min_px: float) -> BoolArray:
    """The connected objects (8 neighbours) of at least that many pixels."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    keep = stats[:, cv2.CC_STAT_AREA] >= min_px
    keep[0] = False  # label 0 is the rest
    return np.asarray(keep[labels])


def _dilated(mask: BoolArray, radius_px: int) -> BoolArray:
    size = 2 * radius_px + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
    return np.asarray(cv2.dilate(mask.astype(np.uint8), kernel) > 0)
