"""Overview picture -> tissue mask. Pure; knows nothing of slides.

Tissue is what is stained: pixels whose optical density, measured against the slide's own background colour, differs
between the colour channels. White, grey and pinkish glass, shadows and black borders are neutral against that
background whatever their brightness; ink has hues and densities that haematoxylin, eosin and DAB do not reach.
"""

from __future__ import annotations

from typing import Annotated

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat

UInt8Array = NDArray[np.uint8]
BoolArray = NDArray[np.bool_]

STAINED_OD = 0.055
"""Least difference of optical density (natural log) between channels that counts as stain."""
_BLACK = 50  # a pixel whose brightest channel is below is border, fold shadow or ink, not stained tissue
_FLAT_STD = 3.0  # glass is flat: standard deviation over 5 x 5 mask pixels, grey levels
_GLASS_CHROMA = 40  # glass may be tinted by lamp or white balance, but no further
_LEAST_GLASS = 0.002  # share of the picture; below it there is no glass to measure and white is assumed


class TissueConfig(BaseModel):
    """How the tissue mask is made."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mask_mpp: Annotated[PositiveFloat, Field(le=1000)] = 8.0
    """Micrometres per mask pixel: fixed, so that the mask does not depend on the pyramid."""
    min_object_um2: NonNegativeFloat = 20_000.0
    """Smaller tissue pieces are dropped, square micrometres."""
    max_hole_um2: NonNegativeFloat = 20_000.0
    """Smaller holes are filled, square micrometres."""


def tissue_mask(picture: UInt8Array, mpp: float, config: TissueConfig) -> BoolArray:
    """Where the stained tissue is, bool (h, w), of an RGB picture uint8 (h, w, 3) at `mpp` micrometres a pixel.

    A picture that is not bright-field (fluorescence: dark with coloured light) has none.
    """
    if not is_bright_field(picture):
        return np.zeros(picture.shape[:2], np.bool_)
    smooth = np.asarray(cv2.GaussianBlur(picture, (0, 0), 0.8), np.uint8)
    density = optical_density(smooth, background_colour(picture))
    stained = (density.max(2) - density.min(2) > STAINED_OD) & (smooth.max(2) > _BLACK)
    stained &= ~_dilated(pen_mask(smooth), 2)
    return clean_mask(stained, mpp, config)


def is_bright_field(picture: UInt8Array) -> bool:
    """Whether light passes through the slide: the pixels that are lit at all are mostly lit in every channel."""
    lit = picture.max(2) >= _BLACK
    if lit.mean() < 0.01:
        return False
    return bool((picture.min(2)[lit] >= _BLACK).mean() > 0.3)


def background_colour(picture: UInt8Array) -> NDArray[np.float64]:
    """RGB of the glass, float64 (3,): the commonest bright, nearly neutral and flat colour; white if there is none."""
    grey = picture.mean(2, dtype=np.float32)
    mean = cv2.blur(grey, (5, 5))
    std = np.sqrt(np.maximum(cv2.blur(grey * grey, (5, 5)) - mean * mean, 0))
    chroma = picture.max(2).astype(np.int16) - picture.min(2)
    glass = picture[(std < _FLAT_STD) & (chroma <= _GLASS_CHROMA) & (grey > 140)]
    if len(glass) < _LEAST_GLASS * grey.size:
        return np.full(3, 255.0)
    coarse = (glass // 8).astype(np.int32) @ np.array([1024, 32, 1])
    return np.asarray(np.median(glass[coarse == np.bincount(coarse).argmax()], axis=0), dtype=np.float64)


def optical_density(picture: UInt8Array, background: NDArray[np.float64]) -> NDArray[np.float32]:
    """-log(I / background) by channel, float32 (h, w, 3); Beer-Lambert. Below 0 where brighter than the background."""
    levels = np.arange(256, dtype=np.float64)[:, None]
    table = -np.log((levels + 1) / (background + 1))  # (256, 3): a look-up beats a logarithm a pixel
    return np.stack([table[:, c].astype(np.float32)[picture[..., c]] for c in range(3)], axis=2)


def pen_mask(picture: UInt8Array) -> BoolArray:
    """Where coloured or black ink is, bool (h, w): green, cyan and blue hues, pure red, and dense neutral strokes.

    Hues (OpenCV, 0-180) of haematoxylin and eosin lie between about 125 and 178.
    """
    hsv = cv2.cvtColor(picture, cv2.COLOR_RGB2HSV)
    hue, saturation, value = hsv[..., 0], hsv[..., 1], hsv[..., 2]
    green_to_blue = (hue >= 30) & (hue <= 119) & (saturation > 60)
    pure_red = ((hue <= 8) | (hue >= 175)) & (saturation > 170) & (value > 120)
    dense_neutral = (value < 90) & (saturation < 60)
    return np.asarray(green_to_blue | pure_red | dense_neutral)


def clean_mask(mask: BoolArray, mpp: float, config: TissueConfig) -> BoolArray:
    """The mask without speckle: edges closed, small holes filled, small objects dropped."""
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))
    closed = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_CLOSE, kernel)
    opened = cv2.morphologyEx(closed, cv2.MORPH_OPEN, kernel[1:4, 1:4])
    filled = ~_large_objects(opened == 0, config.max_hole_um2 / mpp**2)
    return _large_objects(filled, config.min_object_um2 / mpp**2)


def _large_objects(mask: BoolArray, least_px: float) -> BoolArray:
    """The connected objects (8 neighbours) of at least that many pixels."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    keep = stats[:, cv2.CC_STAT_AREA] >= least_px
    keep[0] = False  # label 0 is the rest
    return np.asarray(keep[labels])


def _dilated(mask: BoolArray, radius_px: int) -> BoolArray:
    size = 2 * radius_px + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
    return np.asarray(cv2.dilate(mask.astype(np.uint8), kernel) > 0)
