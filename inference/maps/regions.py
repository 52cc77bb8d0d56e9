"""A probability map -> polygons of what lies above a threshold, with their holes. Pure; level-0 pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import shapely
from shapely.geometry.polygon import orient
from shapely.ops import split

from tiling.core.arrays import BoolArray, Float32Array, Float64Array
from tiling.grid import Bounds, Frame, Grid, Raster, Tiles

_STEP0 = 0.125  # coordinates are multiples of it, level-0 pixels: short in text, and exact in binary
_ARC_SEGMENTS = 8  # a quarter of a circle
_BLOCK = 32  # pixels of the map that are smoothed at once: much larger ones take longer for the same map
_NARROW = 0.4  # radii that are fewer pixels than that close nothing but corners


@dataclass(frozen=True)
class Region:
    """One connected region and the tiles whose centres lie in it."""

    outline: shapely.Polygon
    """Level-0 pixels, holes kept; its outer ring turns counter-clockwise where y points up."""
    area_um2: float
    """Without its holes."""
    tiles: int
    mean: float | None
    """Mean probability of its tiles; None without any."""
    highest: float | None


def find_regions(
    heat: Raster,
    grid: Grid,
    scanned: Bounds | None = None,
    /,
    *,
    threshold: float,
    smoothing_um: float = 0.0,
    min_area_um2: float = 0.0,
) -> list[shapely.Polygon]:
    """The connected parts of a map that are at or above a threshold, the largest first, level-0 pixels.

    Without smoothing a region is the union of its pixels, and pixels that touch at a corner only are two regions.

    Args:
        heat: (h, w), NaN where nothing is known.
        grid: Of the slide; what lies beyond its edges is cut off.
        scanned: What was scanned of the slide; what lies beyond is cut off. None: all of it.
        threshold: Of the map's values.
        smoothing_um: Gaps narrower than twice that are closed, then bridges and specks that narrow are cut, and corners
            are rounded to that radius.
        min_area_um2: Parts that are smaller, holes taken off, are left out.
    """
    marked = heat.values >= threshold  # NaN is not
    radius0 = smoothing_um / grid.slide_mpp
    whole = _smoothed(marked, heat.downsample, radius0) if radius0 > 0 else _pixels(marked, heat.downsample)
    within = scanned or Frame(grid.size0).scanned
    edges = shapely.box(*within.corner, *within.opposite)
    whole = shapely.set_precision(shapely.intersection(whole, edges), _STEP0)
    parts = [orient(part) for part in shapely.get_parts(whole) if part.geom_type == "Polygon" and part.area > 0]
    min_area0 = min_area_um2 / grid.slide_mpp**2
    return sorted((part for part in parts if part.area >= min_area0), key=lambda part: (-part.area, part.bounds))


def measured(outlines: list[shapely.Polygon], tiles: Tiles, probabilities: Float32Array) -> list[Region]:
    """Regions of some outlines: with their area, and the probabilities (N,) of the tiles whose centres lie in them."""
    half = tiles.side_px0 / 2
    centres = shapely.STRtree(shapely.points(tiles.x0 + half, tiles.y0 + half))
    of_region, tile = centres.query(np.array(outlines, object), predicate="contains")
    found = []
    for number, outline in enumerate(outlines):
        inside = probabilities[tile[of_region == number]].astype(np.float64)
        mean, highest = (float(inside.mean()), float(inside.max())) if len(inside) else (None, None)
        found.append(Region(outline, outline.area * tiles.grid.slide_mpp**2, len(inside), mean, highest))
    return found


def without_holes(polygon: shapely.Polygon) -> list[shapely.Polygon]:
    """A polygon cut into pieces without holes, upwards and downwards through each, for formats that draw none."""
    pending, pieces = [polygon], []
    while pending:
        piece = pending.pop()
        if not piece.interiors:
            pieces.append(piece)
            continue
        x = shapely.Polygon(piece.interiors[0]).representative_point().x
        _, lowest, _, highest = piece.bounds
        pending += split(piece, shapely.LineString([(x, lowest - 1), (x, highest + 1)])).geoms
    return sorted(pieces, key=lambda piece: piece.bounds)


def rings_of(geometry: shapely.Geometry) -> list[Float64Array]:
    """The rings of the polygons of a geometry, outer ones and holes, each (n, 2)."""
    parts = [part for part in shapely.get_parts(geometry) if part.geom_type == "Polygon"]
    return [np.asarray(ring.coords) for part in parts for ring in (part.exterior, *part.interiors)]


def _smoothed(marked: BoolArray, downsample: float, radius0: float) -> shapely.Geometry:
    """The union of the marked pixels, closed, opened and rounded by a radius.

    Done block by block, for buffers of the whole take time that grows faster than their points. What is farther away
    than four radii does not count. Where the radius is less than half a pixel, no gap between pixels is closed, and the
    corners that the first buffer would round are all restored by the second: it is drawn with few points, as mitres.
    """
    narrow = radius0 < _NARROW * downsample
    join: Literal["mitre", "round"] = "mitre" if narrow else "round"
    reach = math.ceil(4 * radius0 / downsample)
    side = max(_BLOCK, 2 * reach)
    height, width = marked.shape
    parts = []
    for row in range(0, height, side):
        for column in range(0, width, side):
            top, left = max(0, row - reach), max(0, column - reach)
            seen = marked[top : row + side + reach, left : column + side + reach]
            if not seen.any():
                continue
            part = shapely.transform(_pixels(seen, downsample), partial(np.add, (left * downsample, top * downsample)))
            part = part.buffer(radius0, quad_segs=_ARC_SEGMENTS, join_style=join)
            for distance in (-2 * radius0, radius0):
                part = part.buffer(distance, quad_segs=_ARC_SEGMENTS)
            parts.append(shapely.intersection(part, _block(row, column, side, marked.shape, downsample)))
    return shapely.union_all(parts).simplify(radius0 / 100)


def _block(row: int, column: int, side: int, shape: tuple[int, ...], downsample: float) -> shapely.Polygon:
    """The place of a block; those at the edge of the map reach beyond it."""
    far = side * max(shape)
    left, right = column if column else -far, column + side if column + side < shape[1] else column + far
    top, bottom = row if row else -far, row + side if row + side < shape[0] else row + far
    return shapely.box(*(edge * downsample for edge in (left, top, right, bottom)))


def _pixels(marked: BoolArray, downsample: float) -> shapely.Geometry:
    """The union of the pixels that are marked."""
    row, column = np.nonzero(marked)
    pixels = shapely.box(*(edge * downsample for edge in (column, row, column + 1, row + 1)))
    return shapely.coverage_union_all(pixels).simplify(0)  # which takes out points on straight edges
