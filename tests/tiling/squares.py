"""Tiles at any place, for tests of what is computed over them."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from tiling.grid import Grid, Tiles


def squares(x0: ArrayLike, y0: ArrayLike, side_px0: int, size0: tuple[int, int] = (100, 100)) -> Tiles:
    """Squares of that side with those corners, level-0 pixels, on a slide of `size0` (width, height)."""
    width, height = size0
    grid = Grid(width0=width, height0=height, slide_mpp=1, tile_px=side_px0, tile_px0=side_px0, stride_px0=side_px0)
    return Tiles(grid, np.asarray(x0, np.int32), np.asarray(y0, np.int32))
