"""Tile pixels -> quality columns: stored beside the tiles and filtered later, never baked in. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import cv2
import cv2.typing
import numpy as np
from numpy.typing import NDArray

from tiling import histoprep
from tiling.config import MetricSet
from tiling.tissue import pen_mask

Measure = Callable[[NDArray[np.uint8]], dict[str, float]]

METRICS = ("focus", "white", "black", "pen", "saturation", "haematoxylin", "eosin", "dab")
HED: Final = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
"""Optical density of red, green and blue by unit of haematoxylin, eosin and DAB: Ruifrok & Johnston, Anal Quant Cytol
Histol 23 (2001) 291-299, with the figures of ImageJ and scikit-image."""
_AMOUNTS: Final = np.linalg.inv(HED).astype(np.float32)
_DENSITY: Final = -np.log(np.maximum(np.arange(256), 1) / 255).astype(np.float32)


def quality(tile: NDArray[np.uint8]) -> dict[str, float]:
    """The metrics of an RGB tile uint8 (h, w, 3).

    focus: variance of the Laplacian of grey levels (0 and up; low is blurred). The others are taken at a quarter of the
    tile's scale. white, black, pen: fractions of pixels that are nearly white (all channels above 225), nearly black
    (all below 30), or of an ink's colour. saturation: mean HSV saturation, 0 to 1. haematoxylin, eosin, dab: mean
    amount of each stain, natural optical density against white, 0 and up.
    """
    small = _halved(_halved(tile)) if min(tile.shape[:2]) >= 64 else tile  # twice by 2 is faster than once by 4
    laplacian = cv2.Laplacian(cv2.cvtColor(tile, cv2.COLOR_RGB2GRAY), cv2.CV_16S)
    haematoxylin, eosin, dab = stain_amounts(small)
    return {
        "focus": cv2.norm(laplacian, cv2.NORM_L2SQR) / laplacian.size - cv2.mean(laplacian)[0] ** 2,
        "white": _share(cv2.inRange(small, (226, 226, 226), (255, 255, 255))),
        "black": _share(cv2.inRange(small, (0, 0, 0), (29, 29, 29))),
        "pen": _share(pen_mask(small)),
        "saturation": cv2.mean(cv2.cvtColor(small, cv2.COLOR_RGB2HSV))[1] / 255,
        "haematoxylin": haematoxylin,
        "eosin": eosin,
        "dab": dab,
    }


def stain_amounts(picture: NDArray[np.uint8]) -> tuple[float, float, float]:
    """Mean amounts of haematoxylin, eosin and DAB of RGB pixels uint8 (h, w, 3).

    Colour deconvolution by Ruifrok & Johnston's matrix; a pixel's negative amounts count as 0. It is the mean of
    skimage.color.rgb2hed times -ln(1e-6), its unit; there as here a stain's vector is not scaled to length 1.
    """
    amounts = cv2.transform(cv2.LUT(picture, _DENSITY), _AMOUNTS.T)
    haematoxylin, eosin, dab, _ = cv2.mean(np.maximum(amounts, 0))
    return haematoxylin, eosin, dab


def no_quality(tile: NDArray[np.uint8]) -> dict[str, float]:
    """No metric at all: for tiles that are copied without being decoded."""
    return {}


def measurer(sets: Sequence[MetricSet], picture: NDArray[np.uint8]) -> Measure:
    """What measures a slide's tiles by those sets; `picture` is the slide in small, uint8 (h, w, 3).

    "specslide": `quality`. "histoprep": HistoPrep's own per-tile metrics, from the extra; their tissue threshold is
    Otsu's on the picture. Raises ConfigError without the extra.
    """
    measures: list[Measure] = [quality] if "specslide" in sets else []
    if "histoprep" in sets:
        measures.append(histoprep.tile_metrics(picture))
    return lambda tile: {name: value for measure in measures for name, value in measure(tile).items()}


def _halved(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    half = (picture.shape[1] // 2, picture.shape[0] // 2)
    return np.asarray(cv2.resize(picture, half, interpolation=cv2.INTER_AREA), np.uint8)


def _share(marked: NDArray[Any] | cv2.typing.MatLike) -> float:
    return np.count_nonzero(marked) / marked.size
