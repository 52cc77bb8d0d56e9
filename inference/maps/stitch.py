"""Stitch: tile values and their places become a map of the slide. Pure."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import scipy.sparse

from tiling.core.arrays import Float32Array, Float64Array, Int32Array
from tiling.grid import Grid, Raster, Tiles

_TILE_PIXELS = (8, 16)  # of the map, across a tile that overlaps its neighbours: min, max
MAX_PIXELS = 25_000_000  # of the map, about: so its memory is bounded, whatever the slide's size
_BAND = 512  # rows that are made at once


def slide_map(values: Float32Array, tiles: Tiles) -> Raster:
    """The map of tile values (N,) over the whole slide, as `assemble` makes it, at `map_downsample` of their grid.

    The last row and column may reach beyond the slide.
    """
    downsample = map_downsample(tiles.grid)
    shape = (math.ceil(tiles.grid.height0 / downsample), math.ceil(tiles.grid.width0 / downsample))
    return Raster(assemble(values, tiles, downsample, shape), downsample)


def map_downsample(grid: Grid) -> float:
    """Level-0 pixels that a pixel of the map spans: a tile, or where tiles overlap an n-th of their stride.

    So tiles begin on borders of its pixels. They end within half a level-0 pixel of one where some n does that without
    making a tile wider than 16 pixels, or else as near as can be: within half a pixel of the map, 1/16 of a tile.
    Where the map would have more than about 25 million pixels, n is smaller; and on a slide of more tiles than that, a
    pixel spans several strides, so that tiles begin within half a pixel of a border.
    """
    tile, stride = grid.tile_px0, grid.stride_px0
    finest = math.sqrt(grid.width0 * grid.height0 / MAX_PIXELS)
    if finest > stride:
        return float(stride * math.ceil(finest / stride))
    if tile == stride:
        return float(tile)
    fitting = int(stride / finest)
    min_n, max_n = (min(math.ceil(pixels * stride / tile), fitting) for pixels in _TILE_PIXELS)
    misses = {n: abs(tile - round(tile * n / stride) * stride / n) for n in range(min_n, max_n + 1)}
    return stride / next((n for n, miss in misses.items() if miss <= 0.5), min(misses, key=lambda n: misses[n]))


def assemble(values: Float32Array, tiles: Tiles, downsample: float, shape: tuple[int, int]) -> Float32Array:
    """The map of tile values over a slide, float32 (h, w); overlapping tiles are averaged.

    A tile's edges are rounded to whole pixels of the map, so that neighbours neither overlap nor leave a gap. Where
    tiles overlap, each counts by a tent: the product of a pixel's distances from the tile's nearer vertical and nearer
    horizontal edge. So tiles that overlap by half are interpolated bilinearly between their centres, and a pixel under
    one tile shows its value.

    Args:
        values: (N,).
        tiles: The N tiles.
        downsample: Level-0 pixels per pixel of the map.
        shape: (h, w) of the map.

    Returns:
        The map, NaN where no tile lies.
    """
    # Weights are the outer product of one tent down and one across, so the map is three sparse matrices: tents of the
    # rows of tiles, the tiles' values, tents of their columns. They are whole numbers, so that a value weighted and
    # divided again is itself.
    ys, row = np.unique(tiles.y0, return_inverse=True)
    xs, column = np.unique(tiles.x0, return_inverse=True)
    down, across = (_tents(at, tiles.side_px0, downsample, n) for at, n in zip((ys, xs), shape, strict=True))

    def spread(amounts: Float64Array, band: slice) -> Float64Array:
        squares = scipy.sparse.csr_array((amounts, (row, column)), (len(ys), len(xs)))
        return np.asarray((down[:, band].T @ squares @ across).toarray())

    whole = np.full(shape, np.nan, np.float32)
    for top in range(0, shape[0], _BAND):  # of a band, not of the whole map, memory holds float64
        band = slice(top, top + _BAND)
        total, weight = spread(values.astype(np.float64), band), spread(np.ones(len(values)), band)
        covered = weight > 0
        whole[band][covered] = total[covered] / weight[covered]
    return whole


def _tents(start0: Int32Array, side_px0: int, downsample: float, limit: int) -> Any:
    """Sparse (starts, limit): each pixel's distance from the nearer end of the stretch, in half pixels; 0 outside."""
    first, last = (np.round(end / downsample).astype(np.int64) for end in (start0, start0.astype(np.int64) + side_px0))
    length = last - first
    square = np.repeat(np.arange(len(first)), length)
    place = np.arange(len(square)) - np.repeat(np.cumsum(length) - length, length)
    tent = np.minimum(2 * place + 1, 2 * (length[square] - place) - 1)
    pixel = first[square] + place
    seen = (pixel >= 0) & (pixel < limit)
    return scipy.sparse.csr_array((tent[seen].astype(np.float64), (square[seen], pixel[seen])), (len(first), limit))
