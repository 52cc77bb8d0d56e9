"""Detections against lesions, by the definition of CAMELYON16: the FROC curve and its score. Pure.

The definition is that of the challenge (Ehteshami Bejnordi et al., JAMA 2017;318:2199, supplement) and its evaluation
script: annotations are drawn at level 5 (7.8 µm a pixel), widened by 37.5 µm, holes are filled, and what touches, at a
corner too (8-connectivity), is one lesion. A lesion shorter than 275 µm (200 µm before it was widened) is isolated
tumour cells: it need not be found, and a detection in it is neither right nor wrong. A lesion is found with the highest
probability of the detections in it; every detection outside all lesions is a false positive. The score is the mean of
the sensitivities at 1/4, 1/2, 1, 2, 4 and 8 false positives a slide, all slides counted, those without lesions too.

Where a curve jumps over a rate, the definition leaves open what its sensitivity there is. Here it is that of the lowest
threshold with at most that many false positives: one that can be had. `challenge_score` reads it as the challenge's
script does, at the first point with at least that many.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import KDTree

from inference.config import SEPARATION_UM
from tiling.core.arrays import BoolArray
from tiling.grid import Grid, Raster, Tiles
from training.evaluation.metrics import Floats

RATES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""False positives a slide at which the sensitivity is read."""
MASK_MPP = 32 * 0.243
"""Micrometres a pixel of the lesion mask: level 5 of CAMELYON16's slides."""
WIDENED_UM = 37.5
ISOLATED_UM = 275.0


@dataclass(frozen=True)
class Lesions:
    """The lesions of a slide."""

    mask: Raster
    """int32 (h, w): 0, or the number of a lesion, from 1."""
    counted: BoolArray
    """(L,): whether each is to be found; False for isolated tumour cells."""


@dataclass(frozen=True)
class Detections:
    """Local maxima of a heatmap, (D,) each."""

    probability: Floats
    x0: Floats
    """Level-0 pixels."""
    y0: Floats


@dataclass(frozen=True)
class Hits:
    """The true and false detections of one slide."""

    false: Floats
    """Probabilities of the false positives, (F,)."""
    found: Floats
    """For each lesion that counts, the highest probability of a detection in it, (L,); 0 where there is none."""


@dataclass(frozen=True)
class Curve:
    """A FROC curve: (K,) each, the threshold falling, from a point where nothing is called."""

    threshold: Floats
    false_positives: Floats
    """A slide, on average."""
    sensitivity: Floats
    """NaN if there is no lesion."""


def blank_mask(grid: Grid) -> Raster:
    """The lesion mask, bool (h, w), of the slide of a grid on which nothing is drawn."""
    downsample = max(1.0, MASK_MPP / grid.slide_mpp)
    shape = math.ceil(grid.height0 / downsample), math.ceil(grid.width0 / downsample)
    return Raster(np.zeros(shape, np.bool_), downsample)


def lesions_in(drawn: Raster, slide_mpp: float) -> Lesions:
    """The lesions of a mask of what is drawn, bool (h, w)."""
    mpp = drawn.downsample * slide_mpp
    if not drawn.values.any():
        return Lesions(Raster(drawn.values.astype(np.int32), drawn.downsample), np.zeros(0, np.bool_))
    widened = ndimage.distance_transform_edt(~drawn.values) < WIDENED_UM / mpp
    mask, count = ndimage.label(ndimage.binary_fill_holes(widened), np.ones((3, 3)))
    lengths = [major_axis(mask[part] == number) for number, part in enumerate(ndimage.find_objects(mask), start=1)]
    assert len(lengths) == count
    return Lesions(Raster(mask.astype(np.int32), drawn.downsample), np.array(lengths) * mpp >= ISOLATED_UM)


def major_axis(shape: BoolArray) -> float:
    """Length, in pixels, of the long axis of the ellipse with the second moments of a shape (h, w)."""
    places = np.argwhere(shape).astype(np.float64)
    spread = np.cov(places.T, ddof=0) if len(places) > 1 else np.zeros((2, 2))
    return float(4 * np.sqrt(max(0.0, np.linalg.eigvalsh(spread)[-1])))


def detect(probabilities: NDArray[np.floating], tiles: Tiles, *, separation_um: float = SEPARATION_UM) -> Detections:
    """The local maxima of a heatmap of tiles (N,): the centre of the likeliest tile, then of the next one far enough.

    Of equally likely tiles the first in reading order is taken. Tiles that touch, at a corner too, are never two
    detections, however far apart their centres are.
    """
    centres = np.stack([tiles.x0, tiles.y0], 1) + tiles.side_px0 / 2
    if not len(centres):
        return Detections(*np.zeros((3, 0)))
    radius = max(separation_um / tiles.grid.slide_mpp, 1.5 * tiles.side_px0)
    tree, free, kept = KDTree(centres), np.ones(len(centres), np.bool_), []
    for tile in np.argsort(-probabilities.astype(np.float64), kind="stable").tolist():
        if free[tile]:
            kept.append(tile)
            free[tree.query_ball_point(centres[tile], radius)] = False
    return Detections(probabilities[kept].astype(np.float64), *centres[kept].T)


def hits_of(detections: Detections, lesions: Lesions | None) -> Hits:
    """The detections of a slide, matched with its lesions; None is a slide without lesions."""
    if lesions is None:
        return Hits(detections.probability, np.zeros(0))
    row, column = (  # of the mask; a tile may reach beyond the slide
        (at / lesions.mask.downsample).astype(np.int64).clip(0, side - 1)
        for at, side in zip((detections.y0, detections.x0), lesions.mask.values.shape, strict=True)
    )
    lesion = lesions.mask.values[row, column]
    found = np.zeros(len(lesions.counted) + 1)
    np.maximum.at(found, lesion, detections.probability)
    return Hits(detections.probability[lesion == 0], found[1:][lesions.counted])


def froc_curve(slides: Sequence[Hits], weights: Floats | None = None) -> Curve:
    """The curve of S slides, or of a resample in which slide i stands weights[i] times, (S,)."""
    events = _Events(slides)
    return events.curve(np.ones(len(slides)) if weights is None else weights)


def sensitivities(curve: Curve, rates: Sequence[float] = RATES) -> Floats:
    """The sensitivity of the lowest threshold with at most each rate of false positives a slide, (G,)."""
    return curve.sensitivity[np.searchsorted(curve.false_positives, np.array(rates) + 1e-9, side="right") - 1]


def froc_score(curve: Curve) -> float:
    """The mean of the sensitivities at 1/4, 1/2, 1, 2, 4 and 8 false positives a slide."""
    return float(sensitivities(curve).mean())


def challenge_score(curve: Curve) -> float:
    """The same mean as the challenge's script reads it: at the first point with at least each rate, or the last."""
    places = np.searchsorted(curve.false_positives, np.array(RATES) - 1e-9, side="left")
    return float(curve.sensitivity[places.clip(max=len(curve.sensitivity) - 1)].mean())


def resampled_sensitivities(slides: Sequence[Hits], weights: Floats) -> Floats:
    """The sensitivities at the rates, (R, G), for each set of weights, (R, S)."""
    events = _Events(slides)
    return np.stack([sensitivities(events.curve(row)) for row in weights])


class _Events:
    """False positives and found lesions of all slides, the likeliest first."""

    def __init__(self, slides: Sequence[Hits]) -> None:
        parts = [part for slide in slides for part in (slide.false, slide.found)]
        probability = np.concatenate([np.zeros(0), *parts])
        number = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        order = np.argsort(-probability, kind="stable")
        order = order[probability[order] > 0]  # what is 0 was never found, and is called by no threshold
        probability = probability[order]
        self._slide, self._right = np.divmod(number[order], 2)
        self._last = np.flatnonzero(np.append(np.diff(probability) < 0, np.ones(min(1, len(probability)), np.bool_)))
        self._threshold = np.append(np.inf, probability[self._last])
        self._lesions = np.array([len(slide.found) for slide in slides])

    def curve(self, weights: Floats) -> Curve:
        weight = weights[self._slide]
        right, wrong = (np.append(0.0, np.cumsum(weight * (self._right == kind))[self._last]) for kind in (1, 0))
        slides, lesions = weights.sum(), weights @ self._lesions
        sensitivity = right / lesions if lesions else np.full(len(right), np.nan)
        return Curve(self._threshold, wrong / slides, sensitivity)
