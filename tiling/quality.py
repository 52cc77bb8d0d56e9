"""Tile pixels -> quality columns: stored beside the tiles and filtered later, never baked in. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import cv2
import cv2.typing
import numpy as np
from numpy.typing import NDArray

from tiling import histoprep
from tiling.config import MetricSet

Measure = Callable[[NDArray[np.uint8]], dict[str, float]]

METRICS: Final = {
    "focus": "variance of the Laplacian of the grey levels: low is blurred, or has little in it",
    "blur": "softness of edges, the sigma of a blur in pixels: below 1.2 is sharp; 5 is the most, or no structure",
    "white": "share of nearly white pixels: glass",
    "black": "share of nearly black pixels",
    "pen": "share of the tile under pen ink, at the scale of the tissue mask",
    "saturation": "mean saturation of the colours: 0 is grey, 1 is pure colour",
    "haematoxylin": "mean amount of the stain, as optical density: 0 is none",
    "eosin": "mean amount of the stain, as optical density: 0 is none",
    "dab": "mean amount of the stain, as optical density: 0 is none",
}
"""The metrics of the set `specslide` and what they say: those of `quality`, and `pen`, which a plan of tiles has."""
HED: Final = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
"""Optical density of red, green and blue by unit of haematoxylin, eosin and DAB: Ruifrok & Johnston, Anal Quant Cytol
Histol 23 (2001) 291-299, with the figures of ImageJ and scikit-image."""
_AMOUNTS: Final = np.linalg.inv(HED).astype(np.float32)
MAX_BLUR_PX: Final = 5.0
_LAGS: Final = (1, 2, 4)  # pixels: finer than the nuclei of tiles at 2 micrometres a pixel, too
_FAINT: Final = 1.0  # squared grey levels: structure so faint is what rounding and JPEG leave on plain glass
_DENSITY: Final = -np.log(np.maximum(np.arange(256), 1) / 255).astype(np.float32)


def quality(tile: NDArray[np.uint8]) -> dict[str, float]:
    """The metrics of an RGB tile uint8 (h, w, 3).

    focus: variance of the Laplacian of grey levels (0 and up). It depends on content and scale: compare it within a
    slide only. blur: see `blur_px`. The others are taken at a quarter of the tile's scale. white, black: fractions
    of pixels that are nearly white (all channels above 225) or nearly black (all below 30).
    saturation: mean HSV saturation, 0 to 1. haematoxylin, eosin, dab: mean amount of each stain, natural optical
    density against white, 0 and up.
    """
    small = _halved(_halved(tile)) if min(tile.shape[:2]) >= 64 else tile  # twice by 2 is faster than once by 4
    grey = np.asarray(cv2.cvtColor(tile, cv2.COLOR_RGB2GRAY), np.uint8)
    laplacian = cv2.Laplacian(grey, cv2.CV_16S)
    haematoxylin, eosin, dab = stain_amounts(small)
    return {
        "focus": cv2.norm(laplacian, cv2.NORM_L2SQR) / laplacian.size - cv2.mean(laplacian)[0] ** 2,
        "blur": blur_px(grey),
        "white": _share(cv2.inRange(small, (226, 226, 226), (255, 255, 255))),
        "black": _share(cv2.inRange(small, (0, 0, 0), (29, 29, 29))),
        "saturation": cv2.mean(cv2.cvtColor(small, cv2.COLOR_RGB2HSV))[1] / 255,
        "haematoxylin": haematoxylin,
        "eosin": eosin,
        "dab": dab,
    }


def blur_px(grey: NDArray[np.uint8]) -> float:
    """Sigma, in pixels, of the Gaussian blur that would make sharp edges as soft as those of grey levels uint8 (h, w).

    Of grey levels k pixels apart let D(k) be the mean squared difference. Where edges are sharp it grows as k, and
    within the width of a blurred edge as k squared; how much of either there is does not matter to the ratio of
    D(2) - D(1) to D(4) - D(2), and independent noise, which adds the same to each, drops out. The ratio is read off
    that of a single blurred edge. From 0 (edges as sharp as pixels) to MAX_BLUR_PX, which is also that of a picture
    without structure, as plain glass, and of one of at most 4 pixels a side. Faint structure counts as softer than it
    is; tests/benchmarks/focus.py shows real tiles.
    """
    if min(grey.shape) <= _LAGS[-1]:
        return MAX_BLUR_PX
    one, two, four = (_mean_square_step(grey, lag) for lag in _LAGS)
    ratio = max(two - one, 0.0) / (max(four - two, 0.0) + _FAINT)
    return float(np.interp(-ratio, _RATIOS, _SIGMAS_PX))


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
    """A function that measures a slide's tiles by those sets; `picture` is the slide in small, uint8 (h, w, 3).

    "specslide": `quality`. "histoprep": HistoPrep's own per-tile metrics, from the extra; their tissue threshold is
    Otsu's on the picture. Raises ConfigError without the extra.
    """
    measures = [SETS[name](picture) for name in SETS if name in sets]
    return lambda tile: {name: value for measure in measures for name, value in measure(tile).items()}


SETS: Final[dict[MetricSet, Callable[[NDArray[np.uint8]], Measure]]] = {
    "specslide": lambda picture: quality,
    "histoprep": histoprep.tile_metrics,
}
"""What measures the tiles of a slide by each set of metrics, from the slide in small; in the order of their columns."""


def _halved(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    half = (picture.shape[1] // 2, picture.shape[0] // 2)
    return np.asarray(cv2.resize(picture, half, interpolation=cv2.INTER_AREA), np.uint8)


def _share(marked: NDArray[Any] | cv2.typing.MatLike) -> float:
    return np.count_nonzero(marked) / marked.size


def _mean_square_step(grey: NDArray[np.uint8], lag: int) -> float:
    """Mean squared difference of grey levels `lag` pixels apart, along rows plus along columns."""
    along, down = (grey[:, lag:], grey[:, :-lag]), (grey[lag:], grey[:-lag])
    return sum(cv2.norm(*pair, cv2.NORM_L2SQR) / pair[0].size for pair in (along, down))


def _edge_square_step(lag: float, sigma_px: float) -> float:
    """The sum over all places of the squared difference `lag` pixels apart across an edge of height 1 and that blur.

    For the normal distribution's F it is the integral of (F(x + lag) - F(x))^2, an energy distance in closed form.
    """
    if sigma_px == 0:
        return lag
    part = lag / (2 * sigma_px)
    return lag * math.erf(part) - 2 * sigma_px / math.sqrt(math.pi) * (1 - math.exp(-(part**2)))


def _edge_ratio(sigma_px: float) -> float:
    one, two, four = (_edge_square_step(lag, sigma_px) for lag in _LAGS)
    return (two - one) / (four - two)


_SIGMAS_PX: Final = np.array([0, *np.linspace(0.2, MAX_BLUR_PX, 241)])  # below 0.2 the ratio says nothing more
_RATIOS: Final = np.array([-_edge_ratio(sigma_px) for sigma_px in _SIGMAS_PX])  # negative, so that they rise
