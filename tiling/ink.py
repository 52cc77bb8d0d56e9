"""Pen ink and black borders in the slide in small. Pure.

Only what is surely ink counts: denser in colour than stains get at that scale, and without texture, which tissue always
has, of colour; nor of brightness, where a stain that is as dense has the hue of ink. Hues do not tell: haematoxylin,
Alcian blue, Giemsa and Masson's blue lie where blue ink lies.
"""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np

from tiling.core.arrays import BoolArray, UInt8Array
from tiling.overview import SPREAD_UNIT, strips

_MAX_TEXTURE = 24.0  # grey levels: strokes lie below, stained nuclei at that saturation above
_EVEN = 3  # grey levels: the middle of a stroke differs less from what is around; stained tissue hardly anywhere
_MIN_EVEN = 0.25  # share of a stroke
_MIN_INK_UM2 = 2_000.0  # a smaller spot is no stroke, and no printed mark
_REACH_PX = 5  # how far the pale rim of a stroke reaches from what is surely ink
_RIM_PX = 5  # where ink and what lies beside it mix, their edge is texture, and JPEG spreads a colour
_BLACK = 50  # brightest channel, at most
_BORDER_RIM_PX = 2


def ink_mask(picture: UInt8Array, texture: UInt8Array, mpp: float) -> BoolArray:
    """Where pen ink is, bool (h, w), with its rim; of an RGB picture (h, w, 3) and its `Overview.texture` (h, w)."""
    sure = _in_boxes(picture, _INK)
    sure &= texture < _MAX_TEXTURE / SPREAD_UNIT
    reached = _strokes(sure, _even(picture), _MIN_INK_UM2 / mpp**2) if sure.any() else sure
    if not reached.any():
        return reached
    likely = _in_boxes(picture, _LIKELY)
    for _ in range(_REACH_PX):
        reached |= dilated(reached, 1) & likely
    return dilated(reached, _RIM_PX)


def border_mask(picture: UInt8Array) -> BoolArray:
    """Where black is that reaches the picture's edge, bool (h, w), with its rim: what was not scanned, or its frame."""
    black = cv2.inRange(picture, (0, 0, 0), (_BLACK,) * 3) > 0
    if not black.any():
        return black
    _, labels = cv2.connectedComponents(black.view(np.uint8), connectivity=8)
    at_edge = np.zeros(labels.max() + 1, np.bool_)
    for edge in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        at_edge[edge] = True
    at_edge[0] = False
    return dilated(at_edge[labels], _BORDER_RIM_PX) if at_edge.any() else np.zeros(labels.shape, np.bool_)


def as_nearest(mask: BoolArray, hidden: BoolArray) -> BoolArray:
    """The mask with each `hidden` pixel taken for what the nearest pixel that is not hidden is.

    A stroke across tissue is tissue, the same stroke on the glass is not. Found at half the scale.
    """
    if not hidden.any():
        return mask
    half = ((mask.shape[1] + 1) // 2, (mask.shape[0] + 1) // 2)
    covered = cv2.resize(hidden.view(np.uint8), half, interpolation=cv2.INTER_NEAREST)
    if covered.all():
        return mask & ~hidden
    seen = cv2.resize((mask & ~hidden).astype(np.uint8), half, interpolation=cv2.INTER_NEAREST)
    _, nearest = cv2.distanceTransformWithLabels(covered, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    is_tissue = np.zeros(nearest.max() + 1, np.uint8)
    is_tissue[nearest[covered == 0]] = seen[covered == 0]
    below = cv2.resize(is_tissue[nearest], mask.shape[::-1], interpolation=cv2.INTER_NEAREST)
    return np.where(hidden, below > 0, mask)


def dilated(mask: BoolArray, radius_px: int) -> BoolArray:
    """The mask with a rim of that width."""
    size = 2 * radius_px + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
    return np.asarray(cv2.dilate(mask.view(np.uint8), kernel) > 0)


def _even(picture: UInt8Array) -> BoolArray:
    """Where brightness is that of the 3 x 3 pixels around; everywhere but where stains have the hue of ink."""
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    uneven = cv2.blur(cv2.absdiff(grey, cv2.blur(grey, (3, 3))), (3, 3)) > _EVEN
    return ~(uneven & _in_boxes(picture, _STAIN_HUES))


def _strokes(mask: BoolArray, even: BoolArray, min_px: float) -> BoolArray:
    """The connected objects of at least that many pixels that are `even` in a share of them."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)
    area = stats[:, cv2.CC_STAT_AREA]
    keep = (area >= min_px) & (np.bincount(labels[even], minlength=len(area)) >= _MIN_EVEN * area)
    keep[0] = False
    return np.asarray(keep[labels])


def _in_boxes(picture: UInt8Array, in_box: UInt8Array) -> BoolArray:
    found = np.empty(picture.shape[:2], np.bool_)
    for rows, _, _ in strips(len(picture)):
        hue, saturation, value = cv2.split(cv2.LUT(cv2.cvtColor(picture[rows], cv2.COLOR_RGB2HSV), in_box))
        found[rows] = cv2.bitwise_and(cv2.bitwise_and(hue, saturation), value) > 0
    return found


def _bits(boxes: list[list[tuple[int, int]]]) -> UInt8Array:
    """For each level of each channel, one bit a box: a pixel is in one where a bit is set in all three channels."""
    limits, levels = np.array(boxes), np.arange(256)[:, None, None]
    inside = (levels >= limits[..., 0].T) & (levels <= limits[..., 1].T)
    return np.packbits(inside, axis=2, bitorder="little").reshape(1, 256, 3)


_OTHER_INKS: Final = [
    [(0, 8), (171, 255), (121, 255)],  # pure red
    [(175, 180), (171, 255), (121, 255)],
    [(0, 180), (0, 59), (0, 89)],  # dense neutral
    [(20, 29), (111, 255), (151, 255)],  # yellow
    [(5, 19), (171, 255), (181, 255)],  # orange
    [(0, 180), (216, 255), (111, 255)],  # magenta, purple
]
"""Boxes of (hue, saturation, value), minimum and maximum, OpenCV's units: brighter than stains of that hue are where
they are as saturated (Beer-Lambert: both follow from the stain's amount)."""
_STAIN_HUES: Final = _bits([[(30, 119), (150, 255), (0, 255)]])
_INK: Final = _bits([[(30, 119), (150, 255), (0, 255)], *_OTHER_INKS])
_LIKELY: Final = _bits([[(30, 119), (61, 255), (0, 255)], *_OTHER_INKS])
