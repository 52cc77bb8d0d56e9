"""Tile probabilities -> scores of the slide. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from inference.maps.stitch import slide_map
from tiling.core.arrays import BoolArray, Float32Array, Float64Array
from tiling.grid import Bounds, Frame, Tiles

TOP_FRACTION = 0.05
PERCENTILE = 95.0
# noisy_or is in slide.json only: over many tiles it tends to 1 on any slide, and on a page would look like a finding.
MEANINGS = {
    "mean": "mean probability of the analysed tiles",
    "top5_mean": "mean of the most suspicious 5% of the tiles: sees a small focus on a large slide",
    "fraction_above_threshold": "share of the tiles at or above the threshold",
    "percentile95": "95% of the tiles lie at or below it",
    "area_above_mm2": "area at or above the threshold, mm²",
    "largest_region_mm2": "largest connected part of that area, mm²",
}
"""What pages say of each score that they show."""


@dataclass(frozen=True)
class SlideScores:
    """The scores of a slide, all of the positive class; None for a slide without tiles.

    From 0 to 1, but for areas.
    """

    mean: float | None
    """Mean probability of the positive class."""
    top5_mean: float | None
    """Mean of the highest 5% of the tiles, at least one: sees a small focus on a large slide."""
    fraction_above_threshold: float | None
    """Fraction of the tiles at or above the model's decision threshold."""
    percentile95: float | None = None
    """The probability that 95% of the tiles do not exceed."""
    noisy_or: float | None = None
    """1 - prod(1 - p): the probability that any tile is positive, were the tiles independent, which they are not."""
    area_above_mm2: float | None = None
    """Area of the map at or above the threshold, square millimetres."""
    largest_region_mm2: float | None = None
    """Area of the largest connected part of it, square millimetres."""


def slide_scores(
    probabilities: Float32Array, threshold: float, areas: tuple[float, float] | None = None
) -> SlideScores:
    """The scores of a slide from the positive class' probabilities of its tiles, float32 (N,); see `areas_mm2`."""
    if len(probabilities) == 0:
        return SlideScores(None, None, None)
    area, largest = areas or (None, None)
    values = np.sort(probabilities.astype(np.float64))  # equal tiles in another order are the same sum
    return SlideScores(
        mean=float(values.mean()),
        top5_mean=top_mean(values, TOP_FRACTION),
        fraction_above_threshold=float((values >= threshold).mean()),
        percentile95=float(np.percentile(values, PERCENTILE)),
        noisy_or=noisy_or(values),
        area_above_mm2=area,
        largest_region_mm2=largest,
    )


def top_mean(probabilities: NDArray[np.floating], fraction: float) -> float:
    """Mean of the highest `fraction` of the values (N,), rounded up to whole tiles and at least one."""
    count = max(1, math.ceil(fraction * len(probabilities)))
    return float(np.sort(probabilities.astype(np.float64))[-count:].mean())


def noisy_or(probabilities: NDArray[np.floating]) -> float:
    """1 - prod(1 - p) over the values (N,), summed as logarithms: exact where all are small (Pearl 1988, 4.3.2)."""
    with np.errstate(divide="ignore"):  # log(0) of a sure tile
        return float(-np.expm1(np.log1p(-probabilities.astype(np.float64)).sum()))


def areas_mm2(
    probabilities: Float32Array, threshold: float, tiles: Tiles, scanned: Bounds | None = None
) -> tuple[float, float]:
    """Area at or above a threshold, and that of its largest connected part, square millimetres.

    Measured on the map that outlines of regions are drawn on, so they are the areas of the regions before these are
    smoothed; see `inference.maps.stitch.map_downsample` for how exactly tiles lie on it.

    Args:
        probabilities: The positive class's, float32 (N,).
        threshold: In [0, 1].
        tiles: The N tiles.
        scanned: What was scanned of the slide: nothing beyond it counts; None: all of the slide.

    Returns:
        The whole area, and the largest part's.
    """
    heat, within = slide_map(probabilities, tiles), scanned or Frame(tiles.grid.size0).scanned
    # Pixels of the map may reach beyond them.
    rows, columns = (
        np.diff((np.arange(n + 1) * heat.downsample).clip(first, end))
        for n, first, end in zip(heat.values.shape, within.corner[::-1], within.opposite[::-1], strict=True)
    )
    pixel_mm2 = np.outer(rows, columns) * (tiles.grid.slide_mpp / 1000) ** 2
    return region_areas(heat.values >= threshold, pixel_mm2)  # where no tile lies is NaN, and not above


def region_areas(above: BoolArray, pixel_area: Float64Array) -> tuple[float, float]:
    """The area of a mask (h, w), and of its largest part; pixels that touch at a corner only are not connected.

    `pixel_area` (h, w) is the area of each pixel. (0, 0) for an empty mask.
    """
    count, labels = cv2.connectedComponents(above.astype(np.uint8), connectivity=4)
    areas = np.bincount(labels.ravel(), pixel_area.ravel(), count)[1:]  # the first is the rest
    return float(areas.sum()), float(areas.max(initial=0.0))
