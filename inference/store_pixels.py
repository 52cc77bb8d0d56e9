"""The picture of a slide that a tile store gives at any place and scale: its tiles, on its thumbnail."""

from __future__ import annotations

import cv2
import numpy as np

from tiling import TileStore
from tiling.core.arrays import UInt8Array

_GLASS = 255
_AHEAD = 1.5
"""How many times finer than the thumbnail a picture must be for tiles to be read."""


def store_region(store: TileStore, x0: int, y0: int, side0: int, side_px: int) -> UInt8Array:
    """A square of a slide, resampled to (side_px, side_px, 3); white beyond it.

    Args:
        store: The store.
        x0: Left edge, level-0 pixels.
        y0: Upper edge, level-0 pixels.
        side0: Side of the square, level-0 pixels.
        side_px: Side of the result, pixels.

    Returns:
        The pixels.

    Raises:
        StoreError: For a damaged tile.
    """
    px0, thumbnail, tile0 = side0 / side_px, store.thumbnail, store.grid.tile_px0
    out = placed(thumbnail.values, thumbnail.downsample, x0, y0, side0, side_px)
    if px0 * _AHEAD >= thumbnail.downsample:
        return out
    at_x0, at_y0 = store.tiles.x0, store.tiles.y0
    meets = (at_x0 < x0 + side0) & (at_y0 < y0 + side0) & (at_x0 > x0 - tile0) & (at_y0 > y0 - tile0)
    rows = np.flatnonzero(meets)
    for row, tile in zip(rows.tolist(), store.read(rows), strict=True):
        left, top = int(at_x0[row]) - x0, int(at_y0[row]) - y0
        xa, ya, xb, yb = (round(edge / px0) for edge in (left, top, left + tile0, top + tile0))
        drawn = cv2.resize(tile, (max(1, xb - xa), max(1, yb - ya)), interpolation=_how(tile0 / px0, len(tile)))
        _paste(out, np.asarray(drawn, np.uint8), xa, ya)
    return out


def placed(values: UInt8Array, downsample: float, x0: int, y0: int, side0: int, side_px: int) -> UInt8Array:
    """A square of a slide as `store_region`, from a picture (h, w, 3) of the whole slide."""
    scale, px0 = downsample * side_px / side0, side0 / side_px
    shift = (x0 / px0, y0 / px0)
    if scale < 1:  # area-resampled first, so that nothing is skipped
        size = tuple(max(1, round(length * scale)) for length in values.shape[1::-1])
        values = np.asarray(cv2.resize(values, size, interpolation=cv2.INTER_AREA), np.uint8)
        scale = 1.0
    move = np.array([[scale, 0, scale / 2 - 0.5 - shift[0]], [0, scale, scale / 2 - 0.5 - shift[1]]])
    white = (_GLASS, _GLASS, _GLASS)
    drawn = cv2.warpAffine(values, move, (side_px, side_px), flags=cv2.INTER_LINEAR, borderValue=white)
    return np.asarray(drawn, np.uint8)


def _paste(out: UInt8Array, tile: UInt8Array, left: int, top: int) -> None:
    """Draw a tile into a picture at a place that may lie beyond its edges."""
    (height, width), (h, w) = out.shape[:2], tile.shape[:2]
    xa, ya, xb, yb = max(left, 0), max(top, 0), min(left + w, width), min(top + h, height)
    if xa < xb and ya < yb:
        out[ya:yb, xa:xb] = tile[ya - top : yb - top, xa - left : xb - left]


def _how(side: float, tile_px: int) -> int:
    return cv2.INTER_AREA if side < tile_px else cv2.INTER_LINEAR
