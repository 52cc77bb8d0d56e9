"""The class called at each place as a label image: a TIFF of whole numbers, 0 where nothing was predicted.

The names are beside it. Other programs read it as a mask of classes, and specslide as an annotation, see
`tiling.annotations.label_image`.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray

from inference.maps.stitch import MAX_PIXELS, slide_map
from inference.prediction import Prediction
from tiling.annotations.label_image import NAMES
from tiling.core.files import canonical_json
from tiling.core.text import printable
from tiling.core.versions import RESEARCH_USE
from tiling.grid import Raster

_TILE_PIXELS = 8  # across a tile, at least: its edge lies within 1/16 of a tile of where it is


def write_labels(prediction: Prediction, path: Path) -> None:
    """Write the label image, and `NAME.classes.json` beside it. Equal predictions give equal bytes. Raises OSError.

    Class k of the model is k + 1. The picture covers the slide exactly, as label images do.
    """
    called, sides0 = _called(prediction), prediction.grid.size0[::-1]
    wanted = math.ceil(_TILE_PIXELS * called.downsample / prediction.grid.tile_px0)
    finer = max(1, min(wanted, math.isqrt(MAX_PIXELS // called.values.size)))
    sides = [math.ceil(side0 / called.downsample * finer) for side0 in sides0]
    rows, columns = (
        ((np.arange(side) + 0.5) * side0 / side // called.downsample).astype(int)
        for side, side0 in zip(sides, sides0, strict=True)
    )
    mpp_y, mpp_x = (side0 / side * prediction.slide.mpp for side, side0 in zip(sides, sides0, strict=True))
    tifffile.imwrite(
        path, called.values[np.ix_(rows, columns)], photometric="minisblack", compression="zlib", tile=(256, 256),
        resolution=(1e4 / mpp_x, 1e4 / mpp_y), resolutionunit="CENTIMETER", metadata=None, software="specslide",
        description=RESEARCH_USE,
    )  # fmt: skip
    names = {str(number): printable(name) for number, name in enumerate(prediction.classes, start=1)}
    path.with_suffix(NAMES).write_text(canonical_json(names), encoding="utf-8")


def _called(prediction: Prediction) -> Raster:
    """The number of the class called at each pixel of the map, by the rule of `training.evaluation.metrics.decide`."""
    heat = slide_map(prediction.positives, prediction.tiles)
    likeliest = np.full(heat.values.shape, -1.0, np.float32)
    called: NDArray[np.unsignedinteger] = np.zeros(likeliest.shape, np.min_scalar_type(len(prediction.classes)))
    for number, probabilities in enumerate(prediction.probabilities.T):
        if number != prediction.positive:  # one map at a time: there may be many, of 25 million pixels each
            values = slide_map(probabilities, prediction.tiles).values
            higher = values > likeliest
            likeliest[higher], called[higher] = values[higher], number + 1
    called[heat.values >= prediction.threshold] = prediction.positive + 1
    return Raster(called, heat.downsample)
