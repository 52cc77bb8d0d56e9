"""Tile pixels -> quality columns: stored beside the tiles and filtered later, never baked in. Pure."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from tiling.tissue import pen_mask

METRICS = ("focus", "white", "black", "pen", "saturation")


def quality(tile: NDArray[np.uint8]) -> dict[str, float]:
    """The metrics of an RGB tile uint8 (h, w, 3).

    focus: variance of the Laplacian of grey levels (0 and up; low is blurred). white, black, pen: fractions of
    pixels that are nearly white (all channels above 225), nearly black (all below 30), or of an ink's colour.
    saturation: mean HSV saturation, 0 to 1.
    """
    quarter = (tile.shape[1] // 4, tile.shape[0] // 4)
    small = (
        np.asarray(cv2.resize(tile, quarter, interpolation=cv2.INTER_AREA), np.uint8) if min(quarter) >= 16 else tile
    )
    grey = cv2.cvtColor(tile, cv2.COLOR_RGB2GRAY)
    return {
        "focus": float(cv2.Laplacian(grey, cv2.CV_16S).var()),
        "white": float((small.min(2) > 225).mean()),
        "black": float((small.max(2) < 30).mean()),
        "pen": float(pen_mask(small).mean()),
        "saturation": float(cv2.cvtColor(small, cv2.COLOR_RGB2HSV)[..., 1].mean() / 255),
    }
