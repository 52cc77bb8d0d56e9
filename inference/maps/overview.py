"""A slide in small, and the heatmap over it, as pixels. Pure."""

from __future__ import annotations

from typing import Any

import cv2
import matplotlib
import numpy as np
from numpy.typing import NDArray

from inference.colours import HEATMAP, opacity
from inference.maps.stitch import assemble
from inference.prediction import Prediction
from tiling.core.arrays import Float32Array, UInt8Array
from tiling.grid import Raster

LONGEST_PX = 1200
"""Of the longer side of the overview."""


def overview(prediction: Prediction, longest: int = LONGEST_PX) -> Raster:
    """The thumbnail, shrunk so that its longer side is at most `longest` pixels."""
    whole = prediction.thumbnail
    picture = shrunk(whole.values, longest)
    return Raster(picture, whole.downsample * whole.values.shape[1] / picture.shape[1])


def heat(prediction: Prediction, picture: Raster) -> UInt8Array:
    """The heatmap over a picture, RGBA uint8 (h, w, 4); transparent where nothing was analysed."""
    values = assembled(prediction.heat, prediction, picture)
    drawn = colours(np.nan_to_num(values))
    drawn[..., 3] = np.rint(255 * opacity(np.nan_to_num(values)))
    drawn[~np.isfinite(values)] = 0
    return drawn


def assembled(values: Float32Array, prediction: Prediction, picture: Raster) -> Float32Array:
    """Values of the tiles (N,) as a map over a picture, (h, w); NaN where nothing was analysed."""
    height, width = picture.values.shape[:2]
    return assemble(values, prediction.tiles, picture.downsample, (height, width))


def colours(values: NDArray[np.floating[Any]]) -> UInt8Array:
    """RGBA of probabilities, uint8 (..., 4)."""
    return np.asarray(matplotlib.colormaps[HEATMAP](values.clip(0, 1), bytes=True), np.uint8)


def shrunk(picture: UInt8Array, longest: int) -> UInt8Array:
    """A picture, shrunk so that its longer side is at most `longest` pixels."""
    scale = longest / max(picture.shape[:2])
    if scale >= 1:
        return picture
    height, width = (max(1, round(side * scale)) for side in picture.shape[:2])
    return np.asarray(cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
