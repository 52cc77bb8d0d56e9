"""The colours of heatmaps and classes: perceptually uniform, and distinct to colour-blind readers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

HEATMAP = "viridis"
_CLEAREST = 0.25
"""Opacity of the heatmap's colour where the value is 0. It rises to 1: an even one would hide what tissue looks like
just where nothing was found, under a purple that is taken for haematoxylin."""
_PALETTE = (
    (86, 180, 233),
    (213, 94, 0),
    (0, 158, 115),
    (240, 228, 66),
    (204, 121, 167),
    (0, 114, 178),
    (230, 159, 0),
    (0, 0, 0),
    (128, 128, 128),
    (86, 20, 120),
    (120, 60, 10),
    (160, 230, 160),
    (250, 180, 190),
    (30, 30, 170),
    (140, 0, 50),
    (0, 230, 230),
    (110, 120, 0),
    (190, 170, 255),
    (0, 80, 60),
    (255, 90, 120),
)
"""The seven of Okabe and Ito, and then others as far from them and each other as may be."""


def class_colour(index: int) -> tuple[int, int, int]:
    """RGB (0 to 255) of a class, of twenty its own; further ones get darker shades of them."""
    shade, place = divmod(index, len(_PALETTE))
    red, green, blue = (value * 2 // (2 + shade) for value in _PALETTE[place])
    return red, green, blue


def opacity(values: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    """Opacity of the heatmap, from 0 to 1, for values from 0 to 1."""
    return _CLEAREST + (1 - _CLEAREST) * values.clip(0, 1)
