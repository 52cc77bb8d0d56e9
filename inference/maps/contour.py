"""The outline of what a model calls, for every picture of it. Pure; level-0 pixels."""

from __future__ import annotations

import numpy as np
import shapely
from numpy.typing import NDArray

from inference.maps.regions import find_regions, rings_of
from inference.maps.slide_map import probability_map
from inference.predict import Prediction


def threshold_rings(prediction: Prediction) -> list[NDArray[np.float64]]:
    """The rings, each (n, 2) and closed, around what is at or above the threshold, pixel by pixel of the map."""
    found, slide = probability_map(prediction), prediction.slide
    size0 = (slide.width, slide.height)
    above = find_regions(found.values, found.px0, slide.mpp, size0, threshold=prediction.threshold)
    return rings_of(shapely.MultiPolygon(above))
