"""Tile probabilities -> scores of the slide. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

TOP_FRACTION = 0.05


@dataclass(frozen=True)
class SlideScores:
    """How suspicious a slide is, in three ways, each from 0 to 1; None for a slide without tiles."""

    mean: float | None
    """Mean probability of the positive class."""
    top5_mean: float | None
    """Mean of the highest 5% of the tiles, at least one: sees a small focus on a large slide."""
    fraction_above_threshold: float | None
    """Fraction of the tiles at or above the model's decision threshold."""


def slide_scores(probabilities: NDArray[np.float32], threshold: float) -> SlideScores:
    """The scores of a slide from the positive class' probabilities of its tiles, float32 (N,)."""
    if len(probabilities) == 0:
        return SlideScores(None, None, None)
    values = np.sort(probabilities.astype(np.float64))
    top = values[-math.ceil(TOP_FRACTION * len(values)) :]
    return SlideScores(float(values.mean()), float(top.mean()), float((values >= threshold).mean()))
