"""Tile values + places -> a map of the slide. Pure."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def assemble(
    values: NDArray[np.float32],
    x0: NDArray[np.int32],
    y0: NDArray[np.int32],
    size0: int,
    px0: float,
    shape: tuple[int, int],
) -> NDArray[np.float32]:
    """The map of tile values, float32 `shape` (h, w), NaN where no tile lies; overlapping tiles are averaged.

    `values` (N,) belong to squares with corners (x0, y0) and side `size0`, level-0 pixels; a pixel of the map spans
    `px0` level-0 pixels, from the slide's corner. A square's edges are rounded to whole pixels of the map, so that
    neighbours neither overlap nor leave a gap.
    """
    left, right = _edges(x0, size0, px0, shape[1])
    top, bottom = _edges(y0, size0, px0, shape[0])
    total, count = np.zeros((2, shape[0] + 1, shape[1] + 1))
    for picture, amounts in ((total, values.astype(np.float64)), (count, np.ones(len(values)))):
        # Each square adds its amount at its corners; summing along both axes spreads it over the square.
        np.add.at(picture, (top, left), amounts)
        np.add.at(picture, (top, right), -amounts)
        np.add.at(picture, (bottom, left), -amounts)
        np.add.at(picture, (bottom, right), amounts)
    summed, tiles = (picture.cumsum(0).cumsum(1)[:-1, :-1] for picture in (total, count))
    covered = np.round(tiles) > 0
    return np.where(covered, summed / np.where(covered, np.round(tiles), 1), np.nan).astype(np.float32)


def _edges(start0: NDArray[np.int32], size0: int, px0: float, limit: int) -> tuple[NDArray[np.int64], ...]:
    ends = (start0, start0.astype(np.int64) + size0)
    return tuple(np.clip(np.round(end / px0).astype(np.int64), 0, limit) for end in ends)
