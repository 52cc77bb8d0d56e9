"""A prediction as a map of the slide, at the coarsest scale at which every tile has its place. Pure.

What GeoJSON regions, OME-TIFF, OME-Zarr and the pictures have in common.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import shapely

from inference.maps.regions import find_regions, rings_of
from inference.maps.stitch import slide_map
from inference.prediction import Prediction
from tiling.core.arrays import Float32Array, Float64Array
from tiling.core.text import printable
from tiling.grid import Raster

_MIN_SIDE = 256  # a level of the pyramid that fits into one chunk is the last


@dataclass(frozen=True)
class ProbabilityMap(Raster):
    """What a prediction shows over a slide, float32 (h, w), 0 to 1; NaN where nothing was predicted.

    The last row and column may reach beyond the slide.
    """

    slide_mpp: float
    """Micrometres per level-0 pixel."""
    name: str
    """What the values are."""
    qupath0: tuple[int, int] = (0, 0)
    """Where QuPath counts from on the slide, level-0 pixels."""

    @property
    def mpp(self) -> float:
        """Micrometres per pixel of the map."""
        return self.downsample * self.slide_mpp

    def offset_um(self, level: int = 0) -> tuple[float, float]:
        """Where the centre of a level's first pixel lies, in x and y, micrometres; each level halves the one before.

        OME places pixels by their centres. It is measured from that of the slide's first pixel in QuPath and in what is
        converted to OME: the first one that was scanned, whereas the map begins at the corner of the whole picture.
        """
        centre0 = (self.downsample * 2**level - 1) / 2
        return (centre0 - self.qupath0[0]) * self.slide_mpp, (centre0 - self.qupath0[1]) * self.slide_mpp


def probability_map(prediction: Prediction) -> ProbabilityMap:
    """The map of a prediction; its tiles begin on borders of pixels, and end as nearly as `map_downsample` says."""
    heat, name = slide_map(prediction.heat, prediction.tiles), printable(prediction.heat_name)
    slide = prediction.slide
    return ProbabilityMap(heat.values, heat.downsample, slide.mpp, name, slide.frame().qupath0)


def threshold_rings(prediction: Prediction) -> list[Float64Array]:
    """The rings, each (n, 2) and closed, around what is at or above the threshold, pixel by pixel of the map."""
    heat = slide_map(prediction.heat, prediction.tiles)
    scanned = prediction.slide.frame().scanned
    outlines = find_regions(heat, prediction.grid, scanned, threshold=prediction.heat_threshold)
    return rings_of(shapely.MultiPolygon(outlines))


def pyramid(values: Float32Array) -> list[Float32Array]:
    """Levels of a map, each of half the size of the one before, until one fits into 256 x 256.

    A pixel is the mean of the four it stands for, of those that are not NaN. The first level is filled up with NaN to
    the right and below, so that each halving is exact and all levels begin in one corner.
    """
    halvings = max(0, math.ceil(math.log2(max(values.shape) / _MIN_SIDE)))
    multiple = 1 << halvings
    height, width = (-(-side // multiple) * multiple for side in values.shape)
    first = np.full((height, width), np.nan, np.float32)
    first[: values.shape[0], : values.shape[1]] = values
    levels = [first]
    for _ in range(halvings):
        levels.append(_halved(levels[-1]))
    return levels


def _halved(values: Float32Array) -> Float32Array:
    height, width = values.shape
    blocks = values.reshape(height // 2, 2, width // 2, 2)
    known = np.isfinite(blocks)
    count = known.sum((1, 3))
    total = np.where(known, blocks, 0).sum((1, 3), dtype=np.float64)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)
